"""StyleGAN2 against a plain float64 reference written from its definition, and what every generator promises."""

import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from latentswap.errors import UsageError, WeightsError
from latentswap.generators import ops, stylegan2
from latentswap.generators.base import Generator
from latentswap.generators.load import load_generator
from latentswap.generators.mobile import MobileStyleGAN
from latentswap.generators.stylegan2 import StyleGAN2, StyleGAN2Config
from latentswap.runtime.generator import OpenVINOSynthesis, _fingerprint
from latentswap.weights.load import save_tensors

TINY = StyleGAN2Config(
    z_dim=12, w_dim=10, resolution=32, channel_base=256, channel_max=16, mapping_layers=3, conv_clamp=None
)
OTHERS = [  # one thing after the other that a size can differ in
    replace(TINY, resolution=8),
    replace(TINY, resolution=64, channel_base=512, channel_max=24),  # large enough for Winograd
    replace(TINY, img_channels=1, w_dim=7, mapping_layers=8),
    replace(TINY, conv_clamp=0.4),
    replace(TINY, num_fp16_res=4, conv_clamp=256.0),  # float32 on a CPU all the same
]


def made(config: StyleGAN2Config = TINY, *, seed: int = 0) -> StyleGAN2:
    """A generator all of whose tensors are random, so that each of them shows."""
    torch.manual_seed(seed)
    generator = StyleGAN2(config).eval().requires_grad_(False)
    for name, value in generator.state_dict().items():
        if name.endswith("noise_strength"):
            value.normal_(std=0.3)
        elif name.endswith("bias"):
            value.add_(torch.randn_like(value) * (10 if name.startswith("mapping") else 0.3))
        elif name.endswith("w_avg"):
            value.normal_()
    return generator


def random_ws(config: StyleGAN2Config, batch: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, config.num_ws, config.w_dim, generator=torch.Generator().manual_seed(seed))


# The reference: float64, one grouped convolution with a weight for each sample, resampling written out.


def reference_resample(x: torch.Tensor, *, up: int, pad: tuple[int, int], gain: float) -> torch.Tensor:
    """Zeros between the pixels, `pad` zeros before and after, then the low-pass, tap by tap."""
    b, c, h, w = x.shape
    spread = x.new_zeros(b, c, h * up, w * up)
    spread[:, :, ::up, ::up] = x
    spread = F.pad(spread, (*pad, *pad))
    taps, out = (1 / 8, 3 / 8, 3 / 8, 1 / 8), 0
    height, width = spread.shape[2] - 3, spread.shape[3] - 3
    for i in range(4):
        for j in range(4):
            out = out + gain * taps[i] * taps[j] * spread[:, :, i : i + height, j : j + width]
    return out  # type: ignore[return-value]


