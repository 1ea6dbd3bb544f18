"""What a file says about its making, and whether it can be believed: the free detector.

Three marks are looked for: signed credentials (C2PA), the statement in the metadata (XMP), the watermark in the pixels.
Only a signature can be checked against who signed; the other two say that a program claimed it. A file that shows none
of them may still be synthetic: marks can be removed.
"""

import os
import stat
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from latentswap.errors import BadInputError, LatentSwapError, ProvenanceError, TooLargeError, UnsupportedMediaError
from latentswap.media.image import MAX_BYTES
from latentswap.provenance.apply import WatermarkState, look, look_at_video
from latentswap.provenance.credentials import trust_anchors
from latentswap.provenance.mark import read_mark
from latentswap.provenance.sign import JOB_LABEL, sniff
from latentswap.provenance.store import RemoteCredentialsError, Store, codes, read_store, text

Signature = Literal["trusted", "untrusted", "invalid", "none"]
Outcome = Literal["trusted", "untrusted", "origin_invalid", "invalid", "marked", "nothing"]

# Exit codes of `latentswap verify`, by outcome; worst last.
EXIT_CODES: dict[Outcome, int] = {
    "trusted": 0,
    "untrusted": 4,
    "marked": 5,
    "nothing": 9,
    "origin_invalid": 8,
    "invalid": 7,
}
_MEANS = {
    "trusted": "signed by somebody trusted here, and unchanged since",
    "untrusted": "signed and unchanged since, by somebody who is not trusted here",
    "marked": "not signed, but marked",
    "nothing": "no credentials and no marks found, which proves nothing",
    "origin_invalid": "signed and unchanged since, but made from a file whose own credentials were invalid",
    "invalid": "signed, and the signature is INVALID: changed since, or never right",
}
# What the validation calls a failure and is only a matter of whom one trusts.
_TRUST_ONLY = {"signingCredential.untrusted", "timeStamp.untrusted", "timeStamp.mismatch"}
_MATROSKA = b"\x1aE\xdf\xa3"  # of .mkv and .webm, which cannot carry credentials
_PICTURES_NOT_DECODED = {b"GIF8": "image/gif", b"II*\0": "image/tiff", b"MM\0*": "image/tiff"}


@dataclass(frozen=True, kw_only=True)
class Action:
    """One thing that was done, as the signer states it."""

    action: str  # "edited", "created", "placed", …
    source_type: str | None  # of IPTC's vocabulary: compositeWithTrainedAlgorithmicMedia, …
    description: str | None
    software: str | None
    when: str | None  # stated by the signer


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A file that went in."""

    title: str
    relationship: str  # "parentOf": what was changed; "componentOf": what was put in; "inputTo": what it was made from
    credentials: Signature | Literal["not kept"]
    made_by: str | None  # software and signer of those credentials
    note: str | None


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What `verify` found."""

    path: str
    media_type: str
    signature: Signature
    problems: tuple[str, ...]  # why it is not trusted, or invalid
    signer: str | None  # name in the certificate
    issuer: str | None
    time: str | None  # of the signature
    time_stamped: bool  # True: by a time-stamp authority; False: the signer says so
    made_by: str | None  # software
    actions: tuple[Action, ...]
    origins: tuple[Origin, ...]
    job: dict[str, Any] | None  # this project's own statement: job, method, networks, watermark
    mark: dict[str, str] | None  # the XMP statement (`provenance.mark.read_mark`)
    watermark: WatermarkState

    @property
    def outcome(self) -> Outcome:
        """All of it in a word."""
        if self.signature == "invalid":
            return "invalid"
        if self.signature in ("trusted", "untrusted"):
            tampered = any(origin.credentials == "invalid" for origin in self.origins)
            return "origin_invalid" if tampered else self.signature
        return "marked" if self.mark or self.watermark.state == "found" else "nothing"

    @property
    def synthetic(self) -> bool:
        """Whether any mark that is not invalid says that the file was made or changed by a trained model."""
        signed = self.actions if self.signature in ("trusted", "untrusted") else ()
        stated = [action.source_type or "" for action in signed] + [(self.mark or {}).get("digital_source_type", "")]
        return self.watermark.state == "found" or any("trainedalgorithmic" in kind.lower() for kind in stated)

    @property
    def exit_code(self) -> int:
        """That of the command line."""
        return EXIT_CODES[self.outcome]

    @property
    def meaning(self) -> str:
        """The outcome in a sentence."""
        return _MEANS[self.outcome]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"outcome": self.outcome, "synthetic": self.synthetic, **asdict(self)}


