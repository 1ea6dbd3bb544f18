"""`latentswap edit`, and `--edit` of swap: faults before any model loads, and files in, files out."""

import io
import json

import numpy as np
import PIL.Image
import PIL.ImageSequence
import pytest
import torch
from _face_support import astronaut

from latentswap.cli.main import main
from latentswap.edit.directions import Direction, Offset, Scale, save_directions, shipped
from latentswap.edit.sheets import animate, mix, mixing_sheet, strip, way
from latentswap.errors import UsageError
from latentswap.pipeline import Swapper, packet
from latentswap.provenance.mark import read_mark


@pytest.fixture
def no_models(monkeypatch):
    def refuse(cls, **_):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(Swapper, "from_pretrained", classmethod(refuse))


@pytest.fixture
def photo(tmp_path):
    PIL.Image.fromarray(astronaut()).save(tmp_path / "me.jpg")
    return tmp_path / "me.jpg"


FAULTS = [
    (["--edit", "smlie=1"], 2, "Did you mean 'smile'? There are: yaw, pitch, smile"),
    (["--edit", "smile=40"], 2, "smile=40 is out of range"),
    (["--edit", "smile=lots"], 2, "write NAME=NUMBER"),
    ([], 2, "Nothing to edit"),
    (["--edit", "smile=1", "--direction", "absent.npy"], 2, "There is no file absent.npy"),
    (["--edit", "smile=1", "--direction", "me.jpg"], 5, "holds no direction"),
    (["--edit", "smile=1", "--direction", "d.npy@7-3"], 2, "out of range"),
    (["--sheet", "mix"], 2, "give two photos or codes"),
    (["--sheet", "way"], 2, "has no way to go"),
    (["--edit", "smile=1", "--animate"], 2, "An animation is a .webp file"),
    (["--edit", "smile=1", "--animate", "--sheet", "way"], 2, "give one of them"),
    (["--edit", "smile=1", "--sheet", "way", "--steps", "1"], 2, "--steps is 1"),
    (["me.jpg", "--edit", "smile=1"], 2, "Several inputs need"),
]


@pytest.mark.parametrize(("options", "code", "words"), FAULTS)
def test_faults(no_models, photo, monkeypatch, capsys, options, code, words):
    monkeypatch.chdir(photo.parent)
    np.save("d.npy", np.ones((1, 512)))
    assert main(["edit", "me.jpg", *options, "-o", "out.png"]) == code
    assert words in capsys.readouterr().err
    assert sorted(path.name for path in photo.parent.iterdir()) == ["d.npy", "me.jpg"]


@pytest.mark.parametrize(
    ("inputs", "out", "words"),
    [
        ("absent.jpg", "out.png", "There is no file absent.jpg"),
        ("me.jpg", "out.txt", "suffix '.txt'"),
        ("me.jpg", "no/out.png", "does not exist"),
        ("me.jpg", "out.safetensors", "suffix '.safetensors'"),
    ],
)
def test_faults_of_files(no_models, photo, monkeypatch, capsys, inputs, out, words):
    monkeypatch.chdir(photo.parent)
    assert main(["edit", inputs, "-o", out, "--edit", "smile=1"]) == 2
    assert words in capsys.readouterr().err


def test_swap_refuses_edits_before_any_model_loads(no_models, photo, monkeypatch, capsys):
    monkeypatch.chdir(photo.parent)
    swap = ["swap", "me.jpg", "me.jpg", "-o", "out.png"]
    assert main([*swap, "--edit", "beard=1"]) == 2
    assert "There are: yaw" in capsys.readouterr().err
    assert main([*swap, "--edit", "smile=1", "--edit-when", "during"]) == 2


# Sheets


def render(ws_BLD: torch.Tensor) -> np.ndarray:
    """A flat colour: the mean of the code's first row, and of its last."""
    picture = np.zeros((1, 64, 64, 3), np.uint8)
    picture[..., 0], picture[..., 1] = int(ws_BLD[0, 0].mean()), int(ws_BLD[0, -1].mean())
    return picture


def test_a_way_passes_through_all_codes_evenly():
    codes = [torch.full((1, 2, 3), value) for value in (0.0, 10.0, 30.0)]
    assert [float(ws.mean()) for ws in way(codes, 5)] == [0, 5, 10, 20, 30]
    assert strip(way(codes, 3), render, cell=16)[8, 8::16, 0].tolist() == [0, 10, 30]
    with pytest.raises(UsageError, match="1 codes"):
        way(codes[:1], 5)


