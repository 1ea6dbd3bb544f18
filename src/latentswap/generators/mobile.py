"""MobileStyleGAN (Belousov, arXiv 2104.04767): StyleGAN2-FFHQ-1024 distilled into depthwise-separable convolutions
and wavelets. The default generator.

W+ has 16 rows: row 0 styles the 4² convolution; block i (0…6, at 8²…512²) takes row 2i+1 for the wavelet upsampling
and its first convolution and row 2i+2 for the second; row 15 styles the picture. Rows 0–14 mean what StyleGAN2's
rows 0–14 mean. Demodulation is folded into the published weights, so a style only scales activations.

Beside the published path to 1024² there is a cheap one to 256²: a small trained head (`Head256`) on the features at
128². Training and optimisation run through it.
"""

import itertools
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from latentswap.errors import UsageError
from latentswap.generators.base import NoiseMode
from latentswap.weights.load import load_into

_CHANNELS = (512, 512, 512, 512, 256, 128, 64)  # of blocks 0…6, at 8²…512²
_NUM_WS = 16
_W_DIM = 512
_HEAD_BLOCK = 4  # Head256 reads this block's output: 256 channels at 128²


def inverse_haar(x_BCHW: torch.Tensor) -> torch.Tensor:
    """One level of the inverse Haar wavelet transform: [B, 4C, H, W] → [B, C, 2H, 2W].

    The first C channels are LL; the other 3C are C groups of (LH, HL, HH).
    """
    low = x_BCHW.shape[1] // 4
    ll = x_BCHW[:, :low]
    lh, hl, hh = x_BCHW[:, low:].unflatten(1, (low, 3)).unbind(2)
    upper, lower = ll + lh, ll - lh
    left, right = hl + hh, hl - hh
    quad = torch.stack([upper + left, upper - left, lower + right, lower - right], 2)
    return F.pixel_shuffle(0.5 * quad.flatten(1, 2), 2)


class Affine(nn.Module):
    """One row of W+ → a scale per channel: [B, D] → [B, C, 1, 1]."""

    def __init__(self, w_dim: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, w_dim) / w_dim**0.5)
        self.bias = nn.Parameter(torch.ones(channels))

    def forward(self, w_BD: torch.Tensor) -> torch.Tensor:
        return F.linear(w_BD, self.weight, self.bias)[:, :, None, None]


class _NoisyActivation(nn.Module):
    """+ noise, + bias, LeakyReLU 0.2. The noise map is baked in; `random` redraws it with the map's own strength."""

    noise: torch.Tensor

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.register_buffer("noise", torch.zeros(1, 1, size, size))
        self.bias = nn.Parameter(torch.zeros(channels))

    def activate(self, x_BCHW: torch.Tensor, noise: NoiseMode) -> torch.Tensor:
        shift = self.bias[None, :, None, None]
        if noise == "random":
            shift = shift + torch.randn_like(x_BCHW[:, :1]) * self.noise.std()
        elif noise == "const":
            shift = shift + self.noise
        return F.leaky_relu(x_BCHW + shift, 0.2)


class StyledConv(_NoisyActivation):
    """Full 3×3 convolution with a scale on its input."""

    def __init__(self, w_dim: int, c_in: int, c_out: int, size: int) -> None:
        super().__init__(c_out, size)
        self.affine = Affine(w_dim, c_in)
        self.weight = nn.Parameter(torch.randn(c_out, c_in, 3, 3) / (9 * c_in) ** 0.5)

    def forward(self, x_BCHW: torch.Tensor, w_BD: torch.Tensor, noise: NoiseMode) -> torch.Tensor:
        return self.activate(F.conv2d(x_BCHW * self.affine(w_BD), self.weight, padding=1), noise)


