"""The swap in the target's skin colour: measured at the same places of both faces, where both show skin.

A swap keeps the complexion of neither person for itself: the face has to agree with the neck, the ears and the hands
that stay the photo's, so its skin takes the target's colour, which is the target's complexion in the target's light.
What stays the source's is relative: how much darker or redder lips, brows, blush and freckles are than the skin.
"""

from functools import lru_cache

import cv2
import numpy as np

from latentswap.shape import topology as T
from latentswap.shape.measures import mean_mesh

STATISTICS = 128  # side at which colours are compared: noise and pores are averaged away
SPACING, REACH = 0.014, 0.03  # crop fractions, on the mean face: between places, and of mesh points that carry one
AWAY = 0.05  # face widths that a place keeps from eyes, brows, lips and nostrils
INSIDE = 0.07  # face widths that it keeps from the outline
BEARD = 0.5  # what places below the nose count: skin of most faces, and all of it next to the jaw that must agree
GRAZING, FACING = 0.25, 0.75  # cosine between skin and view: seen too flatly to count; counts in full
OUTLIER = 3.5  # robust standard deviations of skin colour beyond which a place shows hair, glasses or a glint
LEAST = 12.0  # places, by weight, below which there is too little skin to compare
CONTRAST_LIMIT = 1.1  # shading contrast changes by this factor at most
HIGHLIGHTS = 0.6  # of the way from the skin's level to white: as far as skin reaches
HIGHLIGHT_GAIN = 1.8  # of the skin's gain: how steeply its highlights may rise above it when it darkens
FALL_OFF = 0.5  # for each doubling of the skin's level: extra exponent of the levels below it
TONES, MONOCHROME = 16, 2.5  # luma bins; standard deviation of colour within them, levels, in a monochrome photo
_LUMA = np.array([0.299, 0.587, 0.114])


def match_colour(
    swapped_crop: np.ndarray,
    target_crop: np.ndarray,
    mask: np.ndarray,
    *,
    swapped_K3: np.ndarray,
    target_K3: np.ndarray,
) -> np.ndarray:
    """Give the swap the target's skin colour, uint8 [S, S, 3].

    swapped_K3, target_K3: their meshes in crop pixels. A tone curve for each channel makes the skin colours equal
    (`tone_curve`). One contrast for all channels, around that colour, then brings the spread of luma half-way (in
    ratio) to the target's: one, because a contrast for each channel tints the shadows. In a monochrome photo, grey or
    toned, the swap keeps its luma alone (`toning`).
    """
    swap, target, weight = skin_pairs(swapped_crop, target_crop, mask, swapped_K3=swapped_K3, target_K3=target_K3)
    if weight.sum() < LEAST:
        return _toned(swapped_crop, target_crop)
    here, there = (np.maximum(weighted_median(colours, weight), 1) for colours in (swap, target))
    curves = np.stack([tone_curve(float(a), float(b)) for a, b in zip(here, there, strict=True)], axis=1)
    matched = np.stack([np.interp(swap[:, c], np.arange(256), curves[:, c]) for c in range(3)], axis=1)
    contrast = np.sqrt(_spread(target @ _LUMA, weight) / _spread(matched @ _LUMA, weight))
    contrast = np.clip(contrast, 1 / CONTRAST_LIMIT, CONTRAST_LIMIT)
    darker = there * (np.maximum(curves, 0) / there) ** contrast  # black stays black
    table = np.where(curves < there, darker, there + (curves - there) * contrast)
    table = np.clip(np.rint(table), 0, 255).astype(np.uint8)
    return _toned(cv2.LUT(swapped_crop, table[:, None, :]), target_crop)


def _toned(crop: np.ndarray, target_crop: np.ndarray) -> np.ndarray:
    tones = toning(target_crop)
    return crop if tones is None else tones[np.asarray(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), np.uint8)]


