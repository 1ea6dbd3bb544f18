"""ArcFace (Deng et al., arXiv 1801.07698): the two published families of identity networks, differentiable.

`ir_se50` (TreB1eN's model_ir_se50, the identity loss of pSp and e4e) and `iresnet` (insightface's iresnet50 and 100).
Both take 112² and give 512 numbers. From an FFHQ-aligned crop no detection is needed: each family's chip is a fixed
window or a fixed similarity of it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import nn

from latentswap.errors import UsageError
from latentswap.identity.base import at_most_256, square_chip
from latentswap.weights.described import load_described

KIND = "identity/arcface"
CHIP_SIZE = 112
Family = Literal["ir_se50", "iresnet"]
IR_SE50_UNITS = (3, 4, 14, 3)
WIDTHS = (64, 128, 256, 512)
_SE_REDUCTION = 16

# Where the five-point template of insightface's chips lies in an FFHQ-aligned crop, in crop fractions: the similarity
# that takes the mean five points of such crops to it. It turns by 0.01°, which is left out.
CHIP_CENTRE = (0.4977, 0.4905)
CHIP_SIDE = 0.7490
# The rows and columns of a 256² crop that are pooled to IR-SE50's chip.
_WINDOW = (slice(35, 223), slice(32, 220))


def check_units(units: tuple[int, ...], widths: tuple[int, ...]) -> None:
    """Refuse stages of a residual network that are none, or larger than any published. Raises UsageError."""
    if not (len(units) == len(widths) == 4 and all(type(n) is int and 1 <= n <= 64 for n in units)):
        raise UsageError(f"{list(units)} blocks in stages of the widths {list(widths)}: four of each are expected.")
    if not all(type(n) is int and _SE_REDUCTION <= n <= 2048 and n % _SE_REDUCTION == 0 for n in widths):
        raise UsageError(f"The widths {list(widths)} are not multiples of {_SE_REDUCTION} up to 2048.")


@dataclass(frozen=True, kw_only=True)
class ArcFaceConfig:
    """Which network: `ir_se50`, or `iresnet` of (3, 4, 14, 3) units (iresnet50) or (3, 13, 30, 3) (iresnet100)."""

    family: Family = "ir_se50"
    units: tuple[int, ...] = IR_SE50_UNITS  # residual units of the four stages
    widths: tuple[int, ...] = WIDTHS  # channels of the four stages
    embedding_dim: int = 512

    def __post_init__(self) -> None:
        if self.family not in get_args(Family):
            raise UsageError(f"family is {self.family!r}; it must be one of {', '.join(get_args(Family))}.")
        object.__setattr__(self, "units", tuple(self.units))  # JSON knows lists only
        object.__setattr__(self, "widths", tuple(self.widths))
        check_units(self.units, self.widths)
        if not 1 <= self.embedding_dim <= 4096:
            raise UsageError(f"embedding_dim is {self.embedding_dim}; it runs from 1 to 4096.")


class _SqueezeExcite(nn.Module):
    """Scales every channel by a number in 0…1 that follows from the means of all."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // _SE_REDUCTION, 1, bias=False)
        self.fc2 = nn.Conv2d(channels // _SE_REDUCTION, channels, 1, bias=False)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        means = x_BCHW.mean((2, 3), keepdim=True)
        return x_BCHW * self.fc2(F.relu(self.fc1(means))).sigmoid()


class _IRSEUnit(nn.Module):
    """Residual unit of IR-SE50: normalisation first, PReLU inside, squeeze and excitation last."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(c_in),
            nn.Conv2d(c_in, c_out, 3, padding=1, bias=False),
            nn.PReLU(c_out),
            nn.Conv2d(c_out, c_out, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(c_out),
            _SqueezeExcite(c_out),
        )
        if c_in == c_out:
            self.shortcut_layer: nn.Module = nn.MaxPool2d(1, stride)
        else:
            convolution = nn.Conv2d(c_in, c_out, 1, stride=stride, bias=False)
            self.shortcut_layer = nn.Sequential(convolution, nn.BatchNorm2d(c_out))

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return self.res_layer(x_BCHW) + self.shortcut_layer(x_BCHW)


def ir_se_stem(channels: int, widths: tuple[int, ...]) -> nn.Sequential:
    """`input_layer` of the published networks: [B, channels, H, W] → [B, widths[0], H, W]."""
    convolution = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(widths[0]), nn.PReLU(widths[0]))


def ir_se_body(units: tuple[int, ...], widths: tuple[int, ...]) -> nn.Sequential:
    """`body` of the published networks: residual units in one row; the first of each stage halves the side."""
    body, c_in = [], widths[0]
    for count, c_out in zip(units, widths, strict=True):
        for i in range(count):
            body.append(_IRSEUnit(c_in, c_out, stride=1 if i else 2))
            c_in = c_out
    return nn.Sequential(*body)


class IRSE50(nn.Module):
    """Chips [B, 3, 112, 112], RGB in [-1, 1] → embeddings [B, E] of unit length."""

    def __init__(self, config: ArcFaceConfig) -> None:
        super().__init__()
        self.config, self.embedding_dim = config, config.embedding_dim
        last = config.widths[-1]
        self.input_layer = ir_se_stem(3, config.widths)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(last),
            nn.Dropout(0.4),
            nn.Flatten(),
            nn.Linear(last * (CHIP_SIZE // 16) ** 2, config.embedding_dim),
            nn.BatchNorm1d(config.embedding_dim),
        )
        self.body = ir_se_body(config.units, config.widths)

    def forward(self, chip_BCHW: torch.Tensor) -> torch.Tensor:
        _check_chip(chip_BCHW)
        return F.normalize(self.output_layer(self.body(self.input_layer(chip_BCHW))), dim=-1)

    def embed(self, img_BCHW: torch.Tensor) -> torch.Tensor:
        """See `identity.base.IdentityNetwork`."""
        return self(window_chip(img_BCHW))


class _IBasicBlock(nn.Module):
    """Residual unit of iresnet: normalisation before, between and after two convolutions."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.prelu = nn.PReLU(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(c_out)
        self.downsample = None
        if stride != 1 or c_in != c_out:
            convolution = nn.Conv2d(c_in, c_out, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(convolution, nn.BatchNorm2d(c_out))

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        y = self.conv1(self.bn1(x_BCHW))
        y = self.bn3(self.conv2(self.prelu(self.bn2(y))))
        return y + (x_BCHW if self.downsample is None else self.downsample(x_BCHW))


class IResNet(nn.Module):
    """Chips [B, 3, 112, 112], RGB in [-1, 1] → embeddings [B, E] of unit length."""

    def __init__(self, config: ArcFaceConfig) -> None:
        super().__init__()
        self.config, self.embedding_dim = config, config.embedding_dim
        first, last = config.widths[0], config.widths[-1]
        self.conv1 = nn.Conv2d(3, first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.prelu = nn.PReLU(first)
        stages, c_in = [], first
        for count, c_out in zip(config.units, config.widths, strict=True):
            stages.append(
                nn.Sequential(*[_IBasicBlock(c_out if i else c_in, c_out, 1 if i else 2) for i in range(count)])
            )
            c_in = c_out
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.bn2 = nn.BatchNorm2d(last)
        self.fc = nn.Linear(last * (CHIP_SIZE // 16) ** 2, config.embedding_dim)
        self.features = nn.BatchNorm1d(config.embedding_dim)

    def forward(self, chip_BCHW: torch.Tensor) -> torch.Tensor:
        _check_chip(chip_BCHW)
        x = self.prelu(self.bn1(self.conv1(chip_BCHW)))
        x = self.bn2(self.layer4(self.layer3(self.layer2(self.layer1(x)))))
        return F.normalize(self.features(self.fc(x.flatten(1))), dim=-1)

    def embed(self, img_BCHW: torch.Tensor) -> torch.Tensor:
        """See `identity.base.IdentityNetwork`."""
        return self(similarity_chip(img_BCHW))


def build_arcface(config: ArcFaceConfig) -> IRSE50 | IResNet:
    """The network of a configuration, untrained."""
    return IRSE50(config) if config.family == "ir_se50" else IResNet(config)


def load_arcface(path: str | Path) -> IRSE50 | IResNet:
    """The frozen network from its converted weights. Raises WeightsError."""
    return load_described(path, kind=KIND, config=ArcFaceConfig, build=build_arcface)


def window_chip(img_BCHW: torch.Tensor) -> torch.Tensor:
    """IR-SE50's chip as pSp and e4e cut it: a window of the crop at 256², pooled. [B, C, S, S] → [B, C, 112, 112]."""
    if img_BCHW.shape[-1] < 256:
        img_BCHW = F.interpolate(img_BCHW, size=256, mode="bilinear", align_corners=False)
    return F.adaptive_avg_pool2d(at_most_256(img_BCHW)[:, :, *_WINDOW], CHIP_SIZE)


def similarity_chip(img_BCHW: torch.Tensor) -> torch.Tensor:
    """insightface's chip, eyes, nose and mouth on its template: [B, C, S, S] → [B, C, 112, 112]."""
    return square_chip(img_BCHW, centre=CHIP_CENTRE, side=CHIP_SIDE, size=CHIP_SIZE)


def _check_chip(chip_BCHW: torch.Tensor) -> None:
    if chip_BCHW.shape[1:] != (3, CHIP_SIZE, CHIP_SIZE):
        raise UsageError(f"A chip has shape [B, 3, {CHIP_SIZE}, {CHIP_SIZE}], not {tuple(chip_BCHW.shape)}.")
