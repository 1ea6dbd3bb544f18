"""Published encoders: every kind against its formula, the published lists, files, ReStyle's loop, rows of codes."""

import json
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from _published_support import assert_same_network, doubles, ir_se_units, picture, save_described, with_spread

from latentswap.cli.main import main
from latentswap.errors import UsageError, WeightsError
from latentswap.inversion.base import Inverter, rows_for
from latentswap.inversion.psp import KIND, PspConfig, PspEncoder, PspInverter, check_name
from latentswap.pipeline import Swapper
from latentswap.swappers.latentswap import LatentSwap, to_tensor
from latentswap.types import Crop
from latentswap.weights.load import save_tensors

TINY = PspConfig(units=(1, 2, 1, 2), widths=(16, 16, 32, 32), w_dim=24, n_styles=9)
KINDS = [
    ("e4e", "pyramid"),
    ("psp", "pyramid"),
    ("psp", "single"),
    ("e4e", "single"),
    ("restyle-e4e", "last"),
    ("restyle-psp", "last"),
    ("restyle-psp", "pyramid"),
]


def tiny(variant: Any, heads: Any, **changes) -> PspEncoder:
    return with_spread(PspEncoder(replace(TINY, variant=variant, heads=heads, **changes)))


def linear(state, key, x):
    weight = state[f"{key}.weight"]
    return x @ weight.T / weight.shape[1] ** 0.5 + state[f"{key}.bias"]


def up(y):
    """Bilinear to twice the side with the corners kept, as a matrix on both axes."""
    n = y.shape[-1]
    at = torch.arange(2 * n, dtype=torch.float64) * (n - 1) / (2 * n - 1)
    tent = (1 - (at[:, None] - torch.arange(n)).abs()).clamp_min(0)
    return tent @ y @ tent.T


def naive(encoder: PspEncoder, x: torch.Tensor) -> torch.Tensor:
    """The specification in float64: [B, L, D]."""
    config, state = encoder.config, doubles(encoder)
    units = ir_se_units(state, config.units, x.double())
    c1, c2, c3 = (units[sum(config.units[:n]) - 1] for n in (2, 3, 4))
    assert (c1.shape[-1], c2.shape[-1], c3.shape[-1]) == (64, 32, 16)
    if config.heads == "single":
        return linear(state, "linear", c3.mean((2, 3)))[:, None].repeat(1, config.n_styles, 1)
    read = [c3] * config.n_styles
    if config.heads == "pyramid":
        p2 = up(c3) + F.conv2d(c2, state["latlayer1.weight"], state["latlayer1.bias"])
        p1 = up(p2) + F.conv2d(c1, state["latlayer2.weight"], state["latlayer2.bias"])
        read = [c3, c3, c3, p2, p2, p2, p2, *[p1] * (config.n_styles - 7)]
    rows = []
    for i, y in enumerate(read):
        for number in {16: (0, 2, 4, 6), 32: (0, 2, 4, 6, 8), 64: (0, 2, 4, 6, 8, 10)}[y.shape[-1]]:
            key = f"styles.{i}.convs.{number}"
            y = F.conv2d(y, state[f"{key}.weight"], state[f"{key}.bias"], stride=2, padding=1)
            y = torch.where(y > 0, y, 0.01 * y)
        rows.append(linear(state, f"styles.{i}.linear", y[:, :, 0, 0]))
    if config.variant in ("e4e", "restyle-e4e"):
        rows = [rows[0]] + [rows[0] + row for row in rows[1:]]
    return torch.stack(rows, 1)


@pytest.mark.parametrize(("variant", "heads"), KINDS)
def test_matches_the_specification(variant, heads):
    encoder = tiny(variant, heads)
    x = picture(1, encoder.config.input_channels, 256, 256)
    with torch.no_grad():
        found, expected = encoder(x), naive(encoder, x)
    assert found.shape == (1, 9, 24)
    assert expected.std() > 0.05
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_published_sizes():
    with torch.device("meta"):
        e4e = PspEncoder(PspConfig()).state_dict()
        restyle = PspEncoder(PspConfig(variant="restyle-e4e", heads="last")).state_dict()
    for state, entries, parameters in ((e4e, 621, 267_136_704), (restyle, 565, 205_585_792)):
        assert tuple(state.pop("latent_avg").shape) == (18, 512)
        assert len(state) == entries
        counted = [
            v for n, v in state.items() if not n.endswith(("running_mean", "running_var", "num_batches_tracked"))
        ]
        assert sum(v.numel() for v in counted) == parameters
    shapes = {name: tuple(value.shape) for name, value in e4e.items()}
    assert shapes["input_layer.0.weight"] == (64, 3, 3, 3)
    assert shapes["body.3.shortcut_layer.0.weight"] == (128, 64, 1, 1)
    assert {n.split(".")[1] for n in shapes if "shortcut_layer.0" in n} == {"3", "7", "21"}
    assert shapes["body.23.res_layer.5.fc1.weight"] == (32, 512, 1, 1)
    assert shapes["latlayer1.weight"] == (512, 256, 1, 1)
    assert shapes["latlayer2.weight"] == (512, 128, 1, 1)
    convs = {i: {int(n.split(".")[3]) for n in shapes if n.startswith(f"styles.{i}.convs")} for i in (2, 3, 6, 7, 17)}
    assert {i: max(numbers) for i, numbers in convs.items()} == {2: 6, 3: 8, 6: 8, 7: 10, 17: 10}
    assert tuple(restyle["input_layer.0.weight"].shape) == (64, 6, 3, 3)
    assert "styles.17.convs.8.weight" not in restyle


