"""What `media.image.decode` makes of good, awkward and hostile files."""

import io
import os
import subprocess
import sys
import warnings
from pathlib import Path

import make_bad_files as bad
import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ImageOps, features

from latentswap.errors import BadInputError, LatentSwapError, TooLargeError, UnsupportedMediaError, UsageError
from latentswap.media.image import MAX_ASPECT, MIN_SIDE, decode, srgb_profile

LOSSLESS = [("PNG", {}), ("WEBP", {"lossless": True})]
needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")


# ------------------------------------------------------------------------------------ formats and damage


@pytest.mark.parametrize(("kind", "options"), LOSSLESS)
def test_lossless_pixels_come_through_exactly(kind: str, options: dict) -> None:
    image = decode(bad.save(bad.photo(), kind, **options), name="me.png")
    assert np.array_equal(image.pixels, bad.photo())
    assert image.pixels.flags.c_contiguous
    assert (image.alpha, image.icc_profile, image.name) == (None, None, "me.png")


@pytest.mark.parametrize("kind", ["JPEG", pytest.param("AVIF", marks=needs_avif)])
def test_lossy_pixels_come_through_closely(kind: str) -> None:
    image = decode(bad.save(bad.photo(), kind, quality=95, subsampling="4:4:4"))
    assert np.abs(image.pixels.astype(int) - bad.photo()).mean() < 2


def test_content_decides_not_the_suffix(tmp_path: Path) -> None:
    path = tmp_path / "really.jpg"
    path.write_bytes(bad.save(bad.photo(), "PNG"))
    image = decode(path)
    assert image.name == "really.jpg"
    assert np.array_equal(image.pixels, bad.photo())


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "is empty"),
        (bytes(range(256)), "not a supported image"),
        (b"hello, I am text", "not a supported image"),
        (b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (bad.save(bad.photo(), "TIFF"), "TIFF"),
        (bad.save(bad.photo(), "BMP"), "BMP"),
        (bad.save(bad.photo(), "GIF"), "GIF"),
        (bad.save(bad.photo(), "EPS"), "PostScript"),
        (b"8BPS" + bytes(100), "Photoshop"),
        (b"\0\0\0\x18ftypheic\0\0\0\0heicmif1", "HEIC"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isommp42", "video"),
    ],
)
def test_other_formats_are_refused_by_name(data: bytes, word: str) -> None:
    with pytest.raises(UnsupportedMediaError, match=word) as caught:
        decode(data, role="source", name="me.jpg")
    assert "the SOURCE image me.jpg is not a supported image" in str(caught.value)
    assert "JPEG, PNG, WebP and AVIF" in str(caught.value)


@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.9])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
        pytest.param("AVIF", {}, marks=needs_avif),
    ],
)
def test_truncated_files_are_refused(kind: str, options: dict, part: float) -> None:
    whole = bad.save(np.random.default_rng(0).integers(0, 256, (200, 160, 3), np.uint8), kind, **options)
    with pytest.raises(BadInputError) as caught:
        decode(whole[: max(16, int(len(whole) * part))], role="target", name="group.jpg")
    message = str(caught.value)
    assert message.startswith("the TARGET image group.jpg is ")
    assert "get a whole copy" in message
    if kind != "AVIF" and part > 0.05:
        assert "truncated" in message


def test_png_without_its_end_mark_is_truncated() -> None:
    with pytest.raises(BadInputError, match="truncated"):
        decode(bad.save(bad.photo(), "PNG")[:-12])


@given(position=st.integers(0, 10**9))
@settings(max_examples=200, deadline=None)
def test_no_flipped_bit_of_a_png_changes_a_pixel_unseen(position: int) -> None:
    whole = bad.save(bad.photo(), "PNG")
    try:
        image = decode(bad.flip_bit(whole, position % (8 * len(whole))))
    except BadInputError:
        return
    assert np.array_equal(image.pixels, bad.photo())  # only the end mark's own length and checksum are unread


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_damage_gives_a_picture_or_one_of_our_errors(data: st.DataObject) -> None:
    kinds = ["JPEG", "PNG", "WEBP"] + (["AVIF"] if features.check("avif") else [])
    whole = bytearray(bad.save(bad.photo(), data.draw(st.sampled_from(kinds)), exif=bad.gps_exif()))
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            image = decode(bytes(whole[: cut or None]))
        except LatentSwapError as error:
            assert str(error).startswith("the IMAGE")
        else:
            assert image.pixels.shape[2] == 3
            assert image.pixels.dtype == np.uint8


def test_truncated_files_are_never_loaded_by_a_global_switch() -> None:
    from PIL import ImageFile

    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


