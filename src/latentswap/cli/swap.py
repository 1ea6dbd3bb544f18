"""`latentswap swap`: pictures in, pictures out."""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from latentswap.cli._common import Json, emit, fetch_progress, step_progress
from latentswap.cli._marks import NameSource, Sign, Watermark, marking_for
from latentswap.cli._options import (
    Consent,
    Device,
    DirectionFiles,
    Edit,
    Encoder,
    Faces,
    Generator,
    IdentityNetwork,
    InversionOrEncoder,
    Label,
    LabelText,
    Layers,
    Map,
    Method,
    Mixer,
    Offline,
    Output,
    Strength,
    Tuned,
    check_strength,
    label_words,
    parse_map,
    parse_numbers,
    read_edits,
)
from latentswap.cli.consent import attest
from latentswap.errors import LatentSwapError, UsageError


def swap(
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")],
    target: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="TARGET")] = None,
    *,
    out: Output,
    method: Method = "latentswap",
    inversion: InversionOrEncoder = "refine",
    encoder: Encoder = None,
    faces: Faces = "all",
    source_face: Faces = "",
    map: Map = (),
    strength: Strength = 1.0,
    layers: Layers = None,
    occluders: Annotated[bool, tyro.conf.arg(help="keep what lies in front of the target's face")] = True,
    joint: Annotated[bool, tyro.conf.arg(help="with tune: tune to SOURCE, too")] = False,
    tuned: Tuned = None,
    generator: Generator = None,
    mixer: Mixer = None,
    identity: IdentityNetwork = None,
    edit: Edit = (),
    direction: DirectionFiles = (),
    edit_when: Literal["before", "after"] = "after",
    sign: Sign = True,
    watermark: Watermark = True,
    name_source: NameSource = True,
    label: Label = False,
    label_text: LabelText = None,
    consent: Consent = None,
    device: Device = "cpu",
    offline: Offline = False,
    json: Json = False,
) -> int:
    """Put the face of SOURCE on the faces of TARGET.

    Exit code 9: SOURCE or a face of TARGET is of a person on a do-not-swap list (`latentswap protect`).

    Args:
        source: A picture of one person, a folder of several of the same person, or a code that `latentswap invert`
            wrote (.safetensors). Left out with --map.
        target: A picture, or a folder of pictures. With --map it is the only one given.
        out: Where to write: a .png, .jpg or .webp file; a folder when TARGET is one.
        faces: Which faces of TARGET.
        source_face: Which face of SOURCE, when it shows several.
        edit_when: Edit the swapped face, or the target's before it is swapped.
    """
    check_strength(strength)
    edits = read_edits(edit, direction)
    rows = None if layers is None else parse_numbers(layers, what="--layers", highest=63)
    people = parse_map(map)
    if people:
        if target is not None:
            raise UsageError(f"With --map the sources are in the map: give TARGET alone, not {source} and {target}.")
        if faces != "all" or source_face or edits:
            raise UsageError("--map says which faces are meant: leave out --faces, --source-face and --edit.")
        target = source
    if target is None:
        raise UsageError(f"TARGET is missing: latentswap swap {source} TARGET -o {out}.")
    if method != "latentswap" and (edits or rows is not None):
        raise UsageError(f"Method {method} has no latent codes; leave out --edit and --layers.")
    jobs = plan(target, out)
    words = label_words(label, label_text)
    check_faces(faces, source_face)
    attested = attest([source for _, source in people] or [source], consent)
    check_lists()
    marking = marking_for("swap", sign=sign, watermark=watermark, name_source=name_source)
    with ExitStack() as stack:
        networks = {"inversion": inversion, "encoder": encoder, "joint": joint, "tuned": tuned}
        networks |= {"method": method, "generator": generator, "mixer": mixer, "identity": identity}
        swapper = load(stack, **networks, device=device, offline=offline)
        with step_progress() as bars:
            if people:
                mapped = swapper.prepare_map(people, consent=attested, on_step=bars("sources"))
            else:
                step = bars(source.name)
                prepared = swapper.prepare(source, faces=source_face or None, consent=attested, on_step=step)

        def work(path: Path, on_step: Callable[[int, int], None]) -> Any:
            options = {"strength": strength, "layers": rows, "occluders": occluders, "on_step": on_step}
            if people:
                return swapper.swap_map(mapped, path, **options)
            return swapper.swap(prepared, path, faces=faces, edits=edits, edit_when=edit_when, **options)

        return run(swapper, jobs, work, marking=marking, folder=target.is_dir(), label=words, as_json=json)


def like(report: dict[str, Any]) -> str:
    """Who a face of a map was found to be."""
    if "reference" not in report:
        return ""
    return f", {report['reference']} ({report['distance_to_reference']:.2f} away)"


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
    marking: Any,
    folder: bool,
    as_json: bool,
    label: str | None = None,
) -> int:
    """Do the jobs one after the other. In a folder a picture that cannot be used is reported and passed over.

    label: words to write on the pictures.
    """
    from latentswap.media.atomic import output_lock
    from latentswap.provenance.label import labelled

    done, lines, worst = [], [], 0
    with step_progress() as bars:
        for path, out in jobs:
            try:
                with output_lock(out):
                    result = work(path, bars(path.name))
                    swapper.write(labelled(result, label), out, marking=marking)
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
                f"  face at {report['box']}{like(report)}: identity cosine to the original "
                f"{report['cosine_to_original']:.2f}"
                for report in result.report["faces"]
            ]
            lines += [
                f"  left alone: face at {face['box']} ({', '.join(face['reasons'])})"
                for face in skipped
                if face["reasons"]
            ]
            lines += [
                f"  left alone: face at {face['box']} (closest to {face['closest']}, {face['distance']:.2f} away)"
                for face in result.report.get("unmatched", ())
            ]
    emit(done if folder else done[0], lines, as_json=as_json)
    return worst
