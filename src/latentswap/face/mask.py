"""Which pixels of a crop belong to the swapped face: a soft mask from the mesh's outline."""

import cv2
import numpy as np

from latentswap.shape.topology import CHIN, FACE_OVAL, LEFT_BROW_UPPER, RIGHT_BROW_UPPER

FEATHER = 0.10  # width of the soft edge in face sizes (square root of the outline's area)
FOREHEAD_DROP = 0.22  # of the way from the outline's top to the brows: keeps the photo's hairline
REACH = 0.25  # of the feather: how far outside of the jaw the mask is one half
WORK = 512  # the mask is drawn at this size and enlarged: it holds nothing finer than its feather


def face_mask(
    mesh_K3: np.ndarray, size: int, *, other_K3: np.ndarray | None = None, feather: float = FEATHER
) -> np.ndarray:
    """A soft mask of the face, float32 [size, size] in [0, 1].

    mesh_K3: [468, 2 or 3] in crop pixels. other_K3: a second mesh, such as the swapped face's; the mask then covers
    both, so that neither jaw can show beside the other. feather: width of the soft edge in face sizes.

    Along the jaw and cheeks the soft edge lies outside of the outline, so the swapped face is whole there; over the
    forehead it lies inside, so that the hair stays the photo's. The edge is a smoothstep of the distance to it.
    """
    scale = WORK / size
    meshes = [np.asarray(m, np.float64)[:, :2] * scale for m in (mesh_K3, other_K3) if m is not None]
    canvas = np.zeros((WORK, WORK), np.uint8)
    width = feather * max(_face_size(mesh) for mesh in meshes)
    for mesh in meshes:
        corners = np.rint(_outline(mesh, REACH * width) * 16 - 8).astype(
            np.int32
        )  # 4 fractional bits, from pixel centres
        cv2.fillPoly(canvas, [corners], (255,), lineType=cv2.LINE_8, shift=4)
    if not canvas.any():
        return np.zeros((size, size), np.float32)
    inside = cv2.distanceTransform(canvas, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    outside = cv2.distanceTransform(255 - canvas, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    distance = inside - outside
    distance -= np.sign(distance) / 2  # they count to the next pixel's centre; the edge runs between
    step = np.clip(distance / max(width, 1.0) + 0.5, 0, 1)
    soft = (step * step * (3 - 2 * step)).astype(np.float32)
    soft = cv2.GaussianBlur(soft, (0, 0), 0.15 * width)  # rounds the polygon's corners
    return np.clip(cv2.resize(soft, (size, size), interpolation=cv2.INTER_LINEAR), 0, 1)


def _outline(mesh_K2: np.ndarray, reach: float) -> np.ndarray:
    """The polygon on which the mask is one half, float64 [36, 2].

    reach: how far it lies outside of the face's outline at the jaw, in pixels; at the forehead it lies inside.
    """
    oval = mesh_K2[list(FACE_OVAL)]
    brows = mesh_K2[list(RIGHT_BROW_UPPER + LEFT_BROW_UPPER)].mean(axis=0)
    up = brows - mesh_K2[CHIN]
    up /= max(float(np.hypot(*up)), 1e-9)
    height = (oval - brows) @ up  # above the brows: positive
    top = max(float(height.max()), 1e-9)
    lift = np.clip(height / top, 0, 1)
    centre = oval.mean(axis=0)
    outward = oval - centre
    outward /= np.maximum(np.hypot(outward[:, 0], outward[:, 1])[:, None], 1e-9)
    lowered = oval - (FOREHEAD_DROP * top * lift)[:, None] * up
    return lowered + (reach * (1 - 2 * lift))[:, None] * outward


def _face_size(mesh_K2: np.ndarray) -> float:
    """Square root of the outline's area, pixels: steadier under turning than its width or height."""
    x, y = mesh_K2[list(FACE_OVAL)].T
    return float(np.sqrt(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2))
