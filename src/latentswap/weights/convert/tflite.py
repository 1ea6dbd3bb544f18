"""MediaPipe's TFLite networks → named float32 tensors and a graph that is plain data.

The file is parsed by OpenVINO, which executes nothing of it. What comes out is a list of operations from the closed set
`latentswap.shape.graph.OPS`, so that the torch port and the OpenVINO runner are built from the same verified file.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from latentswap.errors import WeightsError
from latentswap.shape.iris import IRIS_KIND
from latentswap.shape.mesh import MESH_KIND

MESH_MEMBER = "face_landmark.tflite"
IRIS_MEMBER = "iris_landmark.tflite"
Converted = tuple[dict[str, np.ndarray], dict[str, str]]


def convert_mesh(members: Mapping[str, bytes]) -> Converted:
    """Convert the face mesh network: the member whose last component is `face_landmark.tflite`. See `_convert`."""
    outputs = {468 * 3: "mesh", 1: "score"}
    return _convert(members, MESH_MEMBER, outputs, kind=MESH_KIND, architecture="mediapipe-face-landmark-468")


def convert_iris(members: Mapping[str, bytes]) -> Converted:
    """Convert the iris network: the member whose last component is `iris_landmark.tflite`. See `_convert`."""
    outputs = {71 * 3: "contour", 5 * 3: "iris"}
    return _convert(members, IRIS_MEMBER, outputs, kind=IRIS_KIND, architecture="mediapipe-iris-landmark")


def _convert(
    members: Mapping[str, bytes], member: str, outputs: Mapping[int, str], *, kind: str, architecture: str
) -> Converted:
    """Convert one network.

    Args:
        members: files of the archive by name; the one whose last component is `member` is read.
        outputs: names of the network's outputs by how many numbers they have.

    Returns:
        Tensors (float32: convolution weights [O, I/groups, h, w], biases [O], PReLU slopes [C]) and metadata
        (`kind`, `architecture`, `licence`, and `graph`: JSON, see `latentswap.shape.graph.parse_graph`).

    Raises:
        WeightsError: the member is missing, unreadable, or holds an operation outside the closed set.
    """
    names = [name for name in members if name.rsplit("/", 1)[-1] == member]
    if len(names) != 1:
        raise WeightsError(f"expected one member called {member}, found {names}: fetch the archive again")
    walk = _Walk(member, outputs)
    for node in _read_nodes(member, members[names[0]]):
        walk.visit(node)
    graph = {"input": "input", "outputs": walk.outputs, "ops": walk.ops}
    metadata = {
        "kind": kind,
        "architecture": architecture,
        "licence": "Apache-2.0",
        "graph": json.dumps(graph, separators=(",", ":")),
    }
    return walk.tensors, metadata


def _read_nodes(member: str, data: bytes) -> list[Any]:
    import openvino

    # OpenVINO recognises TFLite by the file's suffix: it cannot read one from memory.
    with tempfile.TemporaryDirectory(prefix="latentswap-") as folder:
        path = Path(folder) / member
        path.write_bytes(data)
        try:
            model = openvino.Core().read_model(path)
        except RuntimeError as error:
            raise WeightsError(
                f"{member} ({len(data)} bytes) is not a readable TFLite model: fetch the archive again"
            ) from error
        return model.get_ordered_ops()


class _Walk:
    """Visits nodes in topological order and collects operations and tensors."""

    def __init__(self, member: str, outputs: Mapping[int, str]) -> None:
        self._member, self._sizes = member, outputs
        self.tensors: dict[str, np.ndarray] = {}
        self.ops: list[dict[str, Any]] = []
        self.outputs: dict[str, str] = {}
        self._values: dict[str, str] = {}  # node name → value name
        self._constants: dict[str, np.ndarray] = {}

    def visit(self, node: Any) -> None:
        kind = node.get_type_name()
        handler = {
            "Constant": self._constant,
            "Parameter": self._parameter,
            "Transpose": self._reorder,
            "Reshape": self._reorder,
            "Convolution": self._convolution,
            "GroupConvolution": self._convolution,
            "Add": self._add,
            "PRelu": self._prelu,
            "MaxPool": self._maxpool,
            "Pad": self._pad,
            "Result": self._result,
        }.get(kind)
        if handler is None:
            raise WeightsError(
                f"{self._member} holds the operation {kind}, which this network never had: use the pinned file"
            )
        handler(node)

    def _inputs(self, node: Any) -> list[str]:
        return [value.get_node().get_friendly_name() for value in node.input_values()]

    def _emit(self, node: Any, op: str, inputs: list[str], **fields: Any) -> None:
        name = f"v{len(self.ops)}"
        self.ops.append({"op": op, "in": [self._values[i] for i in inputs], "out": name, **fields})
        self._values[node.get_friendly_name()] = name

    def _store(self, suffix: str, value: np.ndarray) -> str:
        name = f"v{len(self.ops)}.{suffix}"
        self.tensors[name] = np.ascontiguousarray(value, dtype=np.float32)
        return name

    def _constant(self, node: Any) -> None:
        self._constants[node.get_friendly_name()] = node.data.copy()

    def _parameter(self, node: Any) -> None:
        self._values[node.get_friendly_name()] = "input"

    def _reorder(self, node: Any) -> None:
        # NHWC → NCHW at the input; back, and flattened, only at the 1×1 outputs, where order cannot matter.
        self._values[node.get_friendly_name()] = self._values[self._inputs(node)[0]]

    def _convolution(self, node: Any) -> None:
        source, weight_name = self._inputs(node)
        weight, groups = self._constants[weight_name], 1
        if node.get_type_name() == "GroupConvolution":  # [G, O/G, I/G, h, w]
            groups = weight.shape[0]
            weight = weight.reshape(-1, *weight.shape[2:])
        attributes = node.get_attributes()
        top, left = (int(p) for p in attributes["pads_begin"])
        bottom, right = (int(p) for p in attributes["pads_end"])
        stride = {int(s) for s in attributes["strides"]}
        if len(stride) != 1 or {int(d) for d in attributes["dilations"]} != {1}:
            raise WeightsError(f"{self._member} holds an uneven or dilated convolution: use the pinned file")
        self._emit(
            node,
            "conv",
            [source],
            weight=self._store("weight", weight),
            stride=stride.pop(),
            pads=[left, right, top, bottom],
            groups=int(groups),
        )

    def _add(self, node: Any) -> None:
        first, second = self._inputs(node)
        if second not in self._constants:
            self._emit(node, "add", [first, second])
            return
        # A constant is always the bias of the convolution just before it.
        convolution = next(op for op in self.ops if op["out"] == self._values[first])
        name = convolution["out"] + ".bias"
        self.tensors[name] = np.ascontiguousarray(self._constants[second].reshape(-1), dtype=np.float32)
        convolution["bias"] = name
        self._values[node.get_friendly_name()] = convolution["out"]

    def _prelu(self, node: Any) -> None:
        source, slope = self._inputs(node)
        self._emit(node, "prelu", [source], slope=self._store("slope", self._constants[slope].reshape(-1)))

    def _maxpool(self, node: Any) -> None:
        self._emit(node, "maxpool", self._inputs(node)[:1], size=int(node.get_attributes()["kernel"][0]))

    def _pad(self, node: Any) -> None:
        source, begin, end, _ = self._inputs(node)
        before, after = self._constants[begin].tolist(), self._constants[end].tolist()
        if any(before) or after[0] or any(after[2:]):
            raise WeightsError(f"{self._member} pads something other than trailing channels: use the pinned file")
        self._emit(node, "pad_channels", [source], channels=int(after[1]))

    def _result(self, node: Any) -> None:
        size = int(np.prod(list(node.get_output_shape(0))))
        name = self._sizes.get(size)
        if name is None:
            wanted = " or ".join(map(str, self._sizes))
            raise WeightsError(f"{self._member} has an output of {size} numbers, not {wanted}: use the pinned file")
        self.outputs[name] = self._values[self._inputs(node)[0]]
