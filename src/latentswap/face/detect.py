"""Finding faces: MediaPipe's full-range detector over a pyramid of tiles.

The network is BlazeFace's dense full-range variant (Bazarevsky et al. 2019): 192×192 RGB in [-1, 1], one layer of 48×48
cells (stride 4), one anchor a cell. For every cell it gives a score logit and 16 numbers in units of network pixels:
the box's centre relative to the cell's centre, its width and height, then six points relative to the cell's centre.

It sees faces from about 14 to 120 network pixels, hence the pyramid: the whole picture first, then square tiles at
twice the scale of the level before, until the smallest wanted face covers `FACE_PIXELS` network pixels.
"""

import threading
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import openvino as ov

from latentswap.errors import WeightsError

INPUT = 192  # side of the network's square input
GRID = 48  # cells along a side
STRIDE = INPUT // GRID
FACE_PIXELS = 16  # network pixels of the smallest wanted face: 90 % of generated faces of this size score above 0.66
STEP = 152  # distance of neighbouring tiles in network pixels; the overlap of 40 holds any face that needs this level
MARGIN = 0.5  # the outermost level shows the picture at half the input's side, so that a face may fill all of it


@dataclass(frozen=True, kw_only=True, eq=False)
class Detection:
    """A face candidate in the picture's pixels."""

    box: tuple[float, float, float, float]  # x0, y0, x1, y1: forehead to chin, about square
    score: float  # 0 to 1
    keypoints_62: np.ndarray  # float64 [6, 2]: eye, eye (the picture's left one first), nose, mouth, ear, ear


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One square of a pyramid level: network pixel (0, 0) is level pixel (x, y), and level = picture × scale."""

    scale: float
    x: int
    y: int


def pyramid(height: int, width: int, *, smallest: float) -> list[list[Tile]]:
    """The tiles that cover a picture, level by level, coarsest first.

    smallest: picture pixels of the smallest face to find.
    """
    longest = max(height, width)
    finest = FACE_PIXELS / smallest
    scale = INPUT / longest
    scales = [scale * MARGIN, scale]
    while scales[-1] < finest:
        scales.append(min(scales[-1] * 2, finest))
    levels = []
    for scale in scales:
        rows, columns = (_starts(round(side * scale)) for side in (height, width))
        levels.append([Tile(scale=scale, x=x, y=y) for y in rows for x in columns])
    return levels


def _starts(extent: int) -> list[int]:
    """Where tiles begin along one side; a side shorter than a tile is centred in it."""
    if extent <= INPUT:
        return [(extent - INPUT) // 2]
    count = -(-(extent - INPUT) // STEP) + 1
    return [round(i * (extent - INPUT) / (count - 1)) for i in range(count)]


def decode(regression_N16: np.ndarray, logit_N: np.ndarray, *, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Network output → (values [M, 16], scores [M]) of the cells at or above the threshold.

    Values are absolute network pixels: box x0, y0, x1, y1, then six points x, y.
    """
    scores = 1 / (1 + np.exp(-np.clip(logit_N.astype(np.float64), -80, 80)))
    cells = np.flatnonzero(scores >= threshold)
    raw = regression_N16[cells].astype(np.float64)
    anchors = (np.stack([cells % GRID, cells // GRID], axis=1) + 0.5) * STRIDE
    half = raw[:, 2:4] / 2
    centres = raw[:, :2] + anchors
    points = raw[:, 4:].reshape(-1, 6, 2) + anchors[:, None]
    return np.concatenate([centres - half, centres + half, points.reshape(-1, 12)], axis=1), scores[cells]


def overlap(box_4: np.ndarray, boxes_N4: np.ndarray) -> np.ndarray:
    """Intersection over union of one box with N others."""
    inner = np.clip(np.minimum(box_4[2:], boxes_N4[:, 2:]) - np.maximum(box_4[:2], boxes_N4[:, :2]), 0, None)
    inner_area = inner.prod(axis=1)
    area = (box_4[2:] - box_4[:2]).prod() + (boxes_N4[:, 2:] - boxes_N4[:, :2]).prod(axis=1)
    return inner_area / np.maximum(area - inner_area, 1e-9)


def weighted_nms(values_N16: np.ndarray, scores_N: np.ndarray, *, iou: float) -> tuple[np.ndarray, np.ndarray]:
    """Blends every cluster of overlapping candidates into one, weighted by score (BlazeFace, section 3.4).

    Returns (values [M, 16], scores [M]), highest score first; a cluster keeps its best score.
    """
    left = np.argsort(-scores_N, kind="stable")
    values, scores = [], []
    while left.size:
        near = overlap(values_N16[left[0], :4], values_N16[left, :4]) >= iou
        near[0] = True  # a box without area overlaps not even itself
        members = left[near]
        values.append(np.average(values_N16[members], axis=0, weights=scores_N[members]))
        scores.append(scores_N[members[0]])
        left = left[~near]
    return np.array(values).reshape(-1, 16), np.array(scores)


class Detector:
    """MediaPipe's full-range face detector, run by OpenVINO in float32 on the CPU. Threads may share one.

    About 3 ms a tile on two cores: 0.1 s for 1024×1024 (27 tiles), 1.8 s for 4000×4000 (305 tiles).
    """

    def __init__(
        self, path: str | Path, *, smallest: float = 32, threshold: float = 0.5, threads: int | None = None
    ) -> None:
        """Compile the network.

        path: `face_detection_full_range.tflite`.
        smallest: picture pixels of the smallest face to look for; half of it costs four times as much.
        threshold: score below which a candidate is dropped.
        threads: CPU threads; OpenVINO's choice when absent.
        Raises WeightsError when the file is missing or is not that network.
        """
        self.smallest = smallest
        self.threshold = threshold
        # Without the hint, CPUs with AVX512-BF16 compute in bfloat16.
        settings: dict[str, object] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            network = ov.Core().compile_model(Path(path), "CPU", settings)
            outputs = {tuple(output.shape): output for output in network.outputs}
            self._outputs = outputs[1, GRID * GRID, 16], outputs[1, GRID * GRID, 1]
        except (RuntimeError, KeyError) as error:
            raise WeightsError(
                f"{path} is not MediaPipe's face_detection_full_range.tflite: fetch the weights again"
            ) from error
        self._request = network.create_infer_request()
        self._lock = threading.Lock()

    def detect(self, pixels: np.ndarray) -> list[Detection]:
        """Faces of a picture, uint8 [H, W, 3] RGB, highest score first (ties: from the left, then from the top)."""
        height, width = pixels.shape[:2]
        found_values, found_scores = [np.empty((0, 16))], [np.empty(0)]
        for tiles in pyramid(height, width, smallest=self.smallest):
            scale = tiles[0].scale
            size = (max(1, round(width * scale)), max(1, round(height * scale)))
            level = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
            for tile in tiles:
                values, scores = self._look(level, tile)
                found_values.append(values)
                found_scores.append(scores)
        values, scores = weighted_nms(np.concatenate(found_values), np.concatenate(found_scores), iou=0.3)
        order = np.lexsort((values[:, 1], values[:, 0], -scores))
        return [
            Detection(
                box=(float(v[0]), float(v[1]), float(v[2]), float(v[3])),
                score=float(s),
                keypoints_62=v[4:].reshape(6, 2).copy(),
            )
            for v, s in zip(values[order], scores[order], strict=True)
        ]

    def _look(self, level: np.ndarray, tile: Tile) -> tuple[np.ndarray, np.ndarray]:
        """One network run: candidates of a tile in picture pixels."""
        height, width = level.shape[:2]
        x0, y0 = max(tile.x, 0), max(tile.y, 0)
        part = level[y0 : y0 + INPUT, x0 : x0 + INPUT]
        net_1HWC = np.zeros((1, INPUT, INPUT, 3), np.float32)
        top, left = y0 - tile.y, x0 - tile.x
        net_1HWC[0, top : top + part.shape[0], left : left + part.shape[1]] = part * np.float32(2 / 255) - 1
        with self._lock:
            self._request.infer([net_1HWC])
            regression, logit = (self._request.get_tensor(output).data.copy() for output in self._outputs)
        values, scores = decode(regression[0], logit[0, :, 0], threshold=self.threshold)
        # A face cut by an inner edge is whole in the neighbouring tile or one level up, and only misplaced here.
        slack = 0.1 * (values[:, 2] - values[:, 0])
        cut = (tile.x > 0) & (values[:, 0] < -slack)
        cut |= (tile.y > 0) & (values[:, 1] < -slack)
        cut |= (tile.x + INPUT < width) & (values[:, 2] > INPUT + slack)
        cut |= (tile.y + INPUT < height) & (values[:, 3] > INPUT + slack)
        values = (values[~cut].reshape(-1, 8, 2) + np.array([tile.x, tile.y])) / tile.scale
        return values.reshape(-1, 16), scores[~cut]
