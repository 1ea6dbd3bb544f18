"""FFHQ alignment and resampling."""

import numpy as np
import pytest
from _face_support import mean_mesh_px, similarity, smooth_picture
from hypothesis import given
from hypothesis import strategies as st

from latentswap.face.align import cut, cut_face, ffhq_affine, invert_affine, move_mesh, move_points, warp

SIMILARITIES = st.builds(
    similarity,
    angle=st.floats(-180, 180),
    scale=st.floats(0.02, 50),
    x=st.floats(-5000, 5000),
    y=st.floats(-5000, 5000),
)


def dot(height: int, width: int, x: float, y: float, sigma: float) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width] + 0.5
    spot = 200 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2))
    return np.repeat(np.rint(spot).astype(np.uint8)[..., None], 3, axis=2)


def centroid(pixels: np.ndarray) -> tuple[float, float]:
    weight = pixels[..., 0].astype(float)
    rows, columns = np.mgrid[: weight.shape[0], : weight.shape[1]] + 0.5
    return (weight * columns).sum() / weight.sum(), (weight * rows).sum() / weight.sum()


@given(SIMILARITIES)
def test_inverse_undoes_the_matrix(affine):
    inverse = invert_affine(affine)
    # Measured from the inverse's own origin: pixels far from the crop lose digits to the translation alone.
    points = np.array([[0.0, 0.0], [1024.0, 0.0], [317.5, 911.25]])
    back = move_points(move_points(points, affine), inverse)
    assert np.abs(back - points).max() <= 1e-9 * max(1.0, np.abs(inverse).max(), np.abs(affine).max())


def test_round_trip_of_a_face_is_exact():
    affine = ffhq_affine(move_mesh_64(mean_mesh_px(1024), similarity(angle=33, scale=0.21, x=900, y=300)), 1024)
    points = np.random.default_rng(0).uniform(0, 1500, (100, 2))
    assert np.abs(move_points(move_points(points, affine), invert_affine(affine)) - points).max() <= 1e-9


