"""A whole evaluation: swap what is missing, score, retrieve, report."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from latentswap.errors import BadInputError, NoFaceError, ProtectedPersonError
from latentswap.evaluate.judge import Judge
from latentswap.evaluate.pairs import Pair, Results
from latentswap.evaluate.report import Failure, Report, build
from latentswap.evaluate.score import Score, Scorer, retrieve
from latentswap.media.atomic import write_atomic
from latentswap.pipeline import Swapper
from latentswap.swappers.base import OnStep

OnPiece = Callable[[str], OnStep]
"""Called with the name of a piece of work; gives the callback of its (done, total)."""


def silent(label: str) -> OnStep:
    """The default `OnPiece`: nobody is listening."""
    return lambda done, total: None


def swap_pairs(
    pairs: Sequence[Pair], swapper: Swapper, out: Path, *, strength: float = 1.0, on_piece: OnPiece = silent
) -> list[Failure]:
    """Swap the pairs that have no result yet, and score nothing: one part of a run that several processes share.

    Returns the pairs that cannot be swapped. Raises UsageError when `out` holds results of other settings, and
    ResourceError when it cannot be written.
    """
    results, failures = Results(out, swapper, strength=strength), []
    advance = on_piece("swaps")
    for done, pair in enumerate(pairs, 1):
        try:
            results.make(pair, on_piece(pair.name))
        except (BadInputError, NoFaceError, ProtectedPersonError) as error:
            failures.append(_failure(pair, error))
        advance(done, len(pairs))
    return failures


def evaluate_pairs(
    pairs: Sequence[Pair],
    swapper: Swapper,
    out: Path,
    *,
    judge: Judge | None = None,
    judge_name: str | None = None,
    strength: float = 1.0,
    retrieval: int = 0,
    on_piece: OnPiece = silent,
) -> Report:
    """Swap the pairs that have no result, score all of them, and write report.json and report.html to `out`.

    judge: a network besides the training network; with a method `geometry` it measures pose and expression too.
    retrieval: size of the gallery in which the source is looked for; 0 for none. A pair that fails is listed in the
    report, and the run goes on. Raises as `swap_pairs`.
    """
    results, scorer = Results(out, swapper, strength=strength), Scorer(swapper, judge)
    scores: list[Score] = []
    failures: list[Failure] = []
    peaks: list[int] = []
    advance = on_piece("pairs")
    for done, pair in enumerate(pairs, 1):
        try:
            notes = results.make(pair, on_piece(pair.name))
            scores.append(scorer.score(pair, results.path(pair), notes))
            peaks += [notes["peak_memory_bytes"]] if "peak_memory_bytes" in notes else []
        except (BadInputError, NoFaceError, ProtectedPersonError) as error:
            failures.append(_failure(pair, error))
        advance(done, len(pairs))
    ranks, gallery = [], 0
    if retrieval and scores:
        sources = len({score.pair.source for score in scores})
        gallery = max(retrieval, sources)
        ranks = retrieve(scores, scorer.strangers(gallery - sources, on_piece("gallery")))
    report = build(
        scores,
        ranks,
        failures,
        settings=results.settings,
        judge=judge_name or (type(judge).__name__ if judge else None),
        gallery=gallery,
        peak_memory=max(peaks, default=None),
    )
    write_atomic(out / "report.json", (json.dumps(report.data, indent=1, ensure_ascii=False) + "\n").encode())
    write_atomic(out / "report.html", report.page().encode())
    return report


def _failure(pair: Pair, error: BadInputError | NoFaceError | ProtectedPersonError) -> Failure:
    return Failure(pair=pair, error=str(error), kind=type(error).__name__, exit_code=error.exit_code)
