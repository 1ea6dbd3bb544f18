"""Who is in a crop, by a network of one's own: the training network, or one that had no part in training.

Judges take FFHQ-aligned crops, uint8 [S, S, 3] RGB, and give unit vectors whose dot product is the cosine.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from latentswap.errors import NoFaceError, WeightsError
from latentswap.evaluate.measures import mean_crop_mesh
from latentswap.evaluate.mobilefacenet import HEIGHT, KIND, WIDTH, MobileFaceNet
from latentswap.evaluate.onnx_file import check_onnx
from latentswap.face.align import warp
from latentswap.identity.dlib_resnet import DlibResNet, centred, chip
from latentswap.runtime.mesh import MeshRunner, roi_from_mesh
from latentswap.shape.topology import FIVE_POINTS
from latentswap.swappers.latentswap import to_tensor
from latentswap.weights.assets import asset_path
from latentswap.weights.fetch import weights_path
from latentswap.weights.header import read_header
from latentswap.weights.load import load_into, load_tensors

DLIB_KIND = "identity/dlib-resnet"
# Where ArcFace's alignment puts the eyes, the tip of the nose and the corners of the mouth in 112×112 pixels, counted
# from the first pixel's centre. The 112×96 variant is the same without 8 columns on each side.
ARCFACE_52 = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)
_MAX_JUDGE_SIDE = 1024
_REPLICATE = 1  # OpenCV's BORDER_REPLICATE


@runtime_checkable
class Judge(Protocol):
    """Tells who is in a crop."""

    def identity(self, crop_pixels: np.ndarray) -> np.ndarray:
        """The unit vector [E] of the person in an FFHQ-aligned crop, uint8 [S, S, 3] RGB."""
        ...


@runtime_checkable
class GeometryJudge(Judge, Protocol):
    """A judge that measures pose and expression too."""

    def geometry(self, crop_pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(yaw, pitch, roll) in degrees, and coefficients of face shape and of expression."""
        ...


class TrainingJudge:
    """dlib's network, which swaps are trained and refined with: centred embeddings of one view."""

    def __init__(self, network: DlibResNet, mean_E: torch.Tensor) -> None:
        self.network, self.mean_E = network, mean_E

    def identity(self, crop_pixels: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            img_BCHW = to_tensor(crop_pixels, self.mean_E.device)
            return centred(self.network(chip(img_BCHW)), self.mean_E)[0].cpu().numpy()


class NetworkJudge:
    """An identity network behind ArcFace's alignment by the mesh's five points.

    network: float32 [1, 3, H, W] → [1, E]; RGB, (value - 127.5) / 128. points: crop → [5, 2] in crop pixels, as
    `MeshPoints` finds them.
    """

    def __init__(
        self,
        network: Callable[[np.ndarray], np.ndarray],
        *,
        height: int,
        width: int,
        points: Callable[[np.ndarray], np.ndarray],
    ) -> None:
        self.network, self.height, self.width, self.points = network, height, width, points

    def identity(self, crop_pixels: np.ndarray) -> np.ndarray:
        """Raises NoFaceError when the network's embedding is not finite or is zero."""
        affine = fit_similarity(self.points(crop_pixels), template(self.height, self.width))
        face = warp(crop_pixels, affine, self.height, self.width, border=_REPLICATE)
        input_BCHW = ((face.astype(np.float32) - 127.5) / 128).transpose(2, 0, 1)[None]
        embedding_E = np.asarray(self.network(np.ascontiguousarray(input_BCHW)), np.float64).ravel()
        length = float(np.linalg.norm(embedding_E))
        if not np.isfinite(length) or length == 0:
            raise NoFaceError("the judge's embedding of a crop is zero or not finite, so it cannot be compared")
        return embedding_E / length


class MeshPoints:
    """The five points of the face in an FFHQ-aligned crop: [5, 2] in its pixels."""

    def __init__(self, runner: MeshRunner) -> None:
        self.runner = runner

    @classmethod
    def load(cls, *, offline: bool = False) -> "MeshPoints":
        """With the project's own mesh network, fetched when missing. Raises WeightsError."""
        return cls(MeshRunner(weights_path("mediapipe-mesh", offline=offline, file="face_landmark.tflite")))

    def __call__(self, crop_pixels: np.ndarray) -> np.ndarray:
        mesh_K3 = self.mesh(crop_pixels)
        return np.stack([mesh_K3[list(group), :2].mean(axis=0) for group in FIVE_POINTS])

    def mesh(self, crop_pixels: np.ndarray) -> np.ndarray:
        """The mesh in crop pixels, float32 [468, 3]."""
        mesh_K3, _ = self.runner(crop_pixels, roi_from_mesh(mean_crop_mesh(crop_pixels.shape[0])))
        return mesh_K3


def template(height: int, width: int) -> np.ndarray:
    """ArcFace's five points in an input of this size, [5, 2]: scaled by its height, centred in its width."""
    scale = height / 112
    points_52 = (ARCFACE_52 + 0.5 - (56.0, 0.0)) * scale
    return points_52 + np.array([width / 2, 0.0])


def fit_similarity(from_N2: np.ndarray, to_N2: np.ndarray) -> np.ndarray:
    """The least-squares similarity, float64 [2, 3], of points onto points. Raises NoFaceError if they coincide."""
    a, b = np.asarray(from_N2, np.float64) @ (1, 1j), np.asarray(to_N2, np.float64) @ (1, 1j)
    spread = np.sum(np.abs(a - a.mean()) ** 2)
    if not spread > 0:
        raise NoFaceError("the five points of the face coincide, so it cannot be aligned")
    # In complex numbers a similarity is z ↦ turn · z + shift, and least squares has this closed form.
    turn = np.sum(np.conj(a - a.mean()) * (b - b.mean())) / spread
    shift = b.mean() - turn * a.mean()
    return np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])


