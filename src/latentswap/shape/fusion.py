"""The source's face shape with the target's pose and expression, from meshes alone.

LatentSwap's shape loss fuses the coefficients of a 3-D morphable model. Such models are licensed, and the mesh network
gives points, not coefficients. So the two are separated like this:

- **Pose** is the similarity transform (scale, rotation, translation) that carries the mean mesh onto a mesh, fitted on
  points that expression barely moves (`topology.RIGID`). Undoing it gives a frontal, pose-free mesh.
- **Expression** is what three measures (openness of the eyes, openness of the mouth, lift of its corners) explain of
  the pose-free meshes of generated people: a linear basis fitted by least squares over the population, together with
  the head's three angles, because the mesh of a turned head is not quite a turned mesh.
- **Shape** is the rest: the pose-free mesh less what those six explain.

The fused mesh is mean + target's expression + source's shape, carried back by the target's pose. More measures (width
of the mouth, brows, jaw) would explain more, but not of the expression: they are as much a person's build, and with
them nothing that tells people apart was left. docs/quality.md has the measurement.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch

from latentswap.shape.measures import (
    EXPRESSION_NAMES,
    euler_degrees,
    expression_measures,
    openness,
    similarity_align,
)
from latentswap.weights.assets import asset_path
from latentswap.weights.load import load_tensors

_NUISANCES = 3 + 3  # expression measures, pose angles
_CORNER_LIFT = EXPRESSION_NAMES.index("mouth_corner_lift")


@dataclass(frozen=True, kw_only=True, eq=False)
class ShapeModel:
    """Population mean and the basis of what is not shape."""

    mean_K3: torch.Tensor  # [468, 3], pose-free, in crop fractions
    nuisance_mean_N: torch.Tensor  # [N], N = 6: mean of measures and angles
    nuisance_std_N: torch.Tensor  # [N]
    basis_NK3: torch.Tensor  # [N, 468, 3]: displacement per standard deviation

    @classmethod
    def fit(cls, mesh_BK3: torch.Tensor, *, ridge: float = 1.0) -> "ShapeModel":
        """Least squares over the meshes of a population, `ridge` in units of one sample."""
        aligned_BK3, nuisance_BN = _normalise(mesh_BK3.double())
        mean_N, std_N = nuisance_BN.mean(0), nuisance_BN.std(0)
        x_BN = (nuisance_BN - mean_N) / std_N
        mean_K3 = aligned_BK3.mean(0)
        y = (aligned_BK3 - mean_K3).flatten(1)
        gram = x_BN.T @ x_BN + ridge * torch.eye(_NUISANCES, dtype=x_BN.dtype)
        basis = torch.linalg.solve(gram, x_BN.T @ y).unflatten(1, mean_K3.shape)
        return cls(
            mean_K3=mean_K3.float(),
            nuisance_mean_N=mean_N.float(),
            nuisance_std_N=std_N.float(),
            basis_NK3=basis.float(),
        )

    def split(self, mesh_BK3: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Meshes in crop fractions → (expression part, shape part), both [B, 468, 3] displacements of the mean."""
        aligned_BK3, nuisance_BN = _normalise(mesh_BK3)
        coefficients_BN = (nuisance_BN - self.nuisance_mean_N) / self.nuisance_std_N
        explained_BK3 = torch.einsum("bn,nkd->bkd", coefficients_BN, self.basis_NK3)
        return explained_BK3, aligned_BK3 - self.mean_K3 - explained_BK3


@torch.no_grad()
def fuse(source_BK3: torch.Tensor, target_BK3: torch.Tensor, model: ShapeModel) -> torch.Tensor:
    """Meshes [B, 468, 3] of source and target in crop fractions → the fused mesh, in the target's crop."""
    _, shape_BK3 = model.split(source_BK3)
    expression_BK3, _ = model.split(target_BK3)
    aligned_BK3 = model.mean_K3 + expression_BK3 + shape_BK3
    pose = similarity_align(target_BK3)
    # x = (a − t) R / s undoes a = s x Rᵀ + t.
    return (aligned_BK3 - pose.translation_B3[:, None]) @ pose.rotation_B33 / pose.scale_B[:, None, None]


@lru_cache(maxsize=1)
def default_shape_model() -> ShapeModel:
    """The shipped model, fitted on generated people (`latentswap train population`)."""
    tensors, _ = load_tensors(asset_path("population"), kind="population")
    return ShapeModel(**{name[6:]: value.float() for name, value in tensors.items() if name.startswith("shape.")})


def _normalise(mesh_BK3: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    alignment = similarity_align(mesh_BK3)
    eyes_B2, mouth_B = openness(mesh_BK3)
    lift_B = expression_measures(mesh_BK3)[:, _CORNER_LIFT]
    measures_B3 = torch.stack([eyes_B2.mean(1), mouth_B, lift_B], 1)
    return alignment.mesh_BK3, torch.cat([measures_B3, euler_degrees(alignment.rotation_B33.mT)], 1)