def verify(path: str | os.PathLike[str], *, trust: str | os.PathLike[str] | None = None) -> Verification:
    """Look for all marks of a picture or a video. Nothing is fetched, and no model is loaded.

    trust: a file of certificates (PEM) to trust beside those of this installation, such as the C2PA trust list.
    Raises BadInputError for what is no regular file or no picture or video, UsageError for a `trust` that cannot be
    read.
    """
    path = Path(path)
    anchors = trust_anchors(None if trust is None else Path(trust))
    media_type = _media_type(path)
    video = media_type.startswith("video/")
    if not video and path.stat().st_size > MAX_BYTES:
        raise TooLargeError(f"the image {path} has more than {MAX_BYTES // 10**6} MB; save it smaller")
    data = path if video else path.read_bytes()
    store, problems, damaged = None, (), False
    if media_type != "video/x-matroska":
        try:
            store = read_store(data, media_type, anchors=anchors)
        except RemoteCredentialsError as error:
            problems = (str(error),)
        except ProvenanceError as error:
            problems, damaged = (str(error),), True
    job = _job(store)
    told = _told(store, anchors=anchors)
    told |= {"signature": "invalid"} if damaged else {}
    return Verification(
        path=str(path),
        media_type=media_type,
        **{**told, "problems": problems or told["problems"]},
        job=job,
        mark=_mark(data),
        watermark=look_at_video(path) if isinstance(data, Path) else look(data),
    )


