"""Networks whose file describes them: the metadata's "config" says how large to build what its tensors fill."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from latentswap.errors import WeightsError
from latentswap.weights.header import read_header
from latentswap.weights.load import load_into

Config = TypeVar("Config")
Network = TypeVar("Network", bound=torch.nn.Module)


def load_described(
    path: str | Path, *, kind: str, config: Callable[..., Config], build: Callable[[Config], Network]
) -> Network:
    """The frozen network in the file at `path`, built without memory of its own and filled from the file.

    `config` takes the fields that the metadata holds as JSON and checks them; `build` makes the network. Raises
    WeightsError for a file of another kind, fields that are none, and tensors that are not exactly the network's.
    """
    path = Path(path)
    metadata = read_header(path, kind=kind).metadata
    try:
        described = config(**json.loads(metadata["config"]))
        with torch.device("meta"):
            network = build(described)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} does not describe a network of kind {kind}: {error}") from error
    load_into(network, path, kind=kind)
    return network.eval().requires_grad_(False)