def load_judge(path: Path, points: Callable[[np.ndarray], np.ndarray], *, threads: int | None = None) -> Judge:
    """The identity network in an .onnx or a .safetensors file.

    Raises WeightsError: the file is missing, damaged, of another kind, or its input and output are not an identity
    network's.
    """
    if path.suffix.lower() == ".onnx":
        return _load_onnx(path, points, threads)
    if path.suffix.lower() == ".safetensors":
        return _load_safetensors(path, points)
    raise WeightsError(f"the judge {path} must be an .onnx or a .safetensors file")


def _load_safetensors(path: Path, points: Callable[[np.ndarray], np.ndarray]) -> Judge:
    kind = read_header(path).metadata.get("kind")
    if kind == DLIB_KIND:
        population, _ = load_tensors(asset_path("population"), kind="population")
        return TrainingJudge(DlibResNet.load(path), population["identity.mean_E"])
    if kind != KIND:
        raise WeightsError(f"{path} holds {kind or 'weights of an unstated kind'}; a judge is {KIND} or {DLIB_KIND}")
    network = MobileFaceNet()
    load_into(network, path, kind=KIND)
    network.eval().requires_grad_(False)

    def run(input_BCHW: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return network(torch.from_numpy(input_BCHW)).numpy()

    return NetworkJudge(run, height=HEIGHT, width=WIDTH, points=points)


def _load_onnx(path: Path, points: Callable[[np.ndarray], np.ndarray], threads: int | None) -> Judge:
    import openvino

    check_onnx(path)
    core = openvino.Core()
    try:
        model = core.read_model(path)
    except RuntimeError as error:
        raise WeightsError(f"{path} cannot be read as an ONNX model: {_reason(error)}") from error
    height, width = _input_size(path, model)
    config: dict[str, object] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        config["INFERENCE_NUM_THREADS"] = threads
    try:
        model.reshape([1, 3, height, width])
        shape = model.output(0).partial_shape
        compiled = core.compile_model(model, "CPU", config)
    except RuntimeError as error:
        raise WeightsError(f"{path} does not run on pictures of {height}×{width}: {_reason(error)}") from error
    if (
        len(model.outputs) != 1
        or shape.is_dynamic
        or shape.get_min_shape()[0] != 1
        or int(np.prod(shape.get_min_shape())) < 8
    ):
        shapes = ", ".join(str(output.partial_shape) for output in model.outputs)
        raise WeightsError(f"{path} gives {shapes}; an identity network gives one embedding [N, E]")
    request = compiled.create_infer_request()

    def run(input_BCHW: np.ndarray) -> np.ndarray:
        request.infer([input_BCHW])
        return request.get_output_tensor(0).data.copy()

    return NetworkJudge(run, height=height, width=width, points=points)


def _reason(error: RuntimeError) -> str:
    """The last line of OpenVINO's message; the lines before it say where in OpenVINO."""
    return [line for line in str(error).splitlines() if line.strip()][-1].strip()


def _input_size(path: Path, model) -> tuple[int, int]:
    """H and W of the only input, which must be float [N, 3, H, W]."""
    shapes = [inputs.partial_shape for inputs in model.inputs]
    wanted = "an identity network takes one input [N, 3, H, W] with fixed H and W"
    if len(shapes) != 1 or shapes[0].rank.is_dynamic or len(shapes[0]) != 4:
        raise WeightsError(f"{path} takes {', '.join(map(str, shapes)) or 'no input'}; {wanted}")
    _, channels, *sides = shapes[0]
    if any(side.is_dynamic for side in (channels, *sides)) or channels.get_length() != 3:
        raise WeightsError(f"{path} takes {shapes[0]}; {wanted}")
    height, width = (side.get_length() for side in sides)
    if not (32 <= height <= _MAX_JUDGE_SIDE and 32 <= width <= _MAX_JUDGE_SIDE):
        raise WeightsError(f"{path} takes pictures of {height}×{width}; sides of 32 to {_MAX_JUDGE_SIDE} are accepted")
    return height, width
