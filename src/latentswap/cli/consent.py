"""`latentswap consent`: what was attested about the people in source photographs; and asking for it."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import tyro

from latentswap.cli._common import Json, emit, table


def attest(sources: Sequence[Path], statement: str | None, *, skip_bad: bool = False) -> str | None:
    """`provenance.consent.consent_for`, asking on the terminal where there is one."""
    from latentswap.provenance.consent import consent_for

    terminal = all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))
    return consent_for(sources, statement, ask=_ask if terminal else None, skip_bad=skip_bad)


def _ask(question: str) -> str:
    print(question, end="", file=sys.stderr, flush=True)  # standard output is for results
    return sys.stdin.readline()


def list_consents(*, json: Json = False) -> None:
    """List what was attested, file by file."""
    from latentswap.provenance.consent import Consents

    consents = Consents()
    made = consents.all()
    rows = [("HASH", "FILE", "WHEN", "STATEMENT")]
    rows += [(one.sha256[:12], one.name, one.when, one.statement) for one in made]
    lines = [*(table(rows) if made else ["nothing was attested"]), f"kept in {consents.path}"]
    emit([asdict(one) for one in made], lines, as_json=json)


def forget(
    what: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="HASH|all")], *, json: Json = False
) -> None:
    """Forget attestations: those files are asked about again.

    Args:
        what: The first letters of a file's hash in `latentswap consent list`, or `all`.
    """
    from latentswap.provenance.consent import Consents

    gone = Consents().forget(what)
    emit([asdict(one) for one in gone], [f"forgotten: {one.sha256[:12]} {one.name}" for one in gone], as_json=json)


COMMANDS = {"list": list_consents, "forget": forget}
