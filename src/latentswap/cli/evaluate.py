"""`latentswap evaluate`: how good swaps are, in figures."""

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from latentswap.cli._common import Json, emit, step_progress
from latentswap.cli._options import (
    Consent,
    Device,
    Inversion,
    Method,
    Offline,
    Output,
    Strength,
    check_strength,
    parse_numbers,
)
from latentswap.cli.consent import attest
from latentswap.cli.swap import check_lists, load
from latentswap.errors import UsageError

_MOST_PAIRS = 1_000_000


def pairs(
    *,
    out: Output,
    folder: Path | None = None,
    seeds: str = "",
    method: Method = "latentswap",
    inversion: Inversion = "refine",
    strength: Strength = 1.0,
    judge: Path | None = None,
    retrieval: int = 0,
    shard: str = "",
    consent: Consent = None,
    device: Device = "cpu",
    offline: Offline = False,
    json: Json = False,
) -> int:
    """Swap pairs of pictures and measure the results: identity, pose, expression, background, seams, time.

    Args:
        out: Folder for results/, report.json and report.html. The same command continues a run that was stopped.
        folder: A folder with a list pairs.csv or pairs.json: source,target[,result].
        seeds: In place of a folder: generated pairs by number, as 0-499. Nobody in them exists.
        judge: An identity network that had no part in training: .onnx, or .safetensors (see docs/evaluation.md).
        retrieval: Look for each result's source among this many people.
        shard: K/N: swap only the K-th of N parts and measure nothing; the command without it then measures all.
    """
    check_strength(strength)
    if (folder is None) == (not seeds):
        raise UsageError("Give one of --folder DIR and --seeds 0-499.")
    if retrieval and not 2 <= retrieval <= _MOST_PAIRS:
        raise UsageError(f"--retrieval is {retrieval}; it runs from 2 to {_MOST_PAIRS:,}.")
    numbers = parse_numbers(seeds, what="--seeds", highest=_MOST_PAIRS) if seeds else ()
    _check_out(out)
    from latentswap.evaluate.pairs import generated_pairs, parse_shard, read_pairs
    from latentswap.evaluate.pairs import shard as part_of

    part = parse_shard(shard) if shard else None
    rows = read_pairs(folder) if folder is not None else generated_pairs(numbers, out)
    network = None
    if judge is not None:
        from latentswap.evaluate.judge import MeshPoints, load_judge

        network = load_judge(judge, MeshPoints.load(offline=offline))
    if folder is not None:
        attest([pair.source for pair in rows if pair.given is None], consent, skip_bad=True)
    check_lists()
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        swapper = load(stack, method=method, inversion=inversion, device=device, offline=offline)
        bars = stack.enter_context(step_progress())
        if part is not None:
            from latentswap.evaluate.run import swap_pairs

            mine = part_of(rows, *part)
            failures = swap_pairs(mine, swapper, out, strength=strength, on_piece=bars)
            lines = [f"{len(mine) - len(failures)} of {len(mine)} pairs of part {shard} have results in {out}"]
            data = {"pairs": len(mine), "failed": [{"name": f.pair.name, "error": f.error} for f in failures]}
            emit(data, lines + [f"  failed: {f.pair.name}: {f.error}" for f in failures], as_json=json)
            return _code(len(mine) - len(failures), failures)
        name = None if judge is None else judge.name
        return _measure(
            rows, swapper, out, judge=network, name=name, strength=strength, retrieval=retrieval, bars=bars, json=json
        )


def _measure(
    rows: list[Any],
    swapper: Any,
    out: Path,
    *,
    judge: Any,
    name: str | None,
    strength: float,
    retrieval: int,
    bars: Any,
    json: bool,
) -> int:
    from latentswap.evaluate.run import evaluate_pairs

    report = evaluate_pairs(
        rows,
        swapper,
        out,
        judge=judge,
        judge_name=name,
        strength=strength,
        retrieval=retrieval,
        on_piece=bars,
    )
    emit(report.data, [*report.lines(), str(out / "report.html")], as_json=json)
    return _code(report.data["scored"], report.failures)


def _code(worked: int, failures: Any) -> int:
    """0 unless every pair failed: then the exit code of the first failure. A failed pair is a finding, not an error."""
    if failures:
        print(f"{len(failures)} pairs failed; they are listed with their reasons", file=sys.stderr)
    return 0 if worked or not failures else failures[0].exit_code


def _check_out(out: Path) -> None:
    from latentswap.media.atomic import check_destination

    existing = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not existing.is_dir():
        raise UsageError(f"The output of evaluate is a folder, and {existing} is a file.")
    check_destination(existing / "report.json")


COMMANDS = {"pairs": pairs}
