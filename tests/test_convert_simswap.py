"""SimSwap's published files: what they become, what must be asked for, and what is refused."""

import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from _convert_support import filled, parameters
from _simswap_support import arcface_shapes, discriminator_shapes, generator_shapes, save_arcface

from latentswap.cli.main import main
from latentswap.errors import UsageError, WeightsError
from latentswap.identity.arcface_se import ArcFaceSE
from latentswap.swappers.patchgan import PatchGAN
from latentswap.swappers.simswap import SimSwapGenerator
from latentswap.weights.convert import detect, simswap, worker
from latentswap.weights.convert.sandbox import convert, inspect
from latentswap.weights.header import read_header

UNITS, WIDTHS = (1, 2, 3, 1), (16, 32, 32, 48)
FILES = {  # as published, and by which variant
    "latest_net_G.pth": "legacy224",
    "550000_net_G.pth": "legacy512",
    "400000_net_G.pth": "fix",
    "600000_net_G.pth": "fix_deep",
}


def positive(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Variances are not negative."""
    return {name: value.abs() if name.endswith("running_var") else value for name, value in state.items()}


def generator(variant: str, **sizes: int) -> dict[str, torch.Tensor]:
    return positive(filled(generator_shapes(variant, **{"width": 32, "identity": 8, "blocks": 2, **sizes})))


def arcface() -> dict[str, torch.Tensor]:
    return positive(filled(arcface_shapes(UNITS, WIDTHS, 20)))


def written(value: Any, path: Path, *, zipped: bool = True) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


def same(network: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    found = network.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


@pytest.mark.parametrize(("file", "variant"), FILES.items())
def test_generators(file, variant, tmp_path):
    state = generator(variant)
    written(state, tmp_path / file, zipped=variant != "legacy224")
    asked = variant if variant in ("legacy224", "fix") else None
    (made,) = convert(tmp_path / file, variant=asked)
    assert made.kind == "swapper/simswap"
    network = SimSwapGenerator.load(made.path)
    same(network, state)
    assert (network.config.variant, network.config.width, network.config.blocks) == (variant, 32, 2)
    metadata = read_header(made.path).metadata
    assert json.loads(metadata["config"])["variant"] == variant
    assert metadata["source"] == file and metadata["family"] == "simswap" and "CC BY-NC" in metadata["licence"]


def test_the_variant_is_asked_for_where_the_file_cannot_tell(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(generator("fix"), Path("G.pth"))
    with pytest.raises(UsageError, match=r"G.pth: it is legacy224 or fix.*give --variant"):
        convert("G.pth")
    assert main(["models", "convert", "G.pth"]) == 2
    assert "--variant" in capsys.readouterr().err and os.listdir() == ["G.pth"]
    assert main(["models", "info", "G.pth"]) == 0
    out = capsys.readouterr().out
    assert "variant: legacy224 or fix" in out and "models convert G.pth --variant legacy224|fix" in out
    assert main(["models", "convert", "G.pth", "--variant", "fix", "-o", "g.safetensors"]) == 0
    assert SimSwapGenerator.load("g.safetensors").config.variant == "fix"
    for variant, reason in (("legacy512", "it is not legacy512"), ("fix512", "not a variant")):
        with pytest.raises(UsageError, match=reason):
            convert("G.pth", variant=variant)


def test_a_variant_is_no_option_of_other_files(tmp_path):
    written(positive(filled(discriminator_shapes(4))), tmp_path / "D.pth")
    with pytest.raises(UsageError, match="leave --variant out"):
        convert(tmp_path / "D.pth", variant="fix")
    written(generator("legacy512"), tmp_path / "G.pth")
    with pytest.raises(UsageError, match="it is not legacy224: its tensors are those of legacy512"):
        convert(tmp_path / "G.pth", variant="legacy224")


def test_trivial_normalisations_of_the_bottleneck_are_left_out(tmp_path):
    state = generator("legacy512")
    extra = {"BottleNeck.0.conv1.2.weight": torch.ones(32), "BottleNeck.1.norm2.num_batches_tracked": torch.tensor(0)}
    written(state | extra, tmp_path / "550000_net_G.pth")
    (made,) = convert(tmp_path / "550000_net_G.pth")
    same(SimSwapGenerator.load(made.path), state)
    assert "2 tensors of normalisations" in read_header(made.path).metadata["notes"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"BottleNeck.0.conv3.1.weight": torch.ones(32, 32, 3, 3)}, "unexpected: BottleNeck.0.conv3"),
        ({"skip1.weight": torch.ones(3)}, "unexpected: skip1"),
        ({"up2.1.weight": None}, "missing: up2.1.weight"),
        ({"BottleNeck.1.style2.linear.bias": torch.ones(32)}, "of another shape: BottleNeck.1.style2"),
        ({"first_layer.1.bias": torch.full((4,), float("nan"))}, "not finite"),
        ({"last_layer.1.bias": torch.ones(3, dtype=torch.int64)}, "of another dtype"),
        ({"BottleNeck.0.conv1.1.weight": torch.ones(3)}, "not one of 4 dimensions"),
    ],
)
def test_a_generator_that_is_not_whole_is_refused(changes, reason, tmp_path):
    state = generator("fix_deep") | changes
    written({name: value for name, value in state.items() if value is not None}, tmp_path / "G.pth")
    with pytest.raises(WeightsError, match=reason):
        convert(tmp_path / "G.pth")
    assert os.listdir(tmp_path) == ["G.pth"]


def test_discriminators(tmp_path):
    state = positive(filled(discriminator_shapes(4)))
    written(state, tmp_path / "latest_net_D1.pth")
    (made,) = convert(tmp_path / "latest_net_D1.pth")
    assert made.kind == "discriminator/patchgan"
    same(PatchGAN.load(made.path), state)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("parallel", [False, True])
def test_arcface_from_a_pickled_module(zipped, parallel, tmp_path):
    state = arcface()
    path = save_arcface(state, tmp_path / "arcface_checkpoint.tar", zipped=zipped, parallel=parallel)
    (made,) = convert(path)
    assert made.kind == "identity/arcface-se"
    network = ArcFaceSE.load(made.path)
    same(network, state)
    assert (network.config.units, network.config.widths, network.config.embedding_dim) == (UNITS, WIDTHS, 20)
    assert inspect(path)["family"] == "SimSwap's ArcFace, a pickled module"


def test_published_sizes():
    """Full-size lists of names and shapes, without data."""
    with torch.device("meta"):
        network = ArcFaceSE()
    shapes = arcface_shapes()
    assert {name: tuple(value.shape) for name, value in network.state_dict().items()} == shapes
    assert sum(p.numel() for p in network.parameters()) == parameters(shapes) == 52_193_215
    assert [parameters(generator_shapes(v)) for v in FILES.values()] == [55051779, 55079427, 55051779, 59773443]
    assert parameters(discriminator_shapes()) == 6_962_369


# ---------------------------------------------------------------------------------------------- hostile files

CANARY = "canary"


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.attack
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (Call(os.system, f"touch {CANARY}"), "posix.system"),
        (Call(eval, f"open({CANARY!r}, 'w')"), "eval"),
        (Call(Path.write_text, Path(CANARY), "x"), "getattr|write_text"),
    ],
    ids=["system", "eval", "write"],
)
def test_a_module_that_carries_a_call_is_refused(value, reason, zipped, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_arcface(arcface(), Path("arcface_checkpoint.tar"), zipped=zipped, carried=value)
    with pytest.raises(WeightsError, match=reason):
        worker._convert(Path("arcface_checkpoint.tar"), Path("out"), None)
    assert main(["models", "convert", "arcface_checkpoint.tar"]) == 5
    assert os.listdir() == ["arcface_checkpoint.tar"]


@pytest.mark.attack
def test_the_source_code_of_a_module_is_not_looked_at(tmp_path, monkeypatch):
    """The older stream keeps it beside the class."""
    monkeypatch.chdir(tmp_path)
    path = save_arcface(arcface(), Path("a.tar"), zipped=False)
    assert convert(path)[0].kind == "identity/arcface-se"

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return ("module", obj.value, "models.py", "raise SystemExit") if isinstance(obj, Class) else None

    class Class:
        def __init__(self, value: Any) -> None:
            self.value = value

    for value, reason in ((os.system, "posix.system"), ("ResNet", "not the class"), (7, "not the class")):
        out = io.BytesIO()
        for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True, "protocol_version": 1001}):
            pickle.dump(part, out, protocol=2)
        Pickler(out, 2).dump({"model": Class(value)})
        pickle.dump([], out, protocol=2)
        Path("b.tar").write_bytes(out.getvalue())
        with pytest.raises(WeightsError, match=reason):
            convert("b.tar")


@pytest.mark.attack
@pytest.mark.parametrize("change", ["cycle", "tensor", "deep", "other"])
def test_module_trees_that_are_none(change, tmp_path):
    from latentswap.weights.convert.modules import state_of
    from latentswap.weights.convert.unpickle import Record

    root = Record("models.arcface_models.ResNet", state={"_parameters": {}, "_buffers": {}, "_modules": {}})
    if change == "cycle":
        root.state["_modules"] = {"a": root, "b": root}
    elif change == "tensor":
        root.state["_parameters"] = {"weight": 3}
    elif change == "deep":
        for _ in range(20):
            root = Record("models.arcface_models.ResNet", state={"_modules": {"a": root}})
    else:
        root.state["_modules"] = {"a": [root]}
    with pytest.raises(WeightsError, match=r"nested deeper|is not a tensor|other than a module"):
        state_of(root)


@pytest.mark.attack
def test_other_modules_are_refused(tmp_path):
    """A ResNet of somebody else's, and a class that no published file names."""
    state = {name: value for name, value in arcface().items() if ".se." not in name}
    path = save_arcface(state, tmp_path / "a.tar", zipped=True)
    with pytest.raises(WeightsError, match="no residual network with squeeze"):
        convert(path)
    torch.save(torch.nn.Linear(2, 2), tmp_path / "b.tar")
    with pytest.raises(WeightsError, match="no network that is known"):
        convert(tmp_path / "b.tar")
    (tmp_path / "c.pkl").write_bytes(b"\x80\x02cmodels.arcface_models\nsubprocess\n)R.")
    with pytest.raises(WeightsError, match="calls for"):
        convert(tmp_path / "c.pkl")


def test_families_are_told_apart():
    state = generator("legacy224")
    assert [n for n, f in detect.FAMILIES.items() if f.matches(state)] == ["simswap"]
    found = [n for n, f in detect.FAMILIES.items() if f.matches(filled(discriminator_shapes(4)))]
    assert found == ["simswap-discriminator"]
    assert simswap.matches_generator({1: 2}) is False
