"""Measures of a face mesh: alignment, head pose, openness of eyes and mouth, expression.

Pure, batched, differentiable torch functions of `mesh_BK3` [B, 468, 3]: x to the right, y down, z away from the camera,
all three in one unit (any: pixels, fractions of a crop). Shape letters: B batch, K 468 points, N a subset of them, M
measures.
"""

from functools import lru_cache
from importlib import resources
from typing import Final, NamedTuple

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor

from latentswap.shape import topology as T

EXPRESSION_NAMES: Final = (
    "eye_openness_right",  # lid gap / eye width
    "eye_openness_left",
    "brow_height_right",  # brow above the eye corners; from here on in units of the mean mesh's outer eye distance
    "brow_height_left",
    "mouth_openness",  # gap between the inner lips
    "mouth_width",  # distance between the outer mouth corners
    "mouth_corner_lift",  # corners above the middle of the upper lip's inner edge
    "jaw_drop",  # chin below the base of the nose
)

_LID_PAIRS = slice(2, 5)  # the three pairs in the middle of the eye; nearer the corners the gap says little
_LIP_PAIRS = slice(1, 4)
_EPSILON = 1e-12  # on squared, scale-free gaps: keeps the gradient finite when lids or lips touch


class Alignment(NamedTuple):
    """A similarity transform, x ↦ scale · rotation · x + translation, and the mesh it was applied to."""

    scale_B: Tensor
    rotation_B33: Tensor
    translation_B3: Tensor
    mesh_BK3: Tensor


