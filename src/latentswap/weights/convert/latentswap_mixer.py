"""LatentSwap's published checkpoint (Lightning): one small network for every row of W+."""

import re
from typing import Any

import numpy as np

from latentswap.errors import WeightsError
from latentswap.weights.convert.rosinality import tensors
from latentswap.weights.convert.tensors import Network, Stored, of_array, shape_of, under

_PREFIX = "identity_mixer."


def matches(value: object) -> bool:
    """Whether the file has the state of an identity mixer for W+ codes."""
    state = value.get("state_dict") if isinstance(value, dict) else None
    return isinstance(state, dict) and any(isinstance(name, str) and name.startswith(_PREFIX) for name in state)


def convert(value: Any) -> list[Network]:
    """The mixer, the layers of its rows stacked. The generator and the loss networks in the file are not read.

    Raises WeightsError for a mixer of another shape (those for single z or w codes among them).
    """
    state = under(_PREFIX, tensors(value["state_dict"]))
    names = [re.fullmatch(r"mixer\.(\d+)\.(\d+)\.(weight|bias)", name) for name in state]
    rows = 1 + max((int(match[1]) for match in names if match), default=-1)
    layers = sorted({int(match[2]) for match in names if match})
    wanted = {f"mixer.{r}.{k}.{part}" for r in range(min(rows, 64)) for k in layers for part in ("weight", "bias")}
    if not state or wanted != state.keys() or layers != list(range(0, 2 * len(layers), 2)):
        raise WeightsError("its mixer is not one of several rows of W+ with the same layers in each")
    shapes = [shape_of(state, f"mixer.0.{k}.weight", 2) for k in layers]
    w_dim = shapes[-1][0]
    stacked = {"centre": of_array(np.zeros(w_dim, np.float32)), "scale": of_array(np.ones(w_dim, np.float32))}
    for i, k in enumerate(layers):
        for part in ("weight", "bias"):
            stacked[f"layers.{i}.{part}"] = _stack([state[f"mixer.{row}.{k}.{part}"] for row in range(rows)])
    config = {"num_ws": rows, "w_dim": w_dim, "hidden": [shape[0] for shape in shapes[:-1]], "residual": 1.0}
    notes = "the residual coefficient is not in the file; 1, the published default, is taken"
    return [Network(kind="mixer", config=config, tensors=stacked, notes=notes)]


def _stack(parts: list[Stored]) -> Stored:
    first = parts[0]
    if any(part.shape != first.shape or part.dtype != first.dtype for part in parts):
        raise WeightsError("the rows of its mixer differ in size")
    return Stored((len(parts), *first.shape), first.dtype, lambda: np.stack([part.read() for part in parts]))
