"""Atomic writing and the lock on an output: whatever happens, the destination holds a whole file."""

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from make_bad_files import unprivileged

from latentswap.errors import ResourceError, UsageError
from latentswap.media.atomic import check_destination, output_lock, write_atomic


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    return cache


def _python(script: str, *arguments: object) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock on out.png."""
    script = (
        "import sys, time; from latentswap.media.atomic import output_lock\n"
        "with output_lock(sys.argv[1]): print('held', flush=True); time.sleep(60)"
    )
    process = _python(script, tmp_path / "out.png")
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "out.png"
    for data in (b"one", b"", b"two" * 100_000):
        write_atomic(path, data)
        assert path.read_bytes() == data
    write_atomic(str(path), b"text path")
    assert os.listdir(tmp_path) == ["out.png"]


def test_permissions_follow_the_umask_and_then_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "out.png"
    for umask in (0o022, 0o077):
        old = os.umask(umask)
        try:
            write_atomic(path, b"x")
            assert os.umask(umask) == umask  # left as it was
        finally:
            os.umask(old)
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
        path.unlink()
    path.write_bytes(b"private")
    path.chmod(0o600)
    write_atomic(path, b"still private")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_symlink_is_replaced_and_its_target_untouched(tmp_path: Path) -> None:
    target = tmp_path / "precious.png"
    target.write_bytes(b"precious")
    for name, to in (("out.png", target), ("dangling.png", tmp_path / "nowhere")):
        link = tmp_path / name
        link.symlink_to(to)
        write_atomic(link, b"new")
        assert not link.is_symlink()
        assert link.read_bytes() == b"new"
    assert target.read_bytes() == b"precious"
    assert not (tmp_path / "nowhere").exists()


def test_destinations_that_cannot_be_written(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"old")
    os.mkfifo(tmp_path / "pipe.png")
    cases = {
        "": "names no file",
        tmp_path: "is a folder",
        tmp_path / "missing" / "out.png": "does not exist",
        file / "out.png": "is a file",
        tmp_path / "pipe.png": "device or a pipe",
        "/dev/null": "device or a pipe",
    }
    for path, word in cases.items():
        for call in (check_destination, lambda p: write_atomic(p, b"x")):
            with pytest.raises(UsageError, match=word):
                call(path)
    assert sorted(os.listdir(tmp_path)) == ["file", "pipe.png"]
    assert file.read_bytes() == b"old"
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_folder_that_may_not_be_written() -> None:
    with unprivileged() as folder:
        folder.chmod(0o500)
        for call in (check_destination, lambda p: write_atomic(p, b"x")):
            with pytest.raises(ResourceError, match="cannot be written"):
                call(folder / "out.png")


def test_a_folder_that_takes_no_files() -> None:
    """/proc/self/fdinfo is a folder that even root cannot write to."""
    with pytest.raises(ResourceError, match="cannot be written"):
        write_atomic("/proc/self/fdinfo/out.png", b"x")


def test_no_space_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "out.png"
    path.write_bytes(b"old")
    script = (
        "import resource, sys; from latentswap.errors import ResourceError\n"
        "from latentswap.media.atomic import write_atomic\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try: write_atomic(sys.argv[1], bytes(1_000_000))\n"
        "except ResourceError as error: print(error); sys.exit(error.exit_code)\n"
    )
    process = _python(script, path)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 6, err
    assert f"no space left to write the OUTPUT {path}" in out
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["out.png"]


def test_an_interrupt_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "out.png"
    path.write_bytes(b"old")
    script = (
        "import sys; from latentswap.media.atomic import write_atomic\n"
        "data = bytes(1 << 20); print('ready', flush=True)\n"
        "while True: write_atomic(sys.argv[1], data)\n"
    )
    for attempt in range(4):
        process = _python(script, path)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.013 * (attempt + 1))
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert "KeyboardInterrupt" in err
        assert path.read_bytes() in (b"old", bytes(1 << 20))
        assert os.listdir(tmp_path) == ["out.png"]


def test_killed_writers_leave_a_whole_file_and_are_swept_up(tmp_path: Path) -> None:
    path = tmp_path / "out.png"
    size = 8 << 20
    path.write_bytes(b"\0" * size)
    script = (
        "import sys; from latentswap.media.atomic import write_atomic\n"
        f"blocks = [bytes([i]) * {size} for i in range(4)]; print('ready', flush=True)\n"
        "while True:\n"
        "    for block in blocks: write_atomic(sys.argv[1], block)\n"
    )
    leftovers = 0
    for attempt in range(30):
        process = _python(script, path)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.007 * (attempt + 1))
        process.kill()
        process.communicate()
        data = path.read_bytes()
        assert len(data) == size
        assert data == data[:1] * size
        names = set(os.listdir(tmp_path)) - {"out.png"}
        assert all(name.startswith(".") for name in names)
        leftovers += len(names)
        with output_lock(path):
            assert os.listdir(tmp_path) == ["out.png"]
        if leftovers >= 3:
            break
    assert leftovers  # at least one kill hit the middle of a write, or the test shows nothing


def test_concurrent_writers_never_mix(tmp_path: Path) -> None:
    path = tmp_path / "out.png"
    blocks = [bytes([i]) * 300_000 for i in range(6)]
    write_atomic(path, blocks[0])
    seen, stop = set(), threading.Event()

    def watch() -> None:
        while not stop.is_set():
            seen.add(path.read_bytes())

    def write(block: bytes) -> None:
        for _ in range(5):
            write_atomic(path, block)

    watcher = threading.Thread(target=watch)
    watcher.start()
    writers = [threading.Thread(target=write, args=(block,)) for block in blocks]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    stop.set()
    watcher.join()
    assert seen <= set(blocks)
    assert path.read_bytes() in blocks
    assert os.listdir(tmp_path) == ["out.png"]


def test_a_second_job_on_one_output_is_refused(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    (tmp_path / "also").symlink_to(tmp_path)
    for same in (
        tmp_path / "out.png",
        tmp_path / "also" / "out.png",
        tmp_path / "also" / ".." / tmp_path.name / "out.png",
    ):
        with pytest.raises(ResourceError, match="already running"), output_lock(same):
            pass
    with output_lock(tmp_path / "other.png"):
        pass
    holder.kill()
    holder.communicate()
    with output_lock(tmp_path / "out.png"):
        write_atomic(tmp_path / "out.png", b"x")
    assert sorted(os.listdir(tmp_path)) == ["also", "out.png"]


def test_the_lock_is_let_go_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "out.png"
    with pytest.raises(ZeroDivisionError), output_lock(path):
        _ = 1 // 0
    with output_lock(path), pytest.raises(ResourceError, match="already running"), output_lock(path):
        pass


def test_sweeping_spares_other_files(tmp_path: Path) -> None:
    keep = ["other.png", ".latentswap-notes.part", ".out.png.part", "out.png.part"]
    for name in keep:
        (tmp_path / name).write_bytes(b"x")
    with output_lock(tmp_path / "out.png"):
        pass
    assert sorted(os.listdir(tmp_path)) == sorted(keep)


def test_locks_without_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "cache"))
    path = tmp_path / "out.png"
    with output_lock(path), pytest.raises(ResourceError, match="already running"), output_lock(path):
        pass
