"""Training of the feature encoder on generated people: first the codes, then what the codes look like.

Step by step the loss is the squared error of the code in standard deviations of w. With `image` > 0 a few pictures of
every batch also go through the generator, and identity, mesh and light of the result are compared with the original's:
of the many codes that are equally near, those that look right are preferred.
"""

from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F

from latentswap.errors import UsageError
from latentswap.generators.base import Generator
from latentswap.identity.dlib_resnet import DlibResNet, centred, chip
from latentswap.inversion.encoder import EncoderConfig, FeatureEncoder
from latentswap.losses import identity_loss, shape_loss
from latentswap.seeds import generator_for
from latentswap.shape.mesh import MeshNet, crop_mesh
from latentswap.train.bank import Bank


@dataclass(frozen=True, kw_only=True)
class EncoderTraining:
    """`batch` codes a step; `image` of them are rendered."""

    batch: int = 256
    image: int = 0
    seed: int = 0
    identity: float = 0.5
    shape: float = 0.1
    picture: float = 1.0
    held_out: int = 256  # the last of the bank, never trained on

    def __post_init__(self) -> None:
        if self.batch < 1 or not 0 <= self.image <= self.batch or self.held_out < 1:
            raise UsageError(f"batch {self.batch}, image {self.image}: give batch ≥ 1 and 0 ≤ image ≤ batch.")


class EncoderTrainee:
    """See `train.loop.Trainee`. features [N, F]: of augmented pictures; thumbnails [N, 3, 32, 32] of clean ones."""

    name = "encoder"

    def __init__(
        self,
        generator: Generator,
        identity: DlibResNet,
        mesh: MeshNet,
        bank: Bank,
        features_NF: torch.Tensor,
        thumbnails_N3HW: torch.Tensor,
        config: EncoderTraining,
        start: FeatureEncoder | None = None,
    ) -> None:
        self.generator, self.identity, self.mesh, self.bank, self.config = generator, identity, mesh, bank, config
        self.features_NF, self.thumbnails_N3HW = features_NF, thumbnails_N3HW
        self.dtype = generator.w_avg.dtype
        torch.manual_seed(config.seed)
        self.encoder = start or FeatureEncoder(EncoderConfig(num_ws=generator.num_ws, w_dim=generator.w_dim))
        if start is None:
            trained = features_NF[: -config.held_out].float()
            self.encoder.feature_mean.copy_(trained.mean(0))
            self.encoder.feature_std.copy_(trained.std(0).clamp_min(1e-4))
            self.encoder.w_avg.copy_(generator.w_avg)
            self.encoder.w_std.copy_(generator.w_std)
        self.encoder.train().requires_grad_(True)
        self.embedding_mean = bank.embedding_NE.mean(0)

    def module(self) -> torch.nn.Module:
        return self.encoder

    def describe(self) -> dict[str, object]:
        return {**asdict(self.config), "bank": len(self.bank)}

    def losses(self, step: int) -> dict[str, torch.Tensor]:
        random, config = generator_for(self.config.seed, step, stream=4), self.config
        torch.manual_seed(config.seed * 1_000_003 + step)  # dropout
        index_B = torch.randint(0, len(self.bank) - config.held_out, (config.batch,), generator=random)
        ws_BLD = self.encoder(self.features_NF[index_B].float())
        error_BLD = (ws_BLD - self.bank.codes_NLD[index_B]) / self.encoder.w_std
        terms = {"code": error_BLD.square().mean()}
        total = terms["code"]
        if config.image:
            shown_B = index_B[: config.image]
            img_BCHW = self.generator.synthesis(ws_BLD[: config.image].to(self.dtype), resolution=256).float()
            embedding_BE = centred(self.identity(chip(img_BCHW)), self.embedding_mean)
            wanted_BE = centred(self.bank.embedding_NE[shown_B], self.embedding_mean)
            small = F.adaptive_avg_pool2d(img_BCHW, self.thumbnails_N3HW.shape[-1])
            terms["identity"] = identity_loss(embedding_BE, wanted_BE)
            terms["shape"] = shape_loss(crop_mesh(self.mesh, img_BCHW), self.bank.mesh_NK3[shown_B])
            terms["picture"] = (small - self.thumbnails_N3HW[shown_B].float()).abs().mean()
            total = total + sum(getattr(config, name) * terms[name] for name in ("identity", "shape", "picture"))
        return {"total": total, **terms}

    @torch.no_grad()
    def explained(self) -> float:
        """R² of the mean row on the held-out part of the bank: the share of the codes' variance that is predicted."""
        self.encoder.eval()
        held = slice(len(self.bank) - self.config.held_out, None)
        wanted = (self.bank.codes_NLD[held].mean(1) - self.encoder.w_avg) / self.encoder.w_std
        got = (self.encoder(self.features_NF[held].float()).mean(1) - self.encoder.w_avg) / self.encoder.w_std
        self.encoder.train()
        return float(1 - (wanted - got).square().sum() / (wanted - wanted.mean(0)).square().sum())

    def sample_sheet(self) -> np.ndarray | None:
        return None
