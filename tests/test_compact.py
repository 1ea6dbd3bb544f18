"""The compact ID-injection network: what it keeps, what it reads, where it looks."""

import json

import pytest
import torch
import torch.nn.functional as F

from latentswap.errors import UsageError, WeightsError
from latentswap.identity.dlib_resnet import chip
from latentswap.shape.measures import head_pose
from latentswap.shape.mesh import crop_mesh
from latentswap.swappers.compact import (
    AdaIN,
    CompactConfig,
    CompactSwap,
    guide_for,
    inner,
    inner_chip,
    inner_mesh,
    is_compact,
)
from latentswap.weights.load import save_tensors

TINY = CompactConfig(widths=(8, 16, 24), blocks=2, style=16)


def network(seed: int = 0) -> CompactSwap:
    """A tiny network with random weights everywhere."""
    torch.manual_seed(seed)
    net = CompactSwap(TINY).eval()
    torch.nn.init.normal_(net.last.weight, std=0.3)
    return net


def inputs(batch: int = 3, side: int = 64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Targets, guides and identities."""
    random = torch.Generator().manual_seed(5)
    img_BCHW = torch.randn(batch, 3, side, side, generator=random).clamp(-1, 1)
    source_BCHW = torch.randn(batch, 3, side, side, generator=random).clamp(-1, 1)
    guide_B4HW = torch.cat([source_BCHW, torch.rand(batch, 1, side, side, generator=random)], 1)
    return img_BCHW, guide_B4HW, F.normalize(torch.randn(batch, 128, generator=random), dim=1)


def test_untrained_it_returns_the_target():
    given = inputs()
    assert torch.equal(CompactSwap(TINY)(*given), given[0])


def test_a_batch_is_its_singles_and_any_multiple_of_eight_goes_through():
    net, given = network(), inputs(side=72)
    together = net(*given)
    singles = torch.cat([net(*(x[k : k + 1] for x in given)) for k in range(3)])
    assert together.shape == given[0].shape
    assert torch.allclose(together, singles, atol=1e-5)


def test_the_identity_changes_the_picture_and_only_through_adain():
    net, (img_BCHW, guide_B4HW, embedding_BE) = network(), inputs()
    a, b = net(img_BCHW, guide_B4HW, embedding_BE), net(img_BCHW, guide_B4HW, embedding_BE.flip(0))
    assert (a[0] - b[0]).abs().mean() > 1e-4
    for module in net.modules():
        if isinstance(module, AdaIN):
            torch.nn.init.zeros_(module.linear.weight)
    again = net(img_BCHW, guide_B4HW, embedding_BE), net(img_BCHW, guide_B4HW, embedding_BE.flip(0))
    assert torch.equal(*again)


def test_a_guide_that_is_not_trusted_is_not_seen():
    net, (img_BCHW, guide_B4HW, embedding_BE) = network(), inputs()
    guide_B4HW[:, 3:] = 0
    other_B4HW = torch.cat([guide_B4HW[:, :3].flip(0), guide_B4HW[:, 3:]], 1)
    assert torch.equal(net(img_BCHW, guide_B4HW, embedding_BE), net(img_BCHW, other_B4HW, embedding_BE))


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
    state = net.state_dict()
    state["last.weight"][12:], state["last.bias"][12:] = 0, -1e4
    net.load_state_dict(state)
    given = inputs()
    assert torch.equal(net(*given), given[0])


def test_saved_and_loaded(tmp_path):
    net, given = network(), inputs()
    net.save(tmp_path / "net.safetensors", summary={"steps": 1})
    again = CompactSwap.load(tmp_path / "net.safetensors")
    assert is_compact(tmp_path / "net.safetensors")
    assert again.config == TINY and not any(p.requires_grad for p in again.parameters())
    assert torch.allclose(again(*given), net(*given), atol=2e-2)


def test_openvino_gives_the_same_layers(tmp_path):
    from latentswap.runtime.injection import OpenVINOCompact

    net, given = network(), inputs()
    compiled = OpenVINOCompact(net, size=64, cache_dir=tmp_path)
    for ours, theirs in zip(compiled(*given), net.layers(*given), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)


def test_the_guide_is_the_source_bent_into_the_targets_pose(networks, people):
    _, img_BCHW = people
    with torch.no_grad():
        meshes = crop_mesh(networks.mesh, img_BCHW)
        source, target = slice(0, 3), slice(3, 6)
        guide_B4HW = guide_for(img_BCHW[source], meshes[source], meshes[target], networks.shape_model)
        own_B4HW = guide_for(img_BCHW[source], meshes[source], meshes[source], networks.shape_model)
        bent = crop_mesh(networks.mesh, guide_B4HW[:, :3])

    def apart(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((head_pose(a) - head_pose(b)).norm(dim=-1).mean())

    assert apart(bent, meshes[target]) < apart(meshes[source], meshes[target])
    assert ((own_B4HW[:, :3] - img_BCHW[source]).abs() * own_B4HW[:, 3:]).mean() < 0.02
    assert guide_B4HW[:, 3].min() >= 0 and guide_B4HW[:, 3].max() <= 1


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
