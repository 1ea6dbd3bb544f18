"""What may come in as a video, and how a video goes out.

Frames come upright, in RGB, with the time stamps of the source; they go out as H.264 in MP4 with those time stamps and
the source's sound, in a file that takes its name once it is whole. Reading opens no file but the one it was given and
no address: playlists and lists of files, which FFmpeg would follow, are refused whatever they are called.
"""

import contextlib
import math
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import ColorRange, Colorspace, Interpolation

from latentswap.errors import BadInputError, ResourceError, TooLargeError, UnsupportedMediaError, UsageError
from latentswap.media.atomic import check_destination, replacing

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi")
# FFmpeg's names of the containers that are read; what is not among them is not even looked at.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"
_SAFE = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}
_COPIED_SOUND = {"aac", "mp3", "ac3", "eac3", "opus", "alac", "flac"}  # what MP4 holds and players play
_PQ, _HLG = 16, 18  # transfer characteristics of ITU-T H.273 that say HDR
_BT709, _MPEG_RANGE, _JPEG_RANGE = 1, 1, 2
_MATRICES = {1: Colorspace.ITU709, 4: Colorspace.FCC, 5: Colorspace.ITU601, 6: Colorspace.ITU601}
_MATRICES |= {7: Colorspace.SMPTE240M, 9: Colorspace.BT2020}
# Without these, FFmpeg's conversion between YUV and RGB darkens a picture by more than a level each way.
_EXACT = (
    Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
)
_HD_HEIGHT = 720  # from here on a video that does not name its matrix is taken for BT.709, below for BT.601
_TRUNCATED = 0.5  # seconds of a stream that may be missing at its end


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is refused before any frame is decoded."""

    pixels: int = 8192 * 4608  # of a frame
    frames: int = 2_000_000
    seconds: float = 6 * 3600.0
    side_min: int = 64


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """A video's properties, from its header."""

    name: str
    width: int  # of the upright picture
    height: int
    frames: int | None  # as declared, or estimated from duration and rate; None: neither is stated
    seconds: float | None
    rate: Fraction  # frames a second, on average
    time_base: Fraction  # seconds of a tick of `VideoFrame.pts`
    rotation: int  # degrees by which stored frames are turned counterclockwise to be upright: 0, 90, 180, 270
    codec: str
    sound: tuple[str, ...]  # codecs of the audio streams


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoFrame:
    """One frame: its picture and when it is shown."""

    pixels: np.ndarray  # uint8 [H, W, 3], RGB, upright
    pts: int  # in ticks of `VideoInfo.time_base`


