"""Sheets and moving pictures of codes: the way from one to another, style mixing, short animations.

The functions take `render`, W+ [1, L, D] → uint8 [1, S, S, 3], and give arrays; nothing here loads a model.
"""

import io
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import PIL.Image
import torch

from latentswap.errors import ResourceError, UsageError
from latentswap.swappers.base import OnStep, no_progress

Render = Callable[[torch.Tensor], np.ndarray]
CELL = 256  # side of a picture in a sheet
FRAME = 512  # and of an animation
FRAMES_A_SECOND = 20
MOST_CELLS = 400


def way(codes: Sequence[torch.Tensor], steps: int) -> list[torch.Tensor]:
    """`steps` codes [1, L, D], evenly from the first to the last through all between. Raises UsageError for fewer than
    two codes or steps."""
    if len(codes) < 2 or steps < 2:
        raise UsageError(f"A way of {steps} steps through {len(codes)} codes is none; give two of each at least.")
    places = torch.linspace(0, len(codes) - 1, steps).tolist()
    return [torch.lerp(codes[int(p)], codes[min(int(p) + 1, len(codes) - 1)], p - int(p)) for p in places]


def mix(ws_BLD: torch.Tensor, style_BLD: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """The first code with these rows from the second (Karras et al., arXiv 1812.04948, section 3.1). Raises UsageError
    for a row that the codes lack."""
    if not rows or not 0 <= min(rows) <= max(rows) < ws_BLD.shape[1]:
        raise UsageError(f"Rows {list(rows)} cannot be mixed; these codes have rows 0 to {ws_BLD.shape[1] - 1}.")
    mixed_BLD = ws_BLD.clone()
    mixed_BLD[:, list(rows)] = style_BLD[:, list(rows)]
    return mixed_BLD


def strip(
    codes: Sequence[torch.Tensor], render: Render, *, cell: int = CELL, on_step: OnStep = no_progress
) -> np.ndarray:
    """The codes' pictures side by side, uint8 [cell, N · cell, 3]. Raises UsageError for too many."""
    return np.concatenate(list(_pictures(codes, render, cell, on_step)), 1)


def mixing_sheet(
    codes: Sequence[torch.Tensor],
    rows: Sequence[int],
    render: Render,
    *,
    cell: int = CELL,
    on_step: OnStep = no_progress,
) -> np.ndarray:
    """Everybody with the rows of everybody else, uint8 [(N + 1) · cell, (N + 1) · cell, 3].

    The top row shows whose rows a column takes, the first column who takes them; the corner is empty.
    """
    mixed = [mix(person, style, rows) for person in codes for style in codes]
    pictures = iter(list(_pictures([*codes, *mixed], render, cell, on_step)))
    alone = [next(pictures) for _ in codes]
    blank = np.full_like(alone[0], 255)
    lines = [[blank, *alone], *([person, *(next(pictures) for _ in codes)] for person in alone)]
    return np.concatenate([np.concatenate(line, 1) for line in lines])


def animate(
    codes: Sequence[torch.Tensor],
    render: Render,
    *,
    xmp: bytes,
    size: int = FRAME,
    quality: int = 85,
    on_step: OnStep = no_progress,
    finish: Callable[[np.ndarray], np.ndarray] = lambda pixels: pixels,
) -> bytes:
    """An animated WebP that runs through the codes and back, endlessly. xmp: its mark. finish: done to every frame's
    pixels.

    WebP carries the mark, and browsers play it; of the dependencies only OpenCV writes video, MPEG-4 part 2 or VP9
    without any metadata.
    """
    frames = [PIL.Image.fromarray(finish(pixels)) for pixels in _pictures(codes, render, size, on_step)]
    frames += frames[-2:0:-1]
    out = io.BytesIO()
    first, *rest = frames
    try:
        first.save(
            out,
            format="WEBP",
            save_all=True,
            append_images=rest,
            duration=1000 // FRAMES_A_SECOND,
            loop=0,
            quality=quality,
            xmp=xmp,
        )
    except MemoryError:
        raise ResourceError("not enough memory to encode the animation; give fewer --steps") from None
    return out.getvalue()


def _pictures(codes: Sequence[torch.Tensor], render: Render, size: int, on_step: OnStep) -> Iterator[np.ndarray]:
    """The pictures of the codes, one by one, reduced to `size`."""
    if len(codes) > MOST_CELLS:
        raise UsageError(f"{len(codes)} pictures are too many for one file; at most {MOST_CELLS} are drawn.")
    for done, ws_BLD in enumerate(codes, 1):
        picture = PIL.Image.fromarray(render(ws_BLD)[0])
        yield np.asarray(picture.resize((size, size), PIL.Image.Resampling.LANCZOS))
        on_step(done, len(codes))
