"""Which pairs are evaluated, and swapping those that have no result yet.

A folder of results can be continued: every result has a small JSON file beside it that says what it was made from, and
`run.json` says with which settings. A result counts as done when both agree with what is asked for.
"""

import csv
import io
import json
import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import latentswap
from latentswap.errors import BadInputError, UsageError
from latentswap.evaluate.measures import SIZE
from latentswap.face.align import ffhq_affine
from latentswap.face.select import FaceChoice
from latentswap.mapping import Source
from latentswap.media.atomic import output_lock, write_atomic
from latentswap.pipeline import Swapper
from latentswap.provenance.apply import Marking
from latentswap.swappers.latentswap import LatentSwap
from latentswap.weights.assets import asset_path
from latentswap.weights.files import sha256_file

FIRST_SEED = 1_000_000  # generated pair i: source of seed FIRST_SEED + 2 · i, target of the next
LARGEST = FaceChoice(kind="largest")
_COLUMNS = ("source", "target", "result")
_SWAP_WEIGHTS = ("head256", "population", "mesh_mean", "encoder", "mixer")  # assets that a result depends on
_MAX_LIST_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One row: the pictures, and the result if somebody has made it already."""

    name: str  # of its result, without suffix; unique in a run
    source: Path
    target: Path
    given: Path | None = None
    seeds: tuple[int, int] | None = None  # of generated people


def read_pairs(folder: Path) -> list[Pair]:
    """The pairs that `pairs.csv` (a header and rows) or `pairs.json` (a list of objects) of a folder names.

    Columns source, target and, if results exist, result: paths relative to the folder, which they may not leave.
    Whether the files exist is found out pair by pair. Raises BadInputError.
    """
    lists = [folder / name for name in ("pairs.csv", "pairs.json") if (folder / name).is_file()]
    if len(lists) != 1:
        found = "both pairs.csv and pairs.json; keep one" if lists else "neither pairs.csv nor pairs.json"
        raise BadInputError(f"the folder {folder} holds {found}")
    (path,) = lists
    if path.stat().st_size > _MAX_LIST_BYTES:
        raise BadInputError(f"{path} has {path.stat().st_size:,} bytes; at most {_MAX_LIST_BYTES:,} are accepted")
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = json.loads(text) if path.suffix == ".json" else list(csv.DictReader(io.StringIO(text), strict=True))
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error, RecursionError) as error:
        raise BadInputError(f"{path} cannot be read: {error}") from error
    if not isinstance(rows, list) or not rows:
        raise BadInputError(f"{path} lists no pairs")
    return [_pair(path, number, row) for number, row in enumerate(rows, 1)]


def _pair(path: Path, number: int, row: object) -> Pair:
    if not isinstance(row, dict) or not set(row) <= set(_COLUMNS) or not {"source", "target"} <= set(row):
        columns = ", ".join(map(str, row)) if isinstance(row, dict) else row
        raise BadInputError(f"row {number} of {path} has the columns {columns}; they are source, target[, result]")
    folder, values = path.parent, {name: row.get(name) or "" for name in _COLUMNS}
    for name, value in values.items():
        if not isinstance(value, str) or "\0" in value or (name != "result" and not value):
            raise BadInputError(f"row {number} of {path}: {name} is {value!r}; it must be the path of a picture")
        if not (folder / value).resolve().is_relative_to(folder.resolve()):
            raise BadInputError(f"row {number} of {path}: {name} {value!r} lies outside of the folder {folder}")
    source, target = folder / values["source"], folder / values["target"]
    return Pair(
        name=f"{number:04d}-{source.stem}-onto-{target.stem}",
        source=source,
        target=target,
        given=folder / values["result"] if values["result"] else None,
    )


def generated_pairs(numbers: Sequence[int], out: Path) -> list[Pair]:
    """Pairs of people who do not exist; their pictures are `out/people/seed-….jpg`."""
    pairs = []
    for number in numbers:
        seeds = FIRST_SEED + 2 * number, FIRST_SEED + 2 * number + 1
        source, target = (out / "people" / f"seed-{seed}.jpg" for seed in seeds)
        pairs.append(Pair(name=f"{number:04d}", source=source, target=target, seeds=seeds))
    return pairs


def parse_shard(text: str) -> tuple[int, int]:
    """`2/3` → (2, 3): the second of three parts. Raises UsageError."""
    part, slash, parts = text.partition("/")
    if not slash or not part.isdecimal() or not parts.isdecimal() or not 1 <= int(part) <= int(parts) <= 10_000:
        raise UsageError(f"--shard is {text!r}; write K/N, for example 1/2 and 2/2.")
    return int(part), int(parts)


def shard(pairs: list[Pair], part: int, parts: int) -> list[Pair]:
    """Every `parts`-th pair, from the `part`-th on (counted from 1)."""
    return pairs[part - 1 :: parts]


def settings_of(swapper: Swapper, *, strength: float) -> dict[str, Any]:
    """What a result depends on besides its pictures."""
    method = swapper.method
    if isinstance(method, LatentSwap):
        weights = {name: sha256_file(asset_path(name))[:16] for name in _SWAP_WEIGHTS}
        return {"inversion": method.inversion, "strength": strength, "weights": weights}
    weights = {name: sha256_file(path)[:16] for name, path in swapper.networks.files.items()}
    return {"method": method.name, "strength": strength, "weights": weights}


class Results:
    """The results of a run in `out/results`, made when they are not there yet."""

    def __init__(self, out: Path, swapper: Swapper, *, strength: float = 1.0) -> None:
        """Raises UsageError when the folder holds results of other settings."""
        self.out, self.swapper, self.strength = out, swapper, strength
        self.settings = settings_of(swapper, strength=strength)
        # Signed, but without the watermark: the figures are to be the swap's alone.
        self.marking = Marking(watermark=False, command="evaluate")
        self._prepared: tuple[Path, Source] | None = None
        (out / "results").mkdir(parents=True, exist_ok=True)
        run = out / "run.json"
        if run.exists() and (before := _read_json(run)) != self.settings:
            names = [
                key for key in self.settings if not isinstance(before, dict) or before.get(key) != self.settings[key]
            ]
            raise UsageError(
                f"{out} holds results of other settings ({', '.join(names) or 'of another version'} differ); "
                "give another -o, or remove the folder"
            )
        write_atomic(run, _json(self.settings))

    def path(self, pair: Pair) -> Path:
        """Where the result of a pair lies or will lie."""
        return pair.given or self.out / "results" / f"{pair.name}.png"

    def make(self, pair: Pair, on_step: Callable[[int, int], None]) -> dict[str, Any]:
        """See to it that the pair's result exists; returns its notes: time and memory of the swap, and the
        target's alignment, which need not be found again.

        Raises BadInputError and NoFaceError when the pair cannot be swapped.
        """
        if pair.given is not None:
            return {}
        self._make_people(pair)
        path = self.path(pair)
        notes_path = path.with_suffix(".json")
        made_from = {"source": _hash(pair.source, "SOURCE"), "target": _hash(pair.target, "TARGET")}
        notes = _read_json(notes_path) if path.exists() and notes_path.exists() else None
        if isinstance(notes, dict) and made_from.items() <= notes.items():
            return notes
        with output_lock(path):
            if self._prepared is None or self._prepared[0] != pair.source:
                self._prepared = pair.source, self.swapper.prepare(pair.source, faces=LARGEST)
            result = self.swapper.swap(
                self._prepared[1], pair.target, faces=LARGEST, strength=self.strength, on_step=on_step
            )
            self.swapper.write(result, path, marking=self.marking)
            # Last: a picture without its notes is made again.
            notes = made_from | {
                "seconds": result.report["seconds"],
                "peak_memory_bytes": peak_memory(),
                "target_affine": ffhq_affine(result.faces[0].mesh_K3, SIZE).tolist(),
                "version": latentswap.__version__,
            }
            write_atomic(notes_path, _json(notes))
        return notes

    def _make_people(self, pair: Pair) -> None:
        for path, seed in zip((pair.source, pair.target), pair.seeds or (), strict=False):
            if not path.exists():
                path.parent.mkdir(exist_ok=True)
                (image,) = self.swapper.sample([seed])
                self.swapper.write(image, path, marking=self.marking)


def peak_memory() -> int:
    """Bytes: the most that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _hash(path: Path, role: str) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise BadInputError(f"the {role} image {path} cannot be read: {error.strerror}") from error


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _read_json(path: Path) -> object:
    """The file's content; None for one that is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError):
        return None
