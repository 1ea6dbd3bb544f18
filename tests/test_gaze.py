"""Gaze: the iris network's port, the measure, its noise and its slope, the OpenVINO runner."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import openvino
import pytest
import torch
from skimage.data import astronaut
from torch.nn import functional as F

from latentswap.errors import WeightsError
from latentswap.face.align import cut_face
from latentswap.runtime.iris import Eyes, IrisRunner, gaze_error
from latentswap.runtime.mesh import MeshRunner
from latentswap.shape.gaze import (
    cut_eyes,
    eye_frames,
    eye_gaze,
    gaze_loss,
    gaze_weight,
    measure_gaze,
    mesh_corners,
    move,
)
from latentswap.shape.iris import IRIS_KIND, IrisNet
from latentswap.shape.measures import mean_mesh
from latentswap.shape.topology import LEFT_LOWER_LID, LEFT_UPPER_LID, RIGHT_LOWER_LID, RIGHT_UPPER_LID
from latentswap.types import Crop
from latentswap.weights.convert.tflite import convert_iris


@pytest.fixture(scope="module")
def tflite(default_weights: Callable[..., Path]) -> Path:
    return default_weights("mediapipe-iris", "iris_landmark.tflite")


@pytest.fixture(scope="module")
def net(default_weights: Callable[..., Path]) -> IrisNet:
    return IrisNet.load(default_weights("mediapipe-iris"))


@pytest.fixture(scope="module")
def runner(tflite: Path) -> IrisRunner:
    return IrisRunner(tflite)


@pytest.fixture(scope="module")
def crop(default_weights: Callable[..., Path]) -> Crop:
    """The astronaut, FFHQ-aligned at 512²."""
    mesh_K3, _ = MeshRunner(default_weights("mediapipe-mesh", "face_landmark.tflite"))(
        astronaut(), (226.0, 120.0, 200.0), refine=2
    )
    return cut_face(astronaut(), mesh_K3, 512)


@pytest.fixture(scope="module")
def picture(crop: Crop) -> tuple[torch.Tensor, torch.Tensor]:
    """The same at 256² in [-1, 1], and its mesh in fractions."""
    img_BCHW = torch.from_numpy(crop.pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
    return F.interpolate(img_BCHW, size=256, mode="area"), torch.from_numpy(crop.mesh_K3)[None] / 512


@pytest.fixture(scope="module")
def eyes(runner: IrisRunner, crop: Crop) -> Eyes:
    return runner(crop.pixels, crop.mesh_K3)


def test_port_equals_openvino(net: IrisNet, tflite: Path, picture: tuple[torch.Tensor, torch.Tensor]) -> None:
    img_BCHW, mesh_BK3 = picture
    noise_BCHW = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    patches_BCHW = torch.cat([cut_eyes(img_BCHW, mesh_corners(mesh_BK3))[0], noise_BCHW])
    reference = openvino.Core().compile_model(tflite, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    contour_BN3, iris_BN3 = net(patches_BCHW)
    for index, patch_CHW in enumerate(patches_BCHW):
        found = {v.size: v for v in reference([patch_CHW.permute(1, 2, 0)[None].contiguous().numpy()]).values()}
        np.testing.assert_allclose(contour_BN3[index].numpy(), found[213].reshape(71, 3), atol=1e-4)
        np.testing.assert_allclose(iris_BN3[index].numpy(), found[15].reshape(5, 3), atol=1e-4)


def test_conversion(tflite: Path, default_weights: Callable[..., Path]) -> None:
    tensors, metadata = convert_iris({"a/iris_landmark.tflite": tflite.read_bytes()})
    assert metadata["kind"] == IRIS_KIND
    assert all(value.dtype == np.float32 for value in tensors.values())
    mesh = default_weights("mediapipe-mesh", "face_landmark.tflite").read_bytes()
    with pytest.raises(WeightsError, match="iris_landmark"):
        convert_iris({"iris_landmark.tflite": mesh})


def test_frames_have_the_corners_at_0_and_1_and_down_below() -> None:
    corners_BE22 = mesh_corners(mean_mesh()[None])
    ends_N2 = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.5]]).expand(1, 2, 3, 2)
    points_BEN2 = move(eye_frames(corners_BE22), ends_N2)
    torch.testing.assert_close(points_BEN2[:, :, :2], corners_BE22)
    assert (points_BEN2[:, :, 2, 1] > corners_BE22[..., 1].mean(2)).all()
    assert points_BEN2[0, 0, 0, 0] < points_BEN2[0, 0, 1, 0] < points_BEN2[0, 1, 1, 0] < points_BEN2[0, 1, 0, 0]


def test_gaze_of_points_is_free_of_scale_and_turn() -> None:
    generator = torch.Generator().manual_seed(2)
    contour_N3, iris_N3 = torch.rand(71, 3, generator=generator), torch.rand(5, 3, generator=generator)
    contour_N3[0], contour_N3[8], iris_N3[0] = (torch.tensor(p) for p in ((1.0, 1, 0), (5.0, 1, 0), (2.0, 3, 0)))
    torch.testing.assert_close(eye_gaze(contour_N3, iris_N3), torch.tensor([0.25, 0.5]))
    turn = torch.tensor([[0.0, 3.0, 0.0], [-3.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(eye_gaze(contour_N3 @ turn + 7, iris_N3 @ turn + 7), torch.tensor([0.25, 0.5]))


def test_mirroring_the_picture_swaps_the_eyes(net: IrisNet, picture: tuple[torch.Tensor, torch.Tensor]) -> None:
    img_BCHW, mesh_BK3 = picture
    corners_BE22 = mesh_corners(mesh_BK3)
    mirrored_BE22 = corners_BE22.flip(1) * torch.tensor([-1.0, 1.0]) + torch.tensor([1.0, 0.0])
    patches_BECHW, others_BECHW = cut_eyes(img_BCHW, corners_BE22), cut_eyes(img_BCHW.flip(3), mirrored_BE22)
    torch.testing.assert_close(patches_BECHW, others_BECHW.flip(1), atol=1e-4, rtol=0)


def test_misalignment_moves_gaze_less_than_people_differ(
    net: IrisNet, picture: tuple[torch.Tensor, torch.Tensor]
) -> None:
    img_BCHW, mesh_BK3 = picture
    straight_BE2 = measure_gaze(net, img_BCHW, mesh_BK3).gaze_BE2
    jitter = 0.006 * torch.randn(8, 1, 2, generator=torch.Generator().manual_seed(3))
    off = [measure_gaze(net, img_BCHW, torch.cat([mesh_BK3[..., :2] + j, mesh_BK3[..., 2:]], -1)) for j in jitter]
    spread = torch.cat([gaze.gaze_BE2 - straight_BE2 for gaze in off]).square().mean().sqrt()
    assert spread < 0.015
    assert (straight_BE2[..., 0] - 0.45).abs().max() < 0.2  # she looks towards the camera


def test_size_of_the_picture_hardly_matters(
    net: IrisNet, eyes: Eyes, picture: tuple[torch.Tensor, torch.Tensor]
) -> None:
    gaze = measure_gaze(net, *picture)
    np.testing.assert_allclose(gaze.gaze_BE2[0].numpy(), eyes.gaze_E2, atol=0.02)
    np.testing.assert_allclose(gaze.weight_BE[0].numpy(), eyes.weight_E, atol=1e-5)
    large_BCHW = F.interpolate(picture[0], size=1024, mode="nearest")
    torch.testing.assert_close(measure_gaze(net, large_BCHW, picture[1]).gaze_BE2, gaze.gaze_BE2, atol=1e-4, rtol=0)


def test_descending_the_loss_turns_the_eyes(
    net: IrisNet, runner: IrisRunner, picture: tuple[torch.Tensor, torch.Tensor]
) -> None:
    img_BCHW, mesh_BK3 = picture
    start = measure_gaze(net, img_BCHW, mesh_BK3)
    target_BE2 = start.gaze_BE2.detach() + torch.tensor([[[0.05, 0.0], [-0.05, 0.0]]])
    moved_BCHW = img_BCHW.clone().requires_grad_()
    losses = []
    for _ in range(4):
        loss = gaze_loss(measure_gaze(net, moved_BCHW, mesh_BK3).gaze_BE2, target_BE2, torch.ones(1, 2))
        (slope_BCHW,) = torch.autograd.grad(loss, moved_BCHW)
        losses.append(loss.item())
        moved_BCHW = (moved_BCHW - 0.01 * slope_BCHW / slope_BCHW.abs().max()).detach().requires_grad_()
    assert losses[0] == pytest.approx(5, abs=0.01)
    assert losses[-1] < losses[0]
    assert slope_BCHW.isfinite().all()


def test_shut_and_hidden_eyes_have_no_weight() -> None:
    open_BK3 = mean_mesh()[None].clone()
    torch.testing.assert_close(gaze_weight(open_BK3), torch.ones(1, 2))
    shut_BK3 = open_BK3.clone()
    shut_BK3[:, list(RIGHT_UPPER_LID)] = open_BK3[:, list(RIGHT_LOWER_LID)]
    torch.testing.assert_close(gaze_weight(shut_BK3), torch.tensor([[0.0, 1.0]]))
    narrow_BK3 = open_BK3.clone()
    left = [263, 362, *LEFT_UPPER_LID, *LEFT_LOWER_LID]
    narrow_BK3[:, left, 0] = 0.6 + 0.3 * (open_BK3[:, left, 0] - 0.6)
    torch.testing.assert_close(gaze_weight(narrow_BK3), torch.tensor([[1.0, 0.0]]))


def test_loss_counts_only_eyes_that_are_seen() -> None:
    gaze_BE2 = torch.tensor([[[0.5, 0.0], [0.5, 0.0]]], requires_grad=True)
    target_BE2 = torch.tensor([[[0.53, 0.04], [0.9, 0.0]]])
    loss = gaze_loss(gaze_BE2, target_BE2, torch.tensor([[1.0, 0.0]]))
    assert loss.item() == pytest.approx(5, abs=0.01)
    loss.backward()
    assert gaze_BE2.grad is not None
    assert (gaze_BE2.grad[0, 1] == 0).all()
    assert float(gaze_loss(target_BE2, gaze_BE2.detach(), torch.zeros(1, 2))) == 0
    same = gaze_loss(gaze_BE2, gaze_BE2.detach(), torch.ones(1, 2))
    assert torch.autograd.grad(same, gaze_BE2)[0].isfinite().all()


def test_error_between_two_pictures(eyes: Eyes) -> None:
    here = with_gaze(eyes, (0, 0))
    assert gaze_error(here, here) == (0, 0, 1)
    error = gaze_error(with_gaze(eyes, (0.03, 0.04)), here)
    assert error == pytest.approx((0.05, 0.05, 1), abs=1e-6)
    crossed_E2 = here.gaze_E2 + np.array((0.04, 0), np.float32)  # both irises towards the nose: no direction
    error = gaze_error(replace(here, gaze_E2=crossed_E2), here)
    assert error == pytest.approx((0, 0.04, 1), abs=1e-6)
    unseen = gaze_error(here, with_gaze(eyes, (0, 0), weight=0.0))
    assert np.isnan(unseen.direction)
    assert unseen.weight == 0


def test_points_lie_where_the_eyes_are(eyes: Eyes, crop: Crop) -> None:
    near_E = np.hypot(*(eyes.iris_EN2[:, 0] - mesh_corners(torch.from_numpy(crop.mesh_K3)[None])[0].mean(1).numpy()).T)
    width_E = np.hypot(*eyes.frames_E23[:, :, 0].T)
    assert (near_E < 0.2 * width_E).all()
    low_E2, high_E2 = eyes.lids_EN2.min(1), eyes.lids_EN2.max(1)
    assert ((eyes.iris_EN2[:, 0] > low_E2) & (eyes.iris_EN2[:, 0] < high_E2)).all()


def with_gaze(eyes: Eyes, change: tuple[float, float], *, weight: float = 1.0) -> Eyes:
    """The same eyes, looking `change` further to the picture's right and down."""
    turned_E2 = eyes.gaze_E2 + np.array([change, (-change[0], change[1])], np.float32)
    return replace(eyes, gaze_E2=turned_E2, weight_E=np.full(2, weight, np.float32))


@pytest.mark.parametrize("content", [None, b"not a model"])
def test_unusable_files_are_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "iris_landmark.tflite"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WeightsError, match="fetch the weights again"):
        IrisRunner(path)
