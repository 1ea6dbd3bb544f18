"""The latent mixer: the paper's arithmetic, its size, and blending."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from latentswap.errors import UsageError, WeightsError
from latentswap.swappers.mixer import (
    PAPER_HIDDEN,
    LatentMixer,
    MixerConfig,
    RowLinear,
    blend_rows,
    mixer_parameters,
)
from latentswap.weights.assets import asset_path
from latentswap.weights.load import save_tensors


def test_is_the_papers_mixer_row_by_row():
    """Against separate nn.Linear stacks: source first, SiLU between, residual on the target."""
    torch.manual_seed(0)
    config = MixerConfig(num_ws=5, w_dim=6, hidden=(8, 7), residual=0.7)
    mixer = LatentMixer(config).double()
    source, target = torch.randn(3, 5, 6).double(), torch.randn(3, 5, 6).double()
    for row in range(5):
        x = torch.cat([source[:, row], target[:, row]], 1)
        for i, layer in enumerate(mixer.layers):
            assert isinstance(layer, RowLinear)
            linear = nn.Linear(layer.weight.shape[2], layer.weight.shape[1]).double()
            linear.load_state_dict({"weight": layer.weight[row], "bias": layer.bias[row]})
            x = linear(x) if i == len(mixer.layers) - 1 else F.silu(linear(x))
        assert torch.allclose(mixer(source, target)[:, row], x + 0.7 * target[:, row], atol=1e-12)


def test_the_papers_size():
    config = MixerConfig(num_ws=18, hidden=PAPER_HIDDEN)
    assert mixer_parameters(config) == 56_687_616
    with torch.device("meta"):
        mixer = LatentMixer(config)
    assert sum(p.numel() for p in mixer.parameters()) == 56_687_616


def test_rows_do_not_see_one_another():
    torch.manual_seed(0)
    mixer = LatentMixer(MixerConfig(num_ws=4, w_dim=3, hidden=(5,)))
    source, target = torch.randn(1, 4, 3), torch.randn(1, 4, 3)
    other = source.clone()
    other[:, 2] += 1
    changed = (mixer(source, target) != mixer(other, target)).any(-1)[0]
    assert changed.tolist() == [False, False, True, False]


def test_every_parameter_learns_and_the_target_is_where_it_starts():
    torch.manual_seed(0)
    mixer = LatentMixer(MixerConfig(num_ws=3, w_dim=4, hidden=(8,)))
    mixer.start_at_target(torch.full((4,), 0.5), torch.full((4,), 2.0))
    source, target = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    out = mixer(source, target)
    assert (out - target).abs().max() < 0.5
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in mixer.parameters())


def test_saved_and_loaded_it_is_the_same(tmp_path):
    torch.manual_seed(0)
    mixer = LatentMixer(MixerConfig(num_ws=3, w_dim=4, hidden=(8, 8)))
    mixer.save(tmp_path / "mixer.safetensors", summary={"steps": 1})
    again = LatentMixer.load(tmp_path / "mixer.safetensors")
    source, target = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    assert again.config == mixer.config
    assert torch.allclose(mixer(source, target), again(source, target), atol=1e-2)  # stored as float16


@pytest.mark.parametrize("config", ['{"num_ws": 1000000}', '{"hidden": [99999999]}', '{"_target_": "os.system"}', "[]"])
def test_a_hostile_description_is_refused_before_anything_is_built(tmp_path, config):
    path = tmp_path / "mixer.safetensors"
    save_tensors(path, {"x": torch.zeros(1)}, {"kind": "mixer", "config": config})
    with pytest.raises(WeightsError, match="does not describe a mixer"):
        LatentMixer.load(path)


def test_wrong_shapes_are_refused():
    mixer = LatentMixer(MixerConfig(num_ws=3, w_dim=4, hidden=(8,)))
    with pytest.raises(UsageError, match=r"\[B, 3, 4\]"):
        mixer(torch.zeros(1, 18, 4), torch.zeros(1, 18, 4))


def test_blending():
    target, swapped = torch.zeros(1, 4, 2), torch.ones(1, 4, 2)
    assert torch.equal(blend_rows(target, swapped), swapped)
    assert torch.equal(blend_rows(target, swapped, strength=0), target)
    half = blend_rows(target, swapped, strength=0.5, layers=(1, 3))
    assert half[0, :, 0].tolist() == [0, 0.5, 0, 0.5]
    with pytest.raises(UsageError, match=r"0 \(the target\) to 1"):
        blend_rows(target, swapped, strength=1.5)
    with pytest.raises(UsageError, match="rows 0 to 3"):
        blend_rows(target, swapped, layers=(4,))


def test_the_shipped_mixer_moves_identity_to_the_source(networks, people):
    """On people it was not trained on, by the network it was trained with."""
    from latentswap.identity.dlib_resnet import centred, chip

    codes, pictures = people
    source, target = codes[[0, 1, 2]], codes[[3, 4, 5]]
    with torch.no_grad():
        known = centred(networks.identity(chip(pictures)), networks.mean_E)
        swapped = networks.mixer(source, target, known[:3])
        e = centred(networks.identity(chip(networks.generator.synthesis(swapped, resolution=256))), networks.mean_E)
    to_source, to_target = (e * known[:3]).sum(1), (e * known[3:]).sum(1)
    assert to_source.mean() > 0.6 and (to_source - to_target).mean() > 0.4
    assert asset_path("mixer").stat().st_size < 40e6
