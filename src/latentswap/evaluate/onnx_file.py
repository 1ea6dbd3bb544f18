"""What an ONNX file says about files beside itself, read before any library opens it.

An ONNX model may keep tensors in other files, named by paths in the model. A model that was downloaded must not make
this program read files of the user elsewhere. The format is protocol buffers: fields of (number, wire type, value).
"""

from collections.abc import Iterator
from pathlib import Path

from latentswap.errors import WeightsError

MAX_BYTES = 2 << 30  # protocol buffers end there
_DEEPEST = 32  # nested graphs

# Message → its fields that can hold, or lead to, a tensor: field number → message.
_LEADS = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}


def check_onnx(path: Path) -> None:
    """Raise WeightsError unless `path` is an ONNX model all of whose tensors lie in it or beside it in its folder."""
    try:
        if not path.is_file():
            raise WeightsError(f"{path} is not a file")
        if path.stat().st_size > MAX_BYTES:
            raise WeightsError(f"{path} has {path.stat().st_size:,} bytes; at most {MAX_BYTES:,} are accepted")
        data = memoryview(path.read_bytes())
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    try:
        if not any(number == 7 and value is not None for number, value in _fields(data)):
            raise ValueError("it holds no graph")
        places = list(_external(data, "model", _DEEPEST))
    except (ValueError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path} is not an ONNX model, or it is truncated: {error}") from error
    folder = path.resolve().parent
    for place in places:
        if not (folder / place).resolve().is_relative_to(folder):
            raise WeightsError(f"{path} wants to read {place!r} outside of its own folder, which is refused")


def _external(data: memoryview, message: str, depth: int) -> Iterator[str]:
    """The locations of tensors that are kept in other files."""
    if not depth:
        raise ValueError("its graphs are nested too deeply")
    for number, value in _fields(data):
        inner = _LEADS[message].get(number)
        if inner is None or value is None:
            continue
        if inner == "entry":
            entry = dict(_fields(value))
            if bytes(entry.get(1) or b"") == b"location":
                yield bytes(entry.get(2) or b"").decode("utf-8")
        else:
            yield from _external(value, inner, depth - 1)


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview | None]]:
    """(field number, bytes) of a message; None for the bytes of a number."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            _, at = _varint(data, at)
            yield number, None
            continue
        if wire == 2:
            length, at = _varint(data, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if at + length > len(data):
            raise ValueError(f"a field of {length:,} bytes at byte {at}, where {len(data) - at:,} are left")
        yield number, data[at : at + length] if wire == 2 else None
        at += length


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("it ends within a number")
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    raise ValueError(f"a number of more than 64 bits at byte {at}")
