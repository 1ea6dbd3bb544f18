"""Putting a swapped crop back into its picture: matched in colour and sharpness, blended softly, warped once."""

import zlib

import cv2
import numpy as np

from latentswap.face.align import affine_scale, invert_affine, move_points, warp
from latentswap.face.colour import match_colour, reduced
from latentswap.face.grain import added_noise, fine_noise, noise_covariance

MEMBRANE = 64  # side at which the edge's difference is diffused
MEMBRANE_TRUST = 24.0  # edge differences beyond this are hair or background rather than light, and count as none
BLUR_LIMIT = 4.0  # photo pixels: largest standard deviation of the blur that matches a soft photo
NOISE_SHARE = 0.8  # of a photo's fine detail may be noise at most
MARGIN = 24  # crop pixels kept around the mask for filters


def paste(
    image_pixels: np.ndarray,
    swapped_crop: np.ndarray,
    affine: np.ndarray,
    mask: np.ndarray,
    *,
    target_crop: np.ndarray,
    target_K3: np.ndarray,
    swapped_K3: np.ndarray,
    grain: bool = True,
) -> np.ndarray:
    """Blend a swapped crop into its picture and return a new picture, uint8 [H, W, 3].

    image_pixels: uint8 [H, W, 3]. swapped_crop, target_crop: uint8 [S, S, 3], the crop after and before the swap.
    target_K3, swapped_K3: their meshes [468, 3] in crop pixels. affine: picture pixels → crop pixels. mask: float32
    [S, S] in [0, 1]; where it is 0 the picture keeps its bytes.

    The swap first takes the target's skin colour and shading contrast (`match_colour`), then its sharpness if the photo
    is the softer of the two (`match_sharpness`), then a gentle low-frequency correction that makes both agree along
    the mask's edge (`membrane`), and with `grain` the photo's noise as far as it lacks it (`added_noise`; its seed is a
    checksum of the crop). Only the mask's bounding rectangle is touched.
    """
    result = image_pixels.copy()
    place = _rectangle(mask, affine, image_pixels.shape[0], image_pixels.shape[1])
    if place is None:
        return result
    x0, y0, x1, y1 = place
    rows, columns = _window(mask)
    mask, swap, target = mask[rows, columns], swapped_crop[rows, columns], target_crop[rows, columns]
    to_picture = invert_affine(affine)
    to_picture[:, 2] += to_picture[:, :2] @ (columns.start, rows.start) - (x0, y0)
    size = (y1 - y0, x1 - x0)
    photo = result[y0:y1, x0:x1]
    alpha = np.clip(warp(mask.astype(np.float32), to_picture, *size, border=cv2.BORDER_CONSTANT), 0, 1)
    noise = noise_covariance(photo, alpha) if grain else None
    swapped_K3, target_K3 = (mesh - (columns.start, rows.start, 0) for mesh in (swapped_K3, target_K3))
    swap = match_colour(swap, target, mask, swapped_K3=swapped_K3, target_K3=target_K3)
    swap = match_sharpness(swap, target, mask, pixel=affine_scale(affine))
    swap = cv2.add(swap, membrane(swap, target, mask), dtype=cv2.CV_8U)
    face = warp(swap, to_picture, *size, border=cv2.BORDER_REPLICATE).astype(np.float32)
    if noise is not None:
        seed = zlib.crc32(np.ascontiguousarray(target[::8, ::8]).tobytes())
        added = added_noise(face, noise, alpha, seed=seed)
        if added is not None:
            face += added
    face -= photo
    face *= alpha[..., None]
    face += photo
    np.rint(face, out=face)
    result[y0:y1, x0:x1] = np.clip(face, 0, 255, out=face).astype(np.uint8)
    return result


