"""SimSwap's published files in miniature: names and shapes of its networks, written from their specification."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _convert_support import Shapes, _norm, upstream_modules
from torch import nn

# The stages of each variant: number in the name, channels before and after, as shares of the ID blocks' width.
STAGES = {
    "legacy224": [("1", 8, 4), ("2", 4, 2), ("3", 2, 1)],
    "legacy512": [("0", 16, 8), ("1", 8, 4), ("2", 4, 2), ("3", 2, 1)],
    "fix": [("1", 8, 4), ("2", 4, 2), ("3", 2, 1)],
    "fix_deep": [("1", 8, 4), ("2", 4, 2), ("3", 2, 1), ("4", 1, 1)],
}


def _conv(name: str, c_in: int, c_out: int, side: int) -> Shapes:
    return {f"{name}.weight": (c_out, c_in, side, side), f"{name}.bias": (c_out,)}


def generator_shapes(variant: str, width: int = 512, identity: int = 512, blocks: int = 9) -> Shapes:
    """A bare state dictionary of *_net_G.pth."""
    first = width // STAGES[variant][0][1]
    shapes = {**_conv("first_layer.1", 3, first, 7), **_norm("first_layer.2", first)}
    for number, before, after in STAGES[variant]:
        c_in, c_out = width // before, width // after
        shapes |= {**_conv(f"down{number}.0", c_in, c_out, 3), **_norm(f"down{number}.1", c_out)}
        shapes |= {**_conv(f"up{number}.1", c_out, c_in, 3), **_norm(f"up{number}.2", c_in)}
    for i in range(blocks):
        for half in "12":
            shapes |= _conv(f"BottleNeck.{i}.conv{half}.1", width, width, 3)
            style = f"BottleNeck.{i}.style{half}.linear"
            shapes |= {f"{style}.weight": (2 * width, identity), f"{style}.bias": (2 * width,)}
    return shapes | _conv("last_layer.1", first, 3, 7)


def discriminator_shapes(width: int = 64) -> Shapes:
    """latest_net_D1.pth, and D2."""
    shapes = _conv("down1.0", 3, width, 4)
    for name, c_in, c_out in (("down2", 1, 2), ("down3", 2, 4), ("down4", 4, 8), ("conv1", 8, 8)):
        shapes |= {**_conv(f"{name}.0", c_in * width, c_out * width, 4), **_norm(f"{name}.1", c_out * width)}
    return shapes | _conv("conv2.0", 8 * width, 1, 4)


def arcface_shapes(
    units: tuple[int, ...] = (3, 4, 23, 3), widths: tuple[int, ...] = (64, 128, 256, 512), embedding: int = 512
) -> Shapes:
    """The state of arcface_checkpoint.tar's module, SE-LResNet101E-IR."""
    shapes: Shapes = {"conv1.weight": (widths[0], 3, 3, 3), **_norm("bn1", widths[0]), "prelu.weight": (1,)}
    c_in = widths[0]
    for stage, (count, c) in enumerate(zip(units, widths, strict=True), 1):
        for i in range(count):
            unit, reduced = f"layer{stage}.{i}", c // 16
            shapes |= {**_norm(f"{unit}.bn0", c_in), f"{unit}.conv1.weight": (c_in, c_in, 3, 3)}
            shapes |= {**_norm(f"{unit}.bn1", c_in), f"{unit}.prelu.weight": (1,)}
            shapes |= {f"{unit}.conv2.weight": (c, c_in, 3, 3), **_norm(f"{unit}.bn2", c)}
            shapes |= {f"{unit}.se.fc.0.weight": (reduced, c), f"{unit}.se.fc.0.bias": (reduced,)}
            shapes |= {f"{unit}.se.fc.1.weight": (1,)}
            shapes |= {f"{unit}.se.fc.2.weight": (c, reduced), f"{unit}.se.fc.2.bias": (c,)}
            if i == 0 and stage > 1:
                shapes |= {f"{unit}.downsample.0.weight": (c, c_in, 1, 1), **_norm(f"{unit}.downsample.1", c)}
            c_in = c
    shapes |= {**_norm("bn2", c_in), "fc.weight": (embedding, c_in * 49), "fc.bias": (embedding,)}
    return shapes | _norm("bn3", embedding)


class ResNet(nn.Module):
    pass


class IRBlock(nn.Module):
    pass


class SEBlock(nn.Module):
    pass


class ArcMarginModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(5, 3))


def _leaf(state: dict[str, torch.Tensor], spatial: bool) -> nn.Module:
    weight = state["weight"]
    if "running_mean" in state:
        made: nn.Module = (nn.BatchNorm2d if spatial else nn.BatchNorm1d)(len(weight))
    elif weight.ndim == 4:
        made = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], bias=False)
    else:
        made = nn.PReLU() if weight.ndim == 1 else nn.Linear(weight.shape[1], weight.shape[0])
    made.load_state_dict(state)
    return made


def arcface_module(state: dict[str, torch.Tensor], name: str = "") -> nn.Module:
    """The tree of modules that the state dictionary is of, with upstream's classes."""
    prefix = name + "." if name else ""
    inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if "weight" in inside:
        return _leaf(inside, name != "bn3")
    last = name.rpartition(".")[2]
    block = last.isdecimal() and name.startswith("layer")
    module = IRBlock() if block else SEBlock() if last == "se" else nn.Sequential() if name else ResNet()
    for child in dict.fromkeys(key.partition(".")[0] for key in inside):
        module.add_module(child, arcface_module(state, prefix + child))
    if not name:
        module.add_module("dropout", nn.Dropout())
    return module.eval()


def save_arcface(
    state: dict[str, torch.Tensor], path: Path, *, zipped: bool, parallel: bool = False, carried: Any = None
) -> Path:
    """arcface_checkpoint.tar: the module itself, or as the older file the whole state of a training run.

    carried: one more attribute of the module.
    """
    classes = {made.__name__: made for made in (ResNet, IRBlock, SEBlock)}
    with upstream_modules(models__arcface_models=classes, models={"ArcMarginModel": ArcMarginModel}):
        module = arcface_module(state)
        if carried is not None:
            module.__dict__["carried"] = carried
        value: Any = module
        if parallel:
            optimiser = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
            for parameter in module.parameters():
                optimiser.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            value = {
                "epoch": 7,
                "epochs_since_improvement": 0,
                "acc": np.float64(0.99),
                "model": nn.DataParallel(module),
            }
            value |= {"metric_fc": nn.DataParallel(ArcMarginModel()), "optimizer": optimiser}
        with warnings.catch_warnings(action="ignore"):  # torch cannot find the classes' source code
            torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path
