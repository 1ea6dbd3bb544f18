"""LatentSwap (Choi et al., arXiv 2402.18351) on crops: invert both, mix the codes, let the generator draw the result.

The mixer is in `swappers.mixer`, inversion and refinement in `inversion`. Ours, beyond the paper: codes of a one-pass
encoder, the source's identity embedding beside its code, and a refinement of the mixed code on its own pair.
"""

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F

from latentswap.edit.directions import Edits, apply_edits
from latentswap.errors import UsageError
from latentswap.face.align import cut_face
from latentswap.generators.mobile import MobileStyleGAN
from latentswap.generators.stylegan2 import StyleGAN2
from latentswap.inversion.base import Inverter, rows_for
from latentswap.inversion.delta import GeneratorDelta
from latentswap.inversion.encoder import trunk_features
from latentswap.inversion.optimise import EXACT_ROWS, InvertConfig, RefineConfig, Wanted, embed, invert, refine
from latentswap.inversion.pti import AnyGenerator, PtiConfig, project, tune_pair
from latentswap.inversion.tune import TuneConfig, tune
from latentswap.runtime.precision import bfloat16_is_native
from latentswap.shape.fusion import fuse
from latentswap.shape.measures import head_pose
from latentswap.shape.mesh import crop_mesh
from latentswap.shape.repose import repose
from latentswap.swappers.base import OnStep, Prepared, no_progress, one_person
from latentswap.swappers.mixer import blend_rows
from latentswap.types import Crop

if TYPE_CHECKING:
    from latentswap.networks import Networks

Inversion = Literal["fast", "refine", "tune"]
INVERSIONS: tuple[str, ...] = get_args(Inversion)
EditWhen = Literal["before", "after"]
Render = Callable[[torch.Tensor], np.ndarray]
"""W+ [B, L, D] → uint8 [B, H, W, 3]: the generator at full size, by whatever runtime."""

CROP_SIZE = 1024
EMPHASIS = 1.5  # of the source's identity where the mixer reads it: photographs' lie farther out than generated ones'


class Stages:
    """One progress bar over stages of known lengths, entered one after the other."""

    def __init__(self, lengths: Sequence[int], on_step: OnStep) -> None:
        self._starts, self._on_step = list(itertools.accumulate(lengths, initial=0)), on_step
        self._entered = itertools.count()

    def enter(self) -> OnStep:
        """The next stage's callback."""
        start, total = self._starts[next(self._entered)], self._starts[-1]
        return lambda done, _: self._on_step(start + done, total)


class Inverted(NamedTuple):
    """Source and target as codes, the generator to optimise through, and what draws the result."""

    source_BLD: torch.Tensor
    target_BLD: torch.Tensor
    descent: AnyGenerator
    render: Render


