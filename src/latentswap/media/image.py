"""What may come in as a picture, and how a picture goes out.

Everything read from outside becomes a `types.Image`: upright, sRGB, 8 bits a channel, or an error that names the
file's role. Everything written is encoded afresh from pixels, so no metadata of an input reaches an output.
"""

import functools
import io
import os
import stat
import struct
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
from PIL import ImageCms, PngImagePlugin, features

from latentswap.errors import BadInputError, ResourceError, TooLargeError, UnsupportedMediaError, UsageError
from latentswap.media.atomic import check_destination
from latentswap.types import Image

MAX_PIXELS = 50_000_000
MAX_BYTES = 400_000_000  # more than 50 megapixels of 16-bit RGB, uncompressed
MIN_SIDE = 64
MAX_ASPECT = 16
NEUTRAL_GREY = 128  # what transparent regions are laid over, in sRGB

_OUTPUT_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_MAX_SIDE = {"JPEG": 65_500, "WEBP": 16_383}
_READS = "JPEG, PNG, WebP and AVIF"
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".avif")

_ORIENTATION_TAG = 0x0112
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


def decode(
    data: bytes | str | os.PathLike[str],
    *,
    role: str = "image",
    name: str | None = None,
    frame: int | None = None,
) -> Image:
    """Read a picture from bytes, or from a regular file when given a path.

    The content decides the format, never the file's suffix. Orientation is applied; colour goes through the
    embedded ICC profile to sRGB (a profile that is broken, or of another colour model, is ignored); 16-bit values v
    become v / 257. Transparent regions are laid over neutral grey in `pixels`, and `alpha` is kept for the output.

    Args:
        data: the encoded bytes, or where they lie.
        role: what the picture is for; messages print it in capitals ("the SOURCE image me.jpg").
        name: what messages call it; the file's name when `data` is a path.
        frame: which frame of an animation to take, from 0; animations are refused without it.

    Returns:
        `Image` with uint8 pixels [H, W, 3], H and W from 64 up, at most 50 megapixels, longer side at most 16 times
        the shorter.

    Raises:
        BadInputError: no such file, not a regular file, truncated, damaged, too small or too narrow.
        UnsupportedMediaError: not a JPEG, PNG, WebP or AVIF picture.
        TooLargeError: too many bytes or pixels; known from the header, before anything is unpacked.
        UsageError: an animation has no such frame.
        ResourceError: not enough memory.
    """
    if not isinstance(data, bytes):
        name = Path(data).name if name is None else name
        data = read_file(Path(data), role=role)
    label = _label(role, name)
    source = open_image(data, label=label)
    _check_size(source.width, source.height, label)
    _select_frame(source, frame, label)
    try:
        source.load()
        orientation = _orientation(source)
        colour, alpha_HW = _split_alpha(source)
        profile = source.info.get("icc_profile")
        pixels_HW3 = np.asarray(_to_srgb(colour, profile) if profile else colour.convert("RGB"))
        if alpha_HW is not None:
            pixels_HW3 = _over_grey(pixels_HW3, alpha_HW)
            alpha_HW = _turn(alpha_HW, orientation)
    except MemoryError:
        raise ResourceError(f"not enough memory to decode {label}; use a smaller picture") from None
    except Exception as error:  # Pillow's decoders raise nearly every type there is on damaged data
        raise _damaged(error, label) from error
    return Image(
        pixels=_turn(pixels_HW3, orientation),
        alpha=alpha_HW,
        icc_profile=srgb_profile() if profile else None,
        name=_printable(name or "image"),
        encoded=data,
    )


def as_image(array: np.ndarray, *, name: str = "image") -> Image:
    """Wrap a caller's array as an `Image`, after checking what can be checked. The pixels are copied.

    Args:
        array: uint8 [H, W, 3], RGB, sRGB, upright. BGR (OpenCV's order) looks just as valid and cannot be
            told apart: reverse the last axis first.
        name: what messages call it.

    Raises:
        BadInputError: (a ValueError) naming the contract and how the array breaks it.
        TooLargeError: more than 50 megapixels.
    """
    label = f"the image {_printable(name)}"
    contract = f"{label} must be a uint8 NumPy array [height, width, 3] in RGB order"
    if not isinstance(array, np.ndarray):
        raise BadInputError(f"{contract}, not {type(array).__name__}; call numpy.asarray on it, or decode() on a file")
    if array.dtype != np.uint8:
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise BadInputError(f"{contract}; it is {array.dtype} and holds NaN or infinity: mend what produced it")
        hint = "scale it to 0…255, round and call astype(numpy.uint8)"
        raise BadInputError(f"{contract}, not {array.dtype}; {hint}")
    if array.ndim != 3 or array.shape[2] != 3:
        hint = "give it three channels in the last axis"
        if array.ndim == 4:
            hint = "pass one image at a time"
        elif array.ndim == 3 and array.shape[0] == 3:
            hint = "this looks like channels first: call numpy.moveaxis(array, 0, -1)"
        elif array.ndim == 3 and array.shape[2] == 4:
            hint = "this looks like RGBA: pass array[..., :3]"
        raise BadInputError(f"{contract}, not of shape {array.shape}; {hint}")
    _check_size(array.shape[1], array.shape[0], label)
    return Image(pixels=np.array(array, order="C"), name=_printable(name))


