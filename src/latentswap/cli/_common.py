"""What the commands share: results as text or JSON, and progress."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any

import tyro

Json = Annotated[bool, tyro.conf.arg(help="print the result as JSON, for programs"), tyro.conf.FlagCreatePairsOff]


def emit(data: Any, lines: Iterable[str], *, as_json: bool) -> None:
    """Print a result on standard output: `data` as JSON, or `lines` for people."""
    if as_json:
        print(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False))
    else:
        for line in lines:
            print(line)


def table(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows as lines, their columns aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


@contextlib.contextmanager
def fetch_progress() -> Iterator[Callable[[int, int, str], None]]:
    """A progress callback for `weights_path` that draws bars with the time left on standard error.

    Where standard error is no terminal, it prints one line for each file instead.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    tasks: dict[str, Any] = {}
    if not console.is_terminal:

        def announce(done: int, total: int, label: str) -> None:
            if label not in tasks:
                tasks[label] = None
                print(f"fetching {label} ({megabytes(total)})", file=sys.stderr, flush=True)

        yield announce
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, redirect_stdout=False) as bars:

        def advance(done: int, total: int, label: str) -> None:
            if label not in tasks:
                tasks[label] = bars.add_task(f"fetching {label}", total=total)
            bars.update(tasks[label], completed=done)

        yield advance


@contextlib.contextmanager
def step_progress() -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """Bars with the time left for work in steps: `bars(label)` gives the callback of one piece of work.

    Where standard error is no terminal, nothing is drawn.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda label: lambda done, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    options = {"console": console, "transient": True, "redirect_stdout": False}  # results never go to standard error
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), **options) as bars:

        def start(label: str) -> Callable[[int, int], None]:
            task = bars.add_task(label, total=None)

            def advance(done: int, total: int) -> None:
                bars.update(task, completed=done, total=total)

            return advance

        yield start
