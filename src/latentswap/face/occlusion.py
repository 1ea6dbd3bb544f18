"""What lies in front of a face: a microphone, hair, a scarf, dark glasses. Found without a segmentation network.

The generator's own picture of the target face (its inversion) holds no such thing, because codes near the generator's
manifold cannot say it. Photo and reconstruction are brought to one light and compared; what differs far more than
light, make-up, beards or misplaced features can explain, in one large piece, lies in front.
"""

import cv2
import numpy as np

from latentswap.shape.topology import (
    FACE_OVAL,
    LEFT_BROW,
    LEFT_EYE,
    NOSE_BASE,
    NOSE_TIP,
    OUTER_LIPS,
    RIGHT_BROW,
    RIGHT_EYE,
)

MOUTH = OUTER_LIPS[5]  # the middle of the lower lip
WORK = 256  # side at which everything but the last edge is done
DARK = 12.0  # added before logarithms: noise in the blacks must not look like colour
LUMA_SIGMA = 0.36  # log luma: cast shadows and highlights that a reconstruction misses
CHROMA_SIGMA = 0.10  # log colour ratios: blush, make-up, coloured light
STRONG, WEAK = 3.2, 2.0  # of the combined distance: where a piece may begin, and how far it reaches
LENS, LENS_REACH = 1.2, 0.22  # the median over the eyes behind dark glasses; their reach around the eyes, face sizes
SKIN = 1.5  # of the distance from plain skin: what is nearer is skin, whatever the reconstruction shows
SMALLEST = 0.006  # of the face's area: strong pixels that a piece must have
REACH = 5  # pixels of WORK by which features of the reconstruction may be misplaced
OUTSIDE = 0.13  # face sizes: how far a piece is followed beyond the face's outline
RING = (0.03, 0.15)  # face sizes: how far inside and outside of its outline a swap may show hair and background
BACKGROUND = 2.6  # of the distance from plain skin: more than the shade of a chin on a neck
STRANDS = 6  # pixels of WORK by which hair is followed into its thin ends
EDGE = 6  # pixels of WORK: radius of the guided filter that fits the mask to the photo's edges