def reference_conv(x, weight, style, *, up: bool, demodulate: bool) -> torch.Tensor:
    """Modulated convolution with the modulated weights of every sample as groups of one convolution."""
    b, c_in, h, w = x.shape
    each = weight[None] * style[:, None, :, None, None]
    if demodulate:
        each = each / torch.sqrt((each**2).sum((2, 3, 4), keepdim=True) + 1e-8)
    if up:  # transposed convolution as sums: pixel (y, x) is written to (2y + i, 2x + j)
        out = x.new_zeros(b, weight.shape[0], 2 * h + 1, 2 * w + 1)
        for i in range(3):
            for j in range(3):
                part = torch.einsum("boi,bihw->bohw", each[..., i, j], x)
                out[:, :, i : i + 2 * h : 2, j : j + 2 * w : 2] += part
        return reference_resample(out, up=1, pad=(1, 1), gain=4)
    flat = x.reshape(1, b * c_in, h, w)
    out = F.conv2d(flat, each.flatten(0, 1), padding=weight.shape[-1] // 2, groups=b)
    return out.unflatten(1, (b, -1))[0]


class Reference:
    """StyleGAN2 from its state, in float64."""

    def __init__(self, generator: StyleGAN2) -> None:
        self.state = {name: value.detach().double() for name, value in generator.state_dict().items()}
        self.config = generator.config

    def affine(self, name: str, w: torch.Tensor) -> torch.Tensor:
        weight, bias = self.state[f"{name}.affine.weight"], self.state[f"{name}.affine.bias"]
        return w @ weight.T / weight.shape[1] ** 0.5 + bias

    def clamp(self, x: torch.Tensor) -> torch.Tensor:
        limit = self.config.conv_clamp
        return x if limit is None else x.clamp(-limit, limit)

    def mapping(self, z: torch.Tensor, *, psi: float = 1.0, rows: int | None = None) -> torch.Tensor:
        x = z.double()
        x = x / torch.sqrt((x**2).mean(1, keepdim=True) + 1e-8)
        for i in range(self.config.mapping_layers):
            weight, bias = self.state[f"mapping.fc{i}.weight"], self.state[f"mapping.fc{i}.bias"]
            x = x @ weight.T * (0.01 / weight.shape[1] ** 0.5) + bias * 0.01
            x = torch.where(x > 0, x, 0.2 * x) * 2**0.5
        mean = self.state["mapping.w_avg"]
        ws = x[:, None].repeat(1, self.config.num_ws, 1)
        ws[:, :rows] = mean + psi * (ws[:, :rows] - mean)
        return ws

    def layer(self, name: str, x, w, noise: str, *, up: bool) -> torch.Tensor:
        x = reference_conv(x, self.state[f"{name}.weight"], self.affine(name, w), up=up, demodulate=True)
        if noise == "const":
            x = x + self.state[f"{name}.noise_const"] * self.state[f"{name}.noise_strength"]
        x = x + self.state[f"{name}.bias"][:, None, None]
        return self.clamp(torch.where(x > 0, x, 0.2 * x) * 2**0.5)

    def picture(self, name: str, x, w) -> torch.Tensor:
        weight = self.state[f"{name}.weight"]
        rgb = reference_conv(x, weight, self.affine(name, w) / weight.shape[1] ** 0.5, up=False, demodulate=False)
        return self.clamp(rgb + self.state[f"{name}.bias"][:, None, None])

    def synthesis(self, ws: torch.Tensor, *, noise: str = "const") -> torch.Tensor:
        ws, rows = ws.double(), iter(range(99))
        x = self.state["synthesis.b4.const"][None].repeat(len(ws), 1, 1, 1)
        x = self.layer("synthesis.b4.conv1", x, ws[:, next(rows)], noise, up=False)
        row, side = 1, 4
        img = self.picture("synthesis.b4.torgb", x, ws[:, row])
        while (side := 2 * side) <= self.config.resolution:
            name = f"synthesis.b{side}"
            x = self.layer(f"{name}.conv0", x, ws[:, row], noise, up=True)
            x = self.layer(f"{name}.conv1", x, ws[:, row + 1], noise, up=False)
            row += 2
            img = reference_resample(img, up=2, pad=(2, 1), gain=4) + self.picture(f"{name}.torgb", x, ws[:, row])
        assert row == ws.shape[1] - 1  # every row was read
        return img


@pytest.mark.parametrize("config", [TINY, *OTHERS])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_picture_is_the_reference(config, batch):
    generator, ws = made(config), random_ws(config, batch)
    expected = Reference(generator).synthesis(ws)
    assert expected.std() > 0.1
    with torch.no_grad():
        assert torch.allclose(generator.synthesis(ws).double(), expected, atol=1e-4, rtol=1e-4)
        none = generator.synthesis(ws, noise="none").double()
    assert torch.allclose(none, Reference(generator).synthesis(ws, noise="none"), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(none, expected, atol=1e-2)


def test_strips_are_the_whole(monkeypatch):
    """Blocks in strips, sample by sample, give what they give as a whole: with every noise, to the last row."""
    config = replace(TINY, resolution=128, channel_base=1024, channel_max=8)
    generator, ws = made(config), random_ws(config)
    whole = generator.synthesis(ws.clone().requires_grad_()).detach()  # gradients are wanted: no strips
    monkeypatch.setattr(stylegan2, "_STRIP_FROM", 8)
    monkeypatch.setattr(stylegan2, "_STRIP", 5)  # does not divide a side
    with torch.no_grad():
        assert torch.allclose(generator.synthesis(ws), whole, atol=2e-5)
        drawn = generator.synthesis(ws, noise="random", rng=torch.Generator().manual_seed(3))
    monkeypatch.setattr(stylegan2, "_STRIP_FROM", 999)
    with torch.no_grad():
        again = generator.synthesis(ws, noise="random", rng=torch.Generator().manual_seed(3))
    assert torch.allclose(drawn, again, atol=2e-5)
    assert not torch.allclose(drawn, whole, atol=1e-2)


def test_strips_are_taken(monkeypatch):
    generator, ws = made(), random_ws(TINY)
    monkeypatch.setattr(stylegan2, "_STRIP_FROM", 16)
    monkeypatch.setattr(stylegan2, "_HALO", 0)
    with torch.no_grad():
        cut = generator.synthesis(ws)
        monkeypatch.setattr(stylegan2, "_STRIP", 8)
        assert not torch.allclose(cut, generator.synthesis(ws), atol=1e-3)  # seams: without a halo strips would show


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("side", [8, 32])  # scaling activations or the weight; ordinary and Winograd
@pytest.mark.parametrize("up", [False, True])
def test_gradients_of_a_modulated_convolution_are_the_references(batch, side, up):
    torch.manual_seed(0)
    leaves = [torch.randn(batch, 6, side, side), torch.randn(9, 6, 3, 3), torch.randn(batch, 6), torch.randn(9)]
    ours = [leaf.clone().requires_grad_() for leaf in leaves]
    theirs = [leaf.double().requires_grad_() for leaf in leaves]
    out = ops.modulated_conv(*ours, up=up, gain=1.5)
    x, weight, style, bias = theirs
    expected = 1.5 * reference_conv(x, weight, style, up=up, demodulate=True) + bias[:, None, None]
    assert torch.allclose(out.double(), expected, atol=1e-4)
    probe = torch.randn(out.shape)
    out.backward(probe)
    expected.backward(probe.double())
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.grad is not None and other.grad is not None
        assert torch.allclose(mine.grad.double(), other.grad, atol=1e-3, rtol=1e-4)


def test_gradients_through_the_whole_network_are_the_references():
    """With respect to codes and to every parameter of the synthesis network, as tuning needs them."""
    config = replace(TINY, resolution=64, channel_base=512)
    generator, ws = made(config).requires_grad_(True), random_ws(config, 1).requires_grad_()
    reference, ws64 = Reference(generator), ws.detach().double().requires_grad_()
    parameters = dict(generator.synthesis.named_parameters(prefix="synthesis"))
    for name in parameters:
        reference.state[name].requires_grad_()
    probe = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    (generator.synthesis(ws) * probe).sum().backward()
    (reference.synthesis(ws64) * probe).sum().backward()
    pairs = {"ws": (ws.grad, ws64.grad)} | {n: (p.grad, reference.state[n].grad) for n, p in parameters.items()}
    for name, (mine, other) in pairs.items():
        assert mine is not None and other is not None, name
        assert (mine.double() - other).abs().max() < 1e-4 * other.abs().max() + 1e-4, name


def test_winograd_is_taken_where_there_is_one():
    """32² and more in float32 go through it; its error would otherwise not be covered by the tests above."""
    if not torch.backends.nnpack.is_available():
        pytest.skip("this build of torch has none")
    x, weight = torch.randn(2, 4, 40, 30).transpose(2, 3), torch.randn(5, 4, 3, 3)
    taken, ordinary = ops._conv(x, weight, None, False), F.conv2d(x, weight, padding=1)
    assert 0 < (taken - ordinary).abs().max() < 1e-4 * ordinary.std()


def test_without_winograd_it_is_the_reference(monkeypatch):
    monkeypatch.setattr(ops, "_has_winograd", lambda x: False)
    generator, ws = made(OTHERS[1]), random_ws(OTHERS[1], 1)
    with torch.no_grad():
        assert torch.allclose(
            generator.synthesis(ws).double(), Reference(generator).synthesis(ws), atol=1e-4, rtol=1e-4
        )


def test_mapping_and_truncation():
    for config in (TINY, replace(TINY, mapping_layers=8, z_dim=5)):
        generator = made(config)
        z = torch.randn(4, config.z_dim, generator=torch.Generator().manual_seed(2))
        reference = Reference(generator)
        assert torch.allclose(generator.mapping(z).double(), reference.mapping(z)[:, 0], atol=1e-5)
        half = generator.mapping(z, truncation_psi=0.5)
        assert torch.allclose(half.double(), reference.mapping(z, psi=0.5)[:, 0], atol=1e-5)
        assert torch.equal(generator.mapping(z, truncation_psi=0.0), generator.w_avg.expand(4, -1))
        for rows in (None, 0, 3, config.num_ws):
            codes = generator.codes(z, truncation_psi=0.3, truncation_rows=rows)
            assert torch.allclose(codes.double(), reference.mapping(z, psi=0.3, rows=rows), atol=1e-5)


def test_random_noise():
    """Reproducible with a generator of numbers, of the layer's own strength, different for each of a batch."""
    generator, ws = made(), random_ws(TINY)
    drawn, again, other = (
        generator.synthesis(ws, noise="random", rng=torch.Generator().manual_seed(seed)) for seed in (7, 7, 8)
    )
    assert torch.equal(drawn, again) and not torch.allclose(drawn, other, atol=1e-2)
    twins = generator.synthesis(ws[:1].expand(2, -1, -1), noise="random")
    assert not torch.allclose(twins[0], twins[1], atol=1e-2)
    layer = generator.synthesis.get_submodule("b32.conv1")
    assert isinstance(layer, stylegan2.SynthesisLayer)
    noise = layer.noise("random", 50, torch.Generator().manual_seed(0))
    assert noise is not None and noise.shape == (50, 1, 32, 32)
    assert torch.isclose(noise.std(), 2**0.5 * layer.noise_strength.abs(), rtol=0.02)


def test_a_batch_is_its_singles():
    generator, ws = made(OTHERS[1]), random_ws(OTHERS[1], 3)
    with torch.no_grad():
        batch = generator.synthesis(ws)
        singles = torch.cat([generator.synthesis(code[None]) for code in ws])
    assert torch.allclose(batch, singles, atol=1e-4)


def test_smaller_pictures_are_the_whole_area_reduced():
    generator, ws = made(), random_ws(TINY)
    whole = generator.synthesis(ws)
    assert torch.equal(generator.synthesis(ws, resolution=32), whole)
    for side in (16, 4):
        reduced = generator.synthesis(ws, resolution=side)
        assert torch.allclose(reduced, F.interpolate(whole, size=side, mode="area"), atol=1e-6)


def test_which_row_styles_what():
    """The published table: b4 takes rows 0 (convolution) and 1 (picture); the block at 8·2^i takes 2i+1 to 2i+3."""
    config = replace(TINY, resolution=64)
    generator = made(config)
    read: dict[str, list[int]] = {}
    ws = torch.arange(config.num_ws).float()[None, :, None].expand(1, -1, config.w_dim)  # every row is its number

    def note(name: str, module: torch.nn.Module, args: tuple[torch.Tensor]) -> None:
        read[name] = args[0].unique().int().tolist()

    for name, module in generator.synthesis.named_modules():
        if isinstance(module, stylegan2.SynthesisLayer | stylegan2.ToRGB):
            module.affine.register_forward_pre_hook(partial(note, name))
    generator.synthesis(ws)
    expected = {"b4.conv1": [0], "b4.torgb": [1]}
    for i, side in enumerate((8, 16, 32, 64)):
        expected |= {f"b{side}.conv0": [2 * i + 1], f"b{side}.conv1": [2 * i + 2], f"b{side}.torgb": [2 * i + 3]}
    assert read == expected
    assert expected[f"b{64}.torgb"] == [config.num_ws - 1]


def test_names_and_shapes_at_full_size_are_the_published_ones():
    with torch.device("meta"):
        generator = StyleGAN2(StyleGAN2Config())
    expected: dict[str, tuple[int, ...]] = {"mapping.w_avg": (512,)}
    for i in range(8):
        expected |= {f"mapping.fc{i}.weight": (512, 512), f"mapping.fc{i}.bias": (512,)}
    channels = {4: 512, 8: 512, 16: 512, 32: 512, 64: 512, 128: 256, 256: 128, 512: 64, 1024: 32}
    for side, width in channels.items():
        block, layers = f"synthesis.b{side}", {"conv1": width}
        if side > 4:
            layers["conv0"] = channels[side // 2]
        expected[f"{block}.resample_filter"] = (4, 4)
        for layer, c_in in layers.items():
            name = f"{block}.{layer}"
            expected |= {f"{name}.weight": (width, c_in, 3, 3), f"{name}.bias": (width,)}
            expected |= {f"{name}.affine.weight": (c_in, 512), f"{name}.affine.bias": (c_in,)}
            expected |= {f"{name}.noise_const": (side, side), f"{name}.noise_strength": ()}
            expected[f"{name}.resample_filter"] = (4, 4)
        expected |= {f"{block}.torgb.weight": (3, width, 1, 1), f"{block}.torgb.bias": (3,)}
        expected |= {f"{block}.torgb.affine.weight": (width, 512), f"{block}.torgb.affine.bias": (width,)}
    expected["synthesis.b4.const"] = (512, 4, 4)
    assert {name: tuple(value.shape) for name, value in generator.state_dict().items()} == expected
    assert len(expected) == 182
    assert sum(parameter.numel() for parameter in generator.parameters()) == 30_370_060
    assert sum(parameter.numel() for parameter in generator.mapping.parameters()) == 2_101_248
    buffers = {name.rsplit(".", 1)[-1] for name, _ in generator.named_buffers()} - {"w_std"}
    assert buffers == {"w_avg", "resample_filter", "noise_const"}


@pytest.mark.parametrize(("resolution", "num_ws"), [(8, 4), (256, 14), (512, 16), (1024, 18), (2048, 20)])
def test_rows_by_resolution(resolution, num_ws):
    assert StyleGAN2Config(resolution=resolution).num_ws == num_ws


def saved(path: Path, generator: StyleGAN2, **changes) -> Path:
    metadata = {"kind": "generator/stylegan2", "config": json.dumps(asdict(generator.config))} | changes
    save_tensors(path, generator.state_dict(), metadata)
    return path


def test_save_and_load(tmp_path):
    generator = made(replace(TINY, conv_clamp=3.0))
    loaded = load_generator(saved(tmp_path / "g.safetensors", generator))
    assert isinstance(loaded, StyleGAN2) and isinstance(loaded, Generator)
    assert loaded.config == generator.config
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())
    ws = random_ws(TINY)
    assert torch.equal(loaded.synthesis(ws), generator.synthesis(ws))
    w = loaded.mapping(torch.randn(4000, 12, generator=torch.Generator().manual_seed(9)))
    assert (w.std(0) / loaded.w_std - 1).abs().max() < 0.1
    again = StyleGAN2.load(tmp_path / "g.safetensors")
    assert torch.equal(again.w_std, loaded.w_std) and "w_std" not in loaded.state_dict()


def test_load_knows_every_generator(default_weights):
    generator = load_generator(default_weights("mobilestylegan-ffhq-1024"))
    assert isinstance(generator, MobileStyleGAN) and generator.head is not None


def test_files_that_are_refused(tmp_path):
    generator, path = made(), tmp_path / "g.safetensors"
    with pytest.raises(WeightsError, match="holds mixer, where a generator is needed: generator/mobilestylegan or"):
        load_generator(saved(path, generator, kind="mixer"))
    for text in ("{}", '{"resolution": 33}', "[1]", "not json", '{"resolution": 1e9}', '{"module": "os"}', "[" * 99999):
        with pytest.raises(WeightsError, match=r"does not (describe|fit)"):
            load_generator(saved(path, generator, config=text))
    generator.get_buffer("synthesis.b8.conv0.resample_filter").mul_(2)
    with pytest.raises(WeightsError, match=r"another filter than \[1, 3, 3, 1\] \(synthesis.b8.conv0"):
        load_generator(saved(path, generator))


def test_refusals():
    generator = made()
    with pytest.raises(UsageError, match=r"takes \[B, 12\]"):
        generator.mapping(torch.zeros(2, 10))
    with pytest.raises(UsageError, match=r"takes \[B, 8, 10\]"):
        generator.synthesis(torch.zeros(1, 18, 10))
    with pytest.raises(UsageError, match=r"32 pixels, or smaller .* not of 64"):
        generator.synthesis(torch.zeros(1, 8, 10), resolution=64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolution": 48}, "power of two, not 48"),
        ({"resolution": 4}, "resolution must be a whole number from 8 to 2048, not 4"),
        ({"w_dim": 1 << 20}, "w_dim must be"),
        ({"mapping_layers": True}, "mapping_layers must be"),
        ({"channel_base": 16}, "leaves no channels at 32²"),
        ({"conv_clamp": 0.0}, "conv_clamp must be a positive number"),
        ({"conv_clamp": float("nan")}, "conv_clamp must be a positive number"),
        ({"conv_clamp": "256"}, "conv_clamp must be a positive number"),
    ],
)
def test_sizes_that_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        replace(TINY, **changes)


def test_half_precision_is_close_and_leaves_the_weights():
    generator, ws = made(), random_ws(TINY)
    exact, before = generator.synthesis(ws), {name: value.clone() for name, value in generator.state_dict().items()}
    rounded = generator.half_precision().synthesis(ws)
    assert rounded.dtype == torch.float32 and not torch.equal(rounded, exact)
    assert (rounded - exact).abs().mean() < 0.02 * exact.std()
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())


