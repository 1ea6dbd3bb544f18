"""The projected discriminator (Sauer et al., arXiv 2111.01007) of SimSwap's training script of 2022.

A frozen classifier (EfficientNet-lite0) gives features at four depths; frozen random 1 × 1 convolutions mix their
channels (CCM) and, from the deepest up, their scales (CSM); four small heads judge what comes out. Another draw of the
random part is another discriminator, so it is kept in the file with the rest.

The classifier's weights are not shipped: `ProjectedDiscriminator.start` takes them from a converted file of the user's.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from latentswap.errors import UsageError
from latentswap.identity.imagenet import normalised
from latentswap.weights.described import load_described

KIND = "discriminator/projected"
BACKBONE_KIND = "backbone/efficientnet-lite0"
LAYERS = 5  # outputs: features at four depths, and the logits

# EfficientNet-lite0's stages: units, kernel, stride, expansion, channels; and which of them end at each depth.
_STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
           (1, 3, 1, 6, 320))  # fmt: skip
_DEPTHS = ((0, 2), (2, 3), (3, 5), (5, 7))
_FEATURES = (24, 40, 112, 320)
_STEM = 32
_SMALLEST = 8  # nominal side at which a head stops halving, of pictures of 256²


@dataclass(frozen=True, kw_only=True)
class ProjectedConfig:
    """`width`: channels of the shallowest mixed features, 64 as published; the others are multiples of it."""

    width: int = 64

    def __post_init__(self) -> None:
        if type(self.width) is not int or not 1 <= self.width <= 256:
            raise UsageError(f"width is {self.width}; it runs from 1 to 256.")


class _SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow pads: the odd pixel to the right and below."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        pads = []
        for side, kernel, stride in zip(input.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(input, pads), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class _Depthwise(nn.Module):
    """EfficientNet's first unit: depthwise, then pointwise."""

    def __init__(self, c_in: int, c_out: int, kernel: int) -> None:
        super().__init__()
        self.conv_dw = _SameConv(c_in, c_in, kernel, groups=c_in, bias=False)
        self.bn1 = _norm(c_in)
        self.conv_pw = nn.Conv2d(c_in, c_out, 1, bias=False)
        self.bn2 = _norm(c_out)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return self.bn2(self.conv_pw(F.relu6(self.bn1(self.conv_dw(x_BCHW)))))


class _Inverted(nn.Module):
    """EfficientNet's other units: pointwise to more channels, depthwise, pointwise back; residual where it can be."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = c_in * expansion
        self.conv_pw = nn.Conv2d(c_in, inner, 1, bias=False)
        self.bn1 = _norm(inner)
        self.conv_dw = _SameConv(inner, inner, kernel, stride=stride, groups=inner, bias=False)
        self.bn2 = _norm(inner)
        self.conv_pwl = nn.Conv2d(inner, c_out, 1, bias=False)
        self.bn3 = _norm(c_out)
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        y_BCHW = F.relu6(self.bn1(self.conv_pw(x_BCHW)))
        y_BCHW = self.bn3(self.conv_pwl(F.relu6(self.bn2(self.conv_dw(y_BCHW)))))
        return x_BCHW + y_BCHW if self.residual else y_BCHW


def _stages() -> list[nn.Sequential]:
    stages, c_in = [], _STEM
    for count, kernel, stride, expansion, c_out in _STAGES:
        units: list[nn.Module] = []
        for i in range(count):
            first = expansion == 1
            step = 1 if i else stride
            units.append(_Depthwise(c_in, c_out, kernel) if first else _Inverted(c_in, c_out, kernel, step, expansion))
            c_in = c_out
        stages.append(nn.Sequential(*units))
    return stages


class EfficientNetLite0(nn.Module):
    """EfficientNet-lite0 up to its last unit: features of 24, 40, 112 and 320 channels at 1/4, 1/8, 1/16, 1/32."""

    def __init__(self) -> None:
        super().__init__()
        stages = _stages()
        stem = [_SameConv(3, _STEM, 3, stride=2, bias=False), _norm(_STEM), nn.ReLU6()]
        for depth, (start, end) in enumerate(_DEPTHS):
            setattr(self, f"layer{depth}", nn.Sequential(*(stem if depth == 0 else []), *stages[start:end]))

    def forward(self, x_BCHW: torch.Tensor) -> list[torch.Tensor]:
        features = []
        for depth in range(len(_DEPTHS)):
            x_BCHW = self.get_submodule(f"layer{depth}")(x_BCHW)
            features.append(x_BCHW)
        return features


class _Fusion(nn.Module):
    """One step of CSM: add what comes from below, double the side, mix the channels."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x_BCHW: torch.Tensor, below_BCHW: torch.Tensor | None) -> torch.Tensor:
        x_BCHW = x_BCHW if below_BCHW is None else x_BCHW + below_BCHW
        return self.out_conv(F.interpolate(x_BCHW, scale_factor=2.0, mode="bilinear", align_corners=True))


