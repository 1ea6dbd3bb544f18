"""Which pixels of a crop belong to the swapped face: a soft mask from the mesh's outline."""

import cv2
import numpy as np

from latentswap.shape.topology import CHIN, FACE_OVAL, LEFT_BROW_UPPER, NOSE_BRIDGE, RIGHT_BROW_UPPER

RIGHT_CHEEK, LEFT_CHEEK = 234, 454  # the outline in front of the ears

FEATHER = 0.10  # width of the soft edge in face sizes (square root of the outline's area)
FOREHEAD_DROP = 0.22  # of the way from the outline's top to the brows: keeps the photo's hairline
REACH = 0.25  # of the feather: how far outside of the jaw the mask is one half
WORK = 512  # the mask is drawn at this size and enlarged: it holds nothing finer than its feather
TURNED = (12.0, 28.0)  # degrees of yaw from which, and by which, the far cheek is held tight
FAR_FEATHER = 0.05  # width of the soft edge along the far cheek, face sizes: there the face ends against the background
FAR_REACH = 0.2  # of that feather
BIN = 0.09  # radians to either side in which a mesh point outside of the outline moves it
HIDDEN = 1.03  # how much farther from the middle such a point must be


def face_mask(
    mesh_K3: np.ndarray, size: int, *, other_K3: np.ndarray | None = None, feather: float = FEATHER
) -> np.ndarray:
    """A soft mask of the face, float32 [size, size] in [0, 1].

    mesh_K3: [468, 2 or 3] in crop pixels. other_K3: a second mesh, such as the swapped face's; the mask then covers
    both, so that neither jaw can show beside the other. feather: width of the soft edge in face sizes.

    Along the jaw and cheeks the soft edge lies outside of the outline, so the swapped face is whole there; over the
    forehead it lies inside, so that the hair stays the photo's. The edge is a smoothstep of the distance to it.

    At the far cheek of a turned head (needs z) the outline is a contour: beyond it lie hair or background, of the swap
    as of the photo. There the mask keeps to what both faces cover, with a narrow edge (`far_side` says how much).
    """
    scale = WORK / size
    meshes = [np.asarray(m, np.float64) * scale for m in (mesh_K3, other_K3) if m is not None]
    unit = max(_face_size(mesh) for mesh in meshes)
    edges = [_distance(mesh, REACH * feather * unit) for mesh in meshes]
    if max(float(edge.max()) for edge in edges) <= 0:
        return np.zeros((size, size), np.float32)
    soft = _step(np.maximum.reduce(edges) / max(feather * unit, 1.0))
    soft = cv2.GaussianBlur(soft, (0, 0), 0.15 * feather * unit)  # rounds the polygon's corners
    far = np.mean([far_side(mesh, WORK) for mesh in meshes], axis=0) if meshes[0].shape[1] == 3 else np.zeros(1)
    if far.any():
        width = max(FAR_FEATHER * unit, 1.0)
        edges = [_distance(mesh, FAR_REACH * width) for mesh in meshes]
        tight = cv2.GaussianBlur(_step(np.minimum.reduce(edges) / width), (0, 0), 0.15 * width)
        soft += far.astype(np.float32) * np.minimum(tight - soft, 0)
    return np.clip(cv2.resize(soft, (size, size), interpolation=cv2.INTER_LINEAR), 0, 1)


def far_side(mesh_K3: np.ndarray, size: int) -> np.ndarray:
    """How much every pixel belongs to the half of a turned head that faces away, float64 [size, size] in [0, 1].

    mesh_K3: [468, 3] in pixels. 0 everywhere up to a yaw of 12°; grows from the nose's line to the far cheek's middle.
    """
    across = mesh_K3[LEFT_CHEEK] - mesh_K3[RIGHT_CHEEK]
    width = max(float(np.hypot(across[0], across[1])), 1e-9)
    yaw = float(np.degrees(np.arctan2(across[2], width)))  # positive: the person's left cheek is the farther one
    turned = float(np.interp(abs(yaw), TURNED, (0, 1)))
    if not turned:
        return np.zeros((size, size))
    direction = np.sign(yaw) * across[:2] / width
    middle = mesh_K3[list(NOSE_BRIDGE), :2].mean(axis=0)
    reach = max(float(((mesh_K3[list(FACE_OVAL), :2] - middle) @ direction).max()), 1.0)
    centres = np.arange(size) + 0.5
    along = ((centres - middle[0]) * direction[0] + ((centres - middle[1]) * direction[1])[:, None]) / reach
    return turned * _smooth((along - 0.1) / 0.4)


def _distance(mesh_K3: np.ndarray, reach: float) -> np.ndarray:
    """Signed distance to the outline, positive inside, in pixels of WORK, float32 [WORK, WORK]; all < 0 if unseen."""
    canvas = np.zeros((WORK, WORK), np.uint8)
    corners = np.rint(_outline(mesh_K3[:, :2], reach) * 16 - 8).astype(np.int32)  # 4 fractional bits, from centres
    cv2.fillPoly(canvas, [corners], (255,), lineType=cv2.LINE_8, shift=4)
    if not canvas.any():
        return np.full((WORK, WORK), -float(WORK), np.float32)
    inside = cv2.distanceTransform(canvas, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    outside = cv2.distanceTransform(255 - canvas, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    distance = inside - outside
    return distance - np.sign(distance) / 2  # they count to the next pixel's centre; the edge runs between


def _smooth(value: np.ndarray) -> np.ndarray:
    value = np.clip(value, 0, 1)
    return value * value * (3 - 2 * value)


def _step(widths_HW: np.ndarray) -> np.ndarray:
    """From 0 half a width outside to 1 half a width inside."""
    return _smooth(widths_HW + 0.5)


def _outline(mesh_K2: np.ndarray, reach: float) -> np.ndarray:
    """The polygon on which the mask is one half, float64 [36, 2].

    reach: how far it lies outside of the face's outline at the jaw, in pixels; at the forehead it lies inside.
    """
    oval = _contour(mesh_K2)
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


def _contour(mesh_K2: np.ndarray) -> np.ndarray:
    """The outline pushed out to the mesh's own points where a turned cheek hides it, float64 [36, 2]."""
    oval = mesh_K2[list(FACE_OVAL)]
    centre = oval.mean(axis=0)
    angle = np.arctan2(*(mesh_K2 - centre).T[::-1])
    radius = np.hypot(*(mesh_K2 - centre).T)
    here = angle[list(FACE_OVAL)]
    near = np.abs(np.angle(np.exp(1j * (angle[None] - here[:, None])))) < BIN
    far = (near * radius).max(axis=1)
    own = radius[list(FACE_OVAL)]
    return centre + (oval - centre) * np.where(far > own * HIDDEN, far / np.maximum(own, 1e-9), 1)[:, None]


def _face_size(mesh_K2: np.ndarray) -> float:
    """Square root of the outline's area, pixels: steadier under turning than its width or height."""
    x, y = mesh_K2[list(FACE_OVAL), :2].T
    return float(np.sqrt(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2))
