"""dlib's serialised face recognition network (`.dat`) → named tensors.

The format: an integer is one control byte (low nibble: how many bytes follow; top bit: negative) and little-endian
bytes; a tensor is the integers (version 2, n, k, nr, nc) and then raw little-endian float32. Layers are found by
their tags, from the input to the output.
"""

import re
from collections.abc import Mapping

import numpy as np

from latentswap.errors import WeightsError

_MEMBER = "dlib_face_recognition_resnet_model_v1.dat"
_CONVOLUTIONS = 29


def convert_dlib_resnet(members: Mapping[str, bytes]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Convert dlib's ResNet to the tensors of `identity.dlib_resnet.DlibResNet`.

    Returns (tensors, metadata): `convs.{i}.weight|bias` for i = 0…28 from the input on, with the affine layer that
    follows each convolution folded in, and `fc.weight` [128, 256]. Raises WeightsError for any other file.
    """
    data = next(value for name, value in members.items() if name.endswith(_MEMBER))
    convs, affines, fc = [], [], None
    for match in re.finditer(rb"con_4|affine_|fc_2", data):
        try:
            if match[0] == b"con_4":
                values, at = _tensor(data, match.end())
                shape, at = _integers(data, at, 3)
                convs.append(_split(values, *shape))
            elif match[0] == b"affine_":
                values, _ = _tensor(data, match.end())
                affines.append(values.reshape(2, -1))
            else:
                fc = _fully_connected(data, match.end())
        except (ValueError, IndexError) as error:
            raise WeightsError(f"{_MEMBER} is damaged near byte {match.start()}: {error}") from error
    if len(convs) != _CONVOLUTIONS or len(affines) != _CONVOLUTIONS or fc is None:
        raise WeightsError(f"{_MEMBER} has {len(convs)} convolutions and {len(affines)} affine layers, not 29 each.")
    tensors = {"fc.weight": np.ascontiguousarray(fc.T)}
    for i, ((weight, bias), (gamma, beta)) in enumerate(zip(convs, affines, strict=True)):
        tensors |= {f"convs.{i}.weight": weight * gamma[:, None, None, None], f"convs.{i}.bias": bias * gamma + beta}
    return tensors, {"architecture": "dlib-resnet-v1"}


def _integers(data: bytes, at: int, count: int) -> tuple[list[int], int]:
    values = []
    for _ in range(count):
        length = data[at] & 0x0F
        if not 1 <= length <= 8 or data[at] & 0x70:
            raise ValueError(f"{data[at]:#04x} does not start an integer")
        value = int.from_bytes(data[at + 1 : at + 1 + length], "little")
        values.append(-value if data[at] & 0x80 else value)
        at += 1 + length
    return values, at


def _tensor(data: bytes, at: int) -> tuple[np.ndarray, int]:
    (version, *shape), at = _integers(data, at, 5)
    if version != 2 or min(shape) < 1 or np.prod(shape, dtype=np.int64) > 1 << 24:
        raise ValueError(f"version {version}, shape {shape} is no tensor")
    size = int(np.prod(shape))
    if at + 4 * size > len(data):
        raise ValueError("the file ends inside a tensor")
    return np.frombuffer(data, "<f4", size, at).reshape(shape).copy(), at + 4 * size


def _split(values: np.ndarray, filters: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A convolution's one tensor → weight [O, I, h, w] and bias [O]."""
    flat = values.reshape(-1)
    if (flat.size - filters) % (filters * height * width):
        raise ValueError(f"{flat.size} values do not make {filters} filters of {height}×{width}")
    return flat[:-filters].reshape(filters, -1, height, width).copy(), flat[-filters:].copy()


def _fully_connected(data: bytes, at: int) -> np.ndarray:
    (outputs, inputs), at = _integers(data, at, 2)
    values, _ = _tensor(data, at)
    if values.shape[:2] != (inputs, outputs):
        raise ValueError(f"a {inputs}→{outputs} layer holds {values.shape[:2]} values")
    return values.reshape(inputs, outputs)
