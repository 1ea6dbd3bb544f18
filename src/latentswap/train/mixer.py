"""Training of the latent mixer: random codes, a frozen generator, three losses, no data set (arXiv 2402.18351).

A step draws pairs from a bank of people who do not exist, mixes their codes, renders the result at 256² and compares:
its identity with the source's, its code with the target's, its mesh with the fused one. Only the mixer learns.

What it learns on is what inversion gives. A share of the pairs has the encoder's codes of augmented pictures on both
sides, the rest the true codes with some noise; the losses always compare with the true person, so that the mixer also
undoes what the encoder gets wrong.
"""

from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch

from latentswap.errors import UsageError
from latentswap.generators.base import Generator
from latentswap.identity.dlib_resnet import DlibResNet, centred, chip
from latentswap.inversion.encoder import EMBEDDING, FeatureEncoder
from latentswap.inversion.optimise import COLOUR_ROWS
from latentswap.losses import away_loss, contour_loss, identity_loss, latent_penalty, openness_loss, shape_loss
from latentswap.seeds import generator_for
from latentswap.shape.fusion import ShapeModel, fuse
from latentswap.shape.mesh import MeshNet, crop_mesh
from latentswap.swappers.mixer import LatentMixer, MixerConfig
from latentswap.train.bank import Bank

_CHIP_JITTER = (0.008, 0.008, 0.03, 0.03)  # shift, shift, log scale, angle: the identity must not hang on one chip


@dataclass(frozen=True, kw_only=True)
class MixerTraining:
    """What is trained, on what, and how much each loss weighs.

    Larger `latent` keeps more of the target, larger `identity` takes more of the source. `shape` is the paper's third
    loss; `keep` weighs the contours and the openness of eyes and mouth, which are the target's, `colour` the rows that
    say colour and light, and `away` what is left of the target's identity. 0 leaves a loss out.
    """

    mixer: MixerConfig = field(default_factory=MixerConfig)
    batch: int = 8
    seed: int = 0
    same: float = 0.15  # share of pairs with one person as source and target
    inverted: float = 0.75  # share of pairs whose codes are the encoder's, not the true ones
    identity: float = 1.5
    latent: float = 0.15
    colour: float = 0.5
    shape: float = 0.5
    keep: float = 0.5
    away: float = 0.3
    jitter: float = 0.1  # noise on the true codes, in standard deviations of w, so that a finite bank does not repeat

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= 256:
            raise UsageError(f"The batch is {self.batch}; it must be 1 to 256.")
        for name in ("same", "inverted"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"The share of {name} pairs is {getattr(self, name)}; it runs from 0 to 1.")
        if min(self.identity, self.latent, self.colour, self.shape, self.keep, self.away, self.jitter) < 0:
            raise UsageError("Loss coefficients and jitter are 0 or more.")


