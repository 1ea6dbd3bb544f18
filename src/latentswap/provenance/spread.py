"""The signal of the watermark: a pattern of 128 × 128 cells, repeated over the picture, and how it is read back.

Every picture is looked at in cells: it is resized until its shorter side is 256 cells, so the mark does not know how
many pixels it was written in. The pattern is noise of 18 to 92 cycles a shorter side. Each of its Fourier coefficients
belongs, by a public key, to one code bit or to the pilot, which says where the pattern begins in a cropped picture.

    picture → luma in cells → residual: what is fine, over how busy the place is, bounded → fold → Fourier → soft bits

Spread spectrum as in Cox, Kilian, Leighton and Shamoon, "Secure spread spectrum watermarking for multimedia" (IEEE
Trans. Image Processing, 1997). Shapes: R × C cells of a picture; T = 128; K Fourier coefficients, 2K real numbers.
"""

import functools
from dataclasses import dataclass

import cv2
import numpy as np

from latentswap.provenance.code import CODE_BITS, keyed

CELLS = 256  # shorter side of a picture
TILE = 128
_LOW, _HIGH = 9, 46  # cycles a tile
_RING = 3  # cycles: width of the rings whose power is made equal
_FINE = 1.5  # cells: standard deviation of the blur that the residual leaves out
_AROUND = 7  # cells: side of the square in which busyness is measured
_CALM = 1.0  # levels: added to the busyness, so that the noise of calm places is not blown up
_BOUND = 2.0  # of the residual
_PILOT = 0.22  # share of the coefficients