class LatentSwap:
    """The method on crops: invert → mix → (refine) → synthesise. See `swappers.base.FaceSwapper`.

    inversion: `fast` takes the encoder's code of the target and the mixer's answer as they are. `refine` optimises the
    target's code on its photograph, and the mixer's answer on the pair; identity then comes from the source photograph
    itself, so that a poor inversion of the source costs little. `tune` moves the generator, too, until it draws the
    target's photograph (pivotal tuning), before it refines: slow, and the closest to the photograph around the face.
    With `joint` it is tuned until it draws the source's photograph as well, as the paper infers: twice as slow.
    With StyleGAN2 `tune` is the paper's way: pivots in W, the generator tuned to the pair, and the mixer's answer drawn
    as it is (`inversion.pti`).
    inverter: gives the codes that all of these start from, in place of the networks' own encoder.
    """

    name = "latentswap"
    prepares = Prepared
    own_alignment = False

    def __init__(
        self,
        networks: "Networks",
        render: Render,
        *,
        inversion: Inversion = "refine",
        joint: bool = False,
        inverter: Inverter | None = None,
        invert_config: InvertConfig | None = None,
        pair_config: InvertConfig | None = None,
        refine_config: RefineConfig | None = None,
        tune_config: TuneConfig | None = None,
        pti_config: PtiConfig | None = None,
    ) -> None:
        if inversion not in INVERSIONS:
            raise UsageError(f"inversion is {inversion!r}; it must be one of {', '.join(INVERSIONS)}.")
        self.networks, self.render, self.inversion, self.inverter = networks, render, inversion, inverter
        self.pivotal = is_pivotal(networks, inversion, inverter)
        self.joint = joint or self.pivotal
        self.invert_config = invert_config or InvertConfig()
        self.pair_config = pair_config or InvertConfig(steps=16)  # before a refinement, which moves on from there
        self.refine_config = refine_config or RefineConfig()
        self.tune_config, self.pti_config = tune_config or TuneConfig(), pti_config or PtiConfig()
        self._descent = networks.generator if inversion == "fast" or self.pivotal else quick(networks.generator)

    def crop(self, pixels: np.ndarray, mesh_K3: np.ndarray) -> Crop:
        """The face of a mesh, FFHQ-aligned, as large as the generator's pictures are pasted back."""
        return cut_face(pixels, mesh_K3, CROP_SIZE)

    @torch.no_grad()
    def encode(self, img_BCHW: torch.Tensor) -> torch.Tensor:
        """Crops [B, 3, 256, 256] in [-1, 1] → W+ [B, L, D] in one pass."""
        if self.inverter is not None:
            return self.inverter.invert(img_BCHW)
        nets = self.networks
        return rows_for(nets.encoder(trunk_features(nets.identity, nets.mesh, img_BCHW)), nets.generator.num_ws)

    def _restored(self, ws_BLD: torch.Tensor, embedding_BE: torch.Tensor) -> torch.Tensor:
        """A person swapped with themselves: what our encoder lost of them, put back by our mixer; other codes as is."""
        mixer = self.networks.mixer
        if self.inverter is not None or mixer is None or not mixer.config.identity_dim:
            return ws_BLD
        with torch.no_grad():
            return mixer(ws_BLD, ws_BLD, EMPHASIS * embedding_BE)

    def invert(self, crop: Crop, *, config: InvertConfig | None = None, on_step: OnStep = no_progress) -> torch.Tensor:
        """The crop's W+ code [1, L, D]: the encoder's, its identity restored with `fast`, else optimised.

        For StyleGAN2 with `tune` the paper's pivot: one w, found from the mean (an inverter's code where there is one).
        """
        nets = self.networks
        img_BCHW = to_tensor(crop.pixels, nets.mean_E.device)
        if isinstance(nets.generator, StyleGAN2) and self.pivotal:
            if self.inverter is not None:
                return self.inverter.invert(img_BCHW)
            return project(nets.generator, nets.identity, img_BCHW, self.pti_config, on_step)
        ws_BLD = self.encode(img_BCHW)
        if self.inversion == "fast":
            return self._restored(ws_BLD, embed(nets.identity, img_BCHW, nets.mean_E))
        config = config or self.invert_config
        return invert(self._descent, nets.identity, nets.mesh, img_BCHW, ws_BLD, nets.mean_E, config, on_step)

    def tune(self, crops: Sequence[Crop], ws_BLD: torch.Tensor, *, on_step: OnStep = no_progress) -> GeneratorDelta:
        """The change of the generator that makes it draw the crops at these codes (`inversion.tune`, `.pti`)."""
        nets, side = self.networks, self.networks.generator.resolution
        img_BCHW = torch.cat([to_tensor(crop.pixels, nets.mean_E.device, size=side) for crop in crops])
        if isinstance(nets.generator, StyleGAN2):
            return tune_pair(nets.generator, nets.identity, ws_BLD, img_BCHW, self.pti_config, on_step)
        return tune(nets.generator, nets.identity, nets.mean_E, ws_BLD, img_BCHW, self.tune_config, on_step)

    def reconstruction(self, crop: Crop) -> np.ndarray:
        """The crop as the generator knows it, uint8 [256, 256, 3]: what lies in front of the face is not in it."""
        nets = self.networks
        if self.inverter is None:
            return known(nets, crop)
        img_BCHW = to_tensor(crop.pixels, nets.mean_E.device)
        return to_pixels(_small(nets.generator, self.inverter.invert(img_BCHW)))[0]

    @staticmethod
    def average(sources: Sequence[Prepared]) -> Prepared:
        """See `average`."""
        return average(sources)

    def prepare(self, crop: Crop, *, name: str = "source", on_step: OnStep = no_progress) -> Prepared:
        """Code (the encoder's, its identity restored), identity embedding, mesh and picture of a source crop."""
        nets = self.networks
        img_BCHW = to_tensor(crop.pixels, nets.mean_E.device)
        embedding_BE = embed(nets.identity, img_BCHW, nets.mean_E)
        if self.pivotal:
            code_BLD = self.invert(crop, on_step=on_step)
        else:
            code_BLD = self._restored(self.encode(img_BCHW), embedding_BE)
        return Prepared(w_plus=code_BLD, embedding=embedding_BE, mesh=mesh_of(nets, img_BCHW), crop=crop, name=name)

    def prepare_code(self, ws_BLD: torch.Tensor, *, name: str = "source") -> Prepared:
        """The same for a person who does not exist, from the code [1, L, D]."""
        return prepare_code(self.networks, ws_BLD, name=name)

    def swap(
        self,
        prepared: Prepared,
        crop: Crop,
        *,
        strength: float = 1.0,
        layers: tuple[int, ...] | None = None,
        edits: Edits = (),
        edit_when: EditWhen = "after",
        on_step: OnStep = no_progress,
    ) -> np.ndarray:
        """See `FaceSwapper.swap`. `on_step` counts the steps of inversion, tuning and refinement together.

        edits: of the swapped code, as the last thing before it is drawn (`after`), or of the target's (`before`): the
        swap then takes pose and expression from the picture that the edited code makes.
        """
        nets = self.networks
        if nets.mixer is None:
            raise UsageError("These networks were loaded without a mixer (mixes=False), and nothing swaps without one.")
        joint = self.joint and prepared.crop is not None
        for_pivot, for_tuning = self._tuning_steps()
        refining = [] if self.pivotal else [self.refine_config.steps]
        stages = Stages(
            {
                "fast": [],
                "refine": [self.pair_config.steps, *refining],
                "tune": [*[for_pivot] * (1 + (joint and not self.pivotal)), for_tuning * (1 + joint), *refining],
            }[self.inversion],
            on_step,
        )
        pair = self._invert_pair(prepared, crop, joint, stages)
        target_BLD = pair.target_BLD
        if edits and edit_when == "before":
            target_BLD, edits = apply_edits(target_BLD, edits), ()
            crop = replace(crop, pixels=to_pixels(_small(pair.descent, target_BLD))[0])
        with torch.no_grad():
            ws_BLD = nets.mixer(pair.source_BLD, target_BLD, EMPHASIS * prepared.embedding.to(target_BLD))
        if self.inversion != "fast" and refining:
            ws_BLD = self._refine(pair.descent, prepared, crop, ws_BLD, target_BLD, stages.enter())
        return pair.render(apply_edits(blend_rows(target_BLD, ws_BLD, strength=strength, layers=layers), edits))[0]

    def _invert_pair(self, prepared: Prepared, crop: Crop, joint: bool, stages: Stages) -> Inverted:
        """The codes of source and target, and what draws them: with `tune` a generator tuned to one or both."""
        source_BLD = prepared.w_plus.to(self.networks.mean_E)
        if self.inversion == "fast":
            target_BLD = self.encode(to_tensor(crop.pixels, source_BLD.device))
            return Inverted(source_BLD, target_BLD, self._descent, self.render)
        if self.inversion == "refine":
            target_BLD = self.invert(crop, config=self.pair_config, on_step=stages.enter())
            return Inverted(source_BLD, target_BLD, self._descent, self.render)
        if joint and not self.pivotal:  # else `prepare` found the pivot
            source_BLD = self.invert(prepared.crop or crop, on_step=stages.enter())
        target_BLD = self.invert(crop, on_step=stages.enter())
        crops, codes = [crop], target_BLD
        if joint and prepared.crop is not None:
            crops, codes = [prepared.crop, crop], torch.cat([source_BLD, target_BLD])
        tuned = self.tune(crops, codes, on_step=stages.enter()).apply(self.networks.generator)
        descent = tuned if self.pivotal else quick(tuned)
        return Inverted(source_BLD, target_BLD, descent, lambda ws_BLD: to_pixels(_synthesis(tuned, ws_BLD)))

    def edit(self, crop: Crop, edits: Edits, *, on_step: OnStep = no_progress) -> np.ndarray:
        """The crop's own face, edited: invert → (tune) → edit → synthesise. uint8 [S, S, 3], same alignment."""
        for_pivot, for_tuning = self._tuning_steps()
        lengths = {"fast": [0], "refine": [for_pivot], "tune": [for_pivot, for_tuning]}[self.inversion]
        stages = Stages(lengths, on_step)
        ws_BLD = self.invert(crop, on_step=stages.enter())
        edited_BLD = apply_edits(ws_BLD, edits)
        if self.inversion != "tune":
            return self.render(edited_BLD)[0]
        delta = self.tune([crop], ws_BLD, on_step=stages.enter())
        return to_pixels(_synthesis(delta.apply(self.networks.generator), edited_BLD))[0]

    def _tuning_steps(self) -> tuple[int, int]:
        """Steps to a pivot, and of the tuning of one picture."""
        if self.pivotal:
            return self.pti_config.project_steps, self.pti_config.steps
        return self.invert_config.steps, self.tune_config.steps

    def _picture(self, prepared: Prepared) -> torch.Tensor:
        """The source's crop [1, 3, 256, 256]: the photograph's, or what its code makes."""
        if prepared.crop is not None:
            return to_tensor(prepared.crop.pixels, self.networks.mean_E.device)
        return _small(self.networks.generator, prepared.w_plus.to(self.networks.mean_E))

    def _refine(
        self,
        generator: AnyGenerator,
        prepared: Prepared,
        crop: Crop,
        ws_BLD: torch.Tensor,
        target_BLD: torch.Tensor,
        on_step: OnStep,
    ) -> torch.Tensor:
        nets = self.networks
        img_BCHW = to_tensor(crop.pixels, nets.mean_E.device)
        mesh_BK3 = mesh_of(nets, img_BCHW)
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