def test_float16_does_not_overflow():
    """Weights and styles of any size: their largest factors are taken out first, and demodulation takes them back."""
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 8, 8, 8), 3000 * torch.randn(4, 8, 3, 3), torch.zeros(4)
    style = 1000 * torch.randn(2, 8)
    out = ops.modulated_conv(x.half(), weight, style, bias)
    assert out.dtype == torch.float16
    assert torch.allclose(out.float(), ops.modulated_conv(x, weight, style, bias), atol=0.02)


def test_float16_blocks_are_the_last_ones():
    generator = made(replace(TINY, num_fp16_res=2))
    assert [block.float16_on_gpu for block in generator.synthesis.blocks()] == [False, False, True, True]
    everything = made(replace(TINY, num_fp16_res=9))
    assert [block.float16_on_gpu for block in everything.synthesis.blocks()] == [False, True, True, True]


def test_openvino_agrees_with_torch(tmp_path):
    config = replace(TINY, conv_clamp=0.4)
    generator, ws = made(config), random_ws(config, 3)
    runtime = OpenVINOSynthesis(generator, cache_dir=tmp_path)
    with torch.no_grad():
        expected = generator.synthesis(ws).numpy()
    assert np.abs(runtime(ws.numpy()) - expected).max() < 2e-4
    assert np.abs(runtime(ws[:1].numpy()) - expected[:1]).max() < 2e-4
    assert len(list(tmp_path.glob("generator-*"))) == 1
    assert _fingerprint(generator) == _fingerprint(made(config))
    assert _fingerprint(generator) != _fingerprint(made(TINY))  # the same tensors, another limit
