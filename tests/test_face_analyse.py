"""From pictures to measured faces."""

import numpy as np
import pytest
from _face_support import astronaut, mean_mesh_px, similarity
from hypothesis import given
from hypothesis import strategies as st

from latentswap.face.align import cut, cut_face, move_mesh
from latentswap.face.analyse import REASONS, FaceAnalyser, deviation, gate, merge, order, turn_back
from latentswap.face.detect import Detection, Detector
from latentswap.runtime.mesh import MeshRunner
from latentswap.types import Face


@pytest.fixture(scope="module")
def analyser(default_weights) -> FaceAnalyser:
    mesh = default_weights("mediapipe-mesh", file="face_landmark.tflite")
    return FaceAnalyser(Detector(default_weights("mediapipe-detector"), threads=2), MeshRunner(mesh, threads=2))


def real(faces: tuple[Face, ...]) -> list[Face]:
    return [face for face in faces if "not_a_face" not in face.reasons]


def judged(mesh_K3: np.ndarray, score: float = 1.0, *, yaw: float = 0, roll: float = 0) -> tuple[str, ...]:
    return gate(mesh_K3, score, yaw=yaw, roll=roll, height=600, width=800)


def test_astronaut_is_one_usable_face(analyser):
    (face,) = analyser(astronaut())
    assert face.reasons == ()
    assert face.mesh_score > 0.99 and face.score > 0.9
    assert abs(face.yaw) < 8 and abs(face.pitch) < 10 and abs(face.roll - 3) < 5
    assert np.abs(np.array(face.box) - (178, 67, 273, 174)).max() < 6


def test_aligned_crop_needs_no_alignment(analyser):
    (face,) = analyser(astronaut())
    crop = cut_face(astronaut(), face.mesh_K3, 512)
    (again,) = real(analyser(crop.pixels))
    moved = cut_face(crop.pixels, again.mesh_K3, 512).affine
    corners = np.array([(0, 0, 1), (512, 0, 1), (0, 512, 1), (512, 512, 1)])
    assert np.abs(corners @ moved.T - corners[:, :2]).max() < 12


@pytest.mark.parametrize("angle", [-120, -90, -60, 45, 90, 135, 180])
def test_turned_faces_are_followed(analyser, angle):
    picture = astronaut()
    (upright,) = analyser(picture)
    turn = similarity(angle=angle, scale=0.8, x=0, y=0)
    turn[:, 2] = (256, 256) - turn[:, :2] @ (256, 200)
    (found,) = real(analyser(cut(picture, turn, 512)))
    expected = move_mesh(upright.mesh_K3, turn)
    apart = np.hypot(*(found.mesh_K3 - expected)[:, :2].T)
    assert apart.mean() < 0.05 * found.size
    assert abs((found.roll - upright.roll - angle + 180) % 360 - 180) < 6
    assert found.reasons == (("upside_down",) if abs(angle) > 110 else ())


def test_faces_cut_by_the_border_say_so(analyser):
    picture = astronaut()
    for part in (picture[:140], picture[:, 215:], picture[100:]):
        faces = real(analyser(np.ascontiguousarray(part)))
        assert [face.reasons for face in faces] == [("cut_by_border",)]


def test_texture_has_no_faces(analyser):
    rng = np.random.default_rng(0)
    assert real(analyser(rng.integers(0, 256, (300, 400, 3), np.uint8))) == []


def test_two_faces_come_largest_first_and_repeatably(analyser):
    head = astronaut()[20:260, 100:340]
    picture = np.full((480, 800, 3), 120, np.uint8)
    picture[20:140, 30:150] = head[::2, ::2]
    picture[100:340, 400:640] = head
    first, second = analyser(picture), analyser(picture)
    assert len(first) == 2
    assert first[0].size > first[1].size
    assert all(np.array_equal(a.mesh_K3, b.mesh_K3) for a, b in zip(first, second, strict=True))


def test_gate_of_a_plain_face_is_open():
    assert judged(mean_mesh_px(400)) == ()


def test_gate_names_each_reason():
    mesh = mean_mesh_px(400)
    assert judged(mesh, 0.02) == ("not_a_face",)
    assert judged(mesh * (1, 0.3, 1)) == ("not_a_face",)
    assert judged(mesh, 0.3) == ("low_confidence",)
    assert judged(move_mesh(mesh, similarity(angle=0, scale=0.1, x=90, y=90))) == ("too_small",)
    assert judged(mesh, yaw=-61) == ("profile",)
    assert judged(mesh, roll=101) == ("upside_down",)
    assert judged(mesh - (200, 0, 0)) == ("cut_by_border",)
    assert set(REASONS) == {
        *("not_a_face", "low_confidence", "too_small", "profile", "upside_down", "cut_by_border"),
    }


@given(st.floats(-180, 180), st.floats(0.05, 20), st.floats(-1000, 1000))
def test_deviation_knows_no_pose_in_the_plane(angle, scale, x):
    mesh = mean_mesh_px(300)
    assert deviation(move_mesh(mesh, similarity(angle=angle, scale=scale, x=x, y=40))) < 1e-3


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 3), st.data())
def test_turning_back_finds_the_same_pixel(height, width, turns, data):
    row, column = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    picture = np.zeros((height, width), bool)
    picture[row, column] = True
    there_row, there_column = np.argwhere(np.rot90(picture, turns))[0]
    points = np.tile([there_column + 0.5, there_row + 0.5], (6, 1))
    box = (there_column, there_row, there_column + 1, there_row + 1)
    back = turn_back(Detection(box=box, score=1, keypoints_62=points), turns, height, width)
    assert back.box == (column, row, column + 1, row + 1)
    assert back.keypoints_62.tolist() == [[column + 0.5, row + 0.5]] * 6


def made(x: float, size: float, score: float) -> Face:
    mesh = move_mesh(mean_mesh_px(1), similarity(angle=0, scale=size, x=x, y=0))
    return Face(box=(x, 0.0, x + size, size), score=0.9, mesh_score=score, mesh_K3=mesh, yaw=0.0, pitch=0.0, roll=0.0)


def test_doubles_are_merged_and_the_better_is_kept():
    poor, good, other = made(100, 100, 0.8), made(104, 98, 0.9), made(220, 100, 0.7)
    assert set(map(id, merge([poor, other, good]))) == {id(good), id(other)}


def test_order_is_by_area_then_from_the_left():
    small, left, right = made(0, 50, 0.9), made(100, 80, 0.9), made(300, 80, 0.9)
    assert order([right, small, left]) == (left, right, small)
