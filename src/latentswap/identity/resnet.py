"""The plain ResNet with bottleneck blocks (He et al., arXiv 1512.03385), under the parameter names that are customary.

Trunk of Smooth-Swap's identity embedder and of Deep3DFaceRecon's regressor. The stride of a block is in its 3×3
convolution.
"""

import torch
import torch.nn.functional as F
from torch import nn

from latentswap.errors import UsageError

RESNET50_UNITS = (3, 4, 6, 3)
_EXPANSION = 4  # outputs of a block, in widths of its inner convolutions


def check_resnet(units: tuple[int, ...], width: int) -> None:
    """Refuse what is no ResNet, or larger than any published. Raises UsageError."""
    if not (len(units) == 4 and all(type(n) is int and 1 <= n <= 64 for n in units)):
        raise UsageError(f"A ResNet of {list(units)} blocks: four stages of 1 to 64 are expected.")
    if not 1 <= width <= 256:
        raise UsageError(f"A ResNet of width {width} is out of range (1 to 256).")


class _Bottleneck(nn.Module):
    def __init__(self, c_in: int, width: int, stride: int) -> None:
        super().__init__()
        c_out = width * _EXPANSION
        self.conv1 = nn.Conv2d(c_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, c_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(c_out)
        self.downsample = None
        if stride != 1 or c_in != c_out:
            self.downsample = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride=stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x_BCHW)))
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        return F.relu(y + (x_BCHW if self.downsample is None else self.downsample(x_BCHW)))


class ResNet(nn.Module):
    """Pictures [B, 3, H, W] → features [B, features], or `fc` of them, [B, classes]."""

    def __init__(self, units: tuple[int, ...], width: int, classes: int | None = None) -> None:
        super().__init__()
        check_resnet(units, width)
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        stages, c_in = [], width
        for number, count in enumerate(units):
            inner, blocks = width << number, []
            for i in range(count):
                blocks.append(_Bottleneck(c_in, inner, stride=2 if number and not i else 1))
                c_in = inner * _EXPANSION
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.features = c_in
        self.fc = None if classes is None else nn.Linear(c_in, classes)

    def forward(self, img_BCHW: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(img_BCHW))), 3, stride=2, padding=1)
        x_BF = self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean((2, 3))
        return x_BF if self.fc is None else self.fc(x_BF)
