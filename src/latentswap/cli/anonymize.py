"""`latentswap anonymize`: pictures in, pictures with people who do not exist out."""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import tyro

from latentswap.cli._common import Json
from latentswap.cli._marks import Sign, Watermark, marking_for
from latentswap.cli._options import (
    Device,
    Encoder,
    Faces,
    Generator,
    InversionOrEncoder,
    Label,
    LabelText,
    Mixer,
    Offline,
    Output,
    check_seed,
    label_words,
)
from latentswap.cli.swap import check_faces, load, plan, run
from latentswap.errors import UsageError


def anonymize(
    target: Annotated[Path, tyro.conf.Positional],
    *,
    out: Output,
    seed: int = 0,
    keep: Annotated[str, tyro.conf.arg(metavar="age,sex,skin|all|none")] = "all",
    same_person_same_face: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    memory: Path | None = None,
    tries: int = 3,
    inversion: InversionOrEncoder = "refine",
    encoder: Encoder = None,
    generator: Generator = None,
    mixer: Mixer = None,
    faces: Faces = "all",
    sign: Sign = True,
    watermark: Watermark = True,
    label: Label = False,
    label_text: LabelText = None,
    device: Device = "cpu",
    offline: Offline = False,
    json: Json = False,
) -> int:
    """Replace the faces of TARGET by people who do not exist.

    Exit code 8: a face still resembles its original (that picture is not written), or a face of a written picture
    could not be replaced, though all were meant.

    Args:
        target: A picture, or a folder of pictures.
        out: Where to write: a .png, .jpg or .webp file; a folder when TARGET is one.
        seed: The same seed gives the same people.
        keep: What the replacement has in common with the original.
        same_person_same_face: In a folder, the same person gets the same replacement in every picture.
        memory: File that remembers who replaced whom, for a later run. It holds biometric data.
        tries: How many strangers are tried until a face is far enough from the original.
        faces: Which faces of TARGET.
    """
    from latentswap.anonymize import Anonymizer, NotAnonymisedError, parse_keep
    from latentswap.replacements import Replacements

    check_seed(seed)
    kept = parse_keep(keep)
    if not 1 <= tries <= 20:
        raise UsageError(f"--tries is {tries}; it runs from 1 to 20.")
    if memory is not None and memory.suffix != ".safetensors":
        raise UsageError(f"--memory is {memory}; it names a .safetensors file.")
    jobs = plan(target, out)
    words = label_words(label, label_text)
    check_faces(faces)
    marking = marking_for("anonymize", sign=sign, watermark=watermark)
    partly = 0
    with ExitStack() as stack:
        networks = {"inversion": inversion, "encoder": encoder, "generator": generator, "mixer": mixer}
        swapper = load(stack, **networks, device=device, offline=offline)
        job = Anonymizer(swapper, seed=seed, keep=kept, tries=tries)
        if memory is not None and memory.exists():
            job.replacements = Replacements.load(memory, seed=seed, people=len(job.gallery))
        elif memory is not None or same_person_same_face:
            job.replacements = Replacements()

        def work(path: Path, on_step: Callable[[int, int], None]) -> Any:
            nonlocal partly
            result = job(path, faces=faces, on_step=on_step)
            for face in result.skipped:
                box = [round(v) for v in face.box]
                why = ", ".join(face.reasons) or "not chosen"
                print(f"warning: {path}: NOT anonymised: the face at {box} is as it was ({why})", file=sys.stderr)
            partly += bool(result.skipped) and faces == "all"
            if memory is not None and job.replacements is not None:
                job.replacements.save(memory, seed=seed)
            return result

        code = run(swapper, jobs, work, marking=marking, folder=target.is_dir(), label=words, as_json=json)
    return code or (NotAnonymisedError.exit_code if partly else 0)
