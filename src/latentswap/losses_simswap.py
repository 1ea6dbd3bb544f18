"""The objective of SimSwap (Chen et al., arXiv 2106.06340), as pure functions of embeddings, maps and pictures.

L_G = λ_id · L_id + L_adv + λ_feature · L_wFM + λ_rec · L_rec, and for the discriminator hinge + λ_GP · L_GP. Weights,
and what goes with them, are named sets: `PRESETS`. Every function returns a scalar tensor. Maps of a discriminator are
lists, one for each scale, of its layers' outputs; the last of a list are the logits.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F

from latentswap.errors import UsageError
from latentswap.losses import identity_loss

Maps = Sequence[Sequence[torch.Tensor]]
DiscriminatorName = Literal["patchgan", "projected"]


@dataclass(frozen=True, kw_only=True)
class SimSwapObjective:
    """Every figure of a training run that bears on its result.

    `feature_from`: first layer that feature matching compares, counted from 0; it compares from there to the last layer
    before the logits. `batch`, `steps`: what the figures were published with.
    """

    identity: float
    feature: float
    reconstruction: float
    gradient_penalty: float
    feature_from: int
    discriminator: DiscriminatorName
    learning_rate: float
    betas: tuple[float, float]
    batch: int
    steps: int
    epsilon: float = 1e-8  # Adam's

    def __post_init__(self) -> None:
        for name in ("identity", "feature", "reconstruction", "gradient_penalty"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UsageError(f"The weight {name} is {getattr(self, name)}; it is 0 or more.")
        if self.discriminator not in get_args(DiscriminatorName):
            raise UsageError(
                f"discriminator is {self.discriminator!r}; it must be one of {', '.join(get_args(DiscriminatorName))}."
            )
        most = 4 if self.discriminator == "patchgan" else 3
        if not (type(self.feature_from) is int and 0 <= self.feature_from <= most):
            raise UsageError(
                f"feature_from is {self.feature_from}; the layers of {self.discriminator} before its logits are 0 to "
                f"{most}."
            )
        if not 0 < self.learning_rate < 1 or not all(0 <= beta < 1 for beta in self.betas) or self.epsilon <= 0:
            raise UsageError(f"Adam takes no learning rate {self.learning_rate} with betas {self.betas}.")
        if self.batch < 2 or self.steps < 1:
            raise UsageError(f"A batch of {self.batch} (2 or more) and {self.steps} steps (1 or more).")


PRESETS: dict[str, SimSwapObjective] = {
    # The paper's weights. It does not say from which layer on features are matched, nor how Adam was set: the layers
    # are the two deepest before the logits, Adam's figures are those of the options released with the weights.
    "paper": SimSwapObjective(
        identity=10,
        feature=10,
        reconstruction=10,
        gradient_penalty=1e-5,
        feature_from=3,
        discriminator="patchgan",
        learning_rate=2e-4,
        betas=(0.5, 0.999),
        batch=8,
        steps=400_000,
    ),
    # What the authors' training script of 2022 does: a projected discriminator, and matching at its deepest layer.
    "upstream-2022": SimSwapObjective(
        identity=30,
        feature=10,
        reconstruction=10,
        gradient_penalty=0,
        feature_from=3,
        discriminator="projected",
        learning_rate=4e-4,
        betas=(0.0, 0.99),
        batch=16,
        steps=400_000,
    ),
}


def get_preset(name: str) -> SimSwapObjective:
    """The objective of that name. Raises UsageError."""
    if name not in PRESETS:
        raise UsageError(f"{name!r} is not an objective of SimSwap; there are: {', '.join(PRESETS)}.")
    return PRESETS[name]


def logits_of(maps: Maps) -> list[torch.Tensor]:
    """The logits of every scale."""
    return [layers[-1] for layers in maps]


def discriminator_hinge(real: Sequence[torch.Tensor], fake: Sequence[torch.Tensor]) -> torch.Tensor:
    """max(0, 1 − D(real)) + max(0, 1 + D(fake)), means over patches and batch, then over scales (Lim and Ye, 2017)."""
    parts = [F.relu(1 - r).mean() + F.relu(1 + f).mean() for r, f in zip(real, fake, strict=True)]
    return torch.stack(parts).mean()


def generator_hinge(fake: Sequence[torch.Tensor]) -> torch.Tensor:
    """L_adv = −D(fake), mean over patches and batch, then over scales."""
    return torch.stack([-f.mean() for f in fake]).mean()


def gradient_penalty(
    discriminate: Callable[[torch.Tensor], Maps],
    real_BCHW: torch.Tensor,
    fake_BCHW: torch.Tensor,
    mix_B: torch.Tensor,
) -> torch.Tensor:
    """L_GP = mean (‖∇ D(x)‖₂ − 1)² at x = real + mix · (fake − real) (Gulrajani et al., arXiv 1704.00028).

    D(x) is a picture's mean logit, over patches and then over scales. mix: uniform in [0, 1], one for each picture.
    Differentiable; real and fake are taken as constants.
    """
    mixed_BCHW = torch.lerp(real_BCHW.detach(), fake_BCHW.detach(), mix_B[:, None, None, None]).requires_grad_()
    values_B = torch.stack([logits.flatten(1).mean(1) for logits in logits_of(discriminate(mixed_BCHW))]).mean(0)
    (gradient_BCHW,) = torch.autograd.grad(values_B.sum(), mixed_BCHW, create_graph=True)
    return (gradient_BCHW.flatten(1).norm(dim=1) - 1).square().mean()


def weak_feature_matching(fake: Maps, target: Maps, *, first: int) -> torch.Tensor:
    """L_wFM: mean absolute difference of the layers `first` to the last before the logits, their sum, mean of scales.

    fake: maps of the swap; target: of the picture that gives the attributes, taken as constants. Matching all layers
    (first = 0) is pix2pixHD's loss and holds the picture itself; the last ones hold what it shows. Raises UsageError
    when no layer is left.
    """
    parts = []
    for ours, theirs in zip(fake, target, strict=True):
        layers = list(zip(ours, theirs, strict=True))[first:-1]
        if not layers:
            raise UsageError(f"Feature matching from layer {first} on leaves none of the {len(ours) - 1} layers.")
        parts.append(torch.stack([(a - b.detach()).abs().mean() for a, b in layers]).sum())
    return torch.stack(parts).mean()


def reconstruction_loss(img_BCHW: torch.Tensor, target_BCHW: torch.Tensor, same_B: torch.Tensor) -> torch.Tensor:
    """L_rec: mean absolute difference to the target, over the pairs of one person (same, bool); 0 where there is none.

    Pictures in [-1, 1]: half of it is the difference of pictures in [0, 1].
    """
    apart_B = (img_BCHW - target_BCHW).abs().flatten(1).mean(1)
    weight_B = same_B.to(apart_B)
    return (apart_B * weight_B).sum() / weight_B.sum().clamp_min(1)


def generator_loss(
    objective: SimSwapObjective,
    *,
    fake: Maps,
    target: Maps,
    embedding_BE: torch.Tensor,
    source_BE: torch.Tensor,
    img_BCHW: torch.Tensor,
    target_BCHW: torch.Tensor,
    same_B: torch.Tensor,
) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
    """L_G and its terms, unweighted: `identity`, `adversarial`, `feature`, `reconstruction`.

    fake, target: the discriminator's maps of the swap and of the target; embedding, source: of the swap and of the
    source, unit length; img, target: the pictures; same: whether source and target show one person.
    """
    terms = {
        "identity": identity_loss(embedding_BE, source_BE),
        "adversarial": generator_hinge(logits_of(fake)),
        "feature": weak_feature_matching(fake, target, first=objective.feature_from),
        "reconstruction": reconstruction_loss(img_BCHW, target_BCHW, same_B),
    }
    total = terms["adversarial"] + sum(
        getattr(objective, name) * terms[name] for name in ("identity", "feature", "reconstruction")
    )
    return total, terms


def discriminator_loss(
    objective: SimSwapObjective,
    discriminate: Callable[[torch.Tensor], Maps],
    real_BCHW: torch.Tensor,
    fake_BCHW: torch.Tensor,
    mix_B: torch.Tensor,
) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
    """Hinge and, where the objective has it, the gradient penalty; the terms, unweighted, are `hinge` and `penalty`."""
    real, fake = discriminate(real_BCHW), discriminate(fake_BCHW.detach())
    terms = {"hinge": discriminator_hinge(logits_of(real), logits_of(fake))}
    if not objective.gradient_penalty:
        return terms["hinge"], terms
    terms["penalty"] = gradient_penalty(discriminate, real_BCHW, fake_BCHW, mix_B)
    return terms["hinge"] + objective.gradient_penalty * terms["penalty"], terms
