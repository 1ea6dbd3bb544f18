"""SimSwap's objective: every term on tensors written by hand, the presets' figures, one step of training."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from _published_support import picture

from latentswap.errors import UsageError
from latentswap.identity.arcface import ArcFaceConfig, build_arcface, similarity_chip
from latentswap.losses_simswap import (
    PRESETS,
    SimSwapObjective,
    discriminator_hinge,
    discriminator_loss,
    generator_hinge,
    generator_loss,
    get_preset,
    gradient_penalty,
    reconstruction_loss,
    weak_feature_matching,
)
from latentswap.swappers.patchgan import PatchGANConfig, TwoScales
from latentswap.swappers.simswap import SimSwapConfig, SimSwapGenerator


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values)


def test_discriminator_hinge():
    real = [numbers(2.0, 0.5, -1.0, 1.0), numbers(3.0)]  # 0, 0.5, 2, 0 → 0.625; 0
    fake = [numbers(-2.0, 0.0, 1.0, -1.0), numbers(-0.5)]  # 0, 1, 2, 0 → 0.75; 0.5
    assert discriminator_hinge(real, fake) == pytest.approx((0.625 + 0.75 + 0 + 0.5) / 2)


def test_generator_hinge():
    assert generator_hinge([numbers(1.0, 2.0), numbers(-4.0)]) == pytest.approx((-1.5 + 4) / 2)


def test_gradient_penalty_of_a_linear_discriminator():
    """D(x) = a · x in one scale, 3 a · x in the other: the gradient is 2 a everywhere."""
    weight = torch.tensor([[[[0.0, 3.0], [4.0, 0.0]]]], requires_grad=True)  # of length 5

    def discriminate(img: torch.Tensor) -> list[list[torch.Tensor]]:
        value = (img * weight).sum((1, 2, 3))[:, None, None, None]
        return [[value], [3 * value.expand(-1, 1, 2, 2)]]

    real, fake = torch.zeros(2, 1, 2, 2), torch.ones(2, 1, 2, 2)
    penalty = gradient_penalty(discriminate, real, fake, numbers(0.2, 0.9))
    assert penalty.item() == pytest.approx((10 - 1) ** 2)
    penalty.backward()  # d/da (2|a| − 1)² = 4 (2|a| − 1) a / |a|
    assert weight.grad is not None
    assert torch.allclose(weight.grad, 4 * 9 * weight.detach() / 5)


def test_gradient_penalty_looks_between_the_pictures():
    """D(x) = ½ |x|²: the gradient is x itself, here (1 − mix) · 4 of 1 pixel."""

    def discriminate(img: torch.Tensor) -> list[list[torch.Tensor]]:
        return [[0.5 * img.square().sum((1, 2, 3))[:, None, None, None]]]

    real, fake = torch.full((2, 1, 1, 1), 4.0), torch.zeros(2, 1, 1, 1)
    penalty = gradient_penalty(discriminate, real, fake, numbers(0.0, 0.5))
    assert penalty.item() == pytest.approx(((4 - 1) ** 2 + (2 - 1) ** 2) / 2)


def test_weak_feature_matching():
    zero = torch.zeros(1, 1, 2, 2)
    fake = [[zero + 8, zero + 1, zero + 2, zero + 100], [zero, zero, zero - 3, zero]]
    target = [[zero, zero, zero, zero], [zero, zero, zero + 1, zero]]
    assert weak_feature_matching(fake, target, first=2).item() == pytest.approx((2 + 4) / 2)
    assert weak_feature_matching(fake, target, first=1).item() == pytest.approx((1 + 2 + 4) / 2)
    assert weak_feature_matching(fake, target, first=0).item() == pytest.approx((8 + 1 + 2 + 4) / 2)
    with pytest.raises(UsageError, match="from layer 3 on leaves none of the 3 layers"):
        weak_feature_matching(fake, target, first=3)


def test_feature_matching_does_not_move_the_target():
    a, b = (torch.full((1, 1, 1, 1), v, requires_grad=True) for v in (1.0, 3.0))
    weak_feature_matching([[a, a]], [[b, b]], first=0).backward()
    assert a.grad is not None
    assert (a.grad.item(), b.grad) == (-1, None)


def test_reconstruction_counts_pairs_of_one_person():
    img = torch.zeros(3, 1, 1, 2)
    target = torch.tensor([[1.0, 0.0], [9.0, 9.0], [2.0, 3.0]])[:, None, None]
    assert reconstruction_loss(img, target, torch.tensor([True, False, True])).item() == pytest.approx((0.5 + 2.5) / 2)
    assert reconstruction_loss(img, target, torch.zeros(3, dtype=torch.bool)).item() == 0


def test_generator_loss_is_the_weighted_sum():
    layer = torch.zeros(1, 1, 1, 1)
    fake = [[layer, layer, layer, layer + 1, layer + 2, layer - 0.25]]
    target = [[layer] * 6]
    total, terms = generator_loss(
        get_preset("paper"),
        fake=fake,
        target=target,
        embedding_BE=numbers(1.0, 0.0)[None],
        source_BE=numbers(0.6, 0.8)[None],
        img_BCHW=torch.zeros(1, 3, 2, 2),
        target_BCHW=torch.full((1, 3, 2, 2), 0.5),
        same_B=torch.tensor([True]),
    )
    expected = {"identity": 0.4, "adversarial": 0.25, "feature": 3.0, "reconstruction": 0.5}
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected)
    assert total.item() == pytest.approx(10 * 0.4 + 0.25 + 10 * 3 + 10 * 0.5)


def test_presets_hold_the_published_figures():
    paper, upstream = get_preset("paper"), get_preset("upstream-2022")
    assert (paper.identity, paper.feature, paper.reconstruction, paper.gradient_penalty) == (10, 10, 10, 1e-5)
    assert (paper.discriminator, paper.batch) == ("patchgan", 8)
    assert (upstream.identity, upstream.feature, upstream.reconstruction, upstream.gradient_penalty) == (30, 10, 10, 0)
    assert (upstream.discriminator, upstream.feature_from) == ("projected", 3)
    assert (upstream.learning_rate, upstream.betas, upstream.epsilon) == (4e-4, (0.0, 0.99), 1e-8)
    with pytest.raises(UsageError, match="there are: paper, upstream-2022"):
        get_preset("2021")


@pytest.mark.parametrize(
    "fields",
    [{"identity": -1.0}, {"feature": float("nan")}, {"feature_from": 5}, {"discriminator": "vgg"}, {"batch": 1},
     {"learning_rate": 0.0}, {"betas": (0.5, 1.0)}],
)  # fmt: skip
def test_figures_out_of_range(fields):
    with pytest.raises(UsageError):
        replace(PRESETS["paper"], **fields)


def test_one_step_of_training_lowers_what_it_lowers():
    """`paper` at 224², two pairs, tiny widths: after a few steps on one batch both players are better off."""
    torch.manual_seed(0)
    objective: SimSwapObjective = PRESETS["paper"]
    generator = SimSwapGenerator(SimSwapConfig(variant="fix", width=16, identity_dim=24, blocks=2)).train()
    discriminator = TwoScales(PatchGANConfig(width=4)).train()
    face = build_arcface(ArcFaceConfig(family="iresnet", units=(1, 1, 1, 1), widths=(16, 16, 16, 16), embedding_dim=24))
    face.eval().requires_grad_(False)
    optimisers = [
        torch.optim.Adam(net.parameters(), lr=2e-3, betas=objective.betas) for net in (generator, discriminator)
    ]
    target, source = picture(2, 3, 224, 224), picture(2, 3, 224, 224, seed=5)
    source[0] = target[0]
    same, mix = torch.tensor([True, False]), torch.tensor([0.3, 0.8])
    with torch.no_grad():
        wanted = face(similarity_chip(source))

    def generators() -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        img = generator(target, wanted)
        return generator_loss(
            replace(objective, identity=1, feature=1),
            fake=discriminator(img),
            target=discriminator(target),
            embedding_BE=F.normalize(face(similarity_chip(img)), dim=1),
            source_BE=wanted,
            img_BCHW=img,
            target_BCHW=target,
            same_B=same,
        )

    def discriminators() -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        with torch.no_grad():
            img = generator(target, wanted)
        return discriminator_loss(objective, discriminator, source, img, mix)

    assert set(discriminators()[1]) == {"hinge", "penalty"}
    for loss, optimiser in zip((generators, discriminators), optimisers, strict=True):
        before = loss()[0].item()
        for _ in range(4):
            optimiser.zero_grad()
            loss()[0].backward()
            optimiser.step()
        moved = [p.grad for group in optimiser.param_groups for p in group["params"]]
        assert all(grad is not None and torch.isfinite(grad).all() for grad in moved)
        assert loss()[0].item() < before
