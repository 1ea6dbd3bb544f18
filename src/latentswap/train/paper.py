"""Training of the latent mixer in the paper's own setting, with any generator (Choi et al., arXiv 2402.18351).

    z → w, truncated in the coarse rows → mixer → pictures → identity + latent penalty + shape → the mixer alone

Where it differs from the published training: networks that are frozen stay in evaluation, which they left there by
accident; and without the licensed landmark model, or without Smooth-Swap's embedder, the shape and identity networks of
this project take their place.

Every random number is drawn on the CPU and is a function of (seed, step, index in the batch): neither the device nor
the parts in which a batch is computed change what is learnt on.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import nn

from latentswap.errors import UsageError
from latentswap.generators.base import Generator, broadcast_w
from latentswap.identity.base import IdentityNetwork, at_most_256
from latentswap.identity.dlib_resnet import DlibResNet, centred, chip
from latentswap.inversion.delta import fingerprint
from latentswap.inversion.pti import AnyGenerator, full_precision
from latentswap.losses import identity_loss, latent_penalty, shape_loss
from latentswap.seeds import generator_for
from latentswap.shape.deep3d import Deep3D, LandmarkModel, landmark_loss, shape_chip
from latentswap.shape.fusion import ShapeModel, fuse
from latentswap.shape.mesh import MeshNet, crop_mesh
from latentswap.swappers.mixer import PAPER_HIDDEN, LatentMixer, MixerConfig
from latentswap.train.mixer import sheet

ShapeLoss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Pictures [B, 3, S, S] in [-1, 1] of swap, source and target → L_shape, the mean over the batch."""

_SHEET_STREAM = 1 << 20  # of the sample sheet's people, whom no step draws
_NOISE_NAMES = ("noise", "noise_const")  # buffers of generators: baked in at its own strength, or standard normal


