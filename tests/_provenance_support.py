"""Small pictures and videos, and credentials of a camera and an editor that embed what this project does not."""

import io
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import c2pa
import numpy as np
import PIL.Image

from latentswap.provenance import certificates
from latentswap.provenance.credentials import Credentials
from latentswap.provenance.sign import Claim
from latentswap.types import Making

IPTC = "http://cv.iptc.org/newscodes/digitalsourcetype/"
GPS = "39,21.102N"
AUTHOR = "Somebody Known"


def pixels(side: int = 96, seed: int = 0) -> np.ndarray:
    """Smooth noise, uint8 [side, side, 3]."""
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return np.asarray(PIL.Image.fromarray(small).resize((side, side), PIL.Image.Resampling.BICUBIC))


def encoded(kind: str, *, side: int = 96, seed: int = 0, **options: Any) -> bytes:
    """A picture: kind is Pillow's name of the format."""
    out = io.BytesIO()
    PIL.Image.fromarray(pixels(side, seed)).save(out, format=kind, **options)
    return out.getvalue()


def video(path: Path, *, frames: int = 8) -> bytes:
    """An H.264 MP4 of 96 × 96; by the suffix also MOV or AVI."""
    with av.open(str(path), "w", format={".mov": "mov", ".avi": "avi"}.get(path.suffix, "mp4")) as out:
        stream = out.add_stream("libx264", rate=Fraction(25))
        stream.width = stream.height = 96
        stream.pix_fmt = "yuv420p"
        for number in range(frames):
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels(seed=number), format="rgb24")):
                out.mux(packet)
        for packet in stream.encode(None):
            out.mux(packet)
    return path.read_bytes()


def authority(name: str = "Test", *, expired: bool = False) -> tuple[Credentials, str]:
    """Credentials of a new authority, and its certificate (PEM)."""
    ca, ca_key = certificates.make_authority(name)
    start = datetime.now(UTC) - timedelta(days=800) if expired else None
    leaf, key = certificates.make_leaf(name, ca, ca_key, start=start, years=1)
    chain = (certificates.pem(leaf) + certificates.pem(ca)).decode()
    key_pem = certificates.key_pem(key).decode()
    return Credentials(chain_pem=chain, key_pem=key_pem, algorithm="es256"), certificates.pem(ca).decode()


def claim(deed: Any = "swapped", *, watermark: int | None = None, name_sources: bool = True, **making) -> Claim:
    return Claim(
        making=Making(deed=deed, **making),
        version="0.1.0",
        job="0123456789abcdef",
        networks={"mixer": "ab" * 32},
        watermark=watermark,
        name_sources=name_sources,
    )


def photograph(credentials: Credentials, *, picture: bytes | None = None) -> bytes:
    """A picture as a camera signs it: with a thumbnail and a position."""
    position = {"@context": {"exif": "http://ns.adobe.com/exif/1.0/"}, "exif:GPSLatitude": GPS}
    created = {"actions": [{"action": "c2pa.created", "digitalSourceType": IPTC + "digitalCapture"}]}
    author = {
        "@context": "https://schema.org",
        "@type": "CreativeWork",
        "author": [{"@type": "Person", "name": AUTHOR}],
    }
    assertions = [{"label": "stds.exif", "data": position}, {"label": "c2pa.actions", "data": created}]
    assertions.append({"label": "stds.schema-org.CreativeWork", "data": author})
    intent = (c2pa.C2paBuilderIntent.CREATE, c2pa.C2paDigitalSourceType.DIGITAL_CAPTURE)
    return _by_others(picture or encoded("JPEG", seed=5), "Camera", assertions, intent, None, credentials)


def retouched(photo: bytes, credentials: Credentials) -> bytes:
    """The photograph after an editor, which embeds thumbnails of both."""
    return _by_others(encoded("JPEG", seed=6), "Editor", [], (c2pa.C2paBuilderIntent.EDIT,), photo, credentials)


def by_others(data: bytes, mime: str, credentials: Credentials) -> bytes:
    """A file of any media type, signed by somebody else."""
    intent = (c2pa.C2paBuilderIntent.CREATE, c2pa.C2paDigitalSourceType.DIGITAL_CAPTURE)
    return _by_others(data, "Other", [], intent, None, credentials, mime=mime)


def _by_others(
    data: bytes,
    software: str,
    assertions: list,
    intent: tuple,
    parent: bytes | None,
    who: Credentials,
    *,
    mime: str = "image/jpeg",
):
    settings = {"version": 1, "verify": {"remote_manifest_fetch": False}}
    definition = {"claim_generator_info": [{"name": software, "version": "1"}], "assertions": assertions}
    builder = c2pa.Builder(definition, c2pa.Context(c2pa.Settings.from_dict(settings)))
    builder.set_intent(*intent)
    if parent is not None:
        builder.add_ingredient({"title": "photo", "relationship": "parentOf"}, "image/jpeg", io.BytesIO(parent))
    key = (who.key_pem or "").encode()
    info = c2pa.C2paSignerInfo(c2pa.C2paSigningAlg.ES256, who.chain_pem.encode(), key, None)
    out = io.BytesIO()
    builder.sign(c2pa.Signer.from_info(info), mime, io.BytesIO(data), out)
    return out.getvalue()
