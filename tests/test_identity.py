"""The identity network: against dlib itself, and the geometry of its chip."""

import numpy as np
import pytest
import torch
from conftest import published_files

from latentswap.errors import UsageError
from latentswap.identity.dlib_resnet import CHIP_CENTRE, CHIP_SIDE, CHIP_SIZE, DlibResNet, centred, chip


@pytest.fixture(scope="module")
def network(default_weights) -> DlibResNet:
    return DlibResNet.load(default_weights("dlib-resnet-v1"))


def test_matches_dlib(network):
    """1e-5 of dlib's own output, on noise and on smooth pictures."""
    dlib = pytest.importorskip("dlib")
    file = published_files("dlib-resnet-v1") / "dlib_face_recognition_resnet_model_v1.dat"
    theirs = dlib.face_recognition_model_v1(str(file))
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (150, 150, 3), dtype=np.uint8)
    ramp = np.linspace(0, 255, 150, dtype=np.uint8)[:, None, None] * np.ones((1, 150, 3), np.uint8)
    for chips in (noise, ramp, random.integers(0, 256, (150, 1, 3), dtype=np.uint8).repeat(150, 1)):
        ours = network(torch.from_numpy(np.ascontiguousarray(chips)).permute(2, 0, 1)[None].float())[0]
        assert np.abs(ours.numpy() - np.array(theirs.compute_face_descriptor(chips))).max() < 1e-5


def test_is_differentiable_and_its_gradient_is_right(network):
    torch.manual_seed(0)
    x = (torch.rand(1, 3, 150, 150) * 255).requires_grad_()
    direction = torch.randn_like(x)
    network(x).square().sum().backward()
    assert x.grad is not None
    slope = float((x.grad * direction).sum())
    with torch.no_grad():
        step = 0.02
        values = [network(x + s * step * direction).square().sum().double() for s in (1, -1)]
    assert slope == pytest.approx(float(values[0] - values[1]) / (2 * step), rel=0.05)


def test_the_chip_is_the_right_square():
    """A linear ramp over the crop is sampled where the constants say."""
    size = 256
    coordinate = (torch.arange(size) + 0.5) / size
    ramp = torch.stack(torch.meshgrid(coordinate, coordinate, indexing="ij"))  # y, x in crop fractions
    img = torch.cat([ramp, ramp[:1]])[None] * 2 - 1
    out = chip(img)[0] / 255
    expected = (torch.arange(CHIP_SIZE) + 0.5) / CHIP_SIZE - 0.5
    assert torch.allclose(out[1, 75], CHIP_CENTRE[0] + CHIP_SIDE * expected, atol=1e-3)
    assert torch.allclose(out[0, :, 75], CHIP_CENTRE[1] + CHIP_SIDE * expected, atol=1e-3)


def test_a_shift_moves_the_chip():
    img = torch.rand(1, 3, 64, 64) * 2 - 1
    assert torch.equal(chip(img), chip(img, torch.zeros(1, 4)))
    moved = chip(img.roll(4, 3), torch.tensor([[4 / 64, 0, 0, 0]]))
    assert torch.allclose(chip(img)[..., :120], moved[..., :120], atol=1e-3)


def test_other_sizes_of_one_picture_agree(network, people):
    _, pictures = people
    small = network(chip(pictures))
    large = network(chip(torch.nn.functional.interpolate(pictures, size=1024, mode="bilinear")))
    assert (small - large).norm(dim=1).max() < 0.12  # one person is within 0.6


def test_people_differ_and_mirror_images_do_not(networks, people):
    _, pictures = people
    e = centred(networks.identity(chip(pictures)), networks.mean_E)
    mirrored = centred(networks.identity(chip(pictures.flip(3))), networks.mean_E)
    same, others = (e * mirrored).sum(1), (e @ e.T)[~torch.eye(6, dtype=torch.bool)]
    assert same.min() > 0.7 and others.mean() < 0.3 and same.min() > others.max()


def test_wrong_size_is_refused(network):
    with pytest.raises(UsageError, match="150, 150"):
        network(torch.zeros(1, 3, 112, 112))
