"""LatentSwap (Choi et al., arXiv 2402.18351) on crops: invert both, mix the codes, let the generator draw the result.

The mixer is in `swappers.mixer`, inversion and refinement in `inversion`. Ours, beyond the paper: codes of a one-pass
encoder, the source's identity embedding beside its code, and a refinement of the mixed code on its own pair.
"""

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F

from latentswap.errors import UsageError
from latentswap.generators.mobile import MobileStyleGAN
from latentswap.inversion.delta import GeneratorDelta
from latentswap.inversion.encoder import trunk_features
from latentswap.inversion.optimise import EXACT_ROWS, InvertConfig, RefineConfig, Wanted, embed, invert, refine
from latentswap.inversion.tune import TuneConfig, tune
from latentswap.runtime.precision import bfloat16_is_native
from latentswap.shape.fusion import fuse
from latentswap.shape.measures import head_pose
from latentswap.shape.mesh import crop_mesh
from latentswap.shape.repose import repose
from latentswap.swappers.base import OnStep, Prepared, no_progress
from latentswap.swappers.mixer import blend_rows
from latentswap.types import Crop

if TYPE_CHECKING:
    from latentswap.networks import Networks

Inversion = Literal["fast", "refine", "tune"]
INVERSIONS: tuple[str, ...] = get_args(Inversion)
Render = Callable[[torch.Tensor], np.ndarray]
"""W+ [B, L, D] → uint8 [B, H, W, 3]: the generator at full size, by whatever runtime."""

EMPHASIS = 1.5  # of the source's identity where the mixer reads it: photographs' lie farther out than generated ones'
_ONE_PERSON = 0.3  # least cosine of each of several sources to the mean of the others


