"""SimSwap's alignments: templates, the fit against scikit-image's, the choice among poses."""

import numpy as np
import pytest
from _face_support import mean_mesh_px, similarity
from hypothesis import given, settings
from hypothesis import strategies as st

from latentswap.face.align import affine_scale, ffhq_affine, move_points
from latentswap.face.align_arcface import (
    ALIGNMENTS,
    FFHQ,
    POSES,
    fit_pose,
    fit_similarity,
    five_points,
    pose_affine,
    template_affine,
)

transform = pytest.importorskip("skimage.transform")


def oracle(points: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    return transform.SimilarityTransform.from_estimate(points, wanted).params[:2]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    angle=st.floats(-180, 180),
    scale=st.floats(0.05, 20),
    noise=st.sampled_from([0, 2, 15]),
)
def test_the_fit_is_scikit_images(seed, angle, scale, noise):
    rng = np.random.default_rng(seed)
    wanted = POSES["frontal"] + rng.normal(0, noise, (5, 2))
    points = move_points(POSES["frontal"], similarity(angle=angle, scale=scale, x=30, y=-400))
    assert np.allclose(fit_similarity(points, wanted), oracle(points, wanted), atol=1e-6 * max(1, 1 / scale))


def test_a_mirrored_face_is_not_mirrored_back():
    points = POSES["left"] * (-1, 1)
    affine = fit_similarity(points, POSES["left"])
    assert np.allclose(affine, oracle(points, POSES["left"])) and np.linalg.det(affine[:, :2]) > 0
    assert np.abs(move_points(points, affine) - POSES["left"]).max() > 5


def test_points_that_coincide():
    with pytest.raises(ValueError, match="coincide"):
        fit_similarity(np.ones((5, 2)), FFHQ)


def face_at(template: np.ndarray) -> np.ndarray:
    """A mesh whose five points lie on a template: eyes by all their points."""
    from latentswap.shape.topology import FIVE_POINTS

    mesh = np.zeros((468, 3))
    for group, point in zip(FIVE_POINTS, template, strict=True):
        mesh[list(group), :2] = point
    return mesh


@pytest.mark.parametrize("name", POSES)
@pytest.mark.parametrize("size", [112, 224, 448])
def test_each_template_chooses_itself_and_pixels_lie_where_published(name, size):
    turned = similarity(angle=20, scale=3, x=100, y=50)
    # cv2.warpAffine with the published matrix counts picture and crop from the first pixel's centre.
    mesh = face_at(move_points(POSES[name], turned) + 0.5)
    chosen, affine = fit_pose(mesh, size)
    assert chosen == name
    assert np.allclose(move_points(five_points(mesh), affine) - 0.5, POSES[name] * size / 112, atol=1e-3)
    assert np.allclose(affine, pose_affine(mesh, size))


def test_mirrored_poses_are_mirror_images():
    for name, other in (("left", "right"), ("left profile", "right profile"), ("frontal", "frontal")):
        mirrored = (112 - POSES[name])[[1, 0, 2, 4, 3], 0]
        assert np.abs(mirrored - POSES[other][:, 0]).max() < 0.6


def test_turned_heads_take_turned_templates():
    mesh = mean_mesh_px(256)
    mesh -= (*mesh[:, :2].mean(0), mesh[:, 2].mean())
    chosen = {}
    for yaw in (-60, -30, 0, 30, 60):
        a = np.deg2rad(yaw)
        turned = mesh @ np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
        chosen[yaw] = fit_pose(turned + 200, 224)[0]
    assert chosen[0] == "frontal"
    assert {chosen[-60].split()[0], chosen[60].split()[0]} == {"left", "right"}
    assert chosen[-60].split()[0] != chosen[60].split()[0]
    # The nose points to where the head looks: the picture's left has the smaller x.
    left = next(yaw for yaw in (-60, 60) if chosen[yaw].startswith("left"))
    a = np.deg2rad(left)
    turned = mesh @ np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    points = five_points(turned)
    assert points[2, 0] < points[:2, 0].mean()


@pytest.mark.parametrize("name", ALIGNMENTS)
def test_alignment_follows_the_face(name):
    mesh = mean_mesh_px(256)
    moved = similarity(angle=33, scale=1.7, x=-20, y=90)
    there = mesh.copy()
    there[:, :2] = move_points(mesh[:, :2], moved)
    affine, other = ALIGNMENTS[name](mesh, 224), ALIGNMENTS[name](there, 224)
    assert np.allclose(move_points(there[:, :2], other), move_points(mesh[:, :2], affine), atol=1e-6)
    assert affine_scale(ALIGNMENTS[name](mesh, 448)) == pytest.approx(2 * affine_scale(affine))


def test_the_512_template_lies_as_ffhq_crops_do():
    mesh = mean_mesh_px(1024)
    ours, theirs = (move_points(mesh[:, :2], f(mesh, 512)) for f in (ffhq_affine, template_affine))
    assert np.abs(ours - theirs).max() < 12
    assert np.abs(ours - theirs).mean() < 6
