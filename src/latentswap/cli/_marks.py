"""The options that turn marks off, and the check of everything that marks before any model loads."""

import sys
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    from latentswap.provenance.apply import Marking

Sign = Annotated[bool, tyro.conf.arg(help="sign the output (C2PA), see docs/provenance.md")]
Watermark = Annotated[bool, tyro.conf.arg(help="mark the output's pixels invisibly; this or the signature has to stay")]
NameSource = Annotated[
    bool, tyro.conf.arg(help="name the SOURCE in the credentials, with those that it has; never a picture or its name")
]


def marking_for(command: str, *, sign: bool, watermark: bool, name_source: bool = True) -> "Marking":
    """How a job's outputs are marked. Raises UsageError when nothing is left, ProvenanceError and ResourceError when
    it could not be done."""
    from latentswap.provenance.apply import Marking

    marking = Marking(sign=sign, watermark=watermark, name_sources=name_source, command=command)
    if sign:
        from latentswap.provenance.credentials import credentials_folder, has_credentials

        if not has_credentials():
            print(
                f"note: outputs are signed; local credentials are made in {credentials_folder()}. Others see them as "
                "valid but untrusted: docs/provenance.md",
                file=sys.stderr,
            )
    marking.check()
    return marking