def test_gradients_reach_the_picture():
    encoder = tiny("e4e", "pyramid").requires_grad_(False)
    x = picture(1, 3, 256, 256).requires_grad_()
    encoder(x)[:, 8].square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_file_round_trip(tmp_path):
    encoder = tiny("restyle-e4e", "last")
    save_described(tmp_path / "e.safetensors", encoder, KIND)
    loaded = PspEncoder.load(tmp_path / "e.safetensors")
    assert_same_network(loaded, encoder)
    assert loaded.config == encoder.config
    x = picture(1, 6, 256, 256)
    with torch.no_grad():
        assert torch.allclose(loaded(x), encoder(x), atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"variant": "e5e"},
        {"n_styles": 10**9},
        {"n_styles": 9.0},
        {"widths": [16, 16, 32]},
        {"widths": [16, 16, 32, 40]},
        {"units": [1, 2, 1, 10**9]},
        {"units": 3},
        {"surprise": 1},
        {"add_average": 1},
    ],
)
def test_a_file_that_describes_something_else(tmp_path, change):
    save_described(tmp_path / "e.safetensors", tiny("e4e", "pyramid"), KIND, **change)
    with pytest.raises(WeightsError, match="does not describe"):
        PspEncoder.load(tmp_path / "e.safetensors")


def test_files_of_another_kind_or_layout(tmp_path):
    encoder = tiny("e4e", "pyramid")
    save_described(tmp_path / "other.safetensors", encoder, "mixer")
    with pytest.raises(WeightsError, match="mixer"):
        PspEncoder.load(tmp_path / "other.safetensors")
    state = encoder.state_dict()
    state["styles.4.linear.weights"] = state.pop("styles.4.linear.weight")
    metadata = {"kind": KIND, "config": json.dumps(asdict(encoder.config))}
    save_tensors(tmp_path / "renamed.safetensors", state, metadata)
    with pytest.raises(WeightsError, match=r"missing: styles\.4\.linear\.weight"):
        PspEncoder.load(tmp_path / "renamed.safetensors")
    save_tensors(tmp_path / "bare.safetensors", state, {"kind": KIND})
    with pytest.raises(WeightsError, match="does not describe"):
        PspEncoder.load(tmp_path / "bare.safetensors")


@pytest.mark.parametrize(
    "fields",
    [
        {"variant": "restyle-e4e", "heads": "single"},
        {"heads": "first"},
        {"w_dim": 0},
        {"units": (0, 1, 1, 1)},
    ],
)
def test_configurations_that_make_no_sense(fields):
    with pytest.raises(UsageError):
        PspConfig(**fields)


def test_refuses_pictures_of_another_shape():
    with pytest.raises(UsageError, match="256"):
        tiny("e4e", "pyramid")(picture(1, 3, 128, 128))
    with pytest.raises(UsageError, match="6"):
        tiny("restyle-e4e", "last")(picture(1, 3, 256, 256))


def test_rows_between_generators():
    codes = torch.arange(18.0)[None, :, None].repeat(2, 1, 3)
    down = rows_for(codes, 16)
    assert down[0, :, 0].tolist() == list(range(16))
    assert rows_for(down, 18)[0, :, 0].tolist() == [*range(16), 15, 15]
    assert torch.equal(rows_for(rows_for(down, 18), 16), down)
    assert rows_for(codes, 18) is codes
    same = torch.randn(2, 1, 5).expand(-1, 18, -1)
    assert torch.equal(rows_for(same, 16), same[:, :16])


@pytest.mark.parametrize(("rows", "num_ws"), [(18, 14), (14, 18), (16, 14), (17, 18), (16, 17)])
def test_rows_of_another_space_are_refused(rows, num_ws):
    with pytest.raises(UsageError, match="W space"):
        rows_for(torch.zeros(1, rows, 4), num_ws)