def _media_type(path: Path) -> str:
    """From the first bytes. Raises BadInputError."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BadInputError(f"{path} is no regular file; give a picture or a video")
        with path.open("rb") as file:
            head = file.read(64)
    except FileNotFoundError:
        raise BadInputError(f"{path} does not exist; check the path") from None
    except (OSError, ValueError) as error:
        raise BadInputError(f"{path} cannot be opened: {error}; give a picture or a video") from error
    if head.startswith(_MATROSKA):
        return "video/x-matroska"
    found = sniff(head) or _PICTURES_NOT_DECODED.get(head[:4])
    if found is None:
        raise UnsupportedMediaError(
            f"{path} is no picture and no video that is known here: it starts with {head[:8]!r}"
        )
    return found


def _told(store: Store | None, *, anchors: str) -> dict[str, Any]:
    """What the credentials say, as the fields of `Verification`."""
    if store is None:
        empty = dict.fromkeys(("signer", "issuer", "time", "made_by"))
        return {"signature": "none", "problems": (), "time_stamped": False, "actions": (), "origins": (), **empty}
    states: dict[str, Signature] = {"Trusted": "trusted", "Valid": "untrusted"}
    manifest = store.manifest
    info = _dict(manifest.get("signature_info"))
    actions = tuple(_actions(manifest))
    stamped = info.get("time")
    stated = [action.when for action in actions if action.when]
    when = text(stamped) if stamped else (stated[-1] if stated else None)
    return {
        "signature": states.get(store.state, "invalid"),
        "problems": store.failures,
        "signer": _optional(info.get("common_name")),
        "issuer": _optional(info.get("issuer")),
        "time": when,
        "time_stamped": bool(stamped),
        "made_by": _software(manifest),
        "actions": actions,
        "origins": tuple(_origins(store)),
    }


def _actions(manifest: dict[str, Any]) -> list[Action]:
    found = []
    for assertion in _dicts(manifest.get("assertions")):
        if not str(assertion.get("label", "")).startswith("c2pa.actions"):
            continue
        for action in _dicts(_dict(assertion.get("data")).get("actions")):
            kind = action.get("digitalSourceType")
            agent = action.get("softwareAgent")
            found.append(
                Action(
                    action=text(action.get("action", "")).removeprefix("c2pa."),
                    source_type=None if kind is None else text(kind).rstrip("/").rpartition("/")[2],
                    description=_optional(action.get("description")),
                    software=_agent(agent) if isinstance(agent, dict) else _optional(agent),
                    when=_optional(action.get("when")),
                )
            )
    return found


def _origins(store: Store) -> list[Origin]:
    """The files that went in. How their credentials stood when they did is what this file's signer recorded; what has
    changed since, such as whom one trusts, is in the validation's deltas."""
    deltas = {
        str(delta.get("ingredientAssertionURI", "")).rpartition("/")[2]: _dict(delta.get("validationDeltas"))
        for delta in _dicts(store.results.get("ingredientDeltas"))
        if store.active in str(delta.get("ingredientAssertionURI", ""))
    }
    found = []
    for ingredient in _dicts(store.manifest.get("ingredients")):
        recorded, label = _dict(ingredient.get("validation_results")), ingredient.get("active_manifest")
        delta = deltas.get(str(ingredient.get("label", "")), {})
        parts = [_dict(recorded.get("activeManifest")), delta]
        parts += [_dict(one.get("validationDeltas")) for one in _dicts(recorded.get("ingredientDeltas"))]
        failures = {code for part in parts for code in codes(part, "failure")}
        successes = {code for part in parts[:2] for code in codes(part, "success")}
        note = _optional(ingredient.get("description"))
        state: Any = "none"
        if failures - _TRUST_ONLY:
            state = "invalid"
        elif label is not None:
            lost = "signingCredential.untrusted" in codes(delta, "failure")
            state = "trusted" if "signingCredential.trusted" in successes and not lost else "untrusted"
        elif note is not None and "credentials" in note:
            state = "not kept"
        earlier = store.manifests.get(str(label), {})
        signer = _optional(_dict(earlier.get("signature_info")).get("common_name"))
        made_by = ", signed by ".join(filter(None, (_software(earlier), signer))) or None
        found.append(
            Origin(
                title=text(ingredient.get("title", "")),
                relationship=text(ingredient.get("relationship", "")),
                credentials=state,
                made_by=made_by,
                note=note,
            )
        )
    return found


def _job(store: Store | None) -> dict[str, Any] | None:
    """This project's own assertion, its texts made printable."""
    for assertion in _dicts(store.manifest.get("assertions")) if store else ():
        if assertion.get("label") == JOB_LABEL:
            data = _dict(assertion.get("data"))
            told: dict[str, Any] = {
                key: _optional(data.get(key)) for key in ("job", "deed", "method", "watermark") if key in data
            }
            networks = _dict(data.get("networks"))
            return told | {"networks": {text(name): text(value) for name, value in networks.items()}}
    return None


def _mark(data: bytes | Path) -> dict[str, str] | None:
    if isinstance(data, Path):
        return None
    try:
        mark = read_mark(data)
    except LatentSwapError:
        return None
    return None if mark is None else {text(key): text(value) for key, value in mark.items()}


def _software(manifest: dict[str, Any]) -> str | None:
    infos = _dicts(manifest.get("claim_generator_info"))
    return _agent(infos[0]) if infos else _optional(manifest.get("claim_generator"))


def _agent(agent: dict[str, Any]) -> str | None:
    return text(" ".join(str(agent[key]) for key in ("name", "version") if agent.get(key))) or None


def _optional(value: object) -> str | None:
    return None if value is None else text(value)


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _dicts(value: object) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