def toning(crop: np.ndarray) -> np.ndarray | None:
    """The colour that each grey level has in a monochrome picture, uint8 [256, 3]; None for one in colour.

    A picture is monochrome when its colour follows from its luma, but for noise: black and white, sepia, cyanotype.
    """
    pixels_P3 = reduced(crop, STATISTICS).reshape(-1, 3)
    luma_P = pixels_P3 @ _LUMA
    bins = np.linspace(0, 256, TONES + 1)
    index_P = np.clip(np.digitize(luma_P, bins) - 1, 0, TONES - 1)
    count = np.bincount(index_P, minlength=TONES)
    off_P3 = pixels_P3 - luma_P[:, None]
    mean = np.stack([np.bincount(index_P, off, TONES) / np.maximum(count, 1) for off in off_P3.T], axis=1)
    if np.sqrt(np.square(off_P3 - mean[index_P]).mean()) > MONOCHROME:
        return None
    level, centre, known = np.arange(256), (bins[:-1] + bins[1:]) / 2, count > 0
    tones = np.stack([level + np.interp(level, centre[known], mean[known, c]) for c in range(3)], axis=1)
    return np.clip(np.rint(tones), 0, 255).astype(np.uint8)


def skin_pairs(
    swapped_crop: np.ndarray,
    target_crop: np.ndarray,
    mask: np.ndarray,
    *,
    swapped_K3: np.ndarray,
    target_K3: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Colours of both at the same places of the skin, float64 [P, 3] twice, and how much each counts, float64 [P].

    A place counts as far as both faces turn it to the viewer, as the mask covers it, and as its colour is near to the
    rest of the skin's in both pictures (Tukey's weight, in Lab): hair across the forehead and half a cheek in hard
    light count in neither picture.
    """
    places, weight = skin_places()
    extent = np.array(mask.shape[::-1])
    covered = reduced(mask, STATISTICS)
    colours = []
    for crop, mesh_K3 in ((target_crop, target_K3), (swapped_crop, swapped_K3)):
        place_P3, right_P3, down_P3 = np.moveaxis(places @ np.asarray(mesh_K3, np.float64), 1, 0)
        normal = np.cross(right_P3, down_P3)
        cosine = normal[:, 2] / np.maximum(np.linalg.norm(normal, axis=1), 1e-12)
        weight = np.minimum(weight, np.clip((cosine - GRAZING) / (FACING - GRAZING), 0, 1))
        at = (place_P3[:, :2] * (STATISTICS / extent) - 0.5).astype(np.float32)
        colours.append(_at(at, reduced(crop, STATISTICS)))
        weight = np.minimum(weight, np.clip(2 * _at(at, covered) - 1, 0, 1))
    labs = [cv2.cvtColor(colour_P3[None] / 255, cv2.COLOR_RGB2LAB)[0].astype(np.float64) for colour_P3 in colours]
    likely = np.ones(len(places))
    for _ in range(3):
        likely = np.minimum.reduce([_likely(lab_P3, weight * likely) for lab_P3 in labs])
    target, swap = (colour_P3.astype(np.float64) for colour_P3 in colours)
    return swap, target, weight * likely


def reduced(pixels: np.ndarray, side: int) -> np.ndarray:
    """Averaged to float32 [side, side] or [side, side, C], whatever the shape was."""
    height, width = pixels.shape[:2]
    if min(height, width) >= 4 * side:  # by a whole factor first, which is several times as fast
        pixels = pixels[: height // 4 * 4, : width // 4 * 4]
        pixels = cv2.resize(pixels, (width // 4, height // 4), interpolation=cv2.INTER_AREA)
    return cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32)


def _at(at_P2: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Bilinear samples [P] or [P, C]; beyond the edge there is black."""
    x_1P, y_1P = np.ascontiguousarray(at_P2.T)[:, None]
    return cv2.remap(pixels, x_1P, y_1P, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)[0]


def _likely(lab_P3: np.ndarray, weight_P: np.ndarray) -> np.ndarray:
    """1 for the weighted median colour, 0 for outliers, float64 [P]."""
    if weight_P.sum() < LEAST:
        return np.ones(len(weight_P))
    off_P3 = lab_P3 - weighted_median(lab_P3, weight_P)
    scale_3 = np.maximum(1.48 * weighted_median(np.abs(off_P3), weight_P), (4.0, 2.0, 2.0))
    return np.square(np.clip(1 - np.square(off_P3 / scale_3).sum(axis=1) / OUTLIER**2, 0, 1))