@dataclass(frozen=True, kw_only=True)
class PaperTraining:
    """What is trained, on what, and how much each loss weighs.

    Larger `latent` keeps more of the target, larger `identity` takes more of the source. 100 is what the published
    configuration sets; the published class by itself has 10. accumulate: a batch is computed in so many parts, for
    cards that cannot hold its pictures at once; the gradient is the whole batch's, so that a run may change it later.
    """

    hidden: tuple[int, ...] = PAPER_HIDDEN
    batch: int = 32
    same: float = 0.2  # share of pairs with one person as source and target
    truncation_psi: float = 0.5
    truncation_cutoff: int = 8  # rows below are truncated
    identity: float = 1.0
    latent: float = 100.0
    shape: float = 0.1
    resolution: int | None = None  # side of the pictures; None, the paper's, for the generator's full size
    seed: int = 0
    accumulate: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        if not 1 <= self.batch <= 1024:
            raise UsageError(f"The batch is {self.batch}; it must be 1 to 1024.")
        if not 1 <= self.accumulate <= self.batch:
            raise UsageError(f"A batch of {self.batch} cannot be computed in {self.accumulate} parts.")
        for name in ("same", "truncation_psi"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it runs from 0 to 1.")
        if not 0 <= self.truncation_cutoff <= 64:
            raise UsageError(f"{self.truncation_cutoff} truncated rows are out of range (0 to 64).")
        if not min(self.identity, self.latent, self.shape) >= 0:
            raise UsageError("Loss coefficients are 0 or more.")


@dataclass(frozen=True, kw_only=True, eq=False)
class CentredDlib:
    """The shipped identity network as an `IdentityNetwork`: dlib's, less what all people share."""

    network: DlibResNet
    mean_E: torch.Tensor

    @property
    def embedding_dim(self) -> int:
        return self.network.embedding_dim

    def embed(self, img_BCHW: torch.Tensor) -> torch.Tensor:
        """See `identity.base.IdentityNetwork`."""
        return centred(self.network(chip(img_BCHW)), self.mean_E)


@dataclass(frozen=True, kw_only=True, eq=False)
class LandmarkShape:
    """The paper's L_shape: 68 landmarks of fused coefficients, on the whole crop. See `ShapeLoss`."""

    network: Deep3D
    model: LandmarkModel

    def __call__(
        self, swapped_BCHW: torch.Tensor, source_BCHW: torch.Tensor, target_BCHW: torch.Tensor
    ) -> torch.Tensor:
        views = (shape_chip(img, aligned=False) for img in (swapped_BCHW, source_BCHW, target_BCHW))
        return landmark_loss(self.model, *(self.network(view) for view in views))


@dataclass(frozen=True, kw_only=True, eq=False)
class MeshShape:
    """L_shape without a licensed model: the mesh against the fused mesh (`shape.fusion`). See `ShapeLoss`."""

    network: MeshNet
    model: ShapeModel

    def __call__(
        self, swapped_BCHW: torch.Tensor, source_BCHW: torch.Tensor, target_BCHW: torch.Tensor
    ) -> torch.Tensor:
        source_BK3, target_BK3 = (crop_mesh(self.network, img).cpu() for img in (source_BCHW, target_BCHW))
        fused_BK3 = fuse(source_BK3, target_BK3, self.model)
        return shape_loss(crop_mesh(self.network, swapped_BCHW), fused_BK3.to(swapped_BCHW))


class PaperTrainee:
    """See `train.loop.Trainee`.

    The networks given are frozen, on one device; of the generator a copy in float32 is kept.
    """

    name = "paper-mixer"

    def __init__(
        self,
        generator: AnyGenerator,
        identity: IdentityNetwork,
        shape: ShapeLoss,
        config: PaperTraining | None = None,
    ) -> None:
        self.config = config = config or PaperTraining()
        self.generator, self.identity, self.shape = full_precision(generator), identity, shape
        self.device = generator.w_avg.device
        torch.manual_seed(config.seed)
        mixer = MixerConfig(num_ws=generator.num_ws, w_dim=generator.w_dim, hidden=config.hidden)
        self.mixer = LatentMixer(mixer).to(self.device)
        self._parent = fingerprint(self.generator)

    def module(self) -> nn.Module:
        return self.mixer

    def describe(self) -> dict[str, object]:
        config = asdict(self.config)
        del config["accumulate"]
        losses = {"identity_network": type(self.identity).__name__, "shape_loss": type(self.shape).__name__}
        return {**config, "generator": self._parent, **losses}

    def pairs(self, random: Sequence[torch.Generator]) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes [B, L, D] of sources and targets, of as many pairs as there are generators of numbers."""
        config, width = self.config, self.generator.w_dim
        z_BPD = torch.stack([torch.randn(2, width, generator=one) for one in random])
        same_B = torch.stack([torch.rand((), generator=one) for one in random]) < config.same
        z_BPD[same_B, 1] = z_BPD[same_B, 0]
        source_BLD, target_BLD = (
            truncated_codes(self.generator, z_BD.to(self.device), config.truncation_psi, config.truncation_cutoff)
            for z_BD in z_BPD.unbind(1)
        )
        return source_BLD, target_BLD

    def losses(self, step: int) -> dict[str, torch.Tensor]:
        config = self.config
        random = [generator_for(config.seed, step, stream=index) for index in range(config.batch)]
        with torch.no_grad():
            source_BLD, target_BLD = self.pairs(random)
        swapped_BLD = self.mixer(source_BLD, target_BLD)
        # The pictures' losses reach the mixer through the codes alone: their gradient by the codes is summed up part by
        # part, and a term whose gradient it is stands for them.
        leaf_BLD = swapped_BLD.detach().requires_grad_()
        terms = {"identity": torch.zeros((), device=self.device), "shape": torch.zeros((), device=self.device)}
        for part in torch.arange(config.batch).tensor_split(config.accumulate):
            rows = slice(int(part[0]), int(part[-1]) + 1)
            seen = self._picture_losses(source_BLD[rows], target_BLD[rows], leaf_BLD[rows], random[rows])
            share = len(part) / config.batch
            (share * (config.identity * seen["identity"] + config.shape * seen["shape"])).backward()
            terms = {name: value + share * seen[name].detach() for name, value in terms.items()}
        assert leaf_BLD.grad is not None  # noqa: S101 - for the type checker
        through = (swapped_BLD * leaf_BLD.grad).sum()
        terms["latent"] = latent_penalty(swapped_BLD, target_BLD, torch.ones_like(self.generator.w_std))
        total = sum(getattr(config, name) * value for name, value in terms.items()) + through - through.detach()
        return {"total": total, **terms}

    def _picture_losses(
        self,
        source_BLD: torch.Tensor,
        target_BLD: torch.Tensor,
        swapped_BLD: torch.Tensor,
        random: Sequence[torch.Generator],
    ) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            source_BCHW, target_BCHW = (self._draw(ws_BLD, random) for ws_BLD in (source_BLD, target_BLD))
            source_BE = self.identity.embed(source_BCHW)
        swapped_BCHW = self._draw(swapped_BLD, random)
        return {
            "identity": identity_loss(self.identity.embed(swapped_BCHW), source_BE),
            "shape": self.shape(swapped_BCHW, source_BCHW, target_BCHW),
        }

    def _draw(self, ws_BLD: torch.Tensor, random: Sequence[torch.Generator]) -> torch.Tensor:
        with redrawn_noise(self.generator, random):
            return self.generator.synthesis(ws_BLD, resolution=self.config.resolution)

    @torch.no_grad()
    def sample_sheet(self) -> np.ndarray:
        """Eight fixed pairs, a column each: source, target, swap."""
        source_BLD, target_BLD = self.pairs(
            [generator_for(self.config.seed, index, stream=_SHEET_STREAM) for index in range(8)]
        )
        rows = (source_BLD, target_BLD, self.mixer(source_BLD, target_BLD))
        draw = self.generator.synthesis
        return sheet([torch.cat([at_most_256(draw(ws_LD[None])) for ws_LD in ws_BLD]) for ws_BLD in rows])


def truncated_codes(generator: Generator, z_BD: torch.Tensor, psi: float, cutoff: int) -> torch.Tensor:
    """Normal z → W+ [B, L, D]: one w in every row, the rows below `cutoff` pulled towards the mean by `psi`."""
    ws_BLD = broadcast_w(generator.mapping(z_BD), generator.num_ws)
    below_L1 = torch.arange(generator.num_ws, device=ws_BLD.device)[:, None] < cutoff
    return torch.where(below_L1, generator.w_avg.lerp(ws_BLD, psi), ws_BLD)


@contextmanager
def redrawn_noise(generator: nn.Module, random: Sequence[torch.Generator]) -> Iterator[None]:
    """For the pictures drawn inside: fresh noise in every layer, that of picture i from `random[i]`, on the CPU."""
    kept = [
        (layer, name, noise)
        for layer in generator.modules()
        for name, noise in layer.named_buffers(recurse=False)
        if name in _NOISE_NAMES
    ]
    try:
        for layer, name, noise in kept:
            side = noise.shape[-1]
            fresh_B1HW = torch.stack([torch.randn(1, side, side, generator=one) for one in random]).to(noise)
            setattr(layer, name, fresh_B1HW * noise.std() if name == "noise" else fresh_B1HW)
        yield
    finally:
        for layer, name, noise in kept:
            setattr(layer, name, noise)
