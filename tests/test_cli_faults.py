"""What the picture commands do with bad files, bad faces and bad options.

For each: the exit code, a message that names the role and the file, no output, an existing output untouched, nothing
left behind. Networks are loaded once: a Swapper is kept between commands.
"""

import sys
from pathlib import Path

import make_bad_files as bad
import numpy as np
import PIL.Image
import pytest
from _face_support import astronaut

from latentswap.cli.main import main
from latentswap.pipeline import Swapper

GOOD = PIL.Image.fromarray(astronaut())
KEPT = b"the previous output"


@pytest.fixture(autouse=True)
def one_swapper(monkeypatch, networks, swapper):
    """The command's own objects, built once; everything else of a command runs as it is."""
    monkeypatch.setattr(Swapper, "from_pretrained", classmethod(lambda cls, **_: swapper))


def put(folder: Path, name: str, content: bytes | PIL.Image.Image, **options) -> Path:
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content.save(path, **options)
    return path


def swap(arguments: list[str]) -> int:
    return main(["swap", *arguments, "--consent", "Eileen Collins, NASA's public portrait"])


def two_faces() -> PIL.Image.Image:
    pair = PIL.Image.new("RGB", (1024, 512))
    pair.paste(GOOD, (0, 0))
    pair.paste(GOOD.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT), (512, 0))
    return pair


def profile(code: int, words: str, make, name: str = "file.png"):
    return pytest.param(make, name, code, words, id=words.replace(" ", "-"))


def encoded(image: PIL.Image.Image, kind: str) -> bytes:
    return bad.save(image, kind)


BAD_FILES = [
    profile(3, "supported", lambda: b""),
    profile(3, "not a supported image", lambda: np.random.default_rng(0).bytes(4000)),
    profile(3, "SVG or text", lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "drawing.png"),
    profile(3, "truncated", lambda: encoded(GOOD, "JPEG")[:9000], "cut.jpg"),
    profile(3, "truncated png", lambda: encoded(GOOD, "PNG")[:90000], "cut.png"),
    profile(3, "TIFF", lambda: encoded(GOOD, "TIFF"), "lies.jpg"),
    profile(3, "header bomb", lambda: bad.header_bomb(20000, 20000), "bomb.png"),
    profile(3, "text bomb", lambda: bad.ztxt_bomb(), "bomb.png"),
    profile(3, "one pixel", lambda: encoded(GOOD.resize((1, 1)), "PNG"), "dot.png"),
    profile(3, "a line", lambda: encoded(GOOD.resize((4000, 70)).crop((0, 0, 4000, 20)), "PNG"), "line.png"),
    profile(3, "animation", lambda: bad.animation("PNG")[0], "moving.png"),
    profile(4, "no face", lambda: encoded(PIL.Image.fromarray(bad.photo(400, 300)), "PNG"), "hills.png"),
    profile(4, "tiny face", lambda: encoded(_tiny(), "PNG"), "tiny.png"),
]


def _tiny() -> PIL.Image.Image:
    scene = PIL.Image.new("RGB", (300, 300), (90, 110, 100))
    scene.paste(GOOD.resize((64, 64), PIL.Image.Resampling.LANCZOS), (100, 100))
    return scene


@pytest.mark.parametrize("role", ["SOURCE", "TARGET"])
@pytest.mark.parametrize(("make", "name", "code", "words"), BAD_FILES)
def test_bad_file(tmp_path, capsys, role, make, name, code, words):
    broken = put(tmp_path, name, make())
    good = put(tmp_path, "good.png", GOOD)
    out = put(tmp_path, "out.png", KEPT)
    source, target = (broken, good) if role == "SOURCE" else (good, broken)
    before = sorted(path.name for path in tmp_path.iterdir())
    assert swap([str(source), str(target), "-o", str(out)]) == code
    message = capsys.readouterr().err
    assert role in message and name in message and message.startswith("error: ")
    assert out.read_bytes() == KEPT
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    out.unlink()
    assert swap([str(source), str(target), "-o", str(out)]) == code
    assert not out.exists()


@pytest.mark.parametrize("command", ["anonymize", "invert"])
def test_the_other_commands_refuse_bad_files_too(tmp_path, capsys, command):
    broken = put(tmp_path, "cut.jpg", encoded(GOOD, "JPEG")[:9000])
    out = tmp_path / ("out.png" if command == "anonymize" else "out.safetensors")
    assert main([command, str(broken), "-o", str(out)]) == 3
    assert "cut.jpg" in capsys.readouterr().err and not out.exists()


def test_missing_files_folders_and_devices(tmp_path, capsys):
    good, out = put(tmp_path, "good.png", GOOD), tmp_path / "out.png"
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "absent.jpg", tmp_path / "empty", Path("/dev/null")):
        assert swap([str(source), str(good), "-o", str(out)]) == 3
        assert "SOURCE" in capsys.readouterr().err
    assert not out.exists()


