"""Which arithmetic a device is fast in."""

import torch


def bfloat16_is_native(device: torch.device | str) -> bool:
    """Whether bfloat16 products run in hardware: on GPUs, and on processors with AMX (a third less time a step)."""
    return torch.device(device).type != "cpu" or torch.cpu._is_amx_tile_supported()
