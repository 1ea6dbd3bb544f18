"""Signed provenance: C2PA manifests, by c2pa-python.

A manifest says who signed, what was done by which software and networks, and from what: the TARGET as its parent, the
SOURCE as a component, each with the credentials that it had. Thumbnails are never embedded, addresses never followed.
C2PA specification 2.4 (https://spec.c2pa.org), IPTC digital source types
(https://cv.iptc.org/newscodes/digitalsourcetype/).
"""

import contextlib
import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Literal

import c2pa
import PIL.Image

from latentswap.errors import ProvenanceError
from latentswap.provenance.certificates import certificates, check_valid
from latentswap.provenance.credentials import Credentials
from latentswap.provenance.store import personal_assertions, read_store
from latentswap.types import Making

JOB_LABEL = "latentswap.job"  # the assertion with the job's number, the networks and the watermark
SIGNED_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".mp4", ".mov")
_IPTC = "http://cv.iptc.org/newscodes/digitalsourcetype/"
_DEEDS = {
    "swapped": "faces replaced by the face of the source",
    "anonymized": "faces replaced by people who do not exist",
    "edited": "faces changed by their latent codes",
    "generated": "a person who does not exist, made by a generator",
    "inverted": "the picture that a generator makes of a face's latent code",
}
_BROKEN = "its credentials are damaged and could not be kept"
_WITHHELD = "its credentials could not be freed of pictures and metadata, and were not kept"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a signature vouches for."""

    making: Making
    version: str  # of this project
    job: str
    when: datetime = field(default_factory=lambda: datetime.now(UTC))
    networks: Mapping[str, str] = field(default_factory=dict)  # name → sha256
    watermark: int | None = None
    name_sources: bool = True


@dataclass(frozen=True, kw_only=True)
class _Ingredient:
    """A file that went in, as the manifest names it."""

    name: str  # how the actions refer to it
    title: str
    relationship: Literal["parentOf", "componentOf", "inputTo"]
    media_type: str = "application/octet-stream"
    note: str | None = None
    data: bytes | Path | None = None  # with credentials to be kept; None: there are none
    redactions: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        # An identity of our own: that of the file, where its XMP has one, would lead back to it.
        told = {"title": self.title, "relationship": self.relationship, "format": self.media_type}
        told |= {"label": self.name, "instance_id": f"xmp.iid:{self.name}"}
        return told | ({"description": self.note} if self.note else {})


def manifest(claim: Claim, ingredients: list[_Ingredient]) -> dict[str, Any]:
    """The manifest's definition, as c2pa-python takes it. `c2pa.opened` is added for the parent when it is signed."""
    agent = {"name": "latentswap", "version": claim.version}
    common = {"softwareAgent": agent, "when": claim.when.isoformat(timespec="seconds").replace("+00:00", "Z")}
    making, actions = claim.making, []
    placed = [i.name for i in ingredients if i.relationship == "componentOf"]
    if placed:
        actions.append({"action": "c2pa.placed", "parameters": {"ingredientIds": placed}, **common})
    kind = "trainedAlgorithmicMedia" if making.whole else "compositeWithTrainedAlgorithmicMedia"
    done: dict[str, Any] = {
        "action": "c2pa.created" if making.whole else "c2pa.edited",
        "digitalSourceType": _IPTC + kind,
        "description": _DEEDS[making.deed],
        **common,
    }
    if inputs := [i.name for i in ingredients if i.relationship == "inputTo"]:
        done["parameters"] = {"ingredientIds": inputs}
    actions.append(done)
    if claim.watermark is not None:
        actions.append({"action": "c2pa.watermarked.unbound", **common})
    redacted = [address for ingredient in ingredients for address in ingredient.redactions]
    actions += [
        {"action": "c2pa.redacted", "reason": "c2pa.PII.present", "parameters": {"redacted": address}, **common}
        for address in redacted
    ]
    job = {
        "job": claim.job,
        "deed": making.deed,
        "method": making.method,
        "watermark": None if claim.watermark is None else f"{claim.watermark:08x}",
        "networks": dict(claim.networks),
    }
    told = {
        "claim_generator_info": [agent],
        "assertions": [{"label": "c2pa.actions", "data": {"actions": actions}}, {"label": JOB_LABEL, "data": job}],
        # Those without credentials: a file with some is added from its bytes.
        "ingredients": [i.as_json() for i in ingredients if i.data is None],
    }
    return told | ({"redactions": redacted} if redacted else {})