def pictures_in(folder: Path, *, role: str) -> list[Path]:
    """The pictures of a folder, by name. Raises BadInputError when there is none."""
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES)
    if not found:
        raise BadInputError(f"the {role} folder {folder} holds no picture ({', '.join(PICTURE_SUFFIXES)})")
    return found


def check_output_path(path: str | os.PathLike[str]) -> None:
    """Refuse an output picture that could not be written, before any model loads.

    An existing file is fine, even one of the inputs: it is replaced in one step once the new picture is whole.

    Raises:
        UsageError: unknown suffix, missing folder, or the path is a folder or a device.
        ResourceError: the folder cannot be written.
    """
    _output_format(Path(path).suffix)
    check_destination(path)


def encode(image: Image, suffix: str, *, quality: int = 95, xmp: bytes | None = None) -> bytes:
    """Encode a picture as PNG, JPEG or WebP. The bytes depend on the arguments alone.

    Alpha is kept in PNG and WebP, where the grey under it is taken out again; JPEG has none and shows the grey.
    Nothing is written but pixels, the sRGB profile when `image` carries it, and `xmp`.

    Args:
        image: what to encode.
        suffix: ".png", ".jpg", ".jpeg" or ".webp", in any case.
        quality: 1 to 100, for JPEG (4:4:4 chroma) and WebP; PNG is lossless.
        xmp: an XMP packet to embed, such as `provenance.mark.xmp_packet` makes.

    Raises:
        UsageError: unknown suffix, quality out of range, or a side longer than the format can hold.
        ResourceError: not enough memory.
    """
    kind = _output_format(suffix)
    if not 1 <= quality <= 100:
        raise UsageError(f"quality {quality} is out of range; give 1 to 100")
    side = max(image.width, image.height)
    if side > _MAX_SIDE.get(kind, side):
        raise UsageError(f"{kind} holds at most {_MAX_SIDE[kind]} pixels a side, not {side}; write a .png")
    options: dict = {"icc_profile": image.icc_profile} if image.icc_profile else {}
    if kind == "PNG":
        info = PngImagePlugin.PngInfo()
        if xmp:
            info.add_itxt("XML:com.adobe.xmp", xmp.decode("utf-8"))
        options |= {"pnginfo": info}
    else:
        options |= {"quality": quality} | ({"xmp": xmp} if xmp else {})
        options |= {"subsampling": 0} if kind == "JPEG" else {"method": 4}
    try:
        pixels = image.pixels
        if image.alpha is not None and kind != "JPEG":
            pixels = np.dstack([_without_grey(image.pixels, image.alpha), image.alpha])
        out = io.BytesIO()
        PIL.Image.fromarray(pixels).save(out, format=kind, **options)
    except MemoryError:
        raise ResourceError(f"not enough memory to encode {image.name}; write a smaller picture") from None
    return out.getvalue()


def open_image(data: bytes, *, label: str = "the image") -> PIL.Image.Image:
    """Open bytes with Pillow, for the formats that the project reads and no other. Only the header is parsed.

    `label` is what messages call the picture. Raises as `decode` does; the caller checks size and shape before
    unpacking any pixel.
    """
    if len(data) > MAX_BYTES:
        raise _too_many_bytes(label)
    kind, what = _sniff(data)
    if kind is None:
        raise UnsupportedMediaError(f"{label} is not a supported image: it {what}. {_READS} are read")
    if kind == "WEBP" and int.from_bytes(data[4:8], "little") + 8 > len(data):
        raise _damaged(EOFError(), label)
    try:
        # catch_warnings is not thread-safe, so a bomb may slip past it; decode()'s own limit does not depend on it.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
            if kind == "PNG":
                # Checks every chunk's CRC up to the end mark; load() would stop at the last pixel it needs.
                PIL.Image.open(io.BytesIO(data), formats=[kind]).verify()
            image = PIL.Image.open(io.BytesIO(data), formats=[kind])
    except (PIL.Image.DecompressionBombWarning, PIL.Image.DecompressionBombError):
        raise TooLargeError(f"{label} is over {MAX_PIXELS // 10**6} megapixels; scale it down first") from None
    except MemoryError:
        raise ResourceError(f"not enough memory to open {label}; use a smaller picture") from None
    except Exception as error:  # as in decode(): damaged headers raise nearly every type
        raise _damaged(error, label) from error
    return image


