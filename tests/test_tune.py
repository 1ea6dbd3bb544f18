"""Pivotal tuning and its delta: on a generator of reduced width with the real identity network, and once in full."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from latentswap.errors import UsageError, WeightsError
from latentswap.generators.base import broadcast_w
from latentswap.generators.mobile import Head256, Mapping, MobileStyleGAN, Synthesis
from latentswap.identity.dlib_resnet import DlibResNet
from latentswap.inversion.delta import KIND, GeneratorDelta, fingerprint
from latentswap.inversion.tune import (
    FEATURE_SIDE,
    SHARED_BLOCKS,
    Look,
    Square,
    TuneConfig,
    as_crops,
    distance,
    draw_square,
    look,
    neighbour,
    tail,
    tune,
)
from latentswap.weights.load import load_tensors, save_tensors

W = 8
QUICK = TuneConfig(steps=3, patch=23, lr=0.02)


class Narrow(MobileStyleGAN):
    """The generator with eight channels in every block."""

    w_dim = W

    def __init__(self, seed: int = 0) -> None:
        nn.Module.__init__(self)
        torch.manual_seed(seed)
        self.mapping_network = Mapping(w_dim=W, depth=2)
        self.synthesis_network = Synthesis(channels=(8,) * 7, w_dim=W, base=8)
        self.head = Head256(channels=8, width=4, w_dim=W)
        self.register_buffer("w_avg", torch.zeros(W))
        self.register_buffer("w_std", torch.ones(W))
        self.eval().requires_grad_(False)
        for name, value in (*self.named_buffers(), *self.named_parameters()):
            if name.endswith("noise"):
                value.normal_(0, 0.3)  # a square that took the wrong noise would show
            elif name.endswith("bias"):
                value.add_(0.2 * torch.randn_like(value))


@pytest.fixture(scope="module")
def identity(default_weights) -> DlibResNet:
    return DlibResNet.load(default_weights("dlib-resnet-v1"))


@pytest.fixture(scope="module")
def narrow() -> Narrow:
    return Narrow()


@pytest.fixture(scope="module")
def pivot(narrow) -> torch.Tensor:
    return torch.randn(1, 16, W, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def crop(narrow, pivot) -> torch.Tensor:
    """What the generator draws at the pivot, paler and in another colour."""
    with torch.no_grad():
        img = narrow.synthesis(pivot).clamp(-1, 1)
    return 0.5 * img + torch.tensor([0.4, -0.3, 0.2])[:, None, None]


@pytest.fixture(scope="module")
def delta(narrow, identity, pivot, crop) -> GeneratorDelta:
    return tune(narrow, identity, torch.zeros(128), pivot, crop, QUICK)


@pytest.mark.parametrize("square", [Square(0, 0, 24), Square(30, 51, 24), Square(104, 104, 24), Square(0, 60, 31)])
def test_a_square_is_what_the_full_picture_has_there(narrow, pivot, square):
    with torch.no_grad():
        full = narrow.synthesis(pivot)
        x = narrow.synthesis_network.features(pivot, SHARED_BLOCKS)
        part = tail(narrow.synthesis_network, x, pivot, square)
    rows, columns, full_rows, full_columns = square.picture()
    assert torch.allclose(part[:, :, rows, columns], full[:, :, full_rows, full_columns], atol=1e-5)
    assert part[:, :, rows, columns].shape[2] >= 8 * (square.side - 4)


def test_squares_reach_every_corner_and_stay_inside():
    random = torch.Generator().manual_seed(0)
    squares = [draw_square(24, random) for _ in range(400)]
    assert all(0 <= s.top <= FEATURE_SIDE - 24 and 0 <= s.left <= FEATURE_SIDE - 24 for s in squares)
    covered = np.zeros((FEATURE_SIDE * 8, FEATURE_SIDE * 8), bool)
    for square in squares:
        covered[square.picture()[2:]] = True
    assert covered.all()


def test_a_neighbour_lies_at_the_distance_towards_the_stranger(narrow, pivot):
    z = torch.randn(1, W, generator=torch.Generator().manual_seed(2))
    near = neighbour(narrow, pivot, 0.5, z)
    assert float((near - pivot).norm()) == pytest.approx(0.5 * (16 / 18) ** 0.5, rel=1e-5)
    stranger = broadcast_w(narrow.mapping(z, truncation_psi=0.5), 16)
    assert float(F.cosine_similarity((near - pivot).flatten(1), (stranger - pivot).flatten(1))) > 0.99999


def test_distance_is_zero_for_the_same_look_and_grows_with_what_differs(identity, crop):
    small = F.interpolate(crop, size=256, mode="area")
    same = Look(small, crop[:, :, :160, :160])
    config = TuneConfig()

    def measure(seen: Look) -> tuple[float, float]:
        whole, rest = distance(identity, torch.zeros(128), seen, same, config, torch.Generator().manual_seed(0))
        return float(whole), float(rest)

    assert measure(same) == pytest.approx((0, 0), abs=1e-5)
    smaller, larger = (measure(Look(small + by, same.close_BCHW))[0] for by in (0.05, 0.2))
    assert 0.05 * 0.9 < smaller < larger
    assert measure(Look(small, same.close_BCHW + 0.1))[1] > 0.1 * 0.9


def test_tuning_comes_closer_and_leaves_the_generator_alone(narrow, identity, pivot, crop):
    before = {name: value.clone() for name, value in narrow.state_dict().items()}
    steps: list[tuple[int, int]] = []
    config = TuneConfig(steps=8, patch=23, lr=0.05, locality=0.0)
    delta = tune(narrow, identity, torch.zeros(128), pivot, crop, config, lambda *done: steps.append(done))
    assert all(torch.equal(value, before[name]) for name, value in narrow.state_dict().items())
    assert not any(p.requires_grad for p in narrow.parameters())
    assert steps == [(n, 8) for n in range(1, 9)]
    tuned = delta.apply(narrow)
    with torch.no_grad():
        for resolution in (1024, 256):
            wanted = F.interpolate(crop, size=resolution, mode="area")
            was, now = ((g.synthesis(pivot, resolution=resolution) - wanted).abs().mean() for g in (narrow, tuned))
            assert now < 0.9 * was, (resolution, was, now)
    assert not any(p.requires_grad for p in tuned.parameters())
    assert all("affine" not in name and not name.startswith("mapping") for name in delta.changes)
    assert any(name.startswith("head") for name in delta.changes)


def test_locality_holds_what_lies_around_the_pivot(narrow, identity, pivot, crop):
    z = torch.randn(1, W, generator=torch.Generator().manual_seed(7))
    square = Square(40, 40, 23)
    moved = []
    for weight in (0.0, 20.0):
        config = TuneConfig(steps=6, patch=23, lr=0.05, locality=weight, locality_every=1, locality_distance=8.0)
        tuned = tune(narrow, identity, torch.zeros(128), pivot, crop, config).apply(narrow)
        near = neighbour(narrow, pivot, 8.0, z)
        with torch.no_grad():
            moved.append(float((look(tuned, near, square)[0] - look(narrow, near, square)[0]).abs().mean()))
    assert moved[1] < 0.7 * moved[0], moved


def test_the_same_seed_gives_the_same_delta_and_another_seed_another(narrow, identity, pivot, crop, delta):
    again = tune(narrow, identity, torch.zeros(128), pivot, crop, QUICK)
    other = tune(narrow, identity, torch.zeros(128), pivot, crop, TuneConfig(steps=3, patch=23, lr=0.02, seed=1))
    assert all(torch.equal(value, again.changes[name]) for name, value in delta.changes.items())
    assert not all(torch.equal(value, other.changes[name]) for name, value in delta.changes.items())


def test_a_pair_takes_turns_and_arrays_are_tensors(narrow, identity, pivot):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 1024, 1024, 3), dtype=np.uint8)
    pair = torch.cat([pivot, pivot + 0.5])
    img = as_crops(list(pixels), pair)
    assert img.shape == (2, 3, 1024, 1024)
    assert float(img[1, 2, 5, 7]) == pytest.approx(pixels[1, 5, 7, 2] / 127.5 - 1)
    delta = tune(narrow, identity, torch.zeros(128), pair, list(pixels), TuneConfig(steps=1, patch=23))
    assert (delta.about["pictures"], delta.about["steps"]) == (2, 2)


def test_it_stops_early_once_every_picture_is_close_enough(narrow, identity, pivot, crop):
    steps: list[tuple[int, int]] = []
    config = TuneConfig(steps=9, patch=23, stop_at=100.0)
    delta = tune(narrow, identity, torch.zeros(128), pivot, crop, config, lambda *done: steps.append(done))
    assert delta.about["steps"] == 1
    assert steps == [(1, 9), (9, 9)]


def test_a_delta_survives_the_file_and_means_the_same_weights(tmp_path, narrow, delta):
    path = tmp_path / "delta.safetensors"
    delta.save(path)
    again = GeneratorDelta.load(path, narrow)
    assert again.parent == delta.parent == fingerprint(narrow)
    assert again.about == json.loads(json.dumps(delta.about))
    assert path.stat().st_size < 64 << 10
    start, tuned = dict(narrow.named_parameters()), dict(again.apply(narrow).named_parameters())
    for name, value in tuned.items():
        expected = start[name] + delta.changes[name].float() if name in delta.changes else start[name]
        assert torch.equal(value, expected), name


def test_a_generator_in_half_precision_takes_no_delta(narrow, delta):
    with pytest.raises(UsageError, match="before `half_precision`"):
        delta.apply(Narrow().half_precision())
    assert delta.apply(narrow).half_precision().synthesis_network.input.dtype == torch.bfloat16


def test_a_delta_is_refused_by_every_other_generator(tmp_path, narrow, delta):
    path = tmp_path / "delta.safetensors"
    delta.save(path)
    other = Narrow(seed=1)
    for attempt in (lambda: GeneratorDelta.load(path, other), lambda: delta.apply(other)):
        with pytest.raises(WeightsError, match=f"{fingerprint(narrow)[:16]}.*{fingerprint(other)[:16]}"):
            attempt()


@pytest.mark.attack
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("head.conv9.weight", torch.zeros(1).half(), "does not have"),
        ("head.conv1.weight", torch.zeros(4, 8, 1, 1), "must be float16"),
        ("head.conv1.weight", torch.zeros(4, 9, 1, 1).half(), "must be float16"),
        ("head.conv1.weight", torch.full((4, 8, 1, 1), 60000.0).half(), "more than its largest weight"),
    ],
)
def test_hostile_deltas_are_refused(tmp_path, narrow, delta, name, value, message):
    path = tmp_path / "delta.safetensors"
    save_tensors(path, {**delta.changes, name: value}, {"kind": KIND, **delta.metadata()})
    with pytest.raises(WeightsError, match=message):
        GeneratorDelta.load(path, narrow)


@pytest.mark.attack
@pytest.mark.parametrize("about", ["[]", "{", "[" * 100_000])
def test_descriptions_that_are_no_table_are_refused(tmp_path, narrow, delta, about):
    path = tmp_path / "delta.safetensors"
    save_tensors(path, delta.changes, {"kind": KIND, "parent": delta.parent, "about": about})
    with pytest.raises(WeightsError, match=r"table|which generator"):
        GeneratorDelta.load(path, narrow)


def test_values_that_are_not_finite_are_refused(tmp_path, narrow, delta):
    name, value = next(iter(delta.changes.items()))
    broken = GeneratorDelta(parent=delta.parent, changes={**delta.changes, name: torch.full_like(value, torch.nan)})
    with pytest.raises(WeightsError, match="not finite"):
        broken.save(tmp_path / "delta.safetensors")
    with pytest.raises(WeightsError, match="largest weight"):
        broken.apply(narrow)
    with pytest.raises(WeightsError, match="changes nothing"):
        GeneratorDelta(parent=delta.parent, changes={}).apply(narrow)


def test_refusals(narrow, identity, pivot, crop):
    for bad in ({"steps": 0}, {"lr": 0.0}, {"lr": 1.0}, {"locality_every": 0}, {"patch": 22}, {"patch": 129}):
        with pytest.raises(UsageError, match=r"out of range|runs from"):
            TuneConfig(**bad)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError, match="2 pivots need crops"):
        tune(narrow, identity, torch.zeros(128), pivot.expand(2, -1, -1), crop)
    with pytest.raises(UsageError, match="begins with any"):
        tune(narrow, identity, torch.zeros(128), pivot, crop, TuneConfig(layers=("nothing",)))
    with pytest.raises(UsageError, match="float32"):
        tune(Narrow().half_precision(), identity, torch.zeros(128), pivot, crop)
    headless = Narrow()
    headless.head = None
    with pytest.raises(UsageError, match="256² head"):
        tune(headless, identity, torch.zeros(128), pivot, crop)


@pytest.mark.slow
def test_a_person_with_something_pasted_on(networks, tmp_path):
    """The real generator, 25 steps: nearer at 1024², the delta small, and a stranger's picture still its own."""
    from latentswap.pipeline import person

    code, other = person(networks, seed=3), person(networks, seed=4)
    with torch.no_grad():
        crop = networks.generator.synthesis(code).clamp(-1, 1)
        stranger = networks.generator.synthesis(other, resolution=256)
    crop[:, :, 60:200, 120:420] = torch.tensor([0.8, -0.6, -0.2])[:, None, None]
    delta = tune(networks.generator, networks.identity, networks.mean_E, code, crop, TuneConfig(steps=25))
    tuned = delta.apply(networks.generator)
    with torch.no_grad():
        was, now = ((g.synthesis(code).clamp(-1, 1) - crop).square().mean() for g in (networks.generator, tuned))
        moved = (tuned.synthesis(other, resolution=256) - stranger).square().mean()
    assert 10 * torch.log10(was / now) > 1.5
    assert 10 * torch.log10(4 / moved) > 24
    delta.save(tmp_path / "delta.safetensors")
    assert (tmp_path / "delta.safetensors").stat().st_size < 16 << 20
    assert load_tensors(tmp_path / "delta.safetensors", kind=KIND)[1]["parent"] == fingerprint(networks.generator)
