"""What the training commands share: frozen networks, people, processes, and what watches a run."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import tyro

from latentswap.cli._common import fetch_progress, step_progress

RunFolder = Annotated[Path, tyro.conf.arg(aliases=["-o"], help="folder of the run; continued if it holds one")]
PeopleFolder = Annotated[
    Path | None,
    tyro.conf.arg(name="people-from", help="folder of people that `train people` made; default: made in the run's"),
]


def bank_config(*, people: int, seed: int, views: int = 2) -> Any:
    from latentswap.train.bank import BankConfig

    return BankConfig(people=people, views=views, seed=seed)


def load_frozen(stack: ExitStack, *, device: str, offline: bool) -> tuple[Any, Any, Any]:
    """Generator, identity network and mesh network."""
    from latentswap.runtime.memory import keep_freed_memory

    keep_freed_memory()
    from latentswap.networks import load_trunks

    progress = stack.enter_context(fetch_progress())
    return load_trunks(device=device, offline=offline, progress=progress)


def half_precision(generator: Any, device: str) -> Any:
    """The generator in bfloat16, in place, where that is fast."""
    from latentswap.runtime.precision import bfloat16_is_native

    return generator.half_precision() if bfloat16_is_native(device) else generator


def bank_for(stack: ExitStack, folder: Path, config: Any, *, device: str, offline: bool) -> Any:
    """The people in `folder`; those that it lacks are made."""
    from latentswap.train.bank import Bank, part_path

    if not all(part_path(folder, part).exists() for part in range(config.parts())):
        build(stack, load_frozen(stack, device=device, offline=offline), folder, config, device=device)
    return Bank.load(folder, config)


def build(stack: ExitStack, frozen: tuple[Any, Any, Any], folder: Path, config: Any, *, device: str) -> None:
    from latentswap.train.bank import build_bank

    generator, embedder, mesh = frozen
    advance = stack.enter_context(step_progress())("people")
    build_bank(half_precision(generator, device), embedder, mesh, folder, config, on_item=advance)


def build_in_processes(folder: Path, config: Any, workers: int) -> None:
    """`build` on so many processes."""
    share_among_processes(_build_share, (folder, config), workers)


def share_among_processes(work: Callable[..., None], arguments: tuple[Any, ...], workers: int) -> None:
    """Call work(*arguments, (k, workers)) for every k in a process of its own, one thread each."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        for done in [pool.submit(work, *arguments, (k, workers)) for k in range(workers)]:
            done.result()


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _build_share(folder: Path, config: Any, share: tuple[int, int]) -> None:
    """One process of `build_in_processes`."""
    from latentswap.train.bank import build_bank

    with ExitStack() as stack:
        generator, embedder, mesh = load_frozen(stack, device="cpu", offline=True)
    build_bank(half_precision(generator, "cpu"), embedder, mesh, folder, config, share=share)


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
