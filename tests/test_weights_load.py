"""Loading: a checkpoint is data, complete, finite and of the right kind, or it is refused with every reason at once."""

import json
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from latentswap.errors import ResourceError, WeightsError
from latentswap.weights.header import read_header
from latentswap.weights.load import load_into, load_tensors, save_tensors

KIND = "test/net"
METADATA = {"format_version": "1", "kind": KIND}


def network() -> torch.nn.Sequential:
    """A real small network with parameters, a float buffer and an integer buffer."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 2, 1))


def write_raw(path: Path, header: bytes | dict[str, Any], body: bytes = b"") -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + body)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "net.safetensors"


def test_round_trip(path: Path) -> None:
    net, other = network(), network()
    torch.nn.init.zeros_(other.get_parameter("0.weight"))
    save_tensors(path, net.state_dict(), {"kind": KIND, "steps": "12"})
    assert load_into(other, path, kind=KIND) == {"format_version": "1", "kind": KIND, "steps": "12"}
    for name, value in net.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]) and value.dtype == other.state_dict()[name].dtype
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(net.eval()(x), other.eval()(x))


def test_equal_contents_are_equal_bytes_and_the_library_reads_them(path: Path) -> None:
    metadata = {"kind": KIND, **{f"key{i}": "×" * i for i in range(20)}}
    save_tensors(path, network().state_dict(), metadata)
    first = path.read_bytes()
    save_tensors(path, network().state_dict(), dict(reversed(metadata.items())))
    assert path.read_bytes() == first
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format_version": "1", **metadata}
        assert torch.equal(file.get_tensor("0.weight"), network().state_dict()["0.weight"])


def test_views_and_tied_tensors_survive(path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    save_tensors(path, {"a": base, "b": base, "t": base.T, "s": base[:, ::2]}, {"kind": KIND})
    tensors, _ = load_tensors(path, kind=KIND)
    assert torch.equal(tensors["t"], base.T) and torch.equal(tensors["s"], base[:, ::2])
    assert torch.equal(tensors["a"], tensors["b"])


def test_half_precision_is_cast_only_where_allowed(path: Path) -> None:
    net = network()
    half = {k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()}
    save_tensors(path, half, {"kind": KIND})
    load_into(net, path, kind=KIND)
    weight = net.get_parameter("0.weight")
    assert weight.dtype == torch.float32 and torch.equal(weight, half["0.weight"].float())
    with pytest.raises(WeightsError, match=r"of another dtype: 0\.weight float16, not float32, "):
        load_into(net, path, kind=KIND, allow_cast_from=())


def test_a_meta_module_takes_the_tensors_over(path: Path) -> None:
    save_tensors(path, network().state_dict(), {"kind": KIND})
    with torch.device("meta"):
        net = network()
    load_into(net, path, kind=KIND)
    assert not any(value.is_meta for value in net.state_dict().values())


def test_every_difference_is_in_one_message_and_nothing_changes(path: Path) -> None:
    net = network()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = dict(net.state_dict())
    del state["1.running_var"]
    state["extra"] = torch.zeros(1)
    state["0.weight"] = torch.zeros(4, 3, 1, 1)  # would broadcast
    state["2.bias"] = torch.zeros(2, dtype=torch.int8)  # load_state_dict would copy it silently
    save_tensors(path, state, {"kind": KIND})
    with pytest.raises(WeightsError) as raised:
        load_into(net, path, kind=KIND)
    assert str(raised.value) == (
        f"{path} does not fit the network; missing: 1.running_var; unexpected: extra; "
        "of another shape: 0.weight [4, 3, 1, 1], not [4, 3, 3, 3]; of another dtype: 2.bias int8, not float32"
    )
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_expected_layout_of_load_tensors(path: Path) -> None:
    save_tensors(path, {"w": torch.zeros(2, 3)}, {"kind": KIND})
    load_tensors(path, expected={"w": ((2, 3), "float32")})
    with pytest.raises(WeightsError, match=r"of another shape: w \[2, 3\], not \[3, 2\]"):
        load_tensors(path, expected={"w": ((3, 2), "float32")})


def test_another_kind_or_version_is_refused(path: Path) -> None:
    save_tensors(path, {"w": torch.zeros(1)}, {"kind": "test/other"})
    with pytest.raises(WeightsError, match="holds test/other, where test/net is needed"):
        load_tensors(path, kind=KIND)
    save_file({"w": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match="holds weights of an unstated kind, where test/net is needed"):
        load_tensors(path, kind=KIND)
    save_file({"w": torch.zeros(1)}, path, {"kind": KIND, "format_version": "2"})
    with pytest.raises(WeightsError, match="of format version 2; this release reads version 1"):
        load_tensors(path, kind=KIND)


@pytest.mark.attack
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_values_that_are_not_finite(bad: float, dtype: torch.dtype, path: Path) -> None:
    values = torch.zeros(1000, dtype=dtype)
    values[777] = bad
    save_file({"ok": torch.ones(3), "bad": values}, path, METADATA)
    with pytest.raises(WeightsError, match=r"not finite \(NaN or infinity\) in bad$"):
        load_tensors(path, kind=KIND)
    with pytest.raises(WeightsError, match="not finite"):
        save_tensors(path.with_name("out"), {"bad": values}, {"kind": KIND})
    assert not path.with_name("out").exists()


class _Canary:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.target, "ran"))


@pytest.mark.attack
def test_a_pickle_is_not_loaded_whatever_its_name(path: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    path.write_bytes(pickle.dumps(_Canary(canary)))
    with pytest.raises(WeightsError, match=r"not a safetensors file.*pickled checkpoints are not read"):
        load_tensors(path)
    torch.save({"w": _Canary(canary)}, path)
    with pytest.raises(WeightsError, match="not a safetensors file"):
        load_tensors(path)
    assert not canary.exists()
    pickle.loads(pickle.dumps(_Canary(canary)))  # noqa: S301 - the trap works
    assert canary.exists()


_W = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.attack
@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b'{"w":%(w)s,"w":%(w)s}', "occur twice in its header: w"),
        (b'{"__metadata__":{"kind":"a","kind":"test/net"},"w":%(w)s}', "occur twice in its header: kind"),
        (b'{"__metadata__":{"kind":3},"w":%(w)s}', "must be strings, and these are not: kind"),
        (b'{"__metadata__":[],"w":%(w)s}', "metadata is not a table"),
        (b'{"__metadata__":{"a\\u001b[2J":"x"},"w":%(w)s}', "names that are not plain"),
        (b'{"w":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', r"w has the shape \[-1\]"),
        (b'{"w":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}}', r"w has the shape \[True\]"),
        (b'{"w":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4]}}', "w has the shape"),
        (b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', "damaged"),
        (b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', "damaged"),
        (b'{"w":{"dtype":"O","shape":[1],"data_offsets":[0,4]}}', "w is of dtype 'O'"),
        (b'{"w":3}', "w is of dtype 3"),
        (b"[]", "not a table"),
        (b"nonsense", "not a valid safetensors file"),
        (b'{"w":' + b"[" * 100_000, "not a valid safetensors file"),
        (b"\xff\xfe", "not a valid safetensors file"),
    ],
)
def test_hostile_headers(header: bytes, reason: str, path: Path) -> None:
    write_raw(path, header.replace(b"%(w)s", json.dumps(_W).encode()), b"\0\0\0\0")
    with pytest.raises(WeightsError, match=reason):
        load_tensors(path)


@pytest.mark.attack
@pytest.mark.parametrize("length", [17 << 20, 1 << 40, (1 << 64) - 1])
def test_a_header_that_is_too_long_is_not_read(length: int, path: Path) -> None:
    with path.open("wb") as file:
        file.write(length.to_bytes(8, "little") + b"{" * 100)
        file.truncate(20 << 20)  # a sparse file as long as it claims, in the first case
    with pytest.raises(WeightsError, match="not a safetensors file, or it is truncated"):
        load_tensors(path)


@pytest.mark.attack
@pytest.mark.parametrize("cut", [0, 1, 7, 8, 9, 60, -1])
def test_truncated_files(cut: int, path: Path) -> None:
    save_tensors(path, {"w": torch.ones(10)}, {"kind": KIND})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(WeightsError):
        load_tensors(path)


@pytest.mark.attack
@given(data=st.data())
def test_any_changed_byte_is_refused_or_harmless(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No byte makes the loader raise anything but WeightsError, or return something that is not finite."""
    path = tmp_path_factory.getbasetemp() / "flipped.safetensors"
    save_tensors(path, {"w": torch.ones(3), "b": torch.ones(2, 2)}, {"kind": KIND})
    raw = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        tensors, _ = load_tensors(path)
    except WeightsError:
        return
    assert all(torch.isfinite(value).all() for value in tensors.values() if value.is_floating_point())