def occlusion(target_crop: np.ndarray, mesh_K3: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """How much of every pixel shows something in front of the face, float32 [S, S] in [0, 1]; mostly all 0.

    target_crop: uint8 [S, S, 3]. mesh_K3: its mesh [468, 2 or 3] in crop pixels. reference: uint8 [R, R, 3], the target
    face as the generator knows it (its inversion) in the same frame; the swapped crop does, but is a weaker witness.

    Multiply the paste's mask by 1 minus this. It would rather miss than find too much: things of skin colour (most
    hands), blond hair and clear glasses stay unseen, because a false hole shows the face that should have gone.
    """
    window = _window(target_crop, mesh_K3)
    if window is None:
        return np.zeros(target_crop.shape[:2], np.float32)
    photo, mesh, face, place = window
    distance = difference(photo, _reduced(reference)[place], face)
    unlike = _unlike_skin(photo, face)
    found = _pieces(distance, mesh, face, unlike) | _hair(unlike, mesh, face, 0.05)
    unit = np.sqrt(face.sum())
    if found.any():
        eyes = _filled([mesh[list(i)] for i in (RIGHT_EYE, LEFT_EYE)], face.shape, 0.12 * unit)
        found = _follow(found, photo, face, ~eyes | found, int(OUTSIDE * unit))
    return _soft(found, photo, place, target_crop.shape[0])


def beside(swapped_crop: np.ndarray, mesh_K3: np.ndarray, target_K3: np.ndarray) -> np.ndarray:
    """How much of every pixel of a swap shows its hair or its background, float32 [S, S] in [0, 1].

    swapped_crop: uint8 [S, S, 3]. mesh_K3, target_K3: its own mesh and the photo's in crop pixels. There the photo has
    better: its own forehead in place of the swap's fringe, its own background next to a turned cheek. Below the nose
    only the outline is looked at, so that a beard comes along, and at the chin only what lies outside of the photo's as
    well, so that its chin does not come back.
    """
    window = _window(swapped_crop, mesh_K3)
    if window is None:
        return np.zeros(swapped_crop.shape[:2], np.float32)
    swap, mesh, face, place = window
    unlike = _unlike_skin(swap, face)
    unit = np.sqrt(face.sum())
    features = _features(mesh, face.shape, unit)
    kernel = np.ones((3, 3), np.uint8)
    hair, further = _hair(unlike, mesh, face, 0.02) & ~features, (unlike > SKIN) & ~features
    for _ in range(STRANDS):
        hair = (cv2.dilate(hair.astype(np.uint8), kernel) > 0) & further
    hair = cv2.dilate(hair.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0  # hair ends in a soft edge
    ring = _silhouette(mesh, face, RING[1] * unit) & ~_silhouette(mesh, face, -RING[0] * unit)
    theirs = np.asarray(target_K3, np.float64)[:, :2] * (WORK / swapped_crop.shape[0])
    theirs -= (place[1].start, place[0].start)
    chin = _silhouette(theirs, _filled([theirs[list(FACE_OVAL)]], face.shape), 0) & _below(theirs, MOUTH, face.shape)
    ring &= (unlike > BACKGROUND) & ~chin
    ring = cv2.morphologyEx(ring.astype(np.uint8), cv2.MORPH_OPEN, kernel) > 0
    found = (hair | ring) & ~features
    return _soft(found, swap, place, swapped_crop.shape[0])


def _window(
    crop: np.ndarray, mesh_K3: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[slice, slice]] | None:
    """The reduced picture around the face, mesh [468, 2] and face (bool) in it, and its place; None if not in sight."""
    mesh = np.asarray(mesh_K3, np.float64)[:, :2] * (WORK / crop.shape[0])
    oval = mesh[list(FACE_OVAL)]
    margin = 0.2 * np.ptp(oval, axis=0).max()
    x0, y0 = np.clip(np.floor(oval.min(axis=0) - margin), 0, WORK).astype(int)
    x1, y1 = np.clip(np.ceil(oval.max(axis=0) + margin), 0, WORK).astype(int)
    if min(x1 - x0, y1 - y0) < 16:
        return None
    place = slice(y0, y1), slice(x0, x1)
    picture, mesh = _reduced(crop)[place], mesh - (x0, y0)
    face = _filled([mesh[list(FACE_OVAL)]], picture.shape)
    return None if face.sum() < 64 else (picture, mesh, face, place)


def _soft(found_HW: np.ndarray, guide_HWC: np.ndarray, place: tuple[slice, slice], size: int) -> np.ndarray:
    """What was found in a window, fitted to the picture's edges, in the whole crop, float32 [size, size]."""
    if not found_HW.any():
        return np.zeros((size, size), np.float32)
    guide = cv2.cvtColor(guide_HWC, cv2.COLOR_RGB2GRAY) / 255
    soft = guided_filter(guide, found_HW.astype(np.float32), EDGE, 2e-4)
    whole = np.zeros((WORK, WORK), np.float32)
    whole[place] = np.clip((soft - 0.15) / 0.6, 0, 1)
    return np.clip(cv2.resize(whole, (size, size), interpolation=cv2.INTER_LINEAR), 0, 1)


def difference(photo_HWC: np.ndarray, known_HWC: np.ndarray, face_HW: np.ndarray) -> np.ndarray:
    """How far the photo is from the reconstruction in one light, in standard deviations, float32 [H, W].

    Both are levels 0 to 255, float32 [H, W, 3]; face_HW: bool. Light is a smooth factor for each channel: a quadratic
    in the place, fitted robustly in logarithms. A pixel is as far as it is from the range of the reconstruction's
    values within REACH, so that a brow or a lip at a slightly other place is none.
    """
    here, there = _opponent(photo_HWC), _opponent(known_HWC)
    there = there + _light(here - there, face_HW)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * REACH + 1, 2 * REACH + 1))
    low, high = cv2.erode(there, kernel), cv2.dilate(there, kernel)
    beyond = np.maximum(low - here, 0) + np.maximum(here - high, 0)
    certain = np.clip(cv2.cvtColor(photo_HWC, cv2.COLOR_RGB2GRAY) / 60, 0, 1)  # of colours: dark ones have little
    scaled = beyond / np.array((LUMA_SIGMA, CHROMA_SIGMA, CHROMA_SIGMA), np.float32)
    return np.sqrt(scaled[..., 0] ** 2 + certain**2 * (scaled[..., 1] ** 2 + scaled[..., 2] ** 2))


