"""Whole pickled modules of torch: their tensors, by dotted name. Nothing of the module's class is looked at."""

from typing import Any

from latentswap.errors import WeightsError
from latentswap.weights.convert.tensors import Stored
from latentswap.weights.convert.unpickle import Record, as_state

_MAX_MODULES = 4_000
_MAX_DEPTH = 12


def state_of(module: Any) -> dict[str, Stored]:
    """The state dictionary of a pickled module. Raises WeightsError for records that are no tree of modules."""
    state: dict[str, Stored] = {}
    open_ = [(module, "", 0)]
    seen = 0
    while open_:
        record, prefix, depth = open_.pop()
        seen += 1
        if seen > _MAX_MODULES or depth > _MAX_DEPTH:
            raise WeightsError("its modules are nested deeper, or are more, than any published network's")
        if not isinstance(record, Record):
            raise WeightsError("it holds something other than a module where a module is expected")
        attributes = as_state(record)
        for group in ("_parameters", "_buffers"):
            for key, tensor in as_state(attributes.get(group, {})).items():
                if isinstance(tensor, Stored):
                    state[prefix + key] = tensor
                elif tensor is not None:
                    raise WeightsError(f"{prefix[:200]}{key[:100]} is not a tensor")
        children = as_state(attributes.get("_modules", {}))
        open_ += [(child, f"{prefix}{key}.", depth + 1) for key, child in children.items() if child is not None]
    return state