def sign_bytes(data: bytes, claim: Claim, credentials: Credentials) -> bytes:
    """An encoded picture or video with the claim's manifest in it, signed.

    Raises ProvenanceError when the format cannot carry a signature or signing fails.
    """
    media_type = sniff(data)
    if media_type is None:
        raise ProvenanceError(
            f"a file that starts with {data[:8]!r} cannot be signed; write {', '.join(SIGNED_SUFFIXES)}"
        )
    out = io.BytesIO()
    _sign(io.BytesIO(data), out, media_type, claim, credentials)
    return out.getvalue()


def sign_file(part: Path, claim: Claim, credentials: Credentials) -> None:
    """Sign a finished file that does not have its final name yet, in its own place: for what does not fit in memory.

    The signed copy is written beside it and takes its name; where that fails, the copy is removed and `part` is as it
    was. Raises ProvenanceError, and OSError where the disk is full.
    """
    with part.open("rb") as source:
        media_type = sniff(source.read(64))
    if media_type is None:
        raise ProvenanceError(f"{part} cannot be signed; write {', '.join(SIGNED_SUFFIXES)}")
    # The name that `media.atomic` gives to its temporary files, so that it sweeps this one, too, after a kill.
    signed = part.with_name(f"{part.name.removesuffix('.part')}.signed.part")
    try:
        with part.open("rb") as source, _NewFile(signed) as target:
            try:
                _sign(source, target, media_type, claim, credentials)
            except ProvenanceError:
                if target.failure is not None:
                    raise target.failure from None
                raise
            os.fsync(target.fileno())
        os.replace(signed, part)
    finally:
        signed.unlink(missing_ok=True)


def check_credentials(credentials: Credentials) -> None:
    """Sign a tiny picture, so that credentials that cannot sign are refused before a job and not at its end.

    Raises ProvenanceError.
    """
    check_valid(certificates(credentials.chain_pem)[0])
    tiny = io.BytesIO()
    PIL.Image.new("RGB", (8, 8)).save(tiny, format="PNG")
    claim = Claim(making=Making(deed="generated"), version="0", job="check")
    signed = sign_bytes(tiny.getvalue(), claim, credentials)
    store = read_store(signed, "image/png")
    if store is None or store.state == "Invalid":
        problems = ", ".join(store.failures if store else ["no manifest"])
        raise ProvenanceError(
            f"what these credentials sign does not verify ({problems}); import others (`latentswap credentials import`)"
        )


def sniff(data: bytes) -> str | None:
    """The media type of a format that can carry a manifest, from a file's first 64 bytes; None for any other."""
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data[:4] == b"RIFF":
        return {b"WEBP": "image/webp", b"AVI ": "video/avi"}.get(data[8:12])
    if data[4:8] == b"ftyp":
        brands = data[8:64]
        if b"avif" in brands or b"avis" in brands:
            return "image/avif"
        if b"hei" in brands or b"mif1" in brands:
            return "image/heic"
        return "video/quicktime" if brands[:4] == b"qt  " else "video/mp4"
    return None


def _ingredients(claim: Claim) -> list[_Ingredient]:
    making, found = claim.making, []
    if not making.whole:
        found.append(_ingredient(making.target, "target", "parentOf", identifying=making.deed == "anonymized"))
    if claim.name_sources:
        relationship = "inputTo" if making.whole else "componentOf"
        several = len(making.sources) > 1
        for number, data in enumerate(making.sources, 1):
            title = f"source {number}" if several else "source"
            found.append(_ingredient(data, title, relationship))
    return found


def _ingredient(data: bytes | Path | None, title: str, relationship: Any, *, identifying: bool = False) -> _Ingredient:
    """A file as an ingredient; one that is damaged, or of a format without manifests, is only named."""
    named = _Ingredient(name=title.replace(" ", "-"), title=title, relationship=relationship)
    if data is None:
        return named
    with _opened(data) as file:
        media_type = sniff(file.read(64))
    if media_type is None:
        return named
    known = {"name": named.name, "title": title, "relationship": relationship, "media_type": media_type}
    if isinstance(data, bytes) and b"jumb" not in data:
        return _Ingredient(**known)
    try:
        store = read_store(data, media_type)
    except ProvenanceError:
        return _Ingredient(**known, note=_BROKEN)
    if store is None:
        return _Ingredient(**known)
    return _Ingredient(**known, data=data, redactions=personal_assertions(store, identifying=identifying))