def guided_filter(guide_HW: np.ndarray, values_HW: np.ndarray, radius: int, epsilon: float) -> np.ndarray:
    """He et al. 2010: values smoothed except across edges of the guide. float32 [H, W]; epsilon: in guide² units."""
    side = (2 * radius + 1, 2 * radius + 1)

    def mean(x: np.ndarray) -> np.ndarray:
        return cv2.blur(x, side)

    guide, values = guide_HW.astype(np.float32), values_HW.astype(np.float32)
    mean_g, mean_v = mean(guide), mean(values)
    slope = (mean(guide * values) - mean_g * mean_v) / (mean(guide * guide) - mean_g**2 + epsilon)
    return mean(slope) * guide + mean(mean_v - slope * mean_g)


def _reduced(pixels: np.ndarray) -> np.ndarray:
    if pixels.shape[0] != WORK:
        pixels = cv2.resize(pixels, (WORK, WORK), interpolation=cv2.INTER_AREA)
    return cv2.GaussianBlur(pixels.astype(np.float32), (0, 0), 1.0)


def _filled(outlines: list[np.ndarray], shape: tuple[int, ...], grow: float = 0.0) -> np.ndarray:
    canvas = np.zeros(shape[:2], np.uint8)
    for outline in outlines:
        cv2.fillPoly(canvas, [np.rint(outline * 16 - 8).astype(np.int32)], (1,), shift=4)
    if grow >= 1:
        side = 2 * round(grow) + 1
        canvas = cv2.dilate(canvas, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)))
    return canvas > 0


def _opponent(pixels_HWC: np.ndarray) -> np.ndarray:
    """Log luma, log red/green, log blue/green."""
    logs = np.log(pixels_HWC + DARK)
    red, green, blue = logs[..., 0], logs[..., 1], logs[..., 2]
    return np.stack([0.3 * red + 0.6 * green + 0.1 * blue, red - green, blue - green], axis=-1).astype(np.float32)


def _light(ratio_HW3: np.ndarray, face_HW: np.ndarray) -> np.ndarray:
    """A smooth fit to log ratios over the face that is deaf to a minority of others, float32 [H, W, 3]."""
    height, width = face_HW.shape
    rows, columns = np.nonzero(face_HW)
    centre, extent = (rows.mean(), columns.mean()), np.sqrt(rows.size) / 2
    step = max(rows.size // 2000, 1)  # two thousand places say enough
    rows, columns = rows[::step], columns[::step]

    def terms(y: np.ndarray, x: np.ndarray) -> np.ndarray:
        y, x = np.broadcast_arrays((y - centre[0]) / extent, (x - centre[1]) / extent)
        y, x = np.clip(y, -1.5, 1.5), np.clip(x, -1.5, 1.5)
        return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)

    basis, values = terms(rows, columns), ratio_HW3[rows, columns].astype(np.float64)
    scale = np.array((LUMA_SIGMA, CHROMA_SIGMA, CHROMA_SIGMA))
    centre_3 = np.median(values, axis=0)
    for _ in range(6):  # towards the mode: the nearest half, again and again
        off = (((values - centre_3) / scale) ** 2).sum(axis=1)
        centre_3 = values[off <= np.median(off)].mean(axis=0)
    solution = np.zeros((6, 3))
    solution[0] = centre_3
    ridge = np.diag([1e-3, 0.05, 0.05, 0.2, 0.2, 0.2]) * len(values)
    start = np.zeros((6, 3))
    start[0] = centre_3
    for _ in range(5):
        off = (((values - basis @ solution) / scale) ** 2).sum(axis=1)
        weight = np.square(np.clip(1 - off / 9, 0, 1))[:, None]
        solution = start + np.linalg.solve(
            basis.T @ (weight * basis) + ridge, basis.T @ (weight * (values - basis @ start))
        )
    return (terms(np.arange(height)[:, None], np.arange(width)[None]) @ solution).astype(np.float32)


