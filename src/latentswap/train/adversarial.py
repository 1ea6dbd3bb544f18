"""SimSwap's own training (Chen et al., arXiv 2106.06340): photographs of many people, or pictures of generated ones.

A step draws a target and a second picture of the same person. On even steps that picture gives the identity, and the
target is the answer; on odd steps somebody else's does. The generator minimises `losses_simswap.generator_loss`; the
discriminator, on a batch of its own, `discriminator_loss`. Both are updated by one optimiser in one step: the
generator's loss sees the discriminator's weights as constants, the discriminator's sees no generator at all.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import nn
from torch.func import functional_call

from latentswap.errors import UsageError
from latentswap.identity.base import IdentityNetwork
from latentswap.losses_simswap import PRESETS, SimSwapObjective, discriminator_loss, generator_loss
from latentswap.runtime.precision import bfloat16_is_native
from latentswap.seeds import generator_for
from latentswap.train.identities import Identities
from latentswap.train.mixer import sheet
from latentswap.train.simswap import follow, to_floats


@dataclass(frozen=True, kw_only=True)
class AdversarialTraining:
    """`accumulate`: a batch is computed in so many parts; batch normalisation then sees one part at a time.

    `ema`: decay of the average of the generator's weights; 0 keeps the last weights.
    """

    objective: SimSwapObjective = field(default_factory=lambda: PRESETS["paper"])
    batch: int = 8
    accumulate: int = 1
    seed: int = 0
    ema: float = 0.999

    def __post_init__(self) -> None:
        if not 2 <= self.batch <= 1024:
            raise UsageError(f"The batch is {self.batch}; it must be 2 to 1024.")
        if not 1 <= self.accumulate <= self.batch // 2:
            raise UsageError(f"A batch of {self.batch} cannot be computed in {self.accumulate} parts of two or more.")
        if not 0 <= self.ema < 1:
            raise UsageError(f"The decay of the average is {self.ema}; it lies from 0 to below 1.")


class AdversarialTrainee:
    """See `train.loop.Trainee`.

    generator: (targets [B, 3, S, S] in [-1, 1], embeddings [B, E]) → swaps. discriminator: pictures → maps of every
    scale. identity: who is in a picture; frozen. prepare: what is cut out of the identities' pictures for the
    generator; the identity network sees the same.
    """

    name = "simswap-adversarial"

    def __init__(
        self,
        generator: nn.Module,
        average: nn.Module,
        discriminator: nn.Module,
        identity: IdentityNetwork,
        identities: Identities,
        config: AdversarialTraining,
        *,
        prepare: Callable[[torch.Tensor], torch.Tensor] = lambda img_BCHW: img_BCHW,
    ) -> None:
        self.config, self.identity, self.identities, self.prepare = config, identity, identities, prepare
        self.device = next(generator.parameters()).device
        average.load_state_dict(generator.state_dict())
        self.generator, self.average, self.discriminator = generator, average.requires_grad_(False), discriminator
        self.networks = nn.ModuleDict({"generator": generator, "average": average, "discriminator": discriminator})
        counts = torch.bincount(identities.person_N, minlength=identities.people)
        self.first_P = counts.cumsum(0) - counts
        self.count_P = counts

    def module(self) -> nn.Module:
        return self.networks

    def describe(self) -> dict[str, object]:
        shown = {k: v for k, v in asdict(self.config).items() if k != "accumulate"}
        return {**shown, "pictures": len(self.identities), "people": self.identities.people}

    def draw(self, random: torch.Generator, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Numbers of `count` targets and, for each, of a picture of the same person: the same file now and then."""
        person_B = torch.randint(0, self.identities.people, (count,), generator=random)
        pick_B2 = torch.rand(count, 2, generator=random)
        index_B2 = self.first_P[person_B, None] + (pick_B2 * self.count_P[person_B, None]).long()
        return index_B2[:, 0], index_B2[:, 1]

    def pictures(self, index_B: torch.Tensor) -> torch.Tensor:
        return self.prepare(to_floats(self.identities.picture_N3HW[index_B]).to(self.device))

    def losses(self, step: int) -> dict[str, torch.Tensor]:
        follow(self.average, self.generator, min(self.config.ema, step / (step + 10)))
        config, random = self.config, generator_for(self.config.seed, step, stream=12)
        same = step % 2 == 0
        target_B, source_B = self.draw(random, config.batch)
        if not same:
            source_B = source_B[torch.randperm(config.batch, generator=random)]
        other_B, real_B = self.draw(random, config.batch)
        mix_B = torch.rand(config.batch, generator=random)
        parts = torch.arange(config.batch).tensor_split(config.accumulate)
        sums: dict[str, torch.Tensor] = {}
        total = torch.zeros((), device=self.device)
        for number, rows in enumerate(parts):
            share = len(rows) / config.batch
            seen = self._part(target_B[rows], source_B[rows], other_B[rows], real_B[rows], mix_B[rows], same)
            if number < len(parts) - 1:  # the loop differentiates the last part; gradients add up
                (share * seen["total"]).backward()
            total = total.detach() + share * seen["total"]
            sums = {name: sums.get(name, 0) + share * value.detach() for name, value in seen.items()}
        return {**sums, "total": total}

    def _part(
        self,
        target_B: torch.Tensor,
        source_B: torch.Tensor,
        other_B: torch.Tensor,
        real_B: torch.Tensor,
        mix_B: torch.Tensor,
        same: bool,
    ) -> dict[str, torch.Tensor]:
        objective = self.config.objective
        constants = {name: value.detach() for name, value in self.discriminator.named_parameters()}

        def judge(img_BCHW: torch.Tensor):
            return functional_call(self.discriminator, constants, (img_BCHW,))

        target_BCHW = self.pictures(target_B)
        with torch.no_grad():
            source_BE = self.identity.embed(self.pictures(source_B))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16_is_native(self.device)):
            fake_BCHW = self.generator(target_BCHW, source_BE).float()
            embedding_BE = self.identity.embed(fake_BCHW).float()
            fake_maps, target_maps = judge(fake_BCHW), judge(target_BCHW)
        generator_total, terms = generator_loss(
            objective,
            fake=_float(fake_maps),
            target=_float(target_maps),
            embedding_BE=embedding_BE,
            source_BE=source_BE,
            img_BCHW=fake_BCHW,
            target_BCHW=target_BCHW,
            same_B=torch.full((len(target_B),), same, device=self.device),
        )
        other_BCHW, real_BCHW = self.pictures(other_B), self.pictures(real_B)
        with torch.no_grad():
            fake_BCHW = self.generator(other_BCHW, self.identity.embed(real_BCHW))
        discriminator_total, judged = discriminator_loss(
            objective, self.discriminator, real_BCHW, fake_BCHW, mix_B.to(self.device)
        )
        return {"total": generator_total + discriminator_total, **terms, **judged}

    @torch.no_grad()
    def sample_sheet(self) -> np.ndarray:
        """Eight fixed pairs, a column each: source, target, the average's swap."""
        target_B, _ = self.draw(generator_for(self.config.seed, 0, stream=13), 8)
        source_B = target_B.roll(1)
        source_BCHW, target_BCHW = self.pictures(source_B), self.pictures(target_B)
        self.average.eval()
        return sheet([source_BCHW, target_BCHW, self.average(target_BCHW, self.identity.embed(source_BCHW))])


def _float(maps: list[list[torch.Tensor]]) -> list[list[torch.Tensor]]:
    return [[layer.float() for layer in layers] for layers in maps]