class MixerTrainee:
    """See `train.loop.Trainee`. Without an encoder every pair has the true codes, as in the paper."""

    name = "mixer"

    def __init__(
        self,
        generator: Generator,
        identity: DlibResNet,
        mesh: MeshNet,
        bank: Bank,
        config: MixerTraining,
        encoder: FeatureEncoder | None = None,
    ) -> None:
        self.generator, self.identity, self.mesh, self.bank = generator, identity, mesh, bank
        self.encoder = encoder
        self.config = replace(config, mixer=replace(config.mixer, num_ws=generator.num_ws, w_dim=generator.w_dim))
        self.device = generator.w_avg.device
        torch.manual_seed(config.seed)
        self.mixer = LatentMixer(self.config.mixer)
        self.mixer.start_at_target(generator.w_avg, generator.w_std)
        self.mixer.to(self.device)
        self.shape_model = ShapeModel.fit(bank.mesh_NK3)
        self.mean_E = bank.embedding_NE.mean(0)
        self.embedding_NE = centred(bank.embedding_NE, self.mean_E)

    def module(self) -> torch.nn.Module:
        return self.mixer

    def describe(self) -> dict[str, object]:
        return {**asdict(self.config), "bank": len(self.bank)}

    def _pairs(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Generator]:
        random, config = generator_for(self.config.seed, step), self.config
        source_B = torch.randint(0, len(self.bank), (config.batch,), generator=random)
        target_B = torch.randint(0, len(self.bank), (config.batch,), generator=random)
        same_B = torch.rand(config.batch, generator=random) < config.same
        return source_B, torch.where(same_B, source_B, target_B), random

    @torch.no_grad()
    def _inputs(self, index_B: torch.Tensor, random: torch.Generator) -> tuple[torch.Tensor, ...]:
        """The codes and the embeddings of these people as the mixer may meet them: true with noise, and inverted."""
        bank, std = self.bank, self.generator.w_std
        true_BLD = bank.codes_NLD[index_B].to(self.device)
        noise = torch.randn(true_BLD.shape, generator=random) * torch.rand(len(true_BLD), 1, 1, generator=random)
        true_BLD = true_BLD + self.config.jitter * std * noise.to(self.device)
        view_B = torch.randint(0, bank.features_NVF.shape[1], index_B.shape, generator=random)
        features_BF = bank.features_NVF[index_B, view_B].float()
        seen_BE = centred(features_BF[:, EMBEDDING], self.mean_E).to(self.device)
        clean_BE = self.embedding_NE[index_B].to(self.device)
        inverted_BLD = true_BLD if self.encoder is None else self.encoder(features_BF.to(self.device))
        return true_BLD, clean_BE, inverted_BLD, seen_BE

    def losses(self, step: int) -> dict[str, torch.Tensor]:
        source_B, target_B, random = self._pairs(step)
        config, bank, std = self.config, self.bank, self.generator.w_std
        inverted_B = torch.rand(config.batch, generator=random) < (config.inverted if self.encoder else 0.0)
        true_BLD, clean_BE, inverted_BLD, seen_BE = self._inputs(source_B, random)
        source_BLD = torch.where(inverted_B[:, None, None].to(self.device), inverted_BLD, true_BLD)
        source_BE = torch.where(inverted_B[:, None].to(self.device), seen_BE, clean_BE)
        true_BLD, _, inverted_BLD, _ = self._inputs(target_B, random)
        target_BLD = torch.where(inverted_B[:, None, None].to(self.device), inverted_BLD, true_BLD)

        swapped_BLD = self.mixer(source_BLD, target_BLD, source_BE)
        img_BCHW = self.generator.synthesis(swapped_BLD, resolution=256)
        embedding_BE = self._embedding(img_BCHW, random)
        wanted_BLD = bank.codes_NLD[target_B].to(self.device)
        terms = {
            "identity": identity_loss(embedding_BE, self.embedding_NE[source_B].to(self.device)),
            "latent": latent_penalty(swapped_BLD, wanted_BLD, std),
        }
        if config.colour:
            terms["colour"] = latent_penalty(swapped_BLD[:, COLOUR_ROWS:], wanted_BLD[:, COLOUR_ROWS:], std)
        if config.away:
            others_B = (source_B != target_B).to(self.device)
            other_BE = self.embedding_NE[target_B].to(self.device)
            terms["away"] = away_loss(embedding_BE, other_BE, weight_B=others_B)
        if config.shape or config.keep:
            target_BK3 = bank.mesh_NK3[target_B]
            fused_BK3 = fuse(bank.mesh_NK3[source_B], target_BK3, self.shape_model).to(self.device)
            target_BK3 = target_BK3.to(self.device)
            mesh_BK3 = crop_mesh(self.mesh, img_BCHW)
            terms["shape"] = shape_loss(mesh_BK3, fused_BK3)
            terms["keep"] = contour_loss(mesh_BK3, target_BK3) + 2 * openness_loss(mesh_BK3, target_BK3)
        total = sum(getattr(config, name) * value for name, value in terms.items())
        return {"total": torch.as_tensor(total), **terms}

    def _embedding(self, img_BCHW: torch.Tensor, random: torch.Generator) -> torch.Tensor:
        """Identity of the swaps, seen through a chip that is a little off and now and then mirrored."""
        if torch.rand((), generator=random) < 0.5:
            img_BCHW = img_BCHW.flip(3)
        shift_B4 = torch.randn(len(img_BCHW), 4, generator=random) * torch.tensor(_CHIP_JITTER)
        return centred(self.identity(chip(img_BCHW, shift_B4.to(self.device))), self.mean_E.to(self.device))

    @torch.no_grad()
    def sample_sheet(self) -> np.ndarray:
        """Eight fixed pairs, a column each: source, target, swap of the true codes, swap of the encoder's."""
        random = generator_for(self.config.seed, 0, stream=7)
        source_B, target_B = torch.arange(0, 8), torch.arange(8, 16)
        source = self._inputs(source_B, random)
        target = self._inputs(target_B, random)
        rows = [self.bank.codes_NLD[source_B], self.bank.codes_NLD[target_B]]
        rows += [self.mixer(source[i], target[i], source[i + 1]) for i in (0, 2)]
        return sheet([self.generator.synthesis(ws.to(self.device), resolution=256) for ws in rows])


def sheet(rows: list[torch.Tensor]) -> np.ndarray:
    """Rows of pictures [B, 3, H, W] in [-1, 1] → one uint8 picture [rows · H, B · W, 3]."""
    grid = torch.cat([torch.cat(list(row), 2) for row in rows], 1)
    return ((grid.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
