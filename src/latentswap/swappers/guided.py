"""The shipped SimSwap network on crops: identity and guide from the source, one pass, pasted over the target's pixels.

The network works on a square of 224² inside of the FFHQ-aligned crop (`swappers.compact`); what it draws is enlarged,
and every pixel of the crop gets the share of it that the network says. Where that is none the target's own stay.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from latentswap.errors import UsageError
from latentswap.face.align import cut_face
from latentswap.inversion.optimise import embed
from latentswap.swappers.base import OnStep, Prepared, no_progress
from latentswap.swappers.compact import INNER_SIDE, INNER_X, INNER_Y, SIZE, CompactSwap, guide_for, inner
from latentswap.swappers.latentswap import CROP_SIZE, average, known, mesh_of, own_code, to_pixels, to_tensor
from latentswap.types import Crop
from latentswap.weights.assets import asset_path

if TYPE_CHECKING:
    from latentswap.networks import Networks

Layers = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""(target [B, 3, S, S], guide [B, 4, S, S], identities [B, E]) → new face [B, 3, S, S] and its share [B, 1, S, S]."""


class GuidedSwapper:
    """The method on crops. See `swappers.base.FaceSwapper`."""

    name = "simswap"
    prepares = Prepared
    own_alignment = False

    def __init__(self, networks: "Networks", layers: Layers) -> None:
        self.networks, self.layers = networks, layers
        self.reconstruction: Callable[[Crop], np.ndarray] = partial(known, networks)

    @classmethod
    def load(
        cls, networks: "Networks", *, device: str, cache: Path | None, path: str | Path | None = None
    ) -> "GuidedSwapper":
        """With the shipped network, or one that `train simswap` wrote. Raises WeightsError."""
        network = CompactSwap.load(path or asset_path("simswap"))
        if device != "cpu":
            return cls(networks, network.to(device).layers)
        from latentswap.runtime.injection import OpenVINOCompact

        return cls(networks, OpenVINOCompact(network, size=SIZE, cache_dir=cache))

    def crop(self, pixels: np.ndarray, mesh_K3: np.ndarray) -> Crop:
        """The face of a mesh, FFHQ-aligned, at 1024²."""
        return cut_face(pixels, mesh_K3, CROP_SIZE)

    @torch.no_grad()
    def prepare(self, crop: Crop, *, name: str = "source", on_step: OnStep = no_progress) -> Prepared:
        """Identity, mesh and picture of a source crop; the encoder's code, which is not swapped with, rides along."""
        nets = self.networks
        img_BCHW = to_tensor(crop.pixels, nets.mean_E.device)
        return Prepared(
            w_plus=own_code(nets, img_BCHW),
            embedding=embed(nets.identity, img_BCHW, nets.mean_E),
            mesh=mesh_of(nets, img_BCHW),
            crop=crop,
            name=name,
        )

    @torch.no_grad()
    def swap(
        self,
        prepared: Prepared,
        crop: Crop,
        *,
        strength: float = 1.0,
        layers: tuple[int, ...] | None = None,
        on_step: OnStep = no_progress,
    ) -> np.ndarray:
        """See `FaceSwapper.swap`. Strength blends the identities and takes the guide back.

        Raises UsageError for layers: there is no code whose rows could be chosen.
        """
        if layers is not None:
            raise UsageError("Method simswap has no rows of W+ to choose; leave layers out.")
        nets = self.networks
        img_BCHW = to_tensor(crop.pixels, nets.mean_E.device)
        meshes = prepared.mesh.to(img_BCHW), mesh_of(nets, img_BCHW)
        guide_B4HW = guide_for(self._picture(prepared), *meshes, nets.shape_model)
        identity_BE = prepared.embedding.to(img_BCHW)
        if strength < 1:
            own_BE = embed(nets.identity, img_BCHW, nets.mean_E)
            identity_BE = F.normalize(torch.lerp(own_BE, identity_BE, strength), dim=-1)
            guide_B4HW[:, 3:] *= strength
        fresh_BCHW, share_B1HW = self.layers(inner(img_BCHW), inner(guide_B4HW), identity_BE)
        on_step(1, 1)
        return over(crop.pixels, fresh_BCHW.cpu(), share_B1HW.cpu())

    def average(self, sources: Sequence[Prepared]) -> Prepared:
        """One person from several photographs: the mean identity, the most frontal picture."""
        return average(sources)

    def _picture(self, prepared: Prepared) -> torch.Tensor:
        """The source's crop [1, 3, 256, 256]: the photograph's, or what its code makes."""
        if prepared.crop is not None:
            return to_tensor(prepared.crop.pixels, self.networks.mean_E.device)
        return self.networks.generator.synthesis(prepared.w_plus.to(self.networks.mean_E), resolution=256)


def over(pixels: np.ndarray, fresh_BCHW: torch.Tensor, share_B1HW: torch.Tensor) -> np.ndarray:
    """What the network drew of a square, [1, 3, S, S] and its share [1, 1, S, S], over its crop uint8 [C, C, 3]."""
    size = len(pixels)
    x, y, side = (round(size * part) for part in (INNER_X, INNER_Y, INNER_SIDE))
    both_B4HW = torch.cat([fresh_BCHW, share_B1HW], 1)
    both_B4HW = F.interpolate(both_B4HW, size=side, mode="bicubic", align_corners=False)
    share_B1HW = both_B4HW[:, 3:].clamp(0, 1) * edge(side)
    out = pixels.copy()
    here = to_tensor(out[y : y + side, x : x + side], size=side)
    out[y : y + side, x : x + side] = to_pixels(torch.lerp(here, both_B4HW[:, :3], share_B1HW))[0]
    return out


def edge(side: int) -> torch.Tensor:
    """0 at the square's border to 1 an eighth of its side inside, [1, 1, side, side]: no seam where faces reach it."""
    line = (torch.arange(side) + 0.5) / side
    rise = (torch.minimum(line, 1 - line) * 16).clamp(0, 1)
    return (rise[:, None] * rise[None])[None, None]
