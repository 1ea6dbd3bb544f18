"""The training loop that every trainee shares: resumable, logged, and stopped by the first non-finite loss.

A run is a folder. `state.safetensors` holds weights, Adam's moments, the step and the configuration; `log.jsonl` one
line per logged step. The same command continues a stopped run, and because every random draw is a function of
(seed, step), it ends with the same weights as an uninterrupted one.
"""

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from latentswap.errors import LatentSwapError, UsageError
from latentswap.weights.load import load_tensors, save_tensors


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long and how fast; what is trained is the trainee's own configuration."""

    out: Path  # folder of the run
    steps: int = 1000
    lr: float = 1e-4  # peak; linear warm-up over `warmup` steps, then a cosine down to `lr_end` times it
    lr_end: float = 0.1  # 1 keeps it constant
    warmup: int = 50
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    clip: float = 1.0  # largest gradient norm
    log_every: int = 10
    save_every: int = 100
    sample_every: int = 200

    def __post_init__(self) -> None:
        for name in ("steps", "log_every", "save_every", "sample_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be 1 or more.")
        if (
            not 0 < self.lr < 1
            or self.warmup < 0
            or self.weight_decay < 0
            or self.clip <= 0
            or not 0 <= self.lr_end <= 1
        ):
            raise UsageError(
                "Learning rate and lr_end lie between 0 and 1, clip above 0, warm-up and weight decay at 0 or more."
            )


class Trainee(Protocol):
    """What the loop trains."""

    name: str

    def module(self) -> torch.nn.Module:
        """The module whose parameters are trained."""
        ...

    def losses(self, step: int) -> dict[str, torch.Tensor]:
        """Scalar losses of one step; `total` is minimised, the rest is logged."""
        ...

    def describe(self) -> dict[str, object]:
        """The configuration, as plain data: stored with the run, and compared on resume."""
        ...

    def sample_sheet(self) -> np.ndarray | None:
        """A uint8 [H, W, 3] picture of what the weights do now, or None."""
        ...


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a listener is told after a logged step."""

    step: int
    steps: int
    losses: Mapping[str, float]
    seconds_per_step: float
    sheet: np.ndarray | None = None


class NonFiniteLossError(LatentSwapError):
    """A loss or gradient became NaN or infinite. The weights of the last save are untouched."""


def learning_rate(step: int, config: LoopConfig) -> float:
    """Linear warm-up, then a cosine from `lr` to `lr_end` · `lr`."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    fall = (1 - config.lr_end) * (1 - math.cos(math.pi * min(1.0, progress))) / 2
    return config.lr * (1 - fall)


def train(trainee: Trainee, config: LoopConfig, on_progress: Callable[[Progress], None] = lambda _: None) -> int:
    """Train until `config.steps`, continuing what the folder holds. Returns the number of steps done now.

    Raises NonFiniteLossError before an update with a non-finite loss or gradient, UsageError when the folder holds a
    run with another configuration.
    """
    config.out.mkdir(parents=True, exist_ok=True)
    module = trainee.module()
    optimizer = _adam(module, config)
    start = _resume(trainee, module, optimizer, config)
    began, sums, counted = time.perf_counter(), {}, 0
    for step in range(start, config.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        optimizer.zero_grad(set_to_none=True)
        losses = trainee.losses(step)
        losses["total"].backward()
        norm = torch.nn.utils.clip_grad_norm_(module.parameters(), config.clip)
        _refuse_non_finite(step, losses, norm)
        optimizer.step()

        for name, value in (losses | {"grad_norm": norm}).items():
            sums[name] = sums.get(name, 0.0) + float(value.detach())
        counted += 1
        done = step + 1
        if done % config.save_every == 0 or done == config.steps:
            save_state(trainee, module, optimizer, config, done)
        sample_now = done % config.sample_every == 0 or done == config.steps
        if done % config.log_every == 0 or sample_now:
            means = {name: total / counted for name, total in sums.items()}
            seconds = (time.perf_counter() - began) / (done - start)
            _log(config.out, {"step": done, **means, "lr": learning_rate(step, config), "seconds_per_step": seconds})
            sheet = trainee.sample_sheet() if sample_now else None
            on_progress(Progress(step=done, steps=config.steps, losses=means, seconds_per_step=seconds, sheet=sheet))
            sums, counted = {}, 0
    return max(0, config.steps - start)


def _adam(module: torch.nn.Module, config: LoopConfig) -> torch.optim.Optimizer:
    settings = {"betas": config.betas, "eps": config.epsilon, "weight_decay": config.weight_decay}
    return torch.optim.AdamW(module.parameters(), lr=config.lr, **settings)


def _refuse_non_finite(step: int, losses: Mapping[str, torch.Tensor], norm: torch.Tensor) -> None:
    bad = [name for name, value in losses.items() if not torch.isfinite(value.detach()).all()]
    if bad or not torch.isfinite(norm):
        raise NonFiniteLossError(
            f"Step {step}: {', '.join(bad) or 'the gradient'} is not finite; nothing was updated. The last save is "
            "intact. Lower --lr, or look at the sample sheets for where it went wrong."
        )


def save_state(
    trainee: Trainee, module: torch.nn.Module, optimizer: torch.optim.Optimizer, config: LoopConfig, step: int
) -> Path:
    """Write `state.safetensors` atomically: weights, Adam's moments, step and configuration."""
    tensors = {f"module.{name}": value for name, value in module.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in state.items()}
    metadata = {
        "format_version": "1",
        "kind": "training-state",
        "trainee": trainee.name,
        "step": str(step),
        "config": json.dumps(trainee.describe(), sort_keys=True),
    }
    path = config.out / "state.safetensors"
    save_tensors(path, {name: value.detach().contiguous().cpu() for name, value in tensors.items()}, metadata)
    return path


def _resume(trainee: Trainee, module: torch.nn.Module, optimizer: torch.optim.Optimizer, config: LoopConfig) -> int:
    path = config.out / "state.safetensors"
    if not path.exists():
        return 0
    tensors, metadata = load_tensors(path, kind="training-state")
    then, now = json.loads(metadata["config"]), json.loads(json.dumps(trainee.describe()))
    differing = sorted(key for key in then.keys() | now.keys() if then.get(key) != now.get(key))
    if metadata["trainee"] != trainee.name or differing:
        raise UsageError(
            f"{config.out} holds a run of {metadata['trainee']} with other settings ({', '.join(differing)}). "
            "Give the same settings to continue it, or another folder to start anew."
        )
    module.load_state_dict({k[7:]: v for k, v in tensors.items() if k.startswith("module.")}, strict=True)
    saved = optimizer.state_dict()
    saved["state"] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            saved["state"].setdefault(int(index), {})[key] = value
    optimizer.load_state_dict(saved)
    return int(metadata["step"])


def _log(out: Path, row: Mapping[str, float]) -> None:
    with open(out / "log.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())
