"""SimSwap's discriminator (Chen et al., arXiv 2106.06340), as published: two PatchGANs, one at half the size.

PatchGAN: Isola et al., arXiv 1611.07004; at several scales, with its features for matching: Wang et al., arXiv
1711.11585. One scale has 6,962,369 parameters and is a file of its own (latest_net_D1.pth, latest_net_D2.pth).
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from latentswap.errors import UsageError
from latentswap.weights.described import load_described

KIND = "discriminator/patchgan"
LAYERS = 6  # outputs of one scale; the last are the logits


@dataclass(frozen=True, kw_only=True)
class PatchGANConfig:
    """`width`: channels after the first convolution; they double up to eight times as many."""

    width: int = 64

    def __post_init__(self) -> None:
        if type(self.width) is not int or not 1 <= self.width <= 256:
            raise UsageError(f"width is {self.width}; it runs from 1 to 256.")


def _block(c_in: int, c_out: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(c_in, c_out, 4, stride=stride, padding=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(c_out), nn.LeakyReLU(0.2))


class PatchGAN(nn.Module):
    """One scale: crops [B, 3, H, W] in [-1, 1] → six maps, the last of them the logits [B, 1, h, w].

    As published the network itself reads [0, 1]. The tensors have the published names.
    """

    def __init__(self, config: PatchGANConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or PatchGANConfig()
        width = config.width
        self.down1 = nn.Sequential(nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2))
        self.down2 = _block(width, 2 * width, 2)
        self.down3 = _block(2 * width, 4 * width, 2)
        self.down4 = _block(4 * width, 8 * width, 2)
        self.conv1 = _block(8 * width, 8 * width, 1)
        self.conv2 = nn.Sequential(nn.Conv2d(8 * width, 1, 4, padding=1))

    @classmethod
    def load(cls, path: str | Path) -> "PatchGAN":
        """The frozen network from its converted weights. Raises WeightsError."""
        return load_described(path, kind=KIND, config=PatchGANConfig, build=cls)

    def forward(self, img_BCHW: torch.Tensor) -> list[torch.Tensor]:
        x_BCHW, maps = (img_BCHW + 1) / 2, []
        for layer in (self.down1, self.down2, self.down3, self.down4, self.conv1, self.conv2):
            x_BCHW = layer(x_BCHW)
            maps.append(x_BCHW)
        return maps


class TwoScales(nn.Module):
    """Both scales: crops [B, 3, H, W] in [-1, 1], sides of at least 64 → the six maps of each."""

    def __init__(self, config: PatchGANConfig | None = None) -> None:
        super().__init__()
        self.D1, self.D2 = PatchGAN(config), PatchGAN(config)

    def forward(self, img_BCHW: torch.Tensor) -> list[list[torch.Tensor]]:
        half_BCHW = F.avg_pool2d(img_BCHW, 3, stride=2, padding=1, count_include_pad=False)
        return [self.D1(img_BCHW), self.D2(half_BCHW)]
