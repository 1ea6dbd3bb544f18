"""A compact network of SimSwap's kind (Chen et al., arXiv 2106.06340): encoder, ID blocks, decoder, at 224².

As in the paper an encoder of the target's picture, an ID Injection Module (AdaIN, Huang and Belongie, arXiv 1703.06868,
from the identity embedding) and a decoder. Unlike it: depthwise-separable convolutions; the first and the last layer
fold 2 × 2 pixels into channels; two skip connections; and the decoder also says, per pixel, how much is new. What is
not comes from the target unchanged. And an embedding says who somebody is, not what they look like: the encoder also
reads a guide, the source's picture bent into the mesh that the swap should have (`shape.repose`), where it can be
trusted. The identity has the last word where it cannot.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from latentswap.errors import UsageError
from latentswap.identity.dlib_resnet import CHIP_CENTRE, DlibResNet, centred, chip
from latentswap.shape.fusion import ShapeModel, fuse
from latentswap.shape.mesh import MeshNet, crop_mesh
from latentswap.shape.repose import repose
from latentswap.shape.topology import MESH_SIZE
from latentswap.weights.described import load_described
from latentswap.weights.header import read_header
from latentswap.weights.load import half_matrices, save_tensors

KIND = "swapper/compact"
SIZE = 224  # side of what the shipped network was trained on
_FOLDED = 4 * (3 + 4)  # channels of target and guide, folded

# Where the network looks in an FFHQ-aligned crop, in crop fractions: the face with a little around it.
INNER_X, INNER_Y, INNER_SIDE = 28 / 256, 48 / 256, 200 / 256


@dataclass(frozen=True, kw_only=True)
class CompactConfig:
    """Channels at a half, a quarter and an eighth of the picture's side, ID blocks, width of the identity's layers."""

    widths: tuple[int, int, int] = (32, 128, 256)
    blocks: int = 6
    identity_dim: int = 128
    style: int = 512

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        if len(self.widths) != 3 or not all(4 <= n <= 1024 for n in self.widths):
            raise UsageError(f"Widths {self.widths} are out of range: three of 4 to 1024.")
        if not 1 <= self.blocks <= 32 or not 1 <= self.identity_dim <= 4096 or not 4 <= self.style <= 4096:
            raise UsageError(f"{self} is out of range (1–32 blocks, embeddings of 1–4096, style of 4–4096).")


class Separable(nn.Sequential):
    """Depthwise 3 × 3, pointwise, BatchNorm, ReLU."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
            nn.Conv2d(inputs, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        )


class AdaIN(nn.Module):
    """Instance normalisation, then (1 + γ) x + β, γ and β from the identity: features [B, C, H, W], style [B, S]."""

    def __init__(self, channels: int, style: int) -> None:
        super().__init__()
        self.linear = nn.Linear(style, 2 * channels)
        # Gains and shifts that differ by about one between people: with torch's small ones the identity is not heard,
        # and training stays with the target's face for a long time.
        nn.init.normal_(self.linear.weight, std=style**-0.5)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x_BCHW: torch.Tensor, style_BS: torch.Tensor) -> torch.Tensor:
        gain_BC11, shift_BC11 = self.linear(style_BS)[:, :, None, None].chunk(2, 1)
        # Means of what is there and of its square: twice as fast as torch's own variance where channels come last.
        apart_BCHW = x_BCHW - x_BCHW.mean((2, 3), keepdim=True)
        deviation_BC11 = (apart_BCHW.square().mean((2, 3), keepdim=True) + 1e-5).sqrt()
        return apart_BCHW * ((1 + gain_BC11) / deviation_BC11) + shift_BC11


class IDBlock(nn.Module):
    """The ID block of SimSwap with separable convolutions: two of them, each followed by AdaIN, around a residual."""

    def __init__(self, channels: int, style: int) -> None:
        super().__init__()
        self.depthwise = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, 1, 1, groups=channels, bias=False) for _ in range(2)
        )
        self.pointwise = nn.ModuleList(nn.Conv2d(channels, channels, 1, bias=False) for _ in range(2))
        self.adain = nn.ModuleList(AdaIN(channels, style) for _ in range(2))

    def forward(self, x_BCHW: torch.Tensor, style_BS: torch.Tensor) -> torch.Tensor:
        y_BCHW = self.adain[0](self.pointwise[0](self.depthwise[0](x_BCHW)), style_BS)
        return x_BCHW + self.adain[1](self.pointwise[1](self.depthwise[1](F.relu(y_BCHW))), style_BS)


