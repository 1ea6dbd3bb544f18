"""The invisible watermark of videos: every frame carries it, and a reader adds up what the frames show."""

import os
from collections.abc import Callable
from pathlib import Path

from latentswap.errors import ProvenanceError, UsageError
from latentswap.media.video import VideoWriter, read_video
from latentswap.provenance.watermark import Detection, detect_frames, embed_frame


def mark_video(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    payload: int,
    *,
    crf: int = 18,
    strength: float | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Detection:
    """Write the video `src` to `dst` (.mp4) with the payload in every frame, its time stamps and its sound.

    The finished file is read back before it takes its name; `src` may be `dst`. on_step: (frames done, frames in all;
    0 where the header does not say).

    Returns what was read back. Raises what `read_video` and `VideoWriter` raise, UsageError for a payload that is not
    32 bits, and ProvenanceError when the mark cannot be read back: no file is written then.
    """
    if not 0 <= payload < 1 << 32:
        raise UsageError(f"the payload {payload} does not fit in 32 bits")
    found: list[Detection] = []

    def check(part: Path) -> None:
        found.append(detect_video(part, search=False))
        if found[-1].payload != payload:
            raise ProvenanceError(
                f"the invisible watermark cannot be read back from {dst}: its frames are too small, too few or nearly "
                f"all black or white, or crf {crf} is too high; give a lower one, or turn the watermark off"
            )

    options = {} if strength is None else {"strength": strength}
    with read_video(src, role="TARGET") as reader:
        with VideoWriter(dst, reader.info, crf=crf, sound=src, finish=check) as writer:
            for frame in reader:
                writer.write(embed_frame(frame.pixels, payload, **options), frame.pts)
                if on_step is not None:
                    on_step(writer.frames, max(reader.info.frames or 0, writer.frames))
    return found[-1]


def detect_video(path: str | os.PathLike[str], *, search: bool = True) -> Detection:
    """Look for the watermark in a video's frames, no more of them than it takes. Raises what `read_video` raises."""
    with read_video(path) as reader:
        return detect_frames((frame.pixels for frame in reader), search=search)
