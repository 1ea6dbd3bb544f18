"""Deep3DFaceRecon (Deng et al., arXiv 1903.08527): a picture's coefficients in a 3-D morphable face model, and the
68 landmarks that they project to. It is what LatentSwap's shape loss compares.

The face model may not be passed on: users bring the 68 rows of it that the landmarks need (`landmark_rows` makes them).
Coordinates: x to the right, y up, z towards the camera, which stands at z = 10 and looks back along the axis.

Suffixes: C coefficients, K landmarks, P = 3 · K coordinates, I and X coefficients of identity and expression.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from latentswap.errors import UsageError
from latentswap.identity.base import square_chip
from latentswap.identity.resnet import RESNET50_UNITS, ResNet, check_resnet
from latentswap.weights.described import load_described
from latentswap.weights.load import load_into

KIND = "shape/deep3d"
LANDMARKS_KIND = "shape/deep3d-landmarks"
SIZE = 224
LANDMARKS = 68

# The coefficients of a face, side by side.
IDENTITY = slice(0, 80)
EXPRESSION = slice(80, 144)
TEXTURE = slice(144, 224)
ANGLES = slice(224, 227)  # radians, about x, y and z
LIGHT = slice(227, 254)
TRANSLATION = slice(254, 257)
COEFFICIENTS = 257
_OUTPUTS = (80, 64, 80, 3, 27, 2, 1)  # of the regressor's last layers

_FOCAL, _CENTRE, _DISTANCE = 1015.0, 112.0, 10.0  # pixels, pixels, units of the face model

# Where the regressor's input lies in an FFHQ-aligned crop, in crop fractions: its rule of alignment (the origin of the
# face model to the centre, a unit to 102 px), applied to the mean five points of such crops.
CHIP_CENTRE = (0.5023, 0.5722)
CHIP_SIDE = 0.8678


@dataclass(frozen=True, kw_only=True)
class Deep3DConfig:
    """Size of the regressor, the published one by default."""

    units: tuple[int, ...] = RESNET50_UNITS  # blocks of the ResNet's four stages
    width: int = 64  # channels of the first stage's inner convolutions; each stage doubles them

    def __post_init__(self) -> None:
        object.__setattr__(self, "units", tuple(self.units))  # JSON knows lists only
        check_resnet(self.units, self.width)


class Deep3D(nn.Module):
    """Chips [B, 3, 224, 224], RGB in 0…1 → coefficients [B, 257]. State: the names of the published `net_recon`."""

    def __init__(self, config: Deep3DConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = ResNet(config.units, config.width)
        self.final_layers = nn.ModuleList([nn.Conv2d(self.backbone.features, n, 1) for n in _OUTPUTS])

    @classmethod
    def load(cls, path: str | Path) -> "Deep3D":
        """The frozen regressor from its converted weights. Raises WeightsError."""
        return load_described(path, kind=KIND, config=Deep3DConfig, build=cls)

    def forward(self, chip_BCHW: torch.Tensor) -> torch.Tensor:
        if chip_BCHW.shape[1:] != (3, SIZE, SIZE):
            raise UsageError(f"A chip has shape [B, 3, {SIZE}, {SIZE}], not {tuple(chip_BCHW.shape)}.")
        features_BF11 = self.backbone(chip_BCHW)[:, :, None, None]
        return torch.cat([layer(features_BF11) for layer in self.final_layers], 1).flatten(1)


def shape_chip(img_BCHW: torch.Tensor, *, aligned: bool = True) -> torch.Tensor:
    """FFHQ-aligned crops [B, 3, S, S] in [-1, 1] → the regressor's input [B, 3, 224, 224] in 0…1, differentiable.

    aligned: as the regressor was trained. Without, the whole crop, resized bilinearly: what LatentSwap's mixer was
    trained with, good for comparing two crops and for nothing else.
    """
    if aligned:
        chip_BCHW = square_chip(img_BCHW, centre=CHIP_CENTRE, side=CHIP_SIDE, size=SIZE)
    else:
        chip_BCHW = F.interpolate(img_BCHW, size=SIZE, mode="bilinear", align_corners=False)
    return (chip_BCHW + 1) / 2


class LandmarkModel(nn.Module):
    """The rows of the face model that 68 landmarks need: coefficients [B, 257] → landmarks."""

    mean_K3: torch.Tensor
    id_PI: torch.Tensor
    exp_PX: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean_K3", torch.zeros(LANDMARKS, 3))
        self.register_buffer("id_PI", torch.zeros(3 * LANDMARKS, IDENTITY.stop - IDENTITY.start))
        self.register_buffer("exp_PX", torch.zeros(3 * LANDMARKS, EXPRESSION.stop - EXPRESSION.start))

    @classmethod
    def load(cls, path: str | Path) -> "LandmarkModel":
        """The landmarks' rows from the file that the user's own face model was converted to. Raises WeightsError."""
        model = cls()
        load_into(model, path, kind=LANDMARKS_KIND)
        return model.eval()

    def positions(self, coefficients_BC: torch.Tensor) -> torch.Tensor:
        """Landmarks of the face at rest, [B, 68, 3]: identity and expression, neither turned nor moved."""
        offset_BP = coefficients_BC[:, IDENTITY] @ self.id_PI.T + coefficients_BC[:, EXPRESSION] @ self.exp_PX.T
        return self.mean_K3 + offset_BP.unflatten(1, (-1, 3))

    def forward(self, coefficients_BC: torch.Tensor) -> torch.Tensor:
        """Landmarks in the chip, [B, 68, 2] in its pixels, y up (row = 223 − y), as the paper's loss takes them."""
        turn_B33 = rotation(coefficients_BC[:, ANGLES])
        points_BK3 = self.positions(coefficients_BC) @ turn_B33.mT + coefficients_BC[:, None, TRANSLATION]
        return _FOCAL * points_BK3[..., :2] / (_DISTANCE - points_BK3[..., 2:]) + _CENTRE


