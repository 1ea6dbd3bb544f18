"""The invisible watermark: the code, the signal, and what a picture may go through before it is read."""

import io

import cv2
import numpy as np
import PIL.Image
import pytest
from _face_support import astronaut
from hypothesis import given, settings
from hypothesis import strategies as st

from latentswap.errors import ProvenanceError
from latentswap.provenance import spread
from latentswap.provenance.code import CODE_BITS, check_of, decode_payload, encode_payload, keyed, most_likely
from latentswap.provenance.watermark import (
    Detection,
    detect,
    detect_frames,
    embed,
    embed_frame,
    job_bits,
    payload_for,
    payload_parts,
)

PAYLOAD = 0xA01D5EED
payloads = st.integers(0, (1 << 32) - 1)


@pytest.fixture(scope="module")
def original() -> np.ndarray:
    return astronaut()


@pytest.fixture(scope="module")
def marked(original: np.ndarray) -> np.ndarray:
    return embed(original, PAYLOAD)


def psnr(before: np.ndarray, after: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((before.astype(float) - after) ** 2)))


def stored(pixels: np.ndarray, kind: str, **options: int) -> np.ndarray:
    out = io.BytesIO()
    PIL.Image.fromarray(pixels).save(out, kind, **options)
    return np.asarray(PIL.Image.open(out).convert("RGB"))


def scaled(pixels: np.ndarray, factor: float) -> np.ndarray:
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=how)


# The code


@given(payloads)
@settings(max_examples=50, deadline=None)
def test_a_payload_comes_back_from_its_code(payload: int) -> None:
    assert decode_payload(encode_payload(payload)) == payload


