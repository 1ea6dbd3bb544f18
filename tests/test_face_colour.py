"""Skin colour: where it is measured, and how it is matched."""

import cv2
import numpy as np
import pytest
from _face_support import mean_mesh_px, smooth_picture
from hypothesis import given, settings
from hypothesis import strategies as st

from latentswap.face.colour import match_colour, skin_pairs, skin_places, tone_curve, weighted_median
from latentswap.face.mask import face_mask
from latentswap.shape import topology as T

SIZE = 512
NEAR_CHEEK, BROW = 50, 105  # the person's right cheek, the near one where the left turns away
RED, PALE, BROWN = (236, 92, 58), (214, 178, 164), (120, 78, 56)


def turned(yaw: float) -> np.ndarray:
    """The mean mesh turned about the vertical axis; positive: the person's left cheek moves away."""
    mesh = mean_mesh_px(SIZE)
    centre = mesh.mean(axis=0)
    x, y, z = (mesh - centre).T
    c, s = np.cos(np.deg2rad(yaw)), np.sin(np.deg2rad(yaw))
    return np.stack([x * c - z * s, y, z * c + x * s], axis=1) + centre


def portrait(mesh_K3: np.ndarray, skin, *, hair=(30, 24, 22), background=(238, 240, 244), fringe: bool) -> np.ndarray:
    """A face of one colour, its forehead in shade, with lips and brows, and a fringe down to the brows if wanted."""
    picture = np.full((SIZE, SIZE, 3), background, np.uint8)
    hull = cv2.convexHull(mesh_K3[:, :2].astype(np.float32))[:, 0]
    cv2.fillPoly(picture, [hull.astype(np.int32)], skin)
    for contour in (T.RIGHT_BROW, T.LEFT_BROW):
        brow = cv2.convexHull(mesh_K3[list(contour), :2].astype(np.float32))[:, 0]
        cv2.fillPoly(picture, [brow.astype(np.int32)], (60, 40, 34))
    cv2.fillPoly(picture, [mesh_K3[list(T.OUTER_LIPS), :2].astype(np.int32)], (170, 60, 70))
    brow, tip = mesh_K3[BROW, 1], mesh_K3[T.NOSE_TIP, 1]
    shade = np.interp(np.arange(SIZE), (brow - 20, tip), (0.6, 1))
    picture = np.rint(picture * shade[:, None, None]).astype(np.uint8)
    if fringe:
        picture[: int(brow) + 6] = hair
    return picture


def at(picture: np.ndarray, mesh_K3: np.ndarray, point: int) -> np.ndarray:
    x, y = mesh_K3[point, :2].astype(int)
    return picture[y - 4 : y + 5, x - 4 : x + 5].reshape(-1, 3).mean(axis=0)


def match(swap: np.ndarray, swap_K3: np.ndarray, target: np.ndarray, target_K3: np.ndarray) -> np.ndarray:
    mask = face_mask(target_K3, SIZE, other_K3=swap_K3)
    return match_colour(swap, target, mask, swapped_K3=swap_K3, target_K3=target_K3)


@pytest.mark.parametrize("yaw", [0, 30, 42, -42])
@pytest.mark.parametrize(("skin", "other"), [(RED, PALE), (PALE, BROWN), (BROWN, PALE)])
def test_turned_and_saturated_skin_keeps_its_colour(yaw, skin, other):
    # The swap shows a forehead in shade where the photo has a fringe: what only one of them shows must not count.
    target_K3, swap_K3 = turned(yaw), np.add(turned(yaw * 0.9), (6, 4, 0))
    target = portrait(target_K3, skin, fringe=True)
    swap = portrait(swap_K3, other, background=(40, 38, 36), fringe=False)
    result = match(swap, swap_K3, target, target_K3)
    cheek = NEAR_CHEEK if yaw >= 0 else 280
    assert np.abs(at(result, swap_K3, cheek) - at(target, target_K3, cheek)).max() < 2


def test_very_different_skin_is_neither_grey_nor_burnt_out():
    mesh = mean_mesh_px(SIZE)
    for skin, other in ((BROWN, PALE), (PALE, BROWN), (RED, PALE)):
        target, swap = portrait(mesh, skin, fringe=False), portrait(mesh, other, fringe=False)
        result = match(swap, mesh, target, mesh)
        face = face_mask(mesh, SIZE) > 0.9
        chroma = [np.ptp(picture[face].astype(int), axis=1).mean() for picture in (result, target)]
        assert chroma[0] == pytest.approx(chroma[1], rel=0.15)
        assert (result[face] == 255).mean() < 0.01
        lips, brow = at(result, mesh, 14), at(result, mesh, BROW)
        assert brow.max() < at(result, mesh, NEAR_CHEEK).max() and np.ptp(lips) > 20


