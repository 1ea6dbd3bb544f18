"""Signing: what is signed verifies, what is changed does not, and nothing private goes along."""

import hashlib
import io
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime

import _provenance_support as support
import av
import numpy as np
import PIL.Image
import pytest
from _provenance_support import authority, claim, encoded, photograph, retouched, video
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from latentswap.errors import ProvenanceError, UsageError
from latentswap.provenance import certificates
from latentswap.provenance.credentials import Credentials, import_credentials, load_credentials
from latentswap.provenance.sign import check_credentials, manifest, sign_bytes, sign_file, sniff
from latentswap.provenance.store import personal_assertions, read_store
from latentswap.provenance.verify import verify


@pytest.fixture(scope="module")
def signer():
    return authority()


@pytest.fixture
def checked(tmp_path, signer):
    """`checked(data)`: what `verify` says of the bytes, to somebody who trusts the signer."""
    (tmp_path / "ca.pem").write_text(signer[1])

    def check(data: bytes, *, trusting: bool = True):
        (tmp_path / "file").write_bytes(data)
        return verify(tmp_path / "file", trust=tmp_path / "ca.pem" if trusting else None)

    return check


def _files(tmp_path) -> dict[str, bytes]:
    pictures = {kind: encoded(kind) for kind in ("PNG", "JPEG", "WEBP")}
    frames = [PIL.Image.fromarray(support.pixels(seed=n)) for n in range(3)]
    moving = io.BytesIO()
    frames[0].save(moving, format="WEBP", save_all=True, append_images=frames[1:], duration=50)
    return pictures | {"animation": moving.getvalue(), "MP4": video(tmp_path / "clip.mp4")}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "animation", "MP4"])
