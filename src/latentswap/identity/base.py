"""What the rest of the package may ask of a network that says who somebody is, and the face chips such networks see."""

from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F


@runtime_checkable
class IdentityNetwork(Protocol):
    """A frozen, differentiable network: FFHQ-aligned crop → identity embedding."""

    embedding_dim: int  # E

    def embed(self, img_BCHW: torch.Tensor) -> torch.Tensor:
        """FFHQ-aligned crops [B, 3, S, S] in [-1, 1], RGB, any S → embeddings [B, E] of unit length."""
        ...


def square_chip(img_BCHW: torch.Tensor, *, centre: tuple[float, float], side: float, size: int) -> torch.Tensor:
    """An upright square out of FFHQ-aligned crops, differentiable: [B, C, S, S] → [B, C, size, size].

    centre: (x, y); centre and side in crop fractions, pixel edges at 0 and 1. Every chip pixel is the mean of four
    bilinear samples, so that shrinking to half does not alias; crops above 256² are averaged down to that first. Beyond
    the crop its border continues.
    """
    img_BCHW = at_most_256(img_BCHW)
    theta = img_BCHW.new_tensor([[side, 0, 2 * centre[0] - 1], [0, side, 2 * centre[1] - 1]])
    shape = [len(img_BCHW), img_BCHW.shape[1], 2 * size, 2 * size]
    grid = F.affine_grid(theta.expand(len(img_BCHW), -1, -1), shape, align_corners=False)
    return F.avg_pool2d(F.grid_sample(img_BCHW, grid, padding_mode="border", align_corners=False), 2)


def at_most_256(img_BCHW: torch.Tensor) -> torch.Tensor:
    """Larger pictures averaged down to 256², as the published losses do."""
    return F.adaptive_avg_pool2d(img_BCHW, 256) if img_BCHW.shape[-1] > 256 else img_BCHW
