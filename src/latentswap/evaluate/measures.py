"""What is measured on a (source, target, result) triple: pure functions of embeddings, meshes and pixels.

Crops are FFHQ-aligned squares of S pixels, uint8 [S, S, 3] RGB; a result is cut exactly where its target was. Meshes
are float [468, 3] in crop pixels. Letters as in `latentswap.types`; T sectors, N items of a list.
"""

import cv2
import numpy as np
import torch

from latentswap.face.align import invert_affine
from latentswap.shape import topology as T
from latentswap.shape.measures import (
    expression_measures,
    expression_statistics,
    head_pose,
    mean_mesh,
    openness,
    similarity_align,
)

SIZE = 512  # side S of the crops that are measured
OUTSIDE_MARGIN = 0.02  # of the crop's side: the mask grown by this counts as inside, since meshes jitter
SECTORS = 32  # pieces that the mask's edge is cut into
SEAM_STEP = 0.01  # of the crop's side: the width over which a change counts as steep
SEAM_REACH = 0.03  # of the crop's side: the ring reaches this far beyond the soft edge
_CELLS_A_STEP = 2
OTHER_CONTENT = 40.0  # grey levels: a larger difference is hair or background in place of skin, not a seam
_LEAST_ALIKE = 0.9  # of a cell's pixels
_LEAST_IN_CELL = 8  # pixels; a mean over fewer is noise
_EDGE = 0.02  # mask values this close to 0 and 1 count as outside and inside
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_CONTOURS = T.RIGHT_EYE + T.LEFT_EYE + T.OUTER_LIPS + T.INNER_LIPS


def _batch(mesh_K3: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(mesh_K3, np.float32))[None]


def cosine(a_E: np.ndarray, b_E: np.ndarray) -> float:
    """Cosine of two embeddings, -1 to 1."""
    return float(a_E @ b_E / max(float(np.linalg.norm(a_E) * np.linalg.norm(b_E)), 1e-12))


def rank(result_E: np.ndarray, gallery_NE: np.ndarray, own: int) -> int:
    """Place of the gallery's entry `own` by cosine to the result, all unit vectors: 1 when no other is closer."""
    cosines_N = gallery_NE @ result_E
    return 1 + int((cosines_N > cosines_N[own]).sum())


def pose_error(mesh_K3: np.ndarray, other_K3: np.ndarray) -> float:
    """Degrees: length of the difference of (yaw, pitch, roll), each mesh's rigid points against the mean face."""
    return float((head_pose(_batch(mesh_K3)) - head_pose(_batch(other_K3))).norm())


def expression_error(mesh_K3: np.ndarray, other_K3: np.ndarray) -> float:
    """Root mean square difference of the mesh's eight expression measures, in standard deviations over people.

    Two unrelated neutral people are about 1.4 apart, which is what two independent draws of unit spread give.
    """
    _, std_M = expression_statistics()
    difference_BM = (expression_measures(_batch(mesh_K3)) - expression_measures(_batch(other_K3))) / std_M
    return float(difference_BM.square().mean().sqrt())


def landmark_error(mesh_K3: np.ndarray, other_K3: np.ndarray) -> float:
    """Mean distance of the contours of eyes and lips in the picture plane, % of the crop's side.

    Both meshes are first laid on the mean face by their rigid points, so that pose and place play no part.
    """
    both = [similarity_align(_batch(mesh)).mesh_BK3[0, list(_CONTOURS), :2] for mesh in (mesh_K3, other_K3)]
    return 100 * float((both[0] - both[1]).norm(dim=-1).mean())


def openness_error(mesh_K3: np.ndarray, other_K3: np.ndarray) -> tuple[float, float]:
    """Differences of openness of the eyes (mean of both: lid gap over width) and of the mouth (lip gap over width)."""
    (eyes_a, mouth_a), (eyes_b, mouth_b) = openness(_batch(mesh_K3)), openness(_batch(other_K3))
    return abs(float(eyes_a.mean() - eyes_b.mean())), abs(float(mouth_a - mouth_b))


def background_error(result: np.ndarray, target: np.ndarray, mask_SS: np.ndarray, affine: np.ndarray) -> float:
    """Mean absolute difference of two whole pictures outside of the face, in grey levels of 255.

    result, target: uint8 [H, W, 3]. mask_SS: float [S, S] in the crop, any value above 0 is face; it is grown by 2 % of
    the crop's side. affine: picture pixels → crop pixels. 0 when the picture is all face.
    """
    size = mask_SS.shape[0]
    margin = 2 * round(OUTSIDE_MARGIN * size) + 1
    face = cv2.dilate((mask_SS > 0).astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (margin, margin)))
    to_picture = invert_affine(affine)
    to_picture[:, 2] += to_picture[:, :2] @ (0.5, 0.5) - 0.5  # OpenCV counts from the first pixel's centre
    covered = cv2.warpAffine(face, to_picture, target.shape[1::-1], flags=cv2.INTER_NEAREST)
    outside = (covered == 0).astype(np.uint8)
    if not outside.any():
        return 0.0
    return float(np.mean(cv2.mean(cv2.absdiff(result, target), mask=outside)[:3]))


