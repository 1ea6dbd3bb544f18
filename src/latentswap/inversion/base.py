"""What the rest of the package may ask of whatever finds a picture's code, and codes that pass between generators."""

from typing import Protocol, runtime_checkable

import torch

from latentswap.errors import UsageError

_SHARED_ROWS = 15  # of StyleGAN2 at 1024² and MobileStyleGAN


@runtime_checkable
class Inverter(Protocol):
    """Picture → W+ code in one go, without optimisation."""

    def invert(self, img_BCHW: torch.Tensor) -> torch.Tensor:
        """FFHQ-aligned crops [B, 3, 256, 256], RGB in [-1, 1] → W+ codes [B, L, D] of the generator in use."""
        ...


def rows_for(ws_BLD: torch.Tensor, num_ws: int) -> torch.Tensor:
    """W+ codes of a generator as codes for one with `num_ws` rows: [B, L, D] → [B, num_ws, D].

    There is one pair of generators of different depth with one W space: StyleGAN2-FFHQ at 1024² (18 rows) and the
    embedded MobileStyleGAN (16), whose mapping network is the other's. Rows 0–14 style the same layers of both, up to
    512². The teacher's rows 15, 16 and 17 style the picture at 512² and two convolutions and the picture at 1024²; for
    all of these the student has its row 15 alone. It takes the teacher's row 15, which styles the same place in the
    network; the other way its row 15 serves for all three. There and back from 16 rows changes nothing.

    Any other two generators have W spaces of their own, so that no rearrangement of rows translates. Raises UsageError.
    """
    if (rows := ws_BLD.shape[1]) == num_ws:
        return ws_BLD
    if (rows, num_ws) == (18, 16):
        return ws_BLD[:, : _SHARED_ROWS + 1]
    if (rows, num_ws) == (16, 18):
        return torch.cat([ws_BLD, ws_BLD[:, -1:].expand(-1, 2, -1)], 1)
    raise UsageError(
        f"Codes of {rows} rows mean nothing to a generator of {num_ws}: only 18 (StyleGAN2 at 1024²) and 16 "
        "(MobileStyleGAN) share a W space. Use the generator that the codes are for."
    )
