"""MobileFaceNet (Chen et al., CCBR 2018): a small identity network, 112×96 pixels → 128 numbers.

The layout, down to the tensors' names, is the one of the widely used PyTorch weights (99.5 % on LFW). Batch norms are
frozen, so the file holds no counters of batches.
"""

import torch
import torch.nn.functional as F
from torch import nn

KIND = "identity/mobilefacenet"
HEIGHT, WIDTH = 112, 96
_STAGES = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))
# expansion, channels, blocks, stride of the first


class FrozenNorm(nn.Module):
    """Batch normalisation with fixed statistics."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        mean, var, weight, bias = map(self.get_buffer, ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x_BCHW, mean, var, weight, bias)


class _Block(nn.Module):
    """Convolution, norm and, unless linear, PReLU."""

    def __init__(
        self,
        width: int,
        channels: int,
        kernel: tuple[int, int],
        *,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        linear: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, channels, kernel, stride, padding, groups=groups, bias=False)
        self.bn = FrozenNorm(channels)
        self.prelu = nn.Identity() if linear else nn.PReLU(channels)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return self.prelu(self.bn(self.conv(x_BCHW)))


class _Bottleneck(nn.Module):
    """Widen, convolve each channel by itself, narrow without an activation; with a shortcut where shapes agree."""

    def __init__(self, width: int, channels: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        wide = width * expansion
        self.shortcut = stride == 1 and width == channels
        self.conv = nn.Sequential(
            nn.Conv2d(width, wide, 1, bias=False),
            FrozenNorm(wide),
            nn.PReLU(wide),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False),
            FrozenNorm(wide),
            nn.PReLU(wide),
            nn.Conv2d(wide, channels, 1, bias=False),
            FrozenNorm(channels),
        )

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        y_BCHW = self.conv(x_BCHW)
        return x_BCHW + y_BCHW if self.shortcut else y_BCHW


class MobileFaceNet(nn.Module):
    """RGB [B, 3, 112, 96], (value - 127.5) / 128 → embeddings [B, 128], not of unit length."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = _Block(3, 64, (3, 3), stride=2, padding=1)
        self.dw_conv1 = _Block(64, 64, (3, 3), padding=1, groups=64)
        blocks, width = [], 64
        for expansion, channels, count, stride in _STAGES:
            for i in range(count):
                blocks.append(_Bottleneck(width, channels, stride=1 if i else stride, expansion=expansion))
                width = channels
        self.blocks = nn.Sequential(*blocks)
        self.conv2 = _Block(width, 512, (1, 1))
        self.linear7 = _Block(512, 512, (7, 6), groups=512, linear=True)
        self.linear1 = _Block(512, 128, (1, 1), linear=True)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        x_BCHW = self.blocks(self.dw_conv1(self.conv1(x_BCHW)))
        return self.linear1(self.linear7(self.conv2(x_BCHW))).flatten(1)
