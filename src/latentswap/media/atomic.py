"""Writing outputs so that a destination only ever holds a whole file: the old one or the new one.

Neither a full disk, nor an interrupt, nor a kill leaves a half-written file under the output's name.
"""

import contextlib
import errno
import hashlib
import os
import secrets
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import filelock
import platformdirs

from latentswap.errors import ResourceError, UsageError

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_umask_guard = threading.Lock()


def check_destination(path: str | os.PathLike[str]) -> None:
    """Refuse, before any work is done, an output path that could not be written at the end.

    An existing regular file or symlink is fine: `write_atomic` replaces it (a symlink itself, never its target).

    Raises:
        UsageError: the path is empty or malformed, its folder does not exist, or it names a folder or a device.
        ResourceError: the folder cannot be written by this user.
    """
    path = Path(path)
    if not path.name:
        raise UsageError(f"the OUTPUT {str(path)!r} names no file; give a file name such as out.png")
    try:
        parent = path.parent.stat()
    except FileNotFoundError:
        raise UsageError(f"the folder {path.parent} of the OUTPUT does not exist; create it first") from None
    except NotADirectoryError:
        raise UsageError(f"the folder {path.parent} of the OUTPUT lies below a file; choose another folder") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"the OUTPUT path {str(path)!r} cannot be used: {error}") from error
    if not stat.S_ISDIR(parent.st_mode):
        raise UsageError(f"{path.parent} is a file, so the OUTPUT {path} cannot be written in it; choose a folder")
    mode = _mode_of(path)
    if mode is not None and stat.S_ISDIR(mode):
        raise UsageError(f"the OUTPUT {path} is a folder; add a file name such as {path / 'out.png'}")
    if mode is not None and not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        raise UsageError(f"the OUTPUT {path} is a device or a pipe, which cannot be replaced whole; name a file")
    if not _may_write(path.parent):
        raise ResourceError(
            f"the folder {path.parent} of the OUTPUT cannot be written; choose another or change its mode"
        )


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path` in one step, visible only when it is whole and on the disk.

    The bytes go to a private temporary file in the same folder, which then takes the name. A file that was there
    keeps its permissions; a new one gets those of the umask. On any failure the temporary file is removed and
    what was at `path` is untouched.

    Raises:
        UsageError: as `check_destination`.
        ResourceError: the disk is full, or the folder cannot be written.
    """
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """The name of an empty private file to write, for those that write a file by its name (a video library, a signer).

    The file lies in the folder of `path`. When the block ends it is brought to the disk and takes the name `path` in
    one step; when the block fails it is removed. Permissions, and what a failure leaves, are as with `write_atomic`.

    Raises:
        UsageError: as `check_destination`.
        ResourceError: the disk is full, or the folder cannot be written; also for an OSError of the block itself.
    """
    path = Path(path)
    check_destination(path)
    # The name is settled before the file exists, so that an interrupt at any moment leaves nothing behind.
    temporary = path.parent / f"{_temporary_prefix(path)}{secrets.token_hex(8)}.part"
    try:
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600))
        yield temporary
        handle = os.open(temporary, os.O_RDWR | getattr(os, "O_BINARY", 0))
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        os.chmod(temporary, _final_mode(path))
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise _write_error(path, error) from error
        raise
    _sync_folder(path.parent)


@contextlib.contextmanager
def output_lock(path: str | os.PathLike[str]) -> Iterator[None]:
    """Hold the right to write `path` for as long as a job runs; a second job on the same output is refused at once.

    The lock lives in the user's cache folder, keyed by the resolved path, so nothing appears beside the output. The
    system lets go of it when the process dies, however it dies. Entering also removes what a killed job left behind.

    Raises:
        ResourceError: another job holds the lock, or no folder for locks can be written.
    """
    path = Path(path)
    where = path.parent.resolve() / path.name
    lock = filelock.FileLock(_lock_folder() / f"{hashlib.sha256(os.fsencode(where)).hexdigest()[:32]}.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise ResourceError(
            f"a job that writes {path} is already running; wait for it to end or choose another output"
        ) from None
    try:
        for leftover in where.parent.glob(_temporary_prefix(path) + "*.part"):
            with contextlib.suppress(OSError):
                leftover.unlink()
        yield
    finally:
        lock.release()


def _temporary_prefix(path: Path) -> str:
    """Hidden, and the same for every write to one output, so that the lock's holder can sweep leftovers."""
    return f".latentswap-{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:12]}-"


def _may_write(folder: Path) -> bool:
    return os.access(folder, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids)


def _mode_of(path: Path) -> int | None:
    try:
        return path.lstat().st_mode
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"the OUTPUT path {str(path)!r} cannot be used: {error.strerror}") from error


def _final_mode(path: Path) -> int:
    mode = _mode_of(path)
    if mode is not None and stat.S_ISREG(mode):
        return stat.S_IMODE(mode) & 0o777
    # The umask can only be read by setting it. The probe is the strictest value: a file that another thread
    # creates meanwhile comes out too private, never too open.
    with _umask_guard:
        umask = os.umask(0o077)
        os.umask(umask)
    return 0o666 & ~umask


def _sync_folder(folder: Path) -> None:
    """Make the new name itself survive a power cut, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _write_error(path: Path, error: OSError) -> ResourceError:
    if error.errno in _NO_SPACE:
        return ResourceError(
            f"no space left to write the OUTPUT {path}; free some or choose another disk (earlier files are unchanged)"
        )
    return ResourceError(f"the OUTPUT {path} cannot be written: {error.strerror or error}; choose another folder")


def _lock_folder() -> Path:
    """The cache folder, or this user's own folder among the temporary files where the cache cannot be written."""
    user = os.geteuid() if hasattr(os, "geteuid") else "user"
    candidates = [platformdirs.user_cache_path("latentswap") / "locks"]
    candidates.append(Path(tempfile.gettempdir()) / f"latentswap-locks-{user}")
    for folder in candidates:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            continue
        owner = folder.stat().st_uid
        if _may_write(folder) and user in (owner, "user"):
            return folder
    raise ResourceError(f"no folder for lock files can be written (tried {candidates[0]} and {candidates[1]})")
