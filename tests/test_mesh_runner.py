"""The mesh network on OpenVINO: cutting rotated squares, following a face, agreement with the torch port."""

import math
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.data import astronaut

from latentswap.errors import WeightsError
from latentswap.runtime.mesh import MESH_SIZE, MeshRunner, Roi, cut_roi, roi_from_mesh, roi_matrix
from latentswap.shape.measures import head_pose, mean_mesh
from latentswap.shape.mesh import MeshNet

FACE = Roi(226.0, 120.0, 200.0, 0.0)  # about the astronaut's face


@pytest.fixture(scope="module")
def runner(default_weights: Callable[..., Path]) -> MeshRunner:
    return MeshRunner(default_weights("mediapipe-mesh", "face_landmark.tflite"))


def test_agrees_with_the_torch_port(runner: MeshRunner, default_weights: Callable[..., Path]) -> None:
    net = MeshNet.load(default_weights("mediapipe-mesh"))
    patch = cut_roi(astronaut(), FACE, MESH_SIZE)
    expected_BK3, score_B = net(torch.from_numpy(patch).permute(2, 0, 1)[None].float() / 255)
    expected_K3 = expected_BK3[0].numpy() * FACE.side / MESH_SIZE
    expected_K3[:, :2] += (FACE.cx - FACE.side / 2, FACE.cy - FACE.side / 2)
    mesh_K3, score = runner(astronaut(), FACE, refine=0)
    np.testing.assert_allclose(mesh_K3, expected_K3, atol=2e-3)
    assert score == pytest.approx(float(score_B[0]), rel=1e-4)


def test_a_picture_without_a_face_scores_as_low_as_the_torch_port(
    runner: MeshRunner, default_weights: Callable[..., Path]
) -> None:
    net = MeshNet.load(default_weights("mediapipe-mesh"))
    _, score = runner(np.full((300, 300, 3), 255, np.uint8), (150, 150, 200, 0), refine=0)
    _, score_B = net(torch.ones(1, 3, MESH_SIZE, MESH_SIZE))
    assert score == pytest.approx(float(score_B[0]), rel=1e-2)
    assert score < 1e-4


@pytest.mark.parametrize("angle", [-60.0, 25.0, 90.0])
@pytest.mark.parametrize("scale", [0.6, 3.0])
def test_mesh_follows_the_picture(runner: MeshRunner, angle: float, scale: float) -> None:
    """A turned and scaled picture gives the turned and scaled mesh, from a square that is only roughly right."""
    pixels = astronaut()
    mesh_K3, _ = runner(pixels, FACE, refine=2)
    size = round(400 * scale)
    cos, sin = scale * math.cos(math.radians(angle)), scale * math.sin(math.radians(angle))
    turn = np.array([[cos, -sin], [sin, cos]])  # positive: clockwise in the picture
    shift = np.array([size / 2, size / 2]) - turn @ (FACE.cx, FACE.cy)
    matrix = np.column_stack([turn, shift + turn @ (0.5, 0.5) - 0.5])
    turned = cv2.warpAffine(pixels, matrix, (size, size), flags=cv2.INTER_LINEAR)
    rough = Roi(size / 2 + 6 * scale, size / 2 - 6 * scale, FACE.side * scale * 1.1, angle + 8)
    found_K3, score = runner(turned, rough, refine=2)
    expected_K2 = mesh_K3[:, :2] @ turn.T + shift
    assert score > 0.99
    off = np.sqrt(((found_K3[:, :2] - expected_K2) ** 2).sum(1)).mean() / scale
    assert off < 1.5  # pixels of the original, in which the face is about 130 wide
    poses = head_pose(torch.from_numpy(np.stack([mesh_K3, found_K3])))
    difference = (poses[1] - poses[0]).numpy() - (0, 0, angle)
    assert np.abs(difference).max() < 3


def test_batch_is_the_calls_one_by_one(runner: MeshRunner) -> None:
    rois = [FACE, (230.0, 118.0, 230.0, 5.0)]
    mesh_FK3, score_F = runner.batch(astronaut(), rois)
    for index, roi in enumerate(rois):
        mesh_K3, score = runner(astronaut(), roi)
        np.testing.assert_array_equal(mesh_FK3[index], mesh_K3)
        assert score_F[index] == np.float32(score)
    empty_FK3, none_F = runner.batch(astronaut(), [])
    assert empty_FK3.shape == (0, 468, 3)
    assert none_F.shape == (0,)


