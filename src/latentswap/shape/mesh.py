"""MediaPipe's face mesh (468 three-dimensional points) as a frozen, differentiable torch network.

Kartynnik et al., "Real-time Facial Surface Geometry from Monocular Video on Mobile GPUs", 2019. The converted weight
file carries the graph as data; `parse_graph` checks it against a closed set of operations before anything is built.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentswap.errors import WeightsError
from latentswap.shape.topology import MESH_POINTS, MESH_SIZE
from latentswap.weights.load import load_tensors

MESH_KIND = "shape/mediapipe-mesh"

# Where the network looks in an FFHQ-aligned crop: a square with the crop's side (1.5 times the mesh's box, which
# is 0.66 of the crop on generated faces, centred at (0.50, 0.59)), moved down by a whole number of input pixels.
# Against the mean of jittered, individually refined squares this one square is off by 0.0039 of the crop (root mean
# square); the jitter itself makes 0.003. Without the shift: 0.0043.
CROP_ROI_SHIFT = 17  # input pixels: the square's centre is at (0.5, 0.5 + 17 / 192) of the crop

OPS: Mapping[str, frozenset[str]] = {  # operation → its fields beside op, in, out
    "conv": frozenset({"weight", "bias", "stride", "pads", "groups"}),
    "add": frozenset(),
    "prelu": frozenset({"slope"}),
    "maxpool": frozenset({"size"}),
    "pad_channels": frozenset({"channels"}),
}
_TENSOR_FIELDS = ("weight", "bias", "slope")
_INT_BOUNDS = {"stride": (1, 8), "groups": (1, 1024), "size": (2, 8), "channels": (1, 1024)}
_MAX_OPS = 512
_MAX_GRAPH_CHARACTERS = 200_000


@dataclass(frozen=True, kw_only=True)
class Op:
    """One checked operation. `fields` holds tensor names and integers only."""

    kind: str
    inputs: tuple[str, ...]
    output: str
    fields: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A checked graph: operations in an order in which every input is known before it is used."""

    ops: tuple[Op, ...]
    mesh: str
    score: str


def parse_graph(text: str, tensor_names: frozenset[str]) -> Graph:
    """Check a graph that came from a file.

    Args:
        text: JSON `{"input": "input", "outputs": {"mesh", "score"}, "ops": [{"op", "in", "out", …}]}`; values are
            named `input` or by the operation that makes them; `pads` is [left, right, top, bottom].
        tensor_names: names of the tensors in the same file; every one must be used.

    Raises:
        WeightsError: anything unknown, missing, out of bounds or out of order.
    """
    if len(text) > _MAX_GRAPH_CHARACTERS:
        raise _bad(f"the graph has {len(text)} characters")
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _bad(f"the graph is not JSON ({error})") from error
    if not isinstance(raw, dict) or set(raw) != {"input", "outputs", "ops"} or raw["input"] != "input":
        raise _bad("the graph must hold input, outputs and ops")
    if not isinstance(raw["ops"], list) or not 0 < len(raw["ops"]) <= _MAX_OPS:
        raise _bad("ops must be a list of 1 to 512 operations")
    known = {"input"}
    ops = []
    for index, item in enumerate(raw["ops"]):
        op = _parse_op(item, index, known, tensor_names)
        known.add(op.output)
        ops.append(op)
    outputs = raw["outputs"]
    if (
        not isinstance(outputs, dict)
        or set(outputs) != {"mesh", "score"}
        or not all(isinstance(name, str) and name in known for name in outputs.values())
    ):
        raise _bad(f"outputs must name the values mesh and score, not {outputs!r:.80}")
    used = {op.fields[field] for op in ops for field in _TENSOR_FIELDS if field in op.fields}
    if used != tensor_names:
        raise _bad(f"tensors and graph disagree about {sorted(used ^ tensor_names)[:4]}")
    return Graph(ops=tuple(ops), mesh=outputs["mesh"], score=outputs["score"])


def _bad(what: str) -> WeightsError:
    return WeightsError(f"mesh network: {what}. Delete the converted file so that it is made again")