def seam(result_SS3: np.ndarray, target_SS3: np.ndarray, mask_SS: np.ndarray) -> float:
    """How much steeper result − target changes across the mask's edge than inside of it, in grey levels.

    The difference of luma is averaged along the edge in 32 sectors, so that texture, which has no common direction,
    goes and a step that follows the edge stays. Its change over 1 % of the side, going outwards, is taken at every
    distance from the edge: absolute, mean over the sectors. The seam is the largest of these in the soft edge and a
    little beyond it, less their mean over as wide a band inside: a soft blend is near 0, a cut-out that is 20 levels
    too bright near 20. 0 when the mask has no edge in the crop.
    """
    size = mask_SS.shape[0]
    difference_SS = (result_SS3.astype(np.float32) - target_SS3.astype(np.float32)) @ _LUMA
    inside = (mask_SS > 1 - _EDGE).astype(np.uint8)
    outside = (mask_SS < _EDGE).astype(np.uint8)
    if not inside.any() or not outside.any():
        return 0.0
    # Distance from the full inside, outwards; and from the full outside, inwards: their sum over the edge is its width.
    outward_SS = cv2.distanceTransform(1 - inside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    inward_SS = cv2.distanceTransform(inside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    edge = (inside == 0) & (outside == 0)
    width = float(np.median(outward_SS[edge]) * 2) if edge.any() else 0.0
    reach = max(width, SEAM_STEP * size) + SEAM_REACH * size
    cell = SEAM_STEP * size / _CELLS_A_STEP
    cells = int(np.ceil(reach / cell))
    sector_SS = _sectors(inside)
    # Cell -1 is the last one inside; both profiles share the cells next to the border, where a hard cut lies.
    steps_SS = np.floor(np.where(inside > 0, 0.5 - inward_SS, outward_SS - 0.5) / cell).astype(int)
    profile_TN = _profile(difference_SS, sector_SS, steps_SS, cells)
    slope_TN = np.abs(profile_TN[:, _CELLS_A_STEP:] - profile_TN[:, :-_CELLS_A_STEP])
    inner_TN, ring_TN = slope_TN[:, : cells - _CELLS_A_STEP], slope_TN[:, cells - _CELLS_A_STEP :]
    inner_N, ring_N = _mean_known(inner_TN), _mean_known(ring_TN)
    return float(ring_N.max() - inner_N.mean()) if inner_N.size and ring_N.size else 0.0


def _mean_known(slope_TN: np.ndarray) -> np.ndarray:
    """Means over the sectors, of the steps that a quarter of them know."""
    common = np.isfinite(slope_TN).mean(axis=0) >= 0.25
    return np.nanmean(slope_TN[:, common], axis=0)


def _sectors(inside: np.ndarray) -> np.ndarray:
    """Number of the sector of each pixel, by its angle about the middle of the mask, int [S, S]."""
    rows, columns = np.nonzero(inside)
    y = np.arange(inside.shape[0])[:, None] - rows.mean()
    x = np.arange(inside.shape[1])[None] - columns.mean()
    return np.minimum(((np.arctan2(y, x) / (2 * np.pi) + 0.5) * SECTORS).astype(int), SECTORS - 1)


def _profile(values_SS: np.ndarray, sector_SS: np.ndarray, steps_SS: np.ndarray, cells: int) -> np.ndarray:
    """Means over each sector and step from -cells to cells - 1, [SECTORS, 2 · cells]; NaN where too few pixels lie."""
    near = (steps_SS >= -cells) & (steps_SS < cells)
    index = sector_SS[near] * 2 * cells + steps_SS[near] + cells
    size, values = SECTORS * 2 * cells, values_SS[near]
    counts = np.bincount(index, minlength=size)
    alike = np.abs(values) < OTHER_CONTENT
    kept = np.bincount(index[alike], minlength=size)
    sums = np.bincount(index[alike], weights=values[alike], minlength=size)
    known = (counts >= _LEAST_IN_CELL) & (kept >= _LEAST_ALIKE * counts)
    return np.where(known, sums / np.maximum(kept, 1), np.nan).reshape(SECTORS, 2 * cells)


def mean_crop_mesh(size: int) -> np.ndarray:
    """The mean face in the pixels of a crop, float64 [468, 3]: where a mesh network looks first in a crop."""
    return mean_mesh().numpy().astype(np.float64) * size
