"""From a picture to its faces: detection, mesh, pose, and reasons why a face should be left alone."""

import math
from types import MappingProxyType

import numpy as np
import torch

from latentswap.face.detect import Detection, Detector
from latentswap.runtime.mesh import ROI_SCALE, MeshRunner, Roi, roi_from_mesh
from latentswap.shape.measures import head_pose, mean_mesh, similarity_align
from latentswap.types import Face
from latentswap.weights.fetch import weights_path

# What the quality gate may say: the words of `Face.reasons`, with a text for people.
REASONS = MappingProxyType(
    {
        "not_a_face": "does not have the shape of a face",
        "low_confidence": "is too unclear to be sure of its features",
        "too_small": "is smaller than 32 pixels",
        "profile": "is turned sideways by more than 60 degrees",
        "upside_down": "is upside down",
        "cut_by_border": "is cut off by the edge of the picture",
    }
)

SMALLEST = 32.0  # pixels, longer side of the mesh's box
MOST_YAW = 60.0  # degrees
MOST_ROLL = 100.0  # degrees
MOST_OUTSIDE = 0.15  # share of the mesh's points beyond the picture
NO_FACE_SCORE = 0.1  # mesh scores: walls, coins and galaxies reach 0.09, and 95 in 100 of them 0.02; clear faces 0.999
CLEAR_SCORE = 0.5
MOST_DEVIATION = 0.3  # see `deviation`: upright faces reach 0.09, faces in profile 0.24
MOST_PASSES = 8
STILL = 4.0  # degrees
SAME_FACE = 0.2  # meshes closer than this, in face sizes, are one face


class FaceAnalyser:
    """Finds and measures the faces of pictures. Threads may share one."""

    def __init__(self, detector: Detector, mesh_runner: MeshRunner) -> None:
        self.detector = detector
        self.mesh_runner = mesh_runner

    @classmethod
    def load(cls, *, offline: bool = False, threads: int | None = None) -> "FaceAnalyser":
        """An analyser with the project's own weights, fetched when missing. Raises WeightsError."""
        detector = weights_path("mediapipe-detector", offline=offline)
        mesh = weights_path("mediapipe-mesh", offline=offline, file="face_landmark.tflite")
        return cls(Detector(detector, threads=threads), MeshRunner(mesh, threads=threads))

    def __call__(self, pixels: np.ndarray) -> tuple[Face, ...]:
        """The faces of a picture, uint8 [H, W, 3] RGB: largest box first, then from the left.

        A face that should not be used carries its reasons, words of `REASONS`; nothing that was detected is dropped.
        Where no upright face is found the picture is searched on its sides and upside down as well.
        """
        faces = [self._measure(pixels, found) for found in self.detector.detect(pixels)]
        if not any("not_a_face" not in face.reasons for face in faces):
            turned = [found for turns in (1, 2, 3) for found in self._detect_turned(pixels, turns)]
            faces += [self._measure(pixels, found) for found in turned]
        return order(merge(faces))

    def _detect_turned(self, pixels: np.ndarray, turns: int) -> list[Detection]:
        turned = np.ascontiguousarray(np.rot90(pixels, turns))
        return [turn_back(found, turns, pixels.shape[0], pixels.shape[1]) for found in self.detector.detect(turned)]

    def _settle(self, pixels: np.ndarray, roi: Roi) -> tuple[np.ndarray, float]:
        """Run the mesh twice, and on while it still turns: it follows a strongly turned face only step by step."""
        for _ in range(MOST_PASSES):
            mesh_K3, _ = self.mesh_runner(pixels, roi, refine=0)
            roi, before = roi_from_mesh(mesh_K3), roi
            if abs(math.remainder(roi.angle_deg - before.angle_deg, 360)) < STILL:
                break
        return self.mesh_runner(pixels, roi, refine=0)

    def _measure(self, pixels: np.ndarray, found: Detection) -> Face:
        mesh_K3, mesh_score = self._settle(pixels, roi_from_detection(found))
        low, high = mesh_K3[:, :2].min(axis=0), mesh_K3[:, :2].max(axis=0)
        yaw, pitch, roll = head_pose(torch.from_numpy(mesh_K3)[None])[0].tolist()
        return Face(
            box=(float(low[0]), float(low[1]), float(high[0]), float(high[1])),
            score=found.score,
            mesh_score=mesh_score,
            mesh_K3=mesh_K3,
            yaw=yaw,
            pitch=pitch,
            roll=roll,
            reasons=gate(mesh_K3, mesh_score, yaw=yaw, roll=roll, height=pixels.shape[0], width=pixels.shape[1]),
        )


