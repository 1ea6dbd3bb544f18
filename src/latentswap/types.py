"""The values that travel along the main path, and the shape legend of the whole package.

Tensor and array names carry their shape as a suffix:
    B batch · C channels · H, W pixels · L rows of a W+ code (num_ws) · D width of a row (w_dim)
    F faces · K mesh points (468) · E identity embedding (128)

Geometry convention, everywhere: RGB; a point is (x, y) in pixels with x to the right and y down; pixel (i, j)
covers [j, j+1) × [i, i+1), so its centre is at (j + 0.5, i + 0.5); an affine is a 2×3 float64 matrix that maps
image points to crop points.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np


@dataclass(frozen=True, kw_only=True, eq=False)
class Image:
    """A decoded picture: upright, sRGB, 8 bits a channel."""

    pixels: np.ndarray  # uint8 [H, W, 3], RGB
    alpha: np.ndarray | None = None  # uint8 [H, W], carried through to the output
    icc_profile: bytes | None = None  # profile to embed in the output; pixels are sRGB already
    name: str = "image"  # what messages call it: the file's name, without folders
    encoded: bytes | None = field(default=None, repr=False)  # the file that it was decoded from, for its credentials
    synthetic: bool = False  # True: made by `Swapper.sample`, so nobody who exists is shown

    @property
    def height(self) -> int:
        return self.pixels.shape[0]

    @property
    def width(self) -> int:
        return self.pixels.shape[1]


@dataclass(frozen=True, kw_only=True, eq=False)
class Face:
    """One face of a picture, in the picture's pixels."""

    box: tuple[float, float, float, float]  # x0, y0, x1, y1 of the mesh's bounding box
    score: float  # detector's confidence, 0 to 1
    mesh_score: float  # mesh network's confidence that this is a face, 0 to 1
    mesh_K3: np.ndarray  # float32 [468, 3]: x, y in picture pixels, z in the same unit (negative towards the camera)
    yaw: float  # degrees, estimated from the mesh; positive: the face looks to the picture's right
    pitch: float  # degrees; positive: the face looks down
    roll: float  # degrees, in the picture plane; positive: clockwise
    reasons: tuple[str, ...] = ()  # why the quality gate would refuse it; empty: usable

    @property
    def size(self) -> float:
        """Longer side of the box, in pixels."""
        return max(self.box[2] - self.box[0], self.box[3] - self.box[1])


@dataclass(frozen=True, kw_only=True, eq=False)
class Crop:
    """An FFHQ-aligned square cut out of a picture."""

    pixels: np.ndarray  # uint8 [S, S, 3], RGB
    affine: np.ndarray  # float64 [2, 3]: picture pixels → crop pixels
    mesh_K3: np.ndarray  # float32 [468, 3]: the face's mesh in crop pixels

    @property
    def size(self) -> int:
        return self.pixels.shape[0]


@dataclass(frozen=True, kw_only=True, eq=False)
class Making:
    """How a picture came to be: what its credentials say of it (`provenance.sign`)."""

    deed: Literal["swapped", "anonymized", "edited", "generated", "inverted"]
    method: str = "latentswap"
    target: bytes | Path | None = field(default=None, repr=False)  # the file that was changed; None: pixels of no file
    sources: tuple[bytes, ...] = field(default=(), repr=False)  # the files that gave the face: pictures or codes

    @property
    def whole(self) -> bool:
        """Whether nothing in the picture was photographed."""
        return self.deed in ("generated", "inverted")


@dataclass(frozen=True, kw_only=True, eq=False)
class SwapResult:
    """A finished picture and what was done to it."""

    image: Image
    faces: tuple[Face, ...]  # the faces that were replaced, in the picture's order
    skipped: tuple[Face, ...] = ()  # faces left alone, with their reasons
    report: dict = field(default_factory=dict)  # figures a user may want: identity cosines, seconds, seeds
    making: Making = field(default_factory=lambda: Making(deed="edited"))
