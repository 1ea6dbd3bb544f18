"""`latentswap edit`: smiles, turned heads, mixed styles: faces changed by their codes."""

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from latentswap.cli._common import Json, emit, step_progress
from latentswap.cli._marks import Sign, Watermark, marking_for
from latentswap.cli._options import (
    Device,
    DirectionFiles,
    Edit,
    Encoder,
    Faces,
    Generator,
    InversionOrEncoder,
    Label,
    LabelText,
    Offline,
    Output,
    Tuned,
    label_words,
    parse_numbers,
    read_edits,
)
from latentswap.cli.swap import check_faces, check_lists, load, plan, run
from latentswap.errors import UsageError

if TYPE_CHECKING:
    from latentswap.edit.directions import Edits

Sheet = Literal["none", "way", "mix"]
CODE = ".safetensors"
_MOST_INPUTS = 12


def edit(
    inputs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="CODE|PHOTO [...]")],
    *,
    out: Output,
    edit: Edit = (),
    direction: DirectionFiles = (),
    sheet: Sheet = "none",
    animate: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    steps: int | None = None,
    rows: str = "0-7",
    inversion: InversionOrEncoder = "refine",
    encoder: Encoder = None,
    tuned: Tuned = None,
    generator: Generator = None,
    faces: Faces = "all",
    sign: Sign = True,
    watermark: Watermark = True,
    label: Label = False,
    label_text: LabelText = None,
    device: Device = "cpu",
    offline: Offline = False,
    json: Json = False,
) -> int:
    """Change a face by its code: smile, pose, eyes, and whatever a file of directions holds.

    A photo's faces are edited and pasted back; a code (of `invert` or `sample --codes`) is drawn whole.

    Args:
        inputs: A photo or a folder of them, or a code. Several codes or photos for a sheet or an animation.
        out: A .png, .jpg or .webp file; a folder when the input is one; .safetensors for the edited code itself; .webp
            with --animate.
        sheet: way: the pictures from the unedited to the edited face, or from the first face to the last. mix:
            everybody with the rows (--rows) of everybody else.
        animate: The way as a moving picture, there and back.
        steps: Pictures of a way (7; 24 for an animation).
        rows: What `--sheet mix` takes from the other: 0-3 pose and face shape, 4-7 features, 8-15 colour and light.
        faces: Which faces of a photo.
    """
    edits = read_edits(edit, direction)
    job = _check(inputs, out, sheet=sheet, animate=animate, steps=steps, rows=rows, edits=edits)
    words = label_words(label, label_text, generated=job.photos is None)
    if words is not None and job.what == "code":
        raise UsageError("--label writes on pictures, and the output is a code; leave it out.")
    check_faces(faces)
    check_lists()
    marking = marking_for("edit", sign=sign, watermark=watermark)
    with ExitStack() as stack:
        networks = {"inversion": inversion, "encoder": encoder, "tuned": tuned, "generator": generator}
        swapper = load(stack, **networks, mixes=False, device=device, offline=offline)
        if job.photos is not None:

            def work(path: Path, on_step: Any) -> Any:
                return swapper.edit(path, edits, faces=faces, on_step=on_step)

            folder = inputs[0].is_dir()
            return run(swapper, job.photos, work, marking=marking, folder=folder, label=words, as_json=json)
        bars = stack.enter_context(step_progress())
        codes = [
            swapper.code(path, faces=None if faces == "all" else faces, on_step=bars(path.name)) for path in inputs
        ]
        _draw(swapper, codes, edits, out, job, bars(out.name), of=inputs, marking=marking, label=words)
    emit([str(out)], [str(out)], as_json=json)
    return 0


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What is to be made: edited photos, or one file from codes."""

    what: Literal["picture", "code", "way", "mix", "animation"]
    photos: list[tuple[Path, Path]] | None = None
    steps: int = 0
    rows: tuple[int, ...] = ()


def _check(
    inputs: tuple[Path, ...],
    out: Path,
    *,
    sheet: Sheet,
    animate: bool,
    steps: int | None,
    rows: str,
    edits: "Edits",
) -> _Job:
    """Refuse what cannot be made before any model loads."""
    from latentswap.edit.sheets import MOST_CELLS
    from latentswap.media.atomic import check_destination
    from latentswap.media.image import check_output_path

    if not 1 <= len(inputs) <= _MOST_INPUTS:
        raise UsageError(f"edit takes 1 to {_MOST_INPUTS} photos or codes, not {len(inputs)}.")
    if missing := [path for path in inputs if not path.exists()]:
        raise UsageError(f"There is no file {missing[0]}.")
    if sheet != "none" and animate:
        raise UsageError("--sheet and --animate make different files; give one of them.")
    if sheet == "mix":
        if len(inputs) < 2:
            raise UsageError("--sheet mix mixes people: give two photos or codes, or more.")
        check_output_path(out)
        return _Job(what="mix", rows=parse_numbers(rows, what="--rows", highest=63))
    if sheet == "way" or animate:
        if len(inputs) == 1 and not edits:
            raise UsageError("One face without --edit has no way to go; give --edit NAME=VALUE, or a second face.")
        count = steps if steps is not None else (24 if animate else 7)
        if not 2 <= count <= MOST_CELLS:
            raise UsageError(f"--steps is {count}; it runs from 2 to {MOST_CELLS}.")
        check_output_path(out)
        if animate and out.suffix.lower() != ".webp":
            raise UsageError(f"An animation is a .webp file, not {out}.")
        return _Job(what="animation" if animate else "way", steps=count)
    only, *more = inputs
    if more:
        raise UsageError("Several inputs need --sheet or --animate; a folder edits every photo in it.")
    if not edits:
        raise UsageError("Nothing to edit: give --edit NAME=VALUE, for example --edit smile=2.")
    if only.suffix != CODE:
        return _Job(what="picture", photos=plan(only, out))
    if out.suffix == CODE:
        check_destination(out)
        return _Job(what="code")
    check_output_path(out)
    return _Job(what="picture")


def _draw(
    swapper: Any,
    codes: list[Any],
    edits: "Edits",
    out: Path,
    job: _Job,
    on_step: Any,
    *,
    of: tuple[Path, ...],
    marking: Any,
    label: str | None,
) -> None:
    """Make the one file of a job on codes. of: the files that the codes come from."""
    from latentswap.edit.directions import apply_edits
    from latentswap.edit.sheets import animate, mixing_sheet, strip, way
    from latentswap.pipeline import packet
    from latentswap.provenance.apply import network_hashes, publish, watermarked_pixels
    from latentswap.provenance.label import draw_label, labelled
    from latentswap.types import Image, Making

    render, edited = swapper.method.render, [apply_edits(ws_BLD, edits) for ws_BLD in codes]
    path = [codes[0], edited[0]] if len(codes) == 1 else edited
    making = Making(deed="inverted", sources=tuple(path.read_bytes() for path in of))
    match job.what:
        case "code":
            prepared = swapper.method.prepare_code(edited[0], name=out.name)
            replace(prepared, synthetic=swapper.prepare(of[0]).synthetic).save(out)  # an edit makes nobody a stranger
            return
        case "animation":
            payload = marking.payload()

            def finish(pixels: Any) -> Any:
                return watermarked_pixels(pixels if label is None else draw_label(pixels, (), label), payload=payload)

            xmp = packet(whole=True)
            moving = animate(way(path, job.steps), render, xmp=xmp, on_step=on_step, finish=finish)
            networks = network_hashes(swapper.networks.files, making)
            publish(out, moving, making=making, marking=marking, payload=payload, networks=networks)
            return
        case "way":
            pixels = strip(way(path, job.steps), render, on_step=on_step)
        case "mix":
            pixels = mixing_sheet(edited, job.rows, render, on_step=on_step)
        case _:
            pixels = render(edited[0])[0]
    swapper.write(labelled(Image(pixels=pixels, name=out.name), label), out, marking=marking, making=making)