def _window(mask: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of the crop where the mask is not 0, and a little more for the filters' reach."""

    def reach(seen: np.ndarray | np.bool) -> slice:
        found = np.flatnonzero(seen)
        return slice(max(int(found[0]) - MARGIN, 0), int(found[-1]) + 1 + MARGIN)

    return reach(mask.any(axis=1)), reach(mask.any(axis=0))


def _rectangle(mask: np.ndarray, affine: np.ndarray, height: int, width: int) -> tuple[int, int, int, int] | None:
    """Where in the picture the mask is not 0: x0, y0, x1, y1; None if nowhere."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not columns.size:
        return None
    left, right, top, bottom = columns[0], columns[-1] + 1, rows[0], rows[-1] + 1
    corners = np.array([(left, top), (right, top), (left, bottom), (right, bottom)], np.float64)
    corners = move_points(corners, invert_affine(affine))
    low = np.clip(np.floor(corners.min(axis=0)), 0, (width, height)).astype(int)
    high = np.clip(np.ceil(corners.max(axis=0)), 0, (width, height)).astype(int)
    if (high <= low).any():
        return None
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def match_sharpness(swapped_crop: np.ndarray, target_crop: np.ndarray, mask: np.ndarray, *, pixel: float) -> np.ndarray:
    """Blur the swap until its fine detail inside the mask is no stronger than the photo's, uint8 [H, W, 3].

    pixel: crop pixels per photo pixel. Detail is the standard deviation of a difference of Gaussians, measured where
    one pixel is one photo pixel, so that a face smaller than the crop is not softened for detail that shrinking
    removes anyway. The photo's noise, measured in its flat places, is not detail: a soft photo may be noisy. A swap
    that is the softer one stays as it is: sharpening would invent detail.
    """
    shrink = max(pixel, 1.0)
    side = tuple(max(int(extent / shrink), 16) for extent in mask.shape[::-1])
    core = cv2.resize(mask, side, interpolation=cv2.INTER_AREA) > 0.9
    rows, columns = np.flatnonzero(core.any(axis=1)), np.flatnonzero(core.any(axis=0))
    if not rows.size:
        return swapped_crop
    window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    core = core[window]

    def luma(pixels: np.ndarray) -> np.ndarray:
        grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
        return cv2.resize(grey, side, interpolation=cv2.INTER_AREA)[window].astype(np.float32)

    blur = 1.5

    def detail(grey: np.ndarray) -> float:
        return float((grey - cv2.GaussianBlur(grey, (0, 0), blur))[core].std())

    grey, theirs = luma(swapped_crop), luma(target_crop)
    weight = core.astype(np.float32)
    noise = fine_noise(theirs, weight, blur)
    common = min(noise, fine_noise(grey, weight, blur))
    noise = min(noise, NOISE_SHARE * detail(theirs))
    wanted = float(np.sqrt(detail(theirs) ** 2 - noise**2)) * 1.1 + 0.1
    if detail(grey) ** 2 - common**2 <= wanted**2:
        return swapped_crop
    low, high = 0.0, BLUR_LIMIT
    for _ in range(5):
        middle = (low + high) / 2
        soft = detail(cv2.GaussianBlur(grey, (0, 0), middle)) <= wanted
        low, high = (low, middle) if soft else (middle, high)
    return cv2.GaussianBlur(swapped_crop, (0, 0), high * shrink)


def membrane(swapped_crop: np.ndarray, target_crop: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A smooth field, float32 [S, S, 3], that added to the swap makes it agree with the target along the mask's edge.

    The difference is known in the mask's soft edge and diffused elsewhere by pull-push (Gortler et al. 1996), a fast
    approximation of the membrane of Perez et al. 2003. Differences that look like other content rather than other
    light count as none (a redescending weight, 9 grey levels at most): a hair across the edge must not stain the cheek.
    """
    small_mask = reduced(mask, MEMBRANE)
    difference = reduced(target_crop, MEMBRANE) - reduced(swapped_crop, MEMBRANE)
    trust = np.exp(-np.square(np.abs(difference).max(axis=-1) / MEMBRANE_TRUST))
    field = _pull_push(difference * trust[..., None], 4 * small_mask * (1 - small_mask))
    field = cv2.GaussianBlur(field, (0, 0), 1.5)
    field = cv2.resize(field, (4 * MEMBRANE, 4 * MEMBRANE), interpolation=cv2.INTER_CUBIC)
    return cv2.resize(field, mask.shape[::-1], interpolation=cv2.INTER_LINEAR)


def _pull_push(values_HWC: np.ndarray, weight_HW: np.ndarray) -> np.ndarray:
    """Fill in values where the weight is 0 from coarser and coarser weighted means; H and W are powers of two."""
    height, width = weight_HW.shape
    known = np.minimum(weight_HW, 1)[..., None]
    if min(height, width) == 1:
        return values_HWC * known
    weighted = (values_HWC * known).reshape(height // 2, 2, width // 2, 2, -1).sum(axis=(1, 3))
    total = known.reshape(height // 2, 2, width // 2, 2).sum(axis=(1, 3))
    coarse = _pull_push(weighted / np.maximum(total, 1e-6)[..., None], np.minimum(total, 1))
    filled = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    return known * values_HWC + (1 - known) * filled
