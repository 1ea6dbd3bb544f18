"""What the rest of the package may ask of a generator of faces."""

from typing import Literal, Protocol, runtime_checkable

import torch

NoiseMode = Literal["const", "none", "random"]


@runtime_checkable
class Generator(Protocol):
    """A frozen generator: z → w → W+ → picture. Nothing above it knows which network it is."""

    num_ws: int  # L, rows of a W+ code
    w_dim: int  # D, width of a row
    resolution: int  # side of the picture at full size, in pixels
    w_avg: torch.Tensor  # [D], mean of w
    w_std: torch.Tensor  # [D], standard deviation of w: the unit in which distances between codes are given

    def mapping(self, z_BD: torch.Tensor, *, truncation_psi: float = 1.0) -> torch.Tensor:
        """Normal z [B, D] → w [B, D], pulled towards `w_avg` by `truncation_psi` (1: not at all, 0: entirely)."""
        ...

    def synthesis(
        self, ws_BLD: torch.Tensor, *, resolution: int | None = None, noise: NoiseMode = "const"
    ) -> torch.Tensor:
        """W+ [B, L, D] → picture [B, 3, H, W] in [-1, 1] (not clamped). `resolution`: None for the full size."""
        ...


def broadcast_w(w_BD: torch.Tensor, num_ws: int) -> torch.Tensor:
    """The same w in every row: w [B, D] → W+ [B, L, D]."""
    return w_BD[:, None].expand(-1, num_ws, -1)
