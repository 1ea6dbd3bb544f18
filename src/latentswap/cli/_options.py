"""Options that several commands share, and what they mean; the same everywhere."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from latentswap.errors import UsageError

Inversion = Annotated[
    Literal["fast", "refine", "tune"],
    tyro.conf.arg(
        help="fast: one pass, a second. refine: codes are optimised on the pair, a third of a minute, much closer to "
        "the source. tune: the generator is tuned to the photograph first, some minutes"
    ),
]
Tuned = Annotated[
    Path | None, tyro.conf.arg(metavar="FILE", help="a generator delta that `invert --inversion tune` wrote")
]
Faces = Annotated[str, tyro.conf.arg(help="all | largest | INDEX (0 is the largest) | match:REFERENCE.jpg")]
Strength = Annotated[float, tyro.conf.arg(help="0 keeps the target's identity, 1 takes the source's")]
Layers = Annotated[
    str | None, tyro.conf.arg(metavar="ROWS", help="rows of W+ that are swapped, as 0-7 or 2,3,8; all by default")
]
Device = Annotated[str, tyro.conf.arg(help="cpu, or a torch device such as cuda")]
Offline = Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help="do not use the network")]
Output = Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="OUT")]


def parse_numbers(text: str, *, what: str, highest: int) -> tuple[int, ...]:
    """`0-7`, `3` or `1,4,8-10` → the numbers, in order and once each. Raises UsageError."""
    numbers: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UsageError(f"{what}: {text!r} is not a list of numbers; write for example 0-7 or 2,3,8.")
        low, high = int(first), int(last or first)
        if not low <= high <= highest:
            raise UsageError(f"{what}: {part.strip()!r} is out of range; numbers run upwards from 0 to {highest}.")
        numbers.update(range(low, high + 1))
    return tuple(sorted(numbers))


def check_strength(strength: float) -> None:
    """Refuse a strength out of range before any model loads."""
    if not 0 <= strength <= 1:
        raise UsageError(f"--strength is {strength}; it runs from 0 (the target) to 1 (the swap).")


def check_seed(seed: int) -> None:
    """Refuse a seed that the random generators do not take."""
    if not 0 <= seed < 1 << 32:
        raise UsageError(f"--seed is {seed}; it runs from 0 to {(1 << 32) - 1}.")