def known(networks: "Networks", crop: Crop) -> np.ndarray:
    """An FFHQ-aligned crop as the networks' own encoder knows it, uint8 [256, 256, 3]."""
    # The shipped generator is quick at 256², and another one's codes may be dear.
    own = networks.encodes and isinstance(networks.generator, MobileStyleGAN)
    ws_BLD = own_code(networks, to_tensor(crop.pixels, networks.mean_E.device))
    return to_pixels(_small(networks.generator if own else networks.shipped, ws_BLD))[0]


@torch.no_grad()
def own_code(networks: "Networks", img_BCHW: torch.Tensor) -> torch.Tensor:
    """FFHQ-aligned crops [B, 3, S, S] → the shipped encoder's W+ [B, 16, 512]."""
    return networks.encoder(trunk_features(networks.identity, networks.mesh, img_BCHW))


def prepare_code(networks: "Networks", ws_BLD: torch.Tensor, *, name: str = "source") -> Prepared:
    """A person who does not exist, as a source: what the code [1, L, D] draws, looked at."""
    img_BCHW = _small(networks.generator, ws_BLD)
    return Prepared(
        w_plus=ws_BLD,
        embedding=embed(networks.identity, img_BCHW, networks.mean_E),
        mesh=mesh_of(networks, img_BCHW),
        name=name,
        synthetic=True,
    )


