"""The face detector: its pyramid, its decoding, and the network on real pictures."""

import cv2
import numpy as np
import pytest
from _face_support import astronaut
from hypothesis import given, settings
from hypothesis import strategies as st

from latentswap.errors import WeightsError
from latentswap.face.detect import FACE_PIXELS, GRID, INPUT, Detector, decode, overlap, pyramid, weighted_nms


@pytest.fixture(scope="module")
def detector(default_weights) -> Detector:
    return Detector(default_weights("mediapipe-detector"), threads=2)


def with_face(height: int, width: int, *, side: int, x: int, y: int) -> np.ndarray:
    """Grey, with the astronaut's head scaled so that its face is about `side` pixels, at x, y."""
    head = astronaut()[40:220, 130:310]
    size = round(180 * side / 105)
    picture = np.full((height, width, 3), 115, np.uint8)
    picture[y : y + size, x : x + size] = cv2.resize(head, (size, size), interpolation=cv2.INTER_AREA)
    return picture


@settings(max_examples=200)
@given(st.integers(16, 5000), st.integers(16, 5000), st.data())
def test_every_face_is_whole_in_a_tile_that_can_see_it(height, width, data):
    side = data.draw(st.floats(min(32, height, width), min(height, width)))
    x, y = data.draw(st.floats(0, width - side)), data.draw(st.floats(0, height - side))
    for tile in (tile for level in pyramid(height, width, smallest=32) for tile in level):
        low, seen = np.array([x, y]) * tile.scale - (tile.x, tile.y), side * tile.scale
        if FACE_PIXELS * 0.999 <= seen <= 100 and (low >= -1).all() and (low + seen <= INPUT + 1).all():
            return
    assert side < 32, f"a face of {side} pixels at {x}, {y} is in no tile"


def test_pyramid_of_a_small_picture_is_its_two_levels():
    assert [len(level) for level in pyramid(60, 90, smallest=32)] == [1, 1]


def test_decode_places_boxes_about_their_cells():
    regression = np.zeros((GRID * GRID, 16), np.float32)
    logit = np.full(GRID * GRID, -100.0, np.float32)
    cell = 10 * GRID + 7  # row 10, column 7: centre (30, 42)
    regression[cell, :6] = (3, -2, 20, 30, 1, 2)
    logit[cell] = 0
    values, scores = decode(regression, logit, threshold=0.5)
    assert scores.tolist() == [0.5]
    np.testing.assert_allclose(values[0, :6], (23, 25, 43, 55, 31, 44))
    np.testing.assert_allclose(values[0, 6:], [30, 42] * 5)


def test_extreme_logits_do_not_overflow():
    logit = np.full(GRID * GRID, 1e9, np.float32)
    logit[0] = -1e9
    with np.errstate(over="raise"):
        _, scores = decode(np.zeros((GRID * GRID, 16), np.float32), logit, threshold=0.5)
    assert scores.tolist() == [1.0] * (GRID * GRID - 1)


def test_overlap_of_known_boxes():
    boxes = np.array([[0, 0, 2, 2], [1, 0, 3, 2], [5, 5, 6, 6], [0, 0, 0, 0]], float)
    np.testing.assert_allclose(overlap(boxes[0], boxes), [1, 1 / 3, 0, 0])


def test_nms_blends_a_cluster_by_score():
    values = np.zeros((3, 16))
    values[:, :4] = [[0, 0, 10, 10], [2, 0, 12, 10], [40, 0, 50, 10]]
    blended, scores = weighted_nms(values, np.array([0.6, 0.9, 0.7]), iou=0.3)
    assert scores.tolist() == [0.9, 0.7]
    np.testing.assert_allclose(blended[:, 0], [2 * 0.9 / 1.5, 40])


@given(st.lists(st.tuples(*[st.floats(0, 100)] * 4, st.floats(0.01, 1)), max_size=12))
def test_nms_leaves_no_more_than_it_got(rows):
    values = np.zeros((len(rows), 16))
    for row, (x, y, width, height, _) in zip(values, rows, strict=True):
        row[:4] = x, y, x + width, y + height
    blended, scores = weighted_nms(values, np.array([row[4] for row in rows]), iou=0.3)
    assert len(blended) == len(scores) <= len(rows)
    assert (np.diff(scores) <= 0).all()


def test_finds_the_astronaut(detector):
    (found,) = detector.detect(astronaut())
    assert found.score > 0.9
    assert np.abs(np.array(found.box) - (173, 69, 276, 172)).max() < 12
    np.testing.assert_allclose(found.keypoints_62[:2], [(205, 110), (246, 108)], atol=8)  # the picture's left eye first


@pytest.mark.parametrize(("height", "width", "x", "y"), [(900, 1400, 1100, 700), (1400, 500, 20, 640)])
def test_finds_a_face_of_32_pixels(detector, height, width, x, y):
    (found,) = detector.detect(with_face(height, width, side=34, x=x, y=y))
    centre = (found.box[0] + found.box[2]) / 2, (found.box[1] + found.box[3]) / 2
    size = 180 * 34 / 105
    assert centre == pytest.approx((x + size * 0.52, y + size * 0.45), abs=8)


@pytest.mark.slow
def test_finds_a_face_of_32_pixels_in_16_megapixels(detector):
    assert len(detector.detect(with_face(4000, 4000, side=34, x=3456, y=1807))) == 1


def test_large_and_small_faces_of_one_picture(detector):
    picture = with_face(1200, 1200, side=300, x=100, y=100)
    picture[800:900, 900:1000] = with_face(100, 100, side=40, x=10, y=10)
    found = detector.detect(picture)
    assert len(found) == 2
    assert sorted(round(one.box[2] - one.box[0], -2) for one in found) == [0, 300]


def test_flat_and_tiny_pictures_have_no_faces(detector):
    for shape in ((1, 1, 3), (1, 700, 3), (300, 200, 3)):
        assert detector.detect(np.full(shape, 128, np.uint8)) == []


def test_same_picture_same_answer(detector):
    first, second = (detector.detect(astronaut()) for _ in range(2))
    assert [one.box for one in first] == [one.box for one in second]


def test_a_wrong_file_is_refused(tmp_path, default_weights):
    other = tmp_path / "other.tflite"
    other.write_bytes(b"not a network")
    for path in (other, tmp_path / "missing.tflite", default_weights("mediapipe-mesh", file="face_landmark.tflite")):
        with pytest.raises(WeightsError, match="fetch the weights again"):
            Detector(path)
