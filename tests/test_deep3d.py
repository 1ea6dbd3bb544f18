"""The regressor of face model coefficients, the landmarks' geometry and the paper's shape loss, against formulas."""

import numpy as np
import pytest
import torch
from _published_support import (
    assert_same_network,
    doubles,
    picture,
    ramps,
    resnet_features,
    save_described,
    with_spread,
)

from latentswap.errors import UsageError, WeightsError
from latentswap.shape import deep3d
from latentswap.shape.deep3d import (
    Deep3D,
    Deep3DConfig,
    LandmarkModel,
    fuse_coefficients,
    landmark_loss,
    landmark_rows,
    rotation,
    shape_chip,
)
from latentswap.weights.load import save_tensors

UNITS = (1, 2, 1, 1)


def regressor() -> Deep3D:
    return with_spread(Deep3D(Deep3DConfig(units=UNITS, width=8)))


def face_model(count: int = 90) -> dict[str, torch.Tensor]:
    """A whole face model of `count` vertices, of the size of a face in its units (about 2)."""
    random = torch.Generator().manual_seed(3)
    return {
        "mean_V3": torch.randn(count, 3, generator=random, dtype=torch.float64) * 0.5 + 2,
        "id_QI": torch.randn(3 * count, 80, generator=random, dtype=torch.float64) * 0.03,
        "exp_QX": torch.randn(3 * count, 64, generator=random, dtype=torch.float64) * 0.03,
        "vertices_K": torch.randperm(count, generator=random)[:68],
    }


def landmarks() -> LandmarkModel:
    model = LandmarkModel()
    model.load_state_dict(landmark_rows(**face_model()))
    return model.eval()


def coefficients(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 257, generator=torch.Generator().manual_seed(seed)) * 0.5


def test_regressor_matches_the_specification():
    network = regressor()
    x = picture(2, 3, 224, 224)
    state = doubles(network)
    features = resnet_features(state, "backbone", UNITS, x.double())
    heads = [(state[f"final_layers.{i}.weight"], state[f"final_layers.{i}.bias"]) for i in range(7)]
    expected = torch.cat([features @ weight[:, :, 0, 0].T + bias for weight, bias in heads], 1)
    with torch.no_grad():
        found = network(x)
    assert found.shape == (2, 257)
    assert expected.std() > 0.05
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_published_sizes():
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in Deep3D(Deep3DConfig()).state_dict().items()}
    assert [shapes[f"final_layers.{i}.weight"] for i in range(7)] == [
        (n, 2048, 1, 1) for n in (80, 64, 80, 3, 27, 2, 1)
    ]
    backbone = {name.removeprefix("backbone."): shape for name, shape in shapes.items() if name.startswith("backbone.")}
    assert len(backbone) == 318  # of the customary ResNet-50's 320 entries, its `fc` left out
    assert not any(name.startswith("fc") for name in backbone)
    learned = [s for n, s in backbone.items() if "running" not in n and "tracked" not in n]
    assert sum(int(np.prod(shape)) for shape in learned) == 25_557_032 - 2048 * 1000 - 1000


def test_landmarks_match_the_specification():
    whole, given = face_model(), coefficients(3)
    given[:, deep3d.ANGLES] = torch.tensor([[0.3, -0.5, 0.2], [0, 0.7, 0], [-0.2, 0.1, -0.9]])
    found = landmarks()(given).double().numpy()
    mean = whole["mean_V3"].numpy() - whole["mean_V3"].numpy().mean(0)
    for b, row in enumerate(given.double().numpy()):
        offset = whole["id_QI"].numpy() @ row[:80] + whole["exp_QX"].numpy() @ row[80:144]
        (sx, sy, sz), (cx, cy, cz) = np.sin(row[224:227]), np.cos(row[224:227])
        about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
        about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
        about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
        for k, vertex in enumerate(whole["vertices_K"].tolist()):
            x, y, z = about_z @ about_y @ about_x @ (mean[vertex] + offset[3 * vertex : 3 * vertex + 3]) + row[254:257]
            expected = np.array([1015 * x, 1015 * y]) / (10 - z) + 112
            assert np.abs(found[b, k] - expected).max() < 1e-4 * max(np.abs(expected).max(), 100)


