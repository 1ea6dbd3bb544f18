"""`--method simswap` on the main path: alignment there and back, identities, files, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from _convert_support import filled
from _face_support import astronaut, mean_mesh_px
from _published_support import save_described, with_spread
from _simswap_support import arcface_shapes, generator_shapes, save_arcface

from latentswap.cli.main import main
from latentswap.errors import UsageError
from latentswap.face.align import move_points
from latentswap.face.align_arcface import ALIGNMENTS
from latentswap.face.frame import chain, faded, reframe
from latentswap.pipeline import Swapper
from latentswap.provenance.mark import read_mark
from latentswap.swappers.injection import Identity, Injection, InjectionSwapper
from latentswap.swappers.latentswap import known
from latentswap.swappers.simswap import SimSwapConfig, SimSwapGenerator

SIZES = {"pose": 224, "ffhq": 512}


def injecting(swapper, inject, alignment="pose") -> Swapper:
    """A Swapper that injects with a function; its identities are mean colours."""
    injection = Injection(
        inject=inject,
        embedder=lambda img_BCHW: torch.nn.functional.normalize(img_BCHW.mean((2, 3)) + 2, dim=-1),
        alignment=ALIGNMENTS[alignment],
        size=SIZES[alignment],
    )
    method = InjectionSwapper(injection, lambda crop: known(swapper.networks, crop))
    return Swapper(swapper.networks, method, swapper.analyser)


def somebody() -> Identity:
    return Identity(embedding=torch.tensor([[1.0, 0.0, 0.0]]), name="red")


# ------------------------------------------------------------------------------------------------- there and back


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_a_network_that_changes_nothing_changes_nothing(swapper, alignment):
    result = injecting(swapper, lambda img, identity: img, alignment).swap(somebody(), astronaut())
    apart = np.abs(result.image.pixels.astype(int) - astronaut()).max(axis=2)
    (face,) = result.faces
    x0, y0, x1, y1 = (round(v) for v in face.box)
    assert apart[y0:y1, x0:x1].mean() < 3 and (apart == 0).mean() > 0.7
    assert result.report["faces"][0]["cosine_to_original"] > 0.95


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_a_change_stays_within_the_face(swapper, alignment):
    result = injecting(swapper, lambda img, identity: -img, alignment).swap(somebody(), astronaut(), occluders=False)
    apart = np.abs(result.image.pixels.astype(int) - astronaut()).max(axis=2)
    (face,) = result.faces
    x0, y0, x1, y1 = (round(v) for v in face.box)
    assert apart[y0 + 40 : y1 - 40, x0 + 40 : x1 - 40].mean() > 10
    apart[max(0, y0 - 40) : y1 + 40, max(0, x0 - 40) : x1 + 40] = 0
    assert apart.max() == 0


def test_the_frame_keeps_what_the_crop_does_not_cover():
    pixels = astronaut()
    mesh = mean_mesh_px(300) + np.array((80, -20, 0))
    crop = InjectionSwapper(
        Injection(inject=lambda a, b: a, embedder=lambda a: a, alignment=ALIGNMENTS["pose"], size=224),
        lambda crop: crop.pixels,
    ).crop(pixels, mesh)
    black = np.zeros_like(crop.pixels)
    whole, swapped = reframe(pixels, mesh, crop, black, 512)
    to_crop = chain(np.linalg.inv(np.vstack([whole.affine, (0, 0, 1)]))[:2], crop.affine)
    at = np.stack(np.meshgrid(np.arange(512), np.arange(512)), -1).reshape(-1, 2) + 0.5
    x, y = move_points(at, to_crop).T
    inside = ((np.minimum(x, y) > 12) & (np.maximum(x, y) < 212)).reshape(512, 512)
    outside = ((np.minimum(x, y) < -3) | (np.maximum(x, y) > 227)).reshape(512, 512)
    assert inside.sum() > 20_000 and outside.sum() > 20_000
    assert swapped[inside].max() <= 2
    assert np.array_equal(swapped[outside], whole.pixels[outside])
    assert np.allclose(move_points(mesh[:, :2], whole.affine), whole.mesh_K3[:, :2], atol=1e-2)


def test_the_border_of_a_crop_fades():
    ramp = faded(100)
    assert ramp.shape == (100, 100) and ramp.max() == 1 and ramp[50, 0] < 0.2 and (ramp == ramp.T).all()
    assert (ramp[4:96, 4:96] == 1).all()


# ------------------------------------------------------------------------------------------------- identities


def test_strength_blends_identities(swapper):
    seen = []

    def inject(img, identity):
        seen.append(identity)
        return img

    mine = injecting(swapper, inject)
    crop = mine.method.crop(astronaut(), swapper.analyser(astronaut())[0].mesh_K3)
    own = mine.method.prepare(crop).embedding
    for strength in (0.0, 0.25, 1.0):
        mine.swap(somebody(), astronaut(), strength=strength)
    half = torch.nn.functional.normalize(0.75 * own + 0.25 * somebody().embedding, dim=-1)
    assert torch.allclose(torch.cat(seen), torch.cat([own, half, somebody().embedding]), atol=1e-6)


def test_several_photographs_of_one_person(swapper):
    mine = injecting(swapper, lambda img, identity: img)
    bright = (astronaut() * 0.8).astype(np.uint8)
    two = [mine.prepare(picture) for picture in (astronaut(), bright)]
    mean = mine.prepare([astronaut(), bright])
    assert torch.allclose(mean.embedding, torch.nn.functional.normalize(two[0].embedding + two[1].embedding, dim=-1))
    others = [replace(somebody(), embedding=torch.eye(3)[i : i + 1], name=f"person {i}") for i in range(2)]
    with pytest.raises(UsageError, match="person 0 does not seem to show the person"):
        InjectionSwapper.average(others)


def test_what_has_no_meaning_without_codes_is_refused(swapper, tmp_path):
    mine = injecting(swapper, lambda img, identity: img)
    with pytest.raises(UsageError, match="leave out layers"):
        mine.swap(somebody(), astronaut(), layers=(0, 1))
    with pytest.raises(UsageError, match="prepared for another method than simswap"):
        mine.swap(swapper.prepare(astronaut()), astronaut())
    with pytest.raises(UsageError, match="prepared for another method than latentswap"):
        swapper.swap(somebody(), astronaut())
    (tmp_path / "code.safetensors").touch()
    for call in (
        lambda: mine.invert(astronaut()),
        lambda: mine.edit(astronaut(), ()),
        lambda: mine.prepare(tmp_path / "code.safetensors"),
        lambda: mine.anonymize(astronaut()),
    ):
        with pytest.raises(UsageError, match="no latent codes"):
            call()


# ------------------------------------------------------------------------------------------------- files


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Published files in miniature, converted by the command; random weights."""
    folder = tmp_path_factory.mktemp("simswap")
    for variant in ("legacy224", "fix_deep"):
        width = 32
        network = with_spread(SimSwapGenerator(SimSwapConfig(variant=variant, width=width, identity_dim=20, blocks=1)))
        assert network.state_dict().keys() == generator_shapes(variant, width, 20, 1).keys()
        torch.save(network.state_dict(), folder / f"{variant}.pth")
        asked = ["--variant", variant] if variant == "legacy224" else []
        assert main(["models", "convert", str(folder / f"{variant}.pth"), *asked]) == 0
    state = filled(arcface_shapes((1, 1, 1, 1), (16, 16, 16, 16), 20))
    state = {name: value.abs() if name.endswith("running_var") else value for name, value in state.items()}
    save_arcface(state, folder / "arcface_checkpoint.tar", zipped=True)
    assert main(["models", "convert", str(folder / "arcface_checkpoint.tar")]) == 0
    PIL.Image.fromarray(astronaut()).save(folder / "me.png")
    return folder


