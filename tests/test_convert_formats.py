"""Every published format becomes the tensors that it holds, under the names of the network that is built from them."""

import json
import math
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _convert_support import (
    FIR,
    Shapes,
    deep3d_shapes,
    filled,
    full_generator_shapes,
    generator_shapes,
    ir_se50_shapes,
    iresnet_shapes,
    lightning,
    mat_file,
    mixer_shapes,
    mobile_shapes,
    nvlabs_pickle,
    parameters,
    persistent_generator,
    psp_shapes,
    rosinality_state,
    smoothswap_shapes,
    tensorflow_pickle,
    tensorflow_variables,
)

from latentswap.cli.main import main
from latentswap.errors import WeightsError
from latentswap.weights.convert import detect, rosinality, stylegan2
from latentswap.weights.convert.sandbox import NETWORKS, _verify, convert, inspect
from latentswap.weights.convert.tensors import Network, Stored
from latentswap.weights.header import read_header
from latentswap.weights.load import load_tensors, save_tensors

UNITS, WIDTHS = (1, 2, 2, 1), (16, 32, 48, 64)


def read(path: Path) -> dict[str, tuple[Network, dict[str, torch.Tensor]]]:
    """Networks of a file by kind, with their tensors, read in this process."""
    with path.open("rb") as file:
        networks = detect.convert(detect.read(file, path.stat().st_size))
        return {n.kind: (n, {k: torch.from_numpy(v.read().copy()) for k, v in n.tensors.items()}) for n in networks}


def same(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].dtype == value.dtype and got[name].shape == value.shape, name
        assert torch.equal(got[name], value), name