def _features(mesh_K2: np.ndarray, shape: tuple[int, ...], unit: float) -> np.ndarray:
    """Eyes, brows, lips and nostrils with what a misplaced one would cover, bool [H, W]. unit: the face's size."""
    brows = [cv2.convexHull(mesh_K2[list(i)].astype(np.float32))[:, 0] for i in (RIGHT_BROW, LEFT_BROW)]
    features = _filled([mesh_K2[list(i)] for i in (RIGHT_EYE, LEFT_EYE)], shape, 0.06 * unit)
    features |= _filled(brows, shape, 0.05 * unit)
    features |= _filled([mesh_K2[list(OUTER_LIPS)]], shape, 0.05 * unit)
    return features | _filled([mesh_K2[[*NOSE_BASE, NOSE_TIP]]], shape, 0.03 * unit)


def _below(mesh_K2: np.ndarray, point: int, shape: tuple[int, ...]) -> np.ndarray:
    """Pixels below a point of the mesh along the face's own axis, bool [H, W]."""
    across = mesh_K2[NOSE_BASE[-1]] - mesh_K2[NOSE_BASE[0]]
    down = np.array((-across[1], across[0])) / max(float(np.hypot(*across)), 1e-9)
    rows, columns = np.mgrid[: shape[0], : shape[1]] + 0.5
    return (columns - mesh_K2[point, 0]) * down[0] + (rows - mesh_K2[point, 1]) * down[1] >= 0


def _silhouette(mesh_K2: np.ndarray, face_HW: np.ndarray, grow: float) -> np.ndarray:
    """All that the mesh covers (of a turned head more than its outline encloses) and `grow` pixels around, bool."""
    canvas = face_HW.astype(np.uint8)
    reach = 0.05 * np.sqrt(face_HW.sum())
    for x, y in mesh_K2:
        cv2.circle(canvas, (round(float(x)), round(float(y))), round(reach), (1,), cv2.FILLED)
    away = cv2.distanceTransform(1 - canvas, cv2.DIST_L2, cv2.DIST_MASK_5)
    within = cv2.distanceTransform(canvas, cv2.DIST_L2, cv2.DIST_MASK_5)
    return away - within < grow - reach


def _unlike_skin(photo_HWC: np.ndarray, face_HW: np.ndarray) -> np.ndarray:
    """How far every pixel is from the face's usual colour in its light (`difference`), float32 [H, W]."""
    plain = np.empty_like(photo_HWC)
    plain[:] = np.median(photo_HWC[face_HW], axis=0)
    return difference(photo_HWC, plain, face_HW)


