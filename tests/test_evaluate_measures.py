"""Measures against cases made by hand: what they must be, and which way they must move."""

import cv2
import numpy as np
import pytest
from _face_support import mean_mesh_px, similarity, smooth_picture

from latentswap.evaluate import measures as M
from latentswap.face.align import move_mesh
from latentswap.face.mask import face_mask
from latentswap.shape import topology as T
from latentswap.shape.measures import expression_statistics


@pytest.fixture(scope="module")
def mesh() -> np.ndarray:
    return mean_mesh_px(M.SIZE)


@pytest.fixture(scope="module")
def mask(mesh) -> np.ndarray:
    return face_mask(mesh, M.SIZE)


def turned(mesh: np.ndarray, yaw: float) -> np.ndarray:
    """The head turned about its vertical by `yaw` degrees."""
    angle, centre = np.deg2rad(yaw), mesh.mean(axis=0)
    turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    return (mesh - centre) @ turn.T + centre


def open_mouth(mesh: np.ndarray, pixels: float) -> np.ndarray:
    moved = mesh.copy()
    moved[list(T.INNER_LOWER_LIP), 1] += pixels
    return moved


def test_cosine_and_rank():
    a, b = np.array([3.0, 0.0]), np.array([1.0, 1.0])
    assert M.cosine(a, a) == pytest.approx(1) and M.cosine(a, b) == pytest.approx(np.sqrt(0.5))
    gallery = np.eye(4)
    result = np.array([0.1, 0.9, 0.3, 0.2])
    assert [M.rank(result, gallery, own) for own in range(4)] == [4, 1, 2, 3]


@pytest.mark.parametrize("yaw", [3.0, 12.0])
def test_pose_error_is_the_angle(mesh, yaw):
    assert M.pose_error(turned(mesh, yaw), mesh) == pytest.approx(yaw, abs=0.05)
    rolled = move_mesh(mesh, similarity(angle=7, scale=1.3, x=20, y=-9))
    assert M.pose_error(rolled, mesh) == pytest.approx(7, abs=0.05)


def test_place_size_and_pose_are_no_expression(mesh):
    moved = turned(move_mesh(mesh, similarity(angle=10, scale=0.7, x=50, y=80)), 15)
    assert M.expression_error(moved, mesh) < 0.02
    assert M.landmark_error(moved, mesh) < 0.02
    assert max(M.openness_error(moved, mesh)) < 1e-3


def test_an_open_mouth_is_seen(mesh):
    little, much = open_mouth(mesh, 4), open_mouth(mesh, 12)
    for error in (M.expression_error, M.landmark_error):
        assert error(mesh, mesh) == 0 < error(little, mesh) < error(much, mesh)
    eyes, mouth = M.openness_error(much, mesh)
    width = np.linalg.norm(np.subtract(*mesh[list(T.INNER_MOUTH_CORNERS)]))
    assert eyes == 0 and mouth == pytest.approx(12 / width, rel=0.2)


def test_expression_error_counts_standard_deviations(mesh):
    """A brow lifted by one standard deviation moves one of eight measures by 1: its root mean square is √(1/8)."""
    _, std_M = expression_statistics()
    lifted = mesh.copy()
    unit = np.linalg.norm(np.subtract(*mesh[[T.RIGHT_EYE_CORNERS[0], T.LEFT_EYE_CORNERS[0]]]))
    lifted[list(T.RIGHT_BROW), 1] -= float(std_M[2]) * unit
    assert M.expression_error(lifted, mesh) == pytest.approx(np.sqrt(1 / 8), rel=0.05)


def test_landmark_error_is_a_share_of_the_crop(mesh):
    """Points moved by 1 % of the side: those of eyes and lips count with their share of all contour points."""
    moved = mesh.copy()
    lips = list(T.OUTER_LIPS + T.INNER_LIPS)
    moved[lips, 0] += 0.01 * M.SIZE
    share = len(lips) / (len(lips) + len(T.RIGHT_EYE + T.LEFT_EYE))
    assert M.landmark_error(moved, mesh) == pytest.approx(share, rel=0.02)


def test_background_error_sees_what_lies_outside_of_the_face_alone(mask):
    target = smooth_picture(400, 600)
    affine = similarity(angle=8, scale=1.6, x=-150, y=-60)
    inside = target.copy()
    covered = cv2.warpAffine((mask > 0).astype(np.uint8), affine, (600, 400), flags=cv2.WARP_INVERSE_MAP) > 0
    assert covered.any() and not covered.all()
    inside[covered] = 255
    assert M.background_error(inside, target, mask, affine) == 0
    assert M.background_error(target + 3, target, mask, affine) == pytest.approx(3)
    leak = inside.copy()
    leak[:40, :40] = 0
    assert M.background_error(leak, target, mask, affine) > 0.1


def test_a_picture_that_is_all_face_has_no_background():
    target = smooth_picture(80, 80)
    assert (
        M.background_error(target + 9, target, np.ones((M.SIZE, M.SIZE)), similarity(angle=0, scale=6, x=0, y=0)) == 0
    )


def blend(mask: np.ndarray, offset: float) -> tuple[np.ndarray, np.ndarray]:
    """A face of other texture, brighter by `offset`, blended into a picture with `mask`."""
    target = smooth_picture(M.SIZE, M.SIZE)
    texture = np.random.default_rng(1).normal(0, 6, (M.SIZE, M.SIZE, 1))
    face = target + cv2.GaussianBlur(texture, (0, 0), 3)[..., None] * 4 + offset
    return np.clip(np.rint(target + mask[..., None] * (face - target)), 0, 255).astype(np.uint8), target


def test_seam_rises_when_a_seam_is_drawn(mask):
    hard = (mask > 0.5).astype(np.float32)
    soft = [M.seam(*blend(mask, offset), mask) for offset in (0, 10, 20)]
    cut = [M.seam(*blend(hard, offset), mask) for offset in (0, 10, 20)]
    assert cut[0] < cut[1] < cut[2] and cut[2] == pytest.approx(20, abs=4)
    assert cut[1] > soft[1] + 3 and cut[2] > soft[2] + 8
    assert M.seam(*blend(mask, 0), mask) < 3


def test_seam_of_an_unchanged_picture_and_of_no_edge(mask):
    target = smooth_picture(M.SIZE, M.SIZE)
    assert M.seam(target, target, mask) == 0
    assert M.seam(target + 5, target, np.ones_like(mask)) == 0
    assert M.seam(target + 5, target, np.zeros_like(mask)) == 0


def test_a_line_along_the_edge_is_a_seam(mask):
    target = smooth_picture(M.SIZE, M.SIZE)
    edge = cv2.morphologyEx((mask > 0.5).astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    drawn = target.copy()
    drawn[edge] += 30
    assert M.seam(drawn, target, mask) > 8


def test_hair_in_place_of_skin_is_no_seam(mask):
    """A large difference of content along half of the edge leaves the measure where it was."""
    result, target = blend(mask, 0)
    hair = result.copy()
    hair[:200][mask[:200] > 0.3] = 0
    assert M.seam(hair, target, mask) < M.seam(result, target, mask) + 4
