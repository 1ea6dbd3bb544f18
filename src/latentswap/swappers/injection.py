"""Swapping by injecting an identity (SimSwap and its like) on crops: embed the source once, inject, decode.

What differs from network to network is given: the network itself, the identity embedder that it was trained with, the
alignment and the size of its crops. Nothing is optimised and there is no latent code.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from latentswap.errors import UsageError
from latentswap.face.align import cut, move_mesh
from latentswap.face.align_arcface import ALIGNMENTS, Alignment
from latentswap.identity.arcface_se import ArcFaceSE
from latentswap.swappers.base import OnStep, no_progress, one_person
from latentswap.swappers.latentswap import to_pixels, to_tensor
from latentswap.swappers.simswap import SimSwapGenerator, folded
from latentswap.types import Crop

Inject = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(crops [B, 3, S, S] in [-1, 1], identities [B, E]) → swapped crops, by whatever runtime."""
Embedder = Callable[[torch.Tensor], torch.Tensor]
"""Crops [B, 3, S, S] in [-1, 1], in the network's alignment → identities [B, E] of unit length."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Identity:
    """A source, looked at once: who it is."""

    embedding: torch.Tensor  # [1, E], unit length
    name: str = "source"
    # As in `Prepared`:
    synthetic: bool = False
    consent: str | None = None
    files: tuple[bytes, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Injection:
    """A network and everything that goes with it."""

    inject: Inject
    embedder: Embedder
    alignment: Alignment
    size: int  # side of the crops


class InjectionSwapper:
    """The method on crops. See `swappers.base.FaceSwapper`.

    reconstruct: an FFHQ-aligned crop → the face in it without what lies in front (`face.occlusion`).
    """

    name = "simswap"
    prepares = Identity
    own_alignment = True

    def __init__(self, injection: Injection, reconstruct: Callable[[Crop], np.ndarray], *, device: str = "cpu") -> None:
        self.injection, self.reconstruction, self.device = injection, reconstruct, device

    def crop(self, pixels: np.ndarray, mesh_K3: np.ndarray) -> Crop:
        """The face of a mesh, cut out of its picture as the network wants it."""
        size = self.injection.size
        affine = self.injection.alignment(mesh_K3, size)
        return Crop(pixels=cut(pixels, affine, size), affine=affine, mesh_K3=move_mesh(mesh_K3, affine))

    @torch.no_grad()
    def prepare(self, crop: Crop, *, name: str = "source", on_step: OnStep = no_progress) -> Identity:
        """The identity of a source crop."""
        return Identity(embedding=self.injection.embedder(self._tensor(crop)), name=name)

    @torch.no_grad()
    def swap(
        self,
        prepared: Identity,
        crop: Crop,
        *,
        strength: float = 1.0,
        layers: tuple[int, ...] | None = None,
        on_step: OnStep = no_progress,
    ) -> np.ndarray:
        """See `FaceSwapper.swap`. Strength blends the identities, target's and source's, on the sphere's chord.

        Raises UsageError for layers: there is no code whose rows could be chosen.
        """
        if layers is not None:
            raise UsageError("Method simswap has no rows of W+ to choose; leave layers out.")
        img_BCHW, id_BE = self._tensor(crop), prepared.embedding.to(self.device)
        if strength < 1:
            id_BE = F.normalize(torch.lerp(self.injection.embedder(img_BCHW), id_BE, strength), dim=-1)
        swapped = to_pixels(self.injection.inject(img_BCHW, id_BE))[0]
        on_step(1, 1)
        return swapped

    @staticmethod
    def average(sources: Sequence[Identity]) -> Identity:
        """One person from several photographs: the mean identity. Raises UsageError when they show different people."""
        if len(sources) == 1:
            return sources[0]
        return replace(sources[0], embedding=one_person([(source.embedding, source.name) for source in sources]))

    def _tensor(self, crop: Crop) -> torch.Tensor:
        return to_tensor(crop.pixels, self.device, size=crop.size)


def refuse_options(**options: object) -> None:
    """Raise UsageError for options of LatentSwap's that are given (neither None nor False)."""
    if given := [name for name, value in options.items() if value]:
        raise UsageError(f"Method simswap has no {' and no '.join(given)}: that is LatentSwap's. Leave it out.")


def load_simswap(generator: str | Path | None, identity: str | Path | None, *, device: str, cache: Path) -> Injection:
    """A published generator and its ArcFace, from converted files; on the CPU through OpenVINO, exported into `cache`.

    Raises WeightsError for other files, UsageError for two that do not fit one another and for one that is missing.
    """
    if generator is None or identity is None:
        raise UsageError(
            "Method simswap needs a SimSwap generator (--generator FILE) and its identity network (--identity FILE), "
            "both converted with `latentswap models convert`."
        )
    network, embedder = SimSwapGenerator.load(generator), ArcFaceSE.load(identity)
    config = network.config
    if embedder.embedding_dim != config.identity_dim:
        raise UsageError(
            f"{identity} gives identities of {embedder.embedding_dim} numbers, and the generator {generator} takes "
            f"{config.identity_dim}: they do not belong together."
        )
    embedder = embedder.to(device)
    size = config.published.size
    return Injection(
        inject=make_inject(folded(network), size=size, identity_dim=config.identity_dim, device=device, cache=cache),
        embedder=embedder.embed_aligned,
        alignment=ALIGNMENTS[config.published.alignment],
        size=size,
    )


def make_inject(network: torch.nn.Module, *, size: int, identity_dim: int, device: str, cache: Path | None) -> Inject:
    """What runs the network: OpenVINO on a CPU, torch on anything else."""
    if device != "cpu":
        network = network.to(device)
        return lambda img_BCHW, id_BE: network(img_BCHW.to(device), id_BE.to(device))
    from latentswap.runtime.injection import OpenVINOInjection

    compiled = OpenVINOInjection(network, size=size, identity_dim=identity_dim, cache_dir=cache)
    return lambda img_BCHW, id_BE: torch.from_numpy(compiled(img_BCHW.numpy(), id_BE.numpy()))
