"""Training of a SimSwap network on people who do not exist, with LatentSwap as its teacher.

SimSwap (Chen et al., arXiv 2106.06340) learns from photographs of many people, and of a swap it can only ask that the
identity is the source's and that the picture resembles the target's. Here the first method shows what the swap looks
like (`train.taught`): the network is compared with the teacher's picture, pixel by pixel and in the identity network's
maps, and its own identity is measured beside. Pairs with one person on both sides have the target as their answer.
"""

from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import nn

from latentswap.errors import UsageError
from latentswap.generators.base import Generator
from latentswap.identity.dlib_resnet import DlibResNet, centred
from latentswap.inversion.encoder import EMBEDDING
from latentswap.losses import away_loss, contour_loss, feature_distance, identity_loss, openness_loss
from latentswap.runtime.precision import bfloat16_is_native
from latentswap.seeds import generator_for
from latentswap.shape.fusion import ShapeModel
from latentswap.shape.mesh import MeshNet
from latentswap.swappers.compact import CompactConfig, CompactSwap, guide_for, inner, inner_chip, inner_mesh
from latentswap.train.augment import in_front, misalign
from latentswap.train.bank import Bank
from latentswap.train.mixer import sheet
from latentswap.train.taught import Lessons


@dataclass(frozen=True, kw_only=True)
class SimSwapTraining:
    """What is trained and how much each loss weighs.

    `pixel` compares with the teacher's picture, `features` with the identity network's maps of it, `identity` with the
    source's embedding; `away` weighs what is left of the target's identity, `keep` the contours and the openness of the
    target's eyes and mouth. 0 leaves a loss out. `ema`: decay of the average of the weights that is kept.
    """

    network: CompactConfig = field(default_factory=CompactConfig)
    batch: int = 8
    seed: int = 0
    same: float = 0.15  # share of pairs with one person on both sides
    augment: float = 0.5  # share of pairs that are disturbed as photographs are
    pixel: float = 6.0
    features: float = 2.0
    identity: float = 2.0
    away: float = 0.3
    keep: float = 0.2
    ema: float = 0.995
    held_out: int = 64  # the last targets, never trained on

    def __post_init__(self) -> None:
        if not 2 <= self.batch <= 256 or self.held_out < 8:
            raise UsageError(f"A batch of {self.batch} (2 to 256) and {self.held_out} targets held out (8 or more).")
        for name in ("same", "augment"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"The share of {name} pairs is {getattr(self, name)}; it runs from 0 to 1.")
        if min(self.pixel, self.features, self.identity, self.away, self.keep) < 0 or not 0 <= self.ema < 1:
            raise UsageError("Loss coefficients are 0 or more, and the decay of the average lies from 0 to below 1.")


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """Targets and what is wanted of them [B, 3, S, S], the sources' embeddings [B, E], who is who."""

    target_BCHW: torch.Tensor
    wanted_BCHW: torch.Tensor
    guide_B4HW: torch.Tensor
    source_BE: torch.Tensor  # as given to the network
    wanted_BE: torch.Tensor  # the source's, undisturbed
    other_BE: torch.Tensor  # the target's
    same_B: torch.Tensor
    mesh_BP3: torch.Tensor


