"""SimSwap's generators (Chen et al., arXiv 2106.06340) as they were published: encoder, nine ID blocks, decoder.

One encoder reads the target's crop, the ID Injection Module writes the source's identity into its features by AdaIN
(Huang and Belongie, arXiv 1703.06868), a decoder draws the result. Four variants exist, and their weights do not fit
one another, or fit and mean another colour space: `VARIANTS` says what each takes and gives. `SimSwapGenerator` speaks
[-1, 1] RGB whatever the variant.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import nn

from latentswap.errors import UsageError
from latentswap.identity.imagenet import normalised, restored
from latentswap.weights.described import load_described
from latentswap.weights.load import half_matrices, save_tensors

KIND = "swapper/simswap"
Variant = Literal["legacy224", "legacy512", "fix", "fix_deep"]
SIDES = (32, 1024)  # smallest and largest side of a crop; sides are multiples of the first
EPSILON = 1e-8  # of the instance normalisation


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published variant: what it is built of, what it takes and gives, and the crops that it was trained on."""

    shares: tuple[int, ...]  # channels of the encoder's stages, the stem first, as parts of the ID blocks' width
    input: Literal["unit", "imagenet"]  # RGB in [0, 1], or normalised by ImageNet's mean and deviation
    output: Literal["tanh", "imagenet"]  # [-1, 1], or normalised by ImageNet's mean and deviation
    size: int  # side of the crops
    alignment: Literal["pose", "ffhq"]  # see `face.align_arcface`
    about: str


VARIANTS: dict[str, Published] = {
    "legacy224": Published(
        shares=(8, 4, 2, 1),
        input="unit",
        output="tanh",
        size=224,
        alignment="pose",
        about="people/latest_net_G.pth of the release of 2021",
    ),
    "legacy512": Published(
        shares=(16, 8, 4, 2, 1),
        input="unit",
        output="tanh",
        size=512,
        alignment="ffhq",
        about="512/550000_net_G.pth, the 512 beta",
    ),
    "fix": Published(
        shares=(8, 4, 2, 1),
        input="imagenet",
        output="imagenet",
        size=224,
        alignment="pose",
        about="NNN_net_G.pth that train.py wrote (--Gdeep False)",
    ),
    "fix_deep": Published(
        shares=(8, 4, 2, 1, 1),
        input="imagenet",
        output="imagenet",
        size=512,
        alignment="ffhq",
        about="NNN_net_G.pth that train.py wrote (--Gdeep True)",
    ),
}


@dataclass(frozen=True, kw_only=True)
class SimSwapConfig:
    """Which variant. `width`: channels of the ID blocks, a multiple of the variant's largest share (8 or 16)."""

    variant: Variant = "legacy224"
    width: int = 512
    identity_dim: int = 512
    blocks: int = 9

    def __post_init__(self) -> None:
        if self.variant not in get_args(Variant):
            raise UsageError(f"variant is {self.variant!r}; it must be one of {', '.join(get_args(Variant))}.")
        share = self.published.shares[0]
        if type(self.width) is not int or not share <= self.width <= 2048 or self.width % share:
            raise UsageError(f"width is {self.width}; for {self.variant} it is a multiple of {share} up to 2048.")
        if not (type(self.identity_dim) is int and 1 <= self.identity_dim <= 4096):
            raise UsageError(f"identity_dim is {self.identity_dim}; it runs from 1 to 4096.")
        if not (type(self.blocks) is int and 1 <= self.blocks <= 64):
            raise UsageError(f"blocks is {self.blocks}; it runs from 1 to 64.")

    @property
    def published(self) -> Published:
        return VARIANTS[self.variant]

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the stem and of the stages after it, the ID blocks' last."""
        return tuple(self.width // share for share in self.published.shares)


def instance_norm(x_BCHW: torch.Tensor) -> torch.Tensor:
    """(x − mean) / √(variance + 1e-8) per picture and channel; the variance is the biased one, without affine part."""
    apart_BCHW = x_BCHW - x_BCHW.mean((2, 3), keepdim=True)
    return apart_BCHW * torch.rsqrt(apart_BCHW.square().mean((2, 3), keepdim=True) + EPSILON)


class Style(nn.Module):
    """AdaIN's affine part: γ, β from the identity, x (γ + 1) + β. The first half of the linear layer is γ."""

    def __init__(self, identity_dim: int, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(identity_dim, 2 * channels)

    def forward(self, x_BCHW: torch.Tensor, id_BE: torch.Tensor) -> torch.Tensor:
        gain_BC11, shift_BC11 = self.linear(id_BE)[:, :, None, None].chunk(2, dim=1)
        return torch.addcmul(shift_BC11, x_BCHW, gain_BC11 + 1)


class IDBlock(nn.Module):
    """Residual block that writes an identity: (convolution, instance normalisation, AdaIN) twice, ReLU between."""

    def __init__(self, channels: int, identity_dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3))
        self.style1 = Style(identity_dim, channels)
        self.conv2 = nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3))
        self.style2 = Style(identity_dim, channels)

    def forward(self, x_BCHW: torch.Tensor, id_BE: torch.Tensor) -> torch.Tensor:
        y_BCHW = F.relu(self.style1(instance_norm(self.conv1(x_BCHW)), id_BE))
        return x_BCHW + self.style2(instance_norm(self.conv2(y_BCHW)), id_BE)


def _down(c_in: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride=2, padding=1), nn.BatchNorm2d(c_out), nn.ReLU())