def test_a_beard_is_no_skin():
    mesh = mean_mesh_px(SIZE)
    target = portrait(mesh, PALE, fringe=False)
    beard = target.copy()
    beard[int(mesh[T.NOSE_TIP, 1]) + 20 :] = (58, 46, 40)
    swap = portrait(mesh, BROWN, fringe=False)
    clean, bearded = (at(match(swap, mesh, t, mesh), mesh, NEAR_CHEEK) for t in (target, beard))
    assert np.abs(clean - bearded).max() < 3


def test_places_follow_a_turned_face_and_stay_off_its_features():
    places, share = skin_places()
    frontal = mean_mesh_px(SIZE)
    features = np.zeros((SIZE, SIZE), np.uint8)
    for contour in (T.RIGHT_EYE, T.LEFT_EYE, T.RIGHT_BROW, T.LEFT_BROW, T.OUTER_LIPS):
        cv2.fillConvexPoly(features, cv2.convexHull(frontal[list(contour), :2].astype(np.int32)), (1,))
    x, y = np.round((places @ frontal)[:, 0, :2]).astype(int).T
    assert not features[y, x].any()
    assert len(share) == len(places) and set(np.unique(share)) == {0.5, 1.0}
    # An affine map of the mesh is an affine map of the places: the fit is exact for it.
    turn = np.array([[0.8, 0.1, 0.0], [-0.2, 1.1, 0.0], [0.0, 0.0, 1.0]])
    np.testing.assert_allclose(
        (places @ np.c_[frontal[:, :2], np.zeros(468)] @ turn)[:, 0],
        (places @ (np.c_[frontal[:, :2], np.zeros(468)] @ turn))[:, 0],
        atol=1e-6,
    )
    np.testing.assert_allclose((places @ (frontal + 50))[:, 0] - (places @ frontal)[:, 0], 50, atol=1e-6)


def test_the_side_that_faces_away_does_not_count():
    mesh = turned(40)
    places, _ = skin_places()
    picture = portrait(mesh, PALE, fringe=False)
    _, _, weight = skin_pairs(picture, picture, np.ones((SIZE, SIZE), np.float32), swapped_K3=mesh, target_K3=mesh)
    frontal_x = (places @ mean_mesh_px(SIZE))[:, 0, 0] - SIZE / 2
    assert weight[frontal_x > 60].mean() < 0.3 * weight[frontal_x < -60].mean()


def test_without_skin_nothing_changes():
    picture, mesh = smooth_picture(SIZE, SIZE), mean_mesh_px(SIZE)
    empty = np.zeros((SIZE, SIZE), np.float32)
    assert match_colour(picture, 255 - picture, empty, swapped_K3=mesh, target_K3=mesh) is picture


@pytest.mark.parametrize(("here", "there"), [(200, 90), (90, 200), (128, 128), (240, 250), (60, 30)])
def test_tone_curve_rises_from_black_through_its_point(here, there):
    curve = tone_curve(here, there)
    assert (np.diff(curve) > 0).all()
    assert abs(curve[0]) < 20
    assert curve[-1] < 280
    assert np.interp(min(max(here, 8), 247), np.arange(256), curve) == pytest.approx(min(max(there, 8), 247), abs=0.01)


def test_darkened_highlights_do_not_glare():
    curve = tone_curve(200, 90)
    assert (curve[225] - curve[200]) / 25 < 1.0  # a gain of 0.45 with at most twice its contrast above
    assert curve[255] > 150  # teeth and eyes stay light


def test_colour_match_of_equals_is_nearly_nothing():
    crop, mesh = smooth_picture(SIZE, SIZE), mean_mesh_px(SIZE)
    assert np.abs(match(crop, mesh, crop, mesh).astype(int) - crop).max() <= 2


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(0, 255), min_size=1, max_size=15), st.integers(0, 9))
def test_weighted_median_is_the_median_of_what_counts(values, idle):
    column = np.array(values + [1e3] * idle)[:, None]
    weight = np.array([0.5] * len(values) + [0.0] * idle)
    np.testing.assert_allclose(weighted_median(column, weight)[0], np.median(values), atol=1e-9)


@pytest.mark.parametrize("tint", [(1.0, 1.0, 1.0), (1.0, 0.86, 0.68)])
def test_a_monochrome_photo_stays_monochrome(tint):
    """Grey or sepia: the swap's colours follow from its luma as the photo's do."""
    mesh_K3 = turned(0)
    grey = cv2.cvtColor(portrait(mesh_K3, BROWN, fringe=False), cv2.COLOR_RGB2GRAY)
    target = np.rint(grey[..., None] * np.array(tint)).astype(np.uint8)
    result = match(portrait(mesh_K3, RED, fringe=False), mesh_K3, target, mesh_K3)
    lit = result[..., 0] > 40
    assert np.abs(result[lit] / result[lit][:, :1] - tint).max() < 0.05


def test_a_photo_in_colour_is_not_toned():
    mesh_K3 = turned(0)
    target = portrait(mesh_K3, PALE, fringe=False)
    result = match(portrait(mesh_K3, BROWN, fringe=False), mesh_K3, target, mesh_K3).astype(int)
    lips = at(result, mesh_K3, 13)
    assert lips[0] - lips[1] > 20
