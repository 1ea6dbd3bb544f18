"""`latentswap sample` and `latentswap invert`: codes to pictures and pictures to codes."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import tyro

from latentswap.cli._common import Json, emit, step_progress
from latentswap.cli._marks import NameSource, Sign, Watermark, marking_for
from latentswap.cli._options import (
    Device,
    Encoder,
    Faces,
    Generator,
    InversionOrEncoder,
    Offline,
    Output,
    Tuned,
    parse_numbers,
)
from latentswap.cli.swap import check_faces, check_lists, load
from latentswap.errors import UsageError


def sample(
    *,
    out: Output,
    seeds: str = "0-3",
    truncation_psi: float = 0.7,
    codes: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    generator: Generator = None,
    sign: Sign = True,
    watermark: Watermark = True,
    device: Device = "cpu",
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Make pictures of people who do not exist.

    Args:
        out: Folder for seed-0000.png, seed-0001.png, …
        seeds: One picture each, as 0-15 or 3,7,21.
        truncation_psi: Variety, from 0 (the mean face) to 1 and above (odd ones).
        codes: Write each person's W+ code too (.safetensors), to be used as a SOURCE.
    """
    from latentswap.media.image import check_output_path

    if not 0 <= truncation_psi <= 1.5:
        raise UsageError(f"--truncation-psi is {truncation_psi}; it runs from 0 (the mean face) to 1.5.")
    numbers = parse_numbers(seeds, what="--seeds", highest=(1 << 32) - 1)
    if out.suffix or out.is_file():
        raise UsageError(f"The output of sample is a folder, not {out}.")
    out.mkdir(parents=True, exist_ok=True)
    check_output_path(out / "seed-0000.png")
    marking = marking_for("sample", sign=sign, watermark=watermark)
    with ExitStack() as stack:
        inversion = "fast" if generator is None else "tune"  # nothing is inverted: no encoder has to fit
        swapper = load(stack, inversion=inversion, generator=generator, mixes=False, device=device, offline=offline)
        from latentswap.pipeline import person

        advance = stack.enter_context(step_progress())("sample")
        paths = []
        for done, seed in enumerate(numbers, 1):
            paths.append(out / f"seed-{seed:04d}.png")
            (image,) = swapper.sample([seed], truncation_psi=truncation_psi)
            swapper.write(image, paths[-1], marking=marking)
            if codes:
                w_plus = person(swapper.networks, seed=seed, truncation_psi=truncation_psi)
                swapper.method.prepare_code(w_plus).save(paths[-1].with_suffix(".safetensors"))
            advance(done, len(numbers))
    emit([str(path) for path in paths], [str(path) for path in paths], as_json=json)


def invert(
    image: Annotated[Path, tyro.conf.Positional],
    *,
    out: Output,
    preview: Path | None = None,
    inversion: InversionOrEncoder = "refine",
    encoder: Encoder = None,
    tuned: Tuned = None,
    generator: Generator = None,
    faces: Faces = "",
    sign: Sign = True,
    watermark: Watermark = True,
    name_source: NameSource = True,
    device: Device = "cpu",
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Find the W+ code of the face in a photograph; `latentswap swap` takes it as its SOURCE.

    Args:
        image: A picture of one person.
        out: Where to write the code: a .safetensors file. With --inversion tune the change of the generator goes
            beside it, as NAME.delta.safetensors.
        preview: Where to write the picture that the code makes, if anywhere.
        faces: Which face, when the picture shows several.
    """
    from latentswap.media.atomic import check_destination
    from latentswap.media.image import check_output_path

    if out.suffix != ".safetensors":
        raise UsageError(f"The output of invert is a .safetensors file, not {out}.")
    check_destination(out)
    delta = out.with_suffix(".delta.safetensors")
    if preview is not None:
        check_output_path(preview)
    check_faces(faces)
    marking = None
    if preview is not None:
        marking = marking_for("invert", sign=sign, watermark=watermark, name_source=name_source)
    check_lists()
    with ExitStack() as stack:
        networks = {"inversion": inversion, "encoder": encoder, "tuned": tuned, "generator": generator}
        swapper = load(stack, **networks, mixes=False, device=device, offline=offline)
        advance = stack.enter_context(step_progress())(image.name)
        found = swapper.invert(image, faces=faces or None, on_step=advance)
        found.prepared.save(out)
        if found.delta is not None:
            found.delta.save(delta)
        if preview is not None:
            swapper.write(found, preview, marking=marking)
    written = (out, delta if found.delta is not None else None, preview)
    paths = [str(path) for path in written if path is not None]
    emit(paths, paths, as_json=json)
