"""Scores as a table, as JSON and as one HTML page that needs no other file."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import latentswap
from latentswap.evaluate.pairs import Pair
from latentswap.evaluate.score import COLUMNS, Score


@dataclass(frozen=True, kw_only=True, eq=False)
class Failure:
    """A pair that could not be swapped or measured."""

    pair: Pair
    error: str
    kind: str  # the error's class
    exit_code: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """What a run found. `data` is the content of report.json; the scores keep the pictures for the page."""

    data: dict[str, Any]
    scores: Sequence[Score] = field(repr=False)
    failures: Sequence[Failure]

    def lines(self) -> list[str]:
        """The table of means for people."""
        rows = [("measure", "mean", "median", "worst tenth", "unit", "what")]
        for name, of in self.data["measures"].items():
            unit, text = COLUMNS[name]
            mean, median, worst = (f"{of[key]:.3f}" for key in ("mean", "median", "worst_tenth"))
            rows.append((name, mean, median, worst, unit, text))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines += _sentences(self.data)
        lines += [f"  failed: {row['name']}: {row['error']}" for row in self.data["failed"]]
        return lines

    def page(self) -> str:
        """A self-contained HTML page, worst pairs first."""
        columns = list(self.data["measures"])
        ranks = [name for name in ("judge_rank", "training_rank") if self.data["retrieval"].get(name[:-5])]
        scores = {score.pair.name: score for score in self.scores}
        key = next((name for name in ("judge_to_source", "training_to_source") if name in columns), None)
        rows = sorted(self.data["pairs"], key=lambda row: row[key]) if key else []
        body = "\n".join(_row(row, scores[row["name"]].thumbnails, columns + ranks) for row in rows)
        means = "\n".join(
            f"<tr><th>{name}</th>"
            + "".join(f"<td>{of[key]:.3f}</td>" for key in ("mean", "median", "worst_tenth"))
            + f"<td>{html.escape(COLUMNS[name][0])}</td><td class=t>{html.escape(COLUMNS[name][1])}</td></tr>"
            for name, of in self.data["measures"].items()
        )
        failed = "".join(
            f"<li>{html.escape(row['name'])}: {html.escape(row['error'])}</li>" for row in self.data["failed"]
        )
        return _PAGE.format(
            sentences="".join(f"<p>{html.escape(line)}</p>" for line in _sentences(self.data)),
            means=means,
            failed=f"<h2>Failed</h2><ul>{failed}</ul>" if failed else "",
            heads="".join(f"<th>{name.replace('_', ' ')}</th>" for name in columns + ranks),
            rows=body,
        )


def build(
    scores: Sequence[Score],
    ranks: Sequence[dict[str, int]],
    failures: Sequence[Failure],
    *,
    settings: dict[str, Any],
    judge: str | None,
    gallery: int,
    peak_memory: int | None,
) -> Report:
    """Put a run's findings together. `ranks` is empty, or one a score, among `gallery` people."""
    pairs = []
    for index, score in enumerate(scores):
        row: dict[str, Any] = {"name": score.pair.name, "source": score.pair.source.name}
        row |= {"target": score.pair.target.name} | score.figures | (dict(ranks[index]) if ranks else {})
        pairs.append(row)
    retrieval: dict[str, Any] = {"gallery": gallery} if ranks else {}
    for name in ("judge", "training"):
        if ranks and f"{name}_rank" in ranks[0]:
            retrieval[name] = round(float(np.mean([row[f"{name}_rank"] == 1 for row in ranks])), 4)
    data = {
        "version": latentswap.__version__,
        "settings": settings,
        "judge": judge,
        "scored": len(pairs),
        "failed": [
            {"name": f.pair.name, "source": f.pair.source.name, "target": f.pair.target.name}
            | {"error": f.error, "type": f.kind}
            for f in failures
        ],
        "measures": _summary(pairs),
        "retrieval": retrieval,
        "peak_memory_bytes": peak_memory,
        "pairs": pairs,
    }
    return Report(data=data, scores=scores, failures=failures)


def _summary(pairs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean, median and the value that the worst tenth of the pairs passes, of every column that any pair has."""
    found = {}
    for name in COLUMNS:
        values = [row[name] for row in pairs if name in row]
        if values:
            share = 0.1 if name.endswith("_to_source") else 0.9  # more is better for the source's identity alone
            figures = {"mean": np.mean(values), "median": np.median(values), "worst_tenth": np.quantile(values, share)}
            found[name] = {key: round(float(value), 5) for key, value in figures.items()}
    return found


def _sentences(data: dict[str, Any]) -> list[str]:
    """What is said besides the table."""
    lines = [f"{data['scored']} pairs scored, {len(data['failed'])} failed."]
    settings = ", ".join(f"{key} {value}" for key, value in data["settings"].items() if not isinstance(value, dict))
    lines.append(f"latentswap {data['version']}, {settings}; judge: {data['judge'] or 'none'}.")
    for name in ("judge", "training"):
        if name in data["retrieval"]:
            who = "judge" if name == "judge" else "training network"
            share, gallery = data["retrieval"][name], data["retrieval"]["gallery"]
            lines.append(f"Retrieval by the {who}: the source is first of {gallery} for {share:.1%} of the results.")
    if data["peak_memory_bytes"]:
        lines.append(f"Peak memory of the swaps: {data['peak_memory_bytes'] / 1e9:.2f} GB.")
    return lines


def _row(row: dict[str, Any], thumbnails: tuple[bytes, bytes, bytes], columns: list[str]) -> str:
    pictures = "".join(
        f'<img loading="lazy" alt="{alt}" src="data:image/jpeg;base64,{base64.b64encode(data).decode()}">'
        for alt, data in zip(("source", "target", "result"), thumbnails, strict=True)
    )
    cells = "".join(f"<td>{_cell(row.get(name))}</td>" for name in columns)
    return f"<tr><td class=t>{html.escape(row['name'])}</td><td class=p>{pictures}</td>{cells}</tr>"


def _cell(value: float | int | None) -> str:
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.3f}"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>latentswap evaluate pairs</title><style>
body {{ font: 14px/1.4 system-ui, sans-serif; margin: 2em; color: #222 }}
table {{ border-collapse: collapse }} td, th {{ padding: 3px 9px; border-bottom: 1px solid #ddd; text-align: right }}
th {{ font-weight: 600; vertical-align: bottom }} .t {{ text-align: left }} .p {{ white-space: nowrap }}
img {{ width: 112px; height: 112px; margin-right: 3px }}
</style></head><body>
<h1>latentswap evaluate pairs</h1>
{sentences}
<p>Every picture in the column of results is synthetic.</p>
<table><tr><th></th><th>mean</th><th>median</th><th>worst tenth</th><th>unit</th><th class=t>what</th></tr>
{means}
</table>
{failed}
<h2>Pairs, the least like their source first</h2>
<table><tr><th></th><th class=t>source, target, result</th>{heads}</tr>
{rows}
</table></body></html>
"""
