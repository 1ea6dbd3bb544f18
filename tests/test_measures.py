"""Measures of a mesh: invariance, known answers, gradients."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentswap.shape import measures as M
from latentswap.shape import topology as T

angles = st.floats(-40, 40)
seeds = st.integers(0, 2**31)


def rotation(yaw: float, pitch: float, roll: float) -> torch.Tensor:
    """R_z(roll) · R_y(−yaw) · R_x(pitch), degrees, written out independently of the code under test."""
    a, b, c = (math.radians(value) for value in (-yaw, pitch, roll))
    x = np.array([[1, 0, 0], [0, math.cos(b), -math.sin(b)], [0, math.sin(b), math.cos(b)]])
    y = np.array([[math.cos(a), 0, math.sin(a)], [0, 1, 0], [-math.sin(a), 0, math.cos(a)]])
    z = np.array([[math.cos(c), -math.sin(c), 0], [math.sin(c), math.cos(c), 0], [0, 0, 1]])
    return torch.from_numpy(z @ y @ x)[None]


def some_faces(seed: int, count: int = 2) -> torch.Tensor:
    """Lopsided, noisy faces about the mean, float64."""
    generator = torch.Generator().manual_seed(seed)
    noise_BK3 = torch.randn(count, 468, 3, generator=generator, dtype=torch.float64)
    return M.mean_mesh(dtype=torch.float64) + 0.01 * noise_BK3


def moved(mesh_BK3: torch.Tensor, turn_B33: torch.Tensor, scale: float, shift: float) -> torch.Tensor:
    return scale * mesh_BK3 @ turn_B33.mT + torch.tensor([shift, -2 * shift, 0.5 * shift], dtype=mesh_BK3.dtype)


@settings(max_examples=40, deadline=None)
@given(seeds, angles, angles, st.floats(-180, 180), st.floats(0.01, 2000), st.floats(-1000, 1000))
def test_measures_ignore_similarity_transforms(
    seed: int, yaw: float, pitch: float, roll: float, scale: float, shift: float
) -> None:
    mesh_BK3 = some_faces(seed)
    other_BK3 = moved(mesh_BK3, rotation(yaw, pitch, roll), scale, shift)
    atol = 1e-7 * max(1.0, abs(shift) / scale)  # a large shift costs digits
    torch.testing.assert_close(M.expression_measures(other_BK3), M.expression_measures(mesh_BK3), atol=atol, rtol=1e-7)
    torch.testing.assert_close(M.openness(other_BK3), M.openness(mesh_BK3), atol=atol, rtol=1e-7)
    torch.testing.assert_close(
        M.similarity_align(other_BK3).mesh_BK3, M.similarity_align(mesh_BK3).mesh_BK3, atol=atol, rtol=1e-7
    )


@settings(max_examples=60, deadline=None)
@given(angles, angles, angles, st.floats(0.5, 1000))
def test_pose_of_the_turned_mean_mesh(yaw: float, pitch: float, roll: float, scale: float) -> None:
    mesh_BK3 = moved(M.mean_mesh()[None], rotation(yaw, pitch, roll).float(), scale, 3.0)
    assert M.head_pose(mesh_BK3)[0].tolist() == pytest.approx([yaw, pitch, roll], abs=0.05)


def test_pose_signs() -> None:
    """By where the tip of the nose goes: the definition in `types.Face`."""
    nose_3, middle_3 = M.mean_mesh()[T.NOSE_TIP], M.mean_mesh()[list(T.RIGID)].mean(0)
    forward_3 = (nose_3 - middle_3).double()
    assert (rotation(20, 0, 0)[0] @ forward_3)[0] > forward_3[0]  # to the picture's right
    assert (rotation(0, 20, 0)[0] @ forward_3)[1] > forward_3[1]  # down
    up_3 = torch.tensor([0.0, -1.0, 0.0], dtype=torch.float64)
    assert (rotation(0, 0, 20)[0] @ up_3)[0] > 0  # clockwise: the top of the head goes to the right


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_alignment_is_a_least_squares_optimum(seed: int) -> None:
    mesh_BK3, reference_BK3 = some_faces(seed, 1), some_faces(seed + 1, 1)
    fit = M.similarity_align(moved(mesh_BK3, rotation(30, -20, 50), 7.0, 4.0), reference_BK3)
    assert torch.linalg.det(fit.rotation_B33).item() == pytest.approx(1.0)
    rigid = list(T.RIGID)

    def loss(x_BK3: torch.Tensor) -> float:
        return (x_BK3[:, rigid] - reference_BK3[:, rigid]).square().sum().item()

    best = loss(fit.mesh_BK3)
    for turn in (rotation(0.5, 0, 0), rotation(0, -0.5, 0), rotation(0, 0, 0.5)):
        assert loss(fit.mesh_BK3 @ turn[0].T) > best
    assert loss(fit.mesh_BK3 * 1.003) > best
    assert loss(fit.mesh_BK3 + 0.001) > best


@pytest.mark.parametrize("measure", [M.head_pose, M.expression_measures, lambda mesh: M.openness(mesh)[0]])
def test_gradients_are_the_slopes(measure: Callable[[torch.Tensor], torch.Tensor]) -> None:
    mesh_BK3 = moved(some_faces(5, 1), rotation(15, -8, 5), 3.0, 1.0).requires_grad_()
    generator = torch.Generator().manual_seed(6)
    step_BK3 = torch.randn(mesh_BK3.shape, generator=generator, dtype=torch.float64)
    outputs = measure(mesh_BK3)[0]
    with torch.no_grad():
        numeric = (measure(mesh_BK3 + 1e-6 * step_BK3)[0] - measure(mesh_BK3 - 1e-6 * step_BK3)[0]) / 2e-6
    slopes = [(torch.autograd.grad(y, mesh_BK3, retain_graph=True)[0] * step_BK3).sum() for y in outputs]
    torch.testing.assert_close(torch.stack(slopes), numeric, rtol=1e-5, atol=1e-6)


def test_gradients_are_finite_where_things_touch_and_coincide() -> None:
    shut_K3 = M.mean_mesh().clone()
    for upper, lower in (
        (T.RIGHT_UPPER_LID, T.RIGHT_LOWER_LID),
        (T.LEFT_UPPER_LID, T.LEFT_LOWER_LID),
        (T.INNER_UPPER_LIP, T.INNER_LOWER_LIP),
    ):
        shut_K3[list(upper)] = shut_K3[list(lower)]
    mesh_BK3 = torch.stack((shut_K3, M.mean_mesh())).requires_grad_()  # the second is the reference itself
    eyes_B2, mouth_B = M.openness(mesh_BK3)
    assert eyes_B2[0].max() < 1e-5
    assert mouth_B[0] < 1e-5
    (M.expression_measures(mesh_BK3).sum() + M.head_pose(mesh_BK3).sum() + eyes_B2.sum() + mouth_B.sum()).backward()
    assert mesh_BK3.grad is not None
    assert mesh_BK3.grad.isfinite().all()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_nearest_rotation_is_a_rotation(scale: float) -> None:
    """Also of a reflection, and of a matrix with equal singular values, whose SVD has no gradient."""
    random_B33 = torch.randn(8, 3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    matrix_B33 = scale * torch.cat((random_B33, torch.eye(3, dtype=torch.float64)[None]))
    matrix_B33.requires_grad_()
    turn_B33 = M.nearest_rotation(matrix_B33)
    torch.testing.assert_close(turn_B33 @ turn_B33.mT, torch.eye(3, dtype=torch.float64).expand(9, 3, 3))
    torch.testing.assert_close(torch.linalg.det(turn_B33), torch.ones(9, dtype=torch.float64))
    (turn_B33 * random_B33[:1]).sum().backward()
    assert matrix_B33.grad is not None
    assert matrix_B33.grad.isfinite().all()


def opened(upper: T.Indices, amounts: list[float]) -> torch.Tensor:
    """The mean mesh with points raised by some amounts, in crop fractions."""
    mesh_BK3 = M.mean_mesh().repeat(len(amounts), 1, 1)
    for index, amount in enumerate(amounts):
        mesh_BK3[index, list(upper), 1] -= amount
    return mesh_BK3


AMOUNTS = [0.0, 0.002, 0.005, 0.01, 0.02]


def test_openness_follows_each_lid_and_the_lips() -> None:
    right_B2, _ = M.openness(opened(T.RIGHT_UPPER_LID, AMOUNTS))
    assert (right_B2[:, 0].diff() > 0).all()
    assert (right_B2[:, 1].diff() == 0).all()
    left_B2, _ = M.openness(opened(T.LEFT_UPPER_LID, AMOUNTS))
    assert (left_B2[:, 1].diff() > 0).all()
    assert (left_B2[:, 0].diff() == 0).all()
    eyes_B2, mouth_B = M.openness(opened(T.INNER_UPPER_LIP, AMOUNTS))
    assert (mouth_B.diff() > 0).all()
    assert (eyes_B2.diff(dim=0) == 0).all()


@pytest.mark.parametrize(
    ("indices", "name", "sign"),
    [
        (T.RIGHT_UPPER_LID, "eye_openness_right", 1),
        (T.LEFT_UPPER_LID, "eye_openness_left", 1),
        (T.RIGHT_BROW, "brow_height_right", 1),
        (T.LEFT_BROW, "brow_height_left", 1),
        (T.MOUTH_CORNERS, "mouth_corner_lift", 1),
        ((T.CHIN,), "jaw_drop", -1),
    ],
)
def test_each_measure_answers_to_its_own_points(indices: T.Indices, name: str, sign: int) -> None:
    change_BM = sign * M.expression_measures(opened(indices, AMOUNTS)).diff(dim=0)
    moved_M = change_BM.abs().amax(0) > 1e-5
    assert [M.EXPRESSION_NAMES[i] for i in torch.nonzero(moved_M).flatten()] == [name]
    assert (change_BM[:, M.EXPRESSION_NAMES.index(name)] > 0).all()


def test_a_mirrored_face_swaps_right_and_left() -> None:
    mesh_BK3 = some_faces(9)
    flipped_BK3 = mesh_BK3[:, M.mirror_indices()] * torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)
    swap = [1, 0, 3, 2, 4, 5, 6, 7]
    torch.testing.assert_close(
        M.expression_measures(flipped_BK3)[:, swap], M.expression_measures(mesh_BK3), atol=1e-6, rtol=0
    )
    signs_3 = torch.tensor([-1.0, 1.0, -1.0], dtype=torch.float64)
    torch.testing.assert_close(M.head_pose(flipped_BK3) * signs_3, M.head_pose(mesh_BK3), atol=1e-4, rtol=0)


def test_the_mean_mesh_is_frontal_and_ordinary() -> None:
    assert M.head_pose(M.mean_mesh()[None])[0].tolist() == pytest.approx([0, 0, 0], abs=1e-4)
    mean_M, std_M = M.expression_statistics()
    assert len(mean_M) == len(std_M) == len(M.EXPRESSION_NAMES)
    assert ((M.expression_measures(M.mean_mesh()[None])[0] - mean_M).abs() < 0.6 * std_M).all()
