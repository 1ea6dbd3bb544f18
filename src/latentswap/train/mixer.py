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
from latentswap.inversion.optimise import COLOUR_ROWS, jittered_embedding
from latentswap.losses import (
    away_loss,
    contour_loss,
    detail_loss,
    feature_distance,
    identity_loss,
    latent_penalty,
    openness_loss,
    pooled_pixel_loss,
    shape_loss,
)
from latentswap.seeds import generator_for
from latentswap.shape.fusion import ShapeModel, fuse
from latentswap.shape.mesh import MeshNet, crop_mesh
from latentswap.shape.repose import repose
from latentswap.swappers.mixer import LatentMixer, MixerConfig
from latentswap.train.bank import Bank

Seen = tuple[torch.Tensor, torch.Tensor]  # codes [B, L, D], embeddings [B, E]


@dataclass(frozen=True, kw_only=True)
class MixerTraining:
    """What is trained, on what, and how much each loss weighs.

    Larger `latent` keeps more of the target, larger `identity` takes more of the source. `shape` is the paper's third
    loss; `keep` weighs the contours and the openness of eyes and mouth, which are the target's, `colour` the rows that
    say colour and light, and `away` what is left of the target's identity. `detail` compares with the source's picture
    bent into the fused mesh, on a `guided` share of the pairs, and `features` with the identity network's maps of it:
    128 numbers forgive what a picture does not. `pixel` compares light and colours, averaged to 16 × 16 cells, with the
    target's picture. 0 leaves a loss out.
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
    detail: float = 4.0
    features: float = 0.5
    pixel: float = 2.0
    guided: float = 0.5
    jitter: float = 0.1  # noise on the true codes, in standard deviations of w, so that a finite bank does not repeat

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= 256:
            raise UsageError(f"The batch is {self.batch}; it must be 1 to 256.")
        for name in ("same", "inverted", "guided"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"The share of {name} pairs is {getattr(self, name)}; it runs from 0 to 1.")
        weights = (self.identity, self.latent, self.colour, self.shape, self.keep, self.away)
        if min(*weights, self.detail, self.features, self.pixel, self.jitter) < 0:
            raise UsageError("Loss coefficients and jitter are 0 or more.")


class MixerTrainee:
    """See `train.loop.Trainee`. Without an encoder every pair has the true codes, as in the paper.

    `start`: a trained mixer of the same size to go on from.
    """

    name = "mixer"

    def __init__(
        self,
        generator: Generator,
        identity: DlibResNet,
        mesh: MeshNet,
        bank: Bank,
        config: MixerTraining,
        encoder: FeatureEncoder | None = None,
        start: LatentMixer | None = None,
    ) -> None:
        self.generator, self.identity, self.mesh, self.bank = generator, identity, mesh, bank
        self.encoder = encoder
        self.config = replace(config, mixer=replace(config.mixer, num_ws=generator.num_ws, w_dim=generator.w_dim))
        self.device = generator.w_avg.device
        torch.manual_seed(config.seed)
        self.mixer = LatentMixer(self.config.mixer)
        self.mixer.start_at_target(generator.w_avg, generator.w_std)
        if start is not None:
            if start.config != self.config.mixer:
                raise UsageError(f"A mixer {start.config} cannot be continued as {self.config.mixer}.")
            self.mixer.load_state_dict(start.state_dict())
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
    def _inputs(self, index_B: torch.Tensor, random: torch.Generator) -> tuple[Seen, Seen]:
        """Codes and embeddings of these people as the mixer may meet them: true with noise, and inverted."""
        bank, std = self.bank, self.generator.w_std
        true_BLD = bank.codes_NLD[index_B].to(self.device)
        noise = torch.randn(true_BLD.shape, generator=random) * torch.rand(len(true_BLD), 1, 1, generator=random)
        true_BLD = true_BLD + self.config.jitter * std * noise.to(self.device)
        view_B = torch.randint(0, bank.features_NVF.shape[1], index_B.shape, generator=random)
        features_BF = bank.features_NVF[index_B, view_B].float()
        seen_BE = centred(features_BF[:, EMBEDDING], self.mean_E).to(self.device)
        clean_BE = self.embedding_NE[index_B].to(self.device)
        inverted_BLD = true_BLD if self.encoder is None else self.encoder(features_BF.to(self.device))
        return (true_BLD, clean_BE), (inverted_BLD, seen_BE)

    def losses(self, step: int) -> dict[str, torch.Tensor]:
        source_B, target_B, random = self._pairs(step)
        config, bank, std = self.config, self.bank, self.generator.w_std
        inverted_B = torch.rand(config.batch, generator=random) < (config.inverted if self.encoder else 0.0)
        source_BLD, source_BE = _chosen(inverted_B, *self._inputs(source_B, random))
        target_BLD, _ = _chosen(inverted_B, *self._inputs(target_B, random))
        swapped_BLD = self.mixer(source_BLD, target_BLD, source_BE)
        img_BCHW = self.generator.synthesis(swapped_BLD, resolution=256)
        embedding_BE = jittered_embedding(self.identity, img_BCHW, self.mean_E.to(self.device), random)
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
        fused_BK3 = fuse(bank.mesh_NK3[source_B], bank.mesh_NK3[target_B], self.shape_model).to(self.device)
        if config.shape or config.keep:
            target_BK3 = bank.mesh_NK3[target_B].to(self.device)
            mesh_BK3 = crop_mesh(self.mesh, img_BCHW)
            terms["shape"] = shape_loss(mesh_BK3, fused_BK3)
            terms["keep"] = contour_loss(mesh_BK3, target_BK3) + 2 * openness_loss(mesh_BK3, target_BK3)
        if config.pixel:
            thumbnails = bank.thumbnails_N3HW[target_B].to(self.device)
            terms["pixel"] = pooled_pixel_loss(img_BCHW, thumbnails / 127.5 - 1)
        if (guided := round(config.guided * config.batch)) and (config.detail or config.features):
            guide, trust = self._guide(source_B[:guided], fused_BK3[:guided])
            terms["detail"] = detail_loss(img_BCHW[:guided], guide, trust)
            maps = spatial_maps(self.identity, img_BCHW[:guided]), spatial_maps(self.identity, guide)
            terms["features"] = feature_distance(*maps, trust_chip(trust)).mean()
        total = sum(getattr(config, name) * value for name, value in terms.items())
        return {"total": torch.as_tensor(total), **terms}

    @torch.no_grad()
    def _guide(self, index_B: torch.Tensor, fused_BK3: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The true people, bent into the fused meshes: `shape.repose.repose`."""
        img_BCHW = self.generator.synthesis(self.bank.codes_NLD[index_B].to(self.device), resolution=256)
        return repose(img_BCHW, self.bank.mesh_NK3[index_B].to(self.device), fused_BK3)

    @torch.no_grad()
    def sample_sheet(self) -> np.ndarray:
        """Eight fixed pairs, a column each: source, target, swap of the true codes, swap of the encoder's."""
        random = generator_for(self.config.seed, 0, stream=7)
        source_B, target_B = torch.arange(0, 8), torch.arange(8, 16)
        sources, targets = self._inputs(source_B, random), self._inputs(target_B, random)
        rows = [self.bank.codes_NLD[source_B], self.bank.codes_NLD[target_B]]
        for (source_BLD, source_BE), (target_BLD, _) in zip(sources, targets, strict=True):
            rows.append(self.mixer(source_BLD, target_BLD, source_BE))
        return sheet([self.generator.synthesis(ws.to(self.device), resolution=256) for ws in rows])


def spatial_maps(identity: DlibResNet, img_BCHW: torch.Tensor) -> list[torch.Tensor]:
    """Spatial features of the identity network that still say where: 17², 8² and 4² over the chip."""
    return identity.stages(chip(img_BCHW))[1:4]


def trust_chip(trust_B1HW: torch.Tensor) -> torch.Tensor:
    """A mask [B, 1, S, S] in 0…1 of the crop, cut as `chip` cuts: [B, 1, 150, 150]."""
    return chip(2 * trust_B1HW.expand(-1, 3, -1, -1) - 1)[:, :1] / 255


def _chosen(second_B: torch.Tensor, first: Seen, second: Seen) -> Seen:
    """Person by person the one or the other of two views."""
    code, embedding = (
        torch.where(second_B.to(a.device).view(-1, *[1] * (a.ndim - 1)), b, a)
        for a, b in zip(first, second, strict=True)
    )
    return code, embedding


def sheet(rows: list[torch.Tensor]) -> np.ndarray:
    """Rows of pictures [B, 3, H, W] in [-1, 1] → one uint8 picture [rows · H, B · W, 3]."""
    grid = torch.cat([torch.cat(list(row), 2) for row in rows], 1)
    return ((grid.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
