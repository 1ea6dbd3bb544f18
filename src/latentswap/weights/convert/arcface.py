"""ArcFace networks: TreB1eN's model_ir_se50.pth and insightface's iresnet50 and 100 (backbone.pth)."""

import itertools
import re
from collections.abc import Mapping
from typing import Any

from latentswap.errors import WeightsError
from latentswap.weights.convert.rosinality import tensors
from latentswap.weights.convert.tensors import Network, Stored, shape_of


def matches_ir_se50(value: object) -> bool:
    """Whether the file is a flat state dictionary of IR-SE50 with its output layer."""
    return isinstance(value, dict) and {"input_layer.0.weight", "output_layer.3.weight"} <= value.keys()


def matches_iresnet(value: object) -> bool:
    """Whether the file is a flat state dictionary of insightface's iresnet."""
    return isinstance(value, dict) and {"layer1.0.prelu.weight", "fc.weight", "features.weight"} <= value.keys()


def convert_ir_se50(value: Any) -> list[Network]:
    """The network under its own names."""
    state = tensors(value)
    config = {"family": "ir_se50", "embedding_dim": shape_of(state, "output_layer.3.weight", 2)[0], **trunk(state)}
    return [Network(kind="identity/arcface", config=config, tensors=state)]


def convert_iresnet(value: Any) -> list[Network]:
    """The network under its own names."""
    state = tensors(value)
    units, widths = stages(state, r"layer(\d+)\.(\d+)\.conv1\.weight")
    config = {
        "family": "iresnet",
        "units": units,
        "widths": widths,
        "embedding_dim": shape_of(state, "fc.weight", 2)[0],
    }
    return [Network(kind="identity/arcface", config=config, tensors=state)]


def trunk(state: Mapping[str, Stored]) -> dict[str, list[int]]:
    """Units and widths of an IR-SE50 trunk: its units are in one row, and the width changes from stage to stage."""
    numbers = sorted(
        int(match[1]) for name in state if (match := re.fullmatch(r"body\.(\d+)\.res_layer\.1\.weight", name))
    )
    if not numbers or numbers != list(range(len(numbers))):
        raise WeightsError("its trunk is not IR-SE50")
    widths = [shape_of(state, f"body.{i}.res_layer.1.weight", 4)[0] for i in numbers]
    groups = [(width, len(list(units))) for width, units in itertools.groupby(widths)]
    return {"units": [count for _, count in groups], "widths": [width for width, _ in groups]}


def stages(state: Mapping[str, Stored], pattern: str) -> tuple[list[int], list[int]]:
    """Units and widths of a residual network's stages; `pattern` finds (stage, unit) in a weight's name."""
    found: dict[int, int] = {}
    widths: dict[int, int] = {}
    for name in state:
        if match := re.fullmatch(pattern, name):
            stage = int(match[1])
            found[stage] = max(found.get(stage, 0), int(match[2]) + 1)
            widths[stage] = shape_of(state, name, 4)[0]
    return [found[stage] for stage in sorted(found)], [widths[stage] for stage in sorted(widths)]
