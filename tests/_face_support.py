"""Pictures and meshes for the tests of `latentswap.face`."""

import numpy as np
import pytest

from latentswap.shape.measures import mean_mesh


def astronaut() -> np.ndarray:
    """scikit-image's public-domain portrait of Eileen Collins, uint8 [512, 512, 3]."""
    return np.ascontiguousarray(pytest.importorskip("skimage.data").astronaut())


def mean_mesh_px(size: int) -> np.ndarray:
    """The mean face's mesh in pixels of an FFHQ-aligned crop, float64 [468, 3]."""
    return mean_mesh().numpy().astype(np.float64) * size


def similarity(*, angle: float, scale: float, x: float, y: float) -> np.ndarray:
    """float64 [2, 3]; angle in degrees, clockwise in the picture."""
    turn = np.deg2rad(angle)
    cosine, sine = np.cos(turn) * scale, np.sin(turn) * scale
    return np.array([[cosine, -sine, x], [sine, cosine, y]])


def smooth_picture(height: int, width: int, *, seed: int = 0) -> np.ndarray:
    """A coloured picture without fine detail, uint8 [height, width, 3], about 60 to 200."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    phase = rng.uniform(0, 6, (3, 2))
    waves = [np.sin(5 * x + a) + np.cos(4 * y + b) for a, b in phase]
    return np.rint(130 + 35 * np.stack(waves, axis=-1)).astype(np.uint8)
