"""Tensors of a foreign file, known by shape and dtype and read from the disk one at a time, when they are needed."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from latentswap.errors import WeightsError

MAX_TENSOR_BYTES = 256 << 20  # the largest published is 51 MB
ITEM_BYTES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "bool": 1,
    "uint64": 8, "uint32": 4, "uint16": 2, "uint8": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """One tensor. `read` gives its values as a little-endian, contiguous array."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * ITEM_BYTES[self.dtype]

    def reshape(self, *shape: int) -> "Stored":
        """The same values in another shape of as many elements. Raises WeightsError."""
        if math.prod(shape) != self.size:
            raise WeightsError(f"a tensor of shape {list(self.shape)} stands where {list(shape)} is needed")
        return Stored(shape, self.dtype, lambda: self.read().reshape(shape))


def of_array(array: np.ndarray) -> Stored:
    """A tensor that is in memory already."""
    return Stored(array.shape, str(array.dtype), lambda: np.asarray(array, order="C"))


@dataclass(frozen=True, kw_only=True)
class Storage:
    """A flat run of elements of one dtype in a file. `read_bytes(start, count)` gives bytes of it."""

    dtype: str
    numel: int
    read_bytes: Callable[[int, int], bytes]


def view(storage: Storage, offset: Any, shape: Any, stride: Any) -> Stored:
    """A tensor laid over a storage. Raises WeightsError unless every element lies in it and none is used twice over.

    A stride of zero makes a tensor of any size out of one element; nothing published has one.
    """
    if not (type(offset) is int and _lengths(shape) and _lengths(stride) and len(shape) == len(stride) and offset >= 0):
        raise WeightsError("a tensor is described by something other than whole numbers")
    size, bytes_each = math.prod(shape), ITEM_BYTES[storage.dtype]
    if size * bytes_each > MAX_TENSOR_BYTES or len(shape) > 8:
        raise WeightsError(f"a tensor claims the shape {list(shape)[:8]}, larger than any published one")
    if any(step == 0 for length, step in zip(shape, stride, strict=True) if length > 1) or size > storage.numel:
        raise WeightsError(f"a tensor of shape {list(shape)} claims more elements than its file holds")
    span = 1 + sum((length - 1) * step for length, step in zip(shape, stride, strict=True)) if size else 0
    if offset + span > storage.numel:
        raise WeightsError(f"a tensor of shape {list(shape)} lies outside its storage")

    def read() -> np.ndarray:
        if storage.dtype == "bfloat16":
            raise WeightsError("a tensor that is needed is bfloat16; no published network of these families is")
        flat = np.frombuffer(storage.read_bytes(offset * bytes_each, span * bytes_each), _little(storage.dtype))
        steps = tuple(step * bytes_each for step in stride)
        return np.asarray(np.lib.stride_tricks.as_strided(flat, shape, steps), order="C")

    return Stored(shape, storage.dtype, read)


@dataclass(frozen=True, kw_only=True)
class Network:
    """One network of a file. `config` is what its class is built from; `suffix` tells it from the first in the file.

    variants: what the configuration's `variant` can be; several where the file cannot tell, and it must be asked for.
    """

    kind: str
    config: dict[str, Any]
    tensors: dict[str, Stored]
    suffix: str = ""
    variants: tuple[str, ...] = ()
    notes: str = ""
    parameters: int = field(init=False)

    def __post_init__(self) -> None:
        floats = (value.size for value in self.tensors.values() if value.dtype.startswith(("float", "bfloat")))
        object.__setattr__(self, "parameters", sum(floats))


def under(prefix: str, state: Mapping[str, Stored]) -> dict[str, Stored]:
    """The tensors whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def shape_of(state: Mapping[str, Stored], name: str, ndim: int) -> tuple[int, ...]:
    """Shape of the tensor `name`, which must have so many dimensions. Raises WeightsError."""
    if name not in state:
        raise WeightsError(f"the tensor {name} is missing")
    if len(state[name].shape) != ndim:
        raise WeightsError(f"the tensor {name} has the shape {list(state[name].shape)}, not one of {ndim} dimensions")
    return state[name].shape


def _lengths(value: object) -> bool:
    return isinstance(value, tuple) and all(type(n) is int and 0 <= n < 1 << 40 for n in value)


def _little(dtype: str) -> np.dtype:
    return np.dtype(dtype).newbyteorder("<")