def _sign(source: Any, target: Any, media_type: str, claim: Claim, credentials: Credentials) -> None:
    ingredients = _ingredients(claim)
    try:
        _sign_once(source, target, media_type, manifest(claim, ingredients), ingredients, claim, credentials)
    except _IngredientError:
        # Damaged in a way that shows late. What cannot be kept as it should be is named, and said not to be kept.
        bare = [_without_credentials(ingredient) for ingredient in ingredients]
        source.seek(0)
        target.seek(0)
        target.truncate()
        _sign_once(source, target, media_type, manifest(claim, bare), bare, claim, credentials)


class _IngredientError(ProvenanceError):
    """Signing failed with ingredients that have credentials, and may not without."""


def _without_credentials(ingredient: _Ingredient) -> _Ingredient:
    if ingredient.data is None:
        return ingredient
    return _Ingredient(
        name=ingredient.name,
        title=ingredient.title,
        relationship=ingredient.relationship,
        media_type=ingredient.media_type,
        note=_WITHHELD,
    )


def _sign_once(
    source: Any,
    target: Any,
    media_type: str,
    definition: dict[str, Any],
    ingredients: list[_Ingredient],
    claim: Claim,
    credentials: Credentials,
) -> None:
    settings = {
        "version": 1,
        "builder": {"thumbnail": {"enabled": False}},
        "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
    }
    kept = [ingredient for ingredient in ingredients if ingredient.data is not None]
    failure: list[BaseException] = []
    try:
        with c2pa.Builder(definition, c2pa.Context(c2pa.Settings.from_dict(settings))) as builder:
            if claim.making.whole:
                kind = c2pa.C2paDigitalSourceType.TRAINED_ALGORITHMIC_MEDIA
                builder.set_intent(c2pa.C2paBuilderIntent.CREATE, kind)
            else:
                builder.set_intent(c2pa.C2paBuilderIntent.EDIT)
            for ingredient in kept:
                with _opened(ingredient.data) as file:
                    builder.add_ingredient(ingredient.as_json(), ingredient.media_type, file)
            with _signer(credentials, failure) as signer:
                builder.sign(signer, media_type, source, target)
    except c2pa.C2paError as error:
        if failure:
            raise ProvenanceError(f"the signing function failed: {failure[0]}; nothing was written") from failure[0]
        if kept and not isinstance(error, c2pa.C2paError.Signature):  # pyright: ignore[reportAttributeAccessIssue]
            raise _IngredientError(str(error)) from error
        raise ProvenanceError(
            f"the file could not be signed ({error}); check `latentswap credentials show`, or write without a "
            "signature (--no-sign)"
        ) from error


@contextlib.contextmanager
def _signer(credentials: Credentials, failure: list[BaseException]) -> Iterator[c2pa.Signer]:
    """The signer of c2pa-python. failure: gets what the user's own function raised, which would be lost otherwise."""
    algorithm = c2pa.C2paSigningAlg[credentials.algorithm.upper()]
    if credentials.key_pem is not None:
        chain, key = credentials.chain_pem.encode(), credentials.key_pem.encode()
        with c2pa.Signer.from_info(c2pa.C2paSignerInfo(algorithm, chain, key, credentials.time_stamper)) as signer:
            yield signer
        return
    function = credentials.sign
    assert function is not None  # noqa: S101 - checked by Credentials

    def sign(data: bytes) -> bytes:
        try:
            return function(data)
        except BaseException as error:
            failure.append(error)
            return b""

    with c2pa.Signer.from_callback(sign, algorithm, credentials.chain_pem, credentials.time_stamper) as signer:
        yield signer


@contextlib.contextmanager
def _opened(data: bytes | Path | None) -> Iterator[IO[bytes]]:
    if isinstance(data, Path):
        with data.open("rb") as file:
            yield file
    else:
        yield io.BytesIO(data or b"")


class _NewFile(io.FileIO):
    """A file made for its owner alone, which remembers why writing failed: c2pa-python only says that it did."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "x+b", opener=lambda name, flags: os.open(name, flags, 0o600))
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            written = super().write(data)
            while written < len(data):
                written += super().write(data[written:])
            return written
        except OSError as error:
            self.failure = error
            raise
