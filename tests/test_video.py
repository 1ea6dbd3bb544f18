"""Videos in and out: time stamps, sound, turned and odd frames, and files that are not what they seem."""

import os
import resource
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from _face_support import astronaut

from latentswap.errors import (
    BadInputError,
    ProvenanceError,
    ResourceError,
    TooLargeError,
    UnsupportedMediaError,
    UsageError,
)
from latentswap.media.video import Limits, VideoInfo, VideoWriter, probe, read_video
from latentswap.provenance.video import detect_video, mark_video

BASE = Fraction(1, 12800)
PAYLOAD = 0xA0123456


def picture(width: int, height: int) -> np.ndarray:
    return cv2.resize(astronaut(), (width, height), interpolation=cv2.INTER_AREA)


def make(
    path: Path,
    *,
    frames: int = 12,
    size: tuple[int, int] = (160, 120),
    codec: str = "libx264",
    sound: str | None = "aac",
    turn: int = 0,
    steps: tuple[int, ...] = (512, 300, 900),
    pixel_format: str = "yuv420p",
) -> list[int]:
    """A video of a picture that moves, with a tone; returns its time stamps in 1/12800 s."""
    still = picture(*size)
    stamps = [0]
    for number in range(frames - 1):
        stamps.append(stamps[-1] + steps[number % len(steps)])
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, pixel_format
        stream.time_base = stream.codec_context.time_base = BASE
        tone: Any = out.add_stream(sound, rate=48000) if sound else None
        if turn:
            stream.set_display_rotation(turn)
        for number, pts in enumerate(stamps):
            frame = av.VideoFrame.from_ndarray(np.roll(still, 2 * number, 1), format="rgb24")
            frame.pts, frame.time_base = pts, BASE
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
        if tone is not None:
            for number in range(round(stamps[-1] * BASE * 48000 / 1024)):
                wave = np.sin(np.arange(1024 * number, 1024 * number + 1024) / 20).astype(np.float32)[None] / 4
                samples = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
                samples.sample_rate, samples.pts, samples.time_base = 48000, 1024 * number, Fraction(1, 48000)
                out.mux(tone.encode(samples))
            out.mux(tone.encode(None))
    return stamps


def copy(source: Path, out: Path, **options) -> VideoWriter:
    with read_video(source) as reader, VideoWriter(out, reader.info, sound=source, **options) as writer:
        for frame in reader:
            writer.write(frame.pixels, frame.pts)
    return writer


def stamps_of(path: Path) -> list[Fraction]:
    with read_video(path) as reader:
        return [frame.pts * reader.info.time_base for frame in reader]


def sound_of(path: Path) -> list[tuple[Fraction, bytes]]:
    with av.open(str(path)) as container:
        packets = container.demux(container.streams.audio[0])
        return [(p.pts * p.time_base, bytes(p)) for p in packets if p.size and p.pts is not None and p.time_base]


def info(width: int = 96, height: int = 80) -> VideoInfo:
    return VideoInfo(
        name="test",
        width=width,
        height=height,
        frames=None,
        seconds=None,
        rate=Fraction(25),
        time_base=Fraction(1, 25),
        rotation=0,
        codec="h264",
        sound=(),
    )


# Reading and writing


def test_the_header_is_read(tmp_path: Path) -> None:
    make(tmp_path / "in.mp4")
    found = probe(tmp_path / "in.mp4")
    assert (found.width, found.height, found.frames, found.time_base) == (160, 120, 12, BASE)
    assert (found.name, found.codec, found.sound, found.rotation) == ("in.mp4", "h264", ("aac",), 0)
    assert found.seconds == pytest.approx(12 * 0.045, abs=0.05)


def test_variable_rate_time_stamps_and_sound_are_kept(tmp_path: Path) -> None:
    stamps = make(tmp_path / "in.mp4", frames=40)
    writer = copy(tmp_path / "in.mp4", tmp_path / "out.mp4")
    assert (writer.frames, writer.dropped) == (40, ())
    assert stamps_of(tmp_path / "in.mp4") == [pts * BASE for pts in stamps] == stamps_of(tmp_path / "out.mp4")
    assert sound_of(tmp_path / "in.mp4") == sound_of(tmp_path / "out.mp4") != []
    assert sorted(os.listdir(tmp_path)) == ["in.mp4", "out.mp4"]


