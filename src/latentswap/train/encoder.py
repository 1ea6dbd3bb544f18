"""Training of the feature encoder on augmented pictures of generated people.

The loss is the squared error of the code in standard deviations of w. With `image` > 0, from step `image_from` on, a
few pictures of every batch also go through the generator, and identity, mesh and light of the result are compared with
the original's: of the many codes that are equally near, those that look right are preferred.
"""

from dataclasses import asdict, dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

from latentswap.errors import UsageError
from latentswap.generators.base import Generator
from latentswap.identity.dlib_resnet import DlibResNet, centred, chip
from latentswap.inversion.encoder import EncoderConfig, FeatureEncoder
from latentswap.losses import contour_loss, identity_loss, openness_loss, shape_loss
from latentswap.seeds import generator_for
from latentswap.shape.mesh import MeshNet, crop_mesh
from latentswap.train.bank import THUMBNAIL, Bank


@dataclass(frozen=True, kw_only=True)
class EncoderTraining:
    """`batch` codes a step; `image` of them are rendered, from step `image_from` on."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    batch: int = 256
    image: int = 0
    image_from: int = 0
    seed: int = 0
    identity: float = 0.5
    shape: float = 0.1
    keep: float = 0.1
    picture: float = 1.0
    held_out: int = 256  # the last of the bank, never trained on

    def __post_init__(self) -> None:
        if self.batch < 1 or not 0 <= self.image <= self.batch or self.held_out < 1:
            raise UsageError(f"batch {self.batch}, image {self.image}: give batch ≥ 1 and 0 ≤ image ≤ batch.")


class EncoderTrainee:
    """See `train.loop.Trainee`."""

    name = "encoder"

    def __init__(
        self, generator: Generator, identity: DlibResNet, mesh: MeshNet, bank: Bank, config: EncoderTraining
    ) -> None:
        if len(bank) <= config.held_out:
            raise UsageError(f"A bank of {len(bank)} people is too small: {config.held_out} are held out.")
        self.generator, self.identity, self.mesh, self.bank, self.config = generator, identity, mesh, bank, config
        torch.manual_seed(config.seed)
        self.encoder = FeatureEncoder(config.encoder)
        mean_F, std_F = _statistics(bank.features_NVF[: -config.held_out])
        self.encoder.feature_mean.copy_(mean_F)
        self.encoder.feature_std.copy_(std_F)
        self.encoder.w_avg.copy_(generator.w_avg)
        self.encoder.w_std.copy_(generator.w_std)
        self.encoder.train().requires_grad_(True)
        self.embedding_mean = bank.embedding_NE.mean(0)

    def module(self) -> torch.nn.Module:
        return self.encoder

    def describe(self) -> dict[str, object]:
        return {**asdict(self.config), "bank": len(self.bank)}

    def losses(self, step: int) -> dict[str, torch.Tensor]:
        random, config, bank = generator_for(self.config.seed, step, stream=4), self.config, self.bank
        torch.manual_seed(config.seed * 1_000_003 + step)  # dropout
        index_B = torch.randint(0, len(bank) - config.held_out, (config.batch,), generator=random)
        view_B = torch.randint(0, bank.features_NVF.shape[1], (config.batch,), generator=random)
        ws_BLD = self.encoder(bank.features_NVF[index_B, view_B].float())
        error_BLD = (ws_BLD - bank.codes_NLD[index_B]) / self.encoder.w_std
        terms = {"code": error_BLD.square().mean()}
        total = terms["code"]
        if config.image and step >= config.image_from:
            shown_B = index_B[: config.image]
            img_BCHW = self.generator.synthesis(ws_BLD[: config.image], resolution=256)
            terms |= self._picture_losses(img_BCHW, shown_B)
            total = total + sum(getattr(config, name) * value for name, value in terms.items() if name != "code")
        return {"total": total, **terms}

    def _picture_losses(self, img_BCHW: torch.Tensor, index_B: torch.Tensor) -> dict[str, torch.Tensor]:
        bank = self.bank
        embedding_BE = centred(self.identity(chip(img_BCHW)), self.embedding_mean)
        mesh_BK3, wanted_BK3 = crop_mesh(self.mesh, img_BCHW), bank.mesh_NK3[index_B]
        small = F.adaptive_avg_pool2d(img_BCHW, THUMBNAIL)
        wanted = bank.thumbnails_N3HW[index_B].float() / 127.5 - 1
        return {
            "identity": identity_loss(embedding_BE, centred(bank.embedding_NE[index_B], self.embedding_mean)),
            "shape": shape_loss(mesh_BK3, wanted_BK3),
            "keep": contour_loss(mesh_BK3, wanted_BK3) + 2 * openness_loss(mesh_BK3, wanted_BK3),
            "picture": (small - wanted).abs().mean(),
        }

    @torch.no_grad()
    def explained(self) -> float:
        """R² of the mean row on the held-out part of the bank: the share of the codes' variance that is predicted."""
        self.encoder.eval()
        held = slice(len(self.bank) - self.config.held_out, None)
        wanted = (self.bank.codes_NLD[held].mean(1) - self.encoder.w_avg) / self.encoder.w_std
        codes = self.encoder(self.bank.features_NVF[held, 0].float())
        got = (codes.mean(1) - self.encoder.w_avg) / self.encoder.w_std
        self.encoder.train()
        return float(1 - (wanted - got).square().sum() / (wanted - wanted.mean(0)).square().sum())

    def sample_sheet(self) -> np.ndarray | None:
        return None


def _statistics(features_NVF: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of every feature, in float64 over slices: the bank is float16 and large."""
    total, squares, count = 0.0, 0.0, 0
    for part in features_NVF.flatten(0, 1).split(1024):
        x = part.double()
        total, squares, count = total + x.sum(0), squares + x.square().sum(0), count + len(x)
    mean = torch.as_tensor(total / count)
    return mean.float(), (squares / count - mean.square()).clamp_min(0).sqrt().clamp_min(1e-4).float()
