"""SimSwap's published networks: names, sizes, ranges, and each against a plain float64 reference."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from _published_support import assert_same_network, doubles, norm, picture, save_described, with_spread
from _simswap_support import STAGES, discriminator_shapes, generator_shapes

from latentswap.errors import UsageError, WeightsError
from latentswap.identity.imagenet import normalised, restored
from latentswap.runtime.injection import OpenVINOInjection
from latentswap.swappers import patchgan, simswap
from latentswap.swappers.patchgan import PatchGAN, PatchGANConfig, TwoScales
from latentswap.swappers.simswap import VARIANTS, SimSwapConfig, SimSwapGenerator, folded, instance_norm

PARAMETERS = {"legacy224": 55_051_779, "legacy512": 55_079_427, "fix": 55_051_779, "fix_deep": 59_773_443}
MEAN, STD = (
    torch.tensor(v, dtype=torch.float64)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
)


def tiny(variant: str, **changes: int) -> SimSwapGenerator:
    width = 64 if variant == "legacy512" else 32
    config = SimSwapConfig(variant=variant, **{"width": width, "identity_dim": 8, "blocks": 3, **changes})  # pyright: ignore
    return with_spread(SimSwapGenerator(config)).requires_grad_(False)


def identities(batch: int, width: int = 8, seed: int = 2) -> torch.Tensor:
    return F.normalize(torch.randn(batch, width, generator=torch.Generator().manual_seed(seed)), dim=1)


# The reference, from the published names.


def convolved(state, key, x, *, pad=0, stride=1, reflect=False):
    x = F.pad(x, (pad,) * 4, mode="reflect" if reflect else "constant")
    return F.conv2d(x, state[f"{key}.weight"], state[f"{key}.bias"], stride=stride)


def adain(state, key, x, identity):
    x = x - x.mean((2, 3), keepdim=True)
    x = x / (x.pow(2).mean((2, 3), keepdim=True) + 1e-8).sqrt()
    styles = identity @ state[f"{key}.linear.weight"].T + state[f"{key}.linear.bias"]
    gain, shift = styles[:, : x.shape[1], None, None], styles[:, x.shape[1] :, None, None]
    return x * (gain + 1) + shift


def naive(variant, state, unit, identity, blocks=3):
    """RGB in [0, 1] → RGB in [0, 1], as the upstream scripts use each variant."""
    fixed = variant.startswith("fix")
    x = (unit - MEAN) / STD if fixed else unit
    x = norm(state, "first_layer.2", convolved(state, "first_layer.1", x, pad=3, reflect=True)).clamp_min(0)
    for number, _, _ in STAGES[variant]:
        x = norm(state, f"down{number}.1", convolved(state, f"down{number}.0", x, pad=1, stride=2)).clamp_min(0)
    for i in range(blocks):
        block, y = f"BottleNeck.{i}", x
        y = adain(state, f"{block}.style1", convolved(state, f"{block}.conv1.1", y, pad=1, reflect=True), identity)
        y = convolved(state, f"{block}.conv2.1", y.clamp_min(0), pad=1, reflect=True)
        x = x + adain(state, f"{block}.style2", y, identity)
    for number, _, _ in STAGES[variant][::-1]:
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        x = norm(state, f"up{number}.2", convolved(state, f"up{number}.1", x, pad=1)).clamp_min(0)
    x = convolved(state, "last_layer.1", x, pad=3, reflect=True)
    return x * STD + MEAN if fixed else (x.tanh() + 1) / 2


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("sides", [(64, 64), (32, 96)])
def test_matches_the_specification(variant, sides):
    network, img, identity = tiny(variant), picture(2, 3, *sides), identities(2)
    expected = naive(variant, doubles(network), (img.double() + 1) / 2, identity.double())
    found = network(img, identity)
    assert ((found + 1) / 2 - expected).abs().max() < 1e-4
    assert (expected[0] - expected[1]).abs().max() > 1e-2
    assert (network(img, identity.flip(0)) - found).abs().max() > 1e-2  # the identity shows
    assert (folded(network)(img, identity) - found).abs().max() < 1e-4


@pytest.mark.parametrize("variant", VARIANTS)
def test_names_and_sizes_are_the_published_ones(variant):
    with torch.device("meta"):
        network = SimSwapGenerator(SimSwapConfig(variant=variant))
    assert {k: tuple(v.shape) for k, v in network.state_dict().items()} == generator_shapes(variant)
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[variant]
    assert sum(p.numel() for p in network.BottleNeck[0].parameters()) == 5_770_240


def test_the_same_weights_are_another_network_in_another_variant():
    """What loads without an error and gives wrong colours upstream."""
    legacy, fixed = tiny("legacy224"), tiny("fix")
    fixed.load_state_dict(legacy.state_dict())
    img, identity = picture(1, 3, 64, 64), identities(1)
    assert (legacy(img, identity) - fixed(img, identity)).abs().mean() > 0.05


def test_ranges():
    img = picture(1, 3, 32, 32)
    assert torch.equal(tiny("legacy224").to_input(img), (img + 1) / 2)
    fixed = tiny("fix")
    assert torch.allclose(fixed.from_output(fixed.to_input(img)), img, atol=1e-6)
    assert torch.allclose(restored(normalised(img)), img, atol=1e-6)
    assert torch.allclose(
        normalised(torch.full((1, 3, 1, 1), 0.5))[0, :, 0, 0].double(), ((0.5 - MEAN) / STD).flatten()
    )


def test_instance_norm():
    x = torch.tensor([[[[1.0, 3.0]], [[5.0, 5.0]]]])  # a constant channel has nothing to divide by
    assert torch.allclose(instance_norm(x), torch.tensor([[[[-1.0, 1.0]], [[0.0, 0.0]]]]))


@pytest.mark.parametrize("variant", VARIANTS)
def test_openvino_is_the_same_network(variant, tmp_path):
    network, img, identity = tiny(variant), picture(3, 3, 64, 64), identities(3)
    expected = network(img, identity).numpy()
    fast = OpenVINOInjection(folded(network), size=64, identity_dim=8, cache_dir=tmp_path)
    assert np.abs(fast(img.numpy(), identity.numpy()) - expected).max() < 1e-4
    assert np.abs(fast(img[:1].numpy(), identity[:1].numpy()) - expected[:1]).max() < 1e-4
    (kept,) = tmp_path.iterdir()
    before = (kept / "injection.xml").stat().st_mtime_ns
    again = OpenVINOInjection(folded(network), size=64, identity_dim=8, cache_dir=tmp_path)
    assert (kept / "injection.xml").stat().st_mtime_ns == before and list(tmp_path.iterdir()) == [kept]
    assert np.abs(again(img.numpy(), identity.numpy()) - expected).max() < 1e-4


@pytest.mark.parametrize("side", [32, 224, 1024])
def test_sides_that_are_multiples_of_32(side):
    network = tiny("fix_deep", width=16, blocks=1)
    assert network(torch.zeros(1, 3, 32, side), identities(1)).shape == (1, 3, 32, side)


@pytest.mark.parametrize(
    ("shape", "identity"),
    [((1, 3, 48, 32), 8), ((1, 3, 32, 1056), 8), ((1, 1, 32, 32), 8), ((3, 32, 32), 8), ((1, 3, 32, 32), 9)],
)
def test_refuses_other_crops(shape, identity):
    with pytest.raises(UsageError, match="shape"):
        tiny("legacy224")(torch.zeros(shape), identities(1, identity))


@pytest.mark.parametrize(
    "fields", [{"variant": "fix512"}, {"width": 36}, {"width": 0}, {"blocks": 0}, {"identity_dim": 0}]
)
def test_configurations_out_of_range(fields):
    with pytest.raises(UsageError, match=next(iter(fields))):
        SimSwapConfig(**fields)
    with pytest.raises(UsageError, match="multiple of 16"):
        SimSwapConfig(variant="legacy512", width=24)


@pytest.mark.parametrize("variant", VARIANTS)
def test_file_round_trip(variant, tmp_path):
    network = tiny(variant)
    save_described(tmp_path / "n.safetensors", network, simswap.KIND)
    loaded = SimSwapGenerator.load(tmp_path / "n.safetensors")
    assert_same_network(loaded, network)
    assert loaded.config == network.config
    img, identity = picture(1, 3, 64, 64), identities(1)
    assert torch.allclose(loaded(img, identity), network(img, identity), atol=1e-4)


@pytest.mark.parametrize(("saved", "stated"), [("legacy224", "legacy512"), ("fix_deep", "fix"), ("fix", "fix_deep")])
def test_a_file_of_another_variant(saved, stated, tmp_path):
    save_described(tmp_path / "n.safetensors", tiny(saved), simswap.KIND, variant=stated)
    with pytest.raises(WeightsError, match=r"missing|unexpected"):
        SimSwapGenerator.load(tmp_path / "n.safetensors")


# ---------------------------------------------------------------------------------------------- discriminator


def naive_patchgan(state, unit):
    x = F.leaky_relu(convolved(state, "down1.0", unit, pad=1, stride=2), 0.2)
    maps = [x]
    for name, stride in (("down2", 2), ("down3", 2), ("down4", 2), ("conv1", 1)):
        x = norm(state, f"{name}.1", convolved(state, f"{name}.0", x, pad=1, stride=stride))
        maps.append(x := torch.where(x > 0, x, 0.2 * x))
    return [*maps, convolved(state, "conv2.0", x, pad=1)]


def test_discriminator_matches_the_specification():
    two, img = with_spread(TwoScales(PatchGANConfig(width=4))), picture(2, 3, 96, 96)
    unit = (img.double() + 1) / 2
    # Mean of the up to nine pixels around every second one; beyond the border there are none.
    count = F.conv2d(F.pad(torch.ones_like(unit[:, :1]), (1,) * 4), torch.ones(1, 1, 3, 3).double(), stride=2)
    total = F.conv2d(F.pad(unit.flatten(0, 1)[:, None], (1,) * 4), torch.ones(1, 1, 3, 3).double(), stride=2)
    half = total.unflatten(0, (2, 3))[:, :, 0] / count
    with torch.no_grad():
        found = two(img)
    for network, maps, x in ((two.D1, found[0], unit), (two.D2, found[1], half)):
        expected = naive_patchgan(doubles(network), x)
        assert len(maps) == len(expected) == patchgan.LAYERS
        assert all((a - b).abs().max() < 1e-4 for a, b in zip(maps, expected, strict=True))
    assert [m.shape[1] for m in found[0]] == [4, 8, 16, 32, 32, 1]


def test_discriminator_has_the_published_names_and_size(tmp_path):
    with torch.device("meta"):
        network = PatchGAN()
    assert {k: tuple(v.shape) for k, v in network.state_dict().items()} == discriminator_shapes()
    assert sum(p.numel() for p in network.parameters()) == 6_962_369
    small = with_spread(PatchGAN(PatchGANConfig(width=4)))
    save_described(tmp_path / "d.safetensors", small, patchgan.KIND)
    assert_same_network(PatchGAN.load(tmp_path / "d.safetensors"), small)
    with pytest.raises(UsageError, match="width is 0"):
        PatchGANConfig(width=0)
