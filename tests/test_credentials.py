"""Credentials: made at first use, imported, described, and refused when they cannot sign."""

import json
import os
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from _provenance_support import authority, claim, encoded

from latentswap.cli.main import main
from latentswap.errors import ProvenanceError, UsageError
from latentswap.pipeline import Swapper
from latentswap.provenance.credentials import (
    create_local,
    credentials_folder,
    describe,
    has_credentials,
    import_credentials,
    load_credentials,
    trust_anchors,
)
from latentswap.provenance.sign import sign_bytes
from latentswap.provenance.verify import verify


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LATENTSWAP_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def no_models(monkeypatch):
    def refuse(cls, **_):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(Swapper, "from_pretrained", classmethod(refuse))


def _files(folder: Path, *, expired: bool = False) -> tuple[Path, Path, str]:
    """A chain and a key as files, and the authority."""
    folder.mkdir(exist_ok=True)
    credentials, ca = authority("Studio", expired=expired)
    (folder / "chain.pem").write_text(credentials.chain_pem)
    (folder / "key.pem").write_text(credentials.key_pem or "")
    return folder / "chain.pem", folder / "key.pem", ca


def test_local_credentials_are_made_at_first_use_and_kept(data: Path) -> None:
    assert not has_credentials() and trust_anchors() == ""
    assert not data.exists()  # looking makes nothing
    first = load_credentials()
    assert has_credentials() and first.kind == "local" and first.algorithm == "es256"
    assert load_credentials() == first
    for path in data.rglob("*"):
        private = path.is_dir() or path.suffix == ".key" or path.name == "key.pem"
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 or not private, path
    assert stat.S_IMODE((credentials_folder() / "local/ca.key").stat().st_mode) == 0o600
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    assert "PRIVATE" not in repr(first)
    about = describe()
    assert about.not_after - datetime.now(UTC) > timedelta(days=3600)
    assert about.name == "latentswap local credentials"


def test_two_first_jobs_at_once_agree(data: Path) -> None:
    script = "from latentswap.provenance.credentials import load_credentials; print(load_credentials().chain_pem)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    jobs = [
        subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert len({job.communicate(timeout=60)[0] for job in jobs}) == 1


