"""Reading C2PA manifests: the credentials that a file carries, and what in them shows or locates somebody.

What is read was written by others. It is treated as data: no address is followed, and texts are made printable.
"""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import c2pa

from latentswap.errors import ProvenanceError

# Assertions of earlier credentials that do not go into an output, as EXIF and XMP do not: pictures and metadata.
PERSONAL = ("c2pa.thumbnail", "c2pa.metadata", "cawg.metadata", "stds.exif", "stds.iptc", "stds.xmp")
# And of an anonymised picture's, what names the people about it: author, caption, identity.
IDENTIFYING = ("stds.schema-org", "cawg.identity")
_LONGEST = 300  # characters of a text by others


@dataclass(frozen=True, kw_only=True)
class Store:
    """The credentials of a file: the newest manifest and those of the files that went in."""

    state: str  # "Trusted", "Valid" or "Invalid", as the C2PA library says
    active: str  # label of the newest manifest
    manifests: dict[str, dict[str, Any]]  # by label, as in the library's report
    results: dict[str, Any]  # of the validation
    detailed: dict[str, Any]  # the library's detailed report

    @property
    def manifest(self) -> dict[str, Any]:
        return self.manifests.get(self.active, {})

    @property
    def failures(self) -> tuple[str, ...]:
        """Codes of what makes the newest manifest invalid or untrusted."""
        return codes(self.results.get("activeManifest"), "failure")


def read_store(data: bytes | Path, media_type: str, *, anchors: str = "") -> Store | None:
    """The credentials of an encoded picture or video; None where it has none.

    anchors: certificates (PEM) of authorities that are trusted. Raises ProvenanceError for credentials that are so
    damaged that they cannot be read.
    """
    settings: dict[str, Any] = {"version": 1, "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}
    if anchors:
        settings["trust"] = {"trust_anchors": anchors}
    stream = data.open("rb") if isinstance(data, Path) else io.BytesIO(data)
    with stream:
        try:
            reader = c2pa.Reader.try_create(media_type, stream, context=c2pa.Context(c2pa.Settings.from_dict(settings)))
            if reader is None:
                return None
            with reader:
                report, detailed = json.loads(reader.json()), json.loads(reader.detailed_json())
                state = reader.get_validation_state()
        except c2pa.C2paError as error:
            if str(error).startswith("Remote"):
                raise RemoteCredentialsError(
                    f"the credentials are said to lie elsewhere, which is not followed ({text(error)})"
                ) from error
            raise ProvenanceError(f"the credentials cannot be read: {text(error)}") from error
    return Store(
        state=str(state),
        active=str(report.get("active_manifest", "")),
        manifests=report.get("manifests") or {},
        results=report.get("validation_results") or {},
        detailed=detailed,
    )


class RemoteCredentialsError(ProvenanceError):
    """The file only names an address where its credentials are said to be."""


def personal_assertions(store: Store, *, identifying: bool = False) -> tuple[str, ...]:
    """Addresses of what shows or locates somebody in all manifests of a file: thumbnails and metadata; with
    `identifying` also what names somebody."""
    left_out = PERSONAL + (IDENTIFYING if identifying else ())
    return tuple(
        f"self#jumbf=/c2pa/{label}/c2pa.assertions/{name}"
        for label, manifest in (store.detailed.get("manifests") or {}).items()
        for name in manifest.get("assertion_store") or {}
        if name.startswith(left_out)
    )


def codes(results: Any, kind: str) -> tuple[str, ...]:
    """The codes of one kind ("success", "informational", "failure") in a part of the validation's results."""
    found = results.get(kind) if isinstance(results, dict) else None
    return tuple(text(entry.get("code", "")) for entry in found or () if isinstance(entry, dict))


def text(value: object) -> str:
    """Text by others, without what would move a terminal's cursor, and not long."""
    return "".join(char if char.isprintable() else "?" for char in str(value))[:_LONGEST]
