"""Published identity networks: both ArcFace families and Smooth-Swap's, against their formulas; their chips; files."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from _published_support import (
    assert_same_network,
    doubles,
    ir_se_units,
    norm,
    picture,
    prelu,
    ramps,
    resnet_features,
    save_described,
    with_spread,
)

from latentswap.errors import UsageError, WeightsError
from latentswap.identity import arcface, smoothswap
from latentswap.identity.arcface import ArcFaceConfig, build_arcface, load_arcface, similarity_chip, window_chip
from latentswap.identity.base import IdentityNetwork
from latentswap.identity.smoothswap import SmoothSwapConfig, SmoothSwapEmbedder

UNITS, WIDTHS = (1, 2, 2, 1), (16, 16, 32, 32)
TEMPLATE = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)
FFHQ_POINTS = np.array(
    [(0.3769, 0.4686), (0.6229, 0.4691), (0.5012, 0.6133), (0.3931, 0.7254), (0.6115, 0.7249)]
)  # fmt: skip


def tiny(name: Any) -> Any:
    if name == "smoothswap":
        config = SmoothSwapConfig(units=(1, 2, 1, 1), width=8, classes=20, hidden=12, embedding_dim=10)
        return with_spread(SmoothSwapEmbedder(config))
    return with_spread(build_arcface(ArcFaceConfig(family=name, units=UNITS, widths=WIDTHS, embedding_dim=24)))


def unit(x: torch.Tensor) -> torch.Tensor:
    return x / x.square().sum(1, keepdim=True).sqrt()


def naive_ir_se50(state, chip):
    x = norm(state, "output_layer.0", ir_se_units(state, UNITS, chip)[-1]).flatten(1)
    x = x @ state["output_layer.3.weight"].T + state["output_layer.3.bias"]
    return unit(norm(state, "output_layer.4", x))


def naive_iresnet(state, chip):
    x = prelu(state, "prelu", norm(state, "bn1", F.conv2d(chip, state["conv1.weight"], padding=1)))
    for stage, count in enumerate(UNITS, 1):
        for i in range(count):
            key, stride = f"layer{stage}.{i}", 1 if i else 2
            y = F.conv2d(norm(state, f"{key}.bn1", x), state[f"{key}.conv1.weight"], padding=1)
            y = prelu(state, f"{key}.prelu", norm(state, f"{key}.bn2", y))
            y = norm(state, f"{key}.bn3", F.conv2d(y, state[f"{key}.conv2.weight"], stride=stride, padding=1))
            if i == 0:
                x = norm(state, f"{key}.downsample.1", F.conv2d(x, state[f"{key}.downsample.0.weight"], stride=stride))
            x = x + y
    x = norm(state, "bn2", x).flatten(1) @ state["fc.weight"].T + state["fc.bias"]
    return unit(norm(state, "features", x))


def naive_smoothswap(state, crop):
    x = resnet_features(state, "resnet", (1, 2, 1, 1), crop)
    x = x @ state["resnet.fc.weight"].T + state["resnet.fc.bias"]
    x = norm(state, "last.1", x @ state["last.0.weight"].T + state["last.0.bias"])
    x = torch.where(x > 0, x, 0.01 * x)
    return unit(norm(state, "last.4", x @ state["last.3.weight"].T + state["last.3.bias"]))


NAIVE = {"ir_se50": (naive_ir_se50, 112), "iresnet": (naive_iresnet, 112), "smoothswap": (naive_smoothswap, 256)}


@pytest.mark.parametrize("name", NAIVE)
def test_matches_the_specification(name):
    network, (naive, side) = tiny(name), NAIVE[name]
    x = picture(3, 3, side, side)
    with torch.no_grad():
        found, expected = network(x), naive(doubles(network), x.double())
    assert (found - expected).abs().max() < 1e-4
    assert (expected[0] - expected[1]).abs().max() > 1e-3
    assert torch.allclose(found.norm(dim=1), torch.ones(3), atol=1e-5)


@pytest.mark.parametrize("name", NAIVE)
@pytest.mark.parametrize("side", [128, 256, 300])
def test_embeds_crops_of_any_size_and_passes_gradients(name, side):
    network = tiny(name).requires_grad_(False)
    assert isinstance(network, IdentityNetwork)
    crop = picture(2, 3, side, side).requires_grad_()
    embedding = network.embed(crop)
    assert embedding.shape == (2, network.embedding_dim)
    assert torch.allclose(embedding.norm(dim=1), torch.ones(2), atol=1e-5)
    embedding[0, 0].backward()
    assert crop.grad is not None
    assert crop.grad[0].abs().sum() > 0
    assert crop.grad[1].abs().sum() == 0


def test_published_sizes():
    with torch.device("meta"):
        networks = {
            "ir_se50": build_arcface(ArcFaceConfig()),
            "iresnet50": build_arcface(ArcFaceConfig(family="iresnet")),
            "iresnet100": build_arcface(ArcFaceConfig(family="iresnet", units=(3, 13, 30, 3))),
            "smoothswap": SmoothSwapEmbedder(SmoothSwapConfig()),
        }
    states = {name: {n: tuple(v.shape) for n, v in network.state_dict().items()} for name, network in networks.items()}
    assert len(states["ir_se50"]) == 397
    assert sum(p.numel() for p in networks["ir_se50"].parameters()) == 43_797_696
    assert {n.split(".")[0] for n in states["ir_se50"]} == {"input_layer", "body", "output_layer"}
    assert states["ir_se50"]["output_layer.3.weight"] == (512, 25088)
    tops = {"conv1", "bn1", "prelu", "layer1", "layer2", "layer3", "layer4", "bn2", "fc", "features"}
    for name, counts in (("iresnet50", [3, 4, 14, 3]), ("iresnet100", [3, 13, 30, 3])):
        state = states[name]
        assert {n.split(".")[0] for n in state} == tops
        assert [len({n.split(".")[1] for n in state if n.startswith(f"layer{i}.")}) for i in (1, 2, 3, 4)] == counts
        parts = {".".join(n.split(".")[2:-1]) for n in state if n.startswith("layer2.0.")}
        assert parts == {"bn1", "conv1", "bn2", "prelu", "conv2", "bn3", "downsample.0", "downsample.1"}
        assert state["fc.weight"] == (512, 25088)
        assert state["layer1.0.downsample.0.weight"] == (64, 64, 1, 1)
        assert "layer1.1.downsample.0.weight" not in state
    state = states["smoothswap"]
    assert state["resnet.fc.weight"] == (2048, 2048)
    assert state["resnet.layer4.2.conv2.weight"] == (512, 512, 3, 3)
    assert [state[f"last.{i}.weight"] for i in (0, 1, 3, 4)] == [(1024, 2048), (1024,), (512, 1024), (512,)]


def test_window_chip_averages_a_window_of_the_crop():
    crop = picture(1, 3, 256, 256)
    window = crop[0, :, 35:223, 32:220].double().numpy()
    expected = np.empty((3, 112, 112))
    for i in range(112):
        rows = slice(i * 188 // 112, -(-(i + 1) * 188 // 112))
        for j in range(112):
            expected[:, i, j] = window[:, rows, j * 188 // 112 : -(-(j + 1) * 188 // 112)].mean((1, 2))
    assert np.abs(window_chip(crop)[0].numpy() - expected).max() < 1e-5
    large = crop.repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert torch.allclose(window_chip(large), window_chip(crop), atol=1e-5)


def test_similarity_chip_puts_the_five_points_on_the_template():
    # Least squares for u = a·x − b·y + c, v = b·x + a·y + d; the template counts from the first pixel's centre.
    (x, y), ones, zeros = FFHQ_POINTS.T, np.ones(5), np.zeros(5)
    system = np.concatenate([np.stack([x, -y, ones, zeros], 1), np.stack([y, x, zeros, ones], 1)])
    a, b, c, d = np.linalg.lstsq(system, TEMPLATE.T.flatten(), rcond=None)[0]
    u, v = np.meshgrid(np.arange(112), np.arange(112))
    where = np.linalg.inv([[a, -b], [b, a]]) @ np.stack([(u - c).flatten(), (v - d).flatten()])
    for side in (256, 1024):
        looked = similarity_chip(ramps(side))[0, :2].flatten(1).double().numpy()
        assert np.abs(looked - where).max() * a < 0.05  # chip pixels


@pytest.mark.parametrize("name", NAIVE)
def test_file_round_trip(tmp_path, name):
    network = tiny(name)
    kind, load = (smoothswap.KIND, SmoothSwapEmbedder.load) if name == "smoothswap" else (arcface.KIND, load_arcface)
    save_described(tmp_path / "n.safetensors", network, kind)
    loaded = load(tmp_path / "n.safetensors")
    assert_same_network(loaded, network)
    crop = picture(1, 3, 256, 256)
    assert torch.allclose(loaded.embed(crop), network.embed(crop).detach(), atol=1e-5)
    save_described(tmp_path / "other.safetensors", network, "identity/dlib-resnet")
    with pytest.raises(WeightsError, match="identity/dlib-resnet"):
        load(tmp_path / "other.safetensors")


@pytest.mark.parametrize("change", [{"units": [1, 2, 2, 1 << 30]}, {"widths": [16, 16, 32, 33]}, {"family": "vgg"}])
def test_a_file_that_describes_something_else(tmp_path, change):
    save_described(tmp_path / "n.safetensors", tiny("ir_se50"), arcface.KIND, **change)
    with pytest.raises(WeightsError, match="does not describe"):
        load_arcface(tmp_path / "n.safetensors")


def test_the_other_family_is_no_fit(tmp_path):
    save_described(tmp_path / "n.safetensors", tiny("ir_se50"), arcface.KIND, family="iresnet")
    with pytest.raises(WeightsError, match=r"missing: .*unexpected: "):
        load_arcface(tmp_path / "n.safetensors")


@pytest.mark.parametrize("fields", [{"units": (3, 4, 6)}, {"width": 0}, {"classes": 0}, {"hidden": 1 << 20}])
def test_smoothswap_sizes_out_of_range(fields):
    with pytest.raises(UsageError):
        SmoothSwapConfig(**fields)


@pytest.mark.parametrize("name", NAIVE)
def test_refuses_chips_of_another_shape(name):
    with pytest.raises(UsageError, match="shape"):
        tiny(name)(picture(1, 3, 96, 96))
