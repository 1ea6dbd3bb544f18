"""LatentSwap's latent mixer (Choi et al., arXiv 2402.18351): one small MLP per row of W+.

    w_swap[l] = MLP_l([w_source[l], w_target[l]]) + r · w_target[l]

Source first, residual on the target, SiLU between linear layers, no weight shared between rows. All rows run in one
batched product per layer.
"""

import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from latentswap.errors import UsageError, WeightsError
from latentswap.inversion.encoder import trunk_features
from latentswap.inversion.optimise import EXACT_ROWS, InvertConfig, RefineConfig, embed, invert, refine
from latentswap.shape.fusion import fuse
from latentswap.shape.mesh import crop_mesh
from latentswap.swappers.base import OnStep, Prepared, no_progress
from latentswap.types import Crop
from latentswap.weights.header import read_header
from latentswap.weights.load import load_into, save_tensors

if TYPE_CHECKING:
    from latentswap.networks import Networks

PAPER_HIDDEN = (1024, 1024, 512, 512)


@dataclass(frozen=True, kw_only=True)
class MixerConfig:
    """Size of a mixer. The paper's: 18 rows, hidden (1024, 1024, 512, 512); ours has half of the layers."""

    num_ws: int = 16
    w_dim: int = 512
    hidden: tuple[int, ...] = (512, 512)
    residual: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        if not 1 <= self.num_ws <= 64 or not 1 <= self.w_dim <= 2048:
            raise UsageError(f"A mixer of {self.num_ws} rows × {self.w_dim} is out of range (1–64 rows × 1–2048).")
        if not self.hidden or len(self.hidden) > 8 or not all(1 <= n <= 4096 for n in self.hidden):
            raise UsageError(f"Hidden widths {self.hidden} are out of range: 1 to 8 layers of 1 to 4096.")


class RowLinear(nn.Module):
    """One linear layer per row: [L, B, I] → [L, B, O]."""

    def __init__(self, rows: int, c_in: int, c_out: int) -> None:
        super().__init__()
        bound = c_in**-0.5  # nn.Linear's own initialisation
        self.weight = nn.Parameter(torch.empty(rows, c_out, c_in).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(rows, c_out).uniform_(-bound, bound))

    def forward(self, x_LBI: torch.Tensor) -> torch.Tensor:
        return torch.baddbmm(self.bias[:, None], x_LBI, self.weight.mT)


class LatentMixer(nn.Module):
    """(source, target) W+ codes → swapped W+ code.

    `centre` and `scale` [D] normalise the codes that the MLPs see and undo it on their output: w_avg and w_std of the
    generator. With 0 and 1, their initial values, this is the paper's mixer to the letter.
    """

    centre: torch.Tensor
    scale: torch.Tensor

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        self.config = config
        widths = (2 * config.w_dim, *config.hidden, config.w_dim)
        self.layers = nn.ModuleList(RowLinear(config.num_ws, c_in, c_out) for c_in, c_out in itertools.pairwise(widths))
        self.register_buffer("centre", torch.zeros(config.w_dim))
        self.register_buffer("scale", torch.ones(config.w_dim))

    @torch.no_grad()
    def start_at_target(self, centre_D: torch.Tensor, scale_D: torch.Tensor) -> None:
        """Our initial state: normalised codes, and an output close to the target, as the residual means it."""
        self.centre.copy_(centre_D)
        self.scale.copy_(scale_D)
        last = self.layers[-1]
        assert isinstance(last, RowLinear)  # noqa: S101 - for the type checker
        last.weight.mul_(0.1)
        last.bias.zero_()

    @classmethod
    def load(cls, path: Path) -> "LatentMixer":
        """A frozen mixer, its size read from the file's metadata. Raises WeightsError."""
        try:
            fields = json.loads(read_header(path, kind="mixer").metadata["config"])
            mixer = cls(MixerConfig(**fields))
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(f"{path} does not describe a mixer: {error}") from error
        load_into(mixer, path, kind="mixer")
        return mixer.eval().requires_grad_(False)

    def save(self, path: Path, *, summary: Mapping[str, object]) -> None:
        """Write weights (float16), size and a summary of the training to safetensors."""
        metadata = {"kind": "mixer", "config": json.dumps(asdict(self.config)), "training": json.dumps(dict(summary))}
        halves = {name: value.half() if value.ndim > 1 else value for name, value in self.state_dict().items()}
        save_tensors(path, halves, metadata)

    def forward(self, source_BLD: torch.Tensor, target_BLD: torch.Tensor) -> torch.Tensor:
        """Both [B, L, D]. Raises UsageError when the shapes are not this mixer's."""
        expected = (self.config.num_ws, self.config.w_dim)
        if source_BLD.shape != target_BLD.shape or source_BLD.shape[1:] != expected:
            raise UsageError(
                f"Codes of shape {tuple(source_BLD.shape)} and {tuple(target_BLD.shape)}; this mixer takes two of "
                f"[B, {expected[0]}, {expected[1]}]."
            )
        pair = torch.cat([source_BLD - self.centre, target_BLD - self.centre], -1)
        x_LBI = (pair / self.scale.repeat(2)).transpose(0, 1)
        for layer in self.layers[:-1]:
            x_LBI = F.silu(layer(x_LBI))
        change_BLD = self.layers[-1](x_LBI).transpose(0, 1) * self.scale
        return change_BLD + self.config.residual * target_BLD


def mixer_parameters(config: MixerConfig) -> int:
    """Number of parameters: 56,687,616 for the paper's 18 rows."""
    widths = (2 * config.w_dim, *config.hidden, config.w_dim)
    return config.num_ws * sum(prod(pair) + pair[1] for pair in itertools.pairwise(widths))


