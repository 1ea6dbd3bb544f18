"""The compact ID-injection network: what it keeps, what it reads, where it looks."""

import json

import pytest
import torch
import torch.nn.functional as F

from latentswap.errors import UsageError, WeightsError
from latentswap.identity.dlib_resnet import chip
from latentswap.shape.mesh import crop_mesh
from latentswap.swappers.compact import AdaIN, CompactConfig, CompactSwap, inner, inner_chip, inner_mesh
from latentswap.weights.load import save_tensors

TINY = CompactConfig(widths=(8, 16, 24), blocks=2, style=16)


def network(seed: int = 0) -> CompactSwap:
    """A tiny network with random weights everywhere."""
    torch.manual_seed(seed)
    net = CompactSwap(TINY).eval()
    torch.nn.init.normal_(net.last.weight, std=0.3)
    return net


def inputs(batch: int = 3, side: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(5)
    img_BCHW = torch.randn(batch, 3, side, side, generator=random).clamp(-1, 1)
    return img_BCHW, F.normalize(torch.randn(batch, 128, generator=random), dim=1)


def test_untrained_it_returns_the_target():
    img_BCHW, embedding_BE = inputs()
    assert torch.equal(CompactSwap(TINY)(img_BCHW, embedding_BE), img_BCHW)


def test_a_batch_is_its_singles_and_any_multiple_of_eight_goes_through():
    net = network()
    img_BCHW, embedding_BE = inputs(side=72)
    together = net(img_BCHW, embedding_BE)
    singles = torch.cat([net(img_BCHW[k : k + 1], embedding_BE[k : k + 1]) for k in range(3)])
    assert together.shape == img_BCHW.shape
    assert torch.allclose(together, singles, atol=1e-5)


def test_the_identity_changes_the_picture_and_only_through_adain():
    net = network()
    img_BCHW, embedding_BE = inputs()
    a, b = net(img_BCHW, embedding_BE), net(img_BCHW, embedding_BE.flip(0))
    assert (a[0] - b[0]).abs().mean() > 1e-5
    for block in net.blocks:
        for adain in block.adain:
            torch.nn.init.zeros_(adain.linear.weight)
    assert torch.equal(net(img_BCHW, embedding_BE), net(img_BCHW, embedding_BE.flip(0)))


def test_adain_against_the_formula_in_float64():
    torch.manual_seed(1)
    layer, x, style = AdaIN(6, 10), 3 + 2 * torch.randn(2, 6, 9, 7), torch.randn(2, 10)
    gain, shift = (style.double() @ layer.linear.weight.double().T + layer.linear.bias.double()).chunk(2, 1)
    y = x.double()
    y = (y - y.mean((2, 3), keepdim=True)) / (y.var((2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    wanted = y * (1 + gain[:, :, None, None]) + shift[:, :, None, None]
    assert torch.allclose(layer(x, style).double(), wanted, atol=1e-5)


def test_where_nothing_is_new_the_target_stays_exactly():
    net = network()
    torch.nn.init.zeros_(net.last.weight[12:])
    with torch.no_grad():
        net.last.bias[12:] = -1e4
    img_BCHW, embedding_BE = inputs()
    assert torch.equal(net(img_BCHW, embedding_BE), img_BCHW)


def test_saved_and_loaded(tmp_path):
    net, (img_BCHW, embedding_BE) = network(), inputs()
    net.save(tmp_path / "net.safetensors", summary={"steps": 1})
    again = CompactSwap.load(tmp_path / "net.safetensors")
    assert again.config == TINY and not any(p.requires_grad for p in again.parameters())
    assert torch.allclose(again(img_BCHW, embedding_BE), net(img_BCHW, embedding_BE), atol=2e-2)


@pytest.mark.parametrize("config", ["{", "[]", json.dumps({"widths": [8, 16, 10**9]}), json.dumps({"depth": 3})])
def test_a_file_with_another_configuration_is_refused(tmp_path, config):
    save_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(1)}, {"kind": "swapper/compact", "config": config})
    with pytest.raises((WeightsError, UsageError)):
        CompactSwap.load(tmp_path / "x.safetensors")


@pytest.mark.parametrize("changes", [{"widths": (8, 16)}, {"widths": (1, 8, 8)}, {"blocks": 0}, {"style": 1}])
def test_sizes_out_of_range_are_refused(changes):
    with pytest.raises(UsageError):
        CompactConfig(**changes)


def test_it_looks_at_the_same_chip_and_mesh_as_the_whole_crop_shows(networks, people):
    _, img_BCHW = people
    square_BCHW = inner(img_BCHW)
    assert square_BCHW.shape[-1] == 224
    inside = (inner_chip(square_BCHW) - chip(img_BCHW)).abs().mean() / 255
    assert inside < 0.01
    with torch.no_grad():
        apart = inner_mesh(networks.mesh, square_BCHW) - crop_mesh(networks.mesh, img_BCHW)
    assert apart[..., :2].norm(dim=-1).mean() < 0.012  # of the crop; the mesh network jitters by 0.003


def test_inner_of_a_large_crop_is_inner_of_the_small_one():
    x = torch.linspace(-1, 1, 256)
    img_BCHW = torch.stack([x.expand(256, 256), x[:, None].expand(256, 256), torch.zeros(256, 256)])[None]
    large_BCHW = F.interpolate(img_BCHW, size=1024, mode="bilinear", align_corners=False)
    assert (inner(large_BCHW) - inner(img_BCHW)).abs().max() < 0.01
