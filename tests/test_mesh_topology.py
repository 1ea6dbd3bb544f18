"""The index lists, checked against the symmetric mean mesh."""

import math

import pytest
import torch

from latentswap.shape import topology as T
from latentswap.shape.measures import mean_mesh, mirror_indices

CONTOURS = {
    "RIGHT_EYE": (T.RIGHT_EYE, 16),
    "LEFT_EYE": (T.LEFT_EYE, 16),
    "OUTER_LIPS": (T.OUTER_LIPS, 20),
    "INNER_LIPS": (T.INNER_LIPS, 20),
    "FACE_OVAL": (T.FACE_OVAL, 36),
    "EYE_68_RIGHT": (T.EYE_68_RIGHT, 6),
    "EYE_68_LEFT": (T.EYE_68_LEFT, 6),
}


def points(indices: T.Indices) -> torch.Tensor:
    return mean_mesh()[list(indices)]


def mirrored(indices: T.Indices) -> T.Indices:
    return tuple(mirror_indices()[list(indices)].tolist())


def test_mirror_is_an_involution_that_keeps_the_mean_mesh() -> None:
    mirror_K, mesh_K3 = mirror_indices(), mean_mesh()
    assert torch.equal(mirror_K[mirror_K], torch.arange(468))
    flipped_K3 = mesh_K3[mirror_K] * torch.tensor([-1.0, 1.0, 1.0]) + torch.tensor([1.0, 0.0, 0.0])
    torch.testing.assert_close(flipped_K3, mesh_K3, atol=1e-6, rtol=0)
    assert {10, 152, 168, 1, 4, 13, 14} <= set(torch.nonzero(mirror_K == torch.arange(468)).flatten().tolist())


@pytest.mark.parametrize("name", CONTOURS)
def test_contours_are_closed_curves_in_order(name: str) -> None:
    """Seen from its middle, a contour goes round once, always the same way."""
    indices, length = CONTOURS[name]
    assert len(set(indices)) == len(indices) == length
    xy_N2 = points(indices)[:, :2]
    middle_2 = (xy_N2.amin(0) + xy_N2.amax(0)) / 2
    angle_N = torch.atan2(*(xy_N2 - middle_2).flip(1).unbind(1))
    turn_N = torch.remainder(angle_N.roll(-1) - angle_N + math.pi, 2 * math.pi) - math.pi
    assert (turn_N > 0).all() or (turn_N < 0).all()
    assert abs(turn_N.sum().item()) == pytest.approx(2 * math.pi, abs=1e-4)


@pytest.mark.parametrize(
    ("right", "left"),
    [
        (T.RIGHT_EYE, T.LEFT_EYE),
        (T.RIGHT_UPPER_LID, T.LEFT_UPPER_LID),
        (T.RIGHT_LOWER_LID, T.LEFT_LOWER_LID),
        (T.RIGHT_EYE_CORNERS, T.LEFT_EYE_CORNERS),
        (T.RIGHT_BROW_UPPER, T.LEFT_BROW_UPPER),
        (T.RIGHT_BROW_LOWER, T.LEFT_BROW_LOWER),
        (T.MOUTH_CORNERS[:1], T.MOUTH_CORNERS[1:]),
        (T.INNER_MOUTH_CORNERS[:1], T.INNER_MOUTH_CORNERS[1:]),
    ],
)
def test_left_is_the_mirror_image_of_right(right: T.Indices, left: T.Indices) -> None:
    assert mirrored(right) == left
    assert points(right)[:, 0].max() < 0.5 < points(left)[:, 0].min()  # the right side is on the picture's left


@pytest.mark.parametrize("indices", [T.RIGID, T.FACE_OVAL, T.OUTER_LIPS, T.INNER_LIPS, T.NOSE])
def test_middle_groups_are_symmetric(indices: T.Indices) -> None:
    assert set(mirrored(indices)) == set(indices)
    assert len(set(indices)) == len(indices)


@pytest.mark.parametrize(
    ("upper", "lower"),
    [
        (T.RIGHT_UPPER_LID, T.RIGHT_LOWER_LID),
        (T.LEFT_UPPER_LID, T.LEFT_LOWER_LID),
        (T.INNER_UPPER_LIP, T.INNER_LOWER_LIP),
        (T.RIGHT_BROW_UPPER, T.RIGHT_BROW_LOWER),
    ],
)
def test_pairs_lie_above_one_another(upper: T.Indices, lower: T.Indices) -> None:
    up_N3, low_N3 = points(upper), points(lower)
    assert (up_N3[:, 1] < low_N3[:, 1]).all()
    assert ((up_N3[:, 0] - low_N3[:, 0]).abs() < 0.02).all()


def test_the_face_is_in_order_from_top_to_bottom() -> None:
    order = [
        *(T.FACE_OVAL[:1], T.RIGHT_BROW_UPPER, T.RIGHT_BROW_LOWER, T.RIGHT_UPPER_LID, T.RIGHT_LOWER_LID),
        *((T.NOSE_TIP,), T.NOSE_BASE, T.INNER_UPPER_LIP, T.INNER_LOWER_LIP, (T.CHIN,)),
    ]
    heights = [points(indices)[:, 1].mean().item() for indices in order]
    assert heights == sorted(heights)
    assert mean_mesh()[:, 2].argmin() in (1, 4)  # nothing is nearer to the camera than the tip of the nose
    assert mean_mesh()[:, 1].argmax() == T.CHIN


def test_five_points_are_where_ffhq_puts_them() -> None:
    five_N2 = torch.stack([points(group).mean(0)[:2] for group in T.FIVE_POINTS])
    expected_N2 = torch.tensor([[0.38, 0.475], [0.62, 0.475], [0.5, 0.61], [0.40, 0.70], [0.60, 0.70]])
    assert (five_N2 - expected_N2).abs().max() < 0.04
