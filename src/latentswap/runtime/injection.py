"""A network of SimSwap's kind through OpenVINO: the fast way to swap a crop on a CPU. See `runtime.generator`."""

import hashlib
import warnings
from pathlib import Path

import numpy as np
import openvino as ov
import torch
from torch import nn

from latentswap.runtime.exported import exported

_EXPORT_VERSION = 1  # raise when the exported graph changes


class OpenVINOInjection:
    """Target crop and source identity → swapped crop, for crops of one size. Use from one thread at a time."""

    def __init__(
        self,
        network: nn.Module,
        *,
        size: int,
        identity_dim: int,
        cache_dir: Path | None = None,
        threads: int | None = None,
    ) -> None:
        """network: (img [B, 3, H, W] in [-1, 1], id [B, E]) → img. size: side of the crops.

        `cache_dir`: where export and compiled network are kept; None: nowhere. `threads`: None for all cores.
        """
        config: dict[str, object] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            config["INFERENCE_NUM_THREADS"] = threads
        core, path = ov.Core(), None
        if cache_dir is not None:
            name = f"injection-{_fingerprint(network, size)}-{ov.__version__.split('-')[0]}-{_EXPORT_VERSION}"
            path = exported(cache_dir / name, "injection", lambda: export(network, size, identity_dim))
        if path is not None:
            config["CACHE_DIR"] = str(path.parent / "compiled")
        model = export(network, size, identity_dim) if path is None else core.read_model(path)
        self._compiled = core.compile_model(model, "CPU", config)

    def __call__(self, img_BCHW: np.ndarray, id_BE: np.ndarray) -> np.ndarray:
        """Crops float32 [B, 3, S, S] in [-1, 1] and identities [B, E] → float32 [B, 3, S, S], not clamped."""
        return self._compiled([np.ascontiguousarray(value, np.float32) for value in (img_BCHW, id_BE)])[0]


def export(network: nn.Module, size: int, identity_dim: int) -> ov.Model:
    """The network as an OpenVINO model for crops of `size`, any batch."""
    example = torch.zeros(2, 3, size, size), torch.zeros(2, identity_dim)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer warns about checks of the shape, which do hold
        shapes = [ov.PartialShape([-1, 3, size, size]), ov.PartialShape([-1, identity_dim])]
        return ov.convert_model(network, example_input=example, input=shapes)


def _fingerprint(network: nn.Module, size: int) -> str:
    digest = hashlib.sha256(f"{type(network).__name__} {getattr(network, 'config', None)!r} {size}".encode())
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode() + value.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
