"""Several people of a picture replaced in one pass, each by their own source.

`Swapper.prepare_map` and `Swapper.swap_map` are the ways in. Who is who is decided as by `--faces match:`: Euclidean
distance of dlib's embeddings.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from latentswap.errors import NoFaceError, UsageError
from latentswap.face.select import assign, choose
from latentswap.swappers.base import OnStep, Prepared
from latentswap.swappers.injection import Identity
from latentswap.types import SwapResult

if TYPE_CHECKING:
    from latentswap.pipeline import Picture, Swapper, Work

Source = Prepared | Identity
Pair = tuple["Picture", "Source | Picture | Sequence[Picture]"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Mapped:
    """One person of a map: who they are in the TARGET, and whose face they get."""

    name: str  # of the reference
    reference_E: np.ndarray  # identity embedding, not centred
    source: Source


def prepare_map(
    swapper: "Swapper", pairs: Sequence[Pair], *, consent: str | None, on_step: OnStep
) -> tuple[Mapped, ...]:
    """See `Swapper.prepare_map`."""
    from latentswap.pipeline import read

    if not pairs:
        raise UsageError("A map needs at least one pair of a reference and a source.")
    people = []
    for reference, source in pairs:
        image = read(reference, role="REFERENCE")
        (wanted, *_) = choose(swapper.analyser(image.pixels), None, role="REFERENCE", name=image.name)
        prepared = source if isinstance(source, Source) else swapper.prepare(source, consent=consent, on_step=on_step)
        swapper.check_prepared(prepared)
        reference_E = swapper.describe(wanted, image.pixels)
        people.append(Mapped(name=image.name, reference_E=reference_E, source=prepared))
    return tuple(people)


def swap_map(
    swapper: "Swapper",
    people: Sequence[Mapped],
    target: "Picture",
    work: "Work",
    *,
    occluders: bool,
    threshold: float,
    on_step: OnStep,
) -> SwapResult:
    """See `Swapper.swap_map`. work: swaps one crop."""
    from latentswap.pipeline import read

    image = read(target, role="TARGET")
    found = swapper.analyser(image.pixels)
    usable = choose(found, None, role="TARGET", name=image.name)
    embeddings_FE = np.stack([swapper.describe(face, image.pixels) for face in usable])
    references_RE = np.stack([person.reference_E for person in people])
    chosen, unmatched = [], []
    for face, match in zip(usable, assign(embeddings_FE, references_RE, threshold=threshold), strict=True):
        if match.reference is not None:
            chosen.append((face, people[match.reference], match.distance))
        else:
            box, closest = [round(v) for v in face.box], people[match.closest].name
            unmatched.append({"box": box, "closest": closest, "distance": round(match.distance, 2)})
    if not chosen:
        nearest: dict[str, Any] = min(unmatched, key=lambda face: face["distance"])
        raise NoFaceError(
            f"no face in the TARGET image {image.name} matches {' or '.join(person.name for person in people)}: the "
            f"closest of {len(unmatched)} is {nearest['distance']:.2f} away from {nearest['closest']}, and one "
            f"person's faces are within {threshold:g}"
        )
    result = swapper.replace_in(
        image,
        found,
        tuple(face for face, _, _ in chosen),
        on_step,
        lambda crop, index, step: work(chosen[index][1].source, crop, step),
        occluders=occluders,
    )
    reports = [
        {**report, "reference": person.name, "distance_to_reference": round(distance, 2)}
        for report, (_, person, distance) in zip(result.report["faces"], chosen, strict=True)
    ]
    return replace(result, report={**result.report, "faces": reports, "unmatched": unmatched})