class Painter:
    """A generator that paints a code's 16 rows as 16 stripes of colours; what it was asked for is kept."""

    num_ws, w_dim, resolution = 16, 24, 256
    w_avg = w_std = torch.ones(24)

    def __init__(self) -> None:
        self.asked = []

    def mapping(self, z_BD, *, truncation_psi=1.0):
        return z_BD

    def synthesis(self, ws_BLD, *, resolution=None, noise="const"):
        assert resolution == 256
        self.asked.append(ws_BLD)
        stripes = ws_BLD[:, :, :3].tanh().repeat_interleave(16, 1).transpose(1, 2)
        return stripes[..., None].expand(-1, -1, -1, 256)


def test_inverter_in_one_pass():
    encoder = tiny("e4e", "pyramid", n_styles=18)
    painter = Painter()
    inverter = PspInverter(encoder, painter)
    assert isinstance(inverter, Inverter)
    x = picture(1, 3, 256, 256)
    with torch.no_grad():
        offsets = encoder(x)
    assert torch.equal(inverter.invert(x), (offsets + encoder.latent_avg)[:, :16])
    bare = tiny("e4e", "pyramid", n_styles=18, add_average=False)
    assert torch.equal(PspInverter(bare, Painter()).invert(x), offsets[:, :16])
    assert not painter.asked


def test_restyle_corrects_five_times_from_the_average():
    encoder, painter = tiny("restyle-e4e", "last", n_styles=18), Painter()
    x = picture(2, 3, 256, 256)
    found = PspInverter(encoder, painter).invert(x)
    average = encoder.latent_avg[None, :16].expand(2, -1, -1)
    assert torch.equal(painter.asked[0], average)
    assert len(painter.asked) == 5
    code = encoder.latent_avg[None].repeat(2, 1, 1)
    with torch.no_grad():
        for _ in range(5):
            code = code + encoder(torch.cat([x, Painter().synthesis(code[:, :16], resolution=256)], 1))
    assert torch.allclose(found, code[:, :16], atol=1e-5)
    assert (found - average).abs().mean() > 0.1


def test_refuses_a_generator_of_another_space():
    with pytest.raises(UsageError, match="W space"):
        PspInverter(tiny("e4e", "pyramid", n_styles=14), Painter())
    with pytest.raises(UsageError, match="wide"):
        PspInverter(tiny("e4e", "pyramid", n_styles=18, w_dim=32), Painter())


def single(**changes) -> PspEncoder:
    """Narrow, for the embedded generator."""
    return tiny("e4e", "single", n_styles=18, w_dim=512, **changes)


def test_a_swap_starts_at_the_codes_of_the_encoder(networks):
    inverter = PspInverter(single(), networks.generator)
    method = LatentSwap(networks, lambda ws: ws.numpy(), inversion="fast", inverter=inverter)
    pixels = ((picture(1, 3, 256, 256)[0] + 1) * 127.5).byte().permute(1, 2, 0).numpy()
    crop = Crop(pixels=pixels, affine=np.eye(2, 3), mesh_K3=np.zeros((468, 3), np.float32))
    wanted = inverter.invert(to_tensor(pixels))
    assert wanted.shape == (1, 16, 512)
    prepared = method.prepare(crop)
    assert torch.equal(prepared.w_plus, wanted)
    assert torch.equal(method.invert(crop), wanted)
    drawn = method.swap(prepared, crop, strength=0.0)
    assert np.allclose(drawn, wanted[0])


@pytest.mark.parametrize(
    ("inversion", "variant", "message"),
    [
        ("e4e", None, "--encoder"),
        ("restyle", None, "--encoder"),
        ("e4e", "psp", "holds psp"),
        ("psp", "restyle-psp", "holds restyle-psp"),
        ("restyle", "e4e", "holds e4e"),
    ],
)
def test_an_inversion_of_the_name_of_another_encoder_is_refused(tmp_path, inversion, variant, message):
    file = tmp_path / "e.safetensors"
    if variant:
        save_described(file, tiny(variant, "last"), KIND)
    with pytest.raises(UsageError, match=message):
        Swapper.from_pretrained(inversion=inversion, encoder=file if variant else None, offline=True)


def test_every_encoder_answers_to_its_name():
    check_name(tiny("e4e", "last"), "e4e")
    check_name(tiny("psp", "last"), "psp")
    check_name(tiny("restyle-e4e", "last"), "restyle")
    check_name(tiny("restyle-psp", "last"), "restyle")


def test_the_command_line_takes_an_encoder(tmp_path, capsys):
    PIL.Image.new("RGB", (64, 64)).save(tmp_path / "x.png")
    save_described(tmp_path / "e.safetensors", tiny("psp", "last"), KIND)
    x, file = str(tmp_path / "x.png"), str(tmp_path / "e.safetensors")
    for command in (["swap", x, x, "--consent", "nobody is shown"], ["anonymize", x], ["invert", x]):
        out = tmp_path / ("out.safetensors" if command[0] == "invert" else "out.png")
        code = main([*command, "-o", str(out), "--inversion", "e4e", "--encoder", file, "--offline"])
        assert code == UsageError.exit_code
        assert "holds psp" in capsys.readouterr().err