@lru_cache(maxsize=16)
def _asset(device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    data = resources.files("latentswap").joinpath("assets/mesh_mean.safetensors").read_bytes()
    return {
        name: value.to(device=device, dtype=dtype if value.is_floating_point() else None)
        for name, value in load_safetensors(data).items()
    }


@lru_cache(maxsize=256)
def _index(indices: T.Indices, device: torch.device) -> Tensor:
    return torch.tensor(indices, device=device)


def _take(mesh_BK3: Tensor, indices: T.Indices) -> Tensor:
    return mesh_BK3.index_select(1, _index(indices, mesh_BK3.device))


def mean_mesh(device: torch.device | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """The mean face [468, 3], in fractions of an FFHQ-aligned crop: frontal, exactly symmetric about x = 0.5.

    Procrustes mean over 208 generated people; its pitch is the mean pitch of FFHQ-like pictures. Do not write to it.
    """
    return _asset(device or torch.device("cpu"), dtype)["mesh_K3"]


def mirror_indices(device: torch.device | None = None) -> Tensor:
    """int64 [468]: the point that each point becomes when the picture is mirrored."""
    return _asset(device or torch.device("cpu"), torch.float32)["mirror_K"]


def expression_statistics(
    device: torch.device | None = None, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [M] of `expression_measures` over the people of the mean mesh."""
    asset = _asset(device or torch.device("cpu"), dtype)
    return asset["expression_mean_M"], asset["expression_std_M"]


def nearest_rotation(matrix_B33: Tensor) -> Tensor:
    """The rotations that maximise trace(rotationᵀ · matrix), by SVD; determinant +1 [B, 3, 3].

    The gradient is the exact first-order one of the polar factor. It needs only that the two smallest singular values
    do not cancel, where differentiating the SVD itself would need them to be distinct.
    """
    with torch.no_grad():
        left_B33, _, right_B33 = torch.linalg.svd(matrix_B33)
        sign_B = torch.linalg.det(left_B33 @ right_B33).sign()
        flip_B3 = torch.stack((torch.ones_like(sign_B), torch.ones_like(sign_B), sign_B), dim=-1)
        rotation_B33 = (left_B33 * flip_B3[:, None]) @ right_B33
        stretch_B33 = rotation_B33.mT @ matrix_B33
        stretch_B33 = (stretch_B33 + stretch_B33.mT) / 2
        eye_33 = torch.eye(3, device=matrix_B33.device, dtype=matrix_B33.dtype)
        trace_B11 = stretch_B33.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
        inverse_B33 = torch.linalg.inv(trace_B11 * eye_33 - stretch_B33)
    # matrix = R·S; R·exp[ω] stays optimal under a change dM when [ω]S + S[ω] = RᵀdM − dMᵀR, which is
    # (tr(S)·1 − S)·ω = vee(RᵀdM − dMᵀR). At the optimum itself ω is zero.
    turned_B33 = rotation_B33.mT @ matrix_B33
    skew_B33 = turned_B33 - turned_B33.mT
    vee_B3 = torch.stack((skew_B33[:, 2, 1], skew_B33[:, 0, 2], skew_B33[:, 1, 0]), dim=-1)
    x_B, y_B, z_B = (inverse_B33 @ vee_B3[..., None])[..., 0].unbind(-1)
    zero_B = torch.zeros_like(x_B)
    omega_B33 = torch.stack((zero_B, -z_B, y_B, z_B, zero_B, -x_B, -y_B, x_B, zero_B), dim=-1).reshape(-1, 3, 3)
    return rotation_B33 + rotation_B33 @ omega_B33


def similarity_align(mesh_BK3: Tensor, reference_BK3: Tensor | None = None, indices: T.Indices = T.RIGID) -> Alignment:
    """Least-squares similarity transform of each mesh onto a reference (Umeyama, PAMI 1991).

    Args:
        mesh_BK3: meshes in any unit.
        reference_BK3: [B, 468, 3], [1, 468, 3] or [468, 3]; the mean mesh when absent.
        indices: points that the transform is fitted on; all points are transformed.

    Returns:
        The transform and the aligned mesh, in the reference's unit.
    """
    if reference_BK3 is None:
        reference_BK3 = mean_mesh(mesh_BK3.device, mesh_BK3.dtype)
    if reference_BK3.ndim == 2:
        reference_BK3 = reference_BK3[None]
    source_BN3, target_BN3 = _take(mesh_BK3, indices), _take(reference_BK3, indices)
    source_mean_B13, target_mean_B13 = source_BN3.mean(1, keepdim=True), target_BN3.mean(1, keepdim=True)
    source_BN3, target_BN3 = source_BN3 - source_mean_B13, target_BN3 - target_mean_B13
    covariance_B33 = target_BN3.mT @ source_BN3
    # Dividing by the size changes no rotation and keeps the inverse in it well scaled for pixels and fractions alike.
    size_B = covariance_B33.detach().flatten(1).norm(dim=1).clamp_min(torch.finfo(mesh_BK3.dtype).tiny)
    rotation_B33 = nearest_rotation(covariance_B33 / size_B[:, None, None])
    scale_B = (rotation_B33 * covariance_B33).sum((1, 2)) / source_BN3.square().sum((1, 2))
    linear_B33 = scale_B[:, None, None] * rotation_B33
    translation_B3 = (target_mean_B13 - source_mean_B13 @ linear_B33.mT)[:, 0]
    return Alignment(scale_B, rotation_B33, translation_B3, mesh_BK3 @ linear_B33.mT + translation_B3[:, None])


def euler_degrees(rotation_B33: Tensor) -> Tensor:
    """Angles [B, 3] = yaw, pitch, roll in degrees of rotations R = R_z(roll) · R_y(−yaw) · R_x(pitch).

    Positive yaw looks to the picture's right, positive pitch down, positive roll is clockwise in the picture.
    """
    r = rotation_B33
    yaw_B = torch.atan2(r[:, 2, 0], torch.hypot(r[:, 2, 1], r[:, 2, 2]))
    pitch_B = torch.atan2(r[:, 2, 1], r[:, 2, 2])
    roll_B = torch.atan2(r[:, 1, 0], r[:, 0, 0])
    return torch.rad2deg(torch.stack((yaw_B, pitch_B, roll_B), dim=-1))


def head_pose(mesh_BK3: Tensor) -> Tensor:
    """Yaw, pitch, roll [B, 3] in degrees of the head against the mean mesh (signs: `euler_degrees`, `types.Face`)."""
    return euler_degrees(similarity_align(mesh_BK3).rotation_B33.mT)


def _distance(mesh_BK3: Tensor, pair: T.Indices) -> Tensor:
    ends_B23 = _take(mesh_BK3, pair)
    return (ends_B23[:, 0] - ends_B23[:, 1]).norm(dim=-1)


def _gap(mesh_BK3: Tensor, upper: T.Indices, lower: T.Indices, width_B: Tensor) -> Tensor:
    gaps_BN3 = (_take(mesh_BK3, upper) - _take(mesh_BK3, lower)) / width_B[:, None, None]
    return (gaps_BN3.square().sum(-1) + _EPSILON).sqrt().mean(-1)


def openness(mesh_BK3: Tensor) -> tuple[Tensor, Tensor]:
    """How far eyes and mouth are open; unchanged by any similarity transform of the mesh.

    Returns:
        eyes_B2: right, left: mean gap between the lids over the width of the eye (about 0.05 shut, 0.3 open);
        mouth_B: mean gap between the inner lips over the width between the inner mouth corners (0 shut).
    """
    right_B = _gap(
        mesh_BK3,
        T.RIGHT_UPPER_LID[_LID_PAIRS],
        T.RIGHT_LOWER_LID[_LID_PAIRS],
        _distance(mesh_BK3, T.RIGHT_EYE_CORNERS),
    )
    left_B = _gap(
        mesh_BK3, T.LEFT_UPPER_LID[_LID_PAIRS], T.LEFT_LOWER_LID[_LID_PAIRS], _distance(mesh_BK3, T.LEFT_EYE_CORNERS)
    )
    width_B = _distance(mesh_BK3, T.INNER_MOUTH_CORNERS)
    mouth_B = _gap(mesh_BK3, T.INNER_UPPER_LIP[_LIP_PAIRS], T.INNER_LOWER_LIP[_LIP_PAIRS], width_B)
    return torch.stack((right_B, left_B), dim=-1), mouth_B


def expression_measures(mesh_BK3: Tensor, mean_K3: Tensor | None = None) -> Tensor:
    """Scale- and pose-free measures of expression [B, M], in the order of `EXPRESSION_NAMES`.

    Taken after the alignment of the rigid points onto the mean mesh (`mean_K3`, or the package's own when absent);
    heights are along the aligned face's own vertical.
    """
    if mean_K3 is None:
        mean_K3 = mean_mesh(mesh_BK3.device, mesh_BK3.dtype)
    unit_1 = _distance(mean_K3[None], (T.RIGHT_EYE_CORNERS[0], T.LEFT_EYE_CORNERS[0]))
    face_BK3 = similarity_align(mesh_BK3, mean_K3).mesh_BK3 / unit_1
    eyes_B2, _ = openness(face_BK3)

    def height(upper: T.Indices, lower: T.Indices) -> Tensor:
        return _take(face_BK3, lower)[..., 1].mean(-1) - _take(face_BK3, upper)[..., 1].mean(-1)

    upper_lip, lower_lip = T.INNER_UPPER_LIP[_LIP_PAIRS], T.INNER_LOWER_LIP[_LIP_PAIRS]
    measures = (
        eyes_B2[:, 0],
        eyes_B2[:, 1],
        height(T.RIGHT_BROW, T.RIGHT_EYE_CORNERS),
        height(T.LEFT_BROW, T.LEFT_EYE_CORNERS),
        _gap(face_BK3, upper_lip, lower_lip, torch.ones_like(eyes_B2[:, 0])),
        _distance(face_BK3, T.MOUTH_CORNERS),
        height(T.MOUTH_CORNERS, T.INNER_UPPER_LIP[2:3]),
        height(T.NOSE_BASE[2:3], (T.CHIN,)),
    )
    return torch.stack(measures, dim=-1)