def test_several_faces_in_the_source_are_refused_unless_chosen(tmp_path, capsys):
    pair, good, out = put(tmp_path, "pair.png", two_faces()), put(tmp_path, "good.png", GOOD), tmp_path / "out.png"
    assert swap([str(pair), str(good), "-o", str(out), "--inversion", "fast"]) == 4
    message = capsys.readouterr().err
    assert "2 faces in the SOURCE image pair.png" in message and not out.exists()
    chosen = ["--source-face", "largest", "--inversion", "fast"]
    assert swap([str(pair), str(good), "-o", str(out), *chosen]) == 0
    assert out.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--faces", "biggest"], "biggest"),
        (["--faces", "match:"], "names no reference"),
        (["--strength", "1.5"], "--strength is 1.5"),
        (["--strength", "nan"], "--strength is nan"),
        (["--layers", "0-99"], "--layers"),
        (["--layers", "3-1"], "--layers"),
        (["--inversion", "magic"], "magic"),
        (["--colour", "red"], "colour"),
    ],
)
def test_options_out_of_range(tmp_path, capsys, options, words):
    good, out = put(tmp_path, "good.png", GOOD), tmp_path / "out.png"
    assert swap([str(good), str(good), "-o", str(out), *options]) == 2
    captured = capsys.readouterr()
    assert words in captured.err + captured.out and not out.exists()


def test_an_index_that_is_not_there(tmp_path, capsys):
    good, out = put(tmp_path, "good.png", GOOD), tmp_path / "out.png"
    assert swap([str(good), str(good), "-o", str(out), "--faces", "3", "--inversion", "fast"]) == 4
    assert "TARGET image good.png" in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize("name", ["out.bmp", "out", "absent/out.png", "folder.png", "good.png/out.png"])
def test_outputs_that_cannot_be_written_are_refused_before_anything_loads(tmp_path, capsys, monkeypatch, name):
    def loads(cls, **_):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(Swapper, "from_pretrained", classmethod(loads))
    good = put(tmp_path, "good.png", GOOD)
    (tmp_path / "folder.png").mkdir()
    assert swap([str(good), str(good), "-o", str(tmp_path / name)]) in (2, 6)
    assert "error: " in capsys.readouterr().err


def test_a_folder_goes_on_past_a_bad_picture(tmp_path, capsys):
    targets = tmp_path / "targets"
    targets.mkdir()
    put(targets, "a.png", GOOD)
    put(targets, "b.jpg", encoded(GOOD, "JPEG")[:9000])
    put(targets, "notes.txt", b"not a picture")
    out = tmp_path / "out"
    assert swap([str(targets / "a.png"), str(targets), "-o", str(out), "--inversion", "fast"]) == 3
    assert sorted(path.name for path in out.iterdir()) == ["a.png"]
    assert "TARGET image b.jpg" in capsys.readouterr().err


def test_a_folder_as_target_wants_a_folder_as_output(tmp_path, capsys):
    targets = tmp_path / "targets"
    targets.mkdir()
    good = put(targets, "good.png", GOOD)
    assert swap([str(good), str(targets), "-o", str(tmp_path / "out.png")]) == 2
    assert swap([str(good), str(targets), "-o", str(targets)]) == 2
    assert swap([str(good), str(tmp_path), "-o", str(tmp_path / "out")]) == 3  # no picture in it
    assert "holds no picture" in capsys.readouterr().err


def test_a_code_that_is_none(tmp_path, capsys):
    good = put(tmp_path, "good.png", GOOD)
    for content in (b"", b"\x80\x04pickle", b"\xff" * 100):
        code = put(tmp_path, "code.safetensors", content)
        assert swap([str(code), str(good), "-o", str(tmp_path / "out.png")]) == 5
    assert "code.safetensors" in capsys.readouterr().err and not (tmp_path / "out.png").exists()


def test_input_and_output_may_be_one_file(tmp_path):
    good = put(tmp_path, "good.png", GOOD)
    before = good.read_bytes()
    assert swap([str(good), str(good), "-o", str(good), "--inversion", "fast"]) == 0
    assert good.read_bytes() != before
    PIL.Image.open(good).load()


def test_a_second_job_on_the_same_output_is_refused(tmp_path, capsys):
    from latentswap.media.atomic import output_lock

    good, out = put(tmp_path, "good.png", GOOD), tmp_path / "out.png"
    with output_lock(out):
        assert swap([str(good), str(good), "-o", str(out), "--inversion", "fast"]) == 6
    assert "already running" in capsys.readouterr().err and not out.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="RLIMIT_FSIZE is POSIX")
def test_a_full_disk_leaves_the_old_output(tmp_path, capsys):
    import resource
    import signal

    good, out = put(tmp_path, "good.png", GOOD), put(tmp_path, "out.png", KEPT)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
        assert swap([str(good), str(good), "-o", str(out), "--inversion", "fast"]) == 6
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert out.read_bytes() == KEPT
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good.png", "out.png"]