def is_pivotal(networks: "Networks", inversion: str, inverter: Inverter | None) -> bool:
    """Whether codes are the paper's pivots, which need no encoder. Raises UsageError where one is missing."""
    pivotal = inversion == "tune" and isinstance(networks.generator, StyleGAN2)
    if inverter is None and not (networks.encodes or pivotal):
        raise UsageError(
            "The shipped encoder's codes mean nothing to this generator, whose W space is another. Give an encoder for "
            "it (--encoder FILE), or, with StyleGAN2, take pivotal tuning (--inversion tune)."
        )
    return pivotal


def average(sources: Sequence[Prepared]) -> Prepared:
    """One person from several photographs: mean code and mean identity, the shape of the most frontal one.

    Raises UsageError when one of them does not look like the person that the others show.
    """
    if len(sources) == 1:
        return sources[0]
    mean_BE = one_person([(source.embedding, source.name) for source in sources])
    frontal = min(sources, key=lambda source: float(head_pose(source.mesh)[0, :2].abs().sum()))
    code_BLD = torch.stack([source.w_plus for source in sources]).mean(0)
    synthetic = all(source.synthetic for source in sources)
    return replace(frontal, w_plus=code_BLD, embedding=mean_BE, synthetic=synthetic)


def quick(generator: AnyGenerator) -> AnyGenerator:
    """The generator to optimise through: a copy in bfloat16 where that is fast."""
    if not bfloat16_is_native(generator.w_avg.device):
        return generator
    return copy.deepcopy(generator).half_precision()


@torch.no_grad()
def _synthesis(generator: AnyGenerator, ws_BLD: torch.Tensor, *, resolution: int | None = None) -> torch.Tensor:
    return generator.synthesis(ws_BLD, resolution=resolution)


def _small(generator: AnyGenerator, ws_BLD: torch.Tensor) -> torch.Tensor:
    """The picture at 256², or at the full size of a generator that has less."""
    return _synthesis(generator, ws_BLD, resolution=min(256, generator.resolution))


@torch.no_grad()
def mesh_of(networks: "Networks", img_BCHW: torch.Tensor) -> torch.Tensor:
    """The meshes [B, 468, 3] of FFHQ-aligned crops [B, 3, S, S], in crop fractions."""
    return crop_mesh(networks.mesh, img_BCHW)


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
