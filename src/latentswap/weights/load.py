"""Reading and writing tensors: safetensors only, strict, finite, bounded.

A checkpoint is data. Nothing here executes anything that a file carries, fills in what it lacks, broadcasts, or
converts a dtype that the caller did not allow.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from latentswap.errors import WeightsError
from latentswap.weights.files import canonical, write_atomic
from latentswap.weights.header import FORMAT_VERSION, MAX_FILE_BYTES, read_header

Expected = Mapping[str, tuple[tuple[int, ...], str]]  # shape and dtype name ("float32") by tensor name
_LISTED = 20  # how many names of each sort a message lists


def load_tensors(
    path: str | Path, *, kind: str | None = None, expected: Expected | None = None, max_bytes: int = MAX_FILE_BYTES
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors and the metadata of the safetensors file at `path`, on the CPU.

    `kind` is what the metadata must say that the file is; `expected` is the exact set of tensors. Raises WeightsError
    for everything that `read_header` refuses, for missing, unexpected and mismatched tensors (all in one message) and
    for values that are not finite.
    """
    path = Path(path)
    header = read_header(path, kind=kind, max_bytes=max_bytes)
    if expected is not None:
        _check_layout(path, header.tensors, expected, allow_cast_from=())
    return _read(path), header.metadata


def half_matrices(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The module's state with everything but vectors in float16: how trained networks are kept."""
    return {name: value.half() if value.ndim > 1 else value for name, value in module.state_dict().items()}


def load_into(
    module: torch.nn.Module,
    path: str | Path,
    *,
    kind: str,
    allow_cast_from: Collection[str] = ("float16",),
    max_bytes: int = MAX_FILE_BYTES,
) -> dict[str, str]:
    """Fill `module` from the file at `path`, which must hold exactly its state; returns the file's metadata.

    Floating tensors of the dtypes in `allow_cast_from` are converted to the module's. A module on the meta device
    takes the tensors over; any other keeps its device. The module is untouched when WeightsError is raised, which is
    for everything that `load_tensors` refuses.
    """
    path = Path(path)
    header = read_header(path, kind=kind, max_bytes=max_bytes)
    state = module.state_dict()
    expected = {name: (tuple(value.shape), _dtype_name(value)) for name, value in state.items()}
    _check_layout(path, header.tensors, expected, allow_cast_from=allow_cast_from)
    tensors = {name: value.to(state[name].dtype) for name, value in _read(path).items()}
    on_meta = any(value.is_meta for value in state.values())
    module.load_state_dict(tensors, strict=True, assign=on_meta)
    return header.metadata


def save_tensors(path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write `tensors` and `metadata` (strings, with at least "kind") to `path`, atomically.

    Raises WeightsError for values that are not finite or metadata that the loader would refuse, ResourceError when
    the file cannot be written. Nothing is left behind then.
    """
    path = Path(path)
    if not metadata.get("kind"):
        raise WeightsError(f'{path} would not say what it is: the metadata needs "kind"')
    if bad := sorted(key for key, value in metadata.items() if not isinstance(value, str)):
        raise WeightsError(f"metadata must be strings, and these are not: {', '.join(bad)}")
    # Clones: two names of one storage (tied weights) are two tensors of the file.
    plain = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    _check_finite(path, plain)
    write_atomic(path, canonical(save(plain, {"format_version": FORMAT_VERSION, **metadata})))


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is damaged: {error}") from error
    _check_finite(path, tensors)
    return tensors


def _check_finite(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    bad = [name for name, value in tensors.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if bad:
        raise WeightsError(f"{path}: values that are not finite (NaN or infinity) in {_listed(bad)}")


def _check_layout(path: Path, found: Expected, expected: Expected, *, allow_cast_from: Collection[str]) -> None:
    problems = []
    if missing := [name for name in expected if name not in found]:
        problems.append(f"missing: {_listed(missing)}")
    if unexpected := [name for name in found if name not in expected]:
        problems.append(f"unexpected: {_listed(unexpected)}")
    common = [name for name in expected if name in found]
    if shapes := [name for name in common if found[name][0] != expected[name][0]]:
        details = [f"{name} {list(found[name][0])}, not {list(expected[name][0])}" for name in shapes]
        problems.append(f"of another shape: {_listed(details)}")
    if dtypes := [name for name in common if not _fits(found[name][1], expected[name][1], allow_cast_from)]:
        details = [f"{name} {found[name][1]}, not {expected[name][1]}" for name in dtypes]
        problems.append(f"of another dtype: {_listed(details)}")
    if problems:
        raise WeightsError(f"{path} does not fit the network; {'; '.join(problems)}")


def _fits(found: str, expected: str, allow_cast_from: Collection[str]) -> bool:
    return found == expected or (found in allow_cast_from and expected in ("float32", "float64", "bfloat16", "float16"))


def _dtype_name(value: torch.Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