class SeparableConv(_NoisyActivation):
    """Depthwise 3×3 and pointwise convolution with a scale on their input.

    The scale commutes with the depthwise part, so it is applied to the pointwise weights: one small product per sample
    in place of a pass over the activations, forward and backward. A graph compiler prefers constant weights and fuses
    the pass away: an export sets `scale_weights = False`.
    """

    scale_weights = True

    def __init__(self, w_dim: int, c_in: int, c_out: int, size: int) -> None:
        super().__init__(c_out, size)
        self.affine = Affine(w_dim, c_in)
        self.depthwise = nn.Parameter(torch.randn(c_in, 1, 3, 3) / 3)
        self.pointwise = nn.Parameter(torch.randn(c_out, c_in, 1, 1) / c_in**0.5)

    def forward(self, x_BCHW: torch.Tensor, w_BD: torch.Tensor, noise: NoiseMode) -> torch.Tensor:
        scale_BC11 = self.affine(w_BD)
        if not self.scale_weights:
            x = F.conv2d(x_BCHW * scale_BC11, self.depthwise, padding=1, groups=self.depthwise.shape[0])
            return self.activate(F.conv2d(x, self.pointwise), noise)
        x = F.conv2d(x_BCHW, self.depthwise, padding=1, groups=self.depthwise.shape[0])
        weight_BOI = self.pointwise[None, :, :, 0, 0] * scale_BC11[:, None, :, 0, 0]
        return self.activate(torch.bmm(weight_BOI, x.flatten(2)).unflatten(2, x.shape[2:]), noise)


class _Up(nn.Module):
    """Scale, then inverse Haar: channels / 4, side × 2."""

    def __init__(self, w_dim: int, channels: int) -> None:
        super().__init__()
        self.affine = Affine(w_dim, channels)

    def forward(self, x_BCHW: torch.Tensor, w_BD: torch.Tensor) -> torch.Tensor:
        return inverse_haar(x_BCHW * self.affine(w_BD))


class _Block(nn.Module):
    def __init__(self, w_dim: int, c_in: int, c_out: int, size: int) -> None:
        super().__init__()
        self.up = _Up(w_dim, c_in)
        self.conv1 = SeparableConv(w_dim, c_in // 4, c_out, size)
        self.conv2 = SeparableConv(w_dim, c_out, c_out, size)

    def forward(self, x_BCHW: torch.Tensor, w1_BD: torch.Tensor, w2_BD: torch.Tensor, noise: NoiseMode) -> torch.Tensor:
        x = self.conv1(self.up(x_BCHW, w1_BD), w1_BD, noise)
        return self.conv2(x, w2_BD, noise)


class _ToImage(nn.Module):
    def __init__(self, w_dim: int, channels: int) -> None:
        super().__init__()
        self.affine = Affine(w_dim, channels)
        self.weight = nn.Parameter(torch.randn(12, channels, 1, 1) / channels**0.5)
        self.bias = nn.Parameter(torch.zeros(12))

    def forward(self, x_BCHW: torch.Tensor, w_BD: torch.Tensor) -> torch.Tensor:
        return inverse_haar(F.conv2d(x_BCHW * self.affine(w_BD), self.weight, self.bias))


class Synthesis(nn.Module):
    """The published synthesis network: W+ → picture."""

    def __init__(self, *, channels: tuple[int, ...] = _CHANNELS, w_dim: int = _W_DIM, base: int = 512) -> None:
        super().__init__()
        self.input = nn.Parameter(torch.randn(1, base, 4, 4))
        self.conv0 = StyledConv(w_dim, base, base, 4)
        widths = (base, *channels)
        self.blocks = nn.ModuleList(
            _Block(w_dim, c_in, c_out, 8 << i) for i, (c_in, c_out) in enumerate(itertools.pairwise(widths))
        )
        self.to_image = _ToImage(w_dim, widths[-1])

    def features(self, ws_BLD: torch.Tensor, num_blocks: int, noise: NoiseMode = "const") -> torch.Tensor:
        """Output of the first `num_blocks` blocks: [B, C, 4·2^n, 4·2^n]."""
        x = self.conv0(self.input.expand(len(ws_BLD), -1, -1, -1), ws_BLD[:, 0], noise)
        for i in range(num_blocks):
            x = self.blocks[i](x, ws_BLD[:, 2 * i + 1], ws_BLD[:, 2 * i + 2], noise)
        return x

    def forward(self, ws_BLD: torch.Tensor, noise: NoiseMode = "const") -> torch.Tensor:
        return self.to_image(self.features(ws_BLD, len(self.blocks), noise), ws_BLD[:, -1])


class Head256(nn.Module):
    """Features at 128² and rows 11–15 of W+ → the picture at 256².

    Three pointwise layers and one depthwise, trained to give the area-reduced 1024² picture (`train/head.py`). Its
    styles read rows 11–15, so that the rows which the cut-off part of the generator would use still matter.
    """

    def __init__(self, *, channels: int = 256, width: int = 64, w_dim: int = _W_DIM) -> None:
        super().__init__()
        self.affine1 = Affine(w_dim, channels)
        self.affine2 = Affine(w_dim, width)
        self.affine3 = Affine(3 * w_dim, width)
        self.conv1 = nn.Conv2d(channels, width, 1)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.conv2 = nn.Conv2d(width, width, 1)
        self.conv3 = nn.Conv2d(width, 12, 1)

    def forward(self, x_BCHW: torch.Tensor, ws_BLD: torch.Tensor) -> torch.Tensor:
        x = F.leaky_relu(self.conv1(x_BCHW * self.affine1(ws_BLD[:, 11])), 0.2)
        x = x + F.leaky_relu(self.conv2(self.depthwise(x * self.affine2(ws_BLD[:, 12]))), 0.2)
        return F.pixel_shuffle(self.conv3(x * self.affine3(ws_BLD[:, 13:16].flatten(1))), 2)


class Mapping(nn.Module):
    """z → w: normalise to unit mean square, then eight times linear, LeakyReLU 0.2, × √2."""

    def __init__(self, *, w_dim: int = _W_DIM, depth: int = 8) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(w_dim, w_dim) for _ in range(depth))

    def forward(self, z_BD: torch.Tensor) -> torch.Tensor:
        x = z_BD * torch.rsqrt(z_BD.square().mean(1, keepdim=True) + 1e-8)
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2) * 2**0.5
        return x