class SimSwapTrainee:
    """See `train.loop.Trainee`. `start`: a trained network of the same size to go on from."""

    name = "simswap"

    def __init__(
        self,
        generator: Generator,
        identity: DlibResNet,
        mesh: MeshNet,
        bank: Bank,
        lessons: Lessons,
        config: SimSwapTraining,
        start: CompactSwap | None = None,
    ) -> None:
        if len(lessons) <= config.held_out:
            raise UsageError(f"{len(lessons)} targets are too few: {config.held_out} are held out.")
        self.generator, self.identity, self.mesh, self.bank, self.lessons = generator, identity, mesh, bank, lessons
        self.config, self.shape_model = config, ShapeModel.fit(bank.mesh_NK3)
        self.device = next(identity.parameters()).device
        torch.manual_seed(config.seed)
        student, average = (CompactSwap(config.network).to(self.device) for _ in range(2))
        for network in (student, average):
            network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        if start is not None:
            if start.config != config.network:
                raise UsageError(f"A network {start.config} cannot be continued as {config.network}.")
            student.load_state_dict(start.state_dict())
        average.load_state_dict(student.state_dict())
        self.networks = nn.ModuleDict({"student": student, "average": average.requires_grad_(False)})
        self.student, self.average = student, average
        self.mean_E = bank.embedding_NE.mean(0)
        self.embedding_NE = centred(bank.embedding_NE, self.mean_E)

    def module(self) -> nn.Module:
        return self.networks

    def describe(self) -> dict[str, object]:
        return {**asdict(self.config), "bank": len(self.bank), "targets": len(self.lessons)}

    def losses(self, step: int) -> dict[str, torch.Tensor]:
        config = self.config
        follow(self.average, self.student, min(config.ema, step / (step + 10)))
        random = generator_for(config.seed, step, stream=9)
        index_B = torch.randint(0, len(self.lessons) - config.held_out, (config.batch,), generator=random)
        pairs = self.pairs(index_B, random)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16_is_native(self.device)):
            swapped_BCHW = self.student(pairs.target_BCHW, pairs.guide_B4HW, pairs.source_BE)
        return self._terms(swapped_BCHW, pairs)

    def _terms(self, swapped_BCHW: torch.Tensor, pairs: Pairs) -> dict[str, torch.Tensor]:
        config = self.config
        terms = {"pixel": (swapped_BCHW - pairs.wanted_BCHW).abs().mean()}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16_is_native(self.device)):
            stages = self.identity.stages(inner_chip(swapped_BCHW))
            with torch.no_grad():
                wanted = self.identity.stages(inner_chip(pairs.wanted_BCHW))[:4]
            embedding_BE = self.identity.fc(stages[-1].mean((2, 3)))
        terms["features"] = feature_distance([x.float() for x in stages[:4]], [x.float() for x in wanted]).mean()
        embedding_BE = centred(embedding_BE.float(), self.mean_E.to(self.device))
        terms["identity"] = identity_loss(embedding_BE, pairs.wanted_BE)
        if config.away:
            terms["away"] = away_loss(embedding_BE, pairs.other_BE, weight_B=(~pairs.same_B).float())
        if config.keep:
            mesh_BP3 = inner_mesh(self.mesh, swapped_BCHW)
            terms["keep"] = contour_loss(mesh_BP3, pairs.mesh_BP3) + 2 * openness_loss(mesh_BP3, pairs.mesh_BP3)
        total = sum(getattr(config, name) * value for name, value in terms.items())
        return {"total": torch.as_tensor(total), **terms}

    @torch.no_grad()
    def pairs(self, index_B: torch.Tensor, random: torch.Generator) -> Pairs:
        """The lessons `index_B`, each with one of its sources or with the target's own identity."""
        lessons, bank, config = self.lessons, self.bank, self.config
        batch = len(index_B)
        column_B = torch.randint(0, lessons.swap_TK3HW.shape[1], (batch,), generator=random)
        same_B = torch.rand(batch, generator=random) < config.same
        target_BCHW, swap_BCHW = lessons.target_T3HW[index_B], lessons.swap_TK3HW[index_B, column_B]
        wanted_BCHW = torch.where(same_B[:, None, None, None], target_BCHW, swap_BCHW)
        own_B = lessons.target_person_T[index_B]
        person_B = torch.where(same_B, own_B, lessons.source_person_TK[index_B, column_B])
        # What the network is given of a person: their picture's embedding, or a disturbed picture's.
        view_B = torch.randint(0, bank.features_NVF.shape[1], (batch,), generator=random)
        seen_BE = centred(bank.features_NVF[person_B, view_B][:, EMBEDDING].float(), self.mean_E)
        clean_B1 = torch.rand(batch, 1, generator=random) < 0.6
        mesh_BP3 = lessons.mesh_TP3[index_B].to(self.device)
        target_BCHW, wanted_BCHW = (to_floats(x).to(self.device) for x in (target_BCHW, wanted_BCHW))
        guide_B4HW = self._guide(person_B, mesh_BP3)
        disturbed_B = torch.rand(batch, generator=random) < config.augment
        pictures = disturb(target_BCHW, wanted_BCHW, guide_B4HW, disturbed_B, random)
        cut = [inner(x).contiguous(memory_format=torch.channels_last) for x in pictures]
        return Pairs(
            target_BCHW=cut[0],
            wanted_BCHW=cut[1],
            guide_B4HW=cut[2],
            source_BE=torch.where(clean_B1, self.embedding_NE[person_B], seen_BE).to(self.device),
            wanted_BE=self.embedding_NE[person_B].to(self.device),
            other_BE=self.embedding_NE[own_B].to(self.device),
            same_B=same_B.to(self.device),
            mesh_BP3=mesh_BP3,
        )

    @torch.no_grad()
    def _guide(self, person_B: torch.Tensor, mesh_BP3: torch.Tensor) -> torch.Tensor:
        """The people's own pictures, bent towards the targets' meshes: [B, 4, 256, 256]."""
        source_BCHW = self.generator.synthesis(self.bank.codes_NLD[person_B].to(self.device), resolution=256)
        return guide_for(source_BCHW, self.bank.mesh_NK3[person_B].to(self.device), mesh_BP3, self.shape_model)

    @torch.no_grad()
    def held_out(self, count: int = 64) -> dict[str, float]:
        """Mean identity cosines to source and target, and the distance to the teacher, on targets not trained on."""
        first = len(self.lessons) - self.config.held_out
        found: dict[str, list[torch.Tensor]] = {"to_source": [], "to_target": [], "teacher": [], "pixel": []}
        self.average.eval()
        for start in range(first, first + min(count, self.config.held_out), 8):
            index_B = torch.arange(start, min(start + 8, len(self.lessons)))
            source_B = self.lessons.source_person_TK[index_B, 0]
            target_BCHW = inner(to_floats(self.lessons.target_T3HW[index_B]).to(self.device))
            wanted_BCHW = inner(to_floats(self.lessons.swap_TK3HW[index_B, 0]).to(self.device))
            source_BE = self.embedding_NE[source_B].to(self.device)
            other_BE = self.embedding_NE[self.lessons.target_person_T[index_B]].to(self.device)
            guide_B4HW = inner(self._guide(source_B, self.lessons.mesh_TP3[index_B].to(self.device)))
            swapped_BCHW = self.average(target_BCHW, guide_B4HW, source_BE)
            mean_E = self.mean_E.to(self.device)
            got_BE, taught_BE = (centred(self.identity(inner_chip(x)), mean_E) for x in (swapped_BCHW, wanted_BCHW))
            found["to_source"].append((got_BE * source_BE).sum(1))
            found["to_target"].append((got_BE * other_BE).sum(1))
            found["teacher"].append((taught_BE * source_BE).sum(1))
            found["pixel"].append((swapped_BCHW - wanted_BCHW).abs().mean((1, 2, 3)))
        return {name: round(float(torch.cat(values).mean()), 4) for name, values in found.items()}

    @torch.no_grad()
    def sample_sheet(self) -> np.ndarray:
        """Eight targets that are not trained on, a column each: guide, target, the teacher's swap, the network's."""
        index_B = torch.arange(len(self.lessons) - 8, len(self.lessons))
        person_B = self.lessons.source_person_TK[index_B, 0]
        target_BCHW, wanted_BCHW = (
            inner(to_floats(x[index_B]).to(self.device))
            for x in (self.lessons.target_T3HW, self.lessons.swap_TK3HW[:, 0])
        )
        guide_B4HW = inner(self._guide(person_B, self.lessons.mesh_TP3[index_B].to(self.device)))
        self.average.eval()
        swapped_BCHW = self.average(target_BCHW, guide_B4HW, self.embedding_NE[person_B].to(self.device))
        shown_BCHW = guide_B4HW[:, :3] * guide_B4HW[:, 3:]
        return sheet([shown_BCHW, target_BCHW, wanted_BCHW, swapped_BCHW])


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, decay: float) -> None:
    """An exponential average of a network's weights, one step on: a ← decay · a + (1 − decay) · network."""
    for mine, its in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if mine.is_floating_point():
            mine.lerp_(its, 1 - decay)
        else:
            mine.copy_(its)