@given(payloads, st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_noise_as_strong_as_the_bits_does_no_harm(payload: int, seed: int) -> None:
    noise = np.random.default_rng(seed).normal(0, 0.7, CODE_BITS)
    assert decode_payload(encode_payload(payload) + noise) == payload


def test_eleven_wrong_bits_are_always_mended() -> None:
    # The free distance of the code is 24, so half of it, less one, can be wrong wherever they lie.
    rng = np.random.default_rng(1)
    for _ in range(50):
        payload = int(rng.integers(1 << 32))
        bits = encode_payload(payload)
        bits[rng.choice(CODE_BITS, 11, replace=False)] *= -1
        assert decode_payload(bits) == payload


def test_noise_alone_is_no_payload_and_its_check_is_random() -> None:
    rng, low = np.random.default_rng(2), 0
    for _ in range(800):
        payload, check = most_likely(rng.normal(size=CODE_BITS))
        assert check != check_of(payload)
        low += (check ^ check_of(payload)) & 0xF == 0
    assert 25 < low < 75  # one in sixteen: 50, with a standard deviation of 7


@pytest.mark.parametrize("soft", [np.zeros(CODE_BITS), np.full(CODE_BITS, np.nan), np.full(CODE_BITS, np.inf)])
def test_values_that_say_nothing_are_no_payload(soft: np.ndarray) -> None:
    assert decode_payload(soft) is None


@pytest.mark.parametrize("payload", [-1, 1 << 32])
def test_a_payload_has_32_bits(payload: int) -> None:
    with pytest.raises(ValueError, match="32 bits"):
        encode_payload(payload)


def test_the_key_is_the_same_everywhere() -> None:
    """Marks written today are read by every later version: these numbers must never change."""
    assert keyed("signs", 2).tolist() == [12244427302917591741, 654171400719879334]
    bits = "".join("1" if bit < 0 else "0" for bit in encode_payload(PAYLOAD))
    assert f"{int(bits, 2):064x}" == "77e187649c6e9813c379b81a8ba9ae5bc8746ea555d0d591ecc9576a7995ff92"
    tile = spread.pattern(encode_payload(PAYLOAD), 1.0)
    assert np.allclose(
        tile[::40, ::40],
        [[0.25, -0.43, -0.02, -0.83], [0.11, 1.06, -0.56, 0.61], [0.74, -1.73, -1.06, 0.2], [1.38, 0.11, 0.44, -0.48]],
        atol=0.006,
    )


# Payloads


def test_payloads_name_tool_version_and_job() -> None:
    payload = payload_for("1.12.3", "job 7")
    parts = payload_parts(payload)
    assert (parts.ours, parts.version, parts.job) == (True, "1.12.3", job_bits("job 7"))
    assert not payload_parts(0x1234).ours
    assert payload_for("0.2.0.dev1", "x") == payload_for("0.2.0", "x") != payload_for("0.2.0", "y")
    assert payload_parts(payload_for("99.99.99", "x")).version == "7.31.15"
    assert payload_parts(payload_for("2", "x")).version == "2.0.0"


# Pictures


def test_the_mark_is_read_and_hardly_seen(original: np.ndarray, marked: np.ndarray) -> None:
    assert detect(marked) == Detection(found=True, payload=PAYLOAD, confidence=1.0)
    assert psnr(original, marked) > 40
    assert marked.shape == original.shape and marked.dtype == np.uint8


def test_the_same_call_gives_the_same_bytes(original: np.ndarray, marked: np.ndarray) -> None:
    assert np.array_equal(embed(original, PAYLOAD), marked)


@pytest.mark.parametrize(
    "change",
    [
        lambda p: stored(p, "JPEG", quality=75),
        lambda p: stored(p, "JPEG", quality=50, subsampling=0),
        lambda p: stored(p, "WEBP", quality=75),
        lambda p: scaled(p, 0.5),
        lambda p: scaled(p, 2),
        lambda p: scaled(p, 1.13),
        lambda p: cv2.resize(p, (401, 399), interpolation=cv2.INTER_AREA),
        lambda p: cv2.merge([cv2.cvtColor(p, cv2.COLOR_RGB2GRAY)] * 3),
        lambda p: cv2.convertScaleAbs(p, alpha=0.7, beta=30),
    ],
    ids=["jpeg75", "jpeg50", "webp", "half", "twice", "larger", "odd", "grey", "paler"],
)
def test_what_pictures_go_through(marked: np.ndarray, change) -> None:
    found = detect(change(marked), search=False)
    assert found.payload == PAYLOAD and not found.cropped


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p[40:, 31:-55],
        lambda p: stored(p[100:400, 120:420], "JPEG", quality=85),
        lambda p: p[:, ::-1],
        lambda p: cv2.copyMakeBorder(p, 30, 70, 110, 20, cv2.BORDER_CONSTANT, value=(255, 255, 255)),
    ],
    ids=["cut", "a part as JPEG", "mirrored", "framed"],
)
def test_crops_are_found_by_search_alone(marked: np.ndarray, change) -> None:
    changed = np.ascontiguousarray(change(marked))
    assert not detect(changed, search=False).found
    found = detect(changed)
    assert found.payload == PAYLOAD and found.cropped and found.confidence > 0.7


@pytest.mark.parametrize("size", [(96, 96), (131, 257), (200, 1600), (1080, 720)], ids=str)
def test_any_size_carries_it(original: np.ndarray, size: tuple[int, int]) -> None:
    pixels = cv2.resize(original, size[::-1], interpolation=cv2.INTER_AREA)
    marked = embed(pixels, PAYLOAD)
    assert detect(marked, search=False).payload == PAYLOAD
    assert psnr(pixels, marked) > 38


@pytest.mark.parametrize("level", [20, 128, 235])
def test_flat_pictures_carry_it_faintly(level: int) -> None:
    flat = np.full((300, 400, 3), level, np.uint8)
    marked = embed(flat, PAYLOAD)
    assert np.abs(marked.astype(int) - level).max() <= 4
    assert detect(stored(marked, "JPEG", quality=75), search=False).payload == PAYLOAD


def test_grey_stays_grey_and_noise_stays_under_the_bound() -> None:
    noise = cv2.merge([np.random.default_rng(0).integers(0, 256, (400, 300)).astype(np.uint8)] * 3)
    marked = embed(noise, PAYLOAD)
    assert np.array_equal(marked[..., 0], marked[..., 1]) and np.array_equal(marked[..., 0], marked[..., 2])
    assert psnr(noise, marked) > 38


