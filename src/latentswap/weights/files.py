"""Hashing, serialising and atomic writing of weight files."""

import contextlib
import errno
import hashlib
import json
import os
import uuid
from pathlib import Path

from latentswap.errors import ResourceError


def sha256_file(path: Path) -> str:
    """Lower-case hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader, a crash or a full disk sees the old file or the new one, never a part.

    Raises ResourceError when the folder cannot be written or the disk is full; nothing is left behind then.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise resource_error(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def canonical(data: bytes) -> bytes:
    """A serialised safetensors file with its header in sorted order: equal contents are then equal bytes.

    The library's own order of the metadata changes from one process to the next.
    """
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[end:]


def resource_error(error: OSError, path: Path) -> ResourceError:
    """The error of the project for an OSError while writing `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ResourceError(
            f"the disk is full: {path} could not be written; free some space and run the command again"
        )
    return ResourceError(f"{path} could not be written: {error.strerror or error}")
