"""The Basel Face Model as Deep3DFaceRecon prepares it (BFM_model_front.mat, MATLAB level 5): its 68 landmarks.

Layout: a header of 128 bytes, then elements of a type, a length and data, padded to eight bytes. A matrix is an
element of four: flags, dimensions, name, values in columns.
"""

from typing import Any

import numpy as np

from latentswap.errors import WeightsError
from latentswap.weights.convert.tensors import ITEM_BYTES, Network, Storage, Stored, of_array, view
from latentswap.weights.convert.unpickle import Window

MAGIC = b"MATLAB 5.0 MAT-file"
_HEADER_BYTES = 128
_MATRIX, _COMPRESSED = 14, 15
_TYPES = {
    1: "int8", 2: "uint8", 3: "int16", 4: "uint16", 5: "int32", 6: "uint32", 7: "float32", 9: "float64", 12: "int64",
    13: "uint64",
}  # fmt: skip
_MAX_MATRICES = 100
_NEEDED = ("meanshape", "idBase", "exBase", "keypoints")


def read_mat(source: Window) -> dict[str, Stored]:
    """The matrices of numbers in a file, by name. Raises WeightsError for a damaged or compressed file."""
    if source.bytes_at(124, 4) != b"\x00\x01IM":
        raise WeightsError("it is a MATLAB file of another version or byte order")
    found: dict[str, Stored] = {}
    at = _HEADER_BYTES
    while at < source.length:
        kind, start, count, after = _element(source, at)
        if kind == _COMPRESSED:
            raise WeightsError("it is compressed; save it again without compression")
        if kind != _MATRIX or len(found) > _MAX_MATRICES:
            raise WeightsError("it holds something other than a few matrices")
        if matrix := _matrix(source, start, start + count):
            found[matrix[0]] = matrix[1]
        at = after
    return found


def matches(value: object) -> bool:
    """Whether the matrices are those of the prepared face model."""
    return isinstance(value, dict) and all(isinstance(value.get(name), Stored) for name in _NEEDED)


def convert(value: Any) -> list[Network]:
    """Mean, identity and expression bases at the 68 landmarks, centred on the mean of all vertices."""
    mean_V3 = value["meanshape"].reshape(value["meanshape"].size // 3, 3).read().astype(np.float64)
    corners_K = value["keypoints"].reshape(value["keypoints"].size).read().astype(np.int64) - 1  # MATLAB counts from 1
    if len(corners_K) != 68 or corners_K.min() < 0 or corners_K.max() >= len(mean_V3):
        raise WeightsError(f"its {len(corners_K)} landmarks are not 68 of its {len(mean_V3):,} vertices")
    rows_P = (3 * corners_K[:, None] + np.arange(3)).reshape(-1)
    bases = {}
    for name, ours in (("idBase", "id_PI"), ("exBase", "exp_PX")):
        if len(value[name].shape) != 2 or value[name].shape[0] != mean_V3.size:
            raise WeightsError(f"its {name} does not have three rows for every vertex")
        bases[ours] = of_array(value[name].read()[rows_P].astype(np.float32))
    mean = of_array((mean_V3 - mean_V3.mean(0))[corners_K].astype(np.float32))
    return [Network(kind="shape/deep3d-landmarks", config={}, tensors={"mean_K3": mean, **bases})]


def _element(source: Window, at: int) -> tuple[int, int, int, int]:
    """Type, start of the data, their length, and where the next element begins."""
    word, count = np.frombuffer(source.bytes_at(at, 8), "<u4").tolist()
    if word >> 16:  # a small one: the data stand in the place of the length
        return word & 0xFFFF, at + 4, word >> 16, at + 8
    return word, at + 8, count, at + 8 + count + (-count % 8)


def _matrix(source: Window, at: int, end: int) -> tuple[str, Stored] | None:
    """Name and values of a matrix of real numbers; None for text and structures."""
    parts = []
    while at < end and len(parts) < 4:
        kind, start, count, at = _element(source, at)
        parts.append((kind, start, count))
    if len(parts) != 4 or at > end + 8:
        raise WeightsError("one of its matrices is damaged")
    (_, flags, _), (_, dims, dims_count), (_, name, name_count), (kind, start, count) = parts
    array_class, complex_flag = source.bytes_at(flags, 1)[0], source.bytes_at(flags + 1, 1)[0] & 8
    if not 6 <= array_class <= 15 or complex_flag or kind not in _TYPES or dims_count != 8 or name_count > 64:
        return None
    dtype = _TYPES[kind]
    rows, columns = np.frombuffer(source.bytes_at(dims, 8), "<i4").tolist()
    storage = Storage(
        dtype=dtype,
        numel=count // ITEM_BYTES[dtype],
        read_bytes=lambda offset, size: source.bytes_at(start + offset, size),
    )
    return source.bytes_at(name, name_count).decode("ascii"), view(storage, 0, (rows, columns), (1, rows))
