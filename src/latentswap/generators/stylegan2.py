"""StyleGAN2 (Karras et al., arXiv 1912.04958): the generator with skip connections, of any size.

Names and shapes of its state are those of the published checkpoints. The block of side 4 has one convolution, every
other two, the first of which doubles the side; each block adds to the picture. W+ has two rows per block: the block of
side 4 takes row 0 for its convolution and row 1 for its picture, the block of side 8·2^i rows 2i+1 and 2i+2 for its
convolutions and 2i+3 for its picture, so that neighbours share a row.

Without gradients the largest blocks run in strips on a CPU: it takes a third of the memory and no more time.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from latentswap.errors import UsageError, WeightsError
from latentswap.generators.base import NoiseMode, broadcast_w
from latentswap.generators.ops import eager_on_cpu, modulated_conv, modulated_sum, resample_filter, upsample
from latentswap.seeds import generator_for
from latentswap.weights.described import load_described

KIND = "generator/stylegan2"
_MAPPING_RATE = 0.01  # learning-rate multiplier of the mapping, part of what its weights mean
_GAIN = 2**0.5  # after LeakyReLU
_STRIP, _HALO = 128, 2  # rows of a block's input in a strip, and further rows that its border reaches into
_STRIP_FROM = 256  # side of the smallest input that is cut into strips
_SAMPLES = 10_000  # codes behind w_std


@dataclass(frozen=True, kw_only=True)
class StyleGAN2Config:
    """Size of a generator; as it stands, the published one of faces at 1024².

    The block of side r has min(channel_base // r, channel_max) channels. conv_clamp: limit of the activations, None
    for none. num_fp16_res: so many of the last blocks run in float16 on a GPU; on a CPU all run in float32.
    """

    z_dim: int = 512
    w_dim: int = 512
    resolution: int = 1024
    img_channels: int = 3
    channel_base: int = 32768
    channel_max: int = 512
    mapping_layers: int = 8
    conv_clamp: float | None = None
    num_fp16_res: int = 0

    def __post_init__(self) -> None:
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise UsageError(f"A generator's {name} must be a whole number from {least} to {most}, not {value!r}.")
        if self.resolution & (self.resolution - 1):
            raise UsageError(f"A generator's resolution must be a power of two, not {self.resolution}.")
        if self.channel_base < self.resolution:
            raise UsageError(
                f"A channel_base of {self.channel_base} leaves no channels at {self.resolution}²; "
                "it must be at least the resolution."
            )
        clamp = self.conv_clamp
        if clamp is not None and not (type(clamp) in (int, float) and math.isfinite(clamp) and clamp > 0):
            raise UsageError(f"A generator's conv_clamp must be a positive number or none, not {clamp!r}.")

    def sides(self) -> tuple[int, ...]:
        """Sides of the blocks: 4, 8, … resolution."""
        return tuple(4 << i for i in range(self.resolution.bit_length() - 2))

    def channels(self, side: int) -> int:
        """Channels of the block of this side."""
        return min(self.channel_base // side, self.channel_max)

    @property
    def num_ws(self) -> int:
        """Rows of W+."""
        return 2 * len(self.sides())


_RANGES = {
    "z_dim": (1, 4096), "w_dim": (1, 4096), "resolution": (8, 2048), "img_channels": (1, 4),
    "channel_base": (8, 1 << 20), "channel_max": (1, 2048), "mapping_layers": (1, 16), "num_fp16_res": (0, 10),
}  # fmt: skip


class FullyConnected(nn.Module):
    """Linear, with weights kept at unit variance and scaled in use: [B, I] → [B, O]."""

    def __init__(self, c_in: int, c_out: int, *, rate: float = 1.0, bias: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(c_out, c_in) / rate)
        self.bias = nn.Parameter(torch.full((c_out,), bias))
        self.rate = rate

    def forward(self, x_BI: torch.Tensor) -> torch.Tensor:
        gain = self.rate / self.weight.shape[1] ** 0.5
        return torch.addmm(self.bias, x_BI, self.weight.T, beta=self.rate, alpha=gain)


class MappingNetwork(nn.Module):
    """z → w: normalise to unit mean square, then so many times linear, LeakyReLU 0.2, × √2."""

    w_avg: torch.Tensor

    def __init__(self, config: StyleGAN2Config) -> None:
        super().__init__()
        for i in range(config.mapping_layers):
            c_in = config.w_dim if i else config.z_dim
            self.add_module(f"fc{i}", FullyConnected(c_in, config.w_dim, rate=_MAPPING_RATE))
        self.register_buffer("w_avg", torch.zeros(config.w_dim))

    def forward(self, z_BD: torch.Tensor, *, truncation_psi: float = 1.0) -> torch.Tensor:
        """See `Generator.mapping`. Raises UsageError when z is not [B, z_dim]."""
        layers = [layer for layer in self.children() if isinstance(layer, FullyConnected)]
        z_dim = layers[0].weight.shape[1]
        if z_BD.ndim != 2 or z_BD.shape[1] != z_dim:
            raise UsageError(f"z has shape {tuple(z_BD.shape)}; this generator takes [B, {z_dim}].")
        x = z_BD * torch.rsqrt(z_BD.square().mean(1, keepdim=True) + 1e-8)
        for layer in layers:
            x = F.leaky_relu(layer(x), 0.2) * _GAIN
        return self.w_avg.lerp(x, truncation_psi)


class SynthesisLayer(nn.Module):
    """Modulated 3×3 convolution, + noise, + bias, LeakyReLU 0.2, × √2, clamp."""

    noise_const: torch.Tensor

    def __init__(self, config: StyleGAN2Config, c_in: int, side: int, *, up: bool) -> None:
        super().__init__()
        channels = config.channels(side)
        self.up, self.clamp = up, config.conv_clamp
        self.affine = FullyConnected(config.w_dim, c_in, bias=1.0)
        self.weight = nn.Parameter(torch.randn(channels, c_in, 3, 3))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.register_buffer("noise_const", torch.randn(side, side))
        self.register_buffer("resample_filter", resample_filter())  # always this one; `modulated_conv` knows it

    def noise(self, mode: NoiseMode, batch: int, rng: torch.Generator | None) -> torch.Tensor | None:
        """What the layer adds to every channel [1 or B, 1, H, W], × √2 already."""
        if mode == "none":
            return None
        map_HW = self.noise_const
        if mode == "random":
            map_HW = torch.randn((batch, 1, *map_HW.shape), generator=rng, device=map_HW.device, dtype=map_HW.dtype)
        return (map_HW * (self.noise_strength * _GAIN)).reshape(-1, 1, *map_HW.shape[-2:])

    def forward(self, x_BCHW: torch.Tensor, w_BD: torch.Tensor, noise_B1HW: torch.Tensor | None) -> torch.Tensor:
        # LeakyReLU commutes with positive factors: √2 is in the convolution's gain, the bias and the noise.
        x = modulated_conv(x_BCHW, self.weight, self.affine(w_BD), self.bias * _GAIN, up=self.up, gain=_GAIN)
        if noise_B1HW is not None:
            x = x.add_(noise_B1HW)
        x = F.leaky_relu_(x, 0.2)
        return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)


class ToRGB(nn.Module):
    """Modulated 1×1 convolution to the picture's channels, clamp. The picture is float32 at least."""

    def __init__(self, config: StyleGAN2Config, side: int) -> None:
        super().__init__()
        channels = config.channels(side)
        self.clamp = config.conv_clamp
        self.affine = FullyConnected(config.w_dim, channels, bias=1.0)
        self.weight = nn.Parameter(torch.randn(config.img_channels, channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(config.img_channels))

    def forward(self, x_BCHW: torch.Tensor, w_BD: torch.Tensor) -> torch.Tensor:
        style_BC = self.affine(w_BD) / self.weight.shape[1] ** 0.5
        img = modulated_sum(x_BCHW, self.weight.flatten(1), style_BC, self.bias)
        return (img if self.clamp is None else img.clamp(-self.clamp, self.clamp)).to(self.weight.dtype)


class SynthesisBlock(nn.Module):
    """One side of the picture: features and picture of half the side → of this side."""

    def __init__(self, config: StyleGAN2Config, side: int) -> None:
        super().__init__()
        channels = config.channels(side)
        self.bfloat16_everywhere = False
        self.float16_on_gpu = side > max(4, config.resolution >> config.num_fp16_res)
        self.register_buffer("resample_filter", resample_filter())
        self.conv0 = None
        if side == 4:
            self.const = nn.Parameter(torch.randn(channels, 4, 4))
        else:
            self.conv0 = SynthesisLayer(config, config.channels(side // 2), side, up=True)
        self.conv1 = SynthesisLayer(config, channels, side, up=False)
        self.torgb = ToRGB(config, side)

    def noises(self, mode: NoiseMode, batch: int, rng: torch.Generator | None) -> list[torch.Tensor | None]:
        """The noise of each of its layers."""
        return [layer.noise(mode, batch, rng) for layer in (self.conv0, self.conv1) if layer is not None]

    def forward(
        self,
        x_BCHW: torch.Tensor | None,
        img_BCHW: torch.Tensor | None,
        ws_BLD: torch.Tensor,
        noises: Sequence[torch.Tensor | None],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Features and picture. `ws`: the block's own rows. The block of side 4 takes None and its constant."""
        *_, w_last_BD, w_image_BD = ws_BLD.unbind(1)
        if self.conv0 is None or x_BCHW is None:
            x = self.const.expand(len(ws_BLD), -1, -1, -1).to(self._dtype(self.const))
        else:
            x = self.conv0(x_BCHW.to(self._dtype(x_BCHW)), ws_BLD[:, 0], noises[0])
        x = self.conv1(x, w_last_BD, noises[-1])
        img = self.torgb(x, w_image_BD)
        return x, img if img_BCHW is None else img + upsample(img_BCHW)

    def _dtype(self, x: torch.Tensor) -> torch.dtype:
        if self.bfloat16_everywhere:
            return torch.bfloat16
        return torch.float16 if self.float16_on_gpu and x.is_cuda else self.conv1.weight.dtype


class SynthesisNetwork(nn.Module):
    """W+ → picture."""

    def __init__(self, config: StyleGAN2Config) -> None:
        super().__init__()
        self.config = config
        for side in config.sides():
            self.add_module(f"b{side}", SynthesisBlock(config, side))

    def blocks(self) -> Iterator[SynthesisBlock]:
        """The blocks, smallest side first."""
        return (block for block in self.children() if isinstance(block, SynthesisBlock))

    def forward(
        self,
        ws_BLD: torch.Tensor,
        *,
        resolution: int | None = None,
        noise: NoiseMode = "const",
        rng: torch.Generator | None = None,
    ) -> torch.Tensor:
        """See `Generator.synthesis`.

        `resolution`: the whole picture's, or a power of two below, to which the whole picture is area-reduced. `rng`:
        where noise="random" takes its numbers; None for torch's global ones. Raises UsageError for another size.
        """
        config = self.config
        if ws_BLD.ndim != 3 or ws_BLD.shape[1:] != (config.num_ws, config.w_dim):
            raise UsageError(
                f"The W+ code has shape {tuple(ws_BLD.shape)}; "
                f"this generator takes [B, {config.num_ws}, {config.w_dim}]."
            )
        if resolution not in (None, *config.sides()):
            raise UsageError(
                f"This generator makes pictures of {config.resolution} pixels, or smaller by a power of two and of "
                f"4 at least, not of {resolution}."
            )
        x = img = None
        for i, block in enumerate(self.blocks()):
            rows_BLD = ws_BLD[:, max(0, 2 * i - 1) : 2 * i + 2]
            noises = block.noises(noise, len(ws_BLD), rng)
            if x is not None and img is not None and _pays_in_strips(x):
                x, img = _by_strips(block, x, img, rows_BLD, noises, last=x.shape[-1] * 2 == config.resolution)
            else:
                x, img = block(x, img, rows_BLD, noises)
        assert img is not None  # noqa: S101 - for the type checker: there are two blocks at least
        return img if resolution is None else F.avg_pool2d(img, config.resolution // resolution)


def _pays_in_strips(x: torch.Tensor) -> bool:
    return eager_on_cpu(x) and not torch.is_grad_enabled() and x.shape[2] >= _STRIP_FROM


def _by_strips(
    block: SynthesisBlock,
    x_BCHW: torch.Tensor,
    img_BCHW: torch.Tensor,
    ws_BLD: torch.Tensor,
    noises: Sequence[torch.Tensor | None],
    *,
    last: bool,
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """What `block` gives for the whole, one strip of one picture at a time; no features where it is the `last`.

    A strip is computed with a few rows more on either side and then cut: there it has seen zeros for its neighbours.
    """
    batch, _, height, width = x_BCHW.shape
    x_out = None
    img_out = img_BCHW.new_empty(batch, img_BCHW.shape[1], 2 * height, 2 * width)
    for b in range(batch):
        for top in range(0, height, _STRIP):
            low, high = max(top - _HALO, 0), min(top + _STRIP + _HALO, height)
            x, img = block(
                x_BCHW[b : b + 1, :, low:high],
                img_BCHW[b : b + 1, :, low:high],
                ws_BLD[b : b + 1],
                [None if n is None else n[b % len(n)][None, :, 2 * low : 2 * high] for n in noises],
            )
            kept = slice(2 * (top - low), 2 * (top - low + _STRIP))
            img_out[b, :, 2 * top : 2 * (top + _STRIP)] = img[0, :, kept]
            if not last:
                if x_out is None:
                    x_out = x.new_empty(batch, x.shape[1], 2 * height, 2 * width)
                x_out[b, :, 2 * top : 2 * (top + _STRIP)] = x[0, :, kept]
    return x_out, img_out


class StyleGAN2(nn.Module):
    """A `Generator`. The networks are its methods: `mapping(z)` and `synthesis(ws)`."""

    w_avg: torch.Tensor = property(lambda self: self.mapping.w_avg)  # type: ignore[assignment]
    w_std: torch.Tensor

    def __init__(self, config: StyleGAN2Config) -> None:
        super().__init__()
        self.config = config
        self.num_ws, self.w_dim, self.resolution = config.num_ws, config.w_dim, config.resolution
        self.mapping = MappingNetwork(config)
        self.synthesis = SynthesisNetwork(config)
        self.register_buffer("w_std", torch.ones(config.w_dim), persistent=False)  # no checkpoint has it

    @classmethod
    def load(cls, path: str | Path) -> "StyleGAN2":
        """The frozen generator from its converted weights, its size read from the file. Raises WeightsError."""
        generator = load_described(path, kind=KIND, config=StyleGAN2Config, build=cls)
        for name, value in generator.named_buffers():
            if name.endswith("resample_filter") and not torch.allclose(value, resample_filter()):
                raise WeightsError(
                    f"{path} resamples with another filter than [1, 3, 3, 1] ({name}); StyleGAN2's own is needed."
                )
        generator.w_std = generator._std_of_w()
        return generator

    @torch.no_grad()
    def _std_of_w(self) -> torch.Tensor:
        z_BD = torch.randn(_SAMPLES, self.config.z_dim, generator=generator_for(0, 0))
        return self.mapping(z_BD).std(0)

    def codes(
        self, z_BD: torch.Tensor, *, truncation_psi: float = 1.0, truncation_rows: int | None = None
    ) -> torch.Tensor:
        """Normal z → W+ [B, L, D]: one w in every row, truncated in the first `truncation_rows` (None: in all)."""
        ws_BLD = broadcast_w(self.mapping(z_BD), self.num_ws)
        truncated_BLD = self.w_avg.lerp(ws_BLD[:, :truncation_rows], truncation_psi)
        return torch.cat([truncated_BLD, ws_BLD[:, truncated_BLD.shape[1] :]], 1)

    def half_precision(self) -> "StyleGAN2":
        """Synthesis in bfloat16, in place: weights, codes and pictures stay float32. For processors that multiply it
        natively, and for GPUs."""
        for block in self.synthesis.blocks():
            block.bfloat16_everywhere = True
        return self