@functools.cache
def srgb_profile() -> bytes:
    """The sRGB profile that outputs embed when the input carried a profile: the same bytes on every run."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[24:36] = bytes([0x07, 0xD0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0])  # creation date: 2000-01-01, not now
    return bytes(profile)


def read_file(path: Path, *, role: str) -> bytes:
    """The bytes of a regular file that may be a picture. Raises BadInputError and TooLargeError, as `decode` does."""
    label = _label(role, str(path))
    try:
        # Non-blocking, because opening a pipe would otherwise wait for someone to write into it.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise BadInputError(f"{label} does not exist; check the path") from None
    except PermissionError:
        raise BadInputError(f"{label} may not be read by this user; change its permissions") from None
    except (OSError, ValueError) as error:
        raise BadInputError(f"{label} cannot be opened: {error}; give the path of an image file") from error
    try:
        status = os.fstat(handle)
        if stat.S_ISDIR(status.st_mode):
            raise BadInputError(f"{label} is a folder; give an image file")
        if not stat.S_ISREG(status.st_mode):
            raise BadInputError(f"{label} is a device or a pipe; copy it to a regular file first")
        if status.st_size > MAX_BYTES:
            raise _too_many_bytes(label)
        with os.fdopen(handle, "rb", closefd=False) as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise BadInputError(f"{label} cannot be read: {error.strerror}; check the disk it lies on") from error
    finally:
        os.close(handle)


def _sniff(data: bytes) -> tuple[str | None, str]:
    """Pillow's name of the format, from the first bytes; or None and what the content is instead."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG", ""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG", ""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP", ""
    if data[4:8] == b"ftyp":
        brands = data[8 : 8 + min(int.from_bytes(data[:4], "big"), 128)]
        if b"avif" in brands or b"avis" in brands:
            return ("AVIF", "") if features.check("avif") else (None, "is AVIF, which this build of Pillow lacks")
        return None, "is HEIC; export it as JPEG" if b"hei" in brands or b"mif1" in brands else "is a video"
    if not data:
        return None, "is empty"
    known = {
        b"GIF8": "is a GIF; save the frame you want as PNG, or make a video of it",
        b"II*\0": "is a TIFF; save it as PNG",
        b"MM\0*": "is a TIFF; save it as PNG",
        b"8BPS": "is a Photoshop file; export it as PNG",
        b"BM": "is a BMP; save it as PNG",
        b"%PDF": "is a PDF",
        b"%!PS": "is PostScript",
        b"PK\3\4": "is a zip archive",
    }
    for magic, what in known.items():
        if data.startswith(magic):
            return None, what
    if b"<svg" in data[:1024]:
        return None, "is an SVG drawing"
    return None, f"starts with {data[:8]!r}"


def _check_size(width: int, height: int, label: str) -> None:
    size = f"{width}x{height}"
    if width * height > MAX_PIXELS:
        raise TooLargeError(f"{label} is {size}, over {MAX_PIXELS // 10**6} megapixels; scale it down first")
    if min(width, height) < MIN_SIDE:
        raise BadInputError(f"{label} is {size}; each side must be at least {MIN_SIDE} pixels: use a larger picture")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise BadInputError(f"{label} is {size}, longer than {MAX_ASPECT}:1; crop it around the face")


def _select_frame(source: PIL.Image.Image, frame: int | None, label: str) -> None:
    # A JPEG with several pictures (MPO) holds views and maps of one photo; the first is the photo.
    frames = 1 if source.format in ("JPEG", "MPO") else getattr(source, "n_frames", 1)
    if frame is None and frames > 1:
        raise BadInputError(
            f"{label} is an animation of {frames} frames; save the one you mean as a picture of its own"
        )
    if frame is not None and not 0 <= frame < frames:
        raise UsageError(f"{label} has no frame {frame}; give 0 to {frames - 1}")
    if frame:
        try:
            source.seek(frame)
        except MemoryError:
            raise ResourceError(f"not enough memory to decode {label}; use a smaller picture") from None
        except Exception as error:  # as in decode()
            raise _damaged(error, label) from error


def _orientation(source: PIL.Image.Image) -> int:
    try:
        value = source.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # EXIF that cannot be parsed says nothing about the pixels, which are fine
        return 1
    return value if value in _UPRIGHT else 1


def _turn(plane: np.ndarray, orientation: int) -> np.ndarray:
    return np.ascontiguousarray(_UPRIGHT[orientation](plane) if orientation in _UPRIGHT else plane)


