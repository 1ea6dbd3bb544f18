"""Hostile and broken files: nothing in them runs, they cost little, and they leave nothing behind."""

import io
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _convert_support import (
    filled,
    generator_shapes,
    ir_se50_shapes,
    nvlabs_pickle,
    persistent_generator,
    rosinality_state,
    tensorflow_pickle,
    tensorflow_variables,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._utils import _rebuild_tensor_v2

from latentswap.errors import UsageError, WeightsError
from latentswap.weights.convert import detect, sandbox, worker
from latentswap.weights.convert.unpickle import MAX_STEPS, Window, read_pickle

pytestmark = pytest.mark.attack
CANARY = "canary"
_UNITS, _WIDTHS = (1, 1, 1, 1), (16, 32, 48, 64)


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def system() -> Call:
    return Call(os.system, f"touch {CANARY}")


def evaluate() -> Call:
    return Call(eval, f"open({CANARY!r}, 'w')")


def saved(value: Any, *, zipped: bool = True) -> bytes:
    out = io.BytesIO()
    torch.save(value, out, _use_new_zipfile_serialization=zipped)
    return out.getvalue()


def arcface() -> dict[str, torch.Tensor]:
    return filled(ir_se50_shapes(_UNITS, _WIDTHS, 4))


def named(name: str, arguments: bytes = b"(t") -> bytes:
    """A pickle that calls a global by name."""
    module, _, attribute = name.rpartition(".")
    return b"\x80\x02c" + module.encode() + b"\n" + attribute.encode() + b"\n" + arguments + b"R."


def archive(pickled: bytes, *members: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A torch archive with the given pickle."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as made, warnings.catch_warnings(action="ignore"):
        made.writestr("archive/data.pkl", pickled)
        for name, data in (("archive/version", b"3\n"), *members):
            made.writestr(name, data)
    return out.getvalue()


def tensor(numel: int, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """A torch archive with one tensor over a storage "0" of `numel` floats."""

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", numel) if isinstance(obj, Storage) else None

    out = io.BytesIO()
    rebuild = Call(_rebuild_tensor_v2, Storage(), offset, size, stride, False, {})
    Pickler(out, 2).dump({"input_layer.0.weight": rebuild, "output_layer.3.weight": rebuild})
    return archive(out.getvalue(), ("archive/data/0", b"\0" * 4 * min(numel, 64)))


def nested_tuples(depth: int = 60) -> bytes:
    """t = (t, t), sixty times over: hashing or printing it would take for ever."""
    return b")q\x00" + b"0h\x00h\x00\x86q\x00" * depth


def bomb(*names: str) -> bytes:
    """An archive whose members share their data."""
    data = b"\0" * 100_000
    raw = bytearray(archive(b"\x80\x02}.", ("archive/data/0", data)))
    end = raw.rfind(b"PK\x05\x06")
    start = struct.unpack_from("<I", raw, end + 16)[0]
    entry = raw.rfind(b"PK\x01\x02")
    copies = b"".join(bytes(raw[entry:end]).replace(b"data/0", f"data/{i}".encode()) for i in range(1, 10))
    raw[end:end] = copies
    end += len(copies)
    struct.pack_into("<HHI", raw, end + 8, 12, 12, end - start)
    return bytes(raw)


def cyclic_modules() -> bytes:
    generator = persistent_generator(filled(generator_shapes()))
    generator.meta["state"]["_modules"]["mapping"].meta["state"]["_modules"] = {"again": generator, "more": generator}
    return nvlabs_pickle(generator)


def printed_bomb() -> bytes:
    value: Any = []
    for _ in range(60):
        value = [value, value]
    generator = persistent_generator(filled(generator_shapes()))
    generator.meta["state"]["_modules"]["synthesis"].meta["state"]["_modules"]["b8"].meta["state"]["architecture"] = (
        value
    )
    return nvlabs_pickle(generator)


def amplified() -> bytes:
    storage = torch.zeros(1 << 20)
    return saved(arcface() | {f"body.{i}.x": storage.view(1024, 1024) for i in range(500)})


def signed(name: str, length: int) -> bytes:
    return name.encode("latin-1") + length.to_bytes(8, "little")


def hostile() -> Iterator[tuple[str, bytes, str]]:
    """(name, contents, what the message says)."""
    for protocol in (0, 2, 4):
        yield f"system{protocol}.pkl", pickle.dumps(system(), protocol), "posix.system" if protocol else "no format"
    yield "eval.pkl", pickle.dumps({"g_ema": evaluate()}, 2), "__builtin__.eval"
    yield "getattr.pkl", named("builtins.getattr"), "builtins.getattr"
    yield "dotted.pkl", named("torch.nn.modules.__builtins__.x", b"(t").replace(b"modules.", b"modules;"), "calls for"
    yield "path.pkl", pickle.dumps(Call(Path.write_text, Path(CANARY), "ran"), 4), "getattr|write_text"
    yield "numpy.pkl", named("numpy.testing._private.utils.runstring"), "runstring"
    yield "torch-load.pkl", named("torch.load", b"(t"), "'torch.load'"
    yield (
        "nested.pkl",
        pickle.dumps(Call(torch.storage._load_from_bytes, pickle.dumps(system())), 3),
        "what torch writes",
    )
    stream = saved(system(), zipped=False)
    yield "nested-stream.pkl", pickle.dumps(Call(torch.storage._load_from_bytes, stream), 3), "system"
    twice = saved(Call(torch.storage._load_from_bytes, stream), zipped=False)
    yield "nested-twice.pkl", pickle.dumps(Call(torch.storage._load_from_bytes, twice), 3), "files in files"
    yield "nested-zip.pkl", pickle.dumps(Call(torch.storage._load_from_bytes, saved(arcface())), 3), "what torch writes"
    yield "zip.pt", saved(arcface() | {"x": system()}), "posix.system"
    yield "stream.pt", saved({"state_dict": evaluate()}, zipped=False), "__builtin__.eval"
    yield "objects.pkl", pickle.dumps({"a": np.array([system()], object)}, 4), "arrays of the dtype"
    yield "inst.pkl", b"\x80\x02(ios\nsystem\n.", "INST"
    yield "ext.pkl", b"\x80\x02\x82\x01.", "EXT1"
    yield "persid.pkl", b"\x80\x02Nq\x00Q.", "outside itself"
    # Archives
    yield "deflated.pt", archive(pickle.dumps(arcface(), 2), compression=zipfile.ZIP_DEFLATED), "compressed"
    yield (
        "bomb.pt",
        archive(b"\x80\x02}.", ("archive/data/0", b"\0" * 50_000_000), compression=zipfile.ZIP_DEFLATED),
        "compressed",
    )
    yield "overlap.pt", bomb(), "claim|damaged|Overlapped"
    yield (
        "archive-in-archive.zip",
        archive(b"", ("model.pt", saved(arcface()))).replace(b"data.pkl", b"data.zip"),
        "unpack",
    )
    yield "gzip.tar.gz", b"\x1f\x8b" + zlib.compress(b"x" * 999), "gzip"
    yield "script.pt", archive(b"\x80\x02}.", ("archive/constants.pkl", b"")), "TorchScript"
    yield "appended.pt", saved(arcface())[:-22] + b"\0" * 200_000 + saved(arcface())[-22:], "damaged|claim"
    yield "twice.pt", archive(b"\x80\x02}.", ("archive/x", b"1"), ("archive/x", b"2")), "a name twice"
    # Tensors
    yield "stride0.pt", tensor(1, 0, (1 << 39,), (0,)), "larger than any"
    yield "stride0-small.pt", tensor(16, 0, (4, 4), (0, 1)), "more elements"
    yield "long.pt", tensor(16, 0, (5, 5), (5, 1)), "more elements"
    yield "outside.pt", tensor(16, 9, (8,), (1,)), "outside"
    yield "strided.pt", tensor(16, 0, (4,), (16,)), "outside"
    yield "negative.pt", tensor(16, 0, (-4,), (1,)), "whole numbers"
    yield "short-storage.pt", tensor(1 << 30, 0, (1 << 20,), (1,)), "not as long"
    yield "amplified.pt", amplified(), "claim more bytes"
    # Sizes in the pickle
    yield "bytes.pkl", b"\x80\x04" + signed("\x8e", 1 << 60), "truncated"
    yield "text.pkl", b"\x80\x04" + signed("\x8d", 1 << 45), "truncated"
    yield "integer.pkl", b"\x80\x02\x8b" + (2**31 - 1).to_bytes(4, "little"), "truncated"
    yield "memo.pkl", b"\x80\x02]r\xff\xff\xff\x7f.", "which is no network"
    yield "many.pkl", b"\x80\x02" + b"]" * (MAX_STEPS + 100) + b".", "more parts"
    yield "deep.pkl", b"\x80\x02" + b"(" * 100_000 + b"l.", "LIST|damaged|valid"
    yield "hashed.pkl", b"\x80\x02}" + nested_tuples() + b"Ns.", "not a valid pickle"
    yield "line.pkl", b"\x80\x02c" + b"x" * 10_000, "too long"
    yield "printed.pkl", printed_bomb(), "architecture is a list"
    yield "cyclic.pkl", cyclic_modules(), "nested deeper"
    # Truncated and mislabelled
    pickled = nvlabs_pickle(persistent_generator(filled(generator_shapes())))
    for name, data in (("zip", saved(arcface())), ("stream", saved(arcface(), zipped=False)), ("pickle", pickled)):
        for cut in (1, 40, len(data) // 2, len(data) - 1):
            yield f"cut-{name}-{cut}.pt", data[:cut], "truncated|damaged|no format"
    yield "empty.pt", b"", "no format"
    yield "page.pt", b"<!DOCTYPE html><title>Too many requests</title>", "web page"
    yield "picture.pkl", b"\xff\xd8\xff\xe0 JFIF", "no format"
    yield "named.pt", struct.pack("<Q", 2) + b"{}" + b"\0" * 8, "safetensors file already"
    yield "trailing.pkl", pickle.dumps({"g_ema": 1}) + b"more", "more follows"
    yield "escape.pt", saved({"\x1b[2Jkey": 1}), "which is no network"


FILES = list(hostile())


@pytest.mark.parametrize(("name", "data", "reason"), FILES, ids=[name for name, _, _ in FILES])
def test_hostile_files_are_refused(
    name: str, data: bytes, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(data)
    with pytest.raises(WeightsError, match=reason):
        worker._convert(Path(name), Path("out"), None)
    assert os.listdir() == [name]  # neither the canary nor an output


# One of each sort, and all that could cost memory.
THROUGH_THE_DOOR = {
    "system2.pkl", "nested-stream.pkl", "zip.pt", "bomb.pt", "stride0.pt", "short-storage.pt", "amplified.pt",
    "bytes.pkl", "memo.pkl", "many.pkl", "hashed.pkl", "printed.pkl", "escape.pt",
}  # fmt: skip
HARNESS = """
import json, os, resource, sys
from latentswap.cli.main import main
results = {}
for name in json.load(sys.stdin):
    sys.stderr = open("../stderr", "w")
    code = main(["models", "convert", name, "-o", "out.safetensors"])
    sys.stderr.close()
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    results[name] = code, open("../stderr").read(), peak, sorted(os.listdir())
print(json.dumps(results))
"""


def test_the_command_refuses_them_and_costs_little(tmp_path: Path) -> None:
    """Exit code, message, peak memory and what is left, with the file read in a process of its own."""
    folder = tmp_path / "files"
    folder.mkdir()
    chosen = [(name, data, reason) for name, data, reason in FILES if name in THROUGH_THE_DOOR]
    assert len(chosen) == len(THROUGH_THE_DOOR)
    for name, data, _ in chosen:
        (folder / name).write_bytes(data)
    (folder / "directory.pt").mkdir()
    before = sorted(entry.name for entry in folder.iterdir())
    names = json.dumps([*before, "absent.pt"])
    ran = subprocess.run([sys.executable, "-c", HARNESS], input=names, cwd=folder, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    results = json.loads(ran.stdout)
    for name, _, reason in chosen:
        code, message, kilobytes, present = results[name]
        assert code == 5 and re.search(reason, message), message
        assert message.startswith(f"error: {name}: ") and message.count("\n") == 1 and "\x1b" not in message
        assert kilobytes < 1_000_000 and present == before
    for name in ("directory.pt", "absent.pt"):
        assert results[name][:2] == [5, f"error: {name} is not a file\n"]


def test_the_traps_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own unpickler does run what these files carry."""
    monkeypatch.chdir(tmp_path)
    for value in (pickle.dumps(system()), pickle.dumps(evaluate(), 2)):
        pickle.loads(value)  # noqa: S301
        assert Path(CANARY).exists()
        Path(CANARY).unlink()


def test_source_code_in_a_pickle_is_not_looked_at(tmp_path: Path) -> None:
    source = f"open({str(tmp_path / CANARY)!r}, 'w')"
    (tmp_path / "g.pkl").write_bytes(nvlabs_pickle(persistent_generator(filled(generator_shapes()), source=source)))
    with (tmp_path / "g.pkl").open("rb") as file:
        (network,) = detect.convert(detect.read(file, (tmp_path / "g.pkl").stat().st_size))
    assert len(network.tensors) == len(generator_shapes()) and not (tmp_path / CANARY).exists()


GIVEN_UP = """
import os, socket, subprocess, sys, ctypes
from pathlib import Path
from latentswap.errors import WeightsError
from latentswap.weights.convert import worker
folder = Path(sys.argv[1])
worker._give_up_rights(folder / "inside", 1000)
refused = []
attempts = {
    "system": lambda: os.system("true"),
    "program": lambda: subprocess.run(["true"]),
    "fork": os.fork,
    "socket": lambda: socket.create_connection(("127.0.0.1", 9)),
    "library": lambda: ctypes.CDLL("libc.so.6"),
    "write": lambda: open(folder / "outside", "w"),
    "append": lambda: open(folder / "inside" / ".." / "outside", "ab"),
    "low": lambda: os.open(folder / "outside", os.O_CREAT | os.O_RDWR),
    "link": lambda: open(folder / "inside" / "link", "w"),
    "rename": lambda: os.rename(folder / "file", folder / "other"),
    "remove": lambda: os.remove(folder / "file"),
    "memory": lambda: bytearray(1 << 30),
    "disk": lambda: (folder / "inside" / "big").write_bytes(bytes(200 << 20)),
}
for name, attempt in attempts.items():
    try:
        attempt()
    except (WeightsError, MemoryError, OSError):
        refused.append(name)
(folder / "inside" / "small").write_text("written")
print(",".join(refused) == ",".join(attempts), refused)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
def test_the_process_can_do_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "inside" / "link").symlink_to(tmp_path / "outside")
    ran = subprocess.run([sys.executable, "-c", GIVEN_UP, str(tmp_path)], capture_output=True, text=True)
    assert ran.stdout.startswith("True"), ran.stdout + ran.stderr
    assert (tmp_path / "inside" / "small").read_text() == "written"
    assert not (tmp_path / "outside").exists() and (tmp_path / "file").exists()


def test_no_secret_reaches_the_other_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.pt").write_bytes(saved(arcface()))
    environments = []
    run = subprocess.run

    def recorded(*arguments: Any, env: dict[str, str], **options: Any) -> Any:
        environments.append(env)
        return run(*arguments, env=env, **options)

    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setattr(sandbox.subprocess, "run", recorded)
    assert sandbox.inspect(tmp_path / "a.pt")["family"] == "ArcFace IR-SE50"
    assert "secret" not in json.dumps(environments) and len(environments) == 1


def test_an_output_that_cannot_be_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    source = tmp_path / "a.pt"
    source.write_bytes(b"not read")
    for output, reason in (
        (source, "overwritten"),
        (tmp_path, "is a folder"),
        (tmp_path / "no" / "x", "does not exist"),
    ):
        with pytest.raises(UsageError, match=reason):
            sandbox.convert(source, output)
    with pytest.raises(UsageError, match="is not a kind of network; there are: generator/stylegan2"):
        sandbox.convert(source, kind="generator/stylegan9")


def test_a_previous_output_survives_a_failure(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"precious")
    (tmp_path / "a.pt").write_bytes(saved({"x": 1}))
    with pytest.raises(WeightsError, match="table of 1 entries"):
        sandbox.convert(tmp_path / "a.pt")
    assert (tmp_path / "a.safetensors").read_bytes() == b"precious"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_process_that_is_killed_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.pt").write_bytes(saved(arcface()))
    killed = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    run = subprocess.run
    monkeypatch.setattr(sandbox.subprocess, "run", lambda command, **options: run(killed, **options))
    with pytest.raises(WeightsError, match="exceeded the limits"):
        sandbox.convert(tmp_path / "a.pt")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.pt"]


SMALL = {
    "zip": saved(arcface()),
    "stream": saved({"g_ema": rosinality_state(filled(generator_shapes(8, 64, 8, 4, 1, 4)))}, zipped=False),
    "pickle": nvlabs_pickle(persistent_generator(filled(generator_shapes(8, 64, 8, 4, 1, 4)))),
    "tensorflow": tensorflow_pickle(tensorflow_variables(filled(generator_shapes(8, 64, 8, 4, 1, 4)))),
}


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_changed_bytes_are_refused_or_harmless(data: st.DataObject) -> None:
    """No byte makes the reader raise anything but WeightsError."""
    raw = bytearray(SMALL[data.draw(st.sampled_from(sorted(SMALL)))])
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        with io.BytesIO(bytes(raw)) as file:
            for network in worker._networks(detect.read(file, len(raw)), None):
                for value in network.tensors.values():
                    assert value.read().shape == value.shape
    except WeightsError:
        pass


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=60))
def test_any_pickle_is_refused_or_harmless(data: bytes) -> None:
    try:
        read_pickle(Window.of_bytes(b"\x80\x02" + data))
    except WeightsError:
        pass
