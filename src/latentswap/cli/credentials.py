"""`latentswap credentials`: who signs."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from latentswap.cli._common import Json, emit, table

if TYPE_CHECKING:
    from latentswap.provenance.credentials import Description

Name = Annotated[
    str | None, tyro.conf.arg(help="what verifiers show as the signer; it is published in every signed file")
]
TimeStamper = Annotated[
    str | None,
    tyro.conf.arg(metavar="URL", help="time-stamp authority (RFC 3161), asked over the network at every signature"),
]


def init(
    *,
    name: Name = None,
    time_stamper: TimeStamper = None,
    force: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    json: Json = False,
) -> None:
    """Make a local certificate authority and sign with it. The first job does the same.

    Args:
        force: Replace the credentials that there are.
    """
    from latentswap.provenance.credentials import LOCAL_NAME, create_local

    _show(create_local(name=LOCAL_NAME if name is None else name, time_stamper=time_stamper, force=force), as_json=json)


def import_(
    *,
    chain: Annotated[Path, tyro.conf.arg(metavar="PEM", help="certificates, the signer's first")],
    key: Annotated[Path, tyro.conf.arg(metavar="PEM", help="the signer's key: PKCS #8, not encrypted")],
    time_stamper: TimeStamper = None,
    json: Json = False,
) -> None:
    """Sign with a certificate of a public or company authority from now on; both files are copied."""
    from latentswap.provenance.credentials import import_credentials

    _show(import_credentials(chain, key, time_stamper=time_stamper), as_json=json)


def show(*, json: Json = False) -> None:
    """Say who signs, until when, and where the files lie. Exit code 7 when there are no credentials yet."""
    from latentswap.provenance.credentials import describe

    _show(describe(), as_json=json)


def _show(found: "Description", *, as_json: bool) -> None:
    authority = found.folder / ("ca.pem" if found.kind == "local" else "chain.pem")
    rows = {
        "kind": found.kind,
        "signer": found.name,
        "issuer": found.issuer,
        "algorithm": found.algorithm,
        "valid until": f"{found.not_after:%Y-%m-%d}",
        "fingerprint": found.fingerprint,
        "time stamps": found.time_stamper or "none (no network)",
        "for others to trust": str(authority),
    }
    emit({key.replace(" ", "_"): value for key, value in rows.items()}, table(list(rows.items())), as_json=as_json)


COMMANDS: dict[str, Callable[..., None]] = {"init": init, "import": import_, "show": show}
