"""Builders of the awkward files that the tests feed to the package: each a few lines of its format's specification."""

import contextlib
import io
import os
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
from PIL import PngImagePlugin


@contextlib.contextmanager
def unprivileged() -> Iterator[Path]:
    """A folder of one's own and, where the tests run as root, the rights of an ordinary user, so that modes bind."""
    folder = Path(tempfile.mkdtemp())
    root = os.geteuid() == 0
    if root:
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
    try:
        yield folder
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o700)
        shutil.rmtree(folder)


# ---------------------------------------------------------------------------------------------- pictures


def photo(width: int = 96, height: int = 80, seed: int = 0) -> np.ndarray:
    """A smooth uint8 [H, W, 3] picture with no symmetry, so that every flip and turn of it differs."""
    y, x = np.mgrid[0:height, 0:width]
    rng = np.random.default_rng(seed)
    a, b, c = rng.uniform(0.3, 1.0, 3)
    channels = [255 * a * x / width, 255 * b * y / height, 255 * c * (x + 2 * y) / (width + 2 * height)]
    return np.stack(channels, axis=-1).astype(np.uint8)


def save(pixels: np.ndarray | PIL.Image.Image, kind: str, **options: object) -> bytes:
    image = pixels if isinstance(pixels, PIL.Image.Image) else PIL.Image.fromarray(pixels)
    out = io.BytesIO()
    image.save(out, format=kind, **options)  # pyright: ignore[reportArgumentType]
    return out.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *chunks: bytes) -> bytes:
    """A PNG from its raw rows (each with its filter byte), with more chunks before the pixels."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + body


def png16(values: np.ndarray, *chunks: bytes) -> bytes:
    """A 16-bit PNG: uint16 [H, W, C], C being 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA."""
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[values.shape[2]]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(values.shape[1], values.shape[0], 16, colour, rows, *chunks)


def header_bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that declares `width`x`height` pixels."""
    return png(width, height, 8, 2, b"\0" * 64)


def webp_bomb(side: int = 16_383) -> bytes:
    """An animated WebP that declares a canvas of `side`², with one tiny frame on it."""
    inner = save(np.zeros((64, 64, 3), np.uint8), "WEBP", lossless=True)[12:]
    size = (side - 1).to_bytes(3, "little")
    place = bytes(6) + (63).to_bytes(3, "little") * 2 + bytes(4)  # at (0, 0), 64x64, no duration, no flags
    chunks = b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + size + size + b"ANIM" + struct.pack("<I", 6) + bytes(6)
    chunks += b"ANMF" + struct.pack("<I", len(place) + len(inner)) + place + inner
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks


def ztxt_bomb(megabytes: int = 64) -> bytes:
    """A PNG whose compressed comment unpacks to `megabytes`."""
    packed = zlib.compress(b"\0" * (megabytes << 20), 9)
    return png(64, 64, 8, 0, b"\0" * 65 * 64, png_chunk(b"zTXt", b"Comment\0\0" + packed))


def flip_bit(data: bytes, position: int) -> bytes:
    out = bytearray(data)
    out[position // 8] ^= 1 << (position % 8)
    return bytes(out)


def with_zip(data: bytes, member: bytes) -> bytes:
    """A picture that is a zip archive too, with `member` stored in it."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("payload.txt", member)
    return data + out.getvalue()


def animation(kind: str, frames: int = 3) -> tuple[bytes, list[np.ndarray]]:
    """An animated PNG or WebP and its frames."""
    pictures = [photo(seed=i) for i in range(frames)]
    images = [PIL.Image.fromarray(p) for p in pictures]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    return save(images[0], kind, save_all=True, append_images=images[1:], duration=100, **lossless), pictures


def ycck_jpeg(luma: int, black: int, side: int = 64) -> bytes:
    """A YCCK JPEG of one colour, neutral chroma: CMYK of (luma, luma, luma, black)."""
    stored = PIL.Image.new("CMYK", (side, side), (255 - luma, 127, 127, black))  # Pillow stores the complement
    data = bytearray(save(stored, "JPEG", quality=100, subsampling=0))
    marker = data.index(b"Adobe\0")
    data[marker + 11] = 2  # the transform byte of APP14: 0 says CMYK, 2 says YCCK
    return bytes(data)


def gps_exif() -> bytes:
    exif = PIL.Image.Exif()
    exif[0x010E] = "SECRET-DESCRIPTION"
    exif.get_ifd(0x8825).update({1: "N", 2: (48.0, 51.0, 29.0), 29: "SECRET-DATE"})
    return exif.tobytes()


def text_png(pixels: np.ndarray) -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("Author", "SECRET-AUTHOR")
    info.add_itxt("XML:com.adobe.xmp", "<x>SECRET-XMP</x>")
    return save(pixels, "PNG", pnginfo=info, exif=gps_exif())


# ---------------------------------------------------------------------------- ICC profiles (ICC.1:2001-04)

_D50 = (0.9642, 1.0, 0.8249)

# Colourants adapted to D50, as the profiles of these spaces publish them.
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
DISPLAY_P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
ADOBE_RGB = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))


def _fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(v * 65536)) for v in values)


def _xyz(values: tuple[float, ...]) -> bytes:
    return b"XYZ \0\0\0\0" + _fixed(*values)


def _gamma(value: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(value * 256)) + b"\0\0"


def _srgb_curve(points: int = 1024) -> bytes:
    v = np.linspace(0, 1, points)
    linear = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    return b"curv\0\0\0\0" + struct.pack(">I", points) + np.rint(linear * 65535).astype(">u2").tobytes()


def _profile(device: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    description = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(4 + 4 + 2 + 1 + 67)
    tags = {b"desc": description, b"cprt": b"text\0\0\0\0none\0", b"wtpt": _xyz(_D50)} | tags
    offset = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, value in tags.items():
        table += name + struct.pack(">II", offset + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    date = struct.pack(">6H", 2000, 1, 1, 0, 0, 0)
    head = bytes(4) + b"\x02\x40\0\0" + device + space + connection + date + b"acsp" + bytes(28) + _fixed(*_D50)
    head = head.ljust(124, b"\0")
    return struct.pack(">I", 128 + len(table) + len(body)) + head + table + body


def rgb_profile(colourants: tuple[tuple[float, float, float], ...], gamma: float | None = None) -> bytes:
    """A matrix profile; `gamma` None takes sRGB's curve."""
    curve = _srgb_curve() if gamma is None else _gamma(gamma)
    tags = {bytes([c]) + b"XYZ": _xyz(v) for c, v in zip(b"rgb", colourants, strict=True)}
    return _profile(b"mntr", b"RGB ", b"XYZ ", tags | {bytes([c]) + b"TRC": curve for c in b"rgb"})


def gray_profile(gamma: float) -> bytes:
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": _gamma(gamma)})


def cmyk_profile(inks: dict[tuple[int, int, int, int], tuple[float, float, float]]) -> bytes:
    """A table profile with two nodes an ink: `inks` gives CIE Lab of combinations such as (1, 0, 0, 0); else black."""
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + _fixed(1, 0, 0, 0, 1, 0, 0, 0, 1) + bytes(range(256)) * 4
    for node in np.ndindex(2, 2, 2, 2):
        lightness, a, b = inks.get((node[0], node[1], node[2], node[3]), (0.0, 0.0, 0.0))
        lut += bytes([round(lightness * 2.55), round(a + 128), round(b + 128)])
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": lut + bytes(range(256)) * 3})
