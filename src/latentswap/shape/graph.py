"""Small frozen networks whose graph is data: a closed set of operations, checked before anything is built.

The converted weight file carries tensors and a list of operations; nothing of it is executed. `parse_graph` checks the
list, `GraphNet` walks it in torch: differentiable with respect to the input, any batch size.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentswap.errors import WeightsError
from latentswap.weights.load import load_tensors

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
    outputs: Mapping[str, str]  # output → the value that it is


def parse_graph(text: str, tensor_names: frozenset[str], output_names: frozenset[str]) -> Graph:
    """Check a graph that came from a file.

    Args:
        text: JSON `{"input": "input", "outputs": {name: value}, "ops": [{"op", "in", "out", …}]}`; values are
            named `input` or by the operation that makes them; `pads` is [left, right, top, bottom].
        tensor_names: names of the tensors in the same file; every one must be used.
        output_names: the outputs that the network has.

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
        or set(outputs) != output_names
        or not all(isinstance(name, str) and name in known for name in outputs.values())
    ):
        raise _bad(f"outputs must name the values {sorted(output_names)}, not {outputs!r:.80}")
    used = {op.fields[field] for op in ops for field in _TENSOR_FIELDS if field in op.fields}
    if used != tensor_names:
        raise _bad(f"tensors and graph disagree about {sorted(used ^ tensor_names)[:4]}")
    return Graph(ops=tuple(ops), outputs=outputs)


def _bad(what: str) -> WeightsError:
    return WeightsError(f"network graph: {what}. Delete the converted file so that it is made again")


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


class GraphNet(nn.Module):
    """A graph of convolutions, frozen, float32. A network is a subclass that names its kind, input and outputs."""

    kind: ClassVar[str]  # what the weight file says that it is
    size: ClassVar[int]  # side of the input, pixels
    outputs: ClassVar[frozenset[str]]

    def __init__(self, tensors: Mapping[str, Tensor], graph: Graph) -> None:
        super().__init__()
        self._graph = graph
        for name, tensor in tensors.items():
            self.register_buffer(_buffer_name(name), tensor.detach().float().contiguous())
        self.eval()

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file made by `latentswap.weights.convert.tflite`. Raises WeightsError."""
        tensors, metadata = load_tensors(path, kind=cls.kind)
        return cls.from_tensors(tensors, metadata)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Self:
        """Build from converted tensors and metadata. Raises WeightsError when the graph does not check out or run."""
        net = cls(tensors, parse_graph(metadata.get("graph", ""), frozenset(tensors), cls.outputs))
        try:
            with torch.no_grad():
                net(torch.zeros(1, 3, cls.size, cls.size))  # a trial run finds every shape that does not fit
        except RuntimeError as error:
            raise _bad(f"tensors and graph do not fit ({error})") from error
        return net

    def walk(self, img_BCHW: Tensor) -> dict[str, Tensor]:
        """The outputs by name."""
        values = {"input": img_BCHW}
        for op in self._graph.ops:
            values[op.output] = self._run(op, [values[name] for name in op.inputs])
        return {name: values[value] for name, value in self._graph.outputs.items()}

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


def _buffer_name(tensor_name: str) -> str:
    return tensor_name.replace(".", "_")  # torch does not allow dots in a buffer's name
