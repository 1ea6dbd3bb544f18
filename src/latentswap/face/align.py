"""FFHQ alignment: from a face's mesh to the square crop that the generators know, and back.

The rule is FFHQ's (Karras et al. 2019, appendix A): the crop's axes, side and centre follow from the eyes' centres
and the mouth's corners. FFHQ used dlib's 68 points; the mesh's points differ a little, which the constants below make
good.
"""

import math

import cv2
import numpy as np

from latentswap.shape.topology import EYE_68_LEFT, EYE_68_RIGHT, MOUTH_CORNERS
from latentswap.types import Crop

# FFHQ's own constants for dlib's points are 2.0, 1.8, 0.1 and 0. These were fitted on 60 generated people (truncation
# 0.7) and their mirror images, which are aligned by construction: mean error 0, residual standard deviation per
# picture 2.8 px (x) and 3.0 px (y) of the centre and 2.1 % of the side, at 1024 px.
EYE_SPAN = 1.956  # half of the crop's side in distances of the eyes
MOUTH_SPAN = 1.804  # half of the crop's side in distances from the eyes to the mouth; the larger of the two counts
CENTRE_DROP = 0.1125  # the crop's centre below the eyes' centre, in distances from the eyes to the mouth
CENTRE_SHIFT = 0.0076  # and to the right, in halves of the side: the mesh lies that far left, mirrored or not

FADE = 0.3  # outside of the picture the crop fades to its median within this share of its side
FADE_BLUR = 0.02  # standard deviation of the blur there, share of the side


def ffhq_affine(mesh_K3: np.ndarray, size: int) -> np.ndarray:
    """The similarity that takes picture pixels to an FFHQ-aligned crop of `size` pixels.

    mesh_K3: [468, 2 or 3], picture pixels. Returns float64 [2, 3]. Raises ValueError if eyes and mouth coincide.
    """
    mesh = np.asarray(mesh_K3, np.float64)[:, :2]
    left, right = mesh[list(EYE_68_RIGHT)].mean(axis=0), mesh[list(EYE_68_LEFT)].mean(axis=0)  # as the picture shows
    eyes = (left + right) / 2
    across = right - left
    down = mesh[list(MOUTH_CORNERS)].mean(axis=0) - eyes
    # The eyes' line, averaged with the perpendicular of the line to the mouth.
    axis = across + np.array([down[1], -down[0]])
    length = np.hypot(*axis)
    half = max(EYE_SPAN * np.hypot(*across), MOUTH_SPAN * np.hypot(*down))
    if not length > 0 or not half > 0:
        raise ValueError("the mesh has no extent: its eyes and its mouth coincide")
    cosine, sine = axis / length * (size / (2 * half))
    turn = np.array([[cosine, sine], [-sine, cosine]])
    centre = eyes + CENTRE_DROP * down + CENTRE_SHIFT * half * axis / length
    return np.concatenate([turn, (size / 2 - turn @ centre)[:, None]], axis=1)


def invert_affine(affine: np.ndarray) -> np.ndarray:
    """The inverse of a 2×3 matrix, closed form. Raises ValueError if it has none."""
    (a, b, x), (c, d, y) = np.asarray(affine, np.float64)
    determinant = a * d - b * c
    if determinant == 0 or not np.isfinite(determinant):
        raise ValueError(f"the matrix has no inverse: {affine!r}")
    inverse = np.array([[d, -b], [-c, a]]) / determinant
    return np.concatenate([inverse, -(inverse @ (x, y))[:, None]], axis=1)


def affine_scale(affine: np.ndarray) -> float:
    """How many output pixels one input pixel spans (for a similarity: along any direction)."""
    return float(np.sqrt(abs(np.linalg.det(affine[:, :2]))))