class VideoReader:
    """The frames of a video, in order of time. Made by `read_video`; a context manager, read once.

    `damaged` counts frames that the decoder had to patch up.
    """

    def __init__(
        self, path: Path, container: Any, stream: Any, info: VideoInfo, label: str, limits: Limits, *, whole: bool
    ) -> None:
        self.path, self.info, self.damaged = path, info, 0
        self._whole = whole  # known already
        self._container, self._stream, self._label, self._limits = container, stream, label, limits
        self._last: int | None = None

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._container.close()

    def __iter__(self) -> Iterator[VideoFrame]:
        """Raises BadInputError where the data are damaged or end too early, TooLargeError for more than the header
        said."""
        number = 0
        try:
            for frame in self._container.decode(self._stream):
                number += 1
                if number > self._limits.frames:
                    raise TooLargeError(f"{self._label} has more than {self._limits.frames:,} frames; cut it first")
                self.damaged += bool(frame.is_corrupt)
                yield VideoFrame(pixels=self._pixels(frame, number), pts=self._pts(frame))
        except FFmpegError as error:
            raise BadInputError(
                f"{self._label} is damaged or cut off after frame {number} ({_reason(error)}); export it again"
            ) from error
        except MemoryError:
            raise ResourceError(f"not enough memory to decode {self._label}; use a smaller video") from None
        if number == 0:
            raise BadInputError(f"{self._label} holds no frame that can be decoded; export it again")
        self._check_end(number)

    def _pixels(self, frame: Any, number: int) -> np.ndarray:
        turned = self.info.rotation in (90, 270)
        expected = (self.info.height, self.info.width) if turned else (self.info.width, self.info.height)
        if (frame.width, frame.height) != expected:
            raise BadInputError(
                f"{self._label} changes its size to {frame.width}x{frame.height} at frame {number}; "
                "export it at one size"
            )
        matrix = _MATRICES.get(frame.colorspace, Colorspace.ITU709 if frame.height >= _HD_HEIGHT else Colorspace.ITU601)
        full = frame.color_range == _JPEG_RANGE or frame.format.name.startswith("yuvj")
        rgb = frame.reformat(
            format="rgb24",
            src_colorspace=matrix,
            src_color_range=ColorRange.JPEG if full else ColorRange.MPEG,
            dst_color_range=ColorRange.JPEG,
            interpolation=_EXACT,
        )
        pixels = rgb.to_ndarray()
        return np.ascontiguousarray(np.rot90(pixels, self.info.rotation // 90)) if self.info.rotation else pixels

    def _pts(self, frame: Any) -> int:
        """The frame's time stamp; always later than the one before."""
        step = max(1, round(1 / (self.info.rate * self.info.time_base)))
        pts = frame.pts if frame.pts is not None else frame.dts
        if pts is None:
            pts = 0 if self._last is None else self._last + step
        pts = pts if self._last is None else max(pts, self._last + 1)
        self._last = pts
        return pts

    def _check_end(self, number: int) -> None:
        stated = _stream_seconds(self._stream)
        if self._whole or stated is None or self._last is None:
            return
        start = self._stream.start_time or 0
        reached = float((self._last - start) * self.info.time_base + 1 / self.info.rate)
        if stated - reached > max(_TRUNCATED, 2 / float(self.info.rate)):
            raise BadInputError(
                f"{self._label} is cut off: it ends after {number} frames and {reached:.1f} s of {stated:.1f} s; "
                "copy or export it again"
            )


def read_video(path: str | os.PathLike[str], *, role: str = "video", limits: Limits | None = None) -> VideoReader:
    """Open a video and check what its header says, before any frame is decoded.

    Reads MP4, MOV, Matroska, WebM and AVI: the content decides, not the suffix. A rotation that the file asks for is
    applied. Colour goes from the matrix and range that the file names to full-range RGB; HDR is refused.

    Args:
        path: a regular file.
        role: what the video is for; messages print it in capitals ("the TARGET video clip.mp4").
        limits: what is too large.

    Raises:
        BadInputError: no such file, no video stream, truncated, damaged, HDR, too small.
        UnsupportedMediaError: not one of these containers, or a codec that this build of FFmpeg lacks.
        TooLargeError: more pixels, frames or seconds than `limits` allow.
    """
    path, limits = Path(path), limits or Limits()
    label = f"the {'video' if role == 'video' else f'{role} video'} {path}"
    size = _regular_size(path, label)
    with ExitStack() as stack:
        try:
            container = stack.enter_context(av.open(_address(path), options=_SAFE))
        except (FFmpegError, OSError) as error:
            raise _unreadable(path, label, error) from error
        if not container.streams.video:
            what = "sound but no picture" if container.streams.audio else "no video stream, or is cut off"
            raise BadInputError(f"{label} holds {what}; give a whole video file")
        stream: Any = container.streams.video[0]
        if stream.codec_context is None:
            raise UnsupportedMediaError(f"{label} is in a codec that cannot be decoded here; export it as H.264")
        info = _info(path, container, stream, label, limits)
        entries = getattr(stream, "index_entries", None)
        listed = "mp4" in container.format.name and bool(entries)  # in the header, so a cut shows before it is reached
        if listed and (end := max(entry.pos + entry.size for entry in entries or ())) > size:
            raise BadInputError(f"{label} is cut off: it has {size:,} bytes of at least {end:,}; copy it again")
        if container.format.name == "avi" and (end := _riff_size(path)) > size:
            raise BadInputError(f"{label} is cut off: it has {size:,} bytes of {end:,}; copy it again")
        context: Any = stream.codec_context
        context.options = {"max_pixels": str(limits.pixels)}
        stream.thread_type = "AUTO"
        stack.pop_all()
    return VideoReader(path, container, stream, info, label, limits, whole=listed)


def probe(path: str | os.PathLike[str], *, role: str = "video", limits: Limits | None = None) -> VideoInfo:
    """What a video's header says. Raises as `read_video`."""
    with read_video(path, role=role, limits=limits) as reader:
        return reader.info


def check_video_output(path: str | os.PathLike[str]) -> None:
    """Refuse an output video that could not be written, before any work is done.

    Raises:
        UsageError: not an .mp4, missing folder, or the path is a folder or a device.
        ResourceError: the folder cannot be written.
    """
    if Path(path).suffix.lower() != ".mp4":
        raise UsageError(f"the OUTPUT video {path} must end in .mp4, the one container that is written and signed")
    check_destination(path)


class VideoWriter:
    """Writes an H.264 MP4, a context manager: the file takes its name when the block ends, and never if it fails.

    >>> with read_video("in.mp4") as reader, VideoWriter("out.mp4", reader.info, sound=reader.path) as writer:
    ...     for frame in reader:
    ...         writer.write(frame.pixels, frame.pts)

    The time stamps are the source's. Sides are even in H.264 as players know it (4:2:0): an odd side gets its last
    row or column twice. Colour is written as BT.709, limited range, and says so.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        info: VideoInfo,
        *,
        crf: int = 18,
        preset: str = "fast",
        sound: str | os.PathLike[str] | None = None,
        finish: Callable[[Path], None] | None = None,
    ) -> None:
        """info: size, rate and time base of what will be written. crf: 0 (lossless) … 51, x264's quality; 18 is hard to
        tell from the source. sound: a video whose audio streams are copied as they are, those that MP4 can hold;
        `dropped` names the others. finish: called with the whole file before it takes its name, to sign or check it.

        Raises UsageError and ResourceError as `check_video_output`, UsageError for a crf out of range.
        """
        check_video_output(path)
        if not 0 <= crf <= 51:
            raise UsageError(f"crf is {crf}; it runs from 0 (lossless) to 51 (worst)")
        self.path, self.info, self.frames = Path(path), info, 0
        self.dropped: tuple[str, ...] = ()
        self._crf, self._preset, self._finish = crf, preset, finish
        self._sound = None if sound is None else Path(sound)
        self._stack = ExitStack()
        self._last: int | None = None

    def __enter__(self) -> "VideoWriter":
        with ExitStack() as stack:
            self._part = stack.enter_context(replacing(self.path))
            # The header goes to the front, so that a player can start before it has everything.
            self._out: Any = av.open(_address(self._part), "w", format="mp4", options={"movflags": "+faststart"})
            self._copier = _SoundCopier()
            stack.push(self._close)
            self._stream = self._video_stream()
            if self._sound is not None:
                self._copier.open(self._sound, self._out)
            self.dropped = self._copier.dropped
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._stack.__exit__(kind, error, trace)

    def write(self, pixels: np.ndarray, pts: int) -> None:
        """A frame, uint8 [H, W, 3], RGB, shown from tick `pts` on; ticks must rise. Raises ValueError for another size
        or a tick that is not later, ResourceError where the disk is full."""
        if pixels.shape != (self.info.height, self.info.width, 3) or pixels.dtype != np.uint8:
            raise ValueError(
                f"a frame is {pixels.dtype} {pixels.shape}, not uint8 {(self.info.height, self.info.width, 3)}"
            )
        if self._last is not None and pts <= self._last:
            raise ValueError(f"the frame's tick {pts} is not later than {self._last}")
        self._last = pts
        odd = (pixels.shape[0] % 2, pixels.shape[1] % 2)
        if any(odd):
            pixels = np.pad(pixels, ((0, odd[0]), (0, odd[1]), (0, 0)), mode="edge")
        rgb = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame = rgb.reformat(
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
            interpolation=_EXACT,
        )
        frame.pts, frame.time_base = pts, self.info.time_base
        self._copier.copy_until(float(pts * self.info.time_base))
        for packet in self._stream.encode(frame):
            self._out.mux(packet)
        self.frames += 1

    def _video_stream(self) -> Any:
        info = self.info
        stream: Any = self._out.add_stream("libx264", rate=info.rate)
        stream.width, stream.height = info.width + info.width % 2, info.height + info.height % 2
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = info.time_base
        stream.options = {"crf": str(self._crf), "preset": self._preset}
        context = stream.codec_context
        context.color_range, context.colorspace = _MPEG_RANGE, _BT709
        context.color_primaries, context.color_trc = _BT709, _BT709
        return stream

    def _close(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Write what is still in the encoder, and the header; on a failure only let go of the file."""
        try:
            if kind is None:
                if self.frames == 0:
                    raise BadInputError(f"no frame was written to {self.path}; there is nothing to keep")
                for packet in self._stream.encode(None):
                    self._out.mux(packet)
                self._copier.copy_until(math.inf)
                self._out.close()
        finally:
            self._copier.close()
            with contextlib.suppress(FFmpegError, OSError, ValueError):
                self._out.close()  # does nothing the second time; after a failure, that one is the one to tell
        if kind is None and self._finish is not None:
            self._finish(self._part)


class _SoundCopier:
    """Copies the audio packets of a file into another, not far ahead of the picture."""

    def __init__(self) -> None:
        self.dropped: tuple[str, ...] = ()
        self._out: Any = None
        self._container: Any = None
        self._streams: dict[int, Any] = {}
        self._waiting: Any = None
        self._packets: Iterator[Any] = iter(())

    def open(self, source: Path, out: Any) -> None:
        self._out, self._container = out, av.open(_address(source), options=_SAFE)
        container = self._container
        streams = [s for s in container.streams.audio if _codec(s) in _COPIED_SOUND]
        self._streams = {stream.index: out.add_stream_from_template(stream) for stream in streams}
        kept = [*container.streams.video[:1], *streams]
        self.dropped = tuple(f"{s.type} ({_codec(s)})" for s in container.streams if s not in kept)
        if streams:
            self._packets = container.demux(streams)

    def copy_until(self, seconds: float) -> None:
        """All packets that start before a time."""
        while True:
            packet, self._waiting = self._waiting or next(self._packets, None), None
            if packet is None:
                return
            if packet.size == 0:  # the end; a packet without a decoding time is none
                continue
            start = packet.pts if packet.pts is not None else packet.dts
            if start is not None and float(start * packet.time_base) > seconds:
                self._waiting = packet
                return
            packet.stream = self._streams[packet.stream.index]
            self._out.mux(packet)

    def close(self) -> None:
        if self._container is not None:
            self._container.close()


def _info(path: Path, container: Any, stream: Any, label: str, limits: Limits) -> VideoInfo:
    """The header's properties. Raises as `read_video`."""
    context = stream.codec_context
    width, height = context.width, context.height
    if width < limits.side_min or height < limits.side_min:
        raise BadInputError(f"{label} is {width}x{height}; each side must be at least {limits.side_min} pixels")
    if width * height > limits.pixels:
        raise TooLargeError(f"{label} is {width}x{height}, over {limits.pixels:,} pixels a frame; scale it down first")
    if context.color_trc in (_PQ, _HLG):
        raise BadInputError(f"{label} is HDR, which would come out pale; convert it to SDR (BT.709) first")
    rate = stream.average_rate or stream.guessed_rate or stream.base_rate
    if not rate or not 0 < rate <= 1000 or not stream.time_base:
        raise BadInputError(f"{label} does not say how long its frames last; export it as MP4")
    seconds = _stream_seconds(stream)
    if seconds is None and container.duration:
        seconds = container.duration / av.time_base
    frames = stream.frames or (None if seconds is None else round(seconds * rate))
    if seconds is not None and seconds > limits.seconds:
        raise TooLargeError(f"{label} is {seconds:,.0f} s long, over {limits.seconds:,.0f} s; cut it first")
    if frames is not None and frames > limits.frames:
        raise TooLargeError(f"{label} has {frames:,} frames, over {limits.frames:,}; cut it first")
    rotation = _rotation(path)
    if rotation in (90, 270):
        width, height = height, width
    return VideoInfo(
        name=path.name,
        width=width,
        height=height,
        frames=frames,
        seconds=seconds,
        rate=Fraction(rate),
        time_base=Fraction(stream.time_base),
        rotation=rotation,
        codec=_codec(stream),
        sound=tuple(map(_codec, container.streams.audio)),
    )


def _rotation(path: Path) -> int:
    """The display matrix lies on decoded frames, so the first one is decoded, from a container of its own."""
    try:
        with av.open(_address(path), options=_SAFE) as container:
            frame: Any = next(container.decode(container.streams.video[0]))
    except (FFmpegError, StopIteration, MemoryError):
        return 0  # the reader will meet the same and say it
    return round(frame.rotation / 90) * 90 % 360


def _codec(stream: Any) -> str:
    """The codec's name, not that of one of its decoders."""
    return stream.codec_context.codec.canonical_name if stream.codec_context else "unknown"


def _stream_seconds(stream: Any) -> float | None:
    """How long the stream says it is: MP4 in its header, Matroska as a tag (hours:minutes:seconds)."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    try:
        hours, minutes, seconds = stream.metadata["DURATION"].split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    except (KeyError, ValueError):
        return None


def _regular_size(path: Path, label: str) -> int:
    try:
        status = path.stat()
    except FileNotFoundError:
        raise BadInputError(f"{label} does not exist; check the path") from None
    except (OSError, ValueError) as error:
        raise BadInputError(f"{label} cannot be opened: {error}; give the path of a video file") from error
    if stat.S_ISDIR(status.st_mode):
        raise BadInputError(f"{label} is a folder; give a video file")
    if not stat.S_ISREG(status.st_mode):
        raise BadInputError(f"{label} is a device or a pipe; copy it to a regular file first")
    if status.st_size == 0:
        raise BadInputError(f"{label} is empty; copy it again")
    return status.st_size


def _riff_size(path: Path) -> int:
    """The bytes that a RIFF file says its first chunk has, in all."""
    with path.open("rb") as file:
        return int.from_bytes(file.read(8)[4:], "little") + 8


def _address(path: Path) -> str:
    """The path as FFmpeg takes it for nothing but a path."""
    return f"file:{path.absolute()}"


def _unreadable(path: Path, label: str, error: Exception) -> BadInputError:
    if isinstance(error, PermissionError):
        return BadInputError(f"{label} may not be read by this user; change its permissions")
    with path.open("rb") as file:
        head = file.read(64)
    if head[4:8] == b"ftyp" or head[:4] in (b"\x1aE\xdf\xa3", b"RIFF"):
        return BadInputError(f"{label} is damaged or cut off ({_reason(error)}); copy or export it again")
    return UnsupportedMediaError(
        f"{label} is not a supported video: it starts with {head[:8]!r}. MP4, MOV, MKV, WebM and AVI are read"
    )


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or type(error).__name__
