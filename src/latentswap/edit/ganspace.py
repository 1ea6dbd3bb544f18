"""GANSpace (Härkönen et al., arXiv 2004.02546): the principal components of w as directions.

An edit sets a coordinate: the code moves along component i until it lies `strength` standard deviations from the mean,
as its row 0 says where it is; of the rows only the chosen ones move.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from latentswap.edit.directions import Direction, Scale
from latentswap.errors import UsageError
from latentswap.generators.base import Generator
from latentswap.seeds import generator_for
from latentswap.weights.load import load_tensors, save_tensors

KIND = "ganspace"
COMPONENTS = 80
SAMPLES = 300_000
_BATCH = 4096
_SCALE = Scale(unit="standard deviations from the mean", low=-20, high=20, usual=2)


@dataclass(frozen=True, eq=False)
class Coordinate:
    """Sets the coordinate along one component: (strength − coordinate of row 0) · component · standard deviation."""

    mean_D: torch.Tensor
    component_D: torch.Tensor
    std: float

    @property
    def width(self) -> int:
        return len(self.mean_D)

    def __call__(self, ws_BLD: torch.Tensor, strength: float) -> torch.Tensor:
        component_D, mean_D = self.component_D.to(ws_BLD), self.mean_D.to(ws_BLD)
        coordinate_B = (ws_BLD[:, 0] - mean_D) @ component_D / self.std
        return ((strength - coordinate_B)[:, None, None] * component_D * self.std).expand_as(ws_BLD)


@dataclass(frozen=True, kw_only=True, eq=False)
class Components:
    """Mean [D], components [N, D] of unit length, largest first, and standard deviations [N]."""

    mean_D: torch.Tensor
    components_ND: torch.Tensor
    std_N: torch.Tensor

    def __post_init__(self) -> None:
        shapes = [list(x.shape) for x in (self.mean_D, self.components_ND, self.std_N)]
        if self.components_ND.ndim != 2 or shapes != [shapes[1][1:], shapes[1], shapes[1][:1]]:
            raise UsageError(f"Principal components of the shapes {shapes} do not belong together.")
        if not bool((self.std_N > 0).all()):
            raise UsageError("A principal component of no spread is no direction.")

    def directions(self, name: str = "ganspace", rows: Iterable[int] | None = None) -> dict[str, Direction]:
        """One direction a component: `NAME.0`, `NAME.1`, …"""
        chosen = None if rows is None else tuple(rows)
        return {
            f"{name}.{i}": Direction(
                name=f"{name}.{i}",
                change=Coordinate(self.mean_D, self.components_ND[i], float(self.std_N[i])),
                rows=chosen,
                scale=_SCALE,
            )
            for i in range(len(self.std_N))
        }

    def save(self, path: str | Path) -> None:
        """Write to safetensors; `edit.files.read_directions` reads it back."""
        save_tensors(path, {"mean": self.mean_D, "comp": self.components_ND, "std": self.std_N}, {"kind": KIND})

    @classmethod
    def load(cls, path: str | Path) -> "Components":
        """Read what `save` wrote. Raises WeightsError for another file, UsageError for shapes that do not fit."""
        tensors, _ = load_tensors(path, kind=KIND)
        return cls(mean_D=tensors["mean"], components_ND=tensors["comp"], std_N=tensors["std"])


@torch.no_grad()
def ganspace(
    generator: Generator, *, samples: int = SAMPLES, components: int = COMPONENTS, seed: int = 0
) -> Components:
    """Principal components of w over `samples` random people, from sums alone: no sample is kept.

    Raises UsageError for fewer samples than twice the width of w, or more components than it has.
    """
    dim = generator.w_dim
    if samples < 2 * dim or not 1 <= components <= dim:
        raise UsageError(f"{samples} samples for {components} components: give {2 * dim} or more, and 1 to {dim}.")
    sum_D, gram_DD = torch.zeros(dim, dtype=torch.float64), torch.zeros(dim, dim, dtype=torch.float64)
    origin_D = generator.w_avg.double().cpu()  # sums of squares about it lose no digits
    for batch, start in enumerate(range(0, samples, _BATCH)):
        random = generator_for(seed, batch, stream=13)
        z_BD = torch.randn(min(_BATCH, samples - start), dim, generator=random)
        w_BD = generator.mapping(z_BD.to(generator.w_avg)).double().cpu() - origin_D
        sum_D += w_BD.sum(0)
        gram_DD += w_BD.T @ w_BD
    mean_D = sum_D / samples
    covariance_DD = (gram_DD - samples * torch.outer(mean_D, mean_D)) / (samples - 1)
    values_D, vectors_DD = torch.linalg.eigh(covariance_DD)
    return Components(
        mean_D=(mean_D + origin_D).float(),
        components_ND=vectors_DD.T.flip(0)[:components].float().contiguous(),
        std_N=values_D.flip(0)[:components].clamp_min(1e-30).sqrt().float(),
    )
