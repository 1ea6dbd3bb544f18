"""What a face presents: age group and sex presentation, read off the identity embedding, and the colour of the skin.

The two linear models (`assets/attributes.safetensors`) were fitted on generated people whose labels one annotator
judged by eye (`scripts/fit_attributes.py`). They describe how a picture looks, which is what a replacement has to
match; they say nothing that is true of a person, and nothing but the choice of a replacement may hang on them.
"""

from dataclasses import dataclass

import torch

from latentswap.weights.assets import asset_path
from latentswap.weights.load import load_tensors

AGES = ("child", "young", "middle", "old")  # under 13, to 34, to 59, beyond, as they look
AGE_VALUES = (0.0, 2.0, 3.0, 4.0)  # what the model was fitted to: a child differs more from an adult than adults do
_AGE_BOUNDS = (1.0, 2.5, 3.35)
SEX_UNCLEAR = 0.25  # scores closer to 0 than this are neither feminine nor masculine

# Points of the mesh on bare skin: forehead, and under the eyes and beside the nose on both cheeks.
SKIN_POINTS = (151, 108, 337, 50, 280, 205, 425, 101, 330)
_PATCH = 0.02  # half the side of the square that is looked at around each point, in crop fractions
_TO_XYZ = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))  # sRGB, IEC 61966-2-1
_WHITE = (0.9505, 1.0, 1.089)  # D65


@dataclass(frozen=True, kw_only=True, eq=False)
class AttributeModel:
    """Two linear functions of a centred identity embedding of unit length."""

    weight_E2: torch.Tensor
    bias_2: torch.Tensor

    @classmethod
    def load(cls) -> "AttributeModel":
        """The model that ships. Raises WeightsError."""
        expected = {"weight": ((128, 2), "float32"), "bias": ((2,), "float32")}
        tensors, _ = load_tensors(asset_path("attributes"), kind="attributes", expected=expected)
        return cls(weight_E2=tensors["weight"], bias_2=tensors["bias"])

    def __call__(self, embedding_BE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Sex presentation [B] (−1 masculine … 1 feminine) and age [B] (on the scale of `AGE_VALUES`)."""
        scores_B2 = embedding_BE.cpu() @ self.weight_E2 + self.bias_2
        return scores_B2[:, 0], scores_B2[:, 1]


def fit_ridge(
    embedding_NE: torch.Tensor, target_N: torch.Tensor, *, strength: float, weight_N: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted ridge regression in closed form, on standardised inputs: weight [E] and bias [] for the plain inputs."""
    mean_E = (weight_N[:, None] * embedding_NE).sum(0) / weight_N.sum()
    std_E = embedding_NE.std(0)
    inputs_NE = (embedding_NE - mean_E) / std_E
    middle = (weight_N * target_N).sum() / weight_N.sum()
    gram_EE = (inputs_NE * weight_N[:, None]).T @ inputs_NE + strength * torch.eye(inputs_NE.shape[1])
    weight_E = torch.linalg.solve(gram_EE, (inputs_NE * weight_N[:, None]).T @ (target_N - middle)) / std_E
    return weight_E, middle - mean_E @ weight_E


def age_group(age_B: torch.Tensor) -> torch.Tensor:
    """Index into `AGES` [B] of ages on the scale of `AGE_VALUES`."""
    return torch.bucketize(age_B.contiguous(), torch.tensor(_AGE_BOUNDS))


def skin_lab(img_BCHW: torch.Tensor, mesh_BK3: torch.Tensor) -> torch.Tensor:
    """CIELAB [B, 3] (D65) of the skin: the median over small patches of forehead and cheeks.

    img: [B, 3, S, S] sRGB in [-1, 1]; mesh: [B, 468, 3] in crop fractions. Medians leave out hair and highlights that
    cover less than half. What is measured is skin under the picture's light.
    """
    steps = torch.linspace(-_PATCH, _PATCH, 5, device=img_BCHW.device)
    offset_P2 = torch.cartesian_prod(steps, steps)
    points_BN2 = mesh_BK3[:, list(SKIN_POINTS), :2].to(img_BCHW)
    grid_BNP2 = 2 * (points_BN2[:, :, None] + offset_P2) - 1
    rgb_BCNP = torch.nn.functional.grid_sample(img_BCHW, grid_BNP2, padding_mode="border", align_corners=False)
    return _lab((rgb_BCNP.clamp(-1, 1) + 1) / 2).flatten(2).median(-1).values


def typology_angle(lab_B3: torch.Tensor) -> torch.Tensor:
    """Individual typology angle [B] in degrees, atan2(L* − 50, b*) (Chardon et al., 1991): over 55 very light, 41 to 55
    light, 28 to 41 intermediate, 10 to 28 tan, −30 to 10 brown, below dark."""
    return torch.rad2deg(torch.atan2(lab_B3[:, 0] - 50, lab_B3[:, 2]))


def _lab(rgb_BC: torch.Tensor) -> torch.Tensor:
    """sRGB in 0…1 → CIELAB; the channels are dimension 1."""
    linear_BC = torch.where(rgb_BC <= 0.04045, rgb_BC / 12.92, ((rgb_BC + 0.055) / 1.055) ** 2.4)
    matrix_33 = linear_BC.new_tensor(_TO_XYZ) / linear_BC.new_tensor(_WHITE)[:, None]
    ratio_BC = torch.einsum("ij,bj...->bi...", matrix_33, linear_BC)
    f_BC = torch.where(
        ratio_BC > (6 / 29) ** 3, ratio_BC.clamp_min(1e-9) ** (1 / 3), ratio_BC / (3 * (6 / 29) ** 2) + 4 / 29
    )
    x, y, z = f_BC.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)
