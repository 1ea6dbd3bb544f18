"""Scoring (source, target, result) files: each is read and aligned once, then `measures` are taken."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch

from latentswap.errors import BadInputError
from latentswap.evaluate import measures
from latentswap.evaluate.judge import GeometryJudge, Judge, MeshPoints, TrainingJudge
from latentswap.evaluate.measures import SIZE
from latentswap.evaluate.pairs import LARGEST, Pair
from latentswap.face.align import cut, ffhq_affine
from latentswap.face.mask import face_mask
from latentswap.face.select import choose
from latentswap.media.image import as_image, decode, encode
from latentswap.pipeline import Swapper, person
from latentswap.runtime.iris import Eyes, IrisRunner, gaze_error
from latentswap.swappers.latentswap import to_pixels
from latentswap.weights.fetch import weights_path

THUMBNAIL = 112
FIRST_STRANGER = 2_000_000  # seed of the first generated person that fills a gallery up

# Every column of the report: its name, its unit, what it is. The order is the tables'.
COLUMNS: dict[str, tuple[str, str]] = {
    "judge_to_source": ("", "identity cosine of result and source, by the judge"),
    "judge_to_target": ("", "identity cosine of result and target, by the judge"),
    "judge_between": ("", "identity cosine of source and target, by the judge"),
    "judge_pose": ("°", "length of the difference of the judge's pose angles"),
    "judge_expression": ("", "distance of the judge's expression coefficients"),
    "training_to_source": ("", "identity cosine of result and source, by the training network"),
    "training_to_target": ("", "identity cosine of result and target, by the training network"),
    "training_between": ("", "identity cosine of source and target, by the training network"),
    "pose": ("°", "length of the difference of yaw, pitch, roll by the mesh"),
    "expression": ("sd", "root mean square difference of eight expression measures"),
    "landmarks": ("%", "mean distance of the contours of eyes and lips, of the crop's side"),
    "eyes": ("", "difference of the openness of the eyes"),
    "mouth": ("", "difference of the openness of the mouth"),
    "gaze": ("eye widths", "distance of the directions of gaze, where eyes are open in both"),
    "background": ("levels", "mean difference outside of the face, 0 to 255"),
    "seam": ("levels", "how much steeper the change is across the mask's edge than inside"),
    "seconds": ("s", "time of the swap, the source being prepared"),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Look:
    """What is kept of a picture that was looked at."""

    affine: np.ndarray  # picture → crop of SIZE
    mesh_K3: np.ndarray  # crop pixels
    eyes: Eyes
    identity: dict[str, np.ndarray]  # "training" and, with a judge, "judge": unit vectors
    geometry: tuple[np.ndarray, np.ndarray] | None  # angles and expression by the judge
    thumbnail: bytes  # JPEG


@dataclass(frozen=True, kw_only=True, eq=False)
class Score:
    """Figures of one pair, the identities that retrieval needs, and small pictures."""

    pair: Pair
    figures: dict[str, float]
    source: Look
    result: dict[str, np.ndarray]
    thumbnails: tuple[bytes, bytes, bytes] = field(repr=False)


class Scorer:
    """Measures pairs with the swapper's own networks and, apart from them, a judge."""

    def __init__(self, swapper: Swapper, judge: Judge | None = None) -> None:
        self.swapper, self.judge = swapper, judge
        networks = swapper.networks
        self.judges: dict[str, Judge] = {"training": TrainingJudge(networks.identity, networks.mean_E)}
        if judge is not None:
            self.judges["judge"] = judge
        self.points = MeshPoints(swapper.analyser.mesh_runner)
        self.iris = IrisRunner(weights_path("mediapipe-iris", offline=True, file="iris_landmark.tflite"))
        self._looks: dict[Path, Look] = {}
        self._last_crop: tuple[Path, np.ndarray] | None = None  # all crops of a run would be too much to keep
        self._read = lru_cache(maxsize=2)(lambda path, role: decode(path, role=role).pixels)

    def look(self, path: Path, role: Literal["SOURCE", "TARGET"], affine: np.ndarray | None = None) -> Look:
        """The largest usable face of a picture, or the one that `affine` cuts. Raises BadInputError and NoFaceError."""
        if path not in self._looks:
            pixels = self._read(path, role)
            if affine is None:
                (face, *_) = choose(self.swapper.analyser(pixels), LARGEST, role=role, name=path.name)
                affine = ffhq_affine(face.mesh_K3, SIZE)
            crop = cut(pixels, affine, SIZE)
            self._looks[path] = self._measure(crop, affine)
            self._last_crop = path, crop
        return self._looks[path]

    def score(self, pair: Pair, result_path: Path, notes: Mapping[str, Any] | None = None) -> Score:
        """All figures of a pair. `notes`: what `Results.make` said. Raises BadInputError and NoFaceError."""
        notes = notes or {}
        affine = np.array(notes["target_affine"]) if "target_affine" in notes else None
        source, target = self.look(pair.source, "SOURCE"), self.look(pair.target, "TARGET", affine)
        pixels, target_pixels = self._read(result_path, "RESULT"), self._read(pair.target, "TARGET")
        if pixels.shape != target_pixels.shape:
            sizes = [f"{width}×{height}" for height, width, _ in (pixels.shape, target_pixels.shape)]
            raise BadInputError(f"the RESULT image {result_path.name} has {sizes[0]} pixels and its target {sizes[1]}")
        # The result lies where its target lies, so it is cut there: nothing about it is taken from another alignment.
        crop = cut(pixels, target.affine, SIZE)
        result = self._measure(crop, target.affine)
        figures = self._compare(source, target, result)
        mask = face_mask(target.mesh_K3, SIZE, other_K3=result.mesh_K3)
        figures["background"] = measures.background_error(pixels, target_pixels, mask, target.affine)
        figures["seam"] = measures.seam(crop, self._crop(pair.target, target.affine), mask)
        if "seconds" in notes:
            figures["seconds"] = notes["seconds"]
        return Score(
            pair=pair,
            figures={name: round(figures[name], 5) for name in COLUMNS if name in figures},
            source=source,
            result=result.identity,
            thumbnails=(source.thumbnail, target.thumbnail, result.thumbnail),
        )

    def _crop(self, path: Path, affine: np.ndarray) -> np.ndarray:
        """The target's crop: as a rule the last that was cut."""
        if self._last_crop is not None and self._last_crop[0] == path:
            return self._last_crop[1]
        return cut(self._read(path, "TARGET"), affine, SIZE)

    def _compare(self, source: Look, target: Look, result: Look) -> dict[str, float]:
        figures = {}
        for name in self.judges:
            a, b, c = (look.identity[name] for look in (source, target, result))
            figures[f"{name}_to_source"] = measures.cosine(c, a)
            figures[f"{name}_to_target"] = measures.cosine(c, b)
            figures[f"{name}_between"] = measures.cosine(a, b)
        if target.geometry is not None and result.geometry is not None:
            angles, expression = (np.linalg.norm(a - b) for a, b in zip(target.geometry, result.geometry, strict=True))
            figures["judge_pose"], figures["judge_expression"] = float(angles), float(expression)
        meshes = result.mesh_K3, target.mesh_K3
        figures["pose"] = measures.pose_error(*meshes)
        figures["expression"] = measures.expression_error(*meshes)
        figures["landmarks"] = measures.landmark_error(*meshes)
        figures["eyes"], figures["mouth"] = measures.openness_error(*meshes)
        gaze = gaze_error(result.eyes, target.eyes)
        if gaze.weight > 0:
            figures["gaze"] = gaze.direction
        return figures

    def _measure(self, crop: np.ndarray, affine: np.ndarray) -> Look:
        geometry = None
        if isinstance(self.judge, GeometryJudge):
            angles, _, expression = self.judge.geometry(crop)
            geometry = np.asarray(angles), np.asarray(expression)
        mesh_K3 = self.points.mesh(crop)
        small = cv2.resize(crop, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
        return Look(
            affine=affine,
            mesh_K3=mesh_K3,
            eyes=self.iris(crop, mesh_K3),
            identity={name: judge.identity(crop) for name, judge in self.judges.items()},
            geometry=geometry,
            thumbnail=encode(as_image(small), ".jpg", quality=75),
        )

    def strangers(self, count: int, on_item: Callable[[int, int], None]) -> dict[str, np.ndarray]:
        """Identities [count, E] of generated people who are in no pair, from pictures at 256²."""
        found: dict[str, list[np.ndarray]] = {name: [] for name in self.judges}
        for index in range(count):
            with torch.no_grad():
                ws_BLD = person(self.swapper.networks, seed=FIRST_STRANGER + index)
                img_BCHW = self.swapper.networks.generator.synthesis(ws_BLD, resolution=256)
            crop = cv2.resize(to_pixels(img_BCHW)[0], (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
            for name, judge in self.judges.items():
                found[name].append(judge.identity(crop))
            on_item(index + 1, count)
        return {name: np.stack(rows) for name, rows in found.items() if rows}


def retrieve(scores: Sequence[Score], strangers: dict[str, np.ndarray]) -> list[dict[str, int]]:
    """For each score and network the rank of the result's source among all sources and the strangers; 1 is right."""
    places: dict[Path, int] = {}
    sources: list[Look] = []
    for score in scores:
        if score.pair.source not in places:
            places[score.pair.source] = len(sources)
            sources.append(score.source)
    ranks: list[dict[str, Any]] = [{} for _ in scores]
    for name in sources[0].identity if sources else ():
        gallery_NE = np.stack([look.identity[name] for look in sources])
        if name in strangers:
            gallery_NE = np.concatenate([gallery_NE, strangers[name]])
        for score, found in zip(scores, ranks, strict=True):
            found[f"{name}_rank"] = measures.rank(score.result[name], gallery_NE, places[score.pair.source])
    return ranks
