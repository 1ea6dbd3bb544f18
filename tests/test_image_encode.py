"""What `media.image.encode` writes, what it leaves out, and which outputs are refused."""

import io
import time
from pathlib import Path

import make_bad_files as bad
import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentswap.errors import UsageError
from latentswap.media.image import as_image, check_output_path, decode, encode, srgb_profile
from latentswap.types import Image

SUFFIXES = [".png", ".jpg", ".jpeg", ".webp"]


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".PNG", ".JPG"])
def test_round_trip(suffix: str) -> None:
    data = encode(as_image(bad.photo()), suffix)
    assert data == encode(as_image(bad.photo()), suffix)
    error = np.abs(decode(data).pixels.astype(int) - bad.photo())
    assert error.max() == 0 if suffix.lower() == ".png" else error.mean() < 2


def test_the_largest_jpeg_for_its_pixels() -> None:
    noise = as_image(np.random.default_rng(0).integers(0, 256, (2000, 2000, 3), np.uint8))
    assert len(encode(noise, ".jpg", quality=100)) > 2 * 2000 * 2000  # where Pillow's one-pass buffer overflows


def test_quality_trades_size_for_error() -> None:
    noise = as_image(np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8))
    for suffix in (".jpg", ".webp"):
        sizes = [len(encode(noise, suffix, quality=quality)) for quality in (30, 60, 95)]
        assert sizes == sorted(sizes)
    for quality in (0, 101):
        with pytest.raises(UsageError, match=f"quality {quality}"):
            encode(noise, ".jpg", quality=quality)


@pytest.mark.parametrize("suffix", [".png", ".webp"])
@given(seed=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_alpha_is_carried_through(suffix: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (64, 64, 3), np.uint8)
    alpha = rng.choice([0, 1, 30, 128, 254, 255], (64, 64)).astype(np.uint8)
    out = encode(decode(bad.save(np.dstack([pixels, alpha]), "PNG")), suffix, quality=100)
    with PIL.Image.open(io.BytesIO(out)) as image:
        rgba = np.asarray(image.convert("RGBA")).astype(float)
    assert np.array_equal(rgba[..., 3], alpha)
    assert not (rgba[alpha == 0, :3] == pixels[alpha == 0]).all(axis=-1).mean() > 0.1  # hidden colour is gone
    if suffix == ".png":
        a = alpha[..., None] / 255
        for background in (0, 255):
            before = a * pixels + (1 - a) * background
            after = a * rgba[..., :3] + (1 - a) * background
            assert np.abs(before - after).max() <= 1.01


def test_what_was_painted_under_full_transparency_is_not_written() -> None:
    alpha = np.zeros((80, 96), np.uint8)
    alpha[:40] = 255
    with PIL.Image.open(io.BytesIO(encode(Image(pixels=bad.photo(), alpha=alpha), ".png"))) as image:
        rgba = np.asarray(image)
    assert np.array_equal(rgba[:40, :, :3], bad.photo()[:40])
    assert (rgba[40:] == (128, 128, 128, 0)).all()


def test_jpeg_shows_the_grey_under_alpha() -> None:
    alpha = np.zeros((80, 96), np.uint8)
    alpha[:, 48:] = 255
    out = decode(encode(decode(bad.save(np.dstack([bad.photo(), alpha]), "PNG")), ".jpg"))
    assert out.alpha is None
    assert np.abs(out.pixels[:, :40].astype(int) - 128).max() <= 2


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_nothing_of_the_input_but_pixels_reaches_the_output(suffix: str) -> None:
    options = {"exif": bad.gps_exif(), "xmp": b"<x>SECRET-XMP</x>", "icc_profile": bad.rgb_profile(bad.DISPLAY_P3)}
    inputs = [
        bad.with_zip(bad.save(bad.photo(), "JPEG", comment=b"SECRET-COMMENT", **options), b"SECRET-MEMBER"),
        bad.with_zip(bad.save(bad.photo(), "WEBP", **options), b"SECRET-MEMBER"),
        bad.with_zip(bad.text_png(bad.photo()), b"SECRET-MEMBER"),
    ]
    for data in inputs:
        assert b"SECRET-MEMBER" in data
        out = encode(decode(data), suffix)
        assert b"SECRET" not in out
        assert b"PK\3\4" not in out
        with PIL.Image.open(io.BytesIO(out)) as image:
            image.load()
            assert not dict(image.getexif())
            assert not {"exif", "xmp", "comment", "Author"} & set(image.info)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_output_says_srgb_where_the_input_had_a_profile(suffix: str) -> None:
    tagged = decode(bad.save(bad.photo(), "PNG", icc_profile=bad.rgb_profile(bad.DISPLAY_P3)))
    with PIL.Image.open(io.BytesIO(encode(tagged, suffix))) as image:
        assert image.info["icc_profile"] == srgb_profile()
    with PIL.Image.open(io.BytesIO(encode(as_image(bad.photo()), suffix))) as image:
        assert "icc_profile" not in image.info


def test_the_profile_does_not_depend_on_the_clock() -> None:
    first = srgb_profile()
    srgb_profile.cache_clear()
    time.sleep(1.1)  # the date in a profile counts seconds
    assert srgb_profile() == first


@pytest.mark.parametrize("suffix", ["", ".gif", ".tiff", ".mp4", ".jpgg", "png"])
def test_unknown_suffixes_are_refused(suffix: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"use \.png, \.jpg, \.jpeg, \.webp"):
        encode(as_image(bad.photo()), suffix)
    with pytest.raises(UsageError, match="OUTPUT suffix"):
        check_output_path(tmp_path / f"out{suffix}")


@pytest.mark.parametrize(("suffix", "side"), [(".webp", 16_384), (".jpg", 65_501)])
def test_sides_that_the_format_cannot_hold(suffix: str, side: int) -> None:
    image = Image(pixels=np.zeros((1, side, 3), np.uint8))
    with pytest.raises(UsageError, match=f"not {side}; write a .png"):
        encode(image, suffix)


def test_output_paths(tmp_path: Path) -> None:
    existing = tmp_path / "me.jpg"
    existing.write_bytes(b"old")
    check_output_path(existing)
    check_output_path(str(tmp_path / "new.PNG"))
    (tmp_path / "folder.png").mkdir()
    cases = {
        tmp_path / "missing" / "out.png": "does not exist; create it first",
        existing / "out.png": "is a file",
        existing / "below" / "out.png": "below a file",
        tmp_path / "folder.png": "is a folder",
        tmp_path / ("x" * 300 + ".png"): "cannot be used",
        tmp_path / "nul\0" / "out.png": "cannot be used",
    }
    for path, word in cases.items():
        with pytest.raises(UsageError, match=word):
            check_output_path(path)
    assert existing.read_bytes() == b"old"