def test_round_trip(tmp_path, signer, checked, kind):
    """Trusted by who trusts the signer, valid but untrusted for others, the content as it was, and any changed byte of
    it found out."""
    plain = _files(tmp_path)[kind]
    signed = sign_bytes(plain, claim(target=encoded("JPEG"), sources=(encoded("PNG"),)), signer[0])
    assert _content(signed, kind) == _content(plain, kind)
    assert len(signed) - len(plain) < 20_000

    found = checked(signed)
    assert (found.signature, found.outcome, found.exit_code) == ("trusted", "trusted", 0)
    assert (found.signer, found.made_by, found.problems) == ("Test", "latentswap 0.1.0", ())
    assert [action.action for action in found.actions] == ["opened", "placed", "edited"]
    assert found.actions[-1].source_type == "compositeWithTrainedAlgorithmicMedia"
    assert [(o.title, o.relationship, o.credentials) for o in found.origins] == [
        ("target", "parentOf", "none"),
        ("source", "componentOf", "none"),
    ]
    assert found.job is not None and found.job["networks"] == {"mixer": "ab" * 32}
    assert found.synthetic and not found.time_stamped

    stranger = checked(signed, trusting=False)
    assert (stranger.signature, stranger.exit_code) == ("untrusted", 4)
    assert stranger.problems == ("signingCredential.untrusted",)

    for at in (len(plain) // 2, len(plain) - 24):
        place = signed.index(plain[at : at + 16])
        broken = bytearray(signed)
        broken[place + 3] ^= 1
        assert checked(bytes(broken)).outcome == "invalid"
    assert checked(signed[:-30]).outcome == "invalid"


def _content(data: bytes, kind: str) -> bytes:
    if kind == "MP4":
        with av.open(io.BytesIO(data), "r") as file:
            return b"".join(frame.to_ndarray(format="rgb24").tobytes() for frame in file.decode(video=0))
    with PIL.Image.open(io.BytesIO(data)) as picture:
        picture.seek(getattr(picture, "n_frames", 1) - 1)
        return np.asarray(picture.convert("RGB")).tobytes()


def test_no_byte_of_a_signed_file_can_change_what_it_says(signer, checked):
    """Wherever one byte is changed: the signature is invalid, the file is unreadable, or everything said is the same.

    The last happens in the wrapping of the manifest, which C2PA leaves out of the hash; the picture may then no longer
    be one that the watermark can be looked for in.
    """
    signed = sign_bytes(encoded("PNG", side=64), claim(target=encoded("JPEG", side=64), watermark=7), signer[0])
    said = replace(checked(signed), path="", mark=None)
    kept = 0
    for at in np.random.default_rng(1).integers(8, len(signed), 200):
        broken = bytearray(signed)
        broken[at] ^= 0x11
        found = checked(bytes(broken))
        if found.signature in ("trusted", "untrusted"):
            kept += 1
            assert replace(found, path="", mark=None, watermark=said.watermark) == said, at
    assert kept < 30


def test_what_a_manifest_says(signer):
    made = manifest(claim("generated", watermark=0xAB), [])
    (actions, job) = made["assertions"]
    created, watermarked = actions["data"]["actions"]
    assert created["digitalSourceType"] == support.IPTC + "trainedAlgorithmicMedia"
    assert (created["action"], watermarked["action"]) == ("c2pa.created", "c2pa.watermarked.unbound")
    assert job["data"]["watermark"] == "000000ab"
    assert created["softwareAgent"] == {"name": "latentswap", "version": "0.1.0"}


@pytest.mark.parametrize(
    ("deed", "actions"),
    [
        ("generated", ["created"]),
        ("inverted", ["created"]),
        ("anonymized", ["opened", "edited"]),
        ("edited", ["opened", "edited"]),
    ],
)
def test_deeds(signer, checked, deed, actions):
    sources = (encoded("JPEG"), b"a latent code") if deed == "inverted" else ()
    found = checked(sign_bytes(encoded("PNG"), claim(deed, target=encoded("PNG"), sources=sources), signer[0]))
    assert found.outcome == "trusted"
    assert [action.action for action in found.actions] == actions
    whole = deed in ("generated", "inverted")
    kind = "trainedAlgorithmicMedia" if whole else "compositeWithTrainedAlgorithmicMedia"
    assert found.actions[-1].source_type == kind
    named = [origin.relationship for origin in found.origins]
    assert named == {"generated": [], "inverted": ["inputTo"] * 2}.get(deed, ["parentOf"])


def test_pixels_of_no_file_have_a_parent_all_the_same(signer, checked):
    """Without one the library would make the output its own parent."""
    found = checked(sign_bytes(encoded("PNG"), claim("edited"), signer[0]))
    assert [(o.title, o.relationship) for o in found.origins] == [("target", "parentOf")]


def test_earlier_credentials_are_kept(signer, checked):
    """Of target and source; through two generations of this project's own."""
    photo = photograph(signer[0])
    first = sign_bytes(encoded("JPEG"), claim(target=retouched(photo, signer[0]), sources=(photo,)), signer[0])
    found = checked(first)
    assert found.outcome == "trusted"
    target, source = found.origins
    assert (target.credentials, source.credentials) == ("trusted", "trusted")
    assert target.made_by == "Editor 1, signed by Test" and source.made_by == "Camera 1, signed by Test"
    second = checked(sign_bytes(encoded("PNG"), claim("edited", target=first), signer[0]))
    assert (second.outcome, second.origins[0].credentials) == ("trusted", "trusted")
    store = read_store(sign_bytes(encoded("PNG"), claim("edited", target=first), signer[0]), "image/png")
    assert store is not None and len(store.manifests) == 4  # edit, swap, editor, camera


def test_sources_need_not_be_named(signer, checked):
    signed = sign_bytes(encoded("PNG"), claim(sources=(photograph(signer[0]),), name_sources=False), signer[0])
    found = checked(signed)
    assert [action.action for action in found.actions] == ["opened", "edited"]
    assert [origin.title for origin in found.origins] == ["target"]
    assert b"Camera" not in signed


def test_nothing_private_goes_along(signer):
    """No thumbnail, no position, no hash and no identity of a file that went in; what is left out is said."""
    photo = photograph(signer[0])
    edited = retouched(photo, signer[0])
    store = read_store(edited, "image/jpeg")
    assert store is not None and len(personal_assertions(store)) == 4
    assert support.GPS.encode() in edited and len(edited) > len(encoded("JPEG", seed=6)) + 2000
    plain = encoded("PNG")
    signed = sign_bytes(plain, claim("anonymized", target=edited), signer[0])
    after = read_store(signed, "image/png")
    assert after is not None and not personal_assertions(after, identifying=True) and after.state == "Valid"
    assert support.GPS.encode() not in signed and b"\xff\xd8\xff" not in signed
    assert support.AUTHOR.encode() not in signed
    actions = next(a for a in after.manifest["assertions"] if a["label"].startswith("c2pa.actions"))["data"]["actions"]
    assert [action["action"] for action in actions].count("c2pa.redacted") == 5
    swapped = sign_bytes(plain, claim(target=edited), signer[0])
    assert support.GPS.encode() not in swapped and support.AUTHOR.encode() in swapped  # credit where credit is due
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    xmp += b'<rdf:Description xmlns:m="http://ns.adobe.com/xap/1.0/mm/" m:InstanceID="xmp.iid:SECRET" '
    xmp += b'm:DocumentID="xmp.did:SECRET"/></rdf:RDF></x:xmpmeta>'
    for target in (encoded("JPEG", xmp=xmp), _signed_with_xmp(xmp, signer[0])):
        signed = sign_bytes(plain, claim(target=target), signer[0])
        assert b"SECRET" not in signed and hashlib.sha256(target).digest() not in signed


def _signed_with_xmp(xmp: bytes, credentials: Credentials) -> bytes:
    return sign_bytes(encoded("JPEG", xmp=xmp), claim("generated"), credentials)


@pytest.mark.attack
@pytest.mark.parametrize("where", ["pixels", "statement", "earlier statement", "box", "inner box"])
def test_tampered_credentials_are_not_laundered(signer, checked, where):
    """A target whose credentials are invalid leaves a trusted signature that says so; a broken box is called broken."""
    photo = photograph(signer[0])
    target = bytearray(retouched(photo, signer[0]) if where == "earlier statement" else photo)
    box = target.index(b"jumb")
    inner = target.index(b"jumb", box + 8)
    at = {"pixels": len(target) - 60, "box": box, "inner box": inner}.get(where)
    target[target.index(b"c2pa.created") if at is None else at] ^= 1
    found = checked(sign_bytes(encoded("PNG"), claim(target=bytes(target)), signer[0]))
    assert found.signature == "trusted"
    if "box" in where:
        assert found.origins[0].credentials == "not kept" and "damaged" in (found.origins[0].note or "")
    else:
        assert found.origins[0].credentials == "invalid"
        assert (found.outcome, found.exit_code) == ("origin_invalid", 8)


@pytest.mark.attack
def test_addresses_are_not_followed(signer, checked):
    """Neither reading nor signing over a file that says where its credentials are."""
    import socket

    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    xmp += b'<rdf:Description xmlns:dcterms="http://purl.org/dc/terms/" '
    xmp += b'dcterms:provenance="http://127.0.0.1:%d/x.c2pa"/>'
    xmp += b"</rdf:RDF></x:xmpmeta>"
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        picture = encoded("JPEG", xmp=xmp % server.getsockname()[1])
        found = checked(picture)
        assert found.signature == "none" and "elsewhere" in found.problems[0]
        assert checked(sign_bytes(encoded("PNG"), claim(target=picture), signer[0])).outcome == "trusted"
        with pytest.raises(TimeoutError):
            server.accept()


def test_a_function_can_sign(signer, checked):
    """For keys in a KMS or HSM; what it raises is said."""
    inner: ec.EllipticCurvePrivateKey = load_pem_private_key(signer[0].key_pem.encode(), None)  # pyright: ignore
    outside = Credentials(
        chain_pem=signer[0].chain_pem, algorithm="es256", sign=lambda data: inner.sign(data, ec.ECDSA(hashes.SHA256()))
    )
    assert checked(sign_bytes(encoded("PNG"), claim("generated"), outside)).outcome == "trusted"

    def refuse(data: bytes) -> bytes:
        raise ConnectionError("the HSM is away")

    with pytest.raises(ProvenanceError, match="the HSM is away"):
        sign_bytes(encoded("PNG"), claim("generated"), replace(outside, sign=refuse))
    for other in ({"sign": None}, {"key_pem": "x"}, {"algorithm": "md5"}, {"time_stamper": "ftp://x"}):
        with pytest.raises(UsageError):
            replace(outside, **other)


def test_credentials_that_cannot_sign_are_found_out_at_once(signer):
    check_credentials(signer[0])
    other, _ = authority("Other")
    with pytest.raises(ProvenanceError, match="expired on"):
        check_credentials(authority(expired=True)[0])
    with pytest.raises(ProvenanceError, match="could not be signed"):
        check_credentials(replace(signer[0], key_pem=other.key_pem))
    with pytest.raises(ProvenanceError, match="no PEM chain"):
        check_credentials(replace(signer[0], chain_pem="nothing"))


def test_what_cannot_carry_a_signature_is_refused(signer):
    for data in (b"", b"GIF89a", b"\x1aE\xdf\xa3matroska", b"text"):
        assert sniff(data) is None
        with pytest.raises(ProvenanceError, match="cannot be signed"):
            sign_bytes(data, claim("generated"), signer[0])
    with pytest.raises(ProvenanceError, match="could not be signed"):
        sign_bytes(encoded("PNG")[:100], claim("generated"), signer[0])


def test_a_large_file_is_signed_in_its_place(tmp_path, signer, checked):
    part = tmp_path / ".latentswap-0123-x.part"
    plain = video(part)
    sign_file(part, claim(target=part), signer[0])
    assert checked(part.read_bytes()).outcome == "trusted" and len(part.read_bytes()) > len(plain)
    part.write_bytes(plain[:200])
    with pytest.raises(ProvenanceError):
        sign_file(part, claim(), authority(expired=True)[0])
    assert part.read_bytes() == plain[:200]
    assert sorted(os.listdir(tmp_path)) == [part.name, "ca.pem", "file"]


def test_a_full_disk_while_a_large_file_is_signed(tmp_path):
    """The error is the system's own, so that it becomes exit code 6; the file is as it was."""
    plain = video(tmp_path / "x.part", frames=40)
    script = (
        "import resource, sys; from pathlib import Path\n"
        "from _provenance_support import authority, claim; from latentswap.provenance.sign import sign_file\n"
        f"credentials = authority()[0]; resource.setrlimit(resource.RLIMIT_FSIZE, ({len(plain)}, {len(plain)}))\n"
        "try: sign_file(Path(sys.argv[1]), claim(), credentials)\n"
        "except OSError as error: print(error.errno)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", script, str(tmp_path / "x.part")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "27", done.stderr
    assert os.listdir(tmp_path) == ["x.part"] and (tmp_path / "x.part").read_bytes() == plain
    assert resource.RLIMIT_FSIZE == 1


def test_manifests_are_json(signer):
    json.dumps(manifest(claim(watermark=1), []))


@pytest.mark.parametrize("kind", ["P-384", "Ed25519", "RSA"])
def test_keys_of_other_kinds_sign(tmp_path, monkeypatch, kind):
    """An imported chain of each kind: the algorithm is told from the certificate."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
    from cryptography.x509.oid import ExtendedKeyUsageOID

    monkeypatch.setenv("LATENTSWAP_DATA", str(tmp_path / "data"))
    key = {
        "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
        "Ed25519": ed25519.Ed25519PrivateKey.generate,
        "RSA": lambda: rsa.generate_private_key(65537, 2048),
    }[kind]()
    ca, ca_key = certificates.make_authority("Authority")
    plain, _ = certificates.make_leaf("Studio", ca, ca_key)
    builder = x509.CertificateBuilder(
        plain.issuer, plain.subject, key.public_key(), 7, plain.not_valid_before_utc, plain.not_valid_after_utc
    )
    identifiers = (x509.AuthorityKeyIdentifier, x509.SubjectKeyIdentifier)
    for extension in plain.extensions:
        if not isinstance(extension.value, identifiers):
            builder = builder.add_extension(extension.value, extension.critical)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
    builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), False)
    assert ExtendedKeyUsageOID.EMAIL_PROTECTION in plain.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    leaf = builder.sign(ca_key, hashes.SHA256())
    (tmp_path / "chain.pem").write_bytes(certificates.pem(leaf) + certificates.pem(ca))
    (tmp_path / "key.pem").write_bytes(certificates.key_pem(key))  # pyright: ignore[reportArgumentType]
    assert (
        import_credentials(tmp_path / "chain.pem", tmp_path / "key.pem").algorithm
        == {
            "P-384": "es384",
            "Ed25519": "ed25519",
            "RSA": "ps256",
        }[kind]
    )
    (tmp_path / "out.png").write_bytes(sign_bytes(encoded("PNG"), claim("generated"), load_credentials()))
    assert verify(tmp_path / "out.png").outcome == "trusted"


def test_a_signature_without_a_time_stamp_ends_with_its_certificate(tmp_path):
    """Which is why local certificates last long: nothing shows that it was made in time."""
    ca, ca_key = certificates.make_authority("Short")
    seconds = 3 / (365 * 86400)
    leaf, key = certificates.make_leaf("Short", ca, ca_key, years=seconds)
    chain = (certificates.pem(leaf) + certificates.pem(ca)).decode()
    short = Credentials(chain_pem=chain, key_pem=certificates.key_pem(key).decode(), algorithm="es256")
    (tmp_path / "ca.pem").write_bytes(certificates.pem(ca))
    (tmp_path / "out.png").write_bytes(sign_bytes(encoded("PNG"), claim("generated"), short))
    assert verify(tmp_path / "out.png", trust=tmp_path / "ca.pem").outcome == "trusted"
    time.sleep(max(0.0, (leaf.not_valid_after_utc - datetime.now(UTC)).total_seconds()) + 1.1)
    found = verify(tmp_path / "out.png", trust=tmp_path / "ca.pem")
    assert found.outcome == "invalid" and any("expired" in problem.lower() for problem in found.problems)


@pytest.mark.parametrize("kind", ["AVIF", "GIF", "TIFF", "MOV", "AVI"])
def test_formats_that_others_sign_are_verified(tmp_path, signer, checked, kind):
    if kind in ("MOV", "AVI"):
        plain, mime = video(tmp_path / f"x.{kind.lower()}"), {"MOV": "video/quicktime", "AVI": "video/avi"}[kind]
    else:
        plain, mime = encoded(kind), f"image/{kind.lower()}"
    found = checked(support.by_others(plain, mime, signer[0]))
    assert (found.outcome, found.made_by, found.media_type) == ("trusted", "Other 1", mime)
