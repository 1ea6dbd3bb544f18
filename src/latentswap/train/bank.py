"""People who do not exist, looked at once: codes with the identity embedding and the mesh of their pictures.

Training draws (source, target) pairs from a bank, so that a step costs one pass through the generator and not three.
The bank also gives the population's statistics: the mean embedding and the shape model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from latentswap.generators.base import Generator
from latentswap.identity.dlib_resnet import DlibResNet, chip
from latentswap.seeds import generator_for
from latentswap.shape.fusion import ShapeModel
from latentswap.shape.mesh import MeshNet, crop_mesh
from latentswap.train.sample import CodeConfig, sample_codes
from latentswap.weights.load import load_tensors, save_tensors

_CHUNK = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class Bank:
    """Codes [N, L, D], embeddings [N, E] (not centred), meshes [N, 468, 3] in crop fractions."""

    codes_NLD: torch.Tensor
    embedding_NE: torch.Tensor
    mesh_NK3: torch.Tensor

    def __len__(self) -> int:
        return len(self.codes_NLD)

    def save(self, path: Path, *, seed: int) -> None:
        tensors = {"codes": self.codes_NLD.half(), "embedding": self.embedding_NE, "mesh": self.mesh_NK3}
        save_tensors(path, tensors, {"kind": "bank", "seed": str(seed)})

    @classmethod
    def load(cls, path: Path) -> "Bank":
        tensors, _ = load_tensors(path, kind="bank")
        return cls(
            codes_NLD=tensors["codes"].float(), embedding_NE=tensors["embedding"], mesh_NK3=tensors["mesh"].float()
        )


@torch.no_grad()
def build_bank(
    generator: Generator,
    identity: DlibResNet,
    mesh: MeshNet,
    *,
    count: int,
    seed: int,
    codes: CodeConfig,
    on_item: Callable[[int, int], None] = lambda done, total: None,
    on_picture: Callable[[torch.Tensor], None] = lambda img_BCHW: None,
) -> Bank:
    """`count` people from `codes`' distribution, rendered at 256². Person i is a function of (seed, i // 4)."""
    parts = []
    for start in range(0, count, _CHUNK):
        ws_BLD = sample_codes(generator, _CHUNK, generator_for(seed, start // _CHUNK, stream=2), codes)
        ws_BLD = ws_BLD[: count - start].half().float()  # what `save` keeps is what was rendered
        img_BCHW = generator.synthesis(ws_BLD, resolution=256).float()
        on_picture(img_BCHW)
        parts.append((ws_BLD, identity(chip(img_BCHW)), crop_mesh(mesh, img_BCHW)))
        on_item(min(start + _CHUNK, count), count)
    codes_NLD, embedding_NE, mesh_NK3 = (torch.cat(part) for part in zip(*parts, strict=True))
    return Bank(codes_NLD=codes_NLD, embedding_NE=embedding_NE, mesh_NK3=mesh_NK3)


def save_population(path: Path, bank: Bank) -> None:
    """Mean embedding and shape model of a bank: `assets/population.safetensors`."""
    model = ShapeModel.fit(bank.mesh_NK3)
    tensors = {f"shape.{name}": value for name, value in vars(model).items()}
    tensors["identity.mean_E"] = bank.embedding_NE.mean(0)
    save_tensors(path, tensors, {"kind": "population", "people": str(len(bank))})