def test_init_and_its_name(capsys) -> None:
    assert main(["credentials", "show"]) == 7
    assert main(["credentials", "init", "--name", "Studio X", "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["signer"] == "Studio X" and Path(about["for_others_to_trust"]).exists()
    assert main(["credentials", "init"]) == 0  # as a first job would: those that there are
    assert describe().name == "Studio X"
    assert main(["credentials", "init", "--name", "Studio Y"]) == 2
    assert "--force replaces" in capsys.readouterr().err
    before = describe().fingerprint
    assert main(["credentials", "init", "--name", "Studio Y", "--force"]) == 0
    assert describe().name == "Studio Y" and describe().fingerprint != before
    for name in ("", " ", "x" * 65, "a\nb"):
        with pytest.raises(UsageError, match="certificate"):
            create_local(name=name, force=True)
    with pytest.raises(UsageError, match="time-stamp authority"):
        create_local(time_stamper="stamps.example", force=True)
    assert describe().name == "Studio Y"


def test_imported_credentials_sign(tmp_path: Path, capsys) -> None:
    chain, key, ca = _files(tmp_path / "studio")
    assert main(["credentials", "import", "--chain", str(chain), "--key", str(key)]) == 0
    assert "Studio" in capsys.readouterr().out
    chain.unlink()
    key.unlink()  # copied
    credentials = load_credentials()
    assert credentials.kind == "imported"
    assert stat.S_IMODE((credentials_folder() / "imported/key.pem").stat().st_mode) == 0o600
    (tmp_path / "out.png").write_bytes(sign_bytes(encoded("PNG"), claim("generated"), credentials))
    assert verify(tmp_path / "out.png").outcome == "trusted"
    assert ca.strip() in trust_anchors()


def test_what_cannot_be_imported(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        PrivateFormat,
        load_pem_private_key,
    )

    chain, key, _ = _files(tmp_path / "one")
    other_chain, other_key, ca = _files(tmp_path / "other")
    old_chain, old_key, _ = _files(tmp_path / "old", expired=True)
    secret = tmp_path / "secret.pem"
    loaded = load_pem_private_key(key.read_bytes(), None)
    secret.write_bytes(loaded.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")))
    alone = tmp_path / "alone.pem"
    alone.write_text(ca)
    for a_chain, a_key, error, words in [
        (chain, other_key, ProvenanceError, "does not belong"),
        (other_chain, key, ProvenanceError, "does not belong"),
        (old_chain, old_key, ProvenanceError, "expired on"),
        (chain, secret, ProvenanceError, "encrypted"),
        (key, key, ProvenanceError, "no PEM chain"),
        (chain, chain, ProvenanceError, "no PEM key"),
        (tmp_path / "absent.pem", key, UsageError, "cannot be read"),
        (chain, tmp_path, UsageError, "cannot be read"),
    ]:
        with pytest.raises(error, match=words):
            import_credentials(a_chain, a_key)
    assert not has_credentials()


def _swap(tmp_path: Path, *options: str) -> int:
    (tmp_path / "me.png").write_bytes(encoded("PNG"))
    (tmp_path / "out.png").write_bytes(b"old")
    code = main(["sample", "-o", str(tmp_path / "people"), "--offline", *options])
    assert (tmp_path / "out.png").read_bytes() == b"old"
    return code


def test_a_job_with_expired_credentials_stops_before_any_model_loads(no_models, tmp_path, capsys, data) -> None:
    load_credentials()
    chain, key, _ = _files(tmp_path / "old", expired=True)
    for path in (chain, key):
        target = credentials_folder() / "local" / path.name
        target.write_bytes(path.read_bytes())
    assert _swap(tmp_path) == 7
    assert "expired on" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["key.pem", "chain.pem"])
def test_a_job_without_its_key_stops_and_makes_no_other(no_models, tmp_path, capsys, name) -> None:
    before = load_credentials()
    missing = credentials_folder() / "local" / name
    kept = missing.read_bytes()
    missing.unlink()
    assert _swap(tmp_path) == 7
    assert f"{name} cannot be read" in capsys.readouterr().err
    missing.write_bytes(kept)
    missing.chmod(0o600)
    assert load_credentials() == before


def test_other_faults_of_credentials(no_models, tmp_path, capsys) -> None:
    load_credentials()
    key = credentials_folder() / "local/key.pem"
    key.chmod(0o644)
    assert _swap(tmp_path) == 7
    assert "chmod 600" in capsys.readouterr().err
    key.chmod(0o600)
    settings = credentials_folder() / "settings.json"
    for text, words in (("{", "cannot be read"), ('{"use": "../../x"}', "names no credentials")):
        settings.write_text(text)
        assert _swap(tmp_path) == 7
        assert words in capsys.readouterr().err


@pytest.mark.parametrize("command", ["swap", "anonymize", "edit"])
def test_every_command_checks_first(no_models, tmp_path, capsys, command, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    load_credentials()
    (credentials_folder() / "local/key.pem").unlink()
    Path("me.png").write_bytes(encoded("PNG"))
    inputs = {
        "swap": ["me.png", "me.png", "--consent", "me"],
        "anonymize": ["me.png"],
        "edit": ["me.png", "--edit", "smile=1"],
    }[command]
    assert main([command, *inputs, "-o", "out.png"]) == 7
    assert not Path("out.png").exists()
    assert main([command, *inputs, "-o", "out.png", "--no-sign", "--no-watermark"]) == 2
    assert "cannot both be turned off" in capsys.readouterr().err
    with pytest.raises(AssertionError, match="a model was loaded"):
        main([command, *inputs, "-o", "out.png", "--no-sign"])  # needs no key
