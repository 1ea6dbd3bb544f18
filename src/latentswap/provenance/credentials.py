"""Who signs: the user's credentials for C2PA, which are a certificate chain and the key that belongs to it.

At first use a local certificate authority is made: its signatures show that a file is unchanged since this installation
wrote it, and anybody else sees them as valid but untrusted. Credentials from a public authority are imported, or a key
that lies elsewhere (KMS, HSM) signs through a callback. Nothing here uses the network.

    $LATENTSWAP_DATA/credentials/   (by default in the user's data folder, readable by its owner alone)
        settings.json   which of the two is in use, and the time-stamp authority if one is to be asked
        local/          ca.pem, ca.key, chain.pem, key.pem
        imported/       chain.pem, key.pem
        trust/          more certificates (*.pem) that `verify` trusts
"""

import contextlib
import json
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, get_args

import filelock

from latentswap.errors import ProvenanceError, ResourceError, UsageError
from latentswap.media.atomic import write_atomic
from latentswap.provenance import certificates
from latentswap.provenance.certificates import Algorithm, check_pair
from latentswap.provenance.home import data_root, private_folder

Kind = Literal["local", "imported", "callback"]

LOCAL_NAME = "latentswap local credentials"
_LONGEST_FILE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """A certificate chain, and the key or the function that signs with it.

    sign: bytes → signature, for a key that never leaves its KMS or HSM: ECDSA as DER or as r‖s, RSA as PSS. Exactly one
    of `key_pem` and `sign` is given. Raises UsageError for anything else.
    """

    chain_pem: str  # leaf first, up to the authority or below it
    algorithm: Algorithm
    key_pem: str | None = field(default=None, repr=False)  # PKCS #8
    sign: Callable[[bytes], bytes] | None = None
    time_stamper: str | None = None  # address of an RFC 3161 time-stamp authority, asked at every signature
    kind: Kind = "callback"

    def __post_init__(self) -> None:
        if self.algorithm not in get_args(Algorithm):
            raise UsageError(f"algorithm is {self.algorithm!r}; there are: {', '.join(get_args(Algorithm))}.")
        if (self.key_pem is None) == (self.sign is None):
            raise UsageError("Credentials need a key or a function that signs, and not both.")
        check_time_stamper(self.time_stamper)


@dataclass(frozen=True, kw_only=True)
class Description:
    """What `latentswap credentials show` says."""

    kind: Kind
    folder: Path
    name: str  # of the certificate's holder
    issuer: str
    algorithm: Algorithm
    not_after: datetime  # UTC
    fingerprint: str  # sha256 of the leaf certificate
    time_stamper: str | None


def credentials_folder() -> Path:
    """Where credentials lie. Not created here."""
    return data_root() / "credentials"


def load_credentials() -> Credentials:
    """The user's credentials; local ones are made at first use, and only then.

    Raises ProvenanceError when they are incomplete, expired or readable by others, ResourceError when the folder cannot
    be made.
    """
    settings = _settings()
    if settings is None:
        create_local()
        settings = _settings() or {}
    folder, kind = _folder_of(settings)
    _check_private(folder / "key.pem")
    chain, key = _read(folder / "chain.pem"), _read(folder / "key.pem")
    algorithm = check_pair(chain, key)
    return Credentials(
        chain_pem=chain, key_pem=key, algorithm=algorithm, time_stamper=settings.get("time_stamper"), kind=kind
    )


def has_credentials() -> bool:
    """Whether credentials have been made or imported."""
    return (credentials_folder() / "settings.json").exists()


def describe() -> Description:
    """The credentials in use. Raises ProvenanceError when there are none, or they are damaged."""
    settings = _settings()
    if settings is None:
        raise ProvenanceError(
            f"there are no credentials in {credentials_folder()}; they are made at the first job, or by "
            "`latentswap credentials init`"
        )
    folder, kind = _folder_of(settings)
    chain = _read(folder / "chain.pem")
    leaf, *_ = certificates.certificates(chain)
    return Description(
        kind=kind,
        folder=folder,
        name=certificates.common_name(leaf.subject),
        issuer=certificates.common_name(leaf.issuer),
        algorithm=certificates.algorithm_of(leaf),
        not_after=leaf.not_valid_after_utc,
        fingerprint=certificates.fingerprint(leaf),
        time_stamper=settings.get("time_stamper"),
    )


def create_local(*, name: str = LOCAL_NAME, time_stamper: str | None = None, force: bool = False) -> Description:
    """Make a local certificate authority and a certificate of it, and use them.

    Elliptic curve P-256. name: what `verify` shows as the signer; it is published in every signed file, so it should
    name a studio, or nobody. force: replace what is there: files signed before then verify as untrusted here, unless
    the old `local/ca.pem` is copied to `trust/`.

    Raises UsageError when there are credentials already, or for a name that is empty or longer than 64 characters;
    ResourceError when the folder cannot be written.
    """
    if not name.strip() or len(name) > 64 or not name.isprintable():
        raise UsageError(f"the name {name!r} cannot stand in a certificate; give 1 to 64 characters that print.")
    check_time_stamper(time_stamper)
    with _held() as folder:
        if has_credentials() and not force:
            if name == LOCAL_NAME and time_stamper is None:
                return describe()  # another job was first
            raise UsageError(f"There are credentials in {folder}; --force replaces them.")
        ca, ca_key = certificates.make_authority(name)
        leaf, key = certificates.make_leaf(name, ca, ca_key)
        local = _private(folder / "local")
        _write(local / "ca.key", certificates.key_pem(ca_key), secret=True)
        _write(local / "ca.pem", certificates.pem(ca))
        _write(local / "key.pem", certificates.key_pem(key), secret=True)
        _write(local / "chain.pem", certificates.pem(leaf) + certificates.pem(ca))
        _write_settings(folder, kind="local", time_stamper=time_stamper)  # last: from here on they are used
    return describe()


