"""The invisible watermark: 32 bits in the pixels themselves, for programs that strip metadata.

`embed` writes it and reads it back at once; `detect` is the free detector, which needs no key but the public one. What
it survives and what not is measured in docs/watermark.md. It is a statement, not a proof: who knows how it works can
take it out, or write it into another picture.

The signal is that of `spread`, the code that of `code`. Nothing here needs a network or a model.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np

from latentswap.errors import ProvenanceError
from latentswap.provenance import spread
from latentswap.provenance.code import decode_payload, encode_payload

TOOL = 0xA  # the first four bits of every payload
STRENGTH = 1.0
MIN_PSNR = 38.5  # dB: what is written never lies further from the picture

_FLOOR = 0.64  # levels, where nothing hides the pattern
_SHARE = 0.2  # of the busyness of a place, where something does
_TOP = 3.2  # levels
_CALM_SIDE, _CALM_BLUR = 5, 2.0  # cells: a place is as busy as its calmest surroundings, so edges do not count
_EVEN, _LEAST, _MOST = 0.9, 0.5, 1.8  # how far the code bits are brought to one size
_ENOUGH = 1.2  # mean size of the code bits that a written picture should show
_LADDER = (1.0, 1.5, 2.2, 3.3)  # of the strength, until a picture shows it

_SCALES = np.exp(np.arange(np.log(0.3), np.log(1.6), 0.008))  # shorter side of a crop, in those of the whole
_FINER = (0.996, 0.998, 1.0, 1.002, 1.004)
_CANDIDATES = 4  # crops that are decoded
_SEARCHED_SIDE = 512  # pixels of the shorter side, at most, in which crops are searched
_SEARCHED_FRAMES, _SEARCHED_EVERY = 12, 8
_LOOKS = (1, 4, 16, 64, 256)  # frames after which a video's mark is tried, and then at its end


@dataclass(frozen=True, kw_only=True)
class Detection:
    """What `detect` found.

    `confidence` is the share of the 256 code bits that were read as they were written: 1 when nothing disturbed them;
    at about 0.72 reading ends. It is 0 where nothing is found. The check on the payload is what rules out a finding by
    chance: see docs/watermark.md.
    """

    found: bool
    payload: int | None
    confidence: float
    cropped: bool = False  # found only after a search: the picture was cut, framed or mirrored


_NOTHING = Detection(found=False, payload=None, confidence=0.0)


def payload_for(version: str, job: str) -> int:
    """32 bits: the tool (4), its version (major 3, minor 5, patch 4) and the start of the SHA-256 of the job (16).

    Version numbers beyond their bits are written as the highest; what follows the numbers ("0.2.0.dev1") is left out.
    """
    numbers = [int(n) for n in re.findall(r"\d+", version)[:3]]
    major, minor, patch = [*numbers, 0, 0, 0][:3]
    job_bits = int.from_bytes(hashlib.sha256(job.encode()).digest()[:2], "big")
    return TOOL << 28 | min(major, 7) << 25 | min(minor, 31) << 20 | min(patch, 15) << 16 | job_bits


@dataclass(frozen=True, kw_only=True)
class PayloadParts:
    """What a payload says. `ours`: it bears this tool's number."""

    ours: bool
    version: str
    job: int  # 16 bits


def payload_parts(payload: int) -> PayloadParts:
    """The parts of a payload that `payload_for` made."""
    version = f"{payload >> 25 & 7}.{payload >> 20 & 31}.{payload >> 16 & 15}"
    return PayloadParts(ours=payload >> 28 == TOOL, version=version, job=payload & 0xFFFF)


def job_bits(job: str) -> int:
    """The 16 bits of a job's name, to compare with `PayloadParts.job`."""
    return payload_for("0", job) & 0xFFFF


def embed(pixels: np.ndarray, payload: int, *, strength: float = STRENGTH) -> np.ndarray:
    """The picture with the payload in it, read back before it is returned.

    Args:
        pixels: uint8 [H, W, 3], RGB. Grey stays grey: all three channels change alike.
        payload: 0 … 2³² − 1.
        strength: 1 is about 44 dB on portraits. Raised where the payload would not be read surely, but never below
            a peak signal-to-noise ratio of 38.5 dB.

    Returns uint8 [H, W, 3]. Raises ValueError for a payload that is not 32 bits, and ProvenanceError for a picture that
    cannot carry it: smaller than about 80 pixels, or nearly all of it black or white.
    """
    bits = encode_payload(payload)
    best, most = None, 0.0
    for factor in _LADDER:
        marked = _write(pixels, bits, strength * factor)
        values = _soft_bits(marked)
        size = float(np.mean(values * bits))
        if size > most and decode_payload(values) == payload:
            best, most = marked, size
        if most >= _ENOUGH:
            break
    if best is None:
        height, width = pixels.shape[:2]
        raise ProvenanceError(
            f"the invisible watermark cannot be read back from this picture of {width}x{height} pixels: it is too "
            "small, or nearly all black or white; use a larger picture, or turn the watermark off"
        )
    return best


def embed_frame(pixels: np.ndarray, payload: int, *, strength: float = STRENGTH) -> np.ndarray:
    """As `embed`, for a frame of a video: not read back, because a black frame need not carry it when others do."""
    return _write(pixels, encode_payload(payload), strength)


