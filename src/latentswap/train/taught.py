"""What LatentSwap teaches SimSwap with: people who do not exist, and their swaps by the latent mixer.

A lesson is a target's picture, moved along the shipped directions (pose, expression, gaze), and the swaps of several
sources' faces onto it: the mixer's picture inside of the two outlines, the target's own around them. With the target's
own identity the lesson is the target itself, whatever picture the identity was taken from.

A folder holds parts of 250 targets, every part a function of (seed, its number), as `train.bank` has them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from latentswap.edit.directions import Direction
from latentswap.errors import UsageError
from latentswap.generators.base import Generator
from latentswap.identity.dlib_resnet import centred
from latentswap.seeds import generator_for
from latentswap.shape import topology as T
from latentswap.shape.mesh import MeshNet, crop_mesh
from latentswap.shape.repose import inside
from latentswap.swappers.latentswap import EMPHASIS
from latentswap.swappers.mixer import LatentMixer
from latentswap.train.bank import Bank
from latentswap.weights.load import load_tensors, save_tensors

PART = 250
_CHUNK = 4
_SOFT = 0.06  # width of the edge between swap and target, in crop fractions
_CELLS = 128  # side at which the edge is drawn


@dataclass(frozen=True, kw_only=True)
class LessonsConfig:
    """`targets` people of the bank, each under `sources` other faces; `moved` of them along directions."""

    targets: int = 2500
    sources: int = 3
    moved: float = 0.6
    reach: float = 1.0  # largest strength, in the directions' usual ones
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.targets <= 1_000_000 or not 1 <= self.sources <= 64:
            raise UsageError(
                f"{self.targets} targets with {self.sources} sources are out of range (1 to 10⁶, 1 to 64)."
            )
        if not 0 <= self.moved <= 1 or not 0 <= self.reach <= 3:
            raise UsageError(f"moved is {self.moved} (0 to 1) and reach {self.reach} (0 to 3).")

    def parts(self) -> int:
        return -(-self.targets // PART)


@dataclass(frozen=True, kw_only=True, eq=False)
class Lessons:
    """T targets with K sources each: pictures uint8 256², who is who in the bank, the targets' meshes.

    target [T, 3, 256, 256]; swap [T, K, 3, 256, 256]; target_person [T], source_person [T, K]; mesh [T, 468, 3] in crop
    fractions.
    """

    target_T3HW: torch.Tensor
    swap_TK3HW: torch.Tensor
    target_person_T: torch.Tensor
    source_person_TK: torch.Tensor
    mesh_TP3: torch.Tensor

    def __len__(self) -> int:
        return len(self.target_T3HW)

    def save(self, path: Path, *, summary: str) -> None:
        save_tensors(path, dict(vars(self)), {"kind": "lessons", "config": summary})

    @classmethod
    def load(cls, folder: Path, config: LessonsConfig) -> "Lessons":
        """All parts in `folder`. Raises UsageError for those of another configuration."""
        parts = []
        for part in range(config.parts()):
            tensors, metadata = load_tensors(part_path(folder, part), kind="lessons")
            if metadata.get("config") != summary(config):
                raise UsageError(
                    f"{folder} holds lessons of other settings ({metadata.get('config')}, not {summary(config)}). "
                    "Give the same settings, or another folder."
                )
            parts.append(tensors)
        return cls(**{name: torch.cat([part[name] for part in parts])[: config.targets] for name in parts[0]})


def part_path(folder: Path, part: int) -> Path:
    return folder / f"lessons-{part:04d}.safetensors"


def summary(config: LessonsConfig) -> str:
    """What a part depends on: everything but the number of targets."""
    return f"seed {config.seed}, sources {config.sources}, moved {config.moved}, reach {config.reach}"


def build_lessons(
    generator: Generator,
    mixer: LatentMixer,
    mesh: MeshNet,
    directions: dict[str, Direction],
    bank: Bank,
    folder: Path,
    config: LessonsConfig,
    *,
    share: tuple[int, int] = (0, 1),
    on_item: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Make the parts that `folder` lacks. share (k, n): only every n-th part, from part k on, for one process of n."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in range(share[0], config.parts(), share[1]):
        if not part_path(folder, part).exists():
            indices = range(part * PART, min((part + 1) * PART, config.targets))
            made = lessons(generator, mixer, mesh, directions, bank, config, indices, on_item)
            made.save(part_path(folder, part), summary=summary(config))


@torch.no_grad()
def lessons(
    generator: Generator,
    mixer: LatentMixer,
    mesh: MeshNet,
    directions: dict[str, Direction],
    bank: Bank,
    config: LessonsConfig,
    indices: range,
    on_item: Callable[[int, int], None] = lambda done, total: None,
) -> Lessons:
    """Lessons `indices`, from a multiple of 4 on: lesson i is a function of (seed, i // 4) and the bank."""
    mean_E = bank.embedding_NE.mean(0)
    columns: list[tuple[torch.Tensor, ...]] = []
    for start in range(indices.start, indices.stop, _CHUNK):
        random = generator_for(config.seed, start // _CHUNK, stream=8)
        person_B = torch.arange(start, start + _CHUNK) % len(bank)
        # Somebody else: a step of 1 to N − 1 around the bank.
        step_BK = torch.randint(1, len(bank), (_CHUNK, config.sources), generator=random)
        source_BK = (person_B[:, None] + step_BK) % len(bank)
        target_BLD = move(bank.codes_NLD[person_B], directions, random, config)
        target_BCHW = generator.synthesis(target_BLD, resolution=256)
        target_BP3 = crop_mesh(mesh, target_BCHW)
        swaps = []
        for source_B in source_BK.T:
            source_BE = EMPHASIS * centred(bank.embedding_NE[source_B], mean_E)
            swap_BCHW = generator.synthesis(mixer(bank.codes_NLD[source_B], target_BLD, source_BE), resolution=256)
            mask_B1HW = outline_mask((target_BP3, crop_mesh(mesh, swap_BCHW)), 256)
            swaps.append(to_bytes(torch.lerp(target_BCHW, swap_BCHW, mask_B1HW)))
        looked_at = to_bytes(target_BCHW), torch.stack(swaps, 1), person_B, source_BK, target_BP3
        columns.append(tuple(x[: indices.stop - start] for x in looked_at))
        on_item(min(start + _CHUNK, indices.stop), config.targets)
    target, swap, person, source, meshes = (torch.cat(column) for column in zip(*columns, strict=True))
    return Lessons(
        target_T3HW=target, swap_TK3HW=swap, target_person_T=person, source_person_TK=source, mesh_TP3=meshes
    )


def move(
    ws_BLD: torch.Tensor, directions: dict[str, Direction], random: torch.Generator, config: LessonsConfig
) -> torch.Tensor:
    """Codes under random strengths of some directions: another pose, expression or gaze of the same people."""
    moved = []
    for code_LD in ws_BLD:
        code_BLD = code_LD[None]
        if float(torch.rand((), generator=random)) < config.moved:
            for direction in directions.values():
                amount = config.reach * (2 * float(torch.rand((), generator=random)) - 1)
                if float(torch.rand((), generator=random)) < 0.5:
                    scale = direction.scale
                    code_BLD = direction(code_BLD, min(max(amount * scale.usual, scale.low), scale.high))
        moved.append(code_BLD)
    return torch.cat(moved)


def outline_mask(meshes: tuple[torch.Tensor, ...], size: int) -> torch.Tensor:
    """Soft union of the meshes' outlines, [B, 1, size, size] in 0…1. Meshes [B, 468, 3] in crop fractions."""
    line = (torch.arange(_CELLS, device=meshes[0].device) + 0.5) / _CELLS
    y, x = torch.meshgrid(line, line, indexing="ij")
    place_P2 = torch.stack([x, y], -1).flatten(0, 1)
    union_BP = torch.stack([inside(place_P2, mesh[:, list(T.FACE_OVAL), :2]) for mesh in meshes]).amax(0)
    reach = max(1, round(_SOFT * _CELLS / 2))
    soft_B1HW = union_BP.unflatten(1, (1, _CELLS, _CELLS))
    for _ in range(2):
        soft_B1HW = F.avg_pool2d(soft_B1HW, 2 * reach + 1, 1, reach, count_include_pad=False)
    return F.interpolate(soft_B1HW, size=size, mode="bilinear", align_corners=False)


def to_bytes(img_BCHW: torch.Tensor) -> torch.Tensor:
    """Pictures in [-1, 1] → uint8 of the same shape."""
    return ((img_BCHW.clamp(-1, 1) + 1) * 127.5).round().byte()
