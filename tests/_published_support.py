"""Shared by the tests of published networks: weights with a spread, and layers written plainly, in float64."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F

from latentswap.weights.load import save_tensors

State = dict[str, torch.Tensor]
M = TypeVar("M", bound=torch.nn.Module)


def with_spread(module: M, seed: int = 0) -> M:
    """The module in evaluation with weights and statistics in which a mistake shows: none is 0, 1 or symmetric."""
    random = torch.Generator().manual_seed(seed)
    for name, value in module.state_dict().items():
        if not value.is_floating_point():
            continue
        if name.endswith("running_var"):
            value.copy_(torch.rand(value.shape, generator=random) + 0.5)
        elif value.ndim > 1 and not name.startswith("latent_avg"):
            gain = 1 if name.endswith("linear.weight") else value[0].numel() ** -0.5
            value.copy_(torch.randn(value.shape, generator=random) * gain)
        else:
            centre = 1 if name.endswith("weight") else 0
            value.copy_(centre + torch.rand(value.shape, generator=random) * 0.6 - 0.3)
    return module.eval()


def save_described(path: Path, module: Any, kind: str, **changes: object) -> None:
    """A file of the module's state and configuration, some of whose fields are changed."""
    config = json.dumps(asdict(module.config) | changes)
    save_tensors(path, module.state_dict(), {"kind": kind, "config": config})


def assert_same_network(loaded: torch.nn.Module, saved: torch.nn.Module) -> None:
    """The same state, on the CPU, frozen and in evaluation."""
    before, after = saved.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def doubles(module: torch.nn.Module) -> State:
    return {name: value.double() for name, value in module.state_dict().items()}


def norm(state: State, key: str, x: torch.Tensor) -> torch.Tensor:
    """Batch normalisation with the running statistics."""
    shape = (1, -1) + (1,) * (x.ndim - 2)
    mean, var, gain, shift = (
        state[f"{key}.{n}"].view(shape) for n in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * gain + shift


def prelu(state: State, key: str, x: torch.Tensor) -> torch.Tensor:
    return torch.where(x > 0, x, x * state[f"{key}.weight"].view(1, -1, 1, 1))


def ir_se_units(state: State, units: tuple[int, ...], x: torch.Tensor) -> list[torch.Tensor]:
    """Outputs of all residual units of an IR-SE trunk, from the published names."""
    x = F.conv2d(x, state["input_layer.0.weight"], padding=1)
    x = prelu(state, "input_layer.2", norm(state, "input_layer.1", x))
    firsts = {sum(units[:i]) for i in range(len(units))}
    outputs = []
    for i in range(sum(units)):
        res, short, stride = f"body.{i}.res_layer", f"body.{i}.shortcut_layer", 2 if i in firsts else 1
        y = F.conv2d(norm(state, f"{res}.0", x), state[f"{res}.1.weight"], padding=1)
        y = F.conv2d(prelu(state, f"{res}.2", y), state[f"{res}.3.weight"], stride=stride, padding=1)
        y = norm(state, f"{res}.4", y)
        gate = F.conv2d(y.mean((2, 3), keepdim=True), state[f"{res}.5.fc1.weight"]).clamp_min(0)
        y = y / (1 + torch.exp(-F.conv2d(gate, state[f"{res}.5.fc2.weight"])))
        if f"{short}.0.weight" in state:
            x = norm(state, f"{short}.1", F.conv2d(x, state[f"{short}.0.weight"], stride=stride))
        else:
            x = x[:, :, ::stride, ::stride]
        x = x + y
        outputs.append(x)
    return outputs


def resnet_features(state: State, prefix: str, units: tuple[int, ...], x: torch.Tensor) -> torch.Tensor:
    """A bottleneck ResNet up to its pooled features, from the customary names."""
    x = F.conv2d(x, state[f"{prefix}.conv1.weight"], stride=2, padding=3)
    x = F.max_pool2d(norm(state, f"{prefix}.bn1", x).clamp_min(0), 3, 2, 1)
    for stage, count in enumerate(units, 1):
        for i in range(count):
            key, stride = f"{prefix}.layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            y = norm(state, f"{key}.bn1", F.conv2d(x, state[f"{key}.conv1.weight"])).clamp_min(0)
            y = F.conv2d(y, state[f"{key}.conv2.weight"], stride=stride, padding=1)
            y = norm(state, f"{key}.bn2", y).clamp_min(0)
            y = norm(state, f"{key}.bn3", F.conv2d(y, state[f"{key}.conv3.weight"]))
            if i == 0:
                x = norm(state, f"{key}.downsample.1", F.conv2d(x, state[f"{key}.downsample.0.weight"], stride=stride))
            x = (x + y).clamp_min(0)
    return x.mean((2, 3))


def picture(batch: int, channels: int, height: int, width: int, seed: int = 1) -> torch.Tensor:
    """Random pictures in [-1, 1], of patches and of grain."""
    random = torch.Generator().manual_seed(seed)
    patches = torch.rand(batch, channels, 7, 7, generator=random) * 1.6 - 0.8
    grain = torch.rand(batch, channels, height, width, generator=random) * 0.4 - 0.2
    return F.interpolate(patches, size=(height, width)) + grain


def ramps(side: int) -> torch.Tensor:
    """[1, 3, side, side]: x and y of every pixel in crop fractions, and zero. Bilinear sampling keeps it exact."""
    at = (torch.arange(side) + 0.5) / side
    return torch.stack([at.expand(side, side), at[:, None].expand(side, side), torch.zeros(side, side)])[None]
