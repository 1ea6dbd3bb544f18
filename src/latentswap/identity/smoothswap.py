"""The identity embedder of Smooth-Swap (Kim et al., CVPR 2022), with which LatentSwap's published mixer was trained.

A ResNet-50 and a head, trained by supervised contrast so that its space is smooth. It sees the whole crop, without
any alignment of its own.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from latentswap.errors import UsageError
from latentswap.identity.resnet import RESNET50_UNITS, ResNet, check_resnet
from latentswap.weights.described import load_described

KIND = "identity/smoothswap"
SIZE = 256


@dataclass(frozen=True, kw_only=True)
class SmoothSwapConfig:
    """Size of the network, the published one by default."""

    units: tuple[int, ...] = RESNET50_UNITS  # blocks of the ResNet's four stages
    width: int = 64  # channels of the first stage's inner convolutions; each stage doubles them
    classes: int = 2048  # outputs of the ResNet's last layer
    hidden: int = 1024
    embedding_dim: int = 512

    def __post_init__(self) -> None:
        object.__setattr__(self, "units", tuple(self.units))  # JSON knows lists only
        check_resnet(self.units, self.width)
        for name in ("classes", "hidden", "embedding_dim"):
            if not 1 <= getattr(self, name) <= 8192:
                raise UsageError(f"{name} is {getattr(self, name)}; it runs from 1 to 8192.")


class SmoothSwapEmbedder(nn.Module):
    """Crops [B, 3, 256, 256], RGB in 0…1 → embeddings [B, E] of unit length. State: the published names less `net.`."""

    def __init__(self, config: SmoothSwapConfig) -> None:
        super().__init__()
        self.config, self.embedding_dim = config, config.embedding_dim
        self.resnet = ResNet(config.units, config.width, config.classes)
        self.last = nn.Sequential(
            nn.Linear(config.classes, config.hidden),
            nn.BatchNorm1d(config.hidden),
            nn.LeakyReLU(),
            nn.Linear(config.hidden, config.embedding_dim),
            nn.BatchNorm1d(config.embedding_dim),
        )

    @classmethod
    def load(cls, path: str | Path) -> "SmoothSwapEmbedder":
        """The frozen network from its converted weights. Raises WeightsError."""
        return load_described(path, kind=KIND, config=SmoothSwapConfig, build=cls)

    def forward(self, crop_BCHW: torch.Tensor) -> torch.Tensor:
        if crop_BCHW.shape[1:] != (3, SIZE, SIZE):
            raise UsageError(f"A crop has shape [B, 3, {SIZE}, {SIZE}], not {tuple(crop_BCHW.shape)}.")
        return F.normalize(self.last(self.resnet(crop_BCHW)), dim=-1)

    def embed(self, img_BCHW: torch.Tensor) -> torch.Tensor:
        """See `identity.base.IdentityNetwork`. Resized bilinearly without averaging, as in the mixer's training."""
        if img_BCHW.shape[-1] != SIZE:
            img_BCHW = F.interpolate(img_BCHW, size=SIZE, mode="bilinear", align_corners=False)
        return self((img_BCHW + 1) / 2)
