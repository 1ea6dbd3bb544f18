"""Training of the latent mixer: random codes, a frozen generator, three losses, no data set (arXiv 2402.18351).

A step draws pairs from a bank of people who do not exist, mixes their codes, renders the result at 256² and compares:
its identity with the source's, its code with the target's, its mesh with the fused one. Only the mixer learns.
"""

from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch

from latentswap.errors import UsageError
from latentswap.generators.base import Generator
from latentswap.identity.dlib_resnet import DlibResNet, centred, chip
from latentswap.losses import contour_loss, identity_loss, latent_penalty, openness_loss, shape_loss
from latentswap.seeds import generator_for
from latentswap.shape.fusion import ShapeModel, fuse
from latentswap.shape.mesh import MeshNet, crop_mesh
from latentswap.swappers.latentswap import LatentMixer, MixerConfig
from latentswap.train.bank import Bank


@dataclass(frozen=True, kw_only=True)
class MixerTraining:
    """What is trained, on what, and how much each loss weighs.

    Larger `latent` keeps more of the target, larger `identity` takes more of the source. `shape` is the paper's third
    loss; `keep` weighs the contours and the openness of eyes and mouth, which are the target's. 0 leaves a loss out.
    """

    mixer: MixerConfig = field(default_factory=MixerConfig)
    batch: int = 8
    seed: int = 0
    same: float = 0.1  # share of pairs with one person as source and target
    identity: float = 1.0
    latent: float = 0.3
    shape: float = 0.5
    keep: float = 0.5
    jitter: float = 0.1  # noise on the codes, in standard deviations of w, so that a finite bank does not repeat

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= 256:
            raise UsageError(f"The batch is {self.batch}; it must be 1 to 256.")
        if not 0 <= self.same <= 1:
            raise UsageError(f"The share of same pairs is {self.same}; it runs from 0 to 1.")
        if min(self.identity, self.latent, self.shape, self.keep, self.jitter) < 0:
            raise UsageError("Loss coefficients and jitter are 0 or more.")


class MixerTrainee:
    """See `train.loop.Trainee`. `generator` may be in bfloat16: everything after it is float32."""

    name = "mixer"

    def __init__(
        self, generator: Generator, identity: DlibResNet, mesh: MeshNet, bank: Bank, config: MixerTraining
    ) -> None:
        self.generator, self.identity, self.mesh, self.bank = generator, identity, mesh, bank
        self.config = replace(config, mixer=replace(config.mixer, num_ws=generator.num_ws, w_dim=generator.w_dim))
        self.device = generator.w_avg.device
        self.dtype = generator.w_avg.dtype
        torch.manual_seed(config.seed)
        self.mixer = LatentMixer(self.config.mixer)
        self.mixer.start_at_target(generator.w_avg, generator.w_std)
        self.mixer.to(self.device)
        self.shape_model = ShapeModel.fit(bank.mesh_NK3)
        self.embedding_mean = bank.embedding_NE.mean(0).to(self.device)
        self.embedding_NE = centred(bank.embedding_NE, bank.embedding_NE.mean(0))

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

    def losses(self, step: int) -> dict[str, torch.Tensor]:
        source_B, target_B, random = self._pairs(step)
        config, std = self.config, self.mixer.scale
        codes = []
        for index_B in (source_B, target_B):
            ws_BLD = self.bank.codes_NLD[index_B]
            noise = torch.randn(ws_BLD.shape, generator=random) * torch.rand(len(ws_BLD), 1, 1, generator=random)
            codes.append(ws_BLD.to(self.device) + config.jitter * std * noise.to(self.device))
        swapped_BLD = self.mixer(codes[0], codes[1])
        img_BCHW = self.generator.synthesis(swapped_BLD.to(self.dtype), resolution=256).float()
        shift_B4 = torch.randn(config.batch, 4, generator=random) * torch.tensor([0.008, 0.008, 0.03, 0.03])
        embedding_BE = centred(self.identity(chip(img_BCHW, shift_B4.to(self.device))), self.embedding_mean)

        terms = {
            "identity": identity_loss(embedding_BE, self.embedding_NE[source_B].to(self.device)),
            "latent": latent_penalty(swapped_BLD, codes[1], std),
        }
        if config.shape or config.keep:
            target_BK3 = self.bank.mesh_NK3[target_B]
            fused_BK3 = fuse(self.bank.mesh_NK3[source_B], target_BK3, self.shape_model).to(self.device)
            target_BK3 = target_BK3.to(self.device)
            mesh_BK3 = crop_mesh(self.mesh, img_BCHW)
            terms["shape"] = shape_loss(mesh_BK3, fused_BK3)
            terms["keep"] = contour_loss(mesh_BK3, target_BK3) + 2 * openness_loss(mesh_BK3, target_BK3)
        total = sum(getattr(config, name) * value for name, value in terms.items())
        return {"total": torch.as_tensor(total), **terms}

    @torch.no_grad()
    def sample_sheet(self) -> np.ndarray:
        """Eight fixed pairs, a column each: source, target, swap."""
        source_B, target_B = torch.arange(0, 8), torch.arange(8, 16)
        source_BLD, target_BLD = (self.bank.codes_NLD[i].to(self.device) for i in (source_B, target_B))
        rows = [source_BLD, target_BLD, self.mixer(source_BLD, target_BLD)]
        return sheet([self.generator.synthesis(ws.to(self.dtype), resolution=256).float() for ws in rows])


def sheet(rows: list[torch.Tensor]) -> np.ndarray:
    """Rows of pictures [B, 3, H, W] in [-1, 1] → one uint8 picture [rows · H, B · W, 3]."""
    grid = torch.cat([torch.cat(list(row), 2) for row in rows], 1)
    return ((grid.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
