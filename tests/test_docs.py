"""Every command and every Python example of the documentation runs, and the files it speaks of exist.

Commands run as they are written, but for options that make them quick: one-pass inversion, one step of training.
"""

import re
import shlex
from pathlib import Path

import PIL.Image
import pytest
import torch
from _convert_support import filled
from _face_support import astronaut
from _provenance_support import authority
from _simswap_support import arcface_shapes, generator_shapes, save_arcface
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from latentswap.cli.main import COMMANDS, main
from latentswap.media.image import as_image
from latentswap.pipeline import Swapper
from latentswap.provenance.consent import consent_for
from latentswap.provenance.enforce import own_list
from latentswap.provenance.protect import ProtectList
from latentswap.train.identities import Identities
from latentswap.types import Making
from latentswap.weights.assets import ASSETS, asset_path

ROOT = Path(__file__).parent.parent
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
QUICK = {
    "swap": ["--inversion", "fast", "--offline"],
    "anonymize": ["--inversion", "fast", "--offline"],
    "invert": ["--inversion", "fast", "--offline"],
    "sample": ["--offline"],
    "protect add": ["--offline"],
    "protect check": ["--offline"],
    "evaluate": ["--inversion", "fast", "--offline"],
    "train": ["--offline"],
    "train head": ["--pictures", "2", "--steps", "1", "--batch", "2"],
    "train people": ["--people", "16"],
    "train population": ["--people", "16"],
    "train encoder": ["--people", "16", "--held-out", "4", "--steps", "1", "--batch", "4", "--width", "8"],
    "train mixer": ["--people", "16", "--steps", "1", "--batch", "1", "--hidden", "8"],
    "train lessons": ["--people", "16", "--targets", "4", "--sources", "1"],
    "train simswap ": [
        *("--people", "16", "--targets", "10", "--sources", "1", "--held-out", "8", "--steps", "1", "--batch", "2"),
        *("--widths", "8", "16", "24", "--blocks", "1"),
    ],
    "train identities photos": ["--size", "64"],
    "train identities --generated": ["--generated", "2", "--views", "2"],
    "train simswap-gan": ["--steps", "1", "--batch", "2", "--width", "16", "--discriminator-width", "4"],
}


def commands() -> list[str]:
    found = []
    for path in DOCS:
        for line in path.read_text(encoding="utf-8").splitlines():
            if re.match(r"(    )?latentswap [a-z]", line):
                found.append(line.strip().split("  #")[0].strip())
    return sorted({line.replace("0-15", "0-1").replace("--retrieval 100", "--retrieval 5") for line in found})


@pytest.fixture
def folder(tmp_path, monkeypatch, swapper):
    """Where the examples' pictures lie. The Swapper is the tests' own, loaded once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LATENTSWAP_DATA", str(tmp_path / "data"))
    swapper.write(as_image(astronaut()), "out.png", making=Making(deed="edited"))
    studio, _ = authority("Studio")
    (tmp_path / "chain.pem").write_text(studio.chain_pem)
    (tmp_path / "key.pem").write_text(studio.key_pem or "")
    monkeypatch.setattr(Swapper, "from_pretrained", classmethod(lambda cls, **_: swapper))
    image = PIL.Image.fromarray(astronaut())
    for name in ("pictures", "photos-of-me"):
        (tmp_path / name).mkdir()
    mine = ("photos-of-me/one.jpg", "photos-of-me/two.jpg")
    for name in ("me.jpg", "her.jpg", "picture.jpg", "party.jpg", "pictures/one.jpg", *mine):
        image.save(tmp_path / name)
    (tmp_path / "runs/encoder").mkdir(parents=True)
    (tmp_path / "runs/encoder/encoder.safetensors").symlink_to(asset_path("encoder"))
    (tmp_path / "pairs").mkdir()
    for name in ("her.jpg", "party.jpg", "picture.jpg", "swapped/picture.png"):
        (tmp_path / "pairs" / name).parent.mkdir(exist_ok=True)
        image.save(tmp_path / "pairs" / name)
    (tmp_path / "pairs" / "pairs.csv").write_text(listed_pairs())
    published_simswap(tmp_path)
    for name in ("ann/1.jpg", "ann/2.jpg", "bob/1.jpg", "bob/2.jpg"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "photos" / name)
    faces = torch.randint(0, 256, (4, 3, 128, 128), dtype=torch.uint8)
    Identities(picture_N3HW=faces, person_N=torch.tensor([0, 0, 1, 1])).save(
        tmp_path / "faces.safetensors", alignment="ffhq"
    )
    consent_for([tmp_path / "photos-of-me", tmp_path / "pairs" / "her.jpg"], "public domain")  # all are the same file
    share_a_list(tmp_path)
    asset = asset_path("population")
    (tmp_path / "FILE").symlink_to(asset)
    return tmp_path


def published_simswap(folder: Path) -> None:
    """SimSwap's published files, in miniature."""
    generator, face = generator_shapes("legacy224", 16, 8, 1), arcface_shapes((1, 1, 1, 1), (16, 16, 16, 16), 8)
    torch.save(filled(generator), folder / "latest_net_G.pth")
    save_arcface(filled(face), folder / "arcface_checkpoint.tar", zipped=True)


def share_a_list(folder: Path) -> None:
    """A do-not-swap list with a person whom no picture shows, as one's own and as one that was received, signed."""
    away_BE = torch.nn.functional.normalize(torch.randn(1, 128, generator=torch.Generator().manual_seed(0)), dim=-1)
    listed = ProtectList().add("Ann Lee", away_BE)
    own_list().parent.mkdir(parents=True, exist_ok=True)
    listed.save(own_list())
    key = Ed25519PrivateKey.generate()
    listed.signed(key).save(folder / "shared.safetensors")
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / "publisher.pem").write_bytes(public)


def listed_pairs() -> str:
    """The list of docs/evaluation.md."""
    lines = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8").splitlines()
    start = lines.index("    source,target,result")
    return "\n".join(line.strip() for line in lines[start : start + 3])


def test_there_are_examples():
    assert {line.split()[1] for line in commands()} >= {"swap", "anonymize", "sample", "invert", "train", "models"}


@pytest.mark.parametrize("line", [line for line in commands() if "NAME" not in line])
def test_command(folder, line):
    words = shlex.split(line)[1:]
    options = [option for name, extra in QUICK.items() if line[11:].startswith(name) for option in extra]
    assert words[0] in COMMANDS
    assert main([*words, *options]) == 0


def test_python_example(folder):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})  # noqa: S102 - our own README
    assert (folder / "out.png").exists()


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_every_asset_ships_and_says_what_it_is():
    from latentswap.weights.header import read_header

    for name in ASSETS:
        assert read_header(asset_path(name)).metadata["kind"]
    assert sum(asset_path(name).stat().st_size for name in ASSETS) < 100e6


def test_the_tree_in_the_readme_is_the_tree():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = text[text.index("src/latentswap/\n") : text.index("## Limits")]
    named = set(re.findall(r"\b([a-z]+)/", tree)) - {"latentswap", "src"}
    there = {path.name for path in (ROOT / "src/latentswap").iterdir() if path.is_dir()} - {"__pycache__"}
    assert named == there
