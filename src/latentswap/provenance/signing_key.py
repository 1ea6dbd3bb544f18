"""Ed25519 (RFC 8032) keys that sign do-not-swap lists: made, kept, read, used."""

import os
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from latentswap.errors import ProvenanceError, UsageError

MAX_KEY_BYTES = 64_000


def own_key(path: Path) -> Ed25519PrivateKey:
    """The user's key in the PEM file at `path`, made at first use and readable by its owner alone.

    Raises ProvenanceError for a file that holds none, ResourceError when it cannot be made.
    """
    if path.exists():
        return read_private(path)
    from latentswap.weights.files import resource_error

    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    try:  # the file is never there with other permissions, nor in place of another
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(pem)
    except FileExistsError:
        return read_private(path)
    except OSError as error:
        raise resource_error(error, path) from error
    return key


def read_private(path: Path) -> Ed25519PrivateKey:
    """The private key in a PEM file (PKCS 8, not encrypted). Raises UsageError and ProvenanceError."""
    data = _read(path)
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ProvenanceError(
            f"{path} holds no private key that can be used ({error}); give an Ed25519 key in PEM, not encrypted, as "
            "`openssl genpkey -algorithm ed25519` makes it"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ProvenanceError(f"{path} holds a key of another sort ({type(key).__name__}); an Ed25519 key is needed")
    return key


def parse_public(text: str) -> str:
    """A public key as 64 hexadecimal digits, from those or from the PEM file of that name. Raises as `read_private`."""
    if len(text) == 64 and all(digit in "0123456789abcdef" for digit in text.lower()):
        return text.lower()
    path = Path(text)
    data = _read(path)
    try:
        key = serialization.load_pem_public_key(data)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ProvenanceError(f"{path} holds no public key that can be used ({error}); give Ed25519 in PEM") from error
    if not isinstance(key, Ed25519PublicKey):
        raise ProvenanceError(f"{path} holds a key of another sort ({type(key).__name__}); an Ed25519 key is needed")
    return key.public_bytes_raw().hex()


def public_hex(key: Any) -> str:
    """The public part of a private key, 64 hexadecimal digits."""
    return key.public_key().public_bytes_raw().hex()


def sign(key: Any, message: bytes) -> str:
    """The signature, 128 hexadecimal digits."""
    return key.sign(message).hex()


def is_signature(public: str, signature: str, message: bytes) -> bool:
    """Whether `signature` is that of the holder of `public` over the message; both hexadecimal."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(bytes.fromhex(signature), message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _read(path: Path) -> bytes:
    try:
        if path.is_file() and path.stat().st_size <= MAX_KEY_BYTES:
            return path.read_bytes()
    except OSError as error:
        raise UsageError(f"--key {path} cannot be read: {error.strerror}") from error
    raise UsageError(f"--key {path}: there is no key file of that name, nor is it 64 hexadecimal digits of a key")
