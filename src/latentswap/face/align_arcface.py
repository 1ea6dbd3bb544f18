"""SimSwap's alignments: a similarity that takes five points of a face to a template, by least squares.

At 224² there are five templates, from profile to profile, and the one that fits best is taken; at 512² one, which lies
as FFHQ's crops do. The templates count pixels from the first one's centre, as published; here pixel edges are at 0.
"""

from collections.abc import Callable

import numpy as np

from latentswap.face.align import move_points
from latentswap.shape.topology import FIVE_POINTS

Alignment = Callable[[np.ndarray, int], np.ndarray]
"""(mesh [468, 2 or 3] in picture pixels, side of the crop) → float64 [2, 3], picture → crop pixels."""

# Eye, eye, tip of the nose, mouth corner, mouth corner; left ones of the picture first. In a crop of 112 pixels.
POSES: dict[str, np.ndarray] = {
    "left profile": np.array(
        [(51.642, 50.115), (57.617, 49.990), (35.740, 69.007), (51.157, 89.050), (57.025, 89.702)]
    ),
    "left": np.array([(45.031, 50.118), (65.568, 50.872), (39.677, 68.111), (45.177, 86.190), (64.246, 86.758)]),
    "frontal": np.array([(39.730, 51.138), (72.270, 51.138), (56.000, 68.493), (42.463, 87.010), (69.537, 87.010)]),
    "right": np.array([(46.845, 50.872), (67.382, 50.118), (72.737, 68.111), (48.167, 86.758), (67.236, 86.190)]),
    "right profile": np.array(
        [(54.796, 49.990), (60.771, 50.115), (76.673, 69.007), (55.388, 89.702), (61.257, 89.050)]
    ),
}
POSE_SIDE = 112

# The same points in a crop of 512 pixels.
FFHQ = np.array(
    [
        (192.98138, 239.94708),
        (318.90277, 240.1936),
        (256.63416, 314.01935),
        (201.26117, 371.41043),
        (313.08905, 371.15118),
    ]
)
FFHQ_SIDE = 512


def five_points(mesh_K3: np.ndarray) -> np.ndarray:
    """Centres of the eyes, tip of the nose, corners of the mouth: [468, 2 or 3] → float64 [5, 2].

    In the templates' order for an upright face that is not mirrored.
    """
    mesh = np.asarray(mesh_K3, np.float64)[:, :2]
    return np.stack([mesh[list(group)].mean(axis=0) for group in FIVE_POINTS])


def fit_similarity(points_N2: np.ndarray, wanted_N2: np.ndarray) -> np.ndarray:
    """The similarity without reflection that takes points nearest to wanted ones, float64 [2, 3].

    Least squares over rotation, scale and shift (Umeyama 1991), in closed form for the plane: as complex numbers
    u = a z + b, a = Σ z̄ u / Σ |z|² about the means. Raises ValueError if the points coincide.
    """
    z, u = (np.asarray(p, np.float64) @ (1, 1j) for p in (points_N2, wanted_N2))
    apart = z - z.mean()
    total = float((apart * apart.conj()).real.sum())
    if not np.isfinite(total) or total <= 0:
        raise ValueError("the points of the face coincide")
    a = (apart.conj() * (u - u.mean())).sum() / total
    b = u.mean() - a * z.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def fit_pose(mesh_K3: np.ndarray, size: int) -> tuple[str, np.ndarray]:
    """The pose whose template fits best, by the sum of the points' distances, and the similarity to it."""
    points, fits = five_points(mesh_K3), {}
    for name, template in POSES.items():
        wanted = template * (size / POSE_SIDE) + 0.5
        affine = fit_similarity(points, wanted)
        fits[name] = float(np.hypot(*(move_points(points, affine) - wanted).T).sum()), affine
    best = min(fits, key=lambda name: fits[name][0])
    return best, fits[best][1]


def pose_affine(mesh_K3: np.ndarray, size: int) -> np.ndarray:
    """Alignment of the networks for 224² (`Alignment`)."""
    return fit_pose(mesh_K3, size)[1]


def template_affine(mesh_K3: np.ndarray, size: int) -> np.ndarray:
    """Alignment of the networks for 512² (`Alignment`)."""
    return fit_similarity(five_points(mesh_K3), FFHQ * (size / FFHQ_SIDE) + 0.5)


ALIGNMENTS: dict[str, Alignment] = {"pose": pose_affine, "ffhq": template_affine}
