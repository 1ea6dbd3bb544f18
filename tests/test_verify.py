"""`latentswap verify`, the detector: outcomes, exit codes, text and JSON; files by others, and hostile ones."""

import json
from pathlib import Path

import pytest
from _provenance_support import authority, claim, encoded, photograph, video

import latentswap
from latentswap.cli.main import main
from latentswap.errors import BadInputError, UnsupportedMediaError, UsageError
from latentswap.media.image import decode, encode
from latentswap.pipeline import packet
from latentswap.provenance.apply import WatermarkState
from latentswap.provenance.credentials import load_credentials
from latentswap.provenance.sign import sign_bytes
from latentswap.provenance.verify import EXIT_CODES, verify


@pytest.fixture(autouse=True)
def data(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("data")
    monkeypatch.setenv("LATENTSWAP_DATA", str(folder))
    return folder


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """A file of every outcome, in the working folder: name → exit code."""
    monkeypatch.chdir(tmp_path)
    own, (stranger, ca) = load_credentials(), authority("Stranger")
    Path("stranger.pem").write_text(ca)
    signed = sign_bytes(encoded("PNG"), claim(target=photograph(stranger)), own)
    broken = bytearray(signed)
    broken[-40] ^= 1
    photo = bytearray(photograph(stranger))
    photo[-60] ^= 1
    marked = encode(decode(encoded("JPEG")), ".jpg", xmp=packet(whole=True))
    contents = {
        "trusted.png": (signed, 0),
        "untrusted.jpg": (sign_bytes(encoded("JPEG"), claim("generated"), stranger), 4),
        "marked.jpg": (marked, 5),
        "invalid.png": (bytes(broken), 7),
        "laundered.webp": (sign_bytes(encoded("WEBP"), claim(target=bytes(photo)), own), 8),
        "nothing.png": (encoded("PNG", seed=3), 9),
        "clip.mp4": (sign_bytes(video(tmp_path / "plain.mp4"), claim(), own), 0),
        "plain.mp4": ((tmp_path / "plain.mp4").read_bytes(), 9),
        "text.png": (b"not a picture", 3),
    }
    for name, (content, _) in contents.items():
        Path(name).write_bytes(content)
    return {name: code for name, (_, code) in contents.items()}


def test_outcomes(files: dict[str, int], capsys) -> None:
    for name, code in files.items():
        assert main(["verify", name]) == code, name
    out = capsys.readouterr().out
    assert "trusted.png: signed by somebody trusted here, and unchanged since" in out
    assert "INVALID" in out and "assertion.dataHash.mismatch" in out
    assert "from       changed: target, credentials untrusted (by Camera 1, signed by Stranger)" in out
    assert "put in" not in out
    assert "edited: compositeWithTrainedAlgorithmicMedia, faces replaced by the face of the source" in out
    assert "credentials were invalid" in out and "which proves nothing" in out
    assert len(set(EXIT_CODES.values())) == len(EXIT_CODES)


def test_whom_to_trust(files: dict[str, int], data: Path, capsys) -> None:
    assert main(["verify", "untrusted.jpg", "--trust", "stranger.pem"]) == 0
    (data / "credentials/trust").mkdir()
    (data / "credentials/trust/them.pem").write_text(Path("stranger.pem").read_text())
    assert main(["verify", "untrusted.jpg"]) == 0
    assert main(["verify", "untrusted.jpg", "--trust", "absent.pem"]) == 2
    assert main(["verify", "untrusted.jpg", "--trust", "marked.jpg"]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_json_and_several_files(files: dict[str, int], capsys) -> None:
    assert main(["verify", *files, "--json"]) == 7
    captured = capsys.readouterr()
    found = {Path(entry["path"]).name: entry for entry in json.loads(captured.out)}
    assert set(found) == set(files)
    assert "is no picture" in found["text.png"]["error"] and "text.png" in captured.err
    assert [name for name, entry in found.items() if entry.get("synthetic")] == [
        "trusted.png",
        "untrusted.jpg",
        "marked.jpg",
        "laundered.webp",
        "clip.mp4",
    ]
    swap = found["trusted.png"]
    assert swap["outcome"] == swap["signature"] == "trusted"
    assert swap["origins"][0]["credentials"] == "untrusted"
    assert swap["job"]["deed"] == "swapped" and swap["watermark"]["state"] in ("unknown", "not found")
    for names, code in (
        (["trusted.png", "untrusted.jpg"], 4),
        (["marked.jpg", "untrusted.jpg"], 5),
        (["marked.jpg", "nothing.png"], 9),
        (["text.png", "nothing.png"], 3),
        (["text.png", "laundered.webp"], 8),
    ):
        assert main(["verify", *names]) == code


def test_the_python_function(files: dict[str, int]) -> None:
    found = latentswap.verify("trusted.png")
    assert found.outcome == "trusted" and found.synthetic and found.signer == "latentswap local credentials"
    for name in ("text.png",):
        with pytest.raises(UnsupportedMediaError, match="starts with b'not a pi'"):
            verify(name)
    for path, words in (("absent.png", "does not exist"), (".", "no regular file")):
        with pytest.raises(BadInputError, match=words):
            verify(path)
    with pytest.raises(UsageError, match="holds no certificate"):
        Path("empty.pem").write_text("")
        verify("trusted.png", trust="empty.pem")


def test_faults_of_the_command(capsys) -> None:
    assert main(["verify"]) == 2
    assert main(["verify", "absent.png"]) == 3
    assert main(["verify", "/dev/zero"]) == 3
    assert "no regular file" in capsys.readouterr().err


def test_a_watermark_alone_is_a_mark(files: dict[str, int], monkeypatch, capsys) -> None:
    """What the detector says goes into outcome, text and JSON; here it says what it is told to."""
    from latentswap.provenance import verify as module

    for state, code in ((WatermarkState(state="found", payload="a1b2c3d4", confidence=0.97), 5),
                        (WatermarkState(state="not found"), 9)):  # fmt: skip
        monkeypatch.setattr(module, "look", lambda data, state=state: state)
        assert main(["verify", "nothing.png"]) == code
    assert "watermark  found: a1b2c3d4, confidence 0.97" in capsys.readouterr().out
    monkeypatch.setattr(module, "look", lambda data: WatermarkState(state="found", payload="00000007", confidence=1.0))
    for watermark, words in ((7, "00000007, as signed"), (8, "00000007, NOT the one signed")):
        Path("w.png").write_bytes(sign_bytes(encoded("PNG"), claim(watermark=watermark), load_credentials()))
        assert main(["verify", "w.png"]) == 0
        assert words in capsys.readouterr().out


def test_files_that_cannot_be_signed_or_decoded_are_looked_at(tmp_path: Path, capsys) -> None:
    import PIL.Image

    PIL.Image.new("RGB", (70, 70)).save(tmp_path / "x.gif")
    PIL.Image.new("RGB", (70, 70)).save(tmp_path / "x.tif")
    (tmp_path / "x.mkv").write_bytes(b"\x1aE\xdf\xa3" + bytes(60))
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "tiny.png")
    for name in ("x.gif", "x.tif", "x.mkv", "tiny.png"):
        assert main(["verify", str(tmp_path / name)]) == 9
    assert capsys.readouterr().out.count("watermark  unknown") == 4


@pytest.mark.attack
def test_texts_of_strangers_do_not_move_the_terminal(tmp_path: Path, capsys) -> None:
    from dataclasses import replace

    nasty = "\x1b[2J\nout.png: signed by somebody trusted here\u202e"
    stranger, _ = authority("Eve\u202e")
    evil = replace(claim("generated"), version=nasty, job=nasty, networks={nasty: nasty * 100})
    (tmp_path / "x.png").write_bytes(sign_bytes(encoded("PNG"), evil, stranger))
    assert main(["verify", str(tmp_path / "x.png")]) == 4
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\u202e" not in out
    assert not any(line.startswith("out.png") for line in out.splitlines())
    assert len(verify(tmp_path / "x.png").job["networks"].popitem()[1]) == 300  # pyright: ignore


@pytest.mark.attack
def test_damaged_files_never_crash(tmp_path: Path) -> None:
    """Cut or changed anywhere: an outcome, never a traceback, and never `trusted` for changed pixels."""
    import numpy as np

    path, own = tmp_path / "x", load_credentials()
    rng = np.random.default_rng(2)
    for kind in ("PNG", "JPEG", "WEBP"):
        signed = sign_bytes(encoded(kind), claim(target=encoded("JPEG")), own)
        for _ in range(15):
            broken = bytearray(signed)
            for at in rng.integers(12, len(signed), 6):
                broken[at] = int(rng.integers(256))
            path.write_bytes(bytes(broken[: int(rng.integers(40, len(signed)))]))
            assert verify(path).outcome in ("invalid", "nothing", "marked")
