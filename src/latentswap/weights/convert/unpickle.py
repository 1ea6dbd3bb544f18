"""Reading pickles as data: an interpreter of the format that can build plain values and nothing else.

Python's own unpickler imports what a file names and calls it. Here a name is only a name. The few that published
checkpoints need (a tensor, an ordered dictionary, a NumPy array) are answered by functions of this module; the objects
of known frameworks become inert records; any other name is refused. Source code that a file carries is never looked at.
"""

import codecs
import io
import pickletools
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np

from latentswap.errors import WeightsError
from latentswap.weights.convert.tensors import ITEM_BYTES, Storage, Stored, view

MAX_STEPS = 500_000  # published files take some ten thousand
MAX_TEXT_BYTES = 64 << 20  # of everything but bulk data
_BLOCK = 1 << 16
_BULK = 1 << 20  # runs of bytes longer than this stay on the disk


class Window:
    """Part of an open file, as a file: bounded, and lazy for long runs of bytes."""

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        self._file, self._start, self.length = file, start, length
        self._at = self._text = 0
        self._block, self._block_at = b"", 0  # a pickle is read in steps of a few bytes

    @classmethod
    def of_bytes(cls, data: bytes) -> "Window":
        return cls(io.BytesIO(data), 0, len(data))

    def __len__(self) -> int:
        return self.length

    def tell(self) -> int:
        return self._at

    def bytes_at(self, start: int, count: int) -> bytes:
        """`count` bytes at `start`. Raises WeightsError when the file ends before."""
        if not 0 <= start <= start + count <= self.length:
            raise WeightsError("the file is truncated")
        self._file.seek(self._start + start)
        data = self._file.read(count)
        if len(data) != count:
            raise WeightsError("the file is truncated")
        return data

    def read(self, count: int) -> "bytes | Window":
        """The next bytes; a window on them when they are many."""
        at = self._at
        self._at = at + count
        if count > _BULK:
            if self._at > self.length:
                raise WeightsError("the file is truncated")
            return Window(self._file, self._start + at, count)
        self._text += count
        if self._text > MAX_TEXT_BYTES:
            raise WeightsError(f"it describes itself in more than {MAX_TEXT_BYTES >> 20} MB")
        inside = at - self._block_at
        if not 0 <= inside <= inside + count <= len(self._block):
            self._block, self._block_at = self.bytes_at(at, max(count, min(_BLOCK, self.length - at))), at
            inside = 0
        return self._block[inside : inside + count]

    def readline(self) -> bytes:
        """The next line; names are all that the format writes as lines."""
        line = self.bytes_at(self._at, min(1024, self.length - self._at)).partition(b"\n")
        if not line[1]:
            raise WeightsError("a name in it is too long, or the file is truncated")
        self._at += len(line[0]) + 1
        return line[0] + line[1]


@dataclass(frozen=True)
class Name:
    """A name that the pickle refers to, not what it stands for."""

    name: str


@dataclass(eq=False)
class Record:
    """An object of a foreign class: what it was made with, and its state. Nothing of it is ever run."""

    name: str
    args: tuple[Any, ...] = ()
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)


@dataclass(eq=False)
class _Array:
    """A NumPy array: created empty, filled by the BUILD that follows."""

    tensor: Stored | None = None


@dataclass(eq=False)
class _DType:
    code: str


def read_pickle(
    file: Window,
    *,
    persistent: Callable[[Any], Any] | None = None,
    nested: Callable[[Window], Any] | None = None,
) -> Any:
    """Interpret one pickle at the file's position and return its value.

    Args:
        persistent: answers references to what lies outside the pickle (the storages of torch).
        nested: reads a whole torch file that the pickle carries as bytes.

    Raises:
        WeightsError: the pickle is damaged, too large, or names anything but the known parts of a checkpoint.
    """
    machine = _Machine(persistent, nested)
    try:
        for step, (opcode, argument, _) in enumerate(pickletools.genops(file)):  # pyright: ignore[reportArgumentType]
            if step > MAX_STEPS:
                raise WeightsError("it has more parts than any published checkpoint")
            machine.run(opcode.name, argument)
        return machine.stack.pop()
    except WeightsError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, struct.error) as error:
        raise WeightsError(f"it is not a valid pickle near byte {file.tell():,} ({type(error).__name__})") from error