class LatentSwap:
    """The method on crops: invert → mix → (refine) → synthesise. See `swappers.base.FaceSwapper`.

    inversion: `fast` takes the encoder's code of the target and the mixer's answer as they are. `refine` optimises the
    target's code on its photograph, and the mixer's answer on the pair; identity then comes from the source photograph
    itself, so that a poor inversion of the source costs little. `tune` moves the generator, too, until it draws the
    target's photograph (pivotal tuning), before it refines: slow, and the closest to the photograph around the face.
    """

    def __init__(
        self,
        networks: "Networks",
        render: Render,
        *,
        inversion: Inversion = "refine",
        invert_config: InvertConfig | None = None,
        pair_config: InvertConfig | None = None,
        refine_config: RefineConfig | None = None,
        tune_config: TuneConfig | None = None,
    ) -> None:
        if inversion not in INVERSIONS:
            raise UsageError(f"inversion is {inversion!r}; it must be one of {', '.join(INVERSIONS)}.")
        self.networks, self.render, self.inversion = networks, render, inversion
        self.invert_config = invert_config or InvertConfig()
        self.pair_config = pair_config or InvertConfig(steps=16)  # before a refinement, which moves on from there
        self.refine_config = refine_config or RefineConfig()
        self.tune_config = tune_config or TuneConfig()
        self._descent = networks.generator if inversion == "fast" else quick(networks.generator)

    def encode(self, img_BCHW: torch.Tensor) -> torch.Tensor:
        """Crops [B, 3, 256, 256] in [-1, 1] → W+ [B, L, D] in one pass."""
        nets = self.networks
        with torch.no_grad():
            return nets.encoder(trunk_features(nets.identity, nets.mesh, img_BCHW))

    def _restored(self, ws_BLD: torch.Tensor, embedding_BE: torch.Tensor) -> torch.Tensor:
        """A person swapped with themselves: the identity that the encoder lost, put back by the mixer."""
        with torch.no_grad():
            return self.networks.mixer(ws_BLD, ws_BLD, EMPHASIS * embedding_BE)

    def invert(self, crop: Crop, *, config: InvertConfig | None = None, on_step: OnStep = no_progress) -> torch.Tensor:
        """The crop's W+ code [1, L, D]: the encoder's, its identity restored with `fast`, else optimised."""
        nets = self.networks
        img_BCHW = to_tensor(crop.pixels, nets.mean_E.device)
        ws_BLD = self.encode(img_BCHW)
        if self.inversion == "fast":
            return self._restored(ws_BLD, embed(nets.identity, img_BCHW, nets.mean_E))
        config = config or self.invert_config
        return invert(self._descent, nets.identity, nets.mesh, img_BCHW, ws_BLD, nets.mean_E, config, on_step)

    def tune(self, crop: Crop, ws_BLD: torch.Tensor, *, on_step: OnStep = no_progress) -> GeneratorDelta:
        """The change of the generator that makes it draw the crop at this code (`inversion.tune`)."""
        nets = self.networks
        picture = to_tensor(crop.pixels, nets.mean_E.device, size=nets.generator.resolution)
        return tune(nets.generator, nets.identity, nets.mean_E, ws_BLD, picture, self.tune_config, on_step)

    def reconstruction(self, crop: Crop) -> np.ndarray:
        """The crop as the generator knows it, uint8 [256, 256, 3]: what lies in front of the face is not in it."""
        img_BCHW = to_tensor(crop.pixels, self.networks.mean_E.device)
        return to_pixels(_synthesis(self.networks.generator, self.encode(img_BCHW), resolution=256))[0]

    def prepare(self, crop: Crop, *, name: str = "source", on_step: OnStep = no_progress) -> Prepared:
        """Code (the encoder's, its identity restored), identity embedding, mesh and picture of a source crop."""
        nets = self.networks
        img_BCHW = to_tensor(crop.pixels, nets.mean_E.device)
        with torch.no_grad():
            mesh_BK3 = crop_mesh(nets.mesh, img_BCHW)
        embedding_BE = embed(nets.identity, img_BCHW, nets.mean_E)
        code_BLD = self._restored(self.encode(img_BCHW), embedding_BE)
        return Prepared(w_plus=code_BLD, embedding=embedding_BE, mesh=mesh_BK3, picture=img_BCHW, name=name)

    def prepare_code(self, ws_BLD: torch.Tensor, *, name: str = "source") -> Prepared:
        """The same for a person who does not exist, from the code [1, L, D]."""
        nets = self.networks
        with torch.no_grad():
            img_BCHW = nets.generator.synthesis(ws_BLD, resolution=256)
            mesh_BK3 = crop_mesh(nets.mesh, img_BCHW)
        embedding_BE = embed(nets.identity, img_BCHW, nets.mean_E)
        return Prepared(w_plus=ws_BLD, embedding=embedding_BE, mesh=mesh_BK3, name=name, synthetic=True)

    def swap(
        self,
        prepared: Prepared,
        crop: Crop,
        *,
        strength: float = 1.0,
        layers: tuple[int, ...] | None = None,
        on_step: OnStep = no_progress,
    ) -> np.ndarray:
        """See `FaceSwapper.swap`. `on_step` counts the steps of inversion, tuning and refinement together."""
        stages = [] if self.inversion == "fast" else [self.pair_config.steps, self.refine_config.steps]
        if self.inversion == "tune":
            stages = [self.invert_config.steps, self.tune_config.steps, self.refine_config.steps]
        before = list(itertools.accumulate(stages, initial=0))

        def stage(number: int) -> OnStep:
            return lambda done, _: on_step(before[number] + done, before[-1])

        nets, render, descent = self.networks, self.render, self._descent
        pair = self.pair_config if self.inversion == "refine" else None
        if self.inversion == "fast":
            target_BLD = self.encode(to_tensor(crop.pixels, nets.mean_E.device))
        else:
            target_BLD = self.invert(crop, config=pair, on_step=stage(0))
        if self.inversion == "tune":
            tuned = self.tune(crop, target_BLD, on_step=stage(1)).apply(nets.generator)
            descent, render = quick(tuned), lambda ws_BLD: to_pixels(_synthesis(tuned, ws_BLD))
        with torch.no_grad():
            identity_BE = EMPHASIS * prepared.embedding.to(target_BLD)
            ws_BLD = nets.mixer(prepared.w_plus.to(target_BLD), target_BLD, identity_BE)
        if self.inversion != "fast":
            ws_BLD = self._refine(descent, prepared, crop, ws_BLD, target_BLD, stage(len(stages) - 1))
        return render(blend_rows(target_BLD, ws_BLD, strength=strength, layers=layers))[0]

    def _picture(self, prepared: Prepared) -> torch.Tensor:
        """The source's crop [1, 3, 256, 256]: the photograph's, or what its code makes."""
        if prepared.picture is not None:
            return prepared.picture.to(self.networks.mean_E)
        return _synthesis(self.networks.generator, prepared.w_plus.to(self.networks.mean_E), resolution=256)

    def _refine(
        self,
        generator: MobileStyleGAN,
        prepared: Prepared,
        crop: Crop,
        ws_BLD: torch.Tensor,
        target_BLD: torch.Tensor,
        on_step: OnStep,
    ) -> torch.Tensor:
        nets = self.networks
        img_BCHW = to_tensor(crop.pixels, nets.mean_E.device)
        with torch.no_grad():
            mesh_BK3 = crop_mesh(nets.mesh, img_BCHW)
        fused_BK3 = fuse(prepared.mesh.cpu(), mesh_BK3.cpu(), nets.shape_model).to(mesh_BK3)
        guide_BCHW, trust_B1HW = repose(self._picture(prepared), prepared.mesh.to(mesh_BK3), fused_BK3)
        wanted = Wanted(
            code_BLD=target_BLD,
            img_BCHW=img_BCHW,
            mesh_BK3=mesh_BK3,
            fused_BK3=fused_BK3,
            source_BE=prepared.embedding.to(mesh_BK3),
            other_BE=embed(nets.identity, img_BCHW, nets.mean_E),
            guide_BCHW=guide_BCHW,
            trust_B1HW=trust_B1HW,
        )
        start_BLD = torch.cat([ws_BLD[:, :EXACT_ROWS], target_BLD[:, EXACT_ROWS:]], 1)
        return refine(
            generator, nets.identity, nets.mesh, nets.iris, start_BLD, wanted, nets.mean_E, self.refine_config, on_step
        )