def grid_shape(height: int, width: int, *, cells: float = CELLS) -> tuple[int, int]:
    """Rows and columns of the cells of a picture of that many pixels."""
    scale = cells / min(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def luma(pixels: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] RGB → uint8 [H, W], ITU-R BT.601, full range."""
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)


def to_cells(plane: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A plane [H, W], uint8 or float32, as float32 cells [R, C], pixel centres kept in place."""
    rows, columns = shape
    if rows <= plane.shape[0] and columns <= plane.shape[1]:
        return cv2.resize(plane, (columns, rows), interpolation=cv2.INTER_AREA).astype(np.float32)
    return cv2.resize(plane.astype(np.float32), (columns, rows), interpolation=cv2.INTER_CUBIC)


def residual(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is fine at a cell over how busy its surroundings are, within ±2; that busyness, in levels. float32 [R, C].

    Fine is what a Gaussian blur of 1.5 cells leaves out; busyness its root mean square in 7 × 7 cells.
    """
    fine = cells - cv2.GaussianBlur(cells, (0, 0), _FINE)
    busy = np.sqrt(np.maximum(cv2.boxFilter(fine * fine, -1, (_AROUND, _AROUND)), 0))
    return np.clip(fine / (busy + _CALM), -_BOUND, _BOUND), busy


def fold(plane: np.ndarray) -> np.ndarray:
    """The sum of all tiles of a plane [R, C], float32 [T, T]."""
    rows, columns = plane.shape
    padded = np.zeros((-(-rows // TILE) * TILE, -(-columns // TILE) * TILE), np.float32)
    padded[:rows, :columns] = plane
    return padded.reshape(padded.shape[0] // TILE, TILE, -1, TILE).sum((0, 2))


def repeated(tile: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A tile [T, T] repeated over a plane [R, C]."""
    rows, columns = shape
    return np.tile(tile, (-(-rows // TILE), -(-columns // TILE)))[:rows, :columns]


def spectrum(tile: np.ndarray) -> np.ndarray:
    """The pattern's Fourier coefficients in a folded residual, complex [K], every ring of frequencies at unit power.

    All zero where the tile is.
    """
    layout = _layout()
    values = np.fft.rfft2(tile).reshape(-1)[layout.at]
    power = np.bincount(layout.ring, np.abs(values) ** 2) / np.bincount(layout.ring)
    return values / np.sqrt(np.maximum(power, 1e-9))[layout.ring]


def mirrored(values: np.ndarray) -> np.ndarray:
    """The coefficients [K] of the tile seen in a mirror, left and right exchanged, but for its place."""
    return values[_layout().opposite].conj()


def soft_bits(values: np.ndarray, shift: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    """The code bits [256] in coefficients [K]: their sign, and how sure it is.

    For a picture without the mark they are close to independent normal values of variance one: sums of 19 numbers of
    variance one half with signs from the key, scaled. shift: rows and columns of cells, into the plane, at which the
    pattern begins.
    """
    layout = _layout()
    if shift != (0.0, 0.0):
        turns = (layout.row * shift[0] + layout.column * shift[1]) / TILE
        values = values * np.exp(2j * np.pi * turns)
    numbers = np.concatenate([np.real(values), np.imag(values)]) * layout.signs
    sums = np.bincount(layout.owner, numbers, CODE_BITS + 1)
    return sums[:CODE_BITS] / np.sqrt(layout.per_bit / 2)


def pilot_fit(values: np.ndarray, *, parts: int = 1) -> np.ndarray:
    """How well the pilot fits coefficients [K] at each shift, in cells or `parts` of cells, [parts · T, parts · T].

    For a picture without the mark: normal values of variance one, not independent.
    """
    layout, side = _layout(), parts * TILE
    half = np.zeros((side, side // 2 + 1), complex)
    half[layout.row % side, layout.column] = values * layout.pilot.conj()
    return np.fft.irfft2(half, (side, side)) * (side * side / 2 / np.sqrt(layout.pilots / 2))


def pattern(bits: np.ndarray, pilot: float) -> np.ndarray:
    """The tile, float32 [T, T], of code bits [256] and the pilot, each as strong as its size says; of unit power when
    all of them are ±1."""
    layout = _layout()
    numbers = layout.signs * np.append(bits, pilot)[layout.owner]
    count = len(layout.at)
    half = np.zeros(TILE * (TILE // 2 + 1), complex)
    half[layout.at] = numbers[:count] + 1j * numbers[count:]
    tile = np.fft.irfft2(half.reshape(TILE, -1), (TILE, TILE))
    return (tile * (TILE * TILE / np.sqrt(4 * count))).astype(np.float32)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Layout:
    """Which Fourier coefficient says what."""

    at: np.ndarray  # [K] index into a flat rfft2 of a tile
    row: np.ndarray  # [K] cycles a tile, −46 … 46
    column: np.ndarray  # [K] 1 … 46
    opposite: np.ndarray  # [K] which coefficient has the row's other sign
    ring: np.ndarray  # [K]
    owner: np.ndarray  # [2K] code bit, or CODE_BITS for the pilot, of the real and then of the imaginary parts
    signs: np.ndarray  # [2K] ±1
    pilot: np.ndarray  # complex [K]: the pilot's signs
    per_bit: int  # numbers of a code bit
    pilots: int  # numbers of the pilot


@functools.cache
def _layout() -> _Layout:
    ky, kx = np.meshgrid(np.fft.fftfreq(TILE, 1 / TILE), np.arange(TILE // 2 + 1), indexing="ij")
    radius = np.hypot(ky, kx).reshape(-1)
    at = np.flatnonzero((radius >= _LOW) & (radius <= _HIGH) & (kx.reshape(-1) > 0))
    count = 2 * len(at)
    per_bit = int(count * (1 - _PILOT)) // CODE_BITS
    order = np.argsort(keyed("owners", count), kind="stable")
    owner = np.full(count, CODE_BITS)
    owner[order[: per_bit * CODE_BITS]] = np.arange(per_bit * CODE_BITS) % CODE_BITS
    signs = 1.0 - 2 * (keyed("signs", count) & np.uint64(1)).astype(float)
    rows, columns = ky.reshape(-1)[at].astype(int), kx.reshape(-1)[at]
    found = {place: index for index, place in enumerate(zip(rows, columns, strict=True))}
    mark = signs * (owner == CODE_BITS)
    return _Layout(
        at=at,
        row=rows,
        column=columns,
        opposite=np.array([found[-row, column] for row, column in zip(rows, columns, strict=True)]),
        ring=((radius[at] - _LOW) // _RING).astype(int),
        owner=owner,
        signs=signs,
        pilot=mark[: len(at)] + 1j * mark[len(at) :],
        per_bit=per_bit,
        pilots=count - per_bit * CODE_BITS,
    )
