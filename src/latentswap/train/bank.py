"""People who do not exist, looked at once: their codes, and what the frozen networks see in their pictures.

Training draws from a bank, so that a step costs one pass through the generator and not three. A bank is a folder of
parts of 500 people each, every part a function of (seed, its number): building one that was stopped goes on with the
parts that are missing, and several processes can share the work.

The bank also gives the population's statistics: the mean embedding and the shape model.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F

from latentswap.errors import UsageError
from latentswap.generators.base import Generator
from latentswap.identity.dlib_resnet import DlibResNet, chip
from latentswap.inversion.encoder import trunk_features
from latentswap.seeds import generator_for
from latentswap.shape.fusion import ShapeModel
from latentswap.shape.mesh import MeshNet, crop_mesh
from latentswap.train.augment import augment
from latentswap.train.sample import CodeConfig, sample_codes
from latentswap.weights.load import load_tensors, save_tensors

PART = 500
THUMBNAIL = 64
_CHUNK = 4


@dataclass(frozen=True, kw_only=True)
class BankConfig:
    """`people` of `codes`' distribution; `views` augmented pictures of each are turned into encoder features."""

    people: int = 8000
    views: int = 2
    seed: int = 0
    codes: CodeConfig = field(default_factory=CodeConfig)

    def __post_init__(self) -> None:
        if not 16 <= self.people <= 1_000_000:
            raise UsageError(f"--people is {self.people}; it must be 16 to 1,000,000.")
        if not 1 <= self.views <= 64:
            raise UsageError(f"A bank of {self.views} views is out of range (1 to 64).")

    def parts(self) -> int:
        return -(-self.people // PART)


@dataclass(frozen=True, kw_only=True, eq=False)
class Bank:
    """N people, of whom only the features are of augmented pictures.

    codes [N, L, D]; embedding [N, E], not centred; mesh [N, 468, 3] in crop fractions; features float16 [N, V, F];
    thumbnails uint8 [N, 3, 64, 64].
    """

    codes_NLD: torch.Tensor
    embedding_NE: torch.Tensor
    mesh_NK3: torch.Tensor
    features_NVF: torch.Tensor
    thumbnails_N3HW: torch.Tensor

    def __len__(self) -> int:
        return len(self.codes_NLD)

    def save(self, path: Path, *, summary: str) -> None:
        tensors = {
            "codes": self.codes_NLD.half(),
            "embedding": self.embedding_NE,
            "mesh": self.mesh_NK3,
            "features": self.features_NVF,
            "thumbnails": self.thumbnails_N3HW,
        }
        save_tensors(path, tensors, {"kind": "bank", "config": summary})

    @classmethod
    def load(cls, folder: Path, config: BankConfig) -> "Bank":
        """All parts of the bank in `folder`. Raises UsageError for one of another configuration."""
        parts = []
        for part in range(config.parts()):
            tensors, metadata = load_tensors(part_path(folder, part), kind="bank")
            if metadata.get("config") != summary(config):
                raise UsageError(
                    f"{folder} holds people of other settings ({metadata.get('config')}, not {summary(config)}). "
                    "Give the same settings, or another folder."
                )
            parts.append(tensors)
        joined = {name: torch.cat([part[name] for part in parts])[: config.people] for name in parts[0]}
        return cls(
            codes_NLD=joined["codes"].float(),
            embedding_NE=joined["embedding"],
            mesh_NK3=joined["mesh"],
            features_NVF=joined["features"],
            thumbnails_N3HW=joined["thumbnails"],
        )


def part_path(folder: Path, part: int) -> Path:
    return folder / f"people-{part:04d}.safetensors"


def summary(config: BankConfig) -> str:
    """What a part depends on: everything but the number of people."""
    return f"seed {config.seed}, views {config.views}, {config.codes}"


def build_bank(
    generator: Generator,
    identity: DlibResNet,
    mesh: MeshNet,
    folder: Path,
    config: BankConfig,
    *,
    share: tuple[int, int] = (0, 1),
    on_item: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Make the parts that `folder` lacks. share (k, n): only every n-th part, from part k on, for one process of n."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in range(share[0], config.parts(), share[1]):
        if not part_path(folder, part).exists():
            first = part * PART
            last = min(first + PART, config.people)
            bank = people(generator, identity, mesh, config, range(first, last), on_item)
            bank.save(part_path(folder, part), summary=summary(config))


@torch.no_grad()
def people(
    generator: Generator,
    identity: DlibResNet,
    mesh: MeshNet,
    config: BankConfig,
    indices: range,
    on_item: Callable[[int, int], None] = lambda done, total: None,
) -> Bank:
    """People `indices` (from a multiple of 4 on), rendered at 256². Person i is a function of (seed, i // 4)."""
    columns: list[tuple[torch.Tensor, ...]] = []
    for start in range(indices.start, indices.stop, _CHUNK):
        random = generator_for(config.seed, start // _CHUNK, stream=2)
        ws_BLD = sample_codes(generator, _CHUNK, random, config.codes)
        ws_BLD = ws_BLD.half().float()  # what `save` keeps is what is rendered
        img_BCHW = generator.synthesis(ws_BLD, resolution=256)
        views = [trunk_features(identity, mesh, augment(img_BCHW, random)).half() for _ in range(config.views)]
        small = F.interpolate(img_BCHW, size=THUMBNAIL, mode="area").clamp(-1, 1)
        looked_at = (
            ws_BLD,
            identity(chip(img_BCHW)),
            crop_mesh(mesh, img_BCHW),
            torch.stack(views, 1),
            ((small + 1) * 127.5).round().byte(),
        )
        columns.append(tuple(x[: indices.stop - start] for x in looked_at))
        on_item(min(start + _CHUNK, indices.stop), config.people)
    codes, embedding, meshes, features, thumbnails = (torch.cat(column) for column in zip(*columns, strict=True))
    return Bank(
        codes_NLD=codes,
        embedding_NE=embedding,
        mesh_NK3=meshes,
        features_NVF=features,
        thumbnails_N3HW=thumbnails,
    )


def save_population(path: Path, bank: Bank) -> None:
    """Mean embedding and shape model of a bank: `assets/population.safetensors`."""
    model = ShapeModel.fit(bank.mesh_NK3)
    tensors = {f"shape.{name}": value for name, value in vars(model).items()}
    tensors["identity.mean_E"] = bank.embedding_NE.mean(0)
    save_tensors(path, tensors, {"kind": "population", "people": str(len(bank))})
