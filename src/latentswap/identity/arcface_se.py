"""SimSwap's identity network: ArcFace (Deng et al., arXiv 1801.07698) on an SE-LResNet101E-IR, as published.

Residual units with normalisation first, squeeze and excitation, and a PReLU of one parameter that each unit uses twice.
It was trained on 112² chips, but SimSwap gives it whole crops of its generator's alignment, shrunk to 112² by taking
the nearest pixel: weights published for it need exactly that (`embed_aligned`).
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from latentswap.errors import UsageError
from latentswap.identity.arcface import CHIP_SIZE, WIDTHS, check_units, similarity_chip
from latentswap.identity.imagenet import normalised
from latentswap.weights.described import load_described

KIND = "identity/arcface-se"
UNITS = (3, 4, 23, 3)
_SE_REDUCTION = 16
_FINAL = 7  # side of the last stage's maps


@dataclass(frozen=True, kw_only=True)
class ArcFaceSEConfig:
    """Residual units and channels of the four stages, and the width of the embedding."""

    units: tuple[int, ...] = UNITS
    widths: tuple[int, ...] = WIDTHS
    embedding_dim: int = 512

    def __post_init__(self) -> None:
        object.__setattr__(self, "units", tuple(self.units))  # JSON knows lists only
        object.__setattr__(self, "widths", tuple(self.widths))
        check_units(self.units, self.widths)
        if not (type(self.embedding_dim) is int and 1 <= self.embedding_dim <= 4096):
            raise UsageError(f"embedding_dim is {self.embedding_dim}; it runs from 1 to 4096.")


class _SqueezeExcite(nn.Module):
    """Scales every channel by a number in 0…1 that follows from the means of all."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        reduced = channels // _SE_REDUCTION
        self.fc = nn.Sequential(nn.Linear(channels, reduced), nn.PReLU(), nn.Linear(reduced, channels), nn.Sigmoid())

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return x_BCHW * self.fc(x_BCHW.mean((2, 3)))[:, :, None, None]


class _IRBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.bn0 = nn.BatchNorm2d(c_in)
        self.conv1 = nn.Conv2d(c_in, c_in, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_in)
        self.prelu = nn.PReLU()
        self.conv2 = nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.se = _SqueezeExcite(c_out)
        self.downsample = None
        if stride != 1 or c_in != c_out:
            convolution = nn.Conv2d(c_in, c_out, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(convolution, nn.BatchNorm2d(c_out))

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        y_BCHW = self.prelu(self.bn1(self.conv1(self.bn0(x_BCHW))))
        y_BCHW = self.se(self.bn2(self.conv2(y_BCHW)))
        return self.prelu(y_BCHW + (x_BCHW if self.downsample is None else self.downsample(x_BCHW)))


class ArcFaceSE(nn.Module):
    """Chips [B, 3, 112, 112], RGB in [-1, 1] → embeddings [B, E] of unit length.

    The network itself reads RGB normalised by ImageNet's mean and deviation. The tensors have the published names.
    """

    def __init__(self, config: ArcFaceSEConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ArcFaceSEConfig()
        self.embedding_dim = config.embedding_dim
        first, last = config.widths[0], config.widths[-1]
        self.conv1 = nn.Conv2d(3, first, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.prelu = nn.PReLU()
        stages, c_in = [], first
        for number, (count, c_out) in enumerate(zip(config.units, config.widths, strict=True)):
            strides = [2 if number else 1] + [1] * (count - 1)
            stages.append(nn.Sequential(*[_IRBlock(c_out if i else c_in, c_out, s) for i, s in enumerate(strides)]))
            c_in = c_out
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.bn2 = nn.BatchNorm2d(last)
        self.fc = nn.Linear(last * _FINAL**2, config.embedding_dim)
        self.bn3 = nn.BatchNorm1d(config.embedding_dim)

    @classmethod
    def load(cls, path: str | Path) -> "ArcFaceSE":
        """The frozen network from its converted weights. Raises WeightsError."""
        return load_described(path, kind=KIND, config=ArcFaceSEConfig, build=cls)

    def forward(self, chip_BCHW: torch.Tensor) -> torch.Tensor:
        if chip_BCHW.shape[1:] != (3, CHIP_SIZE, CHIP_SIZE):
            raise UsageError(f"A chip has shape [B, 3, {CHIP_SIZE}, {CHIP_SIZE}], not {tuple(chip_BCHW.shape)}.")
        x_BCHW = self.prelu(self.bn1(self.conv1(normalised((chip_BCHW + 1) / 2))))
        x_BCHW = self.layer4(self.layer3(self.layer2(self.layer1(F.max_pool2d(x_BCHW, 2)))))
        return F.normalize(self.bn3(self.fc(self.bn2(x_BCHW).flatten(1))), dim=-1)

    def embed(self, img_BCHW: torch.Tensor) -> torch.Tensor:
        """See `identity.base.IdentityNetwork`: the chip is insightface's, out of an FFHQ-aligned crop."""
        return self(similarity_chip(img_BCHW))

    def embed_aligned(self, img_BCHW: torch.Tensor) -> torch.Tensor:
        """Crops [B, 3, S, S] in SimSwap's alignment → embeddings [B, E]: of the nearest pixels, as in its scripts."""
        return self(F.interpolate(img_BCHW, size=CHIP_SIZE, mode="nearest"))
