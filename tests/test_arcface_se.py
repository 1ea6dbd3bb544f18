"""SimSwap's identity network against its formulas, its two ways to a chip, its file."""

import pytest
import torch
import torch.nn.functional as F
from _published_support import assert_same_network, doubles, norm, picture, prelu, save_described, with_spread

from latentswap.errors import UsageError, WeightsError
from latentswap.identity import arcface_se
from latentswap.identity.arcface import similarity_chip
from latentswap.identity.arcface_se import ArcFaceSE, ArcFaceSEConfig
from latentswap.identity.base import IdentityNetwork
from latentswap.networks import load_identity

UNITS, WIDTHS = (2, 1, 2, 1), (16, 16, 32, 48)


@pytest.fixture(scope="module")
def network() -> ArcFaceSE:
    return with_spread(ArcFaceSE(ArcFaceSEConfig(units=UNITS, widths=WIDTHS, embedding_dim=24))).requires_grad_(False)


def naive(state, chip):
    """From the published names; chip in [-1, 1]."""
    mean, std = (torch.tensor(v).double()[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    x = F.conv2d(((chip + 1) / 2 - mean) / std, state["conv1.weight"])
    x = prelu(state, "prelu", norm(state, "bn1", x))
    assert x.shape[-1] == 110
    x = F.max_pool2d(x, 2, 2)
    for stage, count in enumerate(UNITS, 1):
        for i in range(count):
            key, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            y = norm(
                state, f"{key}.bn1", F.conv2d(norm(state, f"{key}.bn0", x), state[f"{key}.conv1.weight"], padding=1)
            )
            y = F.conv2d(prelu(state, f"{key}.prelu", y), state[f"{key}.conv2.weight"], padding=1, stride=stride)
            y = norm(state, f"{key}.bn2", y)
            gate = y.mean((2, 3)) @ state[f"{key}.se.fc.0.weight"].T + state[f"{key}.se.fc.0.bias"]
            gate = torch.where(gate > 0, gate, state[f"{key}.se.fc.1.weight"] * gate)
            gate = gate @ state[f"{key}.se.fc.2.weight"].T + state[f"{key}.se.fc.2.bias"]
            y = y / (1 + torch.exp(-gate))[:, :, None, None]
            if f"{key}.downsample.0.weight" in state:
                x = norm(state, f"{key}.downsample.1", F.conv2d(x, state[f"{key}.downsample.0.weight"], stride=stride))
            x = prelu(state, f"{key}.prelu", x + y)
    assert x.shape[-1] == 7
    x = norm(state, "bn2", x).flatten(1) @ state["fc.weight"].T + state["fc.bias"]
    x = norm(state, "bn3", x)
    return x / x.square().sum(1, keepdim=True).sqrt()


def test_matches_the_specification(network):
    chip = picture(3, 3, 112, 112)
    found, expected = network(chip), naive(doubles(network), chip.double())
    assert (found - expected).abs().max() < 1e-4
    assert (expected[0] - expected[1]).abs().max() > 1e-3
    assert "layer1.0.downsample.0.weight" not in network.state_dict()


@pytest.mark.parametrize("side", [224, 512])
def test_an_aligned_crop_gives_its_nearest_pixels(network, side):
    crop = picture(2, 3, side, side)
    at = [i * side // 112 for i in range(112)]
    assert torch.equal(network.embed_aligned(crop), network(crop[:, :, at][..., at]))


def test_an_ffhq_crop_gives_the_template_chip(network):
    crop = picture(2, 3, 256, 256).requires_grad_()
    embedding = network.embed(crop)
    assert torch.equal(embedding, network(similarity_chip(crop)))
    embedding[0, 0].backward()
    assert crop.grad is not None and crop.grad[0].abs().sum() > 0
    assert isinstance(network, IdentityNetwork)


def test_file_round_trip(network, tmp_path):
    save_described(tmp_path / "n.safetensors", network, arcface_se.KIND)
    assert_same_network(ArcFaceSE.load(tmp_path / "n.safetensors"), network)
    assert isinstance(load_identity(tmp_path / "n.safetensors"), ArcFaceSE)
    save_described(tmp_path / "n.safetensors", network, arcface_se.KIND, units=[2, 1, 2])
    with pytest.raises(WeightsError, match="does not describe"):
        ArcFaceSE.load(tmp_path / "n.safetensors")


def test_refuses_chips_of_another_shape(network):
    with pytest.raises(UsageError, match="shape"):
        network(picture(1, 3, 96, 96))
