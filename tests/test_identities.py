"""A folder of people to train on: what is taken, what is refused, and in which words."""

import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from latentswap.cli.main import main
from latentswap.errors import BadInputError, NoFaceError
from latentswap.train.identities import Identities, read_identities

SUFFIXES = (".png", ".jpg")


def plain(path: Path) -> torch.Tensor:
    """A cutter for folders of anything: what the file's number says, or no face."""
    if "none" in path.stem:
        raise NoFaceError(f"no face in {path.name}")
    return torch.full((3, 4, 4), len(path.stem), dtype=torch.uint8)


def folder(root: Path, people: dict[str, list[str]]) -> Path:
    for person, names in people.items():
        (root / person).mkdir(parents=True)
        for name in names:
            (root / person / name).write_bytes(b"")
    return root


def test_people_are_numbered_by_name_and_other_files_ignored(tmp_path):
    root = folder(tmp_path, {"b": ["1.png", "22.jpg", "x.txt"], "a": ["1.png", "2.png", "333.png"]})
    found, problems = read_identities(root, plain, SUFFIXES)
    assert found.person_N.tolist() == [0, 0, 0, 1, 1] and found.people == 2 and not problems
    assert found.picture_N3HW[:, 0, 0, 0].tolist() == [1, 1, 3, 1, 2]


@pytest.mark.parametrize(
    ("people", "words"),
    [
        ({}, "holds no folders"),
        ({"a": ["1.png"], "b": ["1.png", "2.png"]}, "a/: 1 picture that can be used, at least 2"),
        ({"a": [], "b": ["1.png", "2.png"]}, "a/: no pictures that can be used"),
        ({"a": ["1.png", "none.png"], "b": ["1.png", "2.png"]}, "a/none.png: no face in none.png"),
        ({"a": ["1.png", "2.png"]}, "1 people can be used"),
    ],
)
def test_what_cannot_be_trained_on_is_named(tmp_path, people, words):
    with pytest.raises(BadInputError, match=words):
        read_identities(folder(tmp_path, people), plain, SUFFIXES)


def test_a_file_is_no_folder(tmp_path):
    with pytest.raises(BadInputError, match="not a folder"):
        read_identities(tmp_path / "nothing", plain, SUFFIXES)


def test_skip_leaves_out_and_says_so(tmp_path):
    root = folder(
        tmp_path, {"a": ["1.png", "none.png"], "b": ["1.png"], "c": ["1.png", "2.png"], "d": ["1.png", "2.png"]}
    )
    found, problems = read_identities(root, plain, SUFFIXES, skip=True)
    assert found.people == 2 and len(found) == 4
    assert {problem.split("/")[0] for problem in problems} == {"a", "b"}


def test_saved_loaded_and_another_alignment_refused(tmp_path):
    faces = Identities(picture_N3HW=torch.zeros(3, 3, 4, 4, dtype=torch.uint8), person_N=torch.tensor([0, 0, 1]))
    faces.save(tmp_path / "x.safetensors", alignment="ffhq")
    assert torch.equal(Identities.load(tmp_path / "x.safetensors", alignment="ffhq").person_N, faces.person_N)
    with pytest.raises(BadInputError, match="alignment 'ffhq'"):
        Identities.load(tmp_path / "x.safetensors", alignment="arcface")


def test_the_command_on_pictures_of_mixed_sizes(people, tmp_path, capsys):
    _, img_BCHW = people
    pixels = ((img_BCHW.clamp(-1, 1) + 1) * 127.5).byte().permute(0, 2, 3, 1).numpy()
    root = tmp_path / "people"
    for k in range(4):
        path = root / f"person{k // 2}" / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(np.ascontiguousarray(pixels[k])).resize((256 + 64 * k, 256 + 64 * k)).save(path)
    out = tmp_path / "faces.safetensors"
    assert main(["train", "identities", str(root), "-o", str(out), "--size", "128", "--offline"]) == 0
    assert Identities.load(out, alignment="ffhq").picture_N3HW.shape == (4, 3, 128, 128)

    (root / "person0" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    shutil.copy(root / "person1" / "2.png", tmp_path / "lone.png")
    before = out.read_bytes()
    assert main(["train", "identities", str(root), "-o", str(out), "--offline"]) == 3
    assert "person0/broken.jpg" in capsys.readouterr().err and out.read_bytes() == before
    assert main(["train", "identities", str(root), "-o", str(out), "--skip", "--offline"]) == 0
    assert "left out: person0/broken.jpg" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--size 100", "--size 32", "--size 2048", "-o faces.pt"])
def test_the_command_refuses_before_loading(tmp_path, option):
    assert main(["train", "identities", str(tmp_path), "-o", str(tmp_path / "x.safetensors"), *option.split()]) == 2
