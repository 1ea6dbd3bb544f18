"""A photographed face bent into another mesh: the source's features where the swapped face is to have them.

An identity embedding is 128 numbers and forgives much; a face that only satisfies it need not look like the person.
What does look like the person is the photograph. Bent from its own mesh into the fused one (source's shape, target's
pose and expression) it shows, roughly, the picture that a swap should show, and its detail can be compared pixel by
pixel where the bending can be trusted. It is a guide for `inversion.optimise.refine` and never part of a result.
"""

import torch
import torch.nn.functional as F

from latentswap.shape import topology as T

_GRID = 64  # side at which displacements are computed
_REACH = 0.02  # crop fractions: standard deviation of a mesh point's influence
_MARGIN = 0.9  # of the outline, about its middle: outside of it lie hair and background
_COARSE = 24  # cells to a side; what is coarser is light and skin colour, which are the target's


@torch.no_grad()
def repose(
    img_BCHW: torch.Tensor, mesh_BK3: torch.Tensor, wanted_BK3: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The face of crops [B, 3, S, S], whose meshes are `mesh_BK3`, bent into the meshes `wanted_BK3`.

    Meshes [B, 468, 3] in crop fractions. Returns the bent pictures [B, 3, S, S] and how far each pixel can be trusted,
    [B, 1, S, S] in 0…1: inside of the outline, not between the lips, not at the irises, and less the more the
    bending stretches or folds.
    """
    size = img_BCHW.shape[-1]
    line = (torch.arange(_GRID, device=img_BCHW.device) + 0.5) / _GRID
    y, x = torch.meshgrid(line, line, indexing="ij")
    place_P2 = torch.stack([x, y], -1).flatten(0, 1)
    here_BK2, there_BK2 = wanted_BK3[..., :2], mesh_BK3[..., :2]
    squared_BPK = torch.cdist(place_P2[None].expand(len(here_BK2), -1, -1), here_BK2).square()
    influence_BPK = torch.softmax(-squared_BPK / (2 * _REACH**2), -1)
    from_BP2 = place_P2 + influence_BPK @ (there_BK2 - here_BK2)
    from_BHW2 = from_BP2.unflatten(1, (_GRID, _GRID))

    oval_BN2 = here_BK2[:, list(T.FACE_OVAL)]
    oval_BN2 = torch.lerp(oval_BN2.mean(1, keepdim=True), oval_BN2, _MARGIN)
    trust_BHW = _even(from_BHW2) * inside(place_P2, oval_BN2).unflatten(1, (_GRID, _GRID))
    for contour, reach in ((T.RIGHT_EYE, 0.3), (T.LEFT_EYE, 0.3), (T.INNER_LIPS, 0.5)):
        trust_BHW = trust_BHW * (1 - _spot(place_P2, here_BK2[:, list(contour)], reach).unflatten(1, (_GRID, _GRID)))

    grid_BHW2 = F.interpolate(from_BHW2.movedim(-1, 1), size=size, mode="bilinear", align_corners=False).movedim(1, -1)
    bent_BCHW = F.grid_sample(img_BCHW, 2 * grid_BHW2 - 1, padding_mode="border", align_corners=False)
    soft_B1HW = F.avg_pool2d(trust_BHW[:, None], 5, 1, 2)
    return bent_BCHW, F.interpolate(soft_B1HW, size=size, mode="bilinear", align_corners=False)


def detail(img_BCHW: torch.Tensor) -> torch.Tensor:
    """Pictures less their coarse light and colour: brows, lids, nostrils, lips, creases."""
    coarse = F.adaptive_avg_pool2d(img_BCHW, _COARSE)
    return img_BCHW - F.interpolate(coarse, size=img_BCHW.shape[-1], mode="bilinear", align_corners=False)


def _even(from_BHW2: torch.Tensor) -> torch.Tensor:
    """1 where the bending keeps areas, 0 where it shrinks or stretches them to less than a third: [B, H, W]."""
    dx, dy = torch.gradient(from_BHW2, dim=2)[0], torch.gradient(from_BHW2, dim=1)[0]
    area_BHW = (dx[..., 0] * dy[..., 1] - dx[..., 1] * dy[..., 0]) * _GRID**2
    relative = area_BHW / area_BHW.flatten(1).median(1).values[:, None, None].clamp_min(1e-3)
    ratio = torch.minimum(relative, 1 / relative.clamp_min(1e-3)).clamp_min(0)
    return ((ratio - 0.3) / 0.4).clamp(0, 1)


def inside(place_P2: torch.Tensor, polygon_BN2: torch.Tensor) -> torch.Tensor:
    """1 for places inside of closed polygons, by the even-odd rule: [B, P]."""
    a_BN1, b_BN1 = polygon_BN2[:, :, None], polygon_BN2.roll(-1, 1)[:, :, None]
    px, py = place_P2[:, 0], place_P2[:, 1]
    crosses = (a_BN1[..., 1] > py) != (b_BN1[..., 1] > py)
    slope = (b_BN1[..., 0] - a_BN1[..., 0]) / (b_BN1[..., 1] - a_BN1[..., 1]).where(crosses, torch.ones_like(py))
    at_x = a_BN1[..., 0] + slope * (py - a_BN1[..., 1])
    return ((crosses & (px < at_x)).sum(1) % 2).float()


def _spot(place_P2: torch.Tensor, contour_BN2: torch.Tensor, reach: float) -> torch.Tensor:
    """A soft spot over the middle of a contour, `reach` of its width wide: [B, P]."""
    centre_B12 = contour_BN2.mean(1, keepdim=True)
    width_B1 = contour_BN2[..., 0].amax(1, keepdim=True) - contour_BN2[..., 0].amin(1, keepdim=True)
    squared_BP = (place_P2 - centre_B12).square().sum(-1)
    return torch.exp(-squared_BP / (reach * width_B1).square().clamp_min(1e-6))
