"""`latentswap verify`: what files say about their making, and whether it can be believed."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from latentswap.cli._common import Json, emit
from latentswap.errors import BadInputError, UsageError

if TYPE_CHECKING:
    from latentswap.provenance.verify import Origin, Verification

_WENT_IN = {"parentOf": "changed", "componentOf": "put in", "inputTo": "made from"}


def verify(
    files: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE [FILE ...]")],
    *,
    trust: Annotated[Path | None, tyro.conf.arg(metavar="PEM")] = None,
    json: Json = False,
) -> int:
    """Say of pictures and videos who signed them, what was done, and which marks they carry. Nothing is fetched.

    Exit code: 0 signed by somebody trusted here, nothing invalid; 4 signed by somebody not trusted here; 5 not signed,
    but marked; 7 the signature is invalid; 8 made from a file whose credentials were invalid; 9 no marks, which proves
    nothing; 3 a file that cannot be read. Of several files, the worst: 7, 8, 3, 9, 5, 4, 0.

    Args:
        files: Pictures (JPEG, PNG, WebP, AVIF, GIF, TIFF) and videos (MP4, MOV, AVI, MKV, WebM).
        trust: Certificates to trust beside your own, such as the C2PA trust list.
    """
    from latentswap.provenance.verify import EXIT_CODES
    from latentswap.provenance.verify import verify as verify_file

    if not files:
        raise UsageError("Give a picture or a video to verify.")
    found, lines, codes = [], [], []
    for path in files:
        try:
            verification = verify_file(path, trust=trust)
        except BadInputError as error:
            if len(files) == 1:
                raise
            print(f"error: {error}", file=sys.stderr)
            found.append({"path": str(path), "error": str(error)})
            codes.append(error.exit_code)
            continue
        found.append(verification.as_dict())
        lines += describe(verification)
        codes.append(verification.exit_code)
    emit(found, lines, as_json=json)
    order = list(EXIT_CODES.values())
    order.insert(order.index(EXIT_CODES["origin_invalid"]), BadInputError.exit_code)
    return max(codes, key=order.index)


def describe(found: "Verification") -> list[str]:
    """A verification as text."""
    rows: list[tuple[str, str]] = []
    if found.signature != "none":
        issuer = f" (certified by {found.issuer})" if found.issuer and found.issuer != found.signer else ""
        rows.append(("signer", f"{found.signer or 'unknown'}{issuer}"))
        if found.time:
            rows.append(("time", found.time + (", time-stamped" if found.time_stamped else ", as the signer states")))
        rows.append(("made by", found.made_by or "unknown"))
    rows += [("problem", problem) for problem in found.problems]
    for action in found.actions:
        details = ", ".join(filter(None, (action.source_type, action.description)))
        rows.append(("done", action.action + (f": {details}" if details else "")))
    rows += [("from", _origin(origin)) for origin in found.origins]
    if found.mark:
        rows.append(("metadata", ", ".join(f"{key} {value}" for key, value in found.mark.items())))
    rows.append(("watermark", _watermark(found)))
    width = max(len(name) for name, _ in rows)
    return [f"{found.path}: {found.meaning}", *(f"  {name.ljust(width)}  {value}" for name, value in rows)]


def _origin(origin: "Origin") -> str:
    states = {"none": "without credentials", "not kept": "its credentials were not kept"}
    state = states.get(origin.credentials, f"credentials {origin.credentials}")
    by = f" (by {origin.made_by})" if origin.made_by else ""
    return f"{_WENT_IN.get(origin.relationship, origin.relationship)}: {origin.title or 'a file'}, {state}{by}"


def _watermark(found: "Verification") -> str:
    if found.watermark.state != "found":
        return found.watermark.state + (f": {found.watermark.why}" if found.watermark.why else "")
    stated = (found.job or {}).get("watermark")
    agrees = "" if stated is None else (", as signed" if stated == found.watermark.payload else ", NOT the one signed")
    return f"found: {found.watermark.payload}{agrees}, confidence {found.watermark.confidence:.2f}"