def blend_rows(
    target_BLD: torch.Tensor, swapped_BLD: torch.Tensor, *, strength: float = 1.0, layers: tuple[int, ...] | None = None
) -> torch.Tensor:
    """Between the target's code and the swapped one: `strength` 0 to 1, in all rows or in those of `layers` only.

    Raises UsageError for a strength or a row out of range.
    """
    if not 0 <= strength <= 1:
        raise UsageError(f"Strength is {strength}; it runs from 0 (the target) to 1 (the swap).")
    rows = target_BLD.shape[1]
    if layers is not None and not all(0 <= row < rows for row in layers):
        raise UsageError(f"Rows {layers} are out of range; this code has rows 0 to {rows - 1}.")
    weight_L = torch.full((rows,), float(strength)) if layers is None else torch.zeros(rows)
    if layers is not None:
        weight_L[list(layers)] = strength
    return torch.lerp(target_BLD, swapped_BLD, weight_L.to(target_BLD)[:, None])


Inversion = Literal["fast", "refine"]
INVERSIONS: tuple[str, ...] = get_args(Inversion)
Render = Callable[[torch.Tensor], np.ndarray]
"""W+ [B, L, D] → uint8 [B, H, W, 3]: the generator at full size, by whatever runtime."""


class LatentSwap:
    """The method on crops: invert → mix → (refine) → synthesise. See `swappers.base.FaceSwapper`.

    inversion: `fast` takes the encoder's code of the target and the mixer's answer as they are. `refine` optimises the
    target's code on its photograph, and the mixer's answer on the pair; identity then comes from the source photograph
    itself, so that a poor inversion of the source costs little.
    """

    def __init__(
        self,
        networks: "Networks",
        render: Render,
        *,
        inversion: Inversion = "refine",
        invert_config: InvertConfig | None = None,
        refine_config: RefineConfig | None = None,
    ) -> None:
        if inversion not in INVERSIONS:
            raise UsageError(f"inversion is {inversion!r}; it must be one of {', '.join(INVERSIONS)}.")
        self.networks, self.render, self.inversion = networks, render, inversion
        self.invert_config = invert_config or InvertConfig()
        self.refine_config = refine_config or RefineConfig()

    def encode(self, img_BCHW: torch.Tensor) -> torch.Tensor:
        """Crops [B, 3, 256, 256] in [-1, 1] → W+ [B, L, D] in one pass."""
        nets = self.networks
        with torch.no_grad():
            return nets.encoder(trunk_features(nets.identity, nets.mesh, img_BCHW))

    def invert(self, crop: Crop, *, on_step: OnStep = no_progress) -> torch.Tensor:
        """The crop's W+ code [1, L, D]: the encoder's, and optimised on the crop with `refine`."""
        img_BCHW = to_tensor(crop.pixels, self.networks.mean_E.device)
        ws_BLD = self.encode(img_BCHW)
        if self.inversion == "fast":
            return ws_BLD
        nets = self.networks
        return invert(
            nets.generator, nets.identity, nets.mesh, img_BCHW, ws_BLD, nets.mean_E, self.invert_config, on_step
        )

    def prepare(self, crop: Crop, *, name: str = "source", on_step: OnStep = no_progress) -> Prepared:
        """Code (the encoder's), identity embedding and mesh of a source crop."""
        nets = self.networks
        img_BCHW = to_tensor(crop.pixels, nets.mean_E.device)
        with torch.no_grad():
            mesh_BK3 = crop_mesh(nets.mesh, img_BCHW)
        embedding_BE = embed(nets.identity, img_BCHW, nets.mean_E)
        return Prepared(w_plus=self.encode(img_BCHW), embedding=embedding_BE, mesh=mesh_BK3, name=name)

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
        """See `FaceSwapper.swap`. `on_step` counts the steps of inversion and refinement together."""
        refined = self.inversion == "refine"
        inverting = self.invert_config.steps if refined else 0
        total = inverting + (self.refine_config.steps if refined else 0)
        target_BLD = self.invert(crop, on_step=lambda done, _: on_step(done, total))
        with torch.no_grad():
            ws_BLD = self.networks.mixer(prepared.w_plus.to(target_BLD), target_BLD)
        if refined:
            ws_BLD = self._refine(prepared, crop, ws_BLD, target_BLD, lambda done, _: on_step(inverting + done, total))
        return self.render(blend_rows(target_BLD, ws_BLD, strength=strength, layers=layers))[0]

    def _refine(
        self, prepared: Prepared, crop: Crop, ws_BLD: torch.Tensor, target_BLD: torch.Tensor, on_step: OnStep
    ) -> torch.Tensor:
        nets = self.networks
        img_BCHW = to_tensor(crop.pixels, nets.mean_E.device)
        with torch.no_grad():
            mesh_BK3 = crop_mesh(nets.mesh, img_BCHW)
        ws_BLD = torch.cat([ws_BLD[:, :EXACT_ROWS], target_BLD[:, EXACT_ROWS:]], 1)
        return refine(
            nets.generator,
            nets.identity,
            nets.mesh,
            ws_BLD,
            target_BLD=target_BLD,
            target_img_BCHW=img_BCHW,
            target_mesh_BK3=mesh_BK3,
            fused_mesh_BK3=fuse(prepared.mesh.cpu(), mesh_BK3.cpu(), nets.shape_model).to(mesh_BK3),
            source_BE=prepared.embedding.to(mesh_BK3),
            mean_E=nets.mean_E,
            config=self.refine_config,
            on_step=on_step,
        )


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