def disturb(
    target_BCHW: torch.Tensor,
    wanted_BCHW: torch.Tensor,
    guide_B4HW: torch.Tensor,
    chosen_B: torch.Tensor,
    random: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The chosen pairs as a camera leaves them: misaligned, lit otherwise, blurred, noisy, with something in front.

    Target and what is wanted of it alike, so that what is wanted stays what the target shows around the face. The
    guide moves with them and has light and blur of its own.
    """
    out = []
    rows = zip(target_BCHW.cpu(), wanted_BCHW.cpu(), guide_B4HW.cpu(), chosen_B.tolist(), strict=True)
    for target_CHW, wanted_CHW, guide_4HW, chosen in rows:
        seed = int(torch.randint(0, 2**31 - 1, (), generator=random))
        if chosen:
            target_CHW, wanted_CHW = (_disturbed(x, generator_for(seed, 0)) for x in (target_CHW, wanted_CHW))
            guide_4HW = misalign(guide_4HW[None], generator_for(seed, 0))[0]
            lit_CHW = _photographed(guide_4HW[:3], generator_for(seed, 1))
            guide_4HW = torch.cat([lit_CHW, guide_4HW[3:]])
        out.append((target_CHW, wanted_CHW, guide_4HW))
    first, second, third = (torch.stack(column).to(target_BCHW.device) for column in zip(*out, strict=True))
    return first, second, third


def _disturbed(img_CHW: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    return _photographed(in_front(misalign(img_CHW[None], random)[0], random), random)


def _photographed(x: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    gain, lift, noise, soft = torch.rand(4, generator=random).tolist()
    if soft < 0.4:
        side = round(x.shape[-1] * (0.35 + 1.5 * soft))
        small = nn.functional.interpolate(x[None], size=side, mode="area")
        x = nn.functional.interpolate(small, size=x.shape[-1], mode="bilinear", align_corners=False)[0]
    tint_C11 = 0.94 + 0.12 * torch.rand(3, 1, 1, generator=random)
    x = x * (0.7 + 0.5 * gain) * tint_C11 + 0.3 * (lift - 0.5)
    x = x + 0.06 * noise**2 * torch.randn(x.shape, generator=random)
    return x.clamp(-1, 1)


def to_floats(bytes_BCHW: torch.Tensor) -> torch.Tensor:
    """uint8 pictures → float32 in [-1, 1]."""
    return bytes_BCHW.float().div(127.5).sub(1)
