"""Which faces of a picture are meant: the grammar of `--faces` and the choice itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from latentswap.errors import NoFaceError, UsageError
from latentswap.face.analyse import REASONS
from latentswap.types import Face

MATCH_DISTANCE = 0.6  # Euclidean distance of dlib's embeddings below which two faces are one person
GRAMMAR = "all, largest, a number (0 is the largest face) or match:REFERENCE.jpg"

Role = Literal["SOURCE", "TARGET", "REFERENCE", "PHOTO"]


@dataclass(frozen=True, kw_only=True)
class FaceChoice:
    """Which faces are meant. `index` belongs to kind "index", `reference` to kind "match"."""

    kind: Literal["all", "largest", "index", "match"]
    index: int | None = None
    reference: Path | None = None


def parse_faces(text: str) -> FaceChoice:
    """Read `all`, `largest`, `INDEX` or `match:REFERENCE`. Raises UsageError; touches no file."""
    words = text.strip()
    if words == "all":
        return FaceChoice(kind="all")
    if words == "largest":
        return FaceChoice(kind="largest")
    if words.isascii() and words.isdecimal() and len(words) <= 6:
        return FaceChoice(kind="index", index=int(words))
    prefix, colon, reference = words.partition(":")
    if prefix == "match" and colon:
        if not reference.strip():
            raise UsageError(f"faces: {text!r} names no reference picture; write match:REFERENCE.jpg")
        return FaceChoice(kind="match", reference=Path(reference.strip()))
    raise UsageError(f"faces: {text!r} is not a choice of faces; use {GRAMMAR}")


def choose(
    faces: Sequence[Face],
    choice: FaceChoice | None,
    *,
    role: Role,
    name: str,
    embed: Callable[[Face], np.ndarray] | None = None,
    reference_E: np.ndarray | None = None,
) -> tuple[Face, ...]:
    """The faces that are meant, at least one; exactly one for a SOURCE.

    faces: all faces of the picture in the analyser's order; their numbers count those that are faces at all.
    choice: None means every usable face of a TARGET, and the only usable face of a SOURCE, REFERENCE or PHOTO.
    role, name: which picture it is, for messages.
    embed, reference_E: for kind "match": identity embeddings of a face of this picture and of the reference.

    Raises NoFaceError when there is no such face, when all of them have reasons to be left alone, or when a SOURCE or
    PHOTO is ambiguous; UsageError when a match is asked for without embeddings.
    """
    where = f"the {role} image {name}"
    candidates = [face for face in faces if "not_a_face" not in face.reasons]
    usable = [face for face in candidates if not face.reasons]
    if not candidates:
        raise NoFaceError(f"no face in {where}; use a picture in which a face is clearly visible")
    if choice is not None and choice.kind == "index":
        return (_by_index(candidates, choice.index or 0, where),)
    if not usable:
        found = "; ".join(describe(face, number) for number, face in enumerate(candidates))
        raise NoFaceError(f"no usable face in {where}: {found}")
    if choice is not None and choice.kind == "largest":
        return (usable[0],)
    if choice is not None and choice.kind == "match":
        if embed is None or reference_E is None:
            raise UsageError(
                f"faces: matching {choice.reference} needs an identity network; give embed and reference_E"
            )
        return (_closest(usable, choice.reference, embed, reference_E, where),)
    if role == "REFERENCE" and len(usable) > 1:
        raise NoFaceError(f"{len(usable)} faces in {where}, and it is not clear who is meant; crop it to one of them")
    if role != "TARGET" and len(usable) > 1:
        raise NoFaceError(
            f"{len(usable)} faces in {where}, and it is not clear which is meant; choose with faces = "
            f"largest, a number from 0 to {len(candidates) - 1} (0 is the largest) or match:REFERENCE.jpg"
        )
    return tuple(usable)


def describe(face: Face, number: int) -> str:
    """One clause for a message: the face's number, size and place, and why it is left alone."""
    x0, y0, x1, y1 = face.box
    texts = " and ".join(REASONS[reason] for reason in face.reasons) or "is usable"
    return f"face {number} ({x1 - x0:.0f}×{y1 - y0:.0f} pixels at {x0:.0f}, {y0:.0f}) {texts}"


def _by_index(candidates: list[Face], index: int, where: str) -> Face:
    if index >= len(candidates):
        count = f"{len(candidates)} face" + "s" * (len(candidates) > 1)
        raise NoFaceError(f"no face {index} in {where}: it shows {count}, numbered from 0, the largest")
    if candidates[index].reasons:
        raise NoFaceError(f"face {index} in {where} cannot be used: {describe(candidates[index], index)}")
    return candidates[index]


def _closest(
    usable: list[Face],
    reference: Path | None,
    embed: Callable[[Face], np.ndarray],
    reference_E: np.ndarray,
    where: str,
) -> Face:
    distances = [float(np.linalg.norm(embed(face) - reference_E)) for face in usable]
    best = int(np.argmin(distances))
    if distances[best] > MATCH_DISTANCE:
        raise NoFaceError(
            f"no face in {where} matches {reference}: the closest of {len(usable)} is {distances[best]:.2f} away, "
            f"and one person's faces are within {MATCH_DISTANCE}"
        )
    return usable[best]


@dataclass(frozen=True, kw_only=True)
class Assigned:
    """Which reference a face was found to match; None: none of them."""

    reference: int | None
    closest: int  # the nearest reference, matching or not
    distance: float


def assign(
    embeddings_FE: np.ndarray, references_RE: np.ndarray, *, threshold: float = MATCH_DISTANCE
) -> tuple[Assigned, ...]:
    """For every face the reference nearest to it, if it is within the threshold; several faces may match one.

    embeddings [F, E], references [R, E], R at least 1; distances are Euclidean.
    """
    distance_FR = np.linalg.norm(embeddings_FE[:, None] - references_RE[None], axis=-1)
    found = []
    for row_R in distance_FR:
        closest = int(np.argmin(row_R))
        matches = bool(row_R[closest] <= threshold)
        found.append(Assigned(reference=closest if matches else None, closest=closest, distance=float(row_R[closest])))
    return tuple(found)
