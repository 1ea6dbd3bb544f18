"""The marks of an output, in the order in which they are put on it.

    pixels → invisible watermark → encode, with the XMP mark → sign → record the job → atomic write

Both the watermark and the signature are on unless one of them is turned off; both cannot be.
"""

import functools
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

import latentswap
from latentswap.errors import LatentSwapError, UsageError
from latentswap.media.atomic import write_atomic
from latentswap.media.image import decode
from latentswap.provenance import watermark
from latentswap.provenance.record import InputFile, JobRecord, append, check_record, sha256_of
from latentswap.types import Image, Making
from latentswap.weights.files import sha256_file

if TYPE_CHECKING:
    from latentswap.provenance.credentials import Credentials
    from latentswap.provenance.sign import Claim


_UNUSED = {"generated": ("mixer", "encoder", "identity"), "inverted": ("mixer",), "edited": ("mixer",)}


@dataclass(frozen=True, kw_only=True)
class Marking:
    """How outputs are marked. One for a job: its outputs share the number `job`.

    sign: C2PA credentials. watermark: invisible, in the pixels. name_sources: name the SOURCE as a component, with the
    credentials that it had. credentials: who signs; None for the user's own, made at first use. command: what the job
    record calls the job. Raises UsageError when both marks are off.
    """

    sign: bool = True
    watermark: bool = True
    name_sources: bool = True
    credentials: "Credentials | None" = None
    command: str = "python"
    job: str = field(default_factory=lambda: secrets.token_hex(8))

    def __post_init__(self) -> None:
        if not self.sign and not self.watermark:
            raise UsageError("Signature and watermark cannot both be turned off: an output must say what it is.")

    def check(self) -> None:
        """Refuse, before a job, what would fail at its end: credentials that cannot sign, a record that cannot be
        written. Raises ProvenanceError and ResourceError."""
        check_record()
        if self.sign:
            from latentswap.provenance.sign import check_credentials

            check_credentials(self.signer())

    def signer(self) -> "Credentials":
        """The credentials to sign with. Raises ProvenanceError and ResourceError."""
        from latentswap.provenance.credentials import load_credentials

        return load_credentials() if self.credentials is None else self.credentials

    def claim(self, making: Making, payload: int | None, networks: Mapping[str, str]) -> "Claim":
        """What the signature of one output says."""
        from latentswap.provenance.sign import Claim

        return Claim(
            making=making,
            version=latentswap.__version__,
            job=self.job,
            networks=networks,
            watermark=payload,
            name_sources=self.name_sources,
        )

    def payload(self) -> int | None:
        """The 32 bits of the watermark; None where there is to be none."""
        if not self.watermark:
            return None
        return watermark.payload_for(latentswap.__version__, self.job)


def watermarked(image: Image, marking: Marking) -> tuple[Image, int | None]:
    """The picture with the invisible watermark, and its payload. Raises ProvenanceError where it cannot carry one."""
    payload = marking.payload()
    return replace(image, pixels=watermarked_pixels(image.pixels, payload=payload)), payload


def watermarked_pixels(pixels: np.ndarray, *, payload: int | None) -> np.ndarray:
    """uint8 [H, W, 3] with the payload in it; as they are where there is none. Raises as `watermarked`."""
    return pixels if payload is None else watermark.embed(pixels, payload)


@dataclass(frozen=True, kw_only=True)
class WatermarkState:
    """Whether a file shows the invisible watermark."""

    state: Literal["found", "not found", "unknown"]
    payload: str | None = None  # 8 hexadecimal digits
    confidence: float = 0.0  # as `watermark.Detection` has it
    why: str | None = None  # of "unknown"


def look(data: bytes) -> WatermarkState:
    """Look for the watermark in an encoded picture; in an animation, in its first frame."""
    try:
        return _state(watermark.detect(decode(data, frame=0).pixels))
    except LatentSwapError as error:
        return WatermarkState(state="unknown", why=str(error))


def look_at_video(path: Path) -> WatermarkState:
    """Look for the watermark in a video's frames."""
    from latentswap.provenance.video import detect_video

    try:
        return _state(detect_video(path))
    except LatentSwapError as error:
        return WatermarkState(state="unknown", why=str(error))


def _state(found: Any) -> WatermarkState:
    if not found.found or found.payload is None:
        return WatermarkState(state="not found")
    return WatermarkState(state="found", payload=f"{found.payload:08x}", confidence=round(found.confidence, 3))


def publish(
    path: Path,
    data: bytes,
    *,
    making: Making,
    marking: Marking,
    payload: int | None,
    networks: Mapping[str, str],
    consent: str | None = None,
) -> None:
    """encoded bytes → sign → record → atomic write. payload: of the watermark in the pixels, if there is one.

    On any failure what was at `path` is untouched. Raises ProvenanceError, ResourceError and UsageError.
    """
    if marking.sign:
        from latentswap.provenance.sign import sign_bytes

        data = sign_bytes(data, marking.claim(making, payload, networks), marking.signer())
    _record(path, sha256_of(data), making, marking, payload, networks, consent)
    write_atomic(path, data)


def finish_file(
    part: Path,
    path: Path,
    *,
    making: Making,
    marking: Marking,
    payload: int | None,
    networks: Mapping[str, str],
    consent: str | None = None,
) -> None:
    """sign → record, for a finished video that will take the name `path` and does not fit in memory.

    part: where it lies now; it is signed there (`sign.sign_file`). Raises as `publish`, and OSError where the disk is
    full.
    """
    if marking.sign:
        from latentswap.provenance.sign import sign_file

        sign_file(part, marking.claim(making, payload, networks), marking.signer())
    _record(path, sha256_of(part), making, marking, payload, networks, consent)


def _record(
    path: Path,
    sha256: str,
    making: Making,
    marking: Marking,
    payload: int | None,
    networks: Mapping[str, str],
    consent: str | None,
) -> None:
    inputs = [] if making.target is None else [InputFile(role="target", sha256=sha256_of(making.target))]
    inputs += [InputFile(role="source", sha256=sha256_of(source)) for source in making.sources]
    append(
        JobRecord(
            job=marking.job,
            command=marking.command,
            deed=making.deed,
            inputs=tuple(inputs),
            output=str(path.absolute()),
            sha256=sha256,
            signed=marking.sign,
            watermark=None if payload is None else f"{payload:08x}",
            networks=networks,
            consent=consent,
        )
    )


def network_hashes(files: Mapping[str, Path], making: Making) -> dict[str, str]:
    """name → sha256 of the files of the networks that had a part in it. A file is read once in a process.

    files: what the networks were loaded from.
    """
    hashes, unused = {}, _UNUSED.get(making.deed, ())
    for name, path in files.items():
        if name in unused:
            continue
        status = path.stat()
        hashes[name] = _hash(path, status.st_size, status.st_mtime_ns)
    return hashes


@functools.cache
def _hash(path: Path, size: int, stamp: int) -> str:
    return sha256_file(path)
