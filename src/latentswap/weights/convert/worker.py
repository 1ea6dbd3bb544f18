"""The process in which foreign files are read.

    python -m latentswap.weights.convert.worker ACTION FILE FOLDER [KIND [VARIANT]]

It gives up rights before it opens the file: memory, processor time and file sizes are bounded, and it can neither
start programs, nor open connections, nor write outside FOLDER. Its answer is FOLDER/report.json.
"""

import hashlib
import json
import os
import sys
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
import numpy.random  # before the rights are gone

from latentswap.errors import ResourceError, UsageError, WeightsError
from latentswap.weights.convert import detect
from latentswap.weights.convert.tensors import ITEM_BYTES, Network, Stored
from latentswap.weights.convert.unpickle import shown
from latentswap.weights.files import resource_error
from latentswap.weights.header import DTYPES, FORMAT_VERSION

MEMORY_BYTES = 640 << 20  # beyond what the interpreter itself has
CPU_SECONDS = 600
_SPARE_BYTES = 64 << 20  # what an output may have more than its source: drawn noise, measured averages
_FORBIDDEN = ("socket.", "subprocess.", "ctypes.", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.system",
              "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.chown", "os.kill",
              "shutil.", "pty.")  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def main(arguments: list[str]) -> int:
    action, source, folder, kind, variant = (*arguments, "", "")[:5]
    path, target = Path(source), Path(folder)
    _give_up_rights(target, path.stat().st_size)
    try:
        report = _inspect(path) if action == "inspect" else _convert(path, target, kind or None, variant or None)
    except (ResourceError, UsageError, WeightsError) as error:
        report = {"error": str(error), "type": type(error).__name__}
    except MemoryError:
        report = {"error": "reading it takes more memory than any published checkpoint", "type": "WeightsError"}
    except OSError as error:
        report = {"error": str(resource_error(error, target)), "type": "ResourceError"}
    (target / "report.json").write_text(json.dumps(report), encoding="utf-8")
    return 0


def _inspect(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        found = detect.read(file, path.stat().st_size)
        report: dict[str, Any] = {"container": found.container, "sha256": _sha256(file)}
        if found.family is None:
            return report | {"problem": f"{detect.describe(found.value)}; this is no network that is known here"}
        family = detect.FAMILIES[found.family]
        report |= {"family": family.title, "published": family.published, "licence": family.licence}
        try:
            networks = _networks(found, None)
        except WeightsError as error:
            return report | {"problem": str(error)}
        return report | {
            "networks": [
                {"kind": n.kind, "config": n.config, "tensors": len(n.tensors), "parameters": n.parameters}
                | ({"variant": " or ".join(n.variants)} if n.variants else {})
                for n in networks
            ]
        }


def _convert(path: Path, folder: Path, kind: str | None, variant: str | None = None) -> dict[str, Any]:
    with path.open("rb") as file:
        size = path.stat().st_size
        found = detect.read(file, size)
        networks = detect.settle(_networks(found, kind), variant)
        if sum(tensor.nbytes for network in networks for tensor in network.tensors.values()) > size + _SPARE_BYTES:
            raise WeightsError("its tensors claim more bytes than the file has")
        origin = {
            "source": detect.file_name(path),
            "source_sha256": _sha256(file),
            "family": str(found.family),
            "licence": detect.FAMILIES[str(found.family)].licence,
        }
        written = []
        for i, network in enumerate(networks):
            metadata = {"kind": network.kind, "config": json.dumps(network.config), **origin}
            if network.notes:
                metadata["notes"] = network.notes
            _write(folder / f"{i}.safetensors", network.tensors, metadata)
            written.append({"kind": network.kind, "suffix": network.suffix if kind is None else ""})
    return {"written": written}


def _networks(found: detect.Found, kind: str | None) -> list[Network]:
    try:
        return detect.convert(found, kind)
    except KeyError as error:
        raise WeightsError(f"the tensor {shown(error.args[0])} is missing") from error
    except (TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise WeightsError(f"it is not laid out as published ({type(error).__name__})") from error


def _write(path: Path, tensors: dict[str, Stored], metadata: dict[str, str]) -> None:
    """Write a safetensors file, one tensor in memory at a time."""
    codes = {name: code for code, name in DTYPES.items()}
    if bad := sorted(name for name, tensor in tensors.items() if tensor.dtype not in codes):
        raise WeightsError(f"these tensors are of dtypes that no network has: {', '.join(bad[:5])}")
    # Wide elements first, so that every tensor is aligned.
    names = sorted(tensors, key=lambda name: (-ITEM_BYTES[tensors[name].dtype], name))
    header: dict[str, Any] = {"__metadata__": {"format_version": FORMAT_VERSION, **metadata}}
    at = 0
    for name in names:
        tensor = tensors[name]
        offsets = [at, at := at + tensor.nbytes]
        header[name] = {"dtype": codes[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
    raw = json.dumps(header, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("xb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for name in names:
            array = np.asarray(tensors[name].read(), order="C")
            if array.shape != tensors[name].shape or str(array.dtype) != tensors[name].dtype:
                raise WeightsError(f"the tensor {name} is not what the file says that it is")
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise WeightsError(f"values that are not finite (NaN or infinity) in {name}")
            file.write(array.data)
        file.flush()
        os.fsync(file.fileno())


def _sha256(file: BufferedReader) -> str:
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()


def _give_up_rights(folder: Path, source_bytes: int) -> None:
    try:
        import resource
    except ImportError:  # Windows has no such limits; the process is still one of its own
        pass
    else:
        own = Path("/proc/self/statm")
        if own.exists():
            used = int(own.read_text().split()[0]) * resource.getpagesize()
            _limit(resource.RLIMIT_AS, used + MEMORY_BYTES)
        _limit(resource.RLIMIT_FSIZE, source_bytes + 2 * _SPARE_BYTES)
        _limit(resource.RLIMIT_CPU, CPU_SECONDS)
        _limit(resource.RLIMIT_CORE, 0)
    sys.dont_write_bytecode = True
    inside = str(folder.resolve()) + os.sep

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(_FORBIDDEN):
            raise WeightsError(f"reading it attempted {event}, which is not allowed")
        if event == "open":
            path, _, flags = arguments
            writes = isinstance(flags, int) and flags & _WRITING
            if writes and not os.path.realpath(os.fsdecode(path)).startswith(inside):
                raise WeightsError("reading it attempted to write where it may not")

    sys.addaudithook(refuse)


def _limit(which: int, most: int) -> None:
    import resource

    _, hard = resource.getrlimit(which)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(which, (most, most))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
