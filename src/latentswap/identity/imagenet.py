"""ImageNet's mean and standard deviation of RGB in [0, 1], by which several published networks normalise."""

import torch

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def normalised(unit_BCHW: torch.Tensor) -> torch.Tensor:
    """RGB [B, 3, H, W] in [0, 1] → ImageNet's space."""
    return (unit_BCHW - _column(MEAN, unit_BCHW)) / _column(STD, unit_BCHW)


def restored(normalised_BCHW: torch.Tensor) -> torch.Tensor:
    """ImageNet's space → RGB [B, 3, H, W] in [0, 1], not clamped."""
    return normalised_BCHW * _column(STD, normalised_BCHW) + _column(MEAN, normalised_BCHW)


def _column(values: tuple[float, ...], like: torch.Tensor) -> torch.Tensor:
    return like.new_tensor(values)[:, None, None]
