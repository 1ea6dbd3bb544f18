"""The projected discriminator: published names and counts, its parts against plain formulas, its files."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from _published_support import assert_same_network, doubles, norm, picture, save_described, with_spread

from latentswap.errors import UsageError, WeightsError
from latentswap.losses_simswap import get_preset, logits_of, weak_feature_matching
from latentswap.swappers import projected
from latentswap.swappers.projected import EfficientNetLite0, ProjectedConfig, ProjectedDiscriminator, _SameConv
from latentswap.weights.convert.sandbox import convert

TINY = ProjectedConfig(width=4)
STAGES = [(16, 1), (24, 2), (40, 2), (80, 3), (112, 3), (192, 4), (320, 1)]


@pytest.fixture(scope="module")
def network() -> ProjectedDiscriminator:
    torch.manual_seed(0)
    return with_spread(ProjectedDiscriminator(TINY))


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_published_counts_and_names():
    with torch.device("meta"):
        full = ProjectedDiscriminator()
    scratch = full.feature_network.scratch
    assert sum(count(scratch.get_submodule(f"layer{i}_ccm")) for i in range(4)) == 200_128
    assert sum(count(scratch.get_submodule(f"layer{i}_csm")) for i in range(4)) == 176_640
    assert sum(p.numel() for p in full.parameters() if p.requires_grad) == count(full.discriminator) == 10_331_328
    names = full.state_dict().keys()
    for k, downs in enumerate((4, 3, 2, 1)):
        head = f"discriminator.mini_discs.{k}.main"
        own = {name for name in names if name.startswith(head)}
        parts = [
            f"{head}.{i}.main.0.{p}" for i in range(downs) for p in ("bias", "weight_orig", "weight_u", "weight_v")
        ]
        parts += [f"{head}.{downs}.{p}" for p in ("weight_orig", "weight_u", "weight_v")]
        statistics = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        parts += [f"{head}.{i}.main.1.{p}" for i in range(downs) for p in statistics]
        assert own == set(parts)
    shapes = {name: tuple(value.shape) for name, value in full.state_dict().items()}
    assert shapes["feature_network.pretrained.layer0.0.weight"] == (32, 3, 3, 3)
    for depth, channels in enumerate((24, 40, 112, 320)):
        assert shapes[f"feature_network.scratch.layer{depth}_ccm.weight"] == (64 << depth, channels, 1, 1)


@pytest.mark.parametrize(("side", "logits"), [(224, 64), (512, 676)])
def test_outputs(network, side, logits):
    with torch.no_grad():
        ((*features, found),) = network(picture(1, 3, side, side))
    assert [tuple(f.shape[1:]) for f in features] == [
        (c, side // s, side // s) for c, s in ((24, 4), (40, 8), (112, 16), (320, 32))
    ]
    assert found.shape == (1, logits) and found.std() > 0


def test_padding_as_tensorflow_pads():
    convolution = _SameConv(1, 1, 3, stride=2, bias=False)
    torch.nn.init.ones_(convolution.weight)
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    with torch.no_grad():
        found = convolution(x)[0, 0]
    # Windows start at the first pixel; one zero follows on the right and below.
    expected = [[x[0, 0, i : i + 3, j : j + 3].sum() for j in (0, 2)] for i in (0, 2)]
    assert torch.equal(found, torch.tensor(expected))


def test_mixing_and_heads_match_the_specification(network):
    state, img = doubles(network), picture(2, 3, 128, 128)
    with torch.no_grad():
        ((*features, found),) = network(img)
        below, mixed = None, []
        for depth in (3, 2, 1, 0):
            key = f"feature_network.scratch.layer{depth}"
            x = F.conv2d(features[depth].double(), state[f"{key}_ccm.weight"], state[f"{key}_ccm.bias"])
            x = F.interpolate(x if below is None else x + below, scale_factor=2, mode="bilinear", align_corners=True)
            below = F.conv2d(x, state[f"{key}_csm.out_conv.weight"], state[f"{key}_csm.out_conv.bias"])
            mixed.insert(0, below)
        logits = []
        for k, (x, downs) in enumerate(zip(mixed, (4, 3, 2, 1), strict=True)):
            head = f"discriminator.mini_discs.{k}.main"

            def weight(key):
                matrix = state[f"{key}.weight_orig"]
                return matrix / (state[f"{key}.weight_u"] @ matrix.flatten(1) @ state[f"{key}.weight_v"])

            for i in range(downs):
                key = f"{head}.{i}.main"
                x = F.conv2d(x, weight(f"{key}.0"), state[f"{key}.0.bias"], stride=2, padding=1)
                x = F.leaky_relu(norm(state, f"{key}.1", x), 0.2)
            logits.append(F.conv2d(x, weight(f"{head}.{downs}")).flatten(1))
        expected = torch.cat(logits, 1)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-3 * expected.abs().max()


def test_training_leaves_the_classifier_alone(network):
    before = {name: value.clone() for name, value in network.feature_network.state_dict().items()}
    network.train()
    maps, other = network(picture(2, 3, 128, 128)), network(picture(2, 3, 128, 128, seed=4))
    first = get_preset("upstream-2022").feature_from
    loss = logits_of(maps)[0].mean() + weak_feature_matching(maps, other, first=first)
    assert weak_feature_matching(maps, other, first=first) == (maps[0][3] - other[0][3]).abs().mean()
    loss.backward()
    network.eval()
    assert all(torch.equal(value, before[name]) for name, value in network.feature_network.state_dict().items())
    assert all(p.grad is None for p in network.feature_network.parameters())
    assert all(p.grad is not None for p in network.discriminator.parameters())


def timm_state() -> dict[str, torch.Tensor]:
    """tf_efficientnet_lite0 under timm's names, from the layout of the classifier here."""
    trunk = with_spread(EfficientNetLite0())
    state, starts = {}, (0, 2, 3, 5)
    for name, value in trunk.state_dict().items():
        layer, at, rest = name.split(".", 2)
        depth, at = int(layer[-1]), int(at)
        if depth == 0 and at < 2:
            state[f"{('conv_stem', 'bn1')[at]}.{rest}"] = value
        else:
            state[f"blocks.{starts[depth] + at - (3 if depth == 0 else 0)}.{rest}"] = value
    return state | {
        "conv_head.weight": torch.zeros(8, 320, 1, 1),
        "bn2.weight": torch.ones(8),
        "classifier.bias": torch.ones(9),
    }


