"""The frame of the command line: help, exit codes, and what is not imported."""

import errno
import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import latentswap
from latentswap import errors
from latentswap.cli.main import COMMANDS, main
from latentswap.weights.catalog import CATALOG
from latentswap.weights.load import save_tensors

# Everything that costs start-up time or could touch the network.
HEAVY = ("torch", "cv2", "openvino", "httpx2", "unearth", "PIL", "numpy", "tyro", "rich", "filelock", "skimage")
HEAVY += ("c2pa", "cryptography")


def run_python(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120)


def entry_point() -> Path:
    return Path(sysconfig.get_path("scripts")) / "latentswap"


@pytest.mark.parametrize("program", ["import latentswap", "from latentswap.cli.main import main; main(['--help'])"])
def test_importing_is_light_and_leaves_no_trace(program: str, tmp_path: Path) -> None:
    heavy = f"import sys; print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    done = run_python(f"{program}; {heavy}", LATENTSWAP_CACHE=str(tmp_path / "cache"), HOME=str(tmp_path))
    assert done.stderr.strip() == "[]"
    assert list(tmp_path.iterdir()) == []


def test_public_names_all_resolve() -> None:
    for name in latentswap.__all__:
        assert getattr(latentswap, name) is not None
        assert name in dir(latentswap)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = latentswap.nonsense


def test_help_lists_every_command_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"], ["-h"], ["help"]):
        assert main(arguments) == 0
        lines = capsys.readouterr().out.splitlines()
        for name, (_, _, summary) in COMMANDS.items():
            assert any(line.split(None, 1) == [name, summary] for line in lines)
        assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert f"usage: latentswap {name}" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"latentswap {latentswap.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["modles"], "error: 'modles' is not a command; did you mean 'models'? See `latentswap --help`."),
        (["zzz"], "error: 'zzz' is not a command; there are: "),
        (["models"], "Expected one of"),
        (["models", "list", "--bogus"], "--bogus"),
        (["models", "info"], "required"),
        (["models", "info", "stylegan9"], "error: 'stylegan9' is neither a file nor one of the networks mobile"),
        (["models", "fetch", "stylegan9"], "error: no weights are called 'stylegan9'"),
    ],
)
def test_usage_errors(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    streams = capsys.readouterr()
    assert message in streams.err
    assert streams.out == ""


CODES = {
    errors.LatentSwapError: 1,
    errors.UsageError: 2,
    errors.BadInputError: 3,
    errors.UnsupportedMediaError: 3,
    errors.TooLargeError: 3,
    errors.NoFaceError: 4,
    errors.WeightsError: 5,
    errors.ResourceError: 6,
    errors.ProvenanceError: 7,
    errors.ProtectedPersonError: 9,
}


def _raiser(error: BaseException) -> Callable[[], None]:
    def command(*, json: bool = False) -> None:
        raise error

    return command


@pytest.fixture
def run_raising(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs the command line with a command that raises the given error."""

    def run(error: BaseException, *arguments: str) -> int:
        monkeypatch.setitem(globals(), "failing", _raiser(error))
        monkeypatch.setitem(COMMANDS, "failing", (__name__, "failing", "fails"))
        return main(["failing", *arguments])

    return run


@pytest.mark.parametrize(("error", "code"), CODES.items())
def test_library_errors(
    error: type, code: int, run_raising: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_raising(error("the reason")) == code
    assert capsys.readouterr() == ("", "error: the reason\n")
    assert run_raising(error("the reason"), "--json") == code
    expected = {"error": {"type": error.__name__, "message": "the reason", "code": code}}
    assert json.loads(capsys.readouterr().out) == expected


def test_running_out_of_memory_or_disk(run_raising: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError) as real:
        torch.empty(1 << 60, dtype=torch.uint8)
    for error in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), real.value):
        assert run_raising(error) == 6
        assert "not enough memory" in capsys.readouterr().err
    assert run_raising(OSError(errno.ENOSPC, "No space left on device")) == 6
    assert "the disk is full" in capsys.readouterr().err


def test_interrupts_and_bugs(run_raising: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_raising(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "interrupted\n"
    for bug in (RuntimeError("a bug"), OSError(errno.EIO, "a broken disk"), AssertionError("a bug")):
        with pytest.raises(type(bug)):
            run_raising(bug)


def test_models_list_and_info(default_weights: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    for name in CATALOG:
        default_weights(name)
    assert main(["models", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(entry["name"], entry["state"]) for entry in listed] == [(name, "present") for name in CATALOG]
    assert main(["models", "list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(CATALOG) + 2

    assert main(["models", "info", "mediapipe-mesh", "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["state"] == "verified"
    assert described["contents"]["parameters"] > 500_000
    assert described["contents"]["kind"] == described["kind"] == "shape/mediapipe-mesh"


def test_models_info_says_what_a_file_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine"
    save_tensors(path, {"a": torch.zeros(2, 3), "b": torch.zeros(5).half()}, {"kind": "test/net", "licence": "CC0-1.0"})
    assert main(["models", "info", str(path)]) == 0
    out = capsys.readouterr().out
    assert "kind: test/net\n" in out and "parameters: 11\n" in out and "  float16: 1\n" in out
    assert "  licence: CC0-1.0\n" in out
    path.write_bytes(b"\x80\x04\x95 a pickle")
    assert main(["models", "info", str(path)]) == 5
    assert "is not a safetensors file" in capsys.readouterr().err


def test_models_fetch_offline(
    default_weights: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = default_weights("mediapipe-iris")
    assert main(["models", "fetch", "mediapipe-iris", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {"name": "mediapipe-iris", "path": str(path), "bytes": path.stat().st_size}
    ]
    monkeypatch.setenv("LATENTSWAP_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert main(["models", "fetch", "mediapipe-iris", "--offline"]) == 5
    assert "error: cannot fetch the weights mediapipe-iris" in capsys.readouterr().err


def test_doctor_finds_damage(
    default_weights: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = main(["doctor", "--json"])
    findings = {entry["what"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert code == any(entry["status"] == "fail" for entry in findings.values())
    assert findings["torch"]["detail"] == torch.__version__
    assert all(findings[name]["detail"] == "verified" for name in CATALOG)

    assert findings["generator"]["status"] == "ok" and "1024×1024" in findings["generator"]["detail"]

    source = default_weights("mediapipe-iris")
    folder = tmp_path / "weights" / "mediapipe-iris"
    folder.mkdir(parents=True)
    for file in source.parent.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    copy = folder / source.name
    copy.write_bytes(copy.read_bytes()[:-1] + b"\xff")
    monkeypatch.setenv("LATENTSWAP_CACHE", str(tmp_path))
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "damaged: run `latentswap models fetch mediapipe-iris`" in out
    assert "absent: run `latentswap models fetch dlib-resnet-v1`" in out


def test_the_installed_command() -> None:
    assert entry_point().exists(), "install the package first: `make venv`"
    done = subprocess.run([str(entry_point()), "--help"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: latentswap COMMAND" in done.stdout
    done = subprocess.run([str(entry_point()), "modles"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.startswith("error: ")


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    command = f"{sys.executable} -u -m latentswap.cli.main models list | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)  # noqa: S607
    assert "Traceback" not in done.stderr
