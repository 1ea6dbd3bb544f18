"""A photograph's noise: how strong it is in its flat places, how it hangs together, and more of the same.

Noise is described by the 3×3 covariance of its channels in three bands of fineness, differences of Gaussians at the
photo's own pixel scale. That holds its strength, its colour and its coarseness (film, or a camera's smoothing).
"""

from functools import lru_cache
from itertools import pairwise

import cv2
import numpy as np

SIGMAS = (0.6, 1.2, 2.4)  # photo pixels: the bands lie between 0, these three
BLOCK, BORDER = 16, 8  # pixels: side of a flat place, and what the filters need around it
MOST_BLOCKS, FEWEST_BLOCKS = 96, 6
USABLE_BLOCKS = 100  # in a face of fewer (under about 200 pixels) features would pass for noise
FLAT = 0.3  # of the blocks, the least structured ones are looked at
STILL = 0.5  # of these, the calmest count: a mole, a hair or pores in a flat place are no noise
CALM_BIAS = 1.07  # what leaving out the others takes from a variance of mere noise
TILE = 256  # side of the synthesised field, repeated
LEAST = 0.35  # levels: weaker noise is not worth adding
DOUBT = 0.5  # levels: noise of this strength may as well be the texture of smooth skin, and half of it is added
MOST = 16.0  # levels: nothing stronger is taken for noise


def noise_covariance(pixels: np.ndarray, weight_HW: np.ndarray) -> np.ndarray | None:
    """Covariance of the channels in each band, float64 [3, 3, 3] (levels², finest first); None if too little is flat.

    pixels: [H, W, 3] of levels 0 to 255. weight_HW: float [H, W]; only blocks where it is nearly 1 are looked at.
    Texture is kept out by looking at the flattest blocks, chosen by structure coarser than the bands, alone.
    """
    patches = _flat_patches(pixels, weight_HW)
    if patches is None:
        return None
    count = len(patches)
    bands = _bands(patches.reshape(-1, BLOCK + 2 * BORDER, 3))
    inner = slice(BORDER, BORDER + BLOCK)
    covariances = []
    for band in bands:
        values = band.reshape(patches.shape)[:, inner, inner].reshape(count, -1, 3)
        covariances.append(values.transpose(0, 2, 1) @ values / values.shape[1])
    each_NB33 = np.stack(covariances, axis=1).astype(np.float64)
    strength = np.trace(each_NB33[:, :2].sum(axis=1), axis1=1, axis2=2)
    calm = np.argsort(strength, kind="stable")[: max(int(STILL * count), FEWEST_BLOCKS)]
    return CALM_BIAS * each_NB33[calm].mean(axis=0)


def fine_noise(grey_HW: np.ndarray, weight_HW: np.ndarray, blur: float) -> float:
    """Standard deviation of a picture less its Gaussian blur in flat places, in its levels; 0 if too little is flat."""
    patches = _flat_patches(grey_HW[..., None], weight_HW)
    if patches is None:
        return 0.0
    stacked = patches.reshape(-1, BLOCK + 2 * BORDER)
    residual = (stacked - cv2.GaussianBlur(stacked, (0, 0), blur)).reshape(patches.shape[:3])
    inner = slice(BORDER, BORDER + BLOCK)
    strength = np.sort(np.square(residual[:, inner, inner]).mean(axis=(1, 2)))
    return float(np.sqrt(CALM_BIAS * strength[: max(int(STILL * len(strength)), FEWEST_BLOCKS)].mean()))