@lru_cache(maxsize=1)
def skin_places() -> tuple[np.ndarray, np.ndarray]:
    """How places on bare skin follow from the mesh, float64 [P, 3, 468], and how much each counts, float64 [P].

    The three rows give a place and its motion to the right and downwards. The places lie on a regular grid of the mean
    face, away from features; each is a local linear fit of a mesh to the mean mesh, so that turned faces keep their
    places. Below the nose, where a beard may grow, they count less.
    """
    mesh_K2 = mean_mesh().double().numpy()[:, :2]
    oval_N2 = mesh_K2[list(T.FACE_OVAL)]
    (x0, y0), (x1, y1) = oval_N2.min(axis=0), oval_N2.max(axis=0)
    x, y = np.meshgrid(np.arange(x0, x1, SPACING), np.arange(y0, y1, SPACING))
    places_P2 = np.stack([x.ravel(), y.ravel()], axis=1)
    keep = _inside(places_P2, oval_N2) > INSIDE * (x1 - x0)
    for feature in (T.RIGHT_EYE, T.LEFT_EYE, T.RIGHT_BROW, T.LEFT_BROW, T.OUTER_LIPS, T.NOSE_BASE):
        hull_N2 = cv2.convexHull(mesh_K2[list(feature)].astype(np.float32))[:, 0]
        keep &= _inside(places_P2, hull_N2) < -AWAY * (x1 - x0)
    places_P2 = places_P2[keep]
    fits = []
    for place in places_P2:
        terms_K3 = np.concatenate([np.ones((T.MESH_POINTS, 1)), mesh_K2 - place], axis=1)
        near_K1 = np.exp(-0.5 * np.square(terms_K3[:, 1:] / REACH).sum(axis=1))[:, None]
        fits.append(np.linalg.solve(terms_K3.T @ (near_K1 * terms_K3), (near_K1 * terms_K3).T))
    below = places_P2[:, 1] > mesh_K2[list(T.NOSE_BASE), 1].min()
    return np.stack(fits), np.where(below, BEARD, 1.0)


def _inside(places_P2: np.ndarray, polygon_N2: np.ndarray) -> np.ndarray:
    """Signed distance to a polygon's edge, positive inside, in the places' unit."""
    polygon = (1e4 * polygon_N2).astype(np.float32)
    return 1e-4 * np.array([cv2.pointPolygonTest(polygon, (1e4 * x, 1e4 * y), True) for x, y in places_P2])


def weighted_median(values_PC: np.ndarray, weight_P: np.ndarray) -> np.ndarray:
    """For each column the value that half of the weight lies below, float64 [C]."""
    return _quantile(values_PC, weight_P, 0.5)


def _quantile(values_PC: np.ndarray, weight_P: np.ndarray, share: float) -> np.ndarray:
    order = np.argsort(values_PC, axis=0, kind="stable")
    passed = np.cumsum(weight_P[order], axis=0) - weight_P[order] / 2
    ordered = np.take_along_axis(values_PC, order, axis=0)
    columns = zip(passed.T, ordered.T, strict=True)
    return np.array([np.interp(share * weight_P.sum(), below, column) for below, column in columns])


def _spread(luma_P: np.ndarray, weight_P: np.ndarray) -> float:
    low, high = (float(_quantile(luma_P[:, None], weight_P, share)[0]) for share in (0.2, 0.8))
    return high - low + 1.0


def tone_curve(here: float, there: float) -> np.ndarray:
    """A smooth rising curve, float64 [256], that takes level `here` to `there` and black to black.

    Below `here` it is a gain, as if the light had changed; a brightening one falls off towards the dark, so that lips
    and brows, which differ less than skin does between people, are not brightened as much as the skin. Above, it heads
    for white when it brightens, so that nothing burns out. When it darkens it stays near the gain over the skin's
    highlights, and then bends towards a white half-way (in ratio) to the gain, so that eyes and teeth stay light.
    """
    here, there = (min(max(level, 8.0), 247.0) for level in (here, there))
    gain = there / here
    white = 255 * min(1.0, gain**0.5)
    knee = here + HIGHLIGHTS * (255 - here)
    at_knee = there + (knee - here) * min(HIGHLIGHT_GAIN * gain, (white - there) / (255 - here))
    level = np.arange(-64, 320)
    above = np.where(
        level < knee,
        there + (at_knee - there) * (level - here) / (knee - here),
        at_knee + (white - at_knee) * (level - knee) / (255 - knee),
    )
    power = 1 + FALL_OFF * max(float(np.log2(gain)), 0.0)
    below = there * np.sign(level) * (np.abs(level) / here) ** power
    bent = np.where(level < here, below, above)
    kernel = np.exp(-0.5 * (np.arange(-48, 49) / 16) ** 2)
    smooth = np.convolve(bent, kernel / kernel.sum(), mode="same")[64:320]
    return smooth + there - np.interp(here, np.arange(256), smooth)
