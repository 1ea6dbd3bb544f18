"""The job record: what this installation made, in a file that stays with the user.

One JSON object a line in `jobs.jsonl` of the user's data folder (LATENTSWAP_DATA), readable by its owner alone. A line
is written before its output takes its name, so that nothing is put out without a record. It is never published: outputs
name the job, and only who has the record can say more.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import filelock

from latentswap.errors import ResourceError
from latentswap.provenance.home import data_root, private_folder


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """A file that went in, by its content."""

    role: str  # "target" or "source"
    sha256: str


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """One output."""

    job: str  # the number that the output's credentials name; the same for all outputs of a run
    command: str
    deed: str
    inputs: tuple[InputFile, ...]
    output: str  # path
    sha256: str  # of the output's bytes
    signed: bool
    watermark: str | None  # the payload, 8 hexadecimal digits; None: there is none
    networks: Mapping[str, str] = field(default_factory=dict)  # name → sha256
    consent: str | None = None  # what was attested about the person in the SOURCE
    time: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


def record_path() -> Path:
    """Where the record lies. Not created here."""
    return data_root() / "jobs.jsonl"


def append(record: JobRecord) -> None:
    """Add a line. Raises ResourceError when it cannot be written whole; the record is as it was then."""
    _append((json.dumps(asdict(record), ensure_ascii=False) + "\n").encode())


def check_record() -> None:
    """Refuse, before a job, a record that could not be written at its end. Raises ResourceError."""
    _append(b"")


def read_records() -> Iterator[dict[str, Any]]:
    """The lines, oldest first. A line that is no JSON is passed over. Raises ResourceError."""
    try:
        lines = record_path().read_bytes().splitlines()
    except FileNotFoundError:
        return
    except OSError as error:
        raise _failure(error) from error
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            continue


def sha256_of(data: bytes | Path) -> str:
    """Of bytes or of a file, in hexadecimal."""
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest()
    with data.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _append(line: bytes) -> None:
    private_folder()
    path = record_path()
    try:
        with filelock.FileLock(path.with_suffix(".lock"), timeout=20):
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o600)
            try:
                before = os.fstat(handle).st_size
                try:
                    written = os.write(handle, line)
                    if written < len(line):
                        os.write(handle, line[written:])  # says why
                    os.fsync(handle)
                except OSError:
                    with contextlib.suppress(OSError):
                        os.ftruncate(handle, before)
                    raise
            finally:
                os.close(handle)
    except filelock.Timeout:
        raise ResourceError(f"another job holds {path}; wait for it to end") from None
    except OSError as error:
        raise _failure(error) from error


def _failure(error: OSError) -> ResourceError:
    return ResourceError(
        f"the job record {record_path()} cannot be written or read ({error.strerror or error}), and nothing is put out "
        "without it; free some space, mend its permissions, or set LATENTSWAP_DATA to another folder"
    )
