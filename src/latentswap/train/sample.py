"""Latent codes to train on: people who do not exist, with rows like those that inversion gives.

Inverted codes of photographs are not broadcast w: neighbouring rows agree, but coarse and fine rows may come from
different places and every row is a little off. The sampler imitates that, and all of it is a function of the random
generator it is given.
"""

from dataclasses import dataclass

import torch

from latentswap.errors import UsageError
from latentswap.generators.base import Generator, broadcast_w


@dataclass(frozen=True, kw_only=True)
class CodeConfig:
    """Distribution of W+ codes.

    psi_min, psi_max: truncation of each w, drawn evenly.
    mixed: share of codes whose fine rows blend, from a random row on, into those of a second person.
    jitter: largest standard deviation of the per-row noise, in units of `w_std`; drawn evenly from 0 for every code.
    """

    psi_min: float = 0.4
    psi_max: float = 1.0
    mixed: float = 0.5
    jitter: float = 0.25

    def __post_init__(self) -> None:
        if not 0 <= self.psi_min <= self.psi_max <= 2:
            raise UsageError(f"Truncation runs from {self.psi_min} to {self.psi_max}; give 0 ≤ min ≤ max ≤ 2.")
        if not 0 <= self.mixed <= 1 or self.jitter < 0:
            raise UsageError(f"mixed is {self.mixed} (0 to 1) and jitter {self.jitter} (0 or more).")


BROADCAST = CodeConfig(psi_min=0.7, psi_max=0.7, mixed=0.0, jitter=0.0)


def sample_w(generator: Generator, count: int, random: torch.Generator, config: CodeConfig) -> torch.Tensor:
    """Truncated w [count, D]."""
    w_BD = generator.mapping(torch.randn(count, generator.w_dim, generator=random))
    psi_B1 = torch.empty(count, 1).uniform_(config.psi_min, config.psi_max, generator=random)
    return torch.lerp(generator.w_avg, w_BD, psi_B1)


def sample_codes(generator: Generator, count: int, random: torch.Generator, config: CodeConfig) -> torch.Tensor:
    """W+ codes [count, L, D] from `config`'s distribution."""
    rows = generator.num_ws
    ws_BLD = broadcast_w(sample_w(generator, count, random, config), rows)
    other_BLD = broadcast_w(sample_w(generator, count, random, config), rows)
    start_B1 = torch.randint(2, rows, (count, 1), generator=random)
    amount_B1 = torch.rand(count, 1, generator=random) * (torch.rand(count, 1, generator=random) < config.mixed)
    blend_BL = amount_B1 * (torch.arange(rows) >= start_B1)
    ws_BLD = torch.lerp(ws_BLD, other_BLD, blend_BL[:, :, None])
    sigma_B11 = torch.rand(count, 1, 1, generator=random) * config.jitter
    return ws_BLD + sigma_B11 * generator.w_std * torch.randn(ws_BLD.shape, generator=random)