@pytest.mark.parametrize("content", [None, b"not a model"])
def test_unusable_files_are_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "face_landmark.tflite"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WeightsError, match="fetch the weights again"):
        MeshRunner(path)


def test_another_network_is_refused(default_weights: Callable[..., Path]) -> None:
    with pytest.raises(WeightsError, match="is not MediaPipe's"):
        MeshRunner(default_weights("mediapipe-iris", "iris_landmark.tflite"))


@settings(max_examples=40, deadline=None)
@given(
    st.floats(200, 600), st.floats(200, 500), st.floats(20, 500), st.floats(-180, 180), st.sampled_from([32, 64, 192])
)
def test_cut_samples_where_the_matrix_says(cx: float, cy: float, side: float, angle: float, size: int) -> None:
    """On a picture whose colours are its coordinates, every inner pixel shows the place it was taken from."""
    height, width = 700, 800
    y, x = np.mgrid[:height, :width] + 0.5
    picture = np.stack([x * 255 / width, y * 255 / height, np.zeros_like(x)], axis=-1).round().astype(np.uint8)
    roi = Roi(cx, cy, side, angle)
    patch = cut_roi(picture, roi, size).astype(float)
    matrix = roi_matrix(roi, size)
    v, u = np.mgrid[:size, :size] + 0.5
    places = np.stack([u, v], axis=-1) @ matrix[:, :2].T + matrix[:, 2]
    margin = max(3.0, 3 * side / size)
    inside = (places > margin).all(-1) & (places < (width - margin, height - margin)).all(-1)
    expected = places * (255 / width, 255 / height)
    assert np.abs(patch[..., :2] - expected)[inside].max(initial=0) < 1.6  # grey levels, of which one is about 3 pixels


@pytest.mark.parametrize("side", [96.0, 192.0, 300.0, 384.0, 640.0, 1000.0])
def test_cut_is_not_off_by_half_a_pixel(side: float) -> None:
    """An edge through the square divides it where it should, along both axes, whatever the shrinking."""
    edge = np.zeros((1200, 1200, 3), np.uint8)
    edge[:, 613:] = 255
    for picture, roi in ((edge, Roi(620.4, 600, side)), (edge.transpose(1, 0, 2), Roi(600, 620.4, side))):
        patch = cut_roi(np.ascontiguousarray(picture), roi, 192)
        bright = patch.mean() / 255 * side  # width of the bright part, picture pixels
        assert abs(bright - (620.4 + side / 2 - 613)) < 0.1 * max(1.0, side / 192)


def test_shrinking_averages_instead_of_skipping() -> None:
    board = (np.indices((1200, 1200)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, -1)
    for side in (420, 700, 1000):
        patch = cut_roi(board, Roi(600, 600, side, 12), 192)
        assert 96 < patch.min()
        assert patch.max() < 160


def test_outside_the_picture_is_black() -> None:
    white = np.full((50, 60, 3), 255, np.uint8)
    assert not cut_roi(white, Roi(-400, 20, 100, 30), 32).any()
    assert not cut_roi(white, Roi(-4000, 20, 1000, 30), 32).any()
    half = cut_roi(white, Roi(0, 25, 40, 0), 40)
    assert not half[:, :19].any()
    assert (half[:, 21:] == 255).all()


@given(st.floats(-170, 170), st.floats(1, 3000))
def test_square_from_a_mesh_is_level_with_its_eyes(angle: float, scale: float) -> None:
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    mesh_K3 = mean_mesh().double().numpy().copy()
    upright = roi_from_mesh(mesh_K3)
    mesh_K3[:, :2] = scale * mesh_K3[:, :2] @ np.array([[cos, sin], [-sin, cos]])
    roi = roi_from_mesh(mesh_K3)
    assert roi.angle_deg == pytest.approx(angle, abs=1e-4)
    assert roi.side == pytest.approx(upright.side * scale, rel=1e-6)
    centre = scale * np.array([[cos, -sin], [sin, cos]]) @ (upright.cx, upright.cy)
    assert (roi.cx, roi.cy) == pytest.approx(tuple(centre), abs=1e-5 * scale)