def import_credentials(chain: Path, key: Path, *, time_stamper: str | None = None) -> Description:
    """Use a certificate chain (PEM, leaf first) and its key (PEM, PKCS #8, not encrypted), copied from files.

    Raises ProvenanceError when they do not belong together, have expired, or are no chain that C2PA takes; UsageError
    for files that cannot be read.
    """
    from latentswap.provenance.sign import check_credentials

    check_time_stamper(time_stamper)
    chain_pem, key_pem = (_read(path, given=True) for path in (chain, key))
    algorithm = check_pair(chain_pem, key_pem)
    check_credentials(Credentials(chain_pem=chain_pem, key_pem=key_pem, algorithm=algorithm, time_stamper=time_stamper))
    with _held() as folder:
        imported = _private(folder / "imported")
        _write(imported / "key.pem", key_pem.encode(), secret=True)
        _write(imported / "chain.pem", chain_pem.encode())
        _write_settings(folder, kind="imported", time_stamper=time_stamper)
    return describe()


def trust_anchors(more: Path | None = None) -> str:
    """The certificates (PEM) that `verify` trusts: the user's own authorities, those in `trust/`, and a file's.

    Makes nothing. Raises UsageError for a file that cannot be read or holds no certificate.
    """
    folder = credentials_folder()
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("trust/*.pem"))]
    if (folder / "local/ca.pem").exists():
        texts.append(_read(folder / "local/ca.pem"))
    if (folder / "imported/chain.pem").exists():
        top = certificates.certificates(_read(folder / "imported/chain.pem"))[-1]
        texts.append(certificates.pem(top).decode())
    if more is not None:
        text = _read(more, given=True)
        if "-----BEGIN CERTIFICATE-----" not in text:
            raise UsageError(f"{more} holds no certificate; give a PEM file.")
        texts.append(text)
    return "\n".join(texts)


def check_time_stamper(address: str | None) -> None:
    """Raises UsageError for what is no address of a time-stamp authority."""
    if address is not None and not address.startswith(("http://", "https://")):
        raise UsageError(f"the time-stamp authority {address!r} is no address; write http://… or https://…")


def _folder_of(settings: dict[str, Any]) -> tuple[Path, Kind]:
    kind = settings.get("use")
    if kind not in ("local", "imported"):
        raise ProvenanceError(
            f"{credentials_folder() / 'settings.json'} names no credentials; run `latentswap credentials init --force`"
        )
    return credentials_folder() / kind, kind


def _settings() -> dict[str, Any] | None:
    path = credentials_folder() / "settings.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ProvenanceError(f"{path} cannot be read ({error}); run `latentswap credentials init --force`") from error
    return settings if isinstance(settings, dict) else {}


def _write_settings(folder: Path, *, kind: str, time_stamper: str | None) -> None:
    text = json.dumps({"use": kind, "time_stamper": time_stamper}, indent=1) + "\n"
    _write(folder / "settings.json", text.encode())


@contextlib.contextmanager
def _held() -> Iterator[Path]:
    """The folder, made if need be, and nobody else writing in it."""
    private_folder()
    folder = _private(credentials_folder())
    try:
        with filelock.FileLock(folder / ".lock", timeout=20):
            yield folder
    except filelock.Timeout:
        raise ResourceError(f"another job holds {folder}; wait for it to end") from None


def _private(folder: Path) -> Path:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"the folder {folder} cannot be made: {error.strerror}; set LATENTSWAP_DATA") from error
    return folder


def _write(path: Path, data: bytes, *, secret: bool = False) -> None:
    if secret:
        path.unlink(missing_ok=True)  # whose permissions a new file would otherwise keep
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    write_atomic(path, data)


def _read(path: Path, *, given: bool = False) -> str:
    """A file of credentials. given: by the user, who can mend it."""
    try:
        if path.stat().st_size > _LONGEST_FILE:
            raise UsageError(f"{path} is too large for a PEM file.")
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        if given:
            raise UsageError(f"{path} cannot be read: {reason}; give a PEM file.") from error
        raise ProvenanceError(
            f"the credentials are incomplete: {path} cannot be read ({reason}); put it back, import credentials, or "
            "make new ones with `latentswap credentials init --force`"
        ) from error


def _check_private(key: Path) -> None:
    if os.name == "posix" and key.exists() and stat.S_IMODE(key.stat().st_mode) & 0o077:
        raise ProvenanceError(f"the signing key {key} may be read by other users; run `chmod 600` on it")