def test_rotation_turns_rigidly():
    turn = rotation(torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    assert torch.allclose(turn @ turn.mT, torch.eye(3).double().expand(5, 3, 3), atol=1e-12)
    assert torch.allclose(turn.det(), torch.ones(5).double())


def test_fused_coefficients():
    source, target = coefficients(2, 1), coefficients(2, 2)
    fused = fuse_coefficients(source, target)
    assert torch.equal(fused[:, :80], source[:, :80])
    assert torch.equal(fused[:, 80:], target[:, 80:])


def test_shape_loss():
    model, source, target = landmarks(), coefficients(2, 1), coefficients(2, 2)
    swapped = fuse_coefficients(source, target)
    assert landmark_loss(model, swapped, source, target) == 0
    other = swapped.clone()
    other[:, deep3d.TEXTURE] += 1
    other[:, deep3d.LIGHT] += 1
    assert landmark_loss(model, other, source, target) == 0
    given = [value.requires_grad_() for value in (target.clone(), source.clone(), target.clone())]
    loss = landmark_loss(model, *given)
    with torch.no_grad():
        assert torch.isclose(loss, (model(target) - model(swapped)).abs().mean(), rtol=1e-4)
    loss.backward()
    assert given[0].grad is not None
    assert given[0].grad[:, :80].abs().sum() > 0
    assert given[1].grad is None
    assert given[2].grad is None
    # Moving a face by dx in the plane of the model's origin moves its landmarks by about 101.5 px · dx.
    still = torch.zeros(1, 257)
    moved = still.clone()
    moved[:, 254] = 0.01
    flat = LandmarkModel()
    assert torch.allclose(flat(moved) - flat(still), torch.tensor([1.015, 0.0]), atol=1e-4)


def test_aligned_chip_is_a_fixed_part_of_the_crop():
    crop = ramps(256) * 2 - 1
    found = shape_chip(crop)[0, :2]
    at = (torch.arange(224) + 0.5) / 224 - 0.5
    x, y = 0.5023 + 0.8678 * at, 0.5722 + 0.8678 * at
    assert (found[0] - x).abs().max() < 1e-4
    inside = y < 1 - 1 / 128  # below, the crop's border continues
    assert inside.sum() >= 220
    assert (found[1] - y[:, None])[inside].abs().max() < 1e-4
    assert torch.allclose(shape_chip(ramps(1024) * 2 - 1)[0, :2, 4:-8, 4:-4], found[:, 4:-8, 4:-4], atol=1e-4)


def test_whole_chip_is_the_whole_crop():
    found = shape_chip(ramps(448) * 2 - 1, aligned=False)
    assert torch.allclose(found, ramps(224), atol=1e-5)


def test_gradients_reach_the_picture():
    network, model = regressor().requires_grad_(False), landmarks()
    img = picture(1, 3, 256, 256).requires_grad_()
    with torch.no_grad():
        source, target = (network(shape_chip(picture(1, 3, 256, 256, seed=s))) for s in (5, 6))
    landmark_loss(model, network(shape_chip(img)), source, target).backward()
    assert img.grad is not None
    assert img.grad.abs().sum() > 0


def test_file_round_trips(tmp_path):
    network, model = regressor(), landmarks()
    save_described(tmp_path / "r.safetensors", network, deep3d.KIND)
    save_tensors(tmp_path / "k.safetensors", model.state_dict(), {"kind": deep3d.LANDMARKS_KIND})
    assert_same_network(Deep3D.load(tmp_path / "r.safetensors"), network)
    assert_same_network(LandmarkModel.load(tmp_path / "k.safetensors"), model)
    with pytest.raises(WeightsError, match="deep3d-landmarks"):
        LandmarkModel.load(tmp_path / "r.safetensors")
    save_described(tmp_path / "bad.safetensors", network, deep3d.KIND, units=[1, 2, 1])
    with pytest.raises(WeightsError, match="does not describe"):
        Deep3D.load(tmp_path / "bad.safetensors")


def test_landmark_rows_have_the_layout_of_the_file():
    rows = landmark_rows(**face_model())
    assert {name: tuple(value.shape) for name, value in rows.items()} == {
        "mean_K3": (68, 3),
        "id_PI": (204, 80),
        "exp_PX": (204, 64),
    }
    assert all(value.dtype == torch.float32 for value in rows.values())


@pytest.mark.parametrize(
    "change",
    [
        {"id_QI": torch.zeros(270, 79)},
        {"exp_QX": torch.zeros(269, 64)},
        {"vertices_K": torch.arange(67)},
        {"vertices_K": torch.arange(23, 91)},
        {"vertices_K": torch.arange(-1, 67)},
    ],
)
def test_face_models_that_do_not_fit(change):
    with pytest.raises(UsageError):
        landmark_rows(**(face_model() | change))


def test_refuses_chips_of_another_shape():
    with pytest.raises(UsageError, match="224"):
        regressor()(picture(1, 3, 256, 256))