@pytest.mark.parametrize("variant", ["legacy224", pytest.param("fix_deep", marks=pytest.mark.slow)])
def test_the_command(files, variant, swapper, tmp_path, monkeypatch, capsys):
    if variant == "legacy224":  # the other one loads them itself
        monkeypatch.setattr("latentswap.methods.load_networks", lambda **_: swapper.networks)
        monkeypatch.setattr("latentswap.pipeline.FaceAnalyser.load", lambda **_: swapper.analyser)
    monkeypatch.setattr("latentswap.methods.cache_root", lambda: tmp_path)  # exported networks
    monkeypatch.chdir(files)
    options = ["--method", "simswap", "--generator", f"{variant}.safetensors", "--offline", "--json"]
    options += ["--identity", "arcface_checkpoint.safetensors"]
    capsys.readouterr()
    assert (
        main(["swap", "me.png", "me.png", "--consent", "public domain", "-o", str(tmp_path / "out.png"), *options]) == 0
    )
    report = json.loads(capsys.readouterr().out)
    assert len(report["faces"]) == 1
    mark = read_mark((tmp_path / "out.png").read_bytes())
    assert mark is not None and mark["method"] == "simswap"
    assert [entry.name.partition("-")[0] for entry in (tmp_path / "runtime").iterdir()] == ["injection"]
    out = np.asarray(PIL.Image.open(tmp_path / "out.png"))
    assert out.shape == (512, 512, 3) and not np.array_equal(out, astronaut())


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--generator", "legacy224.safetensors"], 2, "--identity"),
        (["--generator", "G", "--identity", "I", "--joint", "--mixer", "M"], 2, "no joint and no mixer"),
        (["--generator", "G", "--identity", "I", "--layers", "0-3"], 2, "leave out --edit and --layers"),
        (["--generator", "arcface_checkpoint.safetensors", "--identity", "legacy224.safetensors"], 5, "is needed"),
        (["--generator", "absent", "--identity", "legacy224.safetensors"], 5, "is not a file"),
        (["--generator", "other.safetensors", "--identity", "arcface_checkpoint.safetensors"], 2, "do not belong"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_fetched(
    files, options, code, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(files)
    monkeypatch.setattr("latentswap.methods.load_networks", lambda **_: pytest.fail("networks were loaded"))
    other = SimSwapGenerator(SimSwapConfig(width=32, identity_dim=8, blocks=1))
    save_described(files / "other.safetensors", other, "swapper/simswap")
    assert (
        main(
            [
                "swap",
                "me.png",
                "me.png",
                "--consent",
                "public domain",
                "-o",
                str(tmp_path / "o.png"),
                "--method",
                "simswap",
                *options,
            ]
        )
        == code
    )
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_identity_network_is_no_option_of_latentswap(files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(files)
    assert (
        main(
            ["swap", "me.png", "me.png", "--consent", "public domain", "-o", str(tmp_path / "o.png"), "--identity", "x"]
        )
        == 2
    )
    assert "is for method simswap" in capsys.readouterr().err