def test_what_cannot_carry_it_is_refused(original: np.ndarray) -> None:
    with pytest.raises(ProvenanceError, match="cannot be read back from this picture of 48x40 pixels"):
        embed(cv2.resize(original, (48, 40), interpolation=cv2.INTER_AREA), PAYLOAD)


@pytest.mark.parametrize("level", [0, 255])
def test_black_and_white_carry_half_of_it(level: int) -> None:
    marked = embed(np.full((256, 256, 3), level, np.uint8), PAYLOAD)
    assert detect(marked, search=False).payload == PAYLOAD


def test_unmarked_pictures_show_nothing(original: np.ndarray) -> None:
    rng = np.random.default_rng(3)
    for number in range(60):
        y, x = rng.integers(0, 200, 2)
        crop = original[y : y + 300, x : x + 300]
        pixels = crop if number % 2 else rng.integers(0, 256, (200, 200, 3)).astype(np.uint8)
        assert not detect(np.ascontiguousarray(pixels), search=number < 1).found


def test_soft_bits_of_unmarked_pictures_are_standard_normal(original: np.ndarray) -> None:
    """What the choice of the check's length rests on."""
    values = []
    for y in range(0, 200, 40):
        for x in range(0, 200, 40):
            cells = spread.to_cells(spread.luma(np.ascontiguousarray(original[y : y + 300, x : x + 300])), (256, 256))
            values.append(spread.soft_bits(spread.spectrum(spread.fold(spread.residual(cells)[0]))))
    assert np.std(values) == pytest.approx(1, abs=0.05)
    assert np.mean(values) == pytest.approx(0, abs=0.08)


# The signal


def test_the_pilot_says_where_the_pattern_begins() -> None:
    tile = spread.pattern(encode_payload(PAYLOAD), 1.0)
    fit = spread.pilot_fit(spread.spectrum(np.roll(tile, (17, 100), (0, 1))), parts=2)
    assert np.unravel_index(int(np.argmax(fit)), fit.shape) == (34, 200)
    sizes = spread.soft_bits(spread.spectrum(np.roll(tile, (17, 100), (0, 1))), (17.0, 100.0)) * encode_payload(PAYLOAD)
    assert sizes.min() > 0


def test_a_mirror_is_undone_in_the_spectrum() -> None:
    tile = spread.pattern(encode_payload(PAYLOAD), 1.0)
    straight, back = spread.spectrum(tile), spread.mirrored(spread.spectrum(tile[:, ::-1]))
    assert np.allclose(np.abs(straight), np.abs(back))
    assert spread.pilot_fit(back).max() == pytest.approx(spread.pilot_fit(straight).max(), rel=1e-3)


def test_folding_adds_up_tiles() -> None:
    plane = np.random.default_rng(0).normal(size=(300, 140)).astype(np.float32)
    folded = spread.fold(plane)
    assert folded[3, 5] == pytest.approx(plane[3::128, 5::128].sum(), rel=1e-5)


# Frames


def test_frames_are_read_by_what_they_show_together(original: np.ndarray) -> None:
    """Each of these frames is too noisy by itself."""
    rng = np.random.default_rng(5)
    frames = []
    for number in range(16):
        frame = embed_frame(np.roll(original[:256, :256], 3 * number, 1), PAYLOAD, strength=0.3)
        frames.append(np.clip(frame + rng.normal(0, 30, frame.shape), 0, 255).astype(np.uint8))
    assert not any(detect(frame, search=False).found for frame in frames)
    assert detect_frames(iter(frames), search=False).payload == PAYLOAD


def test_reading_stops_when_it_is_sure(marked: np.ndarray) -> None:
    asked = []

    def frames():
        for number in range(100):
            asked.append(number)
            yield marked

    assert detect_frames(frames()).found and asked == [0]


def test_no_frames_show_nothing() -> None:
    assert detect_frames([]) == Detection(found=False, payload=None, confidence=0.0)


def test_a_cropped_video_is_found(original: np.ndarray) -> None:
    frames = [embed_frame(np.roll(original, 4 * n, 1), PAYLOAD)[60:, 50:] for n in range(3)]
    found = detect_frames([np.ascontiguousarray(frame) for frame in frames])
    assert found.payload == PAYLOAD and found.cropped
