"""The iris network on OpenVINO, and gaze as a figure, for evaluation.

The same network and the same measure as `latentswap.shape.iris` and `latentswap.shape.gaze`, which are the
differentiable reference; patches are cut from the crop at its own resolution.
"""

import math
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch

from latentswap.runtime.tflite import compile_tflite
from latentswap.shape.gaze import (
    EYE_SPAN,
    eye_frames,
    eye_gaze,
    found_corners,
    from_patch,
    gaze_turn,
    gaze_weight,
    mesh_corners,
    move,
)
from latentswap.shape.iris import CONTOUR_POINTS, IRIS_POINTS, IRIS_SIZE

LID_POINTS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 15, 14, 13, 12, 11, 10, 9)  # of the contour: once around the eye's opening


@dataclass(frozen=True, kw_only=True, eq=False)
class Eyes:
    """What was seen of both eyes (0 the person's right, 1 the left), points in crop pixels."""

    gaze_E2: np.ndarray  # float32 [2, 2], eye widths; see `latentswap.shape.gaze.Gaze`
    weight_E: np.ndarray  # float32 [2], 0 (tells nothing) to 1
    frames_E23: np.ndarray  # float32 [2, 2, 3]: eye widths → crop pixels
    lids_EN2: np.ndarray  # float32 [2, 16, 2]: the edge of the opening, closed
    iris_EN2: np.ndarray  # float32 [2, 5, 2]: centre, then four points of the rim


class IrisRunner:
    """Looks at the eyes of an aligned crop. Threads may share a runner; they take turns."""

    def __init__(self, path: str | Path, *, threads: int | None = None) -> None:
        """Compile the network.

        Args:
            path: `iris_landmark.tflite`.
            threads: CPU threads; OpenVINO's choice when absent.

        Raises:
            WeightsError: the file is missing or is not that network.
        """
        sizes = (CONTOUR_POINTS * 3, IRIS_POINTS * 3)
        compiled, found = compile_tflite(path, sizes, name="iris_landmark.tflite", threads=threads)
        self._lock = threading.Lock()
        self._request = compiled.create_infer_request()
        self._outputs = tuple(compiled.output(index) for index in found)

    def __call__(self, crop_pixels: np.ndarray, mesh_K3: np.ndarray) -> Eyes:
        """Look twice at both eyes of a crop.

        Args:
            crop_pixels: RGB uint8 [S, S, 3].
            mesh_K3: [468, 3] in crop pixels.
        """
        mesh_BK3 = torch.from_numpy(np.asarray(mesh_K3, np.float32))[None]
        corners_BE22 = mesh_corners(mesh_BK3)
        contour_BEN3, _ = self._look(crop_pixels, corners_BE22)
        corners_BE22 = found_corners(contour_BEN3, corners_BE22)
        contour_BEN3, iris_BEN3 = self._look(crop_pixels, corners_BE22)
        frames_BE23 = eye_frames(corners_BE22)
        lids_BEN2 = move(frames_BE23, from_patch(contour_BEN3[:, :, LID_POINTS, :2]))
        return Eyes(
            gaze_E2=eye_gaze(contour_BEN3, iris_BEN3)[0].numpy(),
            weight_E=gaze_weight(mesh_BK3)[0].numpy(),
            frames_E23=eye_frames(found_corners(contour_BEN3, corners_BE22))[0].numpy(),
            lids_EN2=lids_BEN2[0].numpy(),
            iris_EN2=move(frames_BE23, from_patch(iris_BEN3[..., :2]))[0].numpy(),
        )

    def _look(self, pixels: np.ndarray, corners_BE22: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = [self._once(cut_eye(pixels, frame_23.double().numpy())) for frame_23 in eye_frames(corners_BE22)[0]]
        contours, irises = zip(*found, strict=True)
        return torch.from_numpy(np.stack(contours))[None], torch.from_numpy(np.stack(irises))[None]

    def _once(self, patch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with self._lock:
            self._request.infer([patch[None].astype(np.float32) / 255.0])
            contour, iris = (self._request.get_tensor(output).data.flatten() for output in self._outputs)
        return contour.reshape(CONTOUR_POINTS, 3), iris.reshape(IRIS_POINTS, 3)


def cut_eye(pixels: np.ndarray, frame_23: np.ndarray) -> np.ndarray:
    """The patch of one eye, uint8 [64, 64, 3], area-averaged; black outside of the picture."""
    fine = max(1, round(np.hypot(*frame_23[:, 0]) * EYE_SPAN / IRIS_SIZE))
    side = IRIS_SIZE * fine
    to_eye = np.array([[1.0, 0.0, 0.5 - (EYE_SPAN - 1) / 2 / EYE_SPAN * side], [0.0, 1.0, 0.5 - side / 2]])
    to_eye *= EYE_SPAN / side  # centres of the patch's pixels → eye widths
    matrix = frame_23[:, :2] @ to_eye
    matrix[:, 2] += frame_23[:, 2] - 0.5
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    patch = cv2.warpAffine(pixels, matrix, (side, side), flags=flags, borderMode=cv2.BORDER_CONSTANT)
    return patch if fine == 1 else cv2.resize(patch, (IRIS_SIZE, IRIS_SIZE), interpolation=cv2.INTER_AREA)


class GazeError(NamedTuple):
    """How far two gazes are apart, in eye widths, and how far that is to be trusted."""

    direction: float  # what both eyes share (`gaze_turn`); noise about 0.004, 0.05 between strangers
    each: float  # mean over the eyes of the iris's distance in its own eye; holds the cut of the eyes too
    weight: float  # 0 (no eye can be told in both pictures; the distances are NaN) to 1


def gaze_error(eyes: Eyes, target: Eyes) -> GazeError:
    """How far the gaze of a result is from its target's."""
    weight_E = eyes.weight_E * target.weight_E
    if not weight_E.max() > 0:
        return GazeError(math.nan, math.nan, 0.0)
    gaze, wanted, weight = (torch.from_numpy(a)[None] for a in (eyes.gaze_E2, target.gaze_E2, weight_E))
    off_E = np.hypot(*(eyes.gaze_E2 - target.gaze_E2).T)
    return GazeError(
        direction=float(gaze_turn(gaze, wanted, weight).norm()),
        each=float(np.average(off_E, weights=weight_E)),
        weight=float(weight_E.max()),
    )
