"""From a method's own crop to the FFHQ-aligned one in which masks are drawn and faces pasted back."""

import cv2
import numpy as np

from latentswap.face.align import cut_face, invert_affine, warp
from latentswap.types import Crop

INSET = 0.03  # share of the crop's side over which its border fades into the photo


def reframe(
    pixels: np.ndarray, mesh_K3: np.ndarray, crop: Crop, swapped: np.ndarray, size: int
) -> tuple[Crop, np.ndarray]:
    """The face's FFHQ-aligned crop of `size` pixels, before and after the swap: what `crop` does not cover stays.

    pixels: uint8 [H, W, 3], the picture. mesh_K3: the face's mesh in it. crop: the method's crop of it. swapped: uint8
    [S, S, 3], the same after the swap.
    """
    whole = cut_face(pixels, mesh_K3, size)
    to_whole = chain(invert_affine(crop.affine), whole.affine)
    share = warp(faded(crop.size), to_whole, size, size, border=cv2.BORDER_CONSTANT)[..., None].clip(0, 1)
    moved = warp(swapped, to_whole, size, size, border=cv2.BORDER_REPLICATE).astype(np.float32)
    mixed = whole.pixels + share * (moved - whole.pixels)
    return whole, np.rint(mixed).clip(0, 255).astype(np.uint8)


def faded(size: int) -> np.ndarray:
    """1 inside of a crop, falling to 0 at its border, float32 [size, size]."""
    edge = np.minimum(np.arange(size) + 0.5, size - 0.5 - np.arange(size)) / max(INSET * size, 1)
    ramp = np.clip(edge, 0, 1).astype(np.float32)
    return np.minimum(ramp, ramp[:, None])


def chain(first: np.ndarray, then: np.ndarray) -> np.ndarray:
    """One affine after the other, float64 [2, 3]."""
    square = np.vstack([first, (0, 0, 1)])
    return then @ square