class _Projector(nn.Module):
    """Pictures in ImageNet's space → the classifier's four features, and the four mixed ones, shallowest first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pretrained = EfficientNetLite0()
        self.scratch = nn.Module()
        for depth, channels in enumerate(_FEATURES):
            mixed = width << depth
            setattr(self.scratch, f"layer{depth}_ccm", nn.Conv2d(channels, mixed, 1))
            setattr(self.scratch, f"layer{depth}_csm", _Fusion(mixed, mixed // 2 if depth else width))

    def forward(self, x_BCHW: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        features, mixed, below = self.pretrained(x_BCHW), [], None
        for depth in reversed(range(len(features))):
            own = self.scratch.get_submodule(f"layer{depth}_ccm")(features[depth])
            below = self.scratch.get_submodule(f"layer{depth}_csm")(own, below)
            mixed.append(below)
        return features, mixed[::-1]


class _Down(nn.Module):
    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        convolution = nn.utils.spectral_norm(nn.Conv2d(c_in, c_out, 4, stride=2, padding=1))
        self.main = nn.Sequential(convolution, nn.BatchNorm2d(c_out), nn.LeakyReLU(0.2))

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return self.main(x_BCHW)


class _Head(nn.Module):
    """Features of a nominal side → logits: halved to 8, then one 4 × 4 convolution."""

    def __init__(self, c_in: int, side: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        while side > _SMALLEST:
            side //= 2
            c_out = 8 * width * _SMALLEST // side
            layers.append(_Down(c_in, c_out))
            c_in = c_out
        self.main = nn.Sequential(*layers, nn.utils.spectral_norm(nn.Conv2d(c_in, 1, 4, bias=False)))

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return self.main(x_BCHW)


class ProjectedDiscriminator(nn.Module):
    """Crops [B, 3, H, W] in [-1, 1], sides multiples of 32 from 128 on → `[[layer0, …, layer3, logits [B, N]]]`.

    One list, as of a discriminator of one scale (`losses_simswap.Maps`): the classifier's features, which weak feature
    matching compares, and the logits of all heads, 64 a picture at 224². The tensors have the published names.
    """

    def __init__(self, config: ProjectedConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ProjectedConfig()
        width = config.width
        self.feature_network = _Projector(width).requires_grad_(False)
        heads = [_Head(max(width, (width << depth) // 2), 128 >> depth, width) for depth in range(4)]
        self.discriminator = nn.Module()
        self.discriminator.mini_discs = nn.ModuleDict({str(i): head for i, head in enumerate(heads)})

    @classmethod
    def load(cls, path: str | Path) -> "ProjectedDiscriminator":
        """The network from its converted weights; the heads can be trained. Raises WeightsError."""
        network = load_described(path, kind=KIND, config=ProjectedConfig, build=cls)
        network.discriminator.requires_grad_(True)
        return network

    @classmethod
    def start(
        cls, backbone: str | Path, *, seed: int, config: ProjectedConfig | None = None
    ) -> "ProjectedDiscriminator":
        """A new one, to be trained: its random parts follow from the seed, the classifier comes from a converted file.

        Raises WeightsError for any other file.
        """
        trunk = load_described(backbone, kind=BACKBONE_KIND, config=dict, build=lambda _: EfficientNetLite0())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = cls(config)
        network.feature_network.pretrained.load_state_dict(trunk.state_dict())
        return network

    def train(self, mode: bool = True) -> "ProjectedDiscriminator":
        """The classifier stays in evaluation: its statistics are part of what is frozen."""
        super().train(mode)
        self.feature_network.eval()
        return self

    def forward(self, img_BCHW: torch.Tensor) -> list[list[torch.Tensor]]:
        features, mixed = self.feature_network(normalised((img_BCHW + 1) / 2))
        heads = self.discriminator.get_submodule("mini_discs").children()
        logits = [head(x_BCHW).flatten(1) for head, x_BCHW in zip(heads, mixed, strict=True)]
        return [[*features, torch.cat(logits, 1)]]
