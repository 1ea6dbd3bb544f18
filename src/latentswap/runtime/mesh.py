"""The face mesh network on OpenVINO: fast on a CPU, with MediaPipe's way of following a face.

The same network as `latentswap.shape.mesh.MeshNet`, which is the differentiable reference.
"""

import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from latentswap.runtime.tflite import compile_tflite
from latentswap.shape import topology
from latentswap.shape.topology import MESH_SIZE

ROI_SCALE = 1.5  # side of the square over the longer side of the mesh's box, as in MediaPipe's tracking


class Roi(NamedTuple):
    """A rotated square in picture pixels (pixel-edge convention). An ordinary tuple of four numbers does as well."""

    cx: float
    cy: float
    side: float
    angle_deg: float = 0.0  # positive: clockwise in the picture, so that an upright face has 0


class MeshRunner:
    """Finds the 468-point mesh of a face that lies in a given square. Threads may share a runner; they take turns."""

    def __init__(self, path: str | Path, *, threads: int | None = None) -> None:
        """Compile the network.

        Args:
            path: `face_landmark.tflite`.
            threads: CPU threads; OpenVINO's choice when absent.

        Raises:
            WeightsError: the file is missing or is not that network.
        """
        sizes = (topology.MESH_POINTS * 3, 1)
        compiled, (mesh, score) = compile_tflite(path, sizes, name="face_landmark.tflite", threads=threads)
        self._lock = threading.Lock()
        self._request = compiled.create_infer_request()
        self._outputs = (compiled.output(mesh), compiled.output(score))

    def __call__(self, pixels: np.ndarray, roi: Sequence[float], *, refine: int = 1) -> tuple[np.ndarray, float]:
        """Mesh of one face.

        Args:
            pixels: RGB uint8 [H, W, 3].
            roi: cx, cy, side, angle_deg of a square about the face (see `Roi`); rough is enough when `refine` ≥ 1.
            refine: further passes, each on the square that the mesh before it implies.

        Returns:
            mesh_K3 float32 [468, 3] in picture pixels (z in the same unit), and the probability that it is a face.
            The score is the last pass's.
        """
        square = Roi(*roi)
        mesh_K3, score = self._once(pixels, square)
        for _ in range(refine):
            mesh_K3, score = self._once(pixels, roi_from_mesh(mesh_K3))
        return mesh_K3, score

    def batch(
        self, pixels: np.ndarray, rois: Sequence[Sequence[float]], *, refine: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """Meshes of several faces of one picture: mesh_FK3 float32 [F, 468, 3] and score_F float32 [F]."""
        # One face takes about 4 ms and already fills the cores: running faces one by one is as fast as a batch.
        found = [self(pixels, roi, refine=refine) for roi in rois]
        mesh_FK3 = (
            np.stack([mesh for mesh, _ in found]) if found else np.empty((0, topology.MESH_POINTS, 3), np.float32)
        )
        return mesh_FK3, np.array([score for _, score in found], dtype=np.float32)

    def _once(self, pixels: np.ndarray, roi: Roi) -> tuple[np.ndarray, float]:
        patch = cut_roi(pixels, roi, MESH_SIZE)
        with self._lock:
            self._request.infer([patch[None].astype(np.float32) / 255.0])
            mesh, score = (self._request.get_tensor(output).data.flatten() for output in self._outputs)
        matrix = roi_matrix(roi, MESH_SIZE)
        mesh_K3 = mesh.reshape(-1, 3).astype(np.float64)
        mesh_K3[:, :2] = mesh_K3[:, :2] @ matrix[:, :2].T + matrix[:, 2]
        mesh_K3[:, 2] *= roi.side / MESH_SIZE
        return mesh_K3.astype(np.float32), 1.0 / (1.0 + math.exp(-float(score[0])))


def roi_matrix(roi: Roi, size: int) -> np.ndarray:
    """float64 [2, 3]: points of the size × size patch → picture pixels (pixel-edge convention on both sides)."""
    angle = math.radians(roi.angle_deg)
    step = roi.side / size
    cos, sin = math.cos(angle) * step, math.sin(angle) * step
    half = size / 2
    return np.array([[cos, -sin, roi.cx - (cos - sin) * half], [sin, cos, roi.cy - (sin + cos) * half]])


def cut_roi(pixels: np.ndarray, roi: Roi, size: int) -> np.ndarray:
    """Resample a rotated square to uint8 [size, size, 3]; black outside the picture; area-averaged when shrinking."""
    matrix = roi_matrix(roi, size)
    if roi.side > 2 * size:
        # Bring the neighbourhood near to twice the patch first: a bilinear warp reads four pixels only.
        reach = roi.side * 0.7072 + 2
        height, width = pixels.shape[:2]
        x0, x1 = (min(max(round(value), 0), width) for value in (roi.cx - reach, roi.cx + reach))
        y0, y1 = (min(max(round(value), 0), height) for value in (roi.cy - reach, roi.cy + reach))
        if x1 <= x0 or y1 <= y0:
            return np.zeros((size, size, 3), np.uint8)
        factor = 2 * size / roi.side
        small = (max(round((x1 - x0) * factor), 1), max(round((y1 - y0) * factor), 1))
        pixels = cv2.resize(pixels[y0:y1, x0:x1], small, interpolation=cv2.INTER_AREA)
        scale_x, scale_y = small[0] / (x1 - x0), small[1] / (y1 - y0)
        matrix = np.array([[scale_x], [scale_y]]) * (matrix - np.array([[0.0, 0.0, x0], [0.0, 0.0, y0]]))
    fine = 2 if roi.side > size else 1
    matrix = matrix @ np.diag([1 / fine, 1 / fine, 1.0])
    # OpenCV counts from pixel centres: shift by half a pixel on both sides.
    matrix[:, 2] += matrix[:, :2] @ (0.5, 0.5) - 0.5
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    patch = cv2.warpAffine(pixels, matrix, (size * fine, size * fine), flags=flags, borderMode=cv2.BORDER_CONSTANT)
    return cv2.resize(patch, (size, size), interpolation=cv2.INTER_AREA) if fine == 2 else patch


def roi_from_mesh(mesh_K3: np.ndarray) -> Roi:
    """The square about a mesh: level with the eyes' outer corners, 1.5 times the longer side of the mesh's box."""
    right, left = mesh_K3[topology.RIGHT_EYE_CORNERS[0], :2], mesh_K3[topology.LEFT_EYE_CORNERS[0], :2]
    angle = math.atan2(float(left[1] - right[1]), float(left[0] - right[0]))
    cos, sin = math.cos(angle), math.sin(angle)
    turn = np.array([[cos, -sin], [sin, cos]])  # face axes → picture axes
    level_K2 = mesh_K3[:, :2].astype(np.float64) @ turn
    low, high = level_K2.min(axis=0), level_K2.max(axis=0)
    cx, cy = turn @ ((low + high) / 2)
    return Roi(float(cx), float(cy), ROI_SCALE * float((high - low).max()), math.degrees(angle))