def test_size_bound_and_files_that_are_none(path: Path, tmp_path: Path) -> None:
    save_tensors(path, {"w": torch.ones(1000)}, {"kind": KIND})
    with pytest.raises(WeightsError, match="bytes; at most 1,000 are accepted"):
        load_tensors(path, max_bytes=1000)
    with pytest.raises(WeightsError, match="is not a file"):
        load_tensors(tmp_path)
    with pytest.raises(WeightsError, match="is not a file"):
        load_tensors(tmp_path / "absent")


def test_saving_states_the_kind_and_leaves_nothing_on_failure(path: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match='the metadata needs "kind"'):
        save_tensors(path, {"w": torch.ones(1)}, {})
    with pytest.raises(WeightsError, match="must be strings, and these are not: steps"):
        save_tensors(path, {"w": torch.ones(1)}, {"kind": KIND, "steps": 3})  # pyright: ignore[reportArgumentType]
    with pytest.raises(ResourceError, match="could not be written"):
        save_tensors(tmp_path / "absent" / "net", {"w": torch.ones(1)}, {"kind": KIND})
    path.mkdir()
    with pytest.raises(ResourceError, match="could not be written"):
        save_tensors(path, {"w": torch.ones(1)}, {"kind": KIND})
    assert list(tmp_path.iterdir()) == [path]


def test_readers_never_see_a_part(path: Path) -> None:
    """While one thread replaces the file, every read is one whole version."""
    save_tensors(path, {"w": torch.zeros(5000)}, {"kind": KIND})
    done = threading.Event()

    def write() -> None:
        for version in range(1, 40):
            save_tensors(path, {"w": torch.full((5000,), float(version))}, {"kind": KIND})
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        values = load_tensors(path, kind=KIND)[0]["w"]
        assert (values == values[0]).all()
    writer.join()


def test_header_alone(path: Path) -> None:
    save_tensors(path, {"w": torch.ones(2, 3).half()}, {"kind": KIND})
    header = read_header(path, kind=KIND)
    assert header.tensors == {"w": ((2, 3), "float16")}
    assert header.file_bytes == path.stat().st_size
