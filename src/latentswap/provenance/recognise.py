"""Finding and embedding the faces of a picture for the do-not-swap list, without any network that generates."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from latentswap.face.align import cut_face
from latentswap.face.analyse import FaceAnalyser
from latentswap.face.select import FaceChoice, choose
from latentswap.identity.dlib_resnet import DlibResNet
from latentswap.inversion.optimise import embed
from latentswap.swappers.latentswap import to_tensor
from latentswap.types import Face, Image
from latentswap.weights.assets import asset_path
from latentswap.weights.fetch import weights_path
from latentswap.weights.load import load_tensors

SIZE = 256  # of the crop that is embedded


def embed_face(identity: DlibResNet, mean_E: torch.Tensor, pixels: np.ndarray, face: Face) -> torch.Tensor:
    """The identity embedding [1, 128] of a face of a picture, uint8 [H, W, 3], as do-not-swap lists hold it."""
    crop = cut_face(pixels, face.mesh_K3, SIZE)
    return embed(identity, to_tensor(crop.pixels, mean_E.device), mean_E)


@dataclass(frozen=True, kw_only=True, eq=False)
class Recogniser:
    """Pictures in, faces with their embeddings out."""

    identity: DlibResNet
    mean_E: torch.Tensor
    analyser: FaceAnalyser

    @classmethod
    def load(cls, *, offline: bool = False, progress: Callable[[int, int, str], None] | None = None) -> "Recogniser":
        """The two networks that this takes, fetched at first use. Raises WeightsError."""
        identity = DlibResNet.load(weights_path("dlib-resnet-v1", offline=offline, progress=progress))
        population, _ = load_tensors(asset_path("population"), kind="population")
        analyser = FaceAnalyser.load(offline=offline)
        return cls(identity=identity, mean_E=population["identity.mean_E"], analyser=analyser)

    def one(self, image: Image, choice: FaceChoice | None = None) -> torch.Tensor:
        """The embedding [1, 128] of the only usable face, or of the one chosen. Raises NoFaceError."""
        (face, *_) = choose(self.analyser(image.pixels), choice, role="PHOTO", name=image.name)
        return embed_face(self.identity, self.mean_E, image.pixels, face)

    def each(self, image: Image) -> list[tuple[Face, torch.Tensor]]:
        """Every usable face with its embedding [1, 128]. Raises NoFaceError when there is none."""
        found = choose(self.analyser(image.pixels), None, role="TARGET", name=image.name)
        return [(face, embed_face(self.identity, self.mean_E, image.pixels, face)) for face in found]
