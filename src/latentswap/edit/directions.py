"""Directions in W+: what a change of a code is, which rows it touches, how strong it may be.

A direction is an offset that is the same for everybody (InterFaceGAN, Shen et al., arXiv 2005.09635; SeFa; those that
ship), a coordinate that is set to a value (GANSpace), or a small network that reads the code (StyleCLIP's mapper).
`edit.files` reads the published files of all of them.
"""

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import torch

from latentswap.errors import UsageError, WeightsError
from latentswap.inversion.base import rows_for
from latentswap.weights.assets import asset_path
from latentswap.weights.load import load_tensors, save_tensors

KIND = "directions"
MAX_BYTES = 256 << 20
MOST_ROWS = 64


class Change(Protocol):
    """How much a code changes, for every one of its rows: W+ [B, L, D] and a strength → [B, L, D]."""

    @property
    def width(self) -> int:
        """D, of the codes that it is for."""
        ...

    def __call__(self, ws_BLD: torch.Tensor, strength: float) -> torch.Tensor: ...


@dataclass(frozen=True, eq=False)
class Offset:
    """strength × the same offset for every code: [1, D] for all rows, or [L, D]."""

    offset_LD: torch.Tensor

    @property
    def width(self) -> int:
        return self.offset_LD.shape[1]

    def __call__(self, ws_BLD: torch.Tensor, strength: float) -> torch.Tensor:
        offset_BLD = self.offset_LD.to(ws_BLD)[None]
        if len(self.offset_LD) > 1:
            offset_BLD = rows_for(offset_BLD, ws_BLD.shape[1])
        return (strength * offset_BLD).expand_as(ws_BLD)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """What a strength means. Raises UsageError for numbers that make no scale."""

    unit: str = "lengths of the direction"
    low: float = -30.0  # of what is accepted
    high: float = 30.0
    usual: float = 3.0  # a clear change of the same person

    def __post_init__(self) -> None:
        if not self.low <= 0 <= self.high or not self.low <= self.usual <= self.high:
            raise UsageError(
                f"A strength from {self.low} to {self.high}, usually {self.usual}, makes no scale; it must hold 0."
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Direction:
    """A change of a code by name. rows: those that it touches; None for all that the code has."""

    name: str
    change: Change
    rows: tuple[int, ...] | None = None
    scale: Scale = Scale()
    about: str = ""

    def __call__(self, ws_BLD: torch.Tensor, strength: float) -> torch.Tensor:
        """The edited code [B, L, D]. Raises UsageError for a strength out of range and codes of another shape."""
        self.check(strength)
        _, num_ws, width = ws_BLD.shape
        if width != self.change.width:
            raise UsageError(f"{self.name} is for rows of {self.change.width} numbers; these codes' have {width}.")
        rows = range(num_ws) if self.rows is None else self.rows
        if self.rows and max(self.rows) >= num_ws:
            raise UsageError(f"{self.name} edits row {max(self.rows)}; these codes have rows 0 to {num_ws - 1}.")
        chosen_L1 = torch.zeros(num_ws, 1, dtype=ws_BLD.dtype, device=ws_BLD.device)
        chosen_L1[list(rows)] = 1
        return ws_BLD + chosen_L1 * self.change(ws_BLD, strength)

    def check(self, strength: float) -> None:
        """Raise UsageError unless the strength is one that the direction takes."""
        scale = self.scale
        if not scale.low <= strength <= scale.high:
            raise UsageError(
                f"{self.name}={strength:g} is out of range; it runs from {scale.low:g} to {scale.high:g} "
                f"({scale.unit}), usually {scale.usual:g}."
            )


Library = Mapping[str, Direction]
Edits = Sequence[tuple[Direction, float]]
"""Directions with their strengths, in the order in which they are applied."""


def apply_edits(ws_BLD: torch.Tensor, edits: Edits) -> torch.Tensor:
    """The code after all edits, one after the other; the code itself when there are none."""
    for direction, strength in edits:
        ws_BLD = direction(ws_BLD, strength)
    return ws_BLD


def parse_edits(texts: Iterable[str], library: Library) -> list[tuple[Direction, float]]:
    """`smile=1.5`, `yaw=-10`, … → directions and strengths. Raises UsageError, listing the names that there are."""
    edits = []
    for text in texts:
        name, _, number = text.partition("=")
        if (direction := library.get(name)) is None:
            close = difflib.get_close_matches(name, library, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise UsageError(f"--edit {text!r}: there is no direction {name!r}.{hint} There are: {_names(library)}.")
        try:
            strength = float(number)
        except ValueError:
            example = f"{name}={direction.scale.usual:g}"
            raise UsageError(f"--edit {text!r}: write NAME=NUMBER, for example {example}.") from None
        direction.check(strength)
        edits.append((direction, strength))
    return edits


def _names(library: Library) -> str:
    """Names for a message; numbered families (`sefa.0`, `sefa.1`, …) as one entry."""
    families: dict[str, int] = {}
    for name in library:
        family, dot, number = name.rpartition(".")
        key = family if dot and number.isdecimal() else name
        families[key] = families.get(key, 0) + 1
    return ", ".join(f"{name}.0 … {name}.{count - 1}" if count > 1 else name for name, count in families.items())


@lru_cache(maxsize=1)
def shipped() -> dict[str, Direction]:
    """The directions that ship, for the embedded generator. Raises WeightsError."""
    return load_directions(asset_path("directions"))


def save_directions(path: str | Path, directions: Iterable[Direction], about: Mapping[str, str]) -> None:
    """Write offsets, in float16, with what they mean. Raises UsageError for a direction that is no offset."""
    tensors, described = {}, {}
    for direction in directions:
        if not isinstance(direction.change, Offset):
            raise UsageError(f"{direction.name} is no offset, and only offsets are kept in a file of directions.")
        tensors[direction.name] = direction.change.offset_LD.half()
        rows = None if direction.rows is None else list(direction.rows)
        described[direction.name] = {"rows": rows, "about": direction.about, **asdict(direction.scale)}
    save_tensors(path, tensors, {"kind": KIND, "directions": json.dumps(described), **about})


def load_directions(path: str | Path) -> dict[str, Direction]:
    """Read what `save_directions` wrote, by name. Raises WeightsError for any other file."""
    tensors, metadata = load_tensors(path, kind=KIND, max_bytes=MAX_BYTES)
    try:
        described = json.loads(metadata["directions"])
        if set(described) != set(tensors):
            raise ValueError(f"it describes {sorted(described)} and holds {sorted(tensors)}")
        return {name: _described(name, tensors[name], **fields) for name, fields in described.items()}
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} does not describe its directions: {error!r:.300}") from error


def _described(
    name: str, offset: torch.Tensor, *, rows: list[int] | None, about: str, **scale: float | str
) -> Direction:
    if offset.ndim != 2 or not 1 <= len(offset) <= MOST_ROWS:
        raise ValueError(f"{name} has the shape {list(offset.shape)}")
    if rows is not None and not all(type(row) is int and 0 <= row < MOST_ROWS for row in rows):
        raise ValueError(f"{name} edits the rows {rows!r:.60}")
    return Direction(
        name=name,
        change=Offset(offset.float()),
        rows=None if rows is None else tuple(rows),
        scale=Scale(**scale),  # pyright: ignore[reportArgumentType]
        about=about,
    )