@pytest.mark.parametrize(
    ("name", "codec", "sound", "dropped"),
    [
        ("a.mkv", "libx264", "aac", ()),
        ("a.webm", "libvpx", "libopus", ()),
        ("a.avi", "mpeg4", "mp3", ()),
        ("a.mov", "libx264", "pcm_s16le", ("audio (pcm_s16le)",)),
    ],
)
def test_other_containers_become_mp4(tmp_path: Path, name: str, codec: str, sound: str, dropped: tuple) -> None:
    make(tmp_path / name, codec=codec, sound=None if sound == "pcm_s16le" else sound, steps=(512,))
    if sound == "pcm_s16le":
        with av.open(str(tmp_path / name), "w") as out:
            video: Any = out.add_stream("libx264", rate=25)
            tone: Any = out.add_stream(sound, rate=48000)
            video.width, video.height, video.pix_fmt = 160, 120, "yuv420p"
            for _ in range(12):
                out.mux(video.encode(av.VideoFrame.from_ndarray(picture(160, 120), format="rgb24")))
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.int16), format="s16", layout="mono")
            samples.sample_rate = 48000
            out.mux(tone.encode(samples))
            out.mux([*video.encode(None), *tone.encode(None)])
    writer = copy(tmp_path / name, tmp_path / "out.mp4")
    assert writer.dropped == dropped
    before, after = stamps_of(tmp_path / name), stamps_of(tmp_path / "out.mp4")
    assert len(after) == 12
    assert max(abs(a - b) for a, b in zip(before, after, strict=True)) <= Fraction(1, 1000)