def test_a_mixing_sheet_takes_rows_of_the_column():
    codes = [torch.full((1, 4, 3), value) for value in (10.0, 200.0)]
    sheet = mixing_sheet(codes, (0, 1), render, cell=16)[8::16, 8::16]
    assert sheet[0, 0].tolist() == [255] * 3
    assert sheet[1:, 1:, 0].tolist() == [[10, 200], [10, 200]]  # rows of whom the column shows
    assert sheet[1:, 1:, 1].tolist() == [[10, 10], [200, 200]]  # all else of whom the line shows
    assert sheet[0, 1:, 0].tolist() == sheet[1:, 0, 0].tolist() == [10, 200]
    with pytest.raises(UsageError, match="rows 0 to 3"):
        mix(codes[0], codes[1], (4,))


def test_an_animation_runs_there_and_back_and_is_marked():
    codes = [torch.full((1, 2, 3), value) for value in (0.0, 100.0, 200.0)]
    data = animate(codes, render, xmp=packet(whole=True), size=64)
    with PIL.Image.open(io.BytesIO(data)) as moving:
        assert moving.info["loop"] == 0
        frames = [np.asarray(frame.convert("RGB")) for frame in PIL.ImageSequence.Iterator(moving)]
    shown = [int(frame[..., 0].mean().round()) for frame in frames]
    assert np.abs(np.array(shown) - [0, 100, 200, 100]).max() <= 6
    mark = read_mark(data)
    assert mark is not None and mark["digital_source_type"] == "trainedAlgorithmicMedia"


# Files in, files out


def test_end_to_end(photo, monkeypatch, swapper, capsys):
    """A code edited by a shipped direction and one from a file, a photo edited and pasted back, a swap with an edit."""
    monkeypatch.chdir(photo.parent)
    monkeypatch.setattr(Swapper, "from_pretrained", classmethod(lambda cls, **_: swapper))
    drawn = []
    small = lambda ws_BLD: drawn.append(ws_BLD) or small_picture(swapper, ws_BLD)  # noqa: E731
    monkeypatch.setattr(swapper.method, "render", small)
    assert main(["sample", "-o", "people", "--seeds", "3,5", "--codes"]) == 0
    code = "people/seed-0003.safetensors"
    own = Direction(name="own", change=Offset(torch.full((1, 512), 0.01)), scale=Scale(usual=1))
    save_directions(photo.parent / "own.safetensors", [own], {})

    assert main(["edit", code, "-o", "edited.safetensors", "--edit", "yaw=10", "--edit", "own=2",
                 "--direction", "own.safetensors"]) == 0  # fmt: skip
    before, after = swapper.code(code), swapper.code("edited.safetensors")
    torch.testing.assert_close(after, shipped()["yaw"](before, 10) + 0.02)

    capsys.readouterr()
    assert main(["edit", "me.jpg", "-o", "smiling.png", "--edit", "smile=2", "--no-watermark", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert len(report["faces"]) == 1
    pixels = np.asarray(PIL.Image.open("smiling.png")).astype(int)
    changed = np.abs(pixels - np.asarray(PIL.Image.open("me.jpg"))).max(2) > 8
    assert changed[90:200, 180:270].mean() > 0.1 and not changed[:, :60].any()
    mark = read_mark((photo.parent / "smiling.png").read_bytes())
    assert mark is not None and mark["digital_source_type"] == "compositeWithTrainedAlgorithmicMedia"

    pictures = {}
    for when in ("before", "after"):
        out = f"{when}.png"
        assert main(["swap", code, "me.jpg", "-o", out, "--edit", "mouth_open=3", "--edit-when", when]) == 0
        pictures[when] = np.asarray(PIL.Image.open(out)).astype(int)
    assert main(["swap", code, "me.jpg", "-o", "plain.png"]) == 0
    plain = np.asarray(PIL.Image.open("plain.png")).astype(int)
    codes = dict(zip(("before", "after", "plain"), drawn[-3:], strict=True))
    torch.testing.assert_close(codes["after"], shipped()["mouth_open"](codes["plain"], 3))
    assert not torch.allclose(codes["before"], codes["after"], atol=1e-2)
    assert all(np.abs(picture - plain).max() > 20 for picture in pictures.values())

    assert main(["edit", code, "people/seed-0005.safetensors", "-o", "way.png", "--sheet", "way", "--steps", "3"]) == 0
    assert PIL.Image.open("way.png").size == (3 * 256, 256)


def small_picture(swapper: Swapper, ws_BLD: torch.Tensor) -> np.ndarray:
    """At 1024² as the pipeline expects, drawn by the quick path."""
    from latentswap.swappers.latentswap import to_pixels

    with torch.no_grad():
        img = swapper.networks.generator.synthesis(ws_BLD, resolution=256)
    return to_pixels(torch.nn.functional.interpolate(img, scale_factor=4))