def move_mesh_64(mesh_K3: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return move_points(mesh_K3[:, :2], affine)


@given(SIMILARITIES)
def test_alignment_follows_the_face(move):
    mesh = mean_mesh_px(1024)
    straight = move_points(mesh[:, :2], ffhq_affine(mesh, 512))
    moved = move_mesh_64(mesh, move)
    assert np.abs(move_points(moved, ffhq_affine(moved, 512)) - straight).max() < 1e-6


def test_aligned_mesh_needs_no_alignment():
    mesh = mean_mesh_px(1024)
    aligned = move_mesh_64(mesh, ffhq_affine(mesh, 1024))
    assert np.abs(ffhq_affine(aligned, 1024) - np.eye(2, 3)).max() < 1e-9


def test_mean_generated_face_is_aligned_already():
    # The mean mesh is measured on generated people, which are FFHQ-aligned by construction.
    corners = np.array([[0.0, 0.0], [1024.0, 0.0], [0.0, 1024.0], [1024.0, 1024.0]])
    moved = move_points(corners, ffhq_affine(mean_mesh_px(1024), 1024))
    assert np.abs(moved - corners).max() < 16


def test_depth_takes_the_scale():
    mesh = mean_mesh_px(1024)
    moved = move_mesh(mesh, similarity(angle=90, scale=0.5, x=0, y=0))
    np.testing.assert_allclose(moved[:, 2], mesh[:, 2] / 2, rtol=1e-6)
    np.testing.assert_allclose(moved[:, :2], np.stack([-mesh[:, 1], mesh[:, 0]], axis=1) / 2, atol=1e-3)


def test_mesh_without_extent_is_refused():
    with pytest.raises(ValueError, match="no extent"):
        ffhq_affine(np.zeros((468, 3)), 512)


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_quarter_turns_are_exact(turns):
    picture = np.random.default_rng(turns).integers(0, 256, (64, 64, 3), np.uint8)
    affine = np.eye(2, 3)
    for _ in range(turns):  # one turn of np.rot90 takes (x, y) to (y, 64 - x)
        affine = np.array([[0, 1, 0], [-1, 0, 64.0]]) @ np.vstack([affine, [0, 0, 1]])
    assert np.array_equal(cut(picture, affine, 64), np.rot90(picture, turns))


@pytest.mark.parametrize("scale", [0.13, 0.37, 0.5, 0.71, 0.99, 1.0, 1.7, 6.3])
def test_a_point_lands_where_the_matrix_says(scale):
    size = 160
    affine = similarity(angle=23, scale=scale, x=0, y=0)
    affine[:, 2] = (84.2, 70.4) - affine[:, :2] @ (801.3, 752.8)
    crop = cut(dot(1500, 1600, 801.3, 752.8, max(1.5, 4 / scale)), affine, size)
    assert centroid(crop) == pytest.approx((84.2, 70.4), abs=0.08)


def test_shrinking_does_not_alias():
    checks = np.indices((800, 800)).sum(axis=0) % 2 * 255
    picture = np.repeat(checks.astype(np.uint8)[..., None], 3, axis=2)
    crop = cut(picture, similarity(angle=0, scale=0.23, x=5, y=5), 160).astype(int)
    assert np.abs(crop - 127).max() <= 12


def test_picture_is_continued_outside_of_its_edges():
    picture = smooth_picture(300, 300)
    affine = similarity(angle=10, scale=1.5, x=120, y=90)
    crop = cut(picture, affine, 512)
    framed = np.pad(picture, ((200, 200), (200, 200), (0, 0)), mode="symmetric")
    shifted = affine.copy()
    shifted[:, 2] -= affine[:, :2] @ (200, 200)
    rows, columns = np.mgrid[:512, :512] + 0.5
    places = move_points(np.stack([columns, rows], axis=-1).reshape(-1, 2), invert_affine(affine)).reshape(512, 512, 2)
    inside = ((places > 3) & (places < 297)).all(axis=-1)
    assert inside.any() and not inside.all()
    assert np.array_equal(crop[inside], cut(framed, shifted, 512)[inside])
    median = np.median(crop[inside], axis=0)
    assert np.abs(crop[:4, :4].astype(int) - median).max() < 40  # far outside: nearly the median


def test_nothing_outside_of_the_array_is_read():
    held = np.full((90, 90, 3), 255, np.uint8)
    held[20:60, 30:70] = smooth_picture(40, 40)
    affine = similarity(angle=-40, scale=2.3, x=60, y=40)
    assert np.array_equal(cut(held[20:60, 30:70], affine, 128), cut(smooth_picture(40, 40), affine, 128))


def test_crop_wholly_outside_is_flat_and_finite():
    crop = cut(smooth_picture(50, 50), similarity(angle=0, scale=1, x=4000, y=4000), 64)
    assert crop.shape == (64, 64, 3)
    assert np.ptp(crop.reshape(-1, 3), axis=0).max() == 0


def test_one_channel_and_float_pictures():
    ramp = np.linspace(0, 1, 64, dtype=np.float32)[None].repeat(64, axis=0)
    result = warp(ramp, similarity(angle=0, scale=0.5, x=0, y=0), 32, 32, border=1)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, ramp.reshape(32, 2, 32, 2).mean(axis=(1, 3)), atol=5e-3)


def test_cut_face_keeps_mesh_and_matrix_together():
    picture = smooth_picture(700, 700)
    mesh = move_mesh(mean_mesh_px(256), similarity(angle=12, scale=1, x=200, y=180))
    crop = cut_face(picture, mesh, 256)
    np.testing.assert_allclose(crop.mesh_K3[:, :2], move_points(mesh[:, :2].astype(float), crop.affine), atol=1e-3)
    assert crop.size == 256