@pytest.mark.parametrize("turn", [-90, 90, 180])
def test_frames_are_upright_and_stay_so(tmp_path: Path, turn: int) -> None:
    """A display matrix turns the stored frame counterclockwise by that many degrees, as FFmpeg counts."""
    make(tmp_path / "in.mp4", turn=turn)
    upright = np.rot90(picture(160, 120), turn // 90)
    for path in (tmp_path / "in.mp4", tmp_path / "out.mp4"):
        if path.name == "out.mp4":
            copy(tmp_path / "in.mp4", path)
            assert probe(path).rotation == 0
        with read_video(path) as reader:
            first = next(iter(reader)).pixels
            assert first.shape == upright.shape == (reader.info.height, reader.info.width, 3)
            assert np.abs(first.astype(int) - upright).mean() < 6


def test_odd_sides_are_filled_up(tmp_path: Path) -> None:
    pixels = picture(97, 81)
    with VideoWriter(tmp_path / "out.mp4", info(97, 81)) as writer:
        for pts in range(3):
            writer.write(pixels, pts)
    with read_video(tmp_path / "out.mp4") as reader:
        frame = next(iter(reader)).pixels
    assert frame.shape == (82, 98, 3)
    assert np.abs(frame[:81, :97].astype(int) - pixels).mean() < 6


def bt601(colour: tuple[int, int, int], *, full: bool) -> tuple[int, int, int]:
    """R'G'B' in 0 … 255 as Y', Cb, Cr, by ITU-R BT.601."""
    red, green, blue = colour
    grey = 0.299 * red + 0.587 * green + 0.114 * blue
    cb, cr = (blue - grey) / 1.772, (red - grey) / 1.402
    if full:
        return round(grey), round(128 + cb), round(128 + cr)
    return round(16 + grey * 219 / 255), round(128 + cb * 224 / 255), round(128 + cr * 224 / 255)


@pytest.mark.parametrize("height", [120, 720])
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuvj420p"])
def test_colour_survives_whatever_the_matrix_and_range(tmp_path: Path, height: int, pixel_format: str) -> None:
    """Flat colours, written with matrix and range named, come back to within two levels."""
    colour, full = (200, 60, 30), pixel_format == "yuvj420p"
    with av.open(str(tmp_path / "in.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.options = {"crf": "1"}
        stream.width, stream.height, stream.pix_fmt = 160, height, pixel_format
        context = stream.codec_context
        context.colorspace, context.color_range = 6, 2 if full else 1  # BT.601
        frame = av.VideoFrame(160, height, pixel_format)
        for plane, value in zip(frame.planes, bt601(colour, full=full), strict=True):
            plane.update(bytes([value]) * plane.buffer_size)
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    copy(tmp_path / "in.mp4", tmp_path / "out.mp4", crf=5)
    for name in ("in.mp4", "out.mp4"):
        with read_video(tmp_path / name) as reader:
            assert np.abs(next(iter(reader)).pixels.astype(int) - colour).max() <= 2, name
    with av.open(str(tmp_path / "out.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_range, context.color_trc, context.color_primaries) == (1, 1, 1, 1)


def test_the_source_may_be_replaced_by_its_own_copy(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    stamps = make(path)
    copy(path, path)
    assert stamps_of(path) == [pts * BASE for pts in stamps]


def test_what_the_writer_is_asked_for_is_checked(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.mp4"):
        VideoWriter(tmp_path / "out.mkv", info())
    with pytest.raises(UsageError, match="crf is 52"):
        VideoWriter(tmp_path / "out.mp4", info(), crf=52)
    with pytest.raises(ValueError, match="not later"), VideoWriter(tmp_path / "out.mp4", info()) as writer:
        writer.write(picture(96, 80), 3)
        writer.write(picture(96, 80), 3)
    with pytest.raises(ValueError, match="not uint8"), VideoWriter(tmp_path / "out.mp4", info()) as writer:
        writer.write(picture(80, 96), 0)
    with pytest.raises(BadInputError, match="no frame"), VideoWriter(tmp_path / "out.mp4", info()):
        pass
    assert os.listdir(tmp_path) == []


# What must not be read


@pytest.mark.attack
@pytest.mark.parametrize(
    "script", ["ffconcat version 1.0\nfile '{}'\n", "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n"]
)
def test_a_script_named_mp4_reads_no_other_file(tmp_path: Path, script: str) -> None:
    """The canary is a whole video: FFmpeg, left to itself, plays it."""
    make(tmp_path / "canary.mp4")
    (tmp_path / "script.mp4").write_text(script.format("canary.mp4"))
    if script.startswith("ffconcat"):
        with av.open(str(tmp_path / "script.mp4")) as container:
            assert len(container.streams.video) == 1  # the danger is real
    os.utime(tmp_path / "canary.mp4", (1, 1))
    with pytest.raises(UnsupportedMediaError, match="not a supported video"):
        read_video(tmp_path / "script.mp4")
    with pytest.raises(UnsupportedMediaError):
        mark_video(tmp_path / "script.mp4", tmp_path / "out.mp4", PAYLOAD)
    assert not (tmp_path / "out.mp4").exists()


@pytest.mark.attack
def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    import PIL.Image

    PIL.Image.fromarray(picture(96, 80)).save(tmp_path / "png.mp4", "PNG")
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "noise.mp4").write_bytes(bytes(range(256)) * 40)
    os.mkfifo(tmp_path / "pipe.mp4")
    make(tmp_path / "sound.mp4")
    with av.open(str(tmp_path / "sound.mp4")) as source, av.open(str(tmp_path / "only.mp4"), "w") as out:
        stream = out.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(source.streams.audio[0]):
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    for name, message in {
        "png.mp4": "not a supported video",
        "empty.mp4": "is empty",
        "noise.mp4": "not a supported video",
        "pipe.mp4": "device or a pipe",
        "only.mp4": "sound but no picture",
        "nowhere.mp4": "does not exist",
        "http://127.0.0.1/a.mp4": "does not exist",
        ".": "is a folder",
    }.items():
        with pytest.raises(BadInputError, match=message) as caught:
            read_video(tmp_path / name)
        assert caught.value.exit_code == 3


@pytest.mark.attack
@pytest.mark.parametrize(
    ("name", "codec", "sound"), [("a.mp4", "libx264", "aac"), ("a.mkv", "libx264", "aac"), ("a.avi", "mpeg4", None)]
)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7])
def test_cut_files_are_refused(tmp_path: Path, name: str, codec: str, sound: str | None, share: float) -> None:
    make(tmp_path / name, frames=60, codec=codec, sound=sound, steps=(512,))
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(BadInputError), read_video(tmp_path / name) as reader:
        for _ in reader:
            pass
    with pytest.raises(BadInputError):
        mark_video(tmp_path / name, tmp_path / "out.mp4", PAYLOAD)
    assert os.listdir(tmp_path) == [name]


@pytest.mark.attack
def test_a_cut_file_with_its_header_in_front_is_refused_at_once(tmp_path: Path) -> None:
    make(tmp_path / "in.mp4", frames=40)
    copy(tmp_path / "in.mp4", tmp_path / "front.mp4")
    whole = (tmp_path / "front.mp4").read_bytes()
    assert whole.index(b"moov") < whole.index(b"mdat")
    (tmp_path / "front.mp4").write_bytes(whole[: len(whole) * 3 // 4])
    with pytest.raises(BadInputError, match="is cut off"):
        read_video(tmp_path / "front.mp4")


@pytest.mark.attack
def test_damaged_data_end_in_an_error_or_are_counted(tmp_path: Path) -> None:
    make(tmp_path / "in.mp4", frames=40, sound=None)
    data = bytearray((tmp_path / "in.mp4").read_bytes())
    start = data.index(b"mdat") + 900
    data[start : start + 3000] = bytes(b ^ 0x5A for b in data[start : start + 3000])
    (tmp_path / "in.mp4").write_bytes(data)
    with read_video(tmp_path / "in.mp4") as reader:
        try:
            for _ in reader:
                pass
        except BadInputError as error:
            assert "damaged" in str(error)
        else:
            assert reader.damaged


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(pixels=160 * 120 - 1), "160x120"),
        (Limits(frames=11), "12 frames"),
        (Limits(seconds=0.2), "s long"),
    ],
)
def test_what_is_too_large_is_refused_before_it_is_decoded(tmp_path: Path, limits: Limits, message: str) -> None:
    make(tmp_path / "in.mp4")
    with pytest.raises(TooLargeError, match=message):
        read_video(tmp_path / "in.mp4", limits=limits)


def test_small_frames_are_refused(tmp_path: Path) -> None:
    make(tmp_path / "in.mp4", size=(48, 120), sound=None)
    with pytest.raises(BadInputError, match="at least 64"):
        probe(tmp_path / "in.mp4")


# Nothing half-written


@pytest.mark.skipif(sys.platform == "win32", reason="RLIMIT_FSIZE is POSIX")
def test_a_full_disk_leaves_the_earlier_file(tmp_path: Path) -> None:
    make(tmp_path / "in.mp4", frames=60, sound=None)
    out = tmp_path / "out.mp4"
    out.write_bytes(b"earlier")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
        with pytest.raises(ResourceError, match="space"):
            copy(tmp_path / "in.mp4", out, crf=5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert out.read_bytes() == b"earlier"
    assert sorted(os.listdir(tmp_path)) == ["in.mp4", "out.mp4"]


def test_a_failure_in_the_middle_or_at_the_end_leaves_nothing(tmp_path: Path) -> None:
    def refuse(part: Path) -> None:
        assert probe(part).frames == 3
        raise ProvenanceError("no")

    for finish, error in ((None, KeyboardInterrupt), (refuse, ProvenanceError)):
        with pytest.raises(error), VideoWriter(tmp_path / "out.mp4", info(), finish=finish) as writer:
            for pts in range(3):
                writer.write(picture(96, 80), pts)
            if finish is None:
                raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


# The watermark


def test_a_marked_video_is_read_and_keeps_everything_else(tmp_path: Path) -> None:
    stamps = make(tmp_path / "in.mp4", frames=20, size=(320, 240))
    done = []
    found = mark_video(tmp_path / "in.mp4", tmp_path / "out.mp4", PAYLOAD, crf=23, on_step=lambda *at: done.append(at))
    assert found.payload == PAYLOAD == detect_video(tmp_path / "out.mp4").payload
    assert done[-1] == (20, 20)
    assert stamps_of(tmp_path / "out.mp4") == [pts * BASE for pts in stamps]
    assert sound_of(tmp_path / "in.mp4") == sound_of(tmp_path / "out.mp4")
    assert not detect_video(tmp_path / "in.mp4", search=False).found


def test_a_video_that_cannot_carry_the_mark_is_not_written(tmp_path: Path) -> None:
    make(tmp_path / "in.mp4", size=(64, 64), frames=4)
    with pytest.raises(ProvenanceError, match="cannot be read back"):
        mark_video(tmp_path / "in.mp4", tmp_path / "out.mp4", PAYLOAD, crf=45)
    with pytest.raises(UsageError, match="32 bits"):
        mark_video(tmp_path / "in.mp4", tmp_path / "out.mp4", 1 << 32)
    assert os.listdir(tmp_path) == ["in.mp4"]
