"""Every command's output is signed, names what it was made from, and is in the job record."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from _face_support import astronaut
from _provenance_support import authority, photograph

from latentswap import Marking, verify
from latentswap.cli.main import main
from latentswap.errors import ProvenanceError
from latentswap.pipeline import Swapper
from latentswap.provenance.record import read_records
from latentswap.swappers.latentswap import to_pixels


@pytest.fixture
def quick(tmp_path, monkeypatch, swapper):
    """The tests' own Swapper, which draws by the quick path, and a folder with a photograph."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LATENTSWAP_DATA", str(tmp_path / "data"))

    def render(ws_BLD: torch.Tensor) -> np.ndarray:
        with torch.no_grad():
            img = swapper.networks.generator.synthesis(ws_BLD, resolution=256)
        return to_pixels(torch.nn.functional.interpolate(img, scale_factor=4))

    monkeypatch.setattr(Swapper, "from_pretrained", classmethod(lambda cls, **_: swapper))
    monkeypatch.setattr(swapper.method, "render", render)
    PIL.Image.fromarray(astronaut()).save("me.jpg")
    return swapper


def test_outputs_of_every_command(quick, capsys):
    assert main(["sample", "-o", "people", "--seeds", "3,5", "--codes"]) == 0
    assert "local credentials are made in" in capsys.readouterr().err
    code = "people/seed-0003.safetensors"
    assert main(["swap", "people/seed-0003.png", "me.jpg", "-o", "swap.png"]) == 0
    assert main(["anonymize", "swap.png", "-o", "safe.webp", "--tries", "20", "--keep", "none"]) in (0, 8)
    assert main(["edit", "me.jpg", "-o", "smile.jpg", "--edit", "smile=2"]) == 0
    assert main(["edit", code, "people/seed-0005.safetensors", "-o", "way.png", "--sheet", "way", "--steps", "2"]) == 0
    assert main(["edit", code, "-o", "move.webp", "--animate", "--edit", "yaw=9", "--steps", "3"]) == 0
    assert main(["invert", "me.jpg", "-o", "me.safetensors", "--preview", "me.png", "--no-name-source"]) == 0
    assert "local credentials" not in capsys.readouterr().err  # said once
    expected = {
        "people/seed-0003.png": ("created", []),
        "swap.png": ("edited", [("target", "none"), ("source", "trusted")]),
        "smile.jpg": ("edited", [("target", "none")]),
        "way.png": ("created", [("source 1", "none"), ("source 2", "none")]),
        "move.webp": ("created", [("source", "none")]),
        "me.png": ("created", []),
    }
    if Path("safe.webp").exists():
        expected["safe.webp"] = ("edited", [("target", "trusted")])
    for name, (action, origins) in expected.items():
        found = verify(name)
        assert found.outcome == "trusted" and found.mark is not None, name
        assert action in [done.action for done in found.actions]
        assert [(origin.title, origin.credentials) for origin in found.origins] == origins, name
        assert found.actions[-1].action.startswith("watermarked") == (found.watermark.state == "found")
    with PIL.Image.open("move.webp") as moving:
        assert getattr(moving, "n_frames", 1) == 4
    lines = {Path(line["output"]).name: line for line in read_records()}
    assert {Path(name).name for name in expected} <= set(lines)
    assert lines["swap.png"]["command"] == "swap" and len(lines["swap.png"]["inputs"]) == 2
    assert set(lines["swap.png"]["networks"]) == {"generator", "identity", "encoder", "mixer"}
    assert lines["seed-0005.png"]["job"] == lines["seed-0003.png"]["job"] != lines["swap.png"]["job"]


def test_credentials_of_a_photograph_are_kept_and_marks_can_be_turned_off(quick, tmp_path):
    camera, ca = authority("Camera maker")
    Path("ca.pem").write_text(ca)
    shown = PIL.Image.open("me.jpg")
    shown.save("plain.jpg", quality=95)
    photo = photograph(camera, picture=Path("plain.jpg").read_bytes())
    Path("photo.jpg").write_bytes(photo)
    assert main(["edit", "photo.jpg", "-o", "out.jpg", "--edit", "smile=1"]) == 0
    found = verify("out.jpg", trust="ca.pem")
    assert found.outcome == "trusted" and found.origins[0].made_by == "Camera 1, signed by Camera maker"
    assert found.origins[0].credentials == "trusted"

    assert main(["edit", "photo.jpg", "-o", "out.png", "--edit", "smile=1", "--no-sign"]) == 0
    assert verify("out.png").signature == "none" and verify("out.png").outcome == "marked"
    *_, line = read_records()
    assert line["signed"] is False


def test_the_python_way(quick, tmp_path):
    studio, ca = authority("Studio")
    Path("ca.pem").write_text(ca)
    result = quick.edit(astronaut(), [])
    quick.write(result, "own.png", marking=Marking(credentials=studio))
    assert (verify("own.png", trust="ca.pem").signer, verify("own.png").outcome) == ("Studio", "untrusted")
    Path("own.png").write_bytes(b"old")
    with pytest.raises(ProvenanceError, match="expired"):
        Marking(credentials=authority(expired=True)[0]).check()
    with pytest.raises(ProvenanceError):
        quick.write(result, "own.png", marking=Marking(credentials=authority(expired=True)[0]))
    assert Path("own.png").read_bytes() == b"old"