def roi_from_detection(found: Detection) -> Roi:
    """The square in which the mesh network looks first: the detector's box, level with the eyes, enlarged."""
    x0, y0, x1, y1 = found.box
    across = found.keypoints_62[1] - found.keypoints_62[0]
    angle = math.degrees(math.atan2(across[1], across[0]))
    return Roi((x0 + x1) / 2, (y0 + y1) / 2, ROI_SCALE * max(x1 - x0, y1 - y0), angle)


def turn_back(found: Detection, turns: int, height: int, width: int) -> Detection:
    """A detection in `np.rot90(picture, turns)` → in the picture of the given height and width."""
    points = np.concatenate([np.reshape(found.box, (2, 2)), found.keypoints_62])
    for turn in range(turns, 0, -1):
        side = width if turn % 2 else height  # of the picture before this quarter turn
        points = np.stack([side - points[:, 1], points[:, 0]], axis=1)
    low, high = points[:2].min(axis=0), points[:2].max(axis=0)
    box = (float(low[0]), float(low[1]), float(high[0]), float(high[1]))
    return Detection(box=box, score=found.score, keypoints_62=points[2:])


def deviation(mesh_K3: np.ndarray) -> float:
    """How far a mesh is from the mean face after a similarity: root mean square in units of the mean face's spread."""
    fit = similarity_align(torch.from_numpy(mesh_K3)[None])
    mean_K3 = mean_mesh()
    spread = (mean_K3 - mean_K3.mean(0)).square().sum(-1).mean().sqrt()
    return float((fit.mesh_BK3[0] - mean_K3).square().sum(-1).mean().sqrt() / spread)


def gate(
    mesh_K3: np.ndarray, mesh_score: float, *, yaw: float, roll: float, height: int, width: int
) -> tuple[str, ...]:
    """Why a face should be left alone, words of `REASONS`; empty when it is good to use."""
    points = mesh_K3[:, :2]
    outside = ((points < 0) | (points > (width, height))).any(axis=1).mean()
    if mesh_score < NO_FACE_SCORE or deviation(mesh_K3) > MOST_DEVIATION:
        return ("not_a_face",)
    verdicts = {
        "low_confidence": mesh_score < CLEAR_SCORE,
        "too_small": np.ptp(points, axis=0).max() < SMALLEST,
        "profile": abs(yaw) > MOST_YAW,
        "upside_down": abs(roll) > MOST_ROLL,
        "cut_by_border": outside > MOST_OUTSIDE,
    }
    return tuple(reason for reason, holds in verdicts.items() if holds)


def merge(faces: list[Face]) -> list[Face]:
    """Of faces whose meshes nearly coincide only the best is kept: highest mesh score, then detector's score."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda face: (-face.mesh_score, -face.score, *face.box)):
        if not any(_same(face, other) for other in kept):
            kept.append(face)
    return kept


def _same(a: Face, b: Face) -> bool:
    distance = np.hypot(*(a.mesh_K3[:, :2] - b.mesh_K3[:, :2]).T).mean()
    return bool(distance < SAME_FACE * max(a.size, b.size))


def order(faces: list[Face]) -> tuple[Face, ...]:
    """Largest box first, then from the left, then from the top."""

    def key(face: Face) -> tuple[float, float, float]:
        x0, y0, x1, y1 = face.box
        return -(x1 - x0) * (y1 - y0), x0, y0

    return tuple(sorted(faces, key=key))
