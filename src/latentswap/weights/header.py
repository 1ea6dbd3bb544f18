"""Reading the header of a safetensors file: what it says that it is, and which tensors it holds.

Layout of the format: 8 bytes little-endian length, that many bytes of JSON, then the raw tensors. The JSON maps each
tensor's name to its dtype, shape and byte range, and `__metadata__` to strings.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentswap.errors import WeightsError

FORMAT_VERSION = "1"
MAX_FILE_BYTES = 4 << 30
MAX_HEADER_BYTES = 16 << 20
MAX_METADATA_BYTES = 4 << 20
MAX_ELEMENTS = 1 << 32

DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a safetensors file declares. Shapes and dtype names by tensor name; the free-form strings of its writer."""

    tensors: dict[str, tuple[tuple[int, ...], str]]
    metadata: dict[str, str]
    file_bytes: int


def read_header(path: Path, *, kind: str | None = None, max_bytes: int = MAX_FILE_BYTES) -> Header:
    """Read and check the header of the file at `path`; its tensors are not read.

    The content decides, not the suffix. With `kind`, the metadata must say that the file is of that kind and in this
    project's format. Raises WeightsError: no regular file, larger than `max_bytes`, not safetensors, a name that
    occurs twice, metadata other than strings, another kind.
    """
    try:
        if not path.is_file():
            raise WeightsError(f"{path} is not a file")
        size = path.stat().st_size
        if size > max_bytes:
            raise WeightsError(f"{path} has {size:,} bytes; at most {max_bytes:,} are accepted")
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 10 or length > min(size - 8, MAX_HEADER_BYTES):
                raise WeightsError(
                    f"{path} is not a safetensors file, or it is truncated; pickled checkpoints are not read, "
                    "because reading one can run code"
                )
            raw = file.read(length)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    try:
        declared = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_duplicates)
        if not isinstance(declared, dict):
            raise ValueError("its header is not a table")
        metadata = _check_metadata(declared.pop("__metadata__", {}))
        tensors = {name: _tensor(name, value) for name, value in declared.items()}
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is not a valid safetensors file: {error}") from error
    if kind is not None:
        _check_kind(path, metadata, kind)
    return Header(tensors=tensors, metadata=metadata, file_bytes=size)


def _check_kind(path: Path, metadata: dict[str, str], kind: str) -> None:
    if (got := metadata.get("kind")) != kind:
        raise WeightsError(f"{path} holds {got or 'weights of an unstated kind'}, where {kind} is needed")
    if (version := metadata.get("format_version")) != FORMAT_VERSION:
        raise WeightsError(f"{path} is of format version {version}; this release reads version {FORMAT_VERSION}")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"these names occur twice in its header: {', '.join(twice)}")
    return result


def _check_metadata(metadata: object) -> dict[str, str]:
    if not isinstance(metadata, dict):
        raise ValueError("its metadata is not a table")
    if bad := sorted(key for key, value in metadata.items() if not isinstance(value, str)):
        raise ValueError(f"its metadata must be strings, and these are not: {', '.join(bad)}")
    if bad := sorted(key for key in metadata if not re.fullmatch(r"[\w.-]{1,64}", key)):
        raise ValueError(f"its metadata has names that are not plain: {bad!r}")
    if sum(map(len, metadata.values())) > MAX_METADATA_BYTES:
        raise ValueError(f"its metadata is longer than {MAX_METADATA_BYTES:,} characters")
    return metadata


def _tensor(name: str, value: object) -> tuple[tuple[int, ...], str]:
    if not isinstance(value, dict) or value.get("dtype") not in DTYPES:
        dtype = value.get("dtype") if isinstance(value, dict) else value
        raise ValueError(f"tensor {name} is of dtype {dtype!r}; known are {', '.join(DTYPES)}")
    shape = value.get("shape")
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n <= MAX_ELEMENTS for n in shape):
        raise ValueError(f"tensor {name} has the shape {shape!r}")
    return tuple(shape), DTYPES[value["dtype"]]