def _is_int(value: object, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _parse_op(item: Any, index: int, known: set[str], tensor_names: frozenset[str]) -> Op:
    where = f"operation {index}"
    if not isinstance(item, dict) or not {"op", "in", "out"} <= set(item):
        raise _bad(f"{where} lacks op, in or out")
    kind, inputs, output = item["op"], item["in"], item["out"]
    fields = {key: value for key, value in item.items() if key not in ("op", "in", "out")}
    if not isinstance(kind, str) or kind not in OPS:
        raise _bad(f"{where} is {kind!r:.40}, not one of {sorted(OPS)}")
    if set(fields) != OPS[kind]:
        raise _bad(f"{where} ({kind}) has the fields {sorted(fields)}, not {sorted(OPS[kind])}")
    arity = 2 if kind == "add" else 1
    if not isinstance(inputs, list) or len(inputs) != arity:
        raise _bad(f"{where} ({kind}) needs {arity} inputs")
    if not all(isinstance(name, str) and name in known for name in inputs):
        raise _bad(f"{where} uses a value before it is made: {inputs!r:.80}")
    if not isinstance(output, str) or output in known:
        raise _bad(f"{where} has the output {output!r:.40}, which must be new")
    for key, value in fields.items():
        if key in _TENSOR_FIELDS:
            valid = isinstance(value, str) and value in tensor_names
        elif key == "pads":
            valid = isinstance(value, list) and len(value) == 4 and all(_is_int(pad, 0, 8) for pad in value)
        else:
            valid = _is_int(value, *_INT_BOUNDS[key])
        if not valid:
            raise _bad(f"{where} ({kind}) has {key} = {value!r:.80}")
    return Op(kind=kind, inputs=tuple(inputs), output=output, fields=fields)


class MeshNet(nn.Module):
    """The face mesh network: frozen, float32, differentiable with respect to its input, any batch size."""

    def __init__(self, tensors: Mapping[str, Tensor], graph: Graph) -> None:
        super().__init__()
        self._graph = graph
        for name, tensor in tensors.items():
            self.register_buffer(_buffer_name(name), tensor.detach().float().contiguous())
        self.eval()

    @classmethod
    def load(cls, path: str | Path) -> "MeshNet":
        """Read a file made by `latentswap.weights.convert.tflite.convert_mesh`. Raises WeightsError."""
        tensors, metadata = load_tensors(path, kind=MESH_KIND)
        return cls.from_tensors(tensors, metadata)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> "MeshNet":
        """Build from converted tensors and metadata. Raises WeightsError when the graph does not check out or run."""
        net = cls(tensors, parse_graph(metadata.get("graph", ""), frozenset(tensors)))
        try:
            with torch.no_grad():
                net(torch.zeros(1, 3, MESH_SIZE, MESH_SIZE))  # a trial run finds every shape that does not fit
        except RuntimeError as error:
            raise _bad(f"tensors and graph do not fit ({error})") from error
        return net

    def forward(self, img_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Find the mesh of one face that fills about two thirds of each picture.

        Args:
            img_BCHW: RGB [B, 3, 192, 192] in [0, 1], which is what the network was trained on: in [-1, 1] it also finds
                faces, but moves 14 % more when the square is shifted and takes a cat for a person.

        Returns:
            mesh_BK3 [B, 468, 3]: x, y in input pixels (0 to 192), z in the same unit, smaller towards the camera;
            score_B: probability that the picture shows a face; the logit is 30 to 60 on a face, −11 on plain grey.
        """
        values = {"input": img_BCHW}
        for op in self._graph.ops:
            values[op.output] = self._run(op, [values[name] for name in op.inputs])
        batch = img_BCHW.shape[0]
        mesh_BK3 = values[self._graph.mesh].reshape(batch, MESH_POINTS, 3)
        return mesh_BK3, torch.sigmoid(values[self._graph.score].reshape(batch))

    def _run(self, op: Op, inputs: list[Tensor]) -> Tensor:
        x, fields = inputs[0], op.fields
        if op.kind == "conv":
            left, right, top, bottom = fields["pads"]
            weight, bias = self._tensor(fields["weight"]), self._tensor(fields["bias"])
            symmetric = left == right and top == bottom
            if not symmetric:
                x = F.pad(x, (left, right, top, bottom))
            padding = (top, left) if symmetric else 0
            return F.conv2d(x, weight, bias, stride=fields["stride"], padding=padding, groups=fields["groups"])
        if op.kind == "add":
            return x + inputs[1]
        if op.kind == "prelu":
            return F.prelu(x, self._tensor(fields["slope"]))
        if op.kind == "maxpool":
            return F.max_pool2d(x, fields["size"])
        return F.pad(x, (0, 0, 0, 0, 0, fields["channels"]))

    def _tensor(self, name: str) -> Tensor:
        return self.get_buffer(_buffer_name(name))


def crop_mesh(net: MeshNet, img_BCHW: Tensor) -> Tensor:
    """Mesh of FFHQ-aligned crops, differentiable in the pixels.

    Args:
        net: the mesh network.
        img_BCHW: RGB [B, 3, S, S] in [-1, 1] (values outside are clamped without a gradient), any S.

    Returns:
        mesh_BK3 [B, 468, 3] in fractions of the crop: x, y (0 to 1, pixel-edge convention), z in the same unit.
    """
    unit_BCHW = (img_BCHW.float().clamp(-1.0, 1.0) + 1.0) / 2.0
    if unit_BCHW.shape[-2:] != (MESH_SIZE, MESH_SIZE):
        unit_BCHW = F.interpolate(
            unit_BCHW, size=(MESH_SIZE, MESH_SIZE), mode="bilinear", align_corners=False, antialias=True
        )
    shifted_BCHW = F.pad(unit_BCHW[:, :, CROP_ROI_SHIFT:], (0, 0, 0, CROP_ROI_SHIFT))
    mesh_BK3, _ = net(shifted_BCHW)
    shift_3 = mesh_BK3.new_tensor((0.0, CROP_ROI_SHIFT, 0.0))
    return (mesh_BK3 + shift_3) / MESH_SIZE


def _buffer_name(tensor_name: str) -> str:
    return tensor_name.replace(".", "_")  # torch does not allow dots in a buffer's name