def average(sources: Sequence[Prepared]) -> Prepared:
    """One person from several photographs: mean code and mean identity, the shape of the most frontal one.

    Raises UsageError when one of them does not look like the person that the others show.
    """
    if len(sources) == 1:
        return sources[0]
    total_BE = torch.stack([source.embedding for source in sources]).sum(0)
    mean_BE = F.normalize(total_BE, dim=-1)
    for source in sources:
        others_BE = F.normalize(total_BE - source.embedding, dim=-1)
        if (cosine := float((source.embedding * others_BE).sum())) < _ONE_PERSON:
            raise UsageError(
                f"SOURCE {source.name} does not seem to show the person of the other sources (identity cosine "
                f"{cosine:.2f} to their mean, at least {_ONE_PERSON:.2f} is expected). Leave it out."
            )
    frontal = min(sources, key=lambda source: float(head_pose(source.mesh)[0, :2].abs().sum()))
    code_BLD = torch.stack([source.w_plus for source in sources]).mean(0)
    synthetic = all(source.synthetic for source in sources)
    return replace(frontal, w_plus=code_BLD, embedding=mean_BE, synthetic=synthetic)


def quick(generator: MobileStyleGAN) -> MobileStyleGAN:
    """The generator to optimise through: a copy in bfloat16 where that is fast."""
    if not bfloat16_is_native(generator.w_avg.device):
        return generator
    return copy.deepcopy(generator).half_precision()


@torch.no_grad()
def _synthesis(generator: MobileStyleGAN, ws_BLD: torch.Tensor, *, resolution: int | None = None) -> torch.Tensor:
    return generator.synthesis(ws_BLD, resolution=resolution)


def to_tensor(pixels: np.ndarray, device: torch.device | str = "cpu", *, size: int = 256) -> torch.Tensor:
    """uint8 [S, S, 3] → float32 [1, 3, size, size] in [-1, 1], area-reduced (or enlarged bilinearly)."""
    img_BCHW = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].float().div(127.5).sub(1)
    if img_BCHW.shape[-1] > size:
        img_BCHW = F.interpolate(img_BCHW, size=size, mode="area")
    elif img_BCHW.shape[-1] < size:
        img_BCHW = F.interpolate(img_BCHW, size=size, mode="bilinear", align_corners=False)
    return img_BCHW.to(device)


def to_pixels(img_BCHW: torch.Tensor) -> np.ndarray:
    """Pictures in [-1, 1] → uint8 [B, H, W, 3]."""
    return ((img_BCHW.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