class CompactSwap(nn.Module):
    """Target crops, guides and embeddings → swapped crops; see `forward`."""

    def __init__(self, config: CompactConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or CompactConfig()
        half, quarter, eighth = config.widths
        self.embed = nn.Sequential(
            nn.Linear(config.identity_dim, config.style), nn.ReLU(), nn.Linear(config.style, config.style), nn.ReLU()
        )
        self.stem = nn.Sequential(nn.Conv2d(_FOLDED, half, 3, 1, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU())
        self.down1 = nn.Sequential(Separable(half, quarter, stride=2), Separable(quarter, quarter))
        self.down2 = nn.Sequential(Separable(quarter, eighth, stride=2), Separable(eighth, eighth))
        self.blocks = nn.ModuleList(IDBlock(eighth, config.style) for _ in range(config.blocks))
        self.narrow2, self.narrow1 = nn.Conv2d(eighth, quarter, 1), nn.Conv2d(quarter, half, 1)
        self.up2 = nn.Sequential(Separable(2 * quarter, quarter), Separable(quarter, quarter))
        self.up1 = nn.Sequential(Separable(2 * half, half), Separable(half, half))
        self.last = nn.Conv2d(half + _FOLDED, 16, 3, 1, 1)
        for layer in self.embed:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        for value in self.last.parameters():
            nn.init.zeros_(value)

    def forward(self, img_BCHW: torch.Tensor, guide_B4HW: torch.Tensor, embedding_BE: torch.Tensor) -> torch.Tensor:
        """Swap: img [B, 3, H, W] in [-1, 1], RGB, sides multiples of 8; guide [B, 4, H, W]: the source's picture in
        [-1, 1] and how far it can be trusted, 0 to 1; embedding [B, E] of unit length. Returns [B, 3, H, W]."""
        fresh_BCHW, share_B1HW = self.layers(img_BCHW, guide_B4HW, embedding_BE)
        return torch.lerp(img_BCHW, fresh_BCHW, share_B1HW)

    def layers(
        self, img_BCHW: torch.Tensor, guide_B4HW: torch.Tensor, embedding_BE: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The new face [B, 3, H, W] in [-1, 1] and its share of every pixel [B, 1, H, W] in 0…1."""
        style_BS = self.embed(embedding_BE * self.config.identity_dim**0.5)
        trust_B1HW = guide_B4HW[:, 3:]
        seen_BCHW = torch.cat([img_BCHW, guide_B4HW[:, :3] * trust_B1HW, trust_B1HW], 1)
        folded_BCHW = F.pixel_unshuffle(seen_BCHW, 2)
        half_BCHW = self.stem(folded_BCHW)
        quarter_BCHW = self.down1(half_BCHW)
        x_BCHW = self.down2(quarter_BCHW)
        for block in self.blocks:
            x_BCHW = block(x_BCHW, style_BS)
        x_BCHW = self.up2(torch.cat([_double(self.narrow2(x_BCHW)), quarter_BCHW], 1))
        x_BCHW = self.up1(torch.cat([_double(self.narrow1(x_BCHW)), half_BCHW], 1))
        out_BCHW = F.pixel_shuffle(self.last(torch.cat([x_BCHW, folded_BCHW], 1)), 2).to(img_BCHW.dtype)
        return (img_BCHW + 2 * torch.tanh(out_BCHW[:, :3])).clamp(-1, 1), torch.sigmoid(out_BCHW[:, 3:])

    def save(self, path: Path, *, summary: Mapping[str, object]) -> None:
        """Write weights (float16 matrices) with the configuration and a training summary as metadata."""
        metadata = {"kind": KIND, "config": json.dumps(asdict(self.config)), "training": json.dumps(summary)}
        save_tensors(path, half_matrices(self), metadata)

    @classmethod
    def load(cls, path: str | Path) -> "CompactSwap":
        """The frozen network. Raises WeightsError for any other file."""
        return load_described(path, kind=KIND, config=CompactConfig, build=cls)


class Unguided(nn.Module):
    """The network where there is no guide: (targets, embeddings) → swaps, as SimSwap's own training calls it."""

    def __init__(self, network: CompactSwap) -> None:
        super().__init__()
        self.network = network

    def forward(self, img_BCHW: torch.Tensor, embedding_BE: torch.Tensor) -> torch.Tensor:
        nothing_B4HW = F.pad(torch.zeros_like(img_BCHW), (0, 0, 0, 0, 0, 1))
        return self.network(img_BCHW, nothing_B4HW, embedding_BE)

    def save(self, path: Path, *, summary: Mapping[str, object]) -> None:
        """See `CompactSwap.save`."""
        self.network.save(path, summary=summary)


def is_compact(path: str | Path) -> bool:
    """Whether a file holds such a network. Raises WeightsError for one that is no safetensors file."""
    return read_header(Path(path)).metadata.get("kind") == KIND


@torch.no_grad()
def guide_for(
    source_BCHW: torch.Tensor, source_BP3: torch.Tensor, target_BP3: torch.Tensor, model: ShapeModel
) -> torch.Tensor:
    """Source crops [B, 3, S, S] bent to the fused meshes (the source's shape, the target's pose and expression), and
    how far each pixel can be trusted: [B, 4, S, S]. Meshes [B, 468, 3] in crop fractions."""
    fused_BP3 = fuse(source_BP3.cpu(), target_BP3.cpu(), model).to(source_BP3)
    return torch.cat(repose(source_BCHW, source_BP3, fused_BP3), 1)


def inner(img_BCHW: torch.Tensor, size: int = SIZE) -> torch.Tensor:
    """The square that the network works on, out of FFHQ-aligned crops [B, 3, S, S], S a multiple of 64."""
    side = img_BCHW.shape[-1]
    x, y, length = round(side * INNER_X), round(side * INNER_Y), round(side * INNER_SIDE)
    square_BCHW = img_BCHW[:, :, y : y + length, x : x + length]
    if length == size:
        return square_BCHW
    return F.interpolate(square_BCHW, size=size, mode="bilinear", align_corners=False, antialias=length > size)


def inner_chip(img_BCHW: torch.Tensor) -> torch.Tensor:
    """`identity.dlib_resnet.chip` of what `inner` cut: [B, 3, 150, 150] in 0…255, differentiable."""
    x, y = ((c - start) / INNER_SIDE - c for c, start in zip(CHIP_CENTRE, (INNER_X, INNER_Y), strict=True))
    shift_4 = img_BCHW.new_tensor((x, y, -math.log(INNER_SIDE), 0.0))
    return chip(img_BCHW, shift_4.expand(len(img_BCHW), -1))


@dataclass(frozen=True, kw_only=True, eq=False)
class InnerDlib:
    """The shipped identity network on what `inner` cut, as an `identity.base.IdentityNetwork`."""

    network: DlibResNet
    mean_E: torch.Tensor

    embedding_dim = DlibResNet.embedding_dim

    def embed(self, img_BCHW: torch.Tensor) -> torch.Tensor:
        """Squares [B, 3, S, S] in [-1, 1] → embeddings [B, 128], centred, of unit length."""
        return centred(self.network(inner_chip(img_BCHW)), self.mean_E)


def inner_mesh(net: MeshNet, img_BCHW: torch.Tensor) -> torch.Tensor:
    """`shape.mesh.crop_mesh` of what `inner` cut: [B, 468, 3] in fractions of the whole crop, differentiable."""
    left, top, side = (round(MESH_SIZE * part) for part in (INNER_X, INNER_Y, INNER_SIDE))
    small_BCHW = F.interpolate(img_BCHW, size=side, mode="bilinear", align_corners=False, antialias=True)
    around = (left, MESH_SIZE - side - left, top, MESH_SIZE - side - top)
    return crop_mesh(net, F.pad(small_BCHW, around, mode="replicate"))


def _double(x_BCHW: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x_BCHW, scale_factor=2.0, mode="bilinear", align_corners=False)