def _up(c_in: int, c_out: int) -> nn.Sequential:
    enlarge = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
    return nn.Sequential(enlarge, nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU())


class SimSwapGenerator(nn.Module):
    """Target crops and source identities → swapped crops, all in [-1, 1] RGB; see `forward`.

    The tensors have the published names, so that a published state dictionary loads as it is.
    """

    def __init__(self, config: SimSwapConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or SimSwapConfig()
        widths = config.widths
        self.first_layer = nn.Sequential(
            nn.ReflectionPad2d(3), nn.Conv2d(3, widths[0], 7), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        # legacy512 has a stage more before the three that all have, fix_deep one after them.
        first = 0 if config.variant == "legacy512" else 1
        self.stages = tuple(range(first, first + len(widths) - 1))
        for stage, c_in, c_out in zip(self.stages, widths, widths[1:], strict=False):
            setattr(self, f"down{stage}", _down(c_in, c_out))
        self.BottleNeck = nn.ModuleList(IDBlock(config.width, config.identity_dim) for _ in range(config.blocks))
        for stage, c_out, c_in in zip(self.stages, widths, widths[1:], strict=False):
            setattr(self, f"up{stage}", _up(c_in, c_out))
        self.last_layer = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(widths[0], 3, 7))

    @classmethod
    def load(cls, path: str | Path) -> "SimSwapGenerator":
        """The frozen network from its converted weights, convolutions laid out for the CPU. Raises WeightsError."""
        network = load_described(path, kind=KIND, config=SimSwapConfig, build=cls)
        return network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def save(self, path: str | Path, *, summary: Mapping[str, object]) -> None:
        """Write weights (float16 matrices) with the configuration and a training summary as metadata."""
        metadata = {"kind": KIND, "config": json.dumps(asdict(self.config)), "training": json.dumps(summary)}
        save_tensors(path, half_matrices(self), metadata)

    def forward(self, img_BCHW: torch.Tensor, id_BE: torch.Tensor) -> torch.Tensor:
        """Swap: img [B, 3, H, W] in [-1, 1], RGB, sides multiples of 32 up to 1024; id [B, E] of unit length.

        Returns [B, 3, H, W] in [-1, 1] (a variant without tanh may leave the range a little). Raises UsageError.
        """
        check_crops(img_BCHW, id_BE, self.config.identity_dim)
        return self.from_output(self.network(self.to_input(img_BCHW), id_BE))

    def network(self, x_BCHW: torch.Tensor, id_BE: torch.Tensor) -> torch.Tensor:
        """The network alone, in the variant's own ranges."""
        x_BCHW = self.first_layer(x_BCHW)
        for stage in self._modules_of("down", self.stages):
            x_BCHW = stage(x_BCHW)
        for block in self.BottleNeck:
            x_BCHW = block(x_BCHW, id_BE)
        for stage in self._modules_of("up", self.stages[::-1]):
            x_BCHW = stage(x_BCHW)
        x_BCHW = self.last_layer(x_BCHW)
        return x_BCHW.tanh() if self.config.published.output == "tanh" else x_BCHW

    def to_input(self, img_BCHW: torch.Tensor) -> torch.Tensor:
        """[-1, 1] → what the variant's first layer takes."""
        unit_BCHW = (img_BCHW + 1) / 2
        return unit_BCHW if self.config.published.input == "unit" else normalised(unit_BCHW)

    def from_output(self, y_BCHW: torch.Tensor) -> torch.Tensor:
        """What the variant's last layer gives → [-1, 1]."""
        return y_BCHW if self.config.published.output == "tanh" else 2 * restored(y_BCHW) - 1

    def _modules_of(self, name: str, stages: tuple[int, ...]) -> Iterator[nn.Module]:
        return (self.get_submodule(f"{name}{stage}") for stage in stages)


def folded(network: SimSwapGenerator) -> SimSwapGenerator:
    """A copy for inference whose batch normalisations are part of the convolutions before them, channels last.

    It computes the same in fewer passes over memory, and has no published names any more.
    """
    copy = SimSwapGenerator(network.config)
    copy.load_state_dict(network.state_dict())
    copy = copy.to(next(network.parameters()).device).eval().requires_grad_(False)
    for sequence in [copy.first_layer, *copy._modules_of("down", copy.stages), *copy._modules_of("up", copy.stages)]:
        assert isinstance(sequence, nn.Sequential)  # noqa: S101 - for the type checker
        at = next(i for i, module in enumerate(sequence) if isinstance(module, nn.Conv2d))
        convolution, norm = sequence[at], sequence[at + 1]
        sequence[at] = nn.utils.fuse_conv_bn_eval(convolution, norm)  # pyright: ignore[reportArgumentType]
        sequence[at + 1] = nn.Identity()
    return copy.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def check_crops(img_BCHW: torch.Tensor, id_BE: torch.Tensor, identity_dim: int) -> None:
    """Refuse crops and identities that the network has no answer for. Raises UsageError."""
    low, high = SIDES
    sides = tuple(img_BCHW.shape[2:])
    if img_BCHW.ndim != 4 or img_BCHW.shape[1] != 3 or any(side % low or not low <= side <= high for side in sides):
        raise UsageError(
            f"Crops have the shape [B, 3, H, W], H and W multiples of {low} up to {high}, not {tuple(img_BCHW.shape)}."
        )
    if tuple(id_BE.shape) != (len(img_BCHW), identity_dim):
        raise UsageError(f"Identities have the shape [{len(img_BCHW)}, {identity_dim}], not {tuple(id_BE.shape)}.")