def rotation(angles_B3: torch.Tensor) -> torch.Tensor:
    """Rz · Ry · Rx from radians about the three axes, [B, 3, 3]; it turns column vectors."""
    cos_B3, sin_B3 = angles_B3.cos(), angles_B3.sin()
    turn_B33 = torch.eye(3).to(angles_B3)
    for axis in range(3):
        one, two = (axis + 1) % 3, (axis + 2) % 3
        about_B33 = torch.eye(3).to(angles_B3).repeat(len(angles_B3), 1, 1)
        about_B33[:, one, one] = about_B33[:, two, two] = cos_B3[:, axis]
        about_B33[:, one, two], about_B33[:, two, one] = -sin_B3[:, axis], sin_B3[:, axis]
        turn_B33 = about_B33 @ turn_B33
    return turn_B33


def fuse_coefficients(source_BC: torch.Tensor, target_BC: torch.Tensor) -> torch.Tensor:
    """The source's shape with all else of the target: identity coefficients of one, the rest of the other."""
    return torch.cat([source_BC[:, IDENTITY], target_BC[:, IDENTITY.stop :]], 1)


def landmark_loss(
    model: LandmarkModel, swapped_BC: torch.Tensor, source_BC: torch.Tensor, target_BC: torch.Tensor
) -> torch.Tensor:
    """L_shape (arXiv 2402.18351): mean absolute distance, in chip pixels, between the landmarks of the swapped face
    and those of the fused coefficients, which take no gradient."""
    with torch.no_grad():
        wanted_BK2 = model(fuse_coefficients(source_BC, target_BC))
    return (model(swapped_BC) - wanted_BK2).abs().mean()


def landmark_rows(
    mean_V3: torch.Tensor, id_QI: torch.Tensor, exp_QX: torch.Tensor, vertices_K: torch.Tensor
) -> dict[str, torch.Tensor]:
    """What `LandmarkModel` keeps of a whole face model, float32: V vertices, Q = 3 · V coordinates, K their numbers.

    The mean face is moved so that the mean of all its vertices is the origin. Raises UsageError for shapes that do
    not belong together and numbers that are no vertices.
    """
    count = len(mean_V3)
    shapes = [
        (mean_V3, (count, 3)),
        (id_QI, (3 * count, IDENTITY.stop)),
        (exp_QX, (3 * count, 64)),
        (vertices_K, (LANDMARKS,)),
    ]
    for value, expected in shapes:
        if tuple(value.shape) != expected:
            raise UsageError(f"A part of the face model has the shape {list(value.shape)}, not {list(expected)}.")
    if not ((vertices_K >= 0) & (vertices_K < count)).all():
        raise UsageError(f"The landmarks' vertices run from 0 to {count - 1}; these are numbers beyond that.")
    rows_P = (3 * vertices_K[:, None] + torch.arange(3)).flatten()
    rows = {"mean_K3": (mean_V3 - mean_V3.mean(0))[vertices_K], "id_PI": id_QI[rows_P], "exp_PX": exp_QX[rows_P]}
    return {name: value.float().contiguous() for name, value in rows.items()}
