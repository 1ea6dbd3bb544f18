"""The soft mask of the face."""

import numpy as np
from _face_support import mean_mesh_px, similarity
from hypothesis import given, settings
from hypothesis import strategies as st

from latentswap.face.align import move_mesh
from latentswap.face.mask import face_mask, far_side
from latentswap.shape import topology as T

SIZE = 512


def at(mask: np.ndarray, points_N2: np.ndarray) -> np.ndarray:
    columns, rows = np.floor(points_N2[:, :2]).astype(int).T
    return mask[rows, columns]


def test_covers_features_and_jaw_but_not_the_hairline():
    mesh = mean_mesh_px(SIZE)
    mask = face_mask(mesh, SIZE)
    assert mask.dtype == np.float32 and mask.shape == (SIZE, SIZE)
    features = T.RIGHT_EYE + T.LEFT_EYE + T.OUTER_LIPS + T.NOSE + T.RIGHT_BROW + T.LEFT_BROW
    assert at(mask, mesh[list(features)]).min() > 0.97
    assert at(mask, mesh[[T.CHIN]]).min() > 0.6
    assert at(mask, mesh[[T.FACE_OVAL[0]]]).max() < 0.05  # top of the forehead
    assert mask[:8].max() == mask[-1].max() == mask[:, 0].max() == mask[:, -1].max() == 0


def test_union_covers_both_jaws():
    mesh = mean_mesh_px(SIZE)
    wide = mesh.copy()
    wide[:, 0] = (wide[:, 0] - SIZE / 2) * 1.15 + SIZE / 2
    both = face_mask(mesh, SIZE, other_K3=wide)
    for single in (mesh, wide):
        assert at(both, single[list(T.FACE_OVAL[12:24])]).min() > 0.55
        assert (both >= face_mask(single, SIZE) - 0.1).all()
    assert np.array_equal(both, face_mask(wide, SIZE, other_K3=mesh))


def test_a_wider_feather_is_softer():
    mesh = mean_mesh_px(SIZE)
    steepest = [np.abs(np.diff(face_mask(mesh, SIZE, feather=f), axis=1)).max() for f in (0.05, 0.1, 0.2)]
    assert steepest[0] > 1.6 * steepest[1] > 1.6 * 1.6 * steepest[2]


def test_feather_is_in_proportion_to_the_face():
    mesh = mean_mesh_px(SIZE)
    half = move_mesh(mesh, similarity(angle=0, scale=0.5, x=0, y=0))
    shrunk = face_mask(mesh, SIZE).reshape(256, 2, 256, 2).mean(axis=(1, 3))
    assert np.abs(face_mask(half, SIZE)[:256, :256] - shrunk).max() < 0.09  # half a pixel of the small one


def test_no_steps_in_the_edge():
    mask = face_mask(mean_mesh_px(1024), 1024)
    assert np.abs(np.diff(mask, axis=0)).max() < 0.06
    assert np.abs(np.diff(mask, axis=1)).max() < 0.06


def test_face_outside_of_the_crop_gives_an_empty_mask():
    mesh = mean_mesh_px(SIZE) + np.array([5 * SIZE, 0, 0])
    assert not face_mask(mesh, SIZE).any()


@settings(deadline=None, max_examples=20)
@given(st.floats(-180, 180), st.floats(0.05, 3), st.floats(-400, 700), st.floats(-400, 700))
def test_stays_in_range_wherever_the_face_lies(angle, scale, x, y):
    mask = face_mask(move_mesh(mean_mesh_px(SIZE), similarity(angle=angle, scale=scale, x=x, y=y)), SIZE)
    assert np.isfinite(mask).all()
    assert 0 <= mask.min() <= mask.max() <= 1


def turned(yaw: float) -> np.ndarray:
    """The mean mesh turned about the vertical axis; positive: the person's left cheek moves away."""
    mesh = mean_mesh_px(SIZE)
    centre = mesh.mean(axis=0)
    angle = np.deg2rad(yaw)
    x, y, z = (mesh - centre).T
    return np.stack([x * np.cos(angle) - z * np.sin(angle), y, z * np.cos(angle) + x * np.sin(angle)], axis=1) + centre


def test_the_far_cheek_keeps_to_what_both_faces_cover():
    narrow = turned(24)
    wide = narrow.copy()
    middle = narrow[T.NOSE_BRIDGE[0], 0]
    wide[:, 0] += np.maximum(narrow[:, 0] - middle, 0) * 0.3  # only the far cheek stands out
    row = int(narrow[T.NOSE_TIP, 1])

    def ends(mask: np.ndarray) -> int:
        return int(np.flatnonzero(mask[row] > 0.5).max())

    both, flat = face_mask(narrow, SIZE, other_K3=wide), face_mask(narrow[:, :2], SIZE, other_K3=wide[:, :2])
    assert ends(both) < ends(flat) - 8
    assert abs(ends(both) - ends(face_mask(narrow, SIZE))) <= 8
    assert np.array_equal(both[:, : int(middle) - 10], flat[:, : int(middle) - 10])


def test_a_mirrored_head_has_a_mirrored_mask():
    mesh = turned(35)
    mirrored = mesh * (-1, 1, 1) + (SIZE, 0, 0)
    assert far_side(mesh, SIZE)[:, SIZE - 60].max() > 0.9
    assert not far_side(turned(5), SIZE).any()
    swapped = mirrored.copy()
    swapped[[234, 454]] = mirrored[[454, 234]]
    np.testing.assert_allclose(far_side(swapped, SIZE), far_side(mesh, SIZE)[:, ::-1], atol=1e-6)