def move_points(points_N2: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Points through an affine, float64 [N, 2]."""
    return points_N2 @ affine[:, :2].T + affine[:, 2]


def move_mesh(mesh_K3: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Mesh points through a similarity, float32 [468, 3]; depth takes the scale."""
    flat = move_points(mesh_K3[:, :2].astype(np.float64), affine)
    return np.concatenate([flat, mesh_K3[:, 2:] * affine_scale(affine)], axis=1).astype(np.float32)


def warp(pixels: np.ndarray, affine: np.ndarray, height: int, width: int, *, border: int) -> np.ndarray:
    """Resample a picture through a similarity, without aliasing in either direction.

    pixels: uint8 or float32 [H, W] or [H, W, C]; affine: input → output pixels; border: an OpenCV border mode.
    Enlarging is bicubic. Shrinking samples as densely as the input, bicubic, and averages over each output pixel;
    beyond a factor of 3 it averages whole blocks of the input first.
    """
    part, offset = _needed(pixels, affine, height, width)
    to_output = affine.copy()
    to_output[:, 2] += affine[:, :2] @ offset
    scale = affine_scale(affine)
    dense = 1
    if scale < 1:
        rows, columns = part.shape[:2]
        block = max(1, int(1 / scale / 1.5))
        small = max(1, round(columns / block)), max(1, round(rows / block))
        part = cv2.resize(part, small, interpolation=cv2.INTER_AREA)
        to_output[:, :2] *= (columns / small[0], rows / small[1])
        dense = max(1, math.ceil(1 / scale / block - 0.15))  # a sixth less dense aliases too little to see
    to_output *= dense
    to_output[:, 2] += to_output[:, :2] @ (0.5, 0.5) - 0.5  # OpenCV counts from the first pixel's centre
    size = (width * dense, height * dense)
    result = cv2.warpAffine(part, to_output, size, flags=cv2.INTER_CUBIC, borderMode=border)
    return result if dense == 1 else cv2.resize(result, (width, height), interpolation=cv2.INTER_AREA)


def _seen(affine: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest input point (x, y) that an output of this size covers."""
    corners = np.array([(0, 0), (width, 0), (0, height), (width, height)], np.float64)
    points = move_points(corners, invert_affine(affine))
    return points.min(axis=0), points.max(axis=0)


def _needed(pixels: np.ndarray, affine: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The part of the input that an output can depend on, and its place (x, y); at least one pixel."""
    low, high = _seen(affine, height, width)
    slack = 4 * max(1.0, 1 / affine_scale(affine))  # reach of the bicubic kernel
    limit = np.array([pixels.shape[1], pixels.shape[0]])
    low = np.clip(np.floor(low - slack), 0, limit - 1).astype(int)
    high = np.clip(np.ceil(high + slack), low + 1, limit).astype(int)
    return pixels[low[1] : high[1], low[0] : high[0]], low


def cut(pixels: np.ndarray, affine: np.ndarray, size: int) -> np.ndarray:
    """Cut an aligned crop, uint8 [size, size, 3], out of a picture, uint8 [H, W, 3].

    Outside of the picture the crop continues by reflection, blurred, and fades to its median colour, as in FFHQ;
    pixels inside are the picture's own.
    """
    height, width = pixels.shape[:2]
    part, place = _needed(pixels, affine, size, size)
    low, high = _seen(affine, size, size)
    if (low >= 0).all() and (high <= (width, height)).all():
        return warp(pixels, affine, size, size, border=cv2.BORDER_REPLICATE)
    # Mirrored once at most: OpenCV's own reflection bounces step by step, without end for a far and narrow picture.
    room = np.array([part.shape[1], part.shape[0]]) - 1
    before = np.clip(np.ceil(place - low), 0, room).astype(int)
    after = np.clip(np.ceil(high - place - room), 0, room).astype(int)
    part = cv2.copyMakeBorder(part, before[1], after[1], before[0], after[0], cv2.BORDER_REFLECT_101)
    shifted = affine.copy()
    shifted[:, 2] += affine[:, :2] @ (place - before)
    crop = warp(part, shifted, size, size, border=cv2.BORDER_REPLICATE)
    outside = _distance_outside(affine, size, height, width) / (FADE * size)
    filled = crop.astype(np.float32)
    coarse = max(1, size // 8)  # the blur is wide: an eighth of the pixels holds all that it leaves
    blurred = cv2.resize(filled, (coarse, coarse), interpolation=cv2.INTER_AREA)
    blurred = cv2.GaussianBlur(blurred, (0, 0), FADE_BLUR * coarse, borderType=cv2.BORDER_REFLECT_101)
    blurred = cv2.resize(blurred, (size, size), interpolation=cv2.INTER_CUBIC)
    filled += (blurred - filled) * np.clip(3 * outside, 0, 1)[..., None]
    inside = outside == 0
    known = crop[inside] if inside.any() else crop.reshape(-1, 3)
    median = np.median(known, axis=0).astype(np.float32)
    filled += (median - filled) * np.clip(outside, 0, 1)[..., None]
    return np.clip(np.rint(filled), 0, 255).astype(np.uint8)


def _distance_outside(affine: np.ndarray, size: int, height: int, width: int) -> np.ndarray:
    """For every crop pixel how far outside of the picture it lies, in crop pixels, float32 [size, size]."""
    inverse = invert_affine(affine)
    centres = np.arange(size) + 0.5
    x_HW = inverse[0, 0] * centres + inverse[0, 1] * centres[:, None] + inverse[0, 2]
    y_HW = inverse[1, 0] * centres + inverse[1, 1] * centres[:, None] + inverse[1, 2]
    beyond = np.maximum(np.maximum(-x_HW, x_HW - width), np.maximum(-y_HW, y_HW - height))
    return (np.maximum(beyond, 0) * affine_scale(affine)).astype(np.float32)


def cut_face(pixels: np.ndarray, mesh_K3: np.ndarray, size: int) -> Crop:
    """Align and cut the face of a mesh in picture pixels."""
    affine = ffhq_affine(mesh_K3, size)
    return Crop(pixels=cut(pixels, affine, size), affine=affine, mesh_K3=move_mesh(mesh_K3, affine))