def _split_alpha(source: PIL.Image.Image) -> tuple[PIL.Image.Image, np.ndarray | None]:
    """Colour in 8 bits and the file's own colour model (L, RGB or CMYK), and alpha [H, W] unless all is opaque."""
    key = source.info.get("transparency")
    if source.mode.startswith("I"):  # 16-bit grey, which Pillow's own convert() would clip at 255
        grey_HW = np.asarray(source).astype(np.uint32)
        eight_HW = ((grey_HW + 128) // 257).astype(np.uint8)
        alpha_HW = None if key is None else np.where(grey_HW == key, 0, 255).astype(np.uint8)
        return PIL.Image.fromarray(eight_HW), alpha_HW
    if source.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
        # Of 16-bit RGB, Pillow keeps each value's high byte (within one level of v / 257) but not the key's.
        source.info["transparency"] = tuple(value >> 8 for value in key)
    grey = source.mode in ("1", "L", "LA")
    if key is None and "A" not in source.getbands():
        return source.convert("L" if grey else "RGB") if source.mode != "CMYK" else source, None
    with_alpha = source.convert("RGBA")
    colour = with_alpha.getchannel("R") if grey else with_alpha.convert("RGB")
    alpha_HW = np.asarray(with_alpha.getchannel("A"))
    return colour, None if alpha_HW.min() == 255 else alpha_HW


def _to_srgb(colour: PIL.Image.Image, profile: bytes) -> PIL.Image.Image:
    """Colour through its ICC profile to sRGB; the profile-less meaning of the values where the profile is unusable."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        model = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}.get(profile[16:20])  # the header's colour space
        if model == "RGB" and colour.mode == "L":
            colour = colour.convert("RGB")
        if model is None or model != colour.mode:
            return colour.convert("RGB")
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            model,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        if model == "RGB" and _is_identity(transform):
            return colour
        return ImageCms.applyTransform(colour, transform) or colour.convert("RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return colour.convert("RGB")


def _is_identity(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether the profile is sRGB under one of its many names: then the pixels must come through exactly."""
    levels = np.linspace(0, 255, 16).round().astype(np.uint8)
    lattice_HW3 = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(64, 64, 3)
    image = ImageCms.applyTransform(PIL.Image.fromarray(lattice_HW3), transform)
    return bool(np.abs(np.asarray(image).astype(int) - lattice_HW3).max() <= 1)


def _over_grey(pixels_HW3: np.ndarray, alpha_HW: np.ndarray) -> np.ndarray:
    """Straight colour over the neutral grey: what shows of a picture where it is transparent."""
    out = pixels_HW3.copy()
    seen = alpha_HW < 255
    a = alpha_HW[seen].astype(np.uint32)[:, None]
    out[seen] = (pixels_HW3[seen] * a + NEUTRAL_GREY * (255 - a) + 127) // 255
    return out


def _without_grey(pixels_HW3: np.ndarray, alpha_HW: np.ndarray) -> np.ndarray:
    """Inverse of `_over_grey`: laid over any background again, the result is within a level of the original."""
    out = pixels_HW3.copy()
    out[alpha_HW == 0] = NEUTRAL_GREY
    seen = (alpha_HW > 0) & (alpha_HW < 255)
    a = alpha_HW[seen].astype(np.float32)[:, None] / 255
    straight = NEUTRAL_GREY + (pixels_HW3[seen].astype(np.float32) - NEUTRAL_GREY) / a
    out[seen] = np.clip(np.rint(straight), 0, 255).astype(np.uint8)
    return out


def _output_format(suffix: str) -> str:
    kind = _OUTPUT_FORMATS.get(suffix.lower())
    if kind is None:
        raise UsageError(
            f"the OUTPUT suffix {suffix!r} is not one that can be written; use {', '.join(_OUTPUT_FORMATS)}"
        )
    return kind


def _label(role: str, name: str | None) -> str:
    """How messages call a picture: "the SOURCE image me.jpg", or "the IMAGE me.jpg" where the role is just that."""
    words = (
        ["the", role.upper()] + ([] if role.lower() == "image" else ["image"]) + ([_printable(name)] if name else [])
    )
    return " ".join(words)


def _printable(name: str) -> str:
    """A file's name without what would move a terminal's cursor or forge a line of a log."""
    return "".join(char if char.isprintable() else "?" for char in name)


def _too_many_bytes(label: str) -> TooLargeError:
    return TooLargeError(f"{label} has more than {MAX_BYTES // 10**6} MB; save it smaller")


def _damaged(error: Exception, label: str) -> BadInputError:
    cut = isinstance(error, EOFError | struct.error) or "truncated" in str(error).lower()
    state = "truncated" if cut else f"damaged ({_printable(str(error)) or type(error).__name__})"
    return BadInputError(f"{label} is {state}; get a whole copy of it, or open it in an image editor and save it again")