def added_noise(face: np.ndarray, noise_B33: np.ndarray, weight_HW: np.ndarray, *, seed: int) -> np.ndarray | None:
    """The noise that the photo has and the face lacks, float32 [H, W, 3] in levels; None where it is nothing.

    face: [H, W, 3] of levels 0 to 255, as it will stand in the photo. noise_B33: `noise_covariance` of the photo, of
    which the face gets what it lacks and never more: of faint noise, which may be pores, less.
    """
    here = noise_covariance(face, weight_HW)
    if here is None:
        return None
    strength = np.trace(noise_B33.sum(axis=0)) / 3
    if strength > MOST**2:
        return None
    missing = _spread_over_bands(noise_B33 - here) * (strength / (strength + DOUBT**2))
    if np.sqrt(np.trace(missing.sum(axis=0)) / 3) < 2 * LEAST:  # of white parts; what the filters leave is about half
        return None
    tile = noise_tile(missing, seed=seed)
    height, width = weight_HW.shape
    repeats = (-(-height // TILE), -(-width // TILE), 1)
    return np.tile(tile, repeats)[:height, :width]


def noise_tile(parts_B33: np.ndarray, *, seed: int) -> np.ndarray:
    """A field without seams, float32 [TILE, TILE, 3], of white noise of these covariances, filtered by band."""
    white = np.random.default_rng(seed).standard_normal((TILE, TILE, 3), np.float32)
    margin = 2 * BORDER
    padded = np.pad(white, ((margin, margin), (margin, margin), (0, 0)), mode="wrap")
    inner = slice(margin, margin + TILE)
    field = np.zeros((TILE, TILE, 3), np.float32)
    for index, (band, part) in enumerate(zip(_bands(padded), parts_B33, strict=True)):
        values, vectors = np.linalg.eigh(part)
        mixed = band[inner, inner] @ (vectors * np.sqrt(np.maximum(values, 0))).T.astype(np.float32)
        field += np.roll(mixed, (97 * index, 61 * index), axis=(0, 1))  # far apart, so that the bands are unrelated
    return field


def _flat_patches(pixels: np.ndarray, weight_HW: np.ndarray) -> np.ndarray | None:
    """The flattest blocks with their borders, float32 [N, 32, 32, C]; None when they are too few."""
    height, width = (side // BLOCK for side in weight_HW.shape)
    if height < 3 or width < 3:
        return None
    whole = pixels[: height * BLOCK, : width * BLOCK]
    weight = cv2.resize(
        weight_HW[: height * BLOCK, : width * BLOCK].astype(np.float32), (width, height), interpolation=cv2.INTER_AREA
    )
    side = BLOCK // 4
    grey = whole[..., whole.shape[2] // 2]  # green, of three
    grey = cv2.resize(grey, (width * side, height * side), interpolation=cv2.INTER_AREA).astype(np.float32)
    slope = np.abs(cv2.Sobel(grey, cv2.CV_32F, 1, 0)) + np.abs(cv2.Sobel(grey, cv2.CV_32F, 0, 1))
    structure, level = (cv2.resize(x, (width, height), interpolation=cv2.INTER_AREA) for x in (slope, grey))
    usable = (weight > 0.97) & (level < 235) & (level > 12)
    usable[[0, -1]] = usable[:, [0, -1]] = False  # the border lies outside
    rows, columns = np.nonzero(usable)
    if rows.size < USABLE_BLOCKS:
        return None
    count = min(max(int(FLAT * rows.size), FEWEST_BLOCKS), MOST_BLOCKS)
    chosen = np.argsort(structure[rows, columns], kind="stable")[: max(int(FLAT * rows.size), FEWEST_BLOCKS)]
    chosen = chosen[np.linspace(0, chosen.size - 1, count).astype(int)]
    places = [(r * BLOCK - BORDER, c * BLOCK - BORDER) for r, c in zip(rows[chosen], columns[chosen], strict=True)]
    full = BLOCK + 2 * BORDER
    return np.stack([whole[r : r + full, c : c + full] for r, c in places]).astype(np.float32)


def _bands(pixels_HWC: np.ndarray) -> list[np.ndarray]:
    """Differences of Gaussians, finest first."""
    smooth = [pixels_HWC, *(cv2.GaussianBlur(pixels_HWC, (0, 0), s, borderType=cv2.BORDER_REFLECT) for s in SIGMAS)]
    return [fine - coarse for fine, coarse in pairwise(smooth)]


def _power(response_HW: np.ndarray) -> np.ndarray:
    return np.square(np.abs(np.fft.fft2(response_HW)))


@lru_cache(maxsize=1)
def _overlap() -> np.ndarray:
    """[3, 3]: what band i measures of white noise of variance 1 filtered by band j."""
    impulse = np.zeros((64, 64), np.float32)
    impulse[32, 32] = 1
    powers = [_power(band) for band in _bands(impulse)]
    return np.array([[(a * b).mean() for b in powers] for a in powers])


def _spread_over_bands(measured_B33: np.ndarray) -> np.ndarray:
    """Covariances of white parts that, filtered and summed, measure as this; what would be negative is left out."""
    parts = np.linalg.solve(_overlap(), measured_B33.reshape(3, 9)).reshape(3, 3, 3)
    values, vectors = np.linalg.eigh((parts + parts.transpose(0, 2, 1)) / 2)
    parts = np.einsum("bik,bk,bjk->bij", vectors, np.maximum(values, 0), vectors)
    # Leaving out negative parts adds power: scale so that no band gets more than was measured in all.
    total = np.trace(np.einsum("ij,jcd->icd", _overlap(), parts).sum(axis=0))
    wanted = max(float(np.trace(measured_B33.sum(axis=0))), 0.0)
    return parts * min(1.0, wanted / max(total, 1e-9))
