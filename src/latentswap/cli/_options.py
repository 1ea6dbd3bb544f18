"""Options that several commands share, and what they mean; the same everywhere."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from latentswap.errors import UsageError

if TYPE_CHECKING:
    from latentswap.edit.directions import Direction

Inversion = Annotated[
    Literal["fast", "refine", "tune"],
    tyro.conf.arg(
        help="fast: one pass, a second. refine: codes are optimised on the pair, a third of a minute, much closer to "
        "the source. tune: the generator is tuned to the photograph first, some minutes"
    ),
]
InversionOrEncoder = Annotated[
    Literal["fast", "refine", "tune", "e4e", "psp", "restyle"],
    tyro.conf.arg(
        help="fast: one pass, a second. refine: codes are optimised on the pair, a third of a minute, much closer to "
        "the source. tune: the generator is tuned to the photograph first, some minutes. e4e, psp, restyle: fast, with "
        "the published encoder of that name"
    ),
]
Encoder = Annotated[
    Path | None,
    tyro.conf.arg(metavar="FILE", help="a converted e4e, pSp or ReStyle encoder, in place of the shipped one"),
]
Tuned = Annotated[
    Path | None, tyro.conf.arg(metavar="FILE", help="a generator delta that `invert --inversion tune` wrote")
]
Generator = Annotated[
    Path | None, tyro.conf.arg(metavar="FILE", help="a converted StyleGAN2, in place of the shipped generator")
]
Mixer = Annotated[
    Path | None, tyro.conf.arg(metavar="FILE", help="a mixer for it: the published one, converted, or your own")
]
Method = Annotated[
    Literal["latentswap", "simswap"],
    tyro.conf.arg(
        help="simswap: one pass of the shipped network, or of a published --generator with --identity (docs/simswap.md)"
    ),
]
IdentityNetwork = Annotated[
    Path | None, tyro.conf.arg(metavar="FILE", help="with simswap: the generator's identity network, converted")
]
Map = Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]],
    tyro.conf.arg(
        metavar="REF=SOURCE",
        help="who in TARGET (a picture of them) gets whose face, as her.jpg=me.jpg; may be repeated; without SOURCE",
    ),
]
Faces = Annotated[str, tyro.conf.arg(help="all | largest | INDEX (0 is the largest) | match:REFERENCE.jpg")]
Strength = Annotated[float, tyro.conf.arg(help="0 keeps the target's identity, 1 takes the source's")]
Layers = Annotated[
    str | None, tyro.conf.arg(metavar="ROWS", help="rows of W+ that are swapped, as 0-7 or 2,3,8; all by default")
]
Edit = Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]],
    tyro.conf.arg(metavar="NAME=VALUE", help="a direction and its strength, as smile=1.5 or yaw=-10; may be repeated"),
]
DirectionFiles = Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]],
    tyro.conf.arg(
        metavar="[NAME=]FILE[@ROWS]",
        help="a file of directions (docs/editing.md), for --edit to name, and the rows that they edit; may be repeated",
    ),
]
Consent = Annotated[
    str | None,
    tyro.conf.arg(
        metavar="WHO, HOW",
        help="who SOURCE shows and how they agreed; asked for once a photograph, not for generated people",
    ),
]
Device = Annotated[str, tyro.conf.arg(help="cpu, or a torch device such as cuda")]
Offline = Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help="do not use the network")]
Label = Annotated[
    bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help="write AI-modified on the picture, where it hides no face")
]
LabelText = Annotated[str | None, tyro.conf.arg(metavar="TEXT", help="the same with words of yours")]
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


def parse_map(texts: tuple[str, ...]) -> list[tuple[Path, Path]]:
    """`--map` as (reference, source) paths. Raises UsageError for what is no such pair, is no file, or comes twice."""
    pairs: list[tuple[Path, Path]] = []
    for text in texts:
        # A name may itself have an =: the first place at which both sides exist counts.
        cuts = [
            (Path(text[:i]), Path(text[i + 1 :])) for i, c in enumerate(text) if c == "=" and text[:i] and text[i + 1 :]
        ]
        if not cuts:
            raise UsageError(f"--map {text!r}: write REFERENCE=SOURCE, for example her.jpg=me.jpg.")
        pair = next((cut for cut in cuts if cut[0].exists() and cut[1].exists()), cuts[0])
        if missing := [str(path) for path in pair if not path.exists()]:
            raise UsageError(f"--map {text!r}: there is no {' and no '.join(missing)}.")
        if pair[0].resolve() in [reference.resolve() for reference, _ in pairs]:
            raise UsageError(f"--map names the reference {pair[0]} twice; one person gets one face.")
        pairs.append(pair)
    return pairs


def read_edits(edits: tuple[str, ...], files: tuple[str, ...]) -> "list[tuple[Direction, float]]":
    """`--edit` and `--direction` as directions with strengths, before any model loads. Raises UsageError for names that
    there are not and strengths out of range, WeightsError for files that hold no direction."""
    if not edits and not files:
        return []
    from latentswap.edit.directions import parse_edits, shipped
    from latentswap.edit.files import read_directions

    library = dict(shipped())
    for text in files:
        if (match := re.fullmatch(r"(?:([\w.-]+)=)?(.+?)(?:@([\d,-]+))?", text)) is None:
            raise UsageError(f"--direction {text!r}: write [NAME=]FILE[@ROWS], for example beard=beard.pt@0-7.")
        name, path, rows = match.groups()
        chosen = None if rows is None else parse_numbers(rows, what="--direction", highest=63)
        library |= read_directions(Path(path), name=name, rows=chosen)
    return parse_edits(edits, library)


def check_strength(strength: float) -> None:
    """Refuse a strength out of range before any model loads."""
    if not 0 <= strength <= 1:
        raise UsageError(f"--strength is {strength}; it runs from 0 (the target) to 1 (the swap).")


def label_words(label: bool, text: str | None, *, generated: bool = False) -> str | None:
    """What `--label` and `--label-text` ask for, or None; refused before any model loads if it cannot be drawn."""
    if text is None and not label:
        return None
    from latentswap.provenance.label import GENERATED, MODIFIED, check_text

    text = (GENERATED if generated else MODIFIED) if text is None else text
    check_text(text)
    return text


def check_seed(seed: int) -> None:
    """Refuse a seed that the random generators do not take."""
    if not 0 <= seed < 1 << 32:
        raise UsageError(f"--seed is {seed}; it runs from 0 to {(1 << 32) - 1}.")
