"""Reading directions from files, this project's and published ones. Nothing that a file carries is executed.

| content | from | becomes |
|---|---|---|
| safetensors of kind `directions` or `ganspace` | this project | what it holds |
| .npy, [1, D] or [D] | InterFaceGAN's boundaries | one offset for all rows |
| .pt, a tensor [D], [1, D], [L, D] or [1, L, D] | PTI, e4e, ReStyle and others | one offset |
| .pt, `eigvec` [D, N] (and `ckpt`) | rosinality's SeFa | `NAME.0` …, one offset a column |
| .pt, `mean`, `comp`, `std` | e4e's GANSpace | `NAME.0` …, coordinates |
| .pt, `state_dict` with `mapper.` names | StyleCLIP | a mapper |
"""

import io
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latentswap.edit.directions import KIND, MAX_BYTES, MOST_ROWS, Direction, Offset, Scale, load_directions
from latentswap.edit.ganspace import KIND as GANSPACE_KIND
from latentswap.edit.ganspace import Components
from latentswap.edit.mapper import LevelsMapper
from latentswap.errors import UsageError, WeightsError
from latentswap.weights.convert import detect
from latentswap.weights.convert.tensors import Stored
from latentswap.weights.convert.unpickle import plain
from latentswap.weights.header import MAX_FILE_BYTES, read_header

_WIDEST = 4096  # of a code's rows
_NPY = b"\x93NUMPY"
_MAPPER_SCALE = Scale(unit="steps of the mapper, 0.1 of its answer each", low=-5, high=5, usual=1)


def read_directions(
    path: str | Path, *, name: str | None = None, rows: tuple[int, ...] | None = None
) -> dict[str, Direction]:
    """The directions of a file, by name.

    Args:
        path: see the table of this module.
        name: what to call a direction that has no name of its own; the file's name without its suffix by default.
        rows: the rows that they edit; those of the file, or all of them, by default.

    Raises WeightsError for a file that is none of these, UsageError when there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"There is no file {path} to read a direction from.")
    name = name or path.stem
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(16)
        file.seek(0)
        try:
            if head.startswith(_NPY):
                found = {name: _offset(name, _npy(file.read(MAX_BYTES), size))}
            elif head[8:9] == b"{":
                found = _own(path, name)
            else:
                found = _foreign(plain(detect.read(file, size).value), name)
        except WeightsError as error:
            raise WeightsError(f"{path} holds no direction that can be read: {error}") from error
    return found if rows is None else {key: replace(each, rows=rows) for key, each in found.items()}


def _own(path: Path, name: str) -> dict[str, Direction]:
    kind = read_header(path, max_bytes=MAX_FILE_BYTES).metadata.get("kind")
    if kind == GANSPACE_KIND:
        return Components.load(path).directions(name)
    if kind != KIND:
        raise WeightsError(f"it holds {kind or 'weights of an unstated kind'}, not {KIND} or {GANSPACE_KIND}")
    return load_directions(path)


def _foreign(value: Any, name: str) -> dict[str, Direction]:
    """The directions in the value of a pickled file, which `weights.convert` read as data."""
    if isinstance(value, Stored):
        return {name: _offset(name, _array(value))}
    if not isinstance(value, dict):
        raise WeightsError(f"{detect.describe(value)}; docs/editing.md says what is read")
    if {"mean", "comp", "std"} <= set(value):
        mean, comp, std = (_array(value[key]) for key in ("mean", "comp", "std"))
        width = mean.shape[-1] if mean.ndim else 0
        try:
            components = Components(
                mean_D=_tensor(mean.reshape(-1)),
                components_ND=_tensor(comp.reshape(len(std), width)),
                std_N=_tensor(std.reshape(-1)),
            )
        except (TypeError, ValueError) as error:
            raise WeightsError(f"its principal components do not fit together: {error}") from error
        return components.directions(name)
    if "eigvec" in value:
        vectors_DN = _array(value["eigvec"])
        if vectors_DN.ndim != 2 or max(vectors_DN.shape) > _WIDEST:
            raise WeightsError(f"its eigenvectors have the shape {list(vectors_DN.shape)}, not [D, N]")
        return {f"{name}.{i}": _offset(f"{name}.{i}", column) for i, column in enumerate(vectors_DN.T)}
    if isinstance(state := value.get("state_dict"), Mapping):
        return {name: _mapper(name, state)}
    raise WeightsError(f"{detect.describe(value)}; docs/editing.md says what is read")


def _mapper(name: str, state: Mapping[str, Any]) -> Direction:
    own = {key.removeprefix("mapper."): value for key, value in state.items() if str(key).startswith("mapper.")}
    if not own:
        raise WeightsError("its state_dict has no names that start with mapper.")
    mapper = LevelsMapper.from_state({key: _tensor(_array(value)) for key, value in own.items()})
    return Direction(name=name, change=mapper, scale=_MAPPER_SCALE, about="StyleCLIP's mapper")


def _offset(name: str, array: np.ndarray) -> Direction:
    """[D], [1, D], [L, D] or [1, L, D] → a direction. Raises WeightsError."""
    shape = array.shape
    if array.ndim == 3 and shape[0] == 1:
        array = array[0]
    if array.ndim == 1:
        array = array[None]
    if array.ndim != 2 or not 1 <= len(array) <= MOST_ROWS or not 1 <= array.shape[1] <= _WIDEST:
        raise WeightsError(f"its shape is {list(shape)}, not [D], [1, D], [L, D] or [1, L, D]")
    return Direction(name=name, change=Offset(_tensor(array)))


def _npy(data: bytes, size: int) -> np.ndarray:
    """An array of numbers, with its header checked before anything is read. Raises WeightsError."""
    try:
        stream: Any = io.BytesIO(data)
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):
            raise WeightsError(f"it is a NumPy file of version {version}, and only (1, 0) is read")
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        if dtype.kind != "f" or math.prod(shape) * dtype.itemsize != size - stream.tell():
            raise WeightsError(f"an array of {dtype} and shape {list(shape)} does not fit its {size:,} bytes")
        stream.seek(0)
        return np.load(stream, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise WeightsError(f"it is a damaged NumPy file: {error}") from error


def _array(value: Any) -> np.ndarray:
    value = plain(value)
    if not isinstance(value, Stored):
        raise WeightsError(f"a {type(value).__name__} stands where a tensor is needed")
    return value.read()


def _tensor(array: np.ndarray) -> torch.Tensor:
    if array.dtype.kind != "f" or not np.isfinite(array).all():
        raise WeightsError(f"its {array.dtype} values of shape {list(array.shape)} are not all finite numbers")
    return torch.from_numpy(np.array(array, np.float32, order="C"))