class MobileStyleGAN(nn.Module):
    """The default `Generator`: 16 rows × 512, 1024² (and 256² through `Head256`)."""

    num_ws = _NUM_WS
    w_dim = _W_DIM
    resolution = 1024
    w_avg: torch.Tensor
    w_std: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.mapping_network = Mapping()
        self.synthesis_network = Synthesis()
        self.head: Head256 | None = None  # weights of its own; needed for pictures of 256²
        self.register_buffer("w_avg", torch.zeros(_W_DIM))
        self.register_buffer("w_std", torch.ones(_W_DIM))

    @classmethod
    def load(cls, path: Path, head: Path | None = None) -> "MobileStyleGAN":
        """The frozen generator from its converted weights and, for 256², the head's. Raises WeightsError."""
        generator = cls()
        load_into(generator, path, kind="generator/mobilestylegan")
        if head is not None:
            generator.head = Head256()
            load_into(generator.head, head, kind="head256")
        return generator.eval().requires_grad_(False)

    def half_precision(self) -> "MobileStyleGAN":
        """Synthesis in bfloat16, in place: codes and pictures stay float32. Where a processor multiplies it natively, a
        step through the 256² path takes a third less time; pictures differ by half a grey level in the mean."""
        self.synthesis_network.bfloat16()
        if self.head is not None:
            self.head.bfloat16()
        return self

    def mapping(self, z_BD: torch.Tensor, *, truncation_psi: float = 1.0) -> torch.Tensor:
        """See `Generator.mapping`. Raises UsageError when z is not [B, 512]."""
        if z_BD.ndim != 2 or z_BD.shape[1] != self.w_dim:
            raise UsageError(f"z has shape {tuple(z_BD.shape)}; this generator takes [B, {self.w_dim}].")
        return self.w_avg + truncation_psi * (self.mapping_network(z_BD) - self.w_avg)

    def synthesis(
        self, ws_BLD: torch.Tensor, *, resolution: int | None = None, noise: NoiseMode = "const"
    ) -> torch.Tensor:
        """See `Generator.synthesis`. `resolution` is 1024 (None) or 256. Raises UsageError for anything else."""
        if ws_BLD.ndim != 3 or ws_BLD.shape[1:] != (self.num_ws, self.w_dim):
            raise UsageError(
                f"The W+ code has shape {tuple(ws_BLD.shape)}; this generator takes [B, {self.num_ws}, {self.w_dim}]."
            )
        ws_BLD = ws_BLD.to(self.synthesis_network.input.dtype)
        if resolution in (None, self.resolution):
            return _widened(self.synthesis_network(ws_BLD, noise))
        if resolution == 256:
            if self.head is None:
                raise UsageError("This generator was loaded without its 256² head; give `head` to `load`.")
            return _widened(self.head(self.synthesis_network.features(ws_BLD, _HEAD_BLOCK + 1, noise), ws_BLD))
        raise UsageError(f"This generator makes pictures of 1024 or 256 pixels, not {resolution}.")


def _widened(x: torch.Tensor) -> torch.Tensor:
    return x.float() if x.dtype == torch.bfloat16 else x
