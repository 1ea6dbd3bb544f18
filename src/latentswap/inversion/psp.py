"""Published encoders: pSp (Richardson et al., arXiv 2008.00951), e4e (Tov et al., arXiv 2102.02766) and ReStyle
(Alaluf et al., arXiv 2104.02699) of both kinds.

One IR-SE50 trunk with a head for every row of W+. pSp's rows are independent; e4e's first head gives one w and the
others an offset to it, which keeps codes near W. ReStyle's see beside the picture the one that the last code makes, and
correct that code, five times from the mean.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import nn

from latentswap.errors import UsageError
from latentswap.generators.base import Generator
from latentswap.identity.arcface import IR_SE50_UNITS, WIDTHS, check_units, ir_se_body, ir_se_stem
from latentswap.inversion.base import rows_for
from latentswap.weights.described import load_described

KIND = "inverter/psp"
SIZE = 256
ITERATIONS = 5  # of ReStyle, which no longer improves after
Variant = Literal["e4e", "psp", "restyle-e4e", "restyle-psp"]
Heads = Literal["pyramid", "last", "single"]
EncoderName = Literal["e4e", "psp", "restyle"]


_COARSE_ROWS, _MIDDLE_ROWS = 3, 7  # of a pyramid: rows below read the map at 16², at 32², and all others that at 64²


@dataclass(frozen=True, kw_only=True)
class PspConfig:
    """Which encoder, and its size; the published e4e by default.

    heads: `pyramid`, heads on three maps (pSp, e4e); `last`, all on the last map (ReStyle's encoders); `single`, one w
    for every row (the encoders into W of pSp and e4e: BackboneEncoderUsingLastLayerIntoW, SingleStyleCodeEncoder).
    """

    variant: Variant = "e4e"
    heads: Heads = "pyramid"
    n_styles: int = 18  # rows of its codes
    add_average: bool = True  # codes are offsets to `latent_avg` (start_from_latent_avg); ReStyle's always are
    units: tuple[int, ...] = IR_SE50_UNITS  # residual units of the trunk's four stages
    widths: tuple[int, ...] = WIDTHS  # channels of the trunk's four stages
    w_dim: int = 512

    def __post_init__(self) -> None:
        for field, value, choices in (("variant", self.variant, Variant), ("heads", self.heads, Heads)):
            if value not in get_args(choices):
                raise UsageError(f"{field} is {value!r}; it must be one of {', '.join(get_args(choices))}.")
        for field, most in (("n_styles", 32), ("w_dim", 4096)):
            if not (type(getattr(self, field)) is int and 1 <= getattr(self, field) <= most):
                raise UsageError(f"{field} is {getattr(self, field)!r}; it must be a number from 1 to {most}.")
        if type(self.add_average) is not bool:
            raise UsageError(f"add_average is {self.add_average!r}; it must be true or false.")
        if self.iterated and self.heads == "single":
            raise UsageError(f"{self.variant} has a head for every row, not a single one.")
        object.__setattr__(self, "units", tuple(self.units))  # JSON knows lists only
        object.__setattr__(self, "widths", tuple(self.widths))
        check_units(self.units, self.widths)

    @property
    def iterated(self) -> bool:
        """Whether the encoder corrects a code (ReStyle) rather than finding one."""
        return self.variant.startswith("restyle")

    @property
    def input_channels(self) -> int:
        """3, or 6 where the current reconstruction comes beside the picture."""
        return 6 if self.iterated else 3


class _ScaledLinear(nn.Module):
    """A linear layer that keeps its weights at unit size."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(c_out, c_in))
        self.bias = nn.Parameter(torch.zeros(c_out))

    def forward(self, x_BI: torch.Tensor) -> torch.Tensor:
        return F.linear(x_BI, self.weight / self.weight.shape[1] ** 0.5, self.bias)


class _StyleHead(nn.Module):
    """A square map → one row of W+: convolutions of stride 2 down to one pixel, then a linear layer."""

    def __init__(self, c_in: int, w_dim: int, side: int) -> None:
        super().__init__()
        convs = []
        for i in range(side.bit_length() - 1):
            convs += [nn.Conv2d(w_dim if i else c_in, w_dim, 3, stride=2, padding=1), nn.LeakyReLU()]
        self.convs = nn.Sequential(*convs)
        self.linear = _ScaledLinear(w_dim, w_dim)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return self.linear(self.convs(x_BCHW).flatten(1))


class PspEncoder(nn.Module):
    """Pictures [B, 3 or 6, 256, 256], RGB in [-1, 1] → offsets of W+ codes, [B, L, D].

    State: the published names less `encoder.`, and `latent_avg`, what the offsets are to.
    """

    latent_avg: torch.Tensor  # [L, D]

    def __init__(self, config: PspConfig) -> None:
        super().__init__()
        self.config = config
        widths, w_dim = config.widths, config.w_dim
        self.register_buffer("latent_avg", torch.zeros(config.n_styles, w_dim))
        self.input_layer = ir_se_stem(config.input_channels, widths)
        self.body = ir_se_body(config.units, widths)
        if config.heads == "single":
            self.linear = _ScaledLinear(widths[-1], w_dim)
            return
        self.styles = nn.ModuleList([_StyleHead(widths[-1], w_dim, self._side(i)) for i in range(config.n_styles)])
        if config.heads == "pyramid":
            self.latlayer1 = nn.Conv2d(widths[2], widths[3], 1)
            self.latlayer2 = nn.Conv2d(widths[1], widths[3], 1)

    @classmethod
    def load(cls, path: str | Path) -> "PspEncoder":
        """The frozen encoder from its converted weights. Raises WeightsError."""
        return load_described(path, kind=KIND, config=PspConfig, build=cls)

    def _side(self, row: int) -> int:
        """Side of the map that a row's head reads."""
        if self.config.heads == "last" or row < _COARSE_ROWS:
            return 16
        return 32 if row < _MIDDLE_ROWS else 64

    def _maps(self, x_BCHW: torch.Tensor) -> dict[int, torch.Tensor]:
        """The maps that the heads read, by their side."""
        second, third = sum(self.config.units[:2]), sum(self.config.units[:3])
        at_64 = self.body[:second](self.input_layer(x_BCHW))
        at_32 = self.body[second:third](at_64)
        maps = {16: self.body[third:](at_32)}
        if self.config.heads == "pyramid":
            maps[32] = _doubled(maps[16]) + self.latlayer1(at_32)
            maps[64] = _doubled(maps[32]) + self.latlayer2(at_64)
        return maps

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        if x_BCHW.shape[1:] != (self.config.input_channels, SIZE, SIZE):
            expected = f"[B, {self.config.input_channels}, {SIZE}, {SIZE}]"
            raise UsageError(f"The encoder's input has shape {expected}, not {tuple(x_BCHW.shape)}.")
        maps = self._maps(x_BCHW)
        if self.config.heads == "single":
            return self.linear(maps[16].mean((2, 3)))[:, None].expand(-1, self.config.n_styles, -1)
        rows_BLD = torch.stack([head(maps[self._side(i)]) for i, head in enumerate(self.styles)], 1)
        if self.config.variant.endswith("e4e"):
            return torch.cat([rows_BLD[:, :1], rows_BLD[:, :1] + rows_BLD[:, 1:]], 1)
        return rows_BLD


def _doubled(x_BCHW: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x_BCHW, scale_factor=2, mode="bilinear", align_corners=True)


def check_name(encoder: PspEncoder | None, name: EncoderName) -> None:
    """Refuse `name` as a way to invert unless it is that of the encoder. Raises UsageError."""
    if encoder is None:
        raise UsageError(
            f"inversion {name!r} is a published encoder: say where its converted file is (--encoder FILE)."
        )
    if encoder.config.variant.split("-")[0] != name:
        raise UsageError(f"inversion is {name!r}, but the file given as the encoder holds {encoder.config.variant}.")


class PspInverter:
    """A published encoder before a generator. See `inversion.base.Inverter`.

    Raises UsageError for a generator that the encoder's codes mean nothing to.
    """

    def __init__(self, encoder: PspEncoder, generator: Generator) -> None:
        if encoder.config.w_dim != generator.w_dim:
            raise UsageError(f"The encoder's rows are {encoder.config.w_dim} wide, the generator's {generator.w_dim}.")
        rows_for(encoder.latent_avg[None], generator.num_ws)
        self.encoder, self.generator = encoder, generator

    @torch.no_grad()
    def invert(self, img_BCHW: torch.Tensor) -> torch.Tensor:
        """Crops [B, 3, 256, 256], RGB in [-1, 1] → W+ codes [B, L, D] of the generator."""
        config, num_ws = self.encoder.config, self.generator.num_ws
        average_BLD = self.encoder.latent_avg.expand(len(img_BCHW), -1, -1)
        if not config.iterated:
            codes_BLD = self.encoder(img_BCHW)
            return rows_for(codes_BLD + average_BLD if config.add_average else codes_BLD, num_ws)
        codes_BLD = average_BLD
        for _ in range(ITERATIONS):
            picture_BCHW = self.generator.synthesis(rows_for(codes_BLD, num_ws), resolution=SIZE)
            codes_BLD = codes_BLD + self.encoder(torch.cat([img_BCHW, picture_BCHW], 1))
        return rows_for(codes_BLD, num_ws)