def fits(network: Network, tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """The project's own network takes these tensors: same names, shapes and dtypes."""
    path = tmp_path / "fits.safetensors"
    save_tensors(path, tensors, {"kind": network.kind, "config": json.dumps(network.config)})
    _verify(path, network.kind, path)


def save(value: Any, path: Path, *, zipped: bool = True) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


GENERATOR_CONFIG = {
    "z_dim": 8, "w_dim": 8, "resolution": 32, "img_channels": 3, "channel_base": 256, "channel_max": 16,
    "mapping_layers": 3,
}  # fmt: skip


# ------------------------------------------------------------------------------------------------- StyleGAN2


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_nvlabs(protocol: int, tmp_path: Path) -> None:
    state = filled(generator_shapes())
    path = tmp_path / "ffhq.pkl"
    path.write_bytes(nvlabs_pickle(persistent_generator(state), protocol))
    network, tensors = read(path)["generator/stylegan2"]
    same(tensors, state)
    assert network.config == {**GENERATOR_CONFIG, "conv_clamp": 256.0, "num_fp16_res": 2}
    fits(network, tensors, tmp_path)


def test_the_miniature_pickle_has_the_published_globals() -> None:
    data = nvlabs_pickle(persistent_generator(filled(generator_shapes())), 3)
    names = {
        str(argument).replace("numpy._core", "numpy.core")
        for op, argument, _ in pickletools.genops(data)
        if op.name == "GLOBAL"
    }
    assert names == {
        "torch_utils.persistence _reconstruct_persistent_obj", "dnnlib.util EasyDict",
        "torch._utils _rebuild_parameter", "torch._utils _rebuild_tensor_v2",
        "torch.storage _load_from_bytes", "collections OrderedDict",
        "numpy.core.multiarray scalar", "numpy dtype", "builtins set",
    }  # fmt: skip


def test_a_tuned_module_saved_whole(tmp_path: Path) -> None:
    """Pivotal tuning saves the generator itself with torch.save."""
    from _convert_support import EasyDict, _reconstruct_persistent_obj, upstream_modules

    state = filled(generator_shapes())
    modules = {
        "torch_utils__persistence": {"_reconstruct_persistent_obj": _reconstruct_persistent_obj},
        "dnnlib__util": {"EasyDict": EasyDict},
    }
    with upstream_modules(**modules):
        save(persistent_generator(state), tmp_path / "model.pt")
    same(read(tmp_path / "model.pt")["generator/stylegan2"][1], state)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_tensorflow(protocol: int, tmp_path: Path) -> None:
    state = filled(generator_shapes())
    path = tmp_path / "stylegan2-ffhq-config-f.pkl"
    settings = {"num_channels": 3, "resolution": 32, "label_size": 0, "mapping_lrmul": 0.01, "architecture": "skip"}
    path.write_bytes(tensorflow_pickle(tensorflow_variables(state), protocol=protocol, **settings))
    network, tensors = read(path)["generator/stylegan2"]
    for name in [name for name in state if name.endswith("affine.bias")]:
        torch.testing.assert_close(tensors[name], state[name])  # + 1 and − 1 round
        state[name] = (state[name] - 1) + 1
    same(tensors, state)
    assert network.config == {**GENERATOR_CONFIG, "conv_clamp": None, "num_fp16_res": 0}
    fits(network, tensors, tmp_path)


@pytest.mark.parametrize("training", [False, True])
def test_rosinality(training: bool, tmp_path: Path) -> None:
    import argparse

    state = filled(generator_shapes())
    g_ema = rosinality_state(state)
    value: dict[str, Any] = {"g_ema": g_ema}
    if training:
        value |= {"g": g_ema, "d": {"x": torch.ones(2)}, "g_optim": {"state": {}}, "args": argparse.Namespace(lr=0.002)}
    else:
        value["latent_avg"] = state["mapping.w_avg"]
    network, tensors = read(save(value, tmp_path / "550000.pt"))["generator/stylegan2"]
    if training:  # the average has to be measured
        torch.testing.assert_close(tensors.pop("mapping.w_avg"), mean_w(state), atol=0.02, rtol=0)
        del state["mapping.w_avg"]
        assert "measured" in network.notes
    same(tensors, state)
    assert network.config == {**GENERATOR_CONFIG, "conv_clamp": None, "num_fp16_res": 0}


def mean_w(state: dict[str, torch.Tensor]) -> torch.Tensor:
    x = torch.randn(200_000, 8, dtype=torch.float64)
    x = x / x.square().mean(1, keepdim=True).add(1e-8).sqrt()
    for i in range(3):
        weight, bias = (state[f"mapping.fc{i}.{part}"].double() for part in ("weight", "bias"))
        x = torch.nn.functional.leaky_relu(x @ (weight * 0.01 / 8**0.5).T + bias * 0.01, 0.2) * 2**0.5
    return x.mean(0).float()


def lazily(shapes: Shapes) -> dict[str, Stored]:
    """Tensors without data, but for the constants that a conversion looks at."""
    kernel = (FIR * 4).numpy()
    return {
        name: Stored(shape, "float32", lambda: kernel)
        if name.endswith("kernel")
        else Stored(shape, "float32", pytest.fail)
        for name, shape in shapes.items()
    }


def test_the_full_generator() -> None:
    """The published 1024² generator: 182 tensors of 30,370,060 parameters, and rosinality's 171."""
    shapes = full_generator_shapes()
    assert len(shapes) == 182 and parameters(shapes) == 30_370_060
    with torch.device("meta"):
        state = {name: torch.empty(shape) for name, shape in shapes.items()}
        theirs = {name: tuple(value.shape) for name, value in rosinality_state(state).items()}
    assert len(theirs) == 171
    network = rosinality.generator(lazily(theirs), Stored((512,), "float32", pytest.fail))
    assert {name: value.shape for name, value in network.tensors.items()} == shapes
    from latentswap.generators.stylegan2 import StyleGAN2Config

    assert StyleGAN2Config(**network.config) == StyleGAN2Config()


@pytest.mark.parametrize(
    ("base", "most", "size"), [(32768, 512, 1024), (16384, 512, 256), (256, 16, 32), (512, 16, 32)]
)
def test_channels_are_read_from_the_shapes(base: int, most: int, size: int) -> None:
    shapes = generator_shapes(size, base, most)
    config = stylegan2.network({name: Stored(shape, "float32", pytest.fail) for name, shape in shapes.items()}).config
    assert config["resolution"] == size
    for side in (4 << i for i in range(int(math.log2(size)) - 1)):
        assert min(config["channel_base"] // side, config["channel_max"]) == min(base // side, most)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"c_dim": 10}, "conditional"),
        ({"synthesis.b8.architecture": "resnet"}, "only 'skip'"),
        ({"synthesis.b8.conv1.activation": "swish"}, "only 'lrelu'"),
        ({"synthesis.b8.conv1.conv_clamp": 3}, "several values of conv_clamp"),
        ({"mapping.fc0.bias_gain": 1}, "the gain 1"),
        ({"img_resolution": 64}, "states img_resolution 64"),
        ({"c_dim": None}, "conditional"),
    ],
)
def test_generators_that_would_give_wrong_pictures(change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    generator = persistent_generator(filled(generator_shapes()))
    ((name, value),) = change.items()
    module = generator
    *path, attribute = name.split(".")
    for part in path:
        module = module.meta["state"]["_modules"][part]
    module.meta["state"][attribute] = value
    (tmp_path / "g.pkl").write_bytes(nvlabs_pickle(generator))
    with pytest.raises(WeightsError, match=reason):
        read(tmp_path / "g.pkl")


def test_other_generators_are_named(tmp_path: Path) -> None:
    state = filled(generator_shapes())
    tree = persistent_generator(state)
    synthesis = tree.meta["state"]["_modules"]["synthesis"].meta["state"]["_modules"]
    synthesis["input"] = synthesis.pop("b4")
    for name, data in (("sg3", nvlabs_pickle(tree)), ("filter", None)):
        path = tmp_path / name
        if data is None:
            state["synthesis.b8.conv0.resample_filter"] = torch.ones(4, 4) / 16
            data = nvlabs_pickle(persistent_generator(state))
        path.write_bytes(data)
    with pytest.raises(WeightsError, match="not StyleGAN2"):
        read(tmp_path / "sg3")
    with pytest.raises(WeightsError, match="another filter"):
        read(tmp_path / "filter")
    variables = tensorflow_variables(filled(generator_shapes()))
    (tmp_path / "tf").write_bytes(tensorflow_pickle(variables | {"mapping/LabelEmbed/weight": np.ones((3, 3), "f4")}))
    with pytest.raises(WeightsError, match="conditional"):
        read(tmp_path / "tf")
    (tmp_path / "tf").write_bytes(tensorflow_pickle(variables | {"synthesis/4x4/PixelNorm/x": np.ones(3, "f4")}))
    with pytest.raises(WeightsError, match="PixelNorm"):
        read(tmp_path / "tf")
    g_ema = rosinality_state(filled(generator_shapes()))
    with pytest.raises(WeightsError, match=r"unexpected: style\.9\.extra"):
        read(save({"g_ema": g_ema | {"style.9.extra": torch.ones(1)}, "latent_avg": torch.ones(8)}, tmp_path / "r"))


# -------------------------------------------------------------------------------------------------- encoders

ENCODERS = [
    ("Encoder4Editing", "e4e", "pyramid"),
    ("GradualStyleEncoder", "psp", "pyramid"),
    ("BackboneEncoderUsingLastLayerIntoW", "psp", "single"),
    ("ProgressiveBackboneEncoder", "restyle-e4e", "last"),
    ("BackboneEncoder", "restyle-psp", "last"),
]


@pytest.mark.parametrize(("encoder_type", "variant", "heads"), ENCODERS)
def test_encoders(encoder_type: str, variant: str, heads: str, tmp_path: Path) -> None:
    channels = 6 if variant.startswith("restyle") else 3
    encoder = filled(psp_shapes(UNITS, WIDTHS, 8, 8, heads=heads, channels=channels))
    generator = filled(generator_shapes())
    average = generator["mapping.w_avg"].repeat(8, 1)
    state = {f"encoder.{name}": value for name, value in encoder.items()}
    state |= {f"decoder.{name}": value for name, value in rosinality_state(generator).items()}
    opts = {
        "encoder_type": encoder_type,
        "start_from_latent_avg": True,
        "output_size": 32,
        "device": torch.device("cpu"),
    }
    found = read(save({"state_dict": state, "opts": opts, "latent_avg": average}, tmp_path / "e.pt"))
    network, tensors = found["inverter/psp"]
    same(tensors, encoder | {"latent_avg": average})
    assert network.config == {
        "variant": variant, "heads": heads, "n_styles": 8, "add_average": True, "w_dim": 8,
        "units": list(UNITS), "widths": list(WIDTHS),
    }  # fmt: skip
    fits(network, tensors, tmp_path)
    same(found["generator/stylegan2"][1], generator)


def test_encoders_that_are_not_read(tmp_path: Path) -> None:
    state = {f"encoder.{k}": v for k, v in filled(psp_shapes(UNITS, WIDTHS, 8, 8, heads="pyramid")).items()}
    for opts, extra, reason in (
        ({"encoder_type": "ResNetBackboneEncoder"}, {}, "encoder_type is 'ResNetBackboneEncoder'"),
        ({"encoder_type": "BackboneEncoder"}, {}, "not those of the BackboneEncoder"),
        ({"encoder_type": "GradualStyleEncoder", "start_from_latent_avg": True}, {}, "no latent_avg"),
        ({"encoder_type": "GradualStyleEncoder"}, {"state_dict": state | {"hyper.w": torch.ones(1)}}, r"hyper\.w"),
    ):
        path = save({"state_dict": state, "opts": opts} | extra, tmp_path / "e.pt")
        with pytest.raises(WeightsError, match=reason):
            read(path)


def test_full_sizes_of_the_encoders() -> None:
    units, widths = (3, 4, 14, 3), (64, 128, 256, 512)
    e4e = psp_shapes(units, widths, 512, 18, heads="pyramid")
    assert len(e4e) == 621 and parameters(e4e) == 267_136_704
    restyle = psp_shapes(units, widths, 512, 18, heads="last", channels=6)
    assert len(restyle) == 565 and parameters(restyle) == 205_585_792
    arcface = ir_se50_shapes(units, widths, 512)
    assert len(arcface) == 397 and parameters(arcface) == 43_797_696


# ------------------------------------------------------------------------------------- identity, shape, mixer


@pytest.mark.parametrize("zipped", [True, False])
def test_arcface(zipped: bool, tmp_path: Path) -> None:
    for shapes, family in ((ir_se50_shapes, "ir_se50"), (iresnet_shapes, "iresnet")):
        state = filled(shapes(UNITS, WIDTHS, 8))
        network, tensors = read(save(state, tmp_path / "a.pth", zipped=zipped))["identity/arcface"]
        same(tensors, state)
        expected = {"family": family, "units": list(UNITS), "widths": list(WIDTHS), "embedding_dim": 8}
        assert network.config == expected
        fits(network, tensors, tmp_path)


def test_smoothswap(tmp_path: Path) -> None:
    state = filled(smoothswap_shapes(UNITS, 4, 12, 10, 6))
    path = lightning({f"net.{name}": value for name, value in state.items()}, tmp_path / "epoch=5.ckpt")
    network, tensors = read(path)["identity/smoothswap"]
    same(tensors, state)
    assert network.config == {"units": list(UNITS), "width": 4, "classes": 12, "hidden": 10, "embedding_dim": 6}
    fits(network, tensors, tmp_path)


def test_deep3d(tmp_path: Path) -> None:
    state = filled(deep3d_shapes(UNITS, 4))
    value = {"net_recon": state, "opt_00": {"state": {}}, "sched_00": {"milestones": 3}}
    network, tensors = read(save(value, tmp_path / "epoch_20.pth"))["shape/deep3d"]
    same(tensors, state)
    assert network.config == {"units": list(UNITS), "width": 4}
    fits(network, tensors, tmp_path)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_the_face_model_keeps_its_landmarks(dtype: str, tmp_path: Path) -> None:
    from latentswap.shape.deep3d import landmark_rows

    rng = np.random.default_rng(0)
    mean, identity, expression = (rng.standard_normal(s).astype(dtype) for s in ((1, 300), (300, 80), (300, 64)))
    corners = rng.permutation(100)[:68].astype("i8")
    path = tmp_path / "BFM_model_front.mat"
    path.write_bytes(
        mat_file(
            meanshape=mean, meantex=mean, idBase=identity, exBase=expression, tri=np.ones((5, 3), "i8"),
            keypoints=(corners + 1).astype("u2")[None],
        )
    )  # fmt: skip
    network, tensors = read(path)["shape/deep3d-landmarks"]
    expected = landmark_rows(*map(torch.from_numpy, (mean.reshape(-1, 3), identity, expression, corners)))
    assert tensors.keys() == expected.keys() and network.config == {}
    fits(network, tensors, tmp_path)
    for name, value in expected.items():
        torch.testing.assert_close(tensors[name], value)


def test_scipy_reads_the_miniature_face_model(tmp_path: Path) -> None:
    io = pytest.importorskip("scipy.io")
    array = np.arange(6, dtype="f4").reshape(2, 3)
    (tmp_path / "m.mat").write_bytes(mat_file(a=array, longer_name=array.astype("f8")))
    assert (io.loadmat(tmp_path / "m.mat")["longer_name"] == array).all()
    io.savemat(tmp_path / "s.mat", {"a": array, "text": "words", "n": np.int64(3)})
    from latentswap.weights.convert.bfm import read_mat
    from latentswap.weights.convert.unpickle import Window

    with (tmp_path / "s.mat").open("rb") as file:
        found = read_mat(Window(file, 0, (tmp_path / "s.mat").stat().st_size))
        assert (found["a"].read() == array).all() and found["n"].read().item() == 3 and "text" not in found


def test_the_latent_mixer(tmp_path: Path) -> None:
    rows, w, hidden = 4, 6, (12, 10, 8, 7)
    state = filled(mixer_shapes(rows, w, hidden))
    others = {"style_gan.mapping.w_avg": torch.ones(6), "g_loss.f_3d.x": torch.ones(1)}
    path = lightning({f"identity_mixer.{name}": value for name, value in state.items()} | others, tmp_path / "m.ckpt")
    network, tensors = read(path)["mixer"]
    assert network.config == {"num_ws": rows, "w_dim": w, "hidden": list(hidden), "residual": 1.0}
    fits(network, tensors, tmp_path)
    from latentswap.swappers.mixer import LatentMixer

    save_tensors(tmp_path / "mixer", tensors, {"kind": "mixer", "config": json.dumps(network.config)})
    source, target = torch.randn(3, rows, w), torch.randn(3, rows, w)
    expected = []
    for row in range(rows):  # one MLP a row, source first, residual on the target
        x = torch.cat([source[:, row], target[:, row]], 1).double()
        for k in range(0, 10, 2):
            x = x @ state[f"mixer.{row}.{k}.weight"].double().T + state[f"mixer.{row}.{k}.bias"].double()
            x = x * torch.sigmoid(x) if k < 8 else x
        expected.append(x + target[:, row])
    got = LatentMixer.load(tmp_path / "mixer")(source, target)
    torch.testing.assert_close(got, torch.stack(expected, 1).float(), atol=1e-4, rtol=1e-4)


def test_the_full_mixer() -> None:
    shapes = mixer_shapes(18, 512, (1024, 1024, 512, 512))
    assert len(shapes) == 180 and parameters(shapes) == 56_687_616
    assert shapes["mixer.17.0.weight"] == (1024, 1024) and shapes["mixer.17.4.weight"] == (512, 1024)


def test_mixers_that_are_not_read(tmp_path: Path) -> None:
    state = {f"identity_mixer.{k}": v for k, v in filled(mixer_shapes(3, 6, (8,))).items()}
    del state["identity_mixer.mixer.1.2.bias"]
    with pytest.raises(WeightsError, match="not one of several rows"):
        read(lightning(state, tmp_path / "m.ckpt"))
    single = {"identity_mixer.mixer.0.weight": torch.ones(4, 8), "identity_mixer.mixer.0.bias": torch.ones(4)}
    with pytest.raises(WeightsError, match="not one of several rows"):
        read(lightning(single, tmp_path / "m.ckpt"))


# ------------------------------------------------------------------------------------------ MobileStyleGAN


def test_mobilestylegan(tmp_path: Path) -> None:
    """The folded weights draw what the checkpoint's own formulas draw, noise apart."""
    from latentswap.generators.mobile import Mapping, Synthesis

    w, channels = 6, (16, 16, 8)
    state = filled(mobile_shapes(w, channels, 8))
    path = lightning(state | {"synthesis_net.x": torch.ones(1)}, tmp_path / "mobile.ckpt")
    network, tensors = read(path)["generator/mobilestylegan"]
    assert network.config == {} and "noise" in network.notes
    synthesis = Synthesis(channels=channels[1:], w_dim=w, base=channels[0])
    mapping = Mapping(w_dim=w)
    synthesis.load_state_dict(
        {k.removeprefix("synthesis_network."): v for k, v in tensors.items() if k.startswith("synth")}
    )
    mapping.load_state_dict({k.removeprefix("mapping_network."): v for k, v in tensors.items() if k.startswith("map")})
    codes = torch.randn(2, 6, w)
    student = {k.removeprefix("student."): v.double() for k, v in state.items()}
    expected = published_picture(student, codes.double(), len(channels) - 1)
    got = synthesis.double()(codes.double(), "none")
    torch.testing.assert_close(got, expected, atol=1e-6 * float(expected.abs().max()), rtol=1e-5)
    strength = state["student.layers.0.conv1.noise.weight"].abs()
    assert 0.5 * strength < tensors["synthesis_network.blocks.0.conv1.noise"].std() < 2 * strength
    x = torch.randn(5, w)
    y = x.double() * (x.double().square().mean(1, keepdim=True) + 1e-8).rsqrt()
    for i in range(8):
        weight, bias = (state[f"mapping_net.layers.{i + 1}.{part}"].double() for part in ("weight", "bias"))
        y = torch.nn.functional.leaky_relu(y @ (weight * 0.01 / w**0.5).T + bias * 0.01, 0.2) * 2**0.5
    torch.testing.assert_close(mapping(x).double(), y, atol=1e-6, rtol=1e-5)


def published_picture(s: dict[str, torch.Tensor], codes: torch.Tensor, blocks: int) -> torch.Tensor:
    """The student as its specification states it, in float64 and without noise; rows as in `generators.mobile`."""
    conv2d = torch.nn.functional.conv2d

    def style(name: str, w: torch.Tensor) -> torch.Tensor:
        return (w @ s[f"{name}.modulation.weight"].T + s[f"{name}.modulation.bias"])[:, :, None, None]

    def styled(name: str, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        key = f"{name}.conv"
        separable = f"{key}.weight_dw" in s
        weight = s[f"{key}.weight_dw"].transpose(0, 1) * s[f"{key}.weight_permute"] if separable else s[f"{key}.weight"]
        scale = 1 / math.sqrt(weight.shape[1] * 9)
        demodulation = torch.rsqrt((scale * s[f"{key}.style_inv"] * weight[None]).square().sum((2, 3, 4)) + 1e-8)
        x = conv2d(x * style(key, w) * scale, weight, padding=1) * demodulation[:, :, None, None]
        return torch.nn.functional.leaky_relu(x + s[f"{name}.bias"], 0.2)

    def haar(x: torch.Tensor) -> torch.Tensor:
        c = x.shape[1] // 4
        ll, high = x[:, :c], x[:, c:].reshape(len(x), c, 3, *x.shape[2:])
        lh, hl, hh = high[:, :, 0], high[:, :, 1], high[:, :, 2]
        y = x.new_zeros(len(x), c, 2 * x.shape[2], 2 * x.shape[3])
        y[..., 0::2, 0::2], y[..., 1::2, 0::2] = (ll + lh + hl + hh) / 2, (ll - lh + hl - hh) / 2
        y[..., 0::2, 1::2], y[..., 1::2, 1::2] = (ll + lh - hl - hh) / 2, (ll - lh - hl + hh) / 2
        return y

    x = styled("conv1", s["input.input"].expand(len(codes), -1, -1, -1), codes[:, 0])
    for i in range(blocks):
        x = haar(x * style(f"layers.{i}.up", codes[:, 2 * i + 1]))
        x = styled(f"layers.{i}.conv1", x, codes[:, 2 * i + 1])
        x = styled(f"layers.{i}.conv2", x, codes[:, 2 * i + 2])
    last = f"layers.{blocks - 1}.to_img"
    scale = 1 / math.sqrt(x.shape[1])
    return haar(conv2d(x * style(f"{last}.conv", codes[:, -1]) * scale, s[f"{last}.conv.weight"]) + s[f"{last}.bias"])


def test_mobilestylegan_of_another_design_is_refused(tmp_path: Path) -> None:
    state = {name: value for name, value in filled(mobile_shapes(6, (16, 16, 8), 8)).items() if "style_inv" not in name}
    with pytest.raises(WeightsError, match=r"conv1\.conv\.style_inv' is missing"):
        convert(lightning(state, tmp_path / "m.ckpt"))
    assert [path.name for path in tmp_path.iterdir()] == ["m.ckpt"]


# ------------------------------------------------------------------------------------------- through the door


def test_a_file_of_two_networks_end_to_end(tmp_path: Path) -> None:
    """The whole way, in a process of its own: files, their metadata, and the ordinary loader."""
    from latentswap.inversion.psp import PspEncoder

    encoder = filled(psp_shapes(UNITS, WIDTHS, 8, 8, heads="pyramid"))
    generator = filled(generator_shapes())
    state = {f"encoder.{name}": value for name, value in encoder.items()}
    state |= {f"decoder.{name}": value for name, value in rosinality_state(generator).items()}
    opts = {"encoder_type": "Encoder4Editing", "start_from_latent_avg": True}
    value = {"state_dict": state, "opts": opts, "latent_avg": generator["mapping.w_avg"].repeat(8, 1)}
    source = save(value, tmp_path / "e4e.pt")
    assert [(made.kind, made.path.name) for made in convert(source)] == [
        ("inverter/psp", "e4e.safetensors"),
        ("generator/stylegan2", "e4e-generator.safetensors"),
    ]
    tensors, metadata = load_tensors(tmp_path / "e4e-generator.safetensors", kind="generator/stylegan2")
    same(tensors, generator)
    assert metadata["source"] == "e4e.pt" and len(metadata["source_sha256"]) == 64 and metadata["family"] == "psp"
    assert "non-commercial" in metadata["licence"] and json.loads(metadata["config"])["resolution"] == 32
    loaded = PspEncoder.load(tmp_path / "e4e.safetensors")
    assert loaded.config.variant == "e4e" and torch.equal(loaded.latent_avg, value["latent_avg"])
    only = convert(source, tmp_path / "g.safetensors", kind="generator/stylegan2")
    assert [made.path.name for made in only] == ["g.safetensors"]
    assert (tmp_path / "g.safetensors").read_bytes() == (tmp_path / "e4e-generator.safetensors").read_bytes()
    with pytest.raises(WeightsError, match="and no 'mixer'"):
        convert(source, kind="mixer")
    names = {"e4e.pt", "e4e.safetensors", "e4e-generator.safetensors", "g.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_what_a_file_is(tmp_path: Path) -> None:
    path = save(filled(ir_se50_shapes(UNITS, WIDTHS, 8)), tmp_path / "model_ir_se50.pth")
    found = inspect(path)
    assert found["family"] == "ArcFace IR-SE50" and found["networks"][0]["kind"] == "identity/arcface"
    assert found["networks"][0]["tensors"] == len(ir_se50_shapes(UNITS, WIDTHS, 8))
    found = inspect(save({"weights": torch.ones(3), "epoch": 4}, tmp_path / "other.pt"))
    assert "table of 2 entries (weights, epoch)" in found["problem"] and "networks" not in found
    found = inspect(save({"\x1b[2J": 1}, tmp_path / "other.pt"))
    assert "(?[2J)" in found["problem"]
    generator = persistent_generator(filled(generator_shapes()), c_dim=3)
    (tmp_path / "c.pkl").write_bytes(nvlabs_pickle(generator))
    assert "conditional" in inspect(tmp_path / "c.pkl")["problem"]


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(filled(ir_se50_shapes(UNITS, WIDTHS, 8)), tmp_path / "my model.pth")
    assert main(["models", "info", str(path)]) == 0
    out = capsys.readouterr().out
    assert "family: ArcFace IR-SE50\n" in out and "  kind: identity/arcface\n" in out
    assert f"convert: latentswap models convert '{path}'\n" in out
    assert main(["models", "convert", str(path), "-o", str(tmp_path / "a"), "--as", "identity/arcface", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"kind": "identity/arcface", "path": str(tmp_path / "a")}]
    assert main(["models", "info", str(tmp_path / "a")]) == 0
    assert "source: my model.pth\n" in capsys.readouterr().out
    assert main(["models", "convert", str(tmp_path / "a"), "-o", str(tmp_path / "b")]) == 5
    assert "a safetensors file already" in capsys.readouterr().err
    assert main(["models", "convert", str(path), "--as", "gan"]) == 2
    assert "'gan' is not a kind of network" in capsys.readouterr().err


def test_a_network_that_does_not_fit_its_class_is_not_kept(tmp_path: Path) -> None:
    """Names that the adapter cannot know: the class has the last word."""
    state = filled(iresnet_shapes(UNITS, WIDTHS, 8))
    path = save(state | {"layer1.0.extra.weight": torch.ones(3)}, tmp_path / "a.pth")
    with pytest.raises(
        WeightsError, match=r"a\.pth: what it holds does not fit the network; unexpected: layer1\.0\.extra"
    ):
        convert(path)
    state["conv1.weight"] = torch.full_like(state["conv1.weight"], float("nan"))
    with pytest.raises(WeightsError, match=r"not finite .* in conv1\.weight"):
        convert(save(state, path))
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.pth"]


def test_every_kind_has_a_network() -> None:
    import importlib

    for module, config, builder in NETWORKS.values():
        made = importlib.import_module(module)
        assert hasattr(made, builder) and (config is None or hasattr(made, config))


def test_pickled_values_are_what_python_reads() -> None:
    """Plain values through the interpreter and through Python's own unpickler."""
    from latentswap.weights.convert.unpickle import Window, read_pickle

    shared = [1, 2]
    value = {
        "a": (1, -5, 300, 1 << 40, -(1 << 70), 0.5, None, True, "é", b"\x00\xff", ()),
        "b": [shared, shared, {"x": {1, 2}}, [[]], {}],
        3: ("long" * 400, (1,), (1, 2), (1, 2, 3)),
    }
    for protocol in (2, 3, 4):
        got = read_pickle(Window.of_bytes(pickle.dumps(value, protocol)))
        assert got == value and got["b"][0] is got["b"][1]


def test_the_written_file_is_what_the_library_writes(tmp_path: Path) -> None:
    state = filled(ir_se50_shapes(UNITS, WIDTHS, 8))
    (made,) = convert(save(state, tmp_path / "a.pth"))
    header = read_header(made.path, kind="identity/arcface")
    save_tensors(tmp_path / "b", state, {k: v for k, v in header.metadata.items() if k != "format_version"})
    assert made.path.read_bytes() == (tmp_path / "b").read_bytes()