def _pieces(distance_HW: np.ndarray, mesh_K2: np.ndarray, face_HW: np.ndarray, unlike_HW: np.ndarray) -> np.ndarray:
    """Connected pixels that are far, around enough that are very far and not a feature, bool [H, W].

    Far from plain skin as well (`unlike_HW`): the reconstruction may have hair where the photo shows a cheek.
    """
    unit = np.sqrt(face_HW.sum())
    shape = face_HW.shape
    eyes = [_filled([mesh_K2[list(i)]], shape, 0.06 * unit) for i in (RIGHT_EYE, LEFT_EYE)]
    features = _features(mesh_K2, shape, unit)
    inner = cv2.erode(face_HW.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    weak = ((distance_HW > WEAK) & (unlike_HW > SKIN) & inner).astype(np.uint8)
    weak = cv2.morphologyEx(weak, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    _, labels = cv2.connectedComponents(weak, connectivity=4)
    strong = np.bincount(labels[(distance_HW > STRONG) & ~features & (weak > 0)], minlength=labels.max() + 1)
    keep = strong >= SMALLEST * face_HW.sum()
    keep[0] = False
    covered = [float(np.median(distance_HW[eye & inner])) if (eye & inner).any() else 0.0 for eye in eyes]
    found = keep[labels]
    if min(covered) > LENS:  # dark glasses: seldom far everywhere, but both eyes are gone
        around = _filled([mesh_K2[list(i)] for i in (RIGHT_EYE, LEFT_EYE)], shape, LENS_REACH * unit)
        _, labels = cv2.connectedComponents(((distance_HW > LENS) & inner & around).astype(np.uint8), connectivity=4)
        lens = np.bincount(labels[eyes[0] | eyes[1]], minlength=labels.max() + 1) > SMALLEST * face_HW.sum()
        lens[0] = False
        outlines, _ = cv2.findContours(lens[labels].astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        whole = np.zeros(shape, np.uint8)
        cv2.drawContours(whole, outlines, -1, (1,), cv2.FILLED)  # glare in the middle of a lens is a part of it
        found |= whole > 0
    elif max(covered) > WEAK:  # one eye alone: half of a pair of glasses would be worse than none
        for eye in eyes:
            gone = np.bincount(labels[eye & found], minlength=labels.max() + 1) > 0.3 * np.bincount(labels.ravel())
            found &= ~gone[labels.astype(np.intp)]
    return found


def _hair(unlike_HW: np.ndarray, mesh_K2: np.ndarray, face_HW: np.ndarray, margin: float) -> np.ndarray:
    """What reaches in from the outline over forehead, temples and upper cheeks and is not of skin colour, bool [H, W].

    The reconstruction mostly knows hair, but the swap need not have it; so the comparison is with plain skin. Below the
    nose it would be a beard, between the brows and the eyes' outer corners a brow: neither is looked at. margin: face
    sizes kept from those.
    """
    unit = np.sqrt(face_HW.sum())
    middle = [*RIGHT_BROW, *LEFT_BROW, *RIGHT_EYE, *LEFT_EYE, *NOSE_BASE, NOSE_TIP]
    zone = face_HW & ~_filled([cv2.convexHull(mesh_K2[middle].astype(np.float32))[:, 0]], face_HW.shape, margin * unit)
    zone &= ~_below(mesh_K2, NOSE_TIP, face_HW.shape)
    weak = cv2.morphologyEx(((unlike_HW > WEAK) & zone).astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    _, labels = cv2.connectedComponents(weak, connectivity=4)
    count = labels.max() + 1
    rim = face_HW & (cv2.erode(face_HW.astype(np.uint8), np.ones((3, 3), np.uint8), iterations=3) == 0)
    keep = np.bincount(labels[(unlike_HW > STRONG) & (weak > 0)], minlength=count) >= SMALLEST * face_HW.sum()
    keep &= np.bincount(labels[rim], minlength=count) > 0
    keep[0] = False
    return keep[labels]


def _follow(
    found_HW: np.ndarray, photo_HWC: np.ndarray, face_HW: np.ndarray, allowed_HW: np.ndarray, reach: int
) -> np.ndarray:
    """Each piece with what continues it in colour where allowed, beyond the face's outline as well, bool [H, W]."""
    skin = np.median(photo_HWC[face_HW & ~found_HW], axis=0) if (face_HW & ~found_HW).any() else np.full(3, 1e3)
    result = found_HW.copy()
    count, labels = cv2.connectedComponents(found_HW.astype(np.uint8))
    for index in range(1, count):
        piece = labels == index
        colours = photo_HWC[piece]
        mean, spread = colours.mean(axis=0), np.cov(colours.T) + 25 * np.eye(3)
        offset = photo_HWC - mean
        near = np.einsum("hwc,cd,hwd->hw", offset, np.linalg.inv(spread), offset) < 7
        near &= np.abs(offset).sum(axis=-1) < np.abs(photo_HWC - skin).sum(axis=-1)
        near = (near & allowed_HW) | piece
        kernel = np.ones((3, 3), np.uint8)
        grown = piece.astype(np.uint8)
        for _ in range(reach):
            grown = cv2.dilate(grown, kernel) & near.astype(np.uint8)
        result |= grown > 0
    return cv2.morphologyEx(result.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8)) > 0
