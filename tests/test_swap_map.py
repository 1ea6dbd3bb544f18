"""Several people in one pass: who goes to whom, who is left alone, and what the command says."""

import json
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
from _face_support import astronaut

from latentswap.cli._options import parse_map
from latentswap.cli.main import main
from latentswap.errors import NoFaceError, UsageError
from latentswap.face.select import assign
from latentswap.pipeline import Swapper
from latentswap.types import Image

SIDE = 400


def small(image: Image, side: int = SIDE) -> np.ndarray:
    return np.asarray(PIL.Image.fromarray(image.pixels).resize((side, side)))


@pytest.fixture(scope="module")
def crowd(swapper) -> dict[str, np.ndarray]:
    """Two strangers and the astronaut side by side, pictures of two of them, and two sources."""
    a, b, x = swapper.sample([77, 31, 8])
    her = np.asarray(PIL.Image.fromarray(astronaut()).resize((SIDE, SIDE)))
    return {
        "all": np.concatenate([small(a), her, small(b)], axis=1),
        "a": small(a, 320),
        "her": astronaut(),
        "x": small(x),
        "y": small(b)[:, ::-1].copy(),
    }


def place(box) -> int:
    """Which of the pictures side by side."""
    return int((box[0] + box[2]) / 2 // SIDE)


@pytest.fixture(scope="module")
def result(swapper, crowd):
    people = swapper.prepare_map([(crowd["her"], crowd["x"]), (crowd["a"], crowd["y"])])
    return swapper.swap_map(people, crowd["all"])


def test_everybody_gets_their_own(swapper, crowd, result):
    by_place = {place(face.box): report for face, report in zip(result.faces, result.report["faces"], strict=True)}
    assert sorted(by_place) == [0, 1]
    assert all(report["distance_to_reference"] < 0.6 for report in by_place.values())
    first = next(i for i, face in enumerate(swapper.analyser(crowd["all"])) if place(face.box) == 0)
    alone = swapper.swap(crowd["y"], crowd["all"], faces=str(first))
    assert np.array_equal(result.image.pixels[:, :SIDE], alone.image.pixels[:, :SIDE])
    her = result.image.pixels[:, SIDE : 2 * SIDE].astype(int) - crowd["all"][:, SIDE : 2 * SIDE]
    assert np.abs(her).max() > 20


def test_others_are_left_alone_and_reported(crowd, result):
    assert np.array_equal(result.image.pixels[:, 2 * SIDE :], crowd["all"][:, 2 * SIDE :])
    (other,) = result.report["unmatched"]
    assert place(other["box"]) == 2 and other["distance"] > 0.6 and other["closest"] == "image"
    assert [place(face.box) for face in result.skipped] == [2]


def test_one_pair_is_a_match(swapper, crowd, tmp_path):
    PIL.Image.fromarray(crowd["her"]).save(tmp_path / "her.png")
    mapped = swapper.swap_map(swapper.prepare_map([(tmp_path / "her.png", crowd["x"])]), crowd["all"], strength=0.7)
    matched = swapper.swap(crowd["x"], crowd["all"], faces=f"match:{tmp_path / 'her.png'}", strength=0.7)
    assert np.array_equal(mapped.image.pixels, matched.image.pixels)
    assert mapped.report["faces"][0]["reference"] == "her.png"


def test_a_threshold_decides_who_is_the_same(swapper, crowd):
    people = swapper.prepare_map([(crowd["her"], crowd["x"])])
    with pytest.raises(NoFaceError, match="no face in the TARGET image image matches image: the closest of 3 is"):
        swapper.swap_map(people, crowd["all"], threshold=0.01)
    with pytest.raises(UsageError, match="threshold is 0"):
        swapper.swap_map(people, crowd["all"], threshold=0)


def test_references_and_sources_are_checked(swapper, crowd):
    with pytest.raises(UsageError, match="at least one pair"):
        swapper.prepare_map([])
    with pytest.raises(NoFaceError, match="3 faces in the REFERENCE image image, and it is not clear who is meant"):
        swapper.prepare_map([(crowd["all"], crowd["x"])])
    with pytest.raises(NoFaceError, match="no face in the REFERENCE image"):
        swapper.prepare_map([(np.full((64, 64, 3), 128, np.uint8), crowd["x"])])
    with pytest.raises(NoFaceError, match="SOURCE image"):
        swapper.prepare_map([(crowd["her"], crowd["all"])])


def test_assignment_by_hand():
    references = np.array([[0.0, 0.0], [1.0, 0.0]])
    faces = np.array([[0.1, 0.0], [0.9, 0.1], [0.5, 3.0], [0.2, 0.0], [0.6, 0.0]])
    found = assign(faces, references, threshold=0.4)
    assert [match.reference for match in found] == [0, 1, None, 0, 1]
    assert [match.closest for match in found] == [0, 1, 0, 0, 1]
    assert [match.distance for match in found] == pytest.approx([0.1, 0.02**0.5, 9.25**0.5, 0.2, 0.4])


# ---------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def folder(tmp_path, monkeypatch, swapper, crowd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Swapper, "from_pretrained", classmethod(lambda cls, **_: swapper))
    for name, pixels in crowd.items():
        PIL.Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    return tmp_path


def test_the_command(folder, result, capsys, monkeypatch):
    monkeypatch.setattr(Swapper, "swap_map", lambda self, people, target, **_: named(result, people))
    maps = ["--map", "her.png=x.png", "--map", "a.png=y.png", "--consent", "nobody who exists"]
    assert main(["swap", "all.png", *maps, "--no-watermark", "-o", "out.png"]) == 0
    out = capsys.readouterr().out
    assert "out.png: 2 faces" in out and ", her.png (0." in out and ", a.png (0." in out
    assert "left alone: face at" in out and "(closest to image, " in out
    assert np.array_equal(np.asarray(PIL.Image.open("out.png")), result.image.pixels)


def named(result, people):
    """The result of the same swap, with the references' names."""
    faces = [{**report, "reference": one.name} for report, one in zip(result.report["faces"], people, strict=True)]
    return replace(result, report={**result.report, "faces": faces})


def test_a_folder_of_pictures(folder, capsys):
    (folder / "pictures").mkdir()
    for name in ("her", "x"):
        (folder / f"{name}.png").rename(folder / "pictures" / f"{name}.png")
    options = ["--map", "pictures/her.png=y.png", "-o", "out", "--json"]
    assert main(["swap", "pictures", *options, "--consent", "nobody who exists"]) == 4  # nobody of the map is in x.png
    done = {entry["target"].rpartition("/")[2]: entry for entry in json.loads(capsys.readouterr().out)}
    assert "no face in the TARGET image x.png matches her.png" in done["x.png"]["error"]
    assert len(done["her.png"]["faces"]) == 1 and (folder / "out" / "her.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["all.png", "--map", "her.png"], "write REFERENCE=SOURCE"),
        (["all.png", "--map", "=x.png"], "write REFERENCE=SOURCE"),
        (["all.png", "--map", "him.png=x.png"], "there is no him.png"),
        (["all.png", "--map", "her.png=x.png", "--map", "./her.png=y.png"], "twice"),
        (["x.png", "all.png", "--map", "her.png=x.png"], "give TARGET alone"),
        (["all.png", "--map", "her.png=x.png", "--faces", "largest"], "leave out --faces"),
        (["all.png", "--map", "her.png=x.png", "--edit", "smile=1"], "leave out --faces"),
        (["all.png"], "TARGET is missing"),
    ],
)
def test_maps_that_are_none(folder, arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(Swapper, "from_pretrained", classmethod(lambda cls, **_: pytest.fail("networks were loaded")))
    assert main(["swap", *arguments, "-o", "out.png"]) == 2
    assert message in capsys.readouterr().err and not (folder / "out.png").exists()


def test_names_with_an_equals_sign(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a=b.png", "c.png"):
        (tmp_path / name).touch()
    (pair,) = parse_map(("a=b.png=c.png",))
    assert [path.name for path in pair] == ["a=b.png", "c.png"]
