"""`latentswap train lessons` and `train simswap`: the second method, taught by the first."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import tyro

from latentswap.cli._common import step_progress
from latentswap.cli._options import Device, Offline, check_seed
from latentswap.cli._training import (
    PeopleFolder,
    RunFolder,
    bank_config,
    bank_for,
    half_precision,
    load_frozen,
    run,
    share_among_processes,
)
from latentswap.errors import UsageError

LessonsFolder = Annotated[
    Path | None,
    tyro.conf.arg(name="lessons-from", help="folder that `train lessons` made; default: made in the run's"),
]


def train_lessons(
    *,
    out: RunFolder,
    people_from: PeopleFolder = None,
    targets: int = 2500,
    sources: int = 3,
    people: int = 8000,
    seed: int = 0,
    workers: int = 1,
    device: Device = "cpu",
    offline: Offline = False,
) -> None:
    """Make the swaps that SimSwap is taught with: a folder of parts; parts that are there stay.

    Args:
        targets: How many pictures are swapped into.
        sources: How many other faces each gets.
        people: How many people they are drawn from.
        workers: Processes that share the work, one thread each.
    """
    check_seed(seed)
    from latentswap.train.taught import LessonsConfig

    config = LessonsConfig(targets=targets, sources=sources, seed=seed)
    with ExitStack() as stack:
        people_config = bank_config(people=people, seed=seed)
        bank_for(stack, people_from or out / "people", people_config, device=device, offline=offline)
        folder = people_from or out / "people"
        if workers == 1:
            build_lessons(stack, out, folder, config, people_config, device=device, offline=offline)
        else:
            share_among_processes(_lessons_share, (out, folder, config, people_config), workers)
    print(out)


def train_identities(
    root: Annotated[Path | None, tyro.conf.Positional] = None,
    *,
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FILE", help="a .safetensors file")],
    generated: int = 0,
    views: int = 6,
    size: int = 256,
    skip: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    seed: int = 0,
    offline: Offline = False,
) -> None:
    """Align a folder of people (ROOT/PERSON/*.jpg, pictures of any size), once, for `train simswap --identities`.

    Args:
        root: A folder with a folder of pictures for every person, two or more of each.
        generated: In place of a folder: so many people who do not exist.
        views: With --generated: pictures of each, in several poses, expressions and lights.
        size: Side of the aligned faces; generated ones have 256.
        skip: Leave out pictures and people that cannot be used; without it they are an error that lists them.
    """
    check_seed(seed)
    if not 64 <= size <= 1024 or size % 32:
        raise UsageError(f"--size is {size}; it is a multiple of 32 from 64 to 1024.")
    if out.suffix != ".safetensors":
        raise UsageError(f"-o {out}: the faces are written to one .safetensors file.")
    if (root is None) == (generated == 0):
        raise UsageError("Give either a folder of people or --generated N.")
    if generated and (size != 256 or skip):
        raise UsageError("--size and --skip are for photographs, not for --generated people.")
    import sys

    from latentswap.edit.directions import shipped
    from latentswap.media.image import PICTURE_SUFFIXES
    from latentswap.train.identities import generated_identities, read_identities

    problems: list[str] = []
    with ExitStack() as stack:
        advance = stack.enter_context(step_progress())("pictures")
        if root is not None:
            cutter = face_cutter(size, offline=offline)
            found, problems = read_identities(root, cutter, PICTURE_SUFFIXES, skip=skip, on_item=advance)
        else:
            generator, _, _ = load_frozen(stack, device="cpu", offline=offline)
            drawing = half_precision(generator, "cpu")
            found = generated_identities(drawing, shipped(), generated, views, seed=seed, on_item=advance)
    out.parent.mkdir(parents=True, exist_ok=True)
    found.save(out, alignment="ffhq")
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    print(f"{out}: {len(found)} pictures of {found.people} people")


def face_cutter(size: int, *, offline: bool) -> Any:
    """Picture file → its one face, FFHQ-aligned, uint8 [3, size, size] (`train.identities.Cut`)."""
    import torch

    from latentswap.face.align import cut_face
    from latentswap.face.analyse import FaceAnalyser
    from latentswap.face.select import choose
    from latentswap.media.image import decode

    analyser = FaceAnalyser.load(offline=offline)

    def work(path: Path) -> torch.Tensor:
        pixels = decode(path, role="SOURCE").pixels
        (face,) = choose(analyser(pixels), None, role="SOURCE", name=path.name)
        return torch.from_numpy(cut_face(pixels, face.mesh_K3, size).pixels).permute(2, 0, 1).contiguous()

    return work


def train_simswap(
    *,
    out: RunFolder,
    people_from: PeopleFolder = None,
    lessons_from: LessonsFolder = None,
    start: Path | None = None,
    steps: int = 4000,
    batch: int = 8,
    lr: float = 1.5e-3,
    targets: int = 2500,
    sources: int = 3,
    people: int = 8000,
    same: float = 0.15,
    augment: float = 0.5,
    pixel: float = 6.0,
    features: float = 2.0,
    identity: float = 2.0,
    away: float = 0.3,
    keep: float = 0.2,
    widths: tuple[int, int, int] = (32, 128, 256),
    blocks: int = 6,
    held_out: int = 64,
    seed: int = 0,
    sample_every: int = 200,
    device: Device = "cpu",
    offline: Offline = False,
) -> None:
    """Train the compact ID-injection network (SimSwap's kind) on people who do not exist, taught by LatentSwap.

    Args:
        start: A trained network to go on from.
        steps: Optimiser steps in all; a run that was stopped goes on from its last save.
        batch: Pairs a step.
        lr: Peak learning rate.
        targets: How many pictures are swapped into.
        sources: How many other faces each gets.
        people: How many people they are drawn from.
        same: Share of pairs with one person on both sides, whose answer is the target itself.
        augment: Share of pairs disturbed as photographs are.
        pixel: Weight of the difference to the teacher's picture.
        features: Weight of the difference to the identity network's maps of it.
        identity: Weight of the identity loss: more takes more of the source.
        away: Weight of the distance to the target's identity.
        keep: Weight of the target's eyes and mouth.
        widths: Channels at a half, a quarter and an eighth of the side.
        blocks: ID blocks.
        held_out: Targets that are never trained on, for the figures of the end.
    """
    check_seed(seed)
    from latentswap.swappers.compact import CompactConfig, CompactSwap
    from latentswap.train.loop import LoopConfig
    from latentswap.train.simswap import SimSwapTrainee, SimSwapTraining
    from latentswap.train.taught import Lessons, LessonsConfig

    training = SimSwapTraining(
        network=CompactConfig(widths=widths, blocks=blocks),
        batch=batch,
        seed=seed,
        same=same,
        augment=augment,
        pixel=pixel,
        features=features,
        identity=identity,
        away=away,
        keep=keep,
        held_out=held_out,
    )
    loop = LoopConfig(
        out=out, steps=steps, lr=lr, lr_end=0.02, warmup=100, weight_decay=0.01, sample_every=sample_every
    )
    lessons_config = LessonsConfig(targets=targets, sources=sources, seed=seed)
    people_config = bank_config(people=people, seed=seed)
    with ExitStack() as stack:
        people_folder, folder = people_from or out / "people", lessons_from or out / "lessons"
        bank = bank_for(stack, people_folder, people_config, device=device, offline=offline)
        build_lessons(stack, folder, people_folder, lessons_config, people_config, device=device, offline=offline)
        drawing, embedder, mesh = load_frozen(stack, device=device, offline=offline)
        lessons = Lessons.load(folder, lessons_config)
        first = None if start is None else CompactSwap.load(start)
        trainee = SimSwapTrainee(half_precision(drawing, device), embedder, mesh, bank, lessons, training, first)
        losses = run(stack, trainee, loop)
        summary = {"steps": steps, "lr": lr, "people": people, "losses": losses, "held_out": trainee.held_out()}
        trainee.average.save(out / "simswap.safetensors", summary=summary | {"config": trainee.describe()})
    print(out / "simswap.safetensors")


def build_lessons(
    stack: ExitStack,
    folder: Path,
    people_folder: Path,
    config: Any,
    people_config: Any,
    *,
    device: str,
    offline: bool,
    share: tuple[int, int] = (0, 1),
) -> None:
    """The lessons that `folder` lacks."""
    from latentswap.edit.directions import shipped
    from latentswap.swappers.mixer import LatentMixer
    from latentswap.train import taught
    from latentswap.train.bank import Bank
    from latentswap.weights.assets import asset_path

    if all(taught.part_path(folder, part).exists() for part in range(config.parts())):
        return
    generator, _, mesh = load_frozen(stack, device=device, offline=offline)
    bank, mixer = Bank.load(people_folder, people_config), LatentMixer.load(asset_path("mixer")).to(device)
    advance = stack.enter_context(step_progress())("lessons")
    drawing = half_precision(generator, device)
    taught.build_lessons(drawing, mixer, mesh, shipped(), bank, folder, config, share=share, on_item=advance)


def _lessons_share(folder: Path, people_folder: Path, config: Any, people_config: Any, share: tuple[int, int]) -> None:
    """One process of several."""
    with ExitStack() as stack:
        build_lessons(stack, folder, people_folder, config, people_config, device="cpu", offline=True, share=share)