def detect(pixels: np.ndarray, *, search: bool = True) -> Detection:
    """Look for the watermark in uint8 [H, W, 3], RGB.

    search: where the picture as a whole does not show it, look for crops of a third or more of a marked picture's
    sides, for frames around one, and for mirrored ones; takes about a second.
    """
    return detect_frames([pixels], search=search)


def detect_frames(frames: Iterable[np.ndarray], *, search: bool = True) -> Detection:
    """Look for the watermark in a video's frames, uint8 [H, W, 3], by the sum of what they all show.

    Reads no more frames than it takes to be sure. `search` as in `detect`.
    """
    folded = np.zeros((spread.TILE, spread.TILE), np.float32)
    kept: list[np.ndarray] = []
    number = 0
    for number, pixels in enumerate(frames, 1):
        plane = spread.luma(pixels)
        folded += _folded(plane, spread.grid_shape(*plane.shape))
        if number % _SEARCHED_EVERY == 1 and len(kept) < _SEARCHED_FRAMES:
            kept.append(_reduced(plane))
        if number in _LOOKS and (found := _decode(spread.soft_bits(spread.spectrum(folded)))).found:
            return found
    if number not in (0, *_LOOKS) and (found := _decode(spread.soft_bits(spread.spectrum(folded)))).found:
        return found
    return _search(kept) if search and kept else _NOTHING


def _write(pixels: np.ndarray, bits: np.ndarray, strength: float) -> np.ndarray:
    height, width = pixels.shape[:2]
    shape = spread.grid_shape(height, width)
    cells = spread.to_cells(spread.luma(pixels), shape)
    amount = _amount(spread.residual(cells)[1]) * strength
    # The picture itself is noise to every code bit: those that it speaks against are written more strongly, those that
    # it happens to speak for more weakly.
    first = spread.repeated(spread.pattern(bits, 1.0), shape) * amount
    sizes = spread.soft_bits(spread.spectrum(spread.fold(spread.residual(cells + first)[0]))) * bits
    mean = max(float(sizes.mean()), 0.1)
    even = bits * np.clip(1 + _EVEN * (mean - sizes) / mean, _LEAST, _MOST)
    change = spread.repeated(spread.pattern(even, 1.0), shape) * amount
    allowed = 255 * 10 ** (-MIN_PSNR / 20)
    change *= min(1.0, allowed / max(float(np.sqrt(np.mean(change * change))), 1e-9))
    lifted = cv2.convertScaleAbs(cv2.resize(change, (width, height), interpolation=cv2.INTER_CUBIC), beta=128)
    return cv2.addWeighted(pixels, 1.0, cv2.merge([lifted] * 3), 1.0, -128.0)


def _amount(busy: np.ndarray) -> np.ndarray:
    """How many levels of pattern hide at each cell, from the busyness around it."""
    calm = cv2.GaussianBlur(cv2.erode(busy, np.ones((_CALM_SIDE, _CALM_SIDE), np.uint8)), (0, 0), _CALM_BLUR)
    return np.clip(_FLOOR + _SHARE * calm, _FLOOR, _TOP)


def _folded(plane: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return spread.fold(spread.residual(spread.to_cells(plane, shape))[0])


def _soft_bits(pixels: np.ndarray) -> np.ndarray:
    plane = spread.luma(pixels)
    return spread.soft_bits(spread.spectrum(_folded(plane, spread.grid_shape(*plane.shape))))


def _decode(values: np.ndarray, *, cropped: bool = False) -> Detection:
    if (payload := decode_payload(values)) is None:
        return _NOTHING
    agree = float(np.mean(values * encode_payload(payload) > 0))
    return Detection(found=True, payload=payload, confidence=agree, cropped=cropped)


def _reduced(plane: np.ndarray) -> np.ndarray:
    rows, columns = spread.grid_shape(*plane.shape, cells=_SEARCHED_SIDE)
    return plane if rows >= plane.shape[0] else cv2.resize(plane, (columns, rows), interpolation=cv2.INTER_AREA)


def _search(planes: list[np.ndarray]) -> Detection:
    """The pilot's best places over scales, shifts and mirroring, looked at more finely and decoded."""
    places = []
    for scale in _SCALES:
        both = _spectra(planes, scale)
        places += [(spread.pilot_fit(values).max(), scale, side) for side, values in enumerate(both)]
    places.sort(reverse=True)
    for _, scale, side in places[:_CANDIDATES]:
        near = [_spectra(planes, scale * finer)[side] for finer in _FINER]
        _, shift, values = max(((*_place(values), values) for values in near), key=lambda place: place[0])
        if (found := _decode(spread.soft_bits(values, shift), cropped=True)).found:
            return found
    return _NOTHING


def _spectra(planes: list[np.ndarray], scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients [K] of the planes, as they are and mirrored, their shorter side taken for `scale` of the whole's."""
    shape = spread.grid_shape(*planes[0].shape, cells=spread.CELLS * scale)
    values = spread.spectrum(np.sum([_folded(plane, shape) for plane in planes], 0))
    return values, spread.mirrored(values)


def _place(values: np.ndarray) -> tuple[float, tuple[float, float]]:
    """(fit, shift in cells) of the pilot's best place."""
    fit = spread.pilot_fit(values, parts=2)
    row, column = np.unravel_index(int(np.argmax(fit)), fit.shape)
    return float(fit[row, column]), (int(row) / 2, int(column) / 2)
