"""Certificates for signing: a local authority and its certificate, and what C2PA asks of any other.

X.509 as in RFC 5280, with the certificate profile of the C2PA specification 2.4: an end entity for digital signatures,
issued by an authority, never self-signed.
"""

from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from latentswap.errors import ProvenanceError

Algorithm = Literal["es256", "es384", "es512", "ps256", "ps384", "ps512", "ed25519"]

_CA_YEARS, _LEAF_YEARS = 20, 10  # without a time stamp a signature is worth nothing once its certificate has expired
_CURVES: dict[str, Algorithm] = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}


def make_authority(name: str) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A certificate authority of one's own, on the curve P-256, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject(f"{name[:50]} (authority)", name)
    certificate = (
        _builder(subject, subject, key.public_key(), datetime.now(UTC), _CA_YEARS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return certificate, key


def make_leaf(
    name: str,
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    *,
    start: datetime | None = None,
    years: float = _LEAF_YEARS,
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A signing certificate of the authority, valid from `start` (now) on, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    certificate = (
        _builder(_subject(name, name), authority.subject, key.public_key(), start or datetime.now(UTC), years)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
        .add_extension(issuer_key, critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    return certificate, key


def check_pair(chain_pem: str, key_pem: str) -> Algorithm:
    """The algorithm that a chain (leaf first) and a key sign with.

    Raises ProvenanceError when they cannot sign: not PEM, encrypted, of different pairs, self-signed, of a kind that
    C2PA does not take, or not valid now.
    """
    leaf, *above = certificates(chain_pem)
    try:
        key: Any = load_pem_private_key(key_pem.encode(), password=None)
    except TypeError:
        raise ProvenanceError(
            "the signing key is encrypted; decrypt it into a file that only you can read, or sign through a callback "
            "(docs/provenance.md)"
        ) from None
    except Exception as error:  # cryptography raises several types
        raise ProvenanceError(f"the signing key is no PEM key ({error}); give a PKCS #8 key") from error
    if key.public_key() != leaf.public_key():
        raise ProvenanceError(
            "the signing key does not belong to the certificate; the leaf must come first in the chain"
        )
    if leaf.subject == leaf.issuer and not above:
        raise ProvenanceError("the certificate is self-signed, which C2PA does not take; give a chain of an authority")
    check_valid(leaf)
    return algorithm_of(leaf)


def check_valid(leaf: x509.Certificate) -> None:
    """Raises ProvenanceError for a certificate that is not valid now."""
    now, start, end = datetime.now(UTC), leaf.not_valid_before_utc, leaf.not_valid_after_utc
    if now > end:
        raise ProvenanceError(
            f"the signing certificate of {common_name(leaf.subject)} expired on {end:%Y-%m-%d}; import a new one "
            "(`latentswap credentials import`) or make local ones (`latentswap credentials init --force`)"
        )
    if now < start:
        raise ProvenanceError(
            f"the signing certificate of {common_name(leaf.subject)} is valid from {start:%Y-%m-%d %H:%M} UTC, and "
            f"the clock says {now:%Y-%m-%d %H:%M}; set the clock"
        )


def certificates(chain_pem: str) -> list[x509.Certificate]:
    """Those of a PEM chain, in its order. Raises ProvenanceError."""
    try:
        return x509.load_pem_x509_certificates(chain_pem.encode())
    except ValueError as error:
        raise ProvenanceError(f"the certificate chain is no PEM chain ({error}); give one, leaf first") from error


def algorithm_of(leaf: x509.Certificate) -> Algorithm:
    """What a certificate's key signs with. Raises ProvenanceError for a kind of key that C2PA does not take."""
    key = leaf.public_key()
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVES:
        return _CURVES[key.curve.name]
    if isinstance(key, ed25519.Ed25519PublicKey):
        return "ed25519"
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= 2048:
        return "ps256"
    raise ProvenanceError(
        "the signing key is of a kind that C2PA does not take; give P-256, P-384, P-521, Ed25519, or RSA of 2048 bits"
    )


def common_name(name: x509.Name) -> str:
    """Whom a certificate names, for messages."""
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME) or name.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return str(found[0].value) if found else "somebody unnamed"


def fingerprint(certificate: x509.Certificate) -> str:
    """Its sha256, in hexadecimal."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _builder(subject: x509.Name, issuer: x509.Name, key: Any, start: datetime, years: float) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - timedelta(minutes=5))  # clocks differ
        .not_valid_after(start + timedelta(days=365 * years))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _subject(common: str, organisation: str) -> x509.Name:
    pairs = ((NameOID.ORGANIZATION_NAME, organisation), (NameOID.COMMON_NAME, common))
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in pairs])


def _key_usage(**on: bool) -> x509.KeyUsage:
    names = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    names += ("key_cert_sign", "crl_sign", "encipher_only", "decipher_only")
    return x509.KeyUsage(**{name: on.get(name, False) for name in names})