def test_a_new_one_from_a_classifier(tmp_path):
    state = timm_state()
    for stage, (channels, units) in enumerate(STAGES):
        names = {name.split(".")[2] for name in state if name.startswith(f"blocks.{stage}.")}
        assert names == {str(i) for i in range(units)}
        last = f"blocks.{stage}.{units - 1}.conv_pw{'' if stage == 0 else 'l'}.weight"
        assert state[last].shape[0] == channels
    torch.save(state, tmp_path / "lite0.pth")
    (made,) = convert(tmp_path / "lite0.pth")
    a, b, c = (ProjectedDiscriminator.start(made.path, seed=seed, config=TINY) for seed in (1, 1, 2))
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    ccm = "feature_network.scratch.layer2_ccm.weight"
    assert not torch.equal(a.state_dict()[ccm], c.state_dict()[ccm])
    assert torch.equal(
        a.state_dict()["feature_network.pretrained.layer1.0.0.conv_dw.weight"], state["blocks.2.0.conv_dw.weight"]
    )
    del state["blocks.3.1.bn1.bias"]
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(WeightsError, match=r"missing: layer2\.0\.1\.bn1\.bias"):
        convert(tmp_path / "part.pth")


def test_files(network, tmp_path: Path):
    torch.save(network.state_dict(), tmp_path / "400000_net_D.pth")
    (made,) = convert(tmp_path / "400000_net_D.pth")
    assert made.kind == "discriminator/projected"
    loaded = ProjectedDiscriminator.load(made.path)
    assert any(p.requires_grad for p in loaded.discriminator.parameters())
    assert not any(p.requires_grad for p in loaded.feature_network.parameters())
    assert_same_network(loaded.requires_grad_(False), network)
    with torch.no_grad():
        assert torch.allclose(
            loaded(picture(1, 3, 128, 128))[0][-1], network(picture(1, 3, 128, 128))[0][-1], rtol=1e-3
        )
    save_described(tmp_path / "other.safetensors", network, projected.KIND, width=8)
    with pytest.raises(WeightsError, match="of another shape"):
        ProjectedDiscriminator.load(tmp_path / "other.safetensors")
    with pytest.raises(UsageError, match="width is 0"):
        ProjectedConfig(width=0)