def plain(value: object) -> object:
    """The tensor of an array, and any other value as it is."""
    return value.tensor if isinstance(value, _Array) and value.tensor is not None else value


def as_state(value: object) -> dict[str, Any]:
    """A state dictionary or the attributes of a record: a dictionary with names as keys. Raises WeightsError."""
    if isinstance(value, Record):
        value = value.state
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise WeightsError("a table of named values is expected, and the file has something else there")
    return value


def shown(value: object) -> str:
    """A value for a message: never all of one that could be endless."""
    return repr(value)[:40] if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"


class _Machine:
    """The stack machine of the pickle format, of protocols 2 to 4."""

    def __init__(self, persistent: Callable[[Any], Any] | None, nested: Callable[[Window], Any] | None) -> None:
        self.stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._persistent = persistent
        self._nested = nested

    def run(self, opcode: str, argument: Any) -> None:
        stack = self.stack
        match opcode:
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "BINFLOAT" | "LONG1":
                stack.append(argument)
            case "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8":
                stack.append(argument)
            case "MARK":
                self._marks.append(len(stack))
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode == "NEWTRUE")
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_SET":
                stack.append(set())
            case "TUPLE":
                stack.append(tuple(self._to_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode[-1])
                stack.append(tuple([stack.pop() for _ in range(count)][::-1]))
            case "APPEND" | "APPENDS":
                values = [stack.pop()] if opcode == "APPEND" else self._to_mark()
                _exactly(stack[-1], list).extend(values)
            case "SETITEM" | "SETITEMS":
                values = [stack.pop(-2), stack.pop()] if opcode == "SETITEM" else self._to_mark()
                _fill(stack[-1], values)
            case "ADDITEMS":
                values = self._to_mark()
                _exactly(stack[-1], set).update(map(_key, values))
            case "FROZENSET":
                stack.append({_key(value) for value in self._to_mark()})
            case "GLOBAL":
                stack.append(_name(argument.replace(" ", ".")))
            case "STACK_GLOBAL":
                name, module = _exactly(stack.pop(), str), _exactly(stack.pop(), str)
                stack.append(_name(f"{module}.{name}"))
            case "REDUCE" | "NEWOBJ":
                args, name = _exactly(stack.pop(), tuple), _exactly(stack.pop(), Name)
                stack.append(self._call(name.name, args))
            case "BUILD":
                state = stack.pop()
                _build(stack[-1], state)
            case "BINPERSID":
                if self._persistent is None:
                    raise WeightsError("it refers to data outside itself")
                stack.append(self._persistent(stack.pop()))
            case "POP":
                stack.pop()
            case "POP_MARK":
                self._to_mark()
            case "PROTO" | "FRAME" | "STOP":
                pass
            case _:
                raise WeightsError(f"it uses {opcode} of the pickle format, which no published checkpoint needs")

    def _to_mark(self) -> list[Any]:
        mark = self._marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        return values

    def _call(self, name: str, args: tuple[Any, ...]) -> Any:
        if name == "torch.storage._load_from_bytes":
            if self._nested is None:
                raise WeightsError("it carries files in files in files")
            (data,) = args
            return self._nested(_window(data))
        if name in _CALLS:
            return _CALLS[name](*args)
        return Record(name, args)


def _exactly(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError
    return value


def _key(value: Any) -> Any:
    """A value that may be a key: hashing anything nested could take for ever."""
    if isinstance(value, str | int | float | bytes | Name | Stored | None):  # an optimiser's keys are tensors
        return value
    raise TypeError


def _fill(target: Any, values: list[Any]) -> None:
    if isinstance(target, Record):
        target = target.items
    pairs = zip(values[::2], values[1::2], strict=True)
    _exactly(target, dict).update((_key(key), value) for key, value in pairs)


def _build(target: Any, state: Any) -> None:
    match target:
        case Record():
            target.state = state
        case _Array():
            target.tensor = _array(state)
        case _DType():
            if state[1] not in ("<", "|"):
                raise WeightsError("it has arrays of another byte order")
        case dict() | Stored():
            pass  # attributes set on a dictionary or a tensor (a state dictionary's _metadata)
        case _:
            raise TypeError


def _array(state: tuple[Any, ...]) -> Stored:
    """An array from (version, shape, dtype, whether in Fortran's order, bytes)."""
    _, shape, dtype, fortran, data = state
    if not isinstance(data, bytes | Window):
        raise WeightsError("it has arrays of objects")
    code, source = _exactly(dtype, _DType).code, _window(data)
    storage = Storage(dtype=code, numel=source.length // ITEM_BYTES[code], read_bytes=source.bytes_at)
    lengths = shape if fortran else shape[::-1]
    steps = [1]
    for length in lengths[:-1]:
        steps.append(steps[-1] * length)
    steps = steps[: len(shape)]
    return view(storage, 0, shape, tuple(steps if fortran else steps[::-1]))


def _window(data: Any) -> Window:
    return data if isinstance(data, Window) else Window.of_bytes(_exactly(data, bytes))


def _dtype(code: str, *_: Any) -> _DType:
    if code not in _DTYPES:
        raise WeightsError(f"it has arrays of the dtype {shown(code)}; numbers are read, objects are not")
    return _DType(_DTYPES[code])


def _scalar(dtype: _DType, data: bytes) -> Any:
    return np.frombuffer(data, _exactly(dtype, _DType).code)[0].item()


def _empty_array(kind: Name, shape: tuple[int, ...], code: bytes) -> _Array:
    return _Array()


def _tensor(storage: Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Stored:
    return view(_exactly(storage, Storage), offset, shape, stride)


def _parameter(data: Stored, *_: Any) -> Stored:
    return _exactly(data, Stored)


def _dict(*args: Any) -> dict[Any, Any]:
    """An ordered, a default or an attribute dictionary; older files give the pairs at once."""
    result: dict[Any, Any] = {}
    if args and isinstance(args[0], list):
        _fill(result, [part for pair in args[0] for part in _pair(pair)])
    return result


def _pair(value: Any) -> Any:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise TypeError
    return value


def _set(values: Any = ()) -> set[Any]:
    return {_key(value) for value in values}


def _encoded(text: str, encoding: str) -> bytes:
    """How protocol 2 writes bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError
    return codecs.encode(text, "latin-1")


def _new(kind: Name, *_: Any) -> Record:
    return Record(_exactly(kind, Name).name)


_DTYPES = {
    "f2": "float16", "f4": "float32", "f8": "float64", "b1": "bool", "u1": "uint8",
    "i1": "int8", "i2": "int16", "i4": "int32", "i8": "int64",
}  # fmt: skip

_CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.Size": lambda sizes: tuple(sizes),
    "collections.OrderedDict": _dict,
    "collections.defaultdict": _dict,
    "dnnlib.util.EasyDict": _dict,
    "builtins.set": _set,
    "__builtin__.set": _set,
    "numpy.dtype": _dtype,
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": _empty_array for core in ("core", "_core")},
    "_codecs.encode": _encoded,
    "copyreg._reconstructor": _new,
    "copy_reg._reconstructor": _new,
}

# Names that published files hold and that stay names: calling one gives a Record.
_INERT = re.compile(
    r"torch_utils\.persistence\._reconstruct_persistent_obj"
    r"|dnnlib\.tflib\.network\.Network"
    r"|torch\.storage\._load_from_bytes"
    r"|torch\.(storage\.)?\w*Storage"
    r"|torch\.(float|bfloat|int|uint)\d+|torch\.bool|torch\.device"
    r"|torch\.nn\.(modules|parallel|parameter)(\.\w+)+|torch\.optim(\.\w+)+"
    r"|(pytorch_lightning|lightning|lightning_fabric|omegaconf)(\.\w+)+"
    r"|models(\.arcface_models)?\.(ResNet|IRBlock|SEBlock|ArcMarginModel)"
    r"|numpy\.ndarray|argparse\.Namespace|pathlib\.\w*Path|typing\.\w+|_operator\.getitem|collections\.Counter"
    r"|(builtins|__builtin__)\.(int|long|float|str|unicode|bool|object|list|dict|tuple|slice)"
)


def _name(name: str) -> Name:
    if name in _CALLS or _INERT.fullmatch(name):
        return Name(name)
    raise WeightsError(
        f"it calls for {name[:100]!r}, which no published checkpoint needs and which could run code; "
        "nothing of it was run. Do not load this file with other programs"
    )