# ------------------------------------------------------------------------------------------ size limits


@pytest.mark.parametrize(
    ("width", "height"), [(8000, 6300), (12_000, 12_000), (20_000, 20_000), (2**31 - 1, 2**31 - 1)]
)
def test_header_bombs_are_refused_without_a_warning(width: int, height: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises((TooLargeError, BadInputError), match="50 megapixels"):
            decode(bad.header_bomb(width, height), role="source", name="big.png")


def test_bombs_cost_little_memory() -> None:
    script = (
        "import resource, make_bad_files as bad; from latentswap.media.image import decode\n"
        "from latentswap.errors import TooLargeError\n"
        "decode(bad.save(bad.photo(), 'WEBP')); before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for data in (bad.header_bomb(20_000, 20_000), bad.webp_bomb()):\n"
        "    try: decode(data); raise SystemExit('decoded')\n"
        "    except TooLargeError: pass\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 50  # MiB; either canvas would take over a thousand


def test_text_bomb_is_our_error() -> None:
    with pytest.raises(BadInputError, match=r"me\.png is damaged"):
        decode(bad.ztxt_bomb(), name="me.png")


@pytest.mark.parametrize(("width", "height"), [(1, 1), (MIN_SIDE - 1, 500), (500, MIN_SIDE - 1), (100_000, 1)])
def test_small_pictures_are_refused(width: int, height: int) -> None:
    with pytest.raises(BadInputError, match=f"{width}x{height}; each side must be at least 64"):
        decode(bad.save(np.zeros((height, width, 3), np.uint8), "PNG"))


def test_zero_size_is_refused() -> None:
    with pytest.raises(BadInputError):
        decode(bad.header_bomb(0, 100))


def test_narrow_pictures_are_refused_just_beyond_the_limit() -> None:
    limit = MIN_SIDE * MAX_ASPECT
    assert decode(bad.save(np.zeros((MIN_SIDE, limit, 3), np.uint8), "PNG")).width == limit
    with pytest.raises(BadInputError, match="16:1"):
        decode(bad.save(np.zeros((limit + 1, MIN_SIDE, 3), np.uint8), "PNG"))


# ------------------------------------------------------------------------------------------ orientation

_STORED = {  # how to store an upright picture under each orientation
    1: None,
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_90,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_270,
}


def _exif(orientation: int) -> bytes:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


@given(
    orientation=st.integers(1, 8),
    width=st.integers(64, 90),
    height=st.integers(64, 90),
    seed=st.integers(0, 99),
    form=st.sampled_from(LOSSLESS),
    clear=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_a_turned_picture_decodes_as_the_upright_one(
    orientation: int, width: int, height: int, seed: int, form: tuple[str, dict], clear: bool
) -> None:
    upright = PIL.Image.fromarray(bad.photo(width, height, seed))
    if clear:
        upright.putalpha(PIL.Image.fromarray(bad.photo(width, height, seed + 1)[..., 2]))
    turn = _STORED[orientation]
    stored = upright if turn is None else upright.transpose(turn)
    kind, options = form
    expected = decode(bad.save(upright, kind, **options))
    turned = decode(bad.save(stored, kind, exif=_exif(orientation), **options))
    assert np.array_equal(turned.pixels, expected.pixels)
    assert (turned.alpha is None) == (not clear)
    if clear:
        assert np.array_equal(np.asarray(turned.alpha), np.asarray(expected.alpha))


@pytest.mark.parametrize("kind", ["JPEG", pytest.param("AVIF", marks=needs_avif)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_agrees_with_pillow(kind: str, orientation: int) -> None:
    data = bad.save(bad.photo(), kind, exif=_exif(orientation), quality=95)
    expected = ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data)))
    assert expected.size == ((80, 96) if orientation >= 5 else (96, 80))
    assert np.array_equal(decode(data).pixels, np.asarray(expected))


@pytest.mark.parametrize("exif", [_exif(0), _exif(9), _exif(99), b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff"])
def test_invalid_orientation_is_ignored(exif: bytes) -> None:
    data = bad.save(bad.photo(), "JPEG", exif=exif, quality=95)
    assert np.array_equal(decode(data).pixels, decode(bad.save(bad.photo(), "JPEG", quality=95)).pixels)


# ----------------------------------------------------------------------------------------------- colour


def _patches(kind: str, mode: str, patches: list[tuple[int, ...]], **options: object) -> list[np.ndarray]:
    """Decode a strip of 64x64 patches and give the middle of each."""
    strip = PIL.Image.new(mode, (64 * len(patches), 64))
    for index, patch in enumerate(patches):
        strip.paste(patch[0] if mode == "L" else patch, (64 * index, 0, 64 * index + 64, 64))
    pixels = decode(bad.save(strip, kind, **options)).pixels
    return [pixels[32, 64 * index + 32] for index in range(len(patches))]


# The corners of sRGB in wider spaces, as CSS Color 4 and the spaces' own publications round them.
@pytest.mark.parametrize(
    ("profile", "patches"),
    [
        (bad.rgb_profile(bad.DISPLAY_P3), [(234, 51, 35), (117, 251, 76), (0, 0, 245), (255, 255, 255), (0, 0, 0)]),
        (bad.rgb_profile(bad.ADOBE_RGB, 563 / 256), [(219, 0, 0), (144, 255, 60), (0, 0, 250), (255,) * 3, (0,) * 3]),
    ],
    ids=["Display P3", "Adobe RGB"],
)
@pytest.mark.parametrize(("kind", "options"), [*LOSSLESS, ("JPEG", {"quality": 100, "subsampling": 0})])
def test_wide_colour_becomes_srgb(profile: bytes, patches: list, kind: str, options: dict) -> None:
    seen = _patches(kind, "RGB", patches, icc_profile=profile, **options)
    expected = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)]
    assert np.abs(np.array(seen, int) - expected).max() <= 4


def test_gray_profile_is_honoured() -> None:
    (seen,) = _patches("PNG", "L", [(128,)], icc_profile=bad.gray_profile(1.0))
    # Linear 128/255 encoded by sRGB's curve: 1.055·0.50196^(1/2.4) - 0.055 = 0.7366.
    assert np.abs(seen.astype(int) - 188).max() <= 1


def _lab_to_srgb(lab: tuple[float, float, float]) -> np.ndarray:
    """CIE Lab (D50) → sRGB 0…255, from the definitions (CIE 15; the D50 matrix of the sRGB profile)."""
    fy = (lab[0] + 16) / 116
    f = np.array([fy + lab[1] / 500, fy, fy - lab[2] / 200])
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * [0.9642, 1.0, 0.8249]
    to_xyz = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
    linear = np.linalg.solve(to_xyz, xyz).clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def test_cmyk_goes_through_its_profile() -> None:
    inks = {
        (0, 0, 0, 0): (100.0, 0.0, 0.0),
        (1, 0, 0, 0): (55.0, -10.0, -30.0),
        (0, 1, 0, 0): (50.0, 50.0, 0.0),
        (0, 0, 1, 0): (85.0, -5.0, 60.0),
        (1, 1, 0, 0): (30.0, 20.0, -30.0),
    }
    patches = [tuple(255 * ink for ink in node) for node in inks]
    seen = _patches("JPEG", "CMYK", patches, icc_profile=bad.cmyk_profile(inks), quality=100)
    expected = [_lab_to_srgb(lab) for lab in inks.values()]
    assert np.abs(np.array(seen) - expected).max() <= 3


def test_cmyk_without_a_profile_is_read_as_plain_inks() -> None:
    patches = [(0, 0, 0, 0), (255, 0, 0, 0), (0, 255, 0, 0), (0, 0, 255, 0), (0, 0, 0, 255)]
    seen = _patches("JPEG", "CMYK", patches, quality=100)
    expected = [(255, 255, 255), (0, 255, 255), (255, 0, 255), (255, 255, 0), (0, 0, 0)]
    assert np.abs(np.array(seen, int) - expected).max() <= 3


def test_ycck_is_cmyk() -> None:
    pixels = decode(bad.ycck_jpeg(luma=60, black=40)).pixels
    assert np.abs(pixels.astype(int) - round((255 - 60) * (255 - 40) / 255)).max() <= 3


@pytest.mark.parametrize("profile", [srgb_profile(), bad.rgb_profile(bad.SRGB)], ids=["ours", "another"])
def test_srgb_pixels_with_a_profile_come_through_exactly(profile: bytes) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    image = decode(bad.save(noise, "PNG", icc_profile=profile))
    assert np.array_equal(image.pixels, noise)
    assert image.icc_profile == srgb_profile()


@pytest.mark.parametrize(
    "profile", [b"garbage", bad.gray_profile(2.2), bad.cmyk_profile({}), bad.rgb_profile(bad.DISPLAY_P3)[:300]]
)
def test_unusable_profiles_are_ignored(profile: bytes) -> None:
    assert np.array_equal(decode(bad.save(bad.photo(), "PNG", icc_profile=profile)).pixels, bad.photo())


def test_gray_palette_and_one_bit_become_rgb() -> None:
    upright = PIL.Image.fromarray(bad.photo())
    for mode in ("L", "P", "1"):
        image = decode(bad.save(upright.convert(mode), "PNG"))
        assert np.array_equal(image.pixels, np.asarray(upright.convert(mode).convert("RGB"))), mode
        assert image.alpha is None


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bits_are_scaled_not_clipped(channels: int) -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1).repeat(channels, 2)
    if channels in (2, 4):
        values[..., -1] = 65535
    pixels = decode(bad.png16(values)).pixels.astype(float)
    error = np.abs(pixels - values[..., :1] / 257.0).max()
    assert error <= (0.5 if channels == 1 else 1.0)  # where Pillow keeps the high byte, up to one level


# ---------------------------------------------------------------------------------------------- alpha


def test_transparent_colour_is_hidden_and_alpha_kept() -> None:
    pixels = bad.photo()
    alpha = np.full(pixels.shape[:2], 255, np.uint8)
    alpha[:40] = 0
    alpha[40:50] = 51
    image = decode(bad.save(np.dstack([pixels, alpha]), "PNG"))
    assert np.array_equal(np.asarray(image.alpha), alpha)
    assert (image.pixels[:40] == 128).all()
    assert np.abs(image.pixels[40:50] - (0.2 * pixels[40:50] + 0.8 * 128)).max() <= 0.51
    assert np.array_equal(image.pixels[50:], pixels[50:])


def test_palette_gray_and_key_transparency() -> None:
    upright = PIL.Image.fromarray(bad.photo())
    palette = upright.quantize(16)
    index = np.asarray(palette)
    key = int(index[0, 0])
    image = decode(bad.save(palette, "PNG", transparency=key))
    assert np.array_equal(np.asarray(image.alpha), np.where(index == key, 0, 255))
    assert (image.pixels[index == key] == 128).all()

    grey = np.asarray(upright.convert("L"))
    image = decode(bad.save(np.dstack([grey, 255 - grey]), "PNG"))
    assert np.array_equal(np.asarray(image.alpha), 255 - grey)
    assert (image.pixels[..., 0] == image.pixels[..., 2]).all()

    image = decode(bad.save(upright, "PNG", transparency=tuple(bad.photo()[10, 10])))
    assert np.array_equal(np.asarray(image.alpha) == 0, (bad.photo() == bad.photo()[10, 10]).all(axis=-1))


@pytest.mark.parametrize("channels", [1, 3])
def test_key_of_sixteen_bits_is_transparent(channels: int) -> None:
    values = np.full((64, 64, channels), 40_000, np.uint16)
    values[:32] = 5_000
    chunk = bad.png_chunk(b"tRNS", np.full(channels, 5_000, ">u2").tobytes())
    alpha = np.asarray(decode(bad.png16(values, chunk)).alpha)
    assert (alpha[:32] == 0).all()
    assert (alpha[32:] == 255).all()


def test_opaque_alpha_is_dropped() -> None:
    opaque = np.full((80, 96), 255, np.uint8)
    assert decode(bad.save(np.dstack([bad.photo(), opaque]), "PNG")).alpha is None


# ------------------------------------------------------------------------------------------ animations


@pytest.mark.parametrize("kind", ["PNG", "WEBP", pytest.param("AVIF", marks=needs_avif)])
def test_animations_are_refused_unless_a_frame_is_chosen(kind: str) -> None:
    data, frames = bad.animation(kind)
    with pytest.raises(BadInputError, match=r"TARGET image a\.png is an animation of 3 frames; save the one you mean"):
        decode(data, role="target", name="a.png")
    for index, frame in enumerate(frames):
        error = np.abs(decode(data, frame=index).pixels.astype(int) - frame).mean()
        assert error == 0 if kind != "AVIF" else error < 4
    for index in (-1, 3):
        with pytest.raises(UsageError, match=f"no frame {index}; give 0 to 2"):
            decode(data, frame=index)


def test_a_still_picture_has_frame_zero_alone() -> None:
    data = bad.save(bad.photo(), "PNG")
    assert np.array_equal(decode(data, frame=0).pixels, bad.photo())
    with pytest.raises(UsageError):
        decode(data, frame=1)


def test_a_photo_with_further_views_is_one_photo() -> None:
    first, second = (PIL.Image.fromarray(bad.photo(seed=i)) for i in range(2))
    data = bad.save(first, "MPO", save_all=True, append_images=[second], quality=95)
    assert np.abs(decode(data).pixels.astype(int) - bad.photo()).mean() < 2
