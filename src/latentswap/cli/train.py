"""`latentswap train`: the networks that this project trains, each without a data set.

A run is a folder; the same command continues it. `log.jsonl` and TensorBoard files hold the losses, `samples/` the
sample sheets, and the trained network is written as `NAME.safetensors` at the end.
"""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import tyro

from latentswap.cli._common import fetch_progress, step_progress
from latentswap.cli._options import Device, Offline, check_seed
from latentswap.errors import UsageError

RunFolder = Annotated[Path, tyro.conf.arg(aliases=["-o"], help="folder of the run; continued if it holds one")]


def train_mixer(
    *,
    out: RunFolder,
    steps: int = 1300,
    batch: int = 8,
    lr: float = 5e-4,
    people: int = 3000,
    identity: float = 1.0,
    latent: float = 0.3,
    shape: float = 0.5,
    keep: float = 0.5,
    same: float = 0.1,
    hidden: tuple[int, ...] = (512, 512),
    seed: int = 0,
    sample_every: int = 100,
    device: Device = "cpu",
    offline: Offline = False,
) -> None:
    """Train the latent mixer on people who do not exist (LatentSwap's three losses).

    Args:
        steps: Optimiser steps in all; a run that was stopped goes on from its last save.
        batch: Pairs a step.
        people: How many people the pairs are drawn from; they are made once, at the start.
        identity: Weight of the identity loss: more takes more of the source.
        latent: Weight of the latent penalty: more keeps more of the target.
        shape: Weight of the shape loss: source's face shape, target's pose and expression.
        keep: Weight of the target's eyes and mouth.
        same: Share of pairs in which source and target are one person.
        hidden: Widths of each row's layers; the paper's are 1024 1024 512 512.
    """
    check_seed(seed)
    from latentswap.swappers.latentswap import MixerConfig
    from latentswap.train.loop import LoopConfig
    from latentswap.train.mixer import MixerTrainee, MixerTraining

    loop = LoopConfig(out=out, steps=steps, lr=lr, sample_every=sample_every, save_every=50)
    config = MixerTraining(
        mixer=MixerConfig(hidden=hidden),
        batch=batch,
        seed=seed,
        same=same,
        identity=identity,
        latent=latent,
        shape=shape,
        keep=keep,
    )
    check_people(people)
    with ExitStack() as stack:
        generator, embedder, mesh = load_frozen(stack, device=device, offline=offline)
        bank = bank_for(stack, out, generator, embedder, mesh, people=people, seed=seed)
        trainee = MixerTrainee(half_precision(generator, device), embedder, mesh, bank, config)
        losses = run(stack, trainee, loop)
        summary = {"steps": steps, "batch": batch, "lr": lr, "people": people, "seed": seed, "losses": losses}
        trainee.mixer.save(out / "mixer.safetensors", summary=summary | {"config": trainee.describe()})
    print(out / "mixer.safetensors")


def train_population(
    *, out: RunFolder, people: int = 3000, seed: int = 0, device: Device = "cpu", offline: Offline = False
) -> None:
    """Measure the generated population: mean identity embedding and the shape model.

    Args:
        people: How many people are looked at.
    """
    check_seed(seed)
    check_people(people)
    from latentswap.train.bank import save_population

    with ExitStack() as stack:
        generator, embedder, mesh = load_frozen(stack, device=device, offline=offline)
        bank = bank_for(stack, out, generator, embedder, mesh, people=people, seed=seed)
        save_population(out / "population.safetensors", bank)
    print(out / "population.safetensors")


COMMANDS = {"mixer": train_mixer, "population": train_population}


def check_people(people: int) -> None:
    if not 16 <= people <= 1_000_000:
        raise UsageError(f"--people is {people}; it must be 16 to 1,000,000.")


def load_frozen(stack: ExitStack, *, device: str, offline: bool) -> tuple[Any, Any, Any]:
    """Generator, identity network and mesh network."""
    from latentswap.runtime.memory import keep_freed_memory

    keep_freed_memory()
    from latentswap.networks import load_trunks

    progress = stack.enter_context(fetch_progress())
    return load_trunks(device=device, offline=offline, progress=progress)


def half_precision(generator: Any, device: str) -> Any:
    """The generator in bfloat16 where the processor multiplies it natively: a third less time a step."""
    import torch

    native = device != "cpu" or torch.cpu._is_amx_tile_supported()
    return generator.to(torch.bfloat16) if native else generator


def bank_for(stack: ExitStack, out: Path, generator: Any, embedder: Any, mesh: Any, *, people: int, seed: int) -> Any:
    """The run's people: read from its folder, or made and kept there."""
    from latentswap.train.bank import Bank, build_bank
    from latentswap.train.sample import CodeConfig

    path = out / "bank.safetensors"
    if path.exists():
        bank = Bank.load(path)
        if len(bank) != people:
            raise UsageError(
                f"{path} holds {len(bank)} people, not {people}; give --people {len(bank)} or another folder."
            )
        return bank
    out.mkdir(parents=True, exist_ok=True)
    advance = stack.enter_context(step_progress())("people")
    bank = build_bank(generator, embedder, mesh, count=people, seed=seed, codes=CodeConfig(), on_item=advance)
    bank.save(path, seed=seed)
    return Bank.load(path)


def run(stack: ExitStack, trainee: Any, loop: Any) -> dict[str, float]:
    """Train with a progress bar, sample sheets and TensorBoard; returns the last logged losses."""
    from latentswap.train.loop import Progress, train

    listeners: list[Callable[[Progress], None]] = [_bar(stack), _sheets(loop.out)]
    if (board := _tensorboard(stack, loop.out)) is not None:
        listeners.append(board)
    last: dict[str, float] = {}

    def tell(progress: Progress) -> None:
        last.update(progress.losses)
        for listener in listeners:
            listener(progress)

    train(trainee, loop, tell)
    return {name: round(value, 4) for name, value in last.items()}


def _bar(stack: ExitStack) -> Callable[[Any], None]:
    import sys

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    def text(progress: Any) -> str:
        return "  ".join(f"{name} {value:.3f}" for name, value in progress.losses.items())

    if not sys.stderr.isatty():
        return lambda p: print(f"step {p.step}/{p.steps}  {text(p)}  {p.seconds_per_step:.2f} s", file=sys.stderr)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    bars = stack.enter_context(Progress(*columns, console=Console(stderr=True)))
    task = bars.add_task("", total=None)
    return lambda p: bars.update(task, completed=p.step, total=p.steps, description=text(p))


def _sheets(out: Path) -> Callable[[Any], None]:
    from latentswap.media.atomic import write_atomic
    from latentswap.media.image import as_image, encode

    def write(progress: Any) -> None:
        if progress.sheet is not None:
            folder = out / "samples"
            folder.mkdir(exist_ok=True)
            write_atomic(folder / f"step-{progress.step:06d}.png", encode(as_image(progress.sheet), ".png"))

    return write


def _tensorboard(stack: ExitStack, out: Path) -> Callable[[Any], None] | None:
    """TensorBoard files, if tensorboard is installed (the `train` extra)."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    board = SummaryWriter(str(out / "tensorboard"))
    stack.callback(board.close)

    def write(progress: Any) -> None:
        for name, value in progress.losses.items():
            board.add_scalar(name, value, progress.step)
        if progress.sheet is not None:
            board.add_image("samples", progress.sheet, progress.step, dataformats="HWC")

    return write
