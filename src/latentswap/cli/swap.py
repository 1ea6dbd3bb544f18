"""`latentswap swap`: pictures in, pictures out."""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from latentswap.cli._common import Json, emit, fetch_progress, step_progress
from latentswap.cli._options import (
    Consent,
    Device,
    DirectionFiles,
    Edit,
    Encoder,
    Faces,
    Generator,
    InversionOrEncoder,
    Layers,
    Mixer,
    Offline,
    Output,
    Strength,
    Tuned,
    check_strength,
    parse_numbers,
    read_edits,
)
from latentswap.cli.consent import attest
from latentswap.errors import LatentSwapError, UsageError


def swap(
    source: Annotated[Path, tyro.conf.Positional],
    target: Annotated[Path, tyro.conf.Positional],
    *,
    out: Output,
    inversion: InversionOrEncoder = "refine",
    encoder: Encoder = None,
    faces: Faces = "all",
    source_face: Faces = "",
    strength: Strength = 1.0,
    layers: Layers = None,
    occluders: Annotated[bool, tyro.conf.arg(help="keep what lies in front of the target's face")] = True,
    joint: Annotated[bool, tyro.conf.arg(help="with tune: tune to SOURCE, too")] = False,
    tuned: Tuned = None,
    generator: Generator = None,
    mixer: Mixer = None,
    edit: Edit = (),
    direction: DirectionFiles = (),
    edit_when: Literal["before", "after"] = "after",
    consent: Consent = None,
    device: Device = "cpu",
    offline: Offline = False,
    json: Json = False,
) -> int:
    """Put the face of SOURCE on the faces of TARGET.

    Exit code 9: SOURCE or a face of TARGET is of a person on a do-not-swap list (`latentswap protect`).

    Args:
        source: A picture of one person, a folder of several of the same person, or a code that `latentswap invert`
            wrote (.safetensors).
        target: A picture, or a folder of pictures.
        out: Where to write: a .png, .jpg or .webp file; a folder when TARGET is one.
        faces: Which faces of TARGET.
        source_face: Which face of SOURCE, when it shows several.
        edit_when: Edit the swapped face, or the target's before it is swapped.
    """
    check_strength(strength)
    edits = read_edits(edit, direction)
    rows = None if layers is None else parse_numbers(layers, what="--layers", highest=63)
    jobs = plan(target, out)
    check_faces(faces, source_face)
    attested = attest([source], consent)
    check_lists()
    with ExitStack() as stack:
        networks = {"inversion": inversion, "encoder": encoder, "joint": joint, "tuned": tuned}
        networks |= {"generator": generator, "mixer": mixer}
        swapper = load(stack, **networks, device=device, offline=offline)
        with step_progress() as bars:
            prepared = swapper.prepare(source, faces=source_face or None, consent=attested, on_step=bars(source.name))

        def work(path: Path, on_step: Callable[[int, int], None]) -> Any:
            options = {"faces": faces, "strength": strength, "layers": rows, "occluders": occluders}
            return swapper.swap(prepared, path, **options, edits=edits, edit_when=edit_when, on_step=on_step)

        return run(swapper, jobs, work, folder=target.is_dir(), as_json=json)


def plan(target: Path, out: Path) -> list[tuple[Path, Path]]:
    """(picture, output) pairs of a TARGET that is a picture or a folder; outputs are checked before any model loads."""
    from latentswap.media.image import PICTURE_SUFFIXES, check_output_path, pictures_in

    if not target.is_dir():
        check_output_path(out)
        return [(target, out)]
    if out.suffix.lower() in PICTURE_SUFFIXES or out.is_file():
        raise UsageError(f"TARGET {target} is a folder, so the output must be one, not {out}.")
    if out.resolve() == target.resolve():
        raise UsageError(f"The output folder {out} is the TARGET folder; give another, so that no original is lost.")
    pictures = pictures_in(target, role="TARGET")
    out.mkdir(parents=True, exist_ok=True)
    suffixes = {path: ".png" if path.suffix.lower() == ".avif" else path.suffix for path in pictures}
    return [(path, out / f"{path.stem}{suffixes[path]}") for path in pictures]


def check_faces(*choices: str) -> None:
    """Refuse a choice of faces that cannot be read before any model loads."""
    from latentswap.face.select import parse_faces

    for choice in filter(None, choices):
        parse_faces(choice)


def check_lists() -> None:
    """Refuse a job before any model loads where a do-not-swap list that applies cannot be had."""
    from latentswap.provenance.enforce import enforced

    enforced()


def load(stack: ExitStack, **options: Any) -> Any:
    """The swapper (`Swapper.from_pretrained`), with a progress bar if networks are fetched."""
    from latentswap.runtime.memory import keep_freed_memory

    keep_freed_memory()
    from latentswap.pipeline import Swapper

    progress = stack.enter_context(fetch_progress())
    return Swapper.from_pretrained(**options, progress=progress)


def run(
    swapper: Any,
    jobs: list[tuple[Path, Path]],
    work: Callable[[Path, Callable[[int, int], None]], Any],
    *,
    folder: bool,
    as_json: bool,
) -> int:
    """Do the jobs one after the other. In a folder a picture that cannot be used is reported and passed over."""
    from latentswap.media.atomic import output_lock

    done, lines, worst = [], [], 0
    with step_progress() as bars:
        for path, out in jobs:
            try:
                with output_lock(out):
                    result = work(path, bars(path.name))
                    swapper.write(result, out)
            except LatentSwapError as error:
                if not folder:
                    raise
                worst = worst or error.exit_code
                print(f"error: {error}", file=sys.stderr)
                done.append({"target": str(path), "error": str(error)})
                continue
            skipped = [{"box": [round(v) for v in face.box], "reasons": face.reasons} for face in result.skipped]
            done.append({"target": str(path), "output": str(out), "skipped": skipped, **result.report})
            count = len(result.faces)
            lines.append(f"{out}: {count} face{'s' * (count != 1)} in {result.report['seconds']:.1f} s")
            lines += [
                f"  face at {report['box']}: identity cosine to the original {report['cosine_to_original']:.2f}"
                for report in result.report["faces"]
            ]
            lines += [
                f"  left alone: face at {face['box']} ({', '.join(face['reasons'])})"
                for face in skipped
                if face["reasons"]
            ]
    emit(done if folder else done[0], lines, as_json=as_json)
    return worst
