"""The generator through OpenVINO: the fast way to a full-size picture on a CPU.

The torch port is exported once (dynamic batch, constant convolution weights) and kept in the cache, together with
OpenVINO's own cache of the compiled network. float32 is asked for explicitly: with AVX512-BF16 OpenVINO would otherwise
compute in bfloat16, with errors that can be seen.
"""

import contextlib
import hashlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openvino as ov
import torch

from latentswap.generators.mobile import MobileStyleGAN, SeparableConv
from latentswap.generators.stylegan2 import StyleGAN2
from latentswap.runtime.exported import exported

_EXPORT_VERSION = 1  # raise when the exported graph changes

Exportable = MobileStyleGAN | StyleGAN2


class OpenVINOSynthesis:
    """W+ → pictures at full size, compiled for this CPU. Use from one thread at a time."""

    def __init__(self, generator: Exportable, *, cache_dir: Path | None = None, threads: int | None = None) -> None:
        """`cache_dir`: where export and compiled network are kept; None: nowhere. `threads`: None for all cores."""
        config: dict[str, object] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            config["INFERENCE_NUM_THREADS"] = threads
        core = ov.Core()
        path = None if cache_dir is None else _exported(generator, cache_dir)
        if path is not None:
            config["CACHE_DIR"] = str(path.parent / "compiled")
        model = export(generator) if path is None else core.read_model(path)
        self._compiled = core.compile_model(model, "CPU", config)

    def __call__(self, ws_BLD: np.ndarray) -> np.ndarray:
        """W+ float32 [B, L, D] → pictures float32 [B, 3, H, W] in [-1, 1], not clamped."""
        return self._compiled(np.ascontiguousarray(ws_BLD, np.float32))[0]


def _network(generator: Exportable) -> torch.nn.Module:
    return generator.synthesis if isinstance(generator, StyleGAN2) else generator.synthesis_network


class _FullSize(torch.nn.Module):
    def __init__(self, generator: Exportable) -> None:
        super().__init__()
        self.network = _network(generator)

    def forward(self, ws_BLD: torch.Tensor) -> torch.Tensor:
        return self.network(ws_BLD)


@contextlib.contextmanager
def _constant_weights(generator: Exportable) -> Iterator[None]:
    convolutions = [m for m in generator.modules() if isinstance(m, SeparableConv)]
    for convolution in convolutions:
        convolution.scale_weights = False
    try:
        yield
    finally:
        for convolution in convolutions:
            del convolution.scale_weights


def export(generator: Exportable) -> ov.Model:
    """The synthesis network to full size as an OpenVINO model, any batch."""
    example = torch.zeros(1, generator.num_ws, generator.w_dim)
    with _constant_weights(generator), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns about len() of the batch, which stays dynamic
        return ov.convert_model(
            _FullSize(generator),
            example_input=example,
            input=[ov.PartialShape([-1, generator.num_ws, generator.w_dim])],
        )


def _exported(generator: Exportable, cache_dir: Path) -> Path | None:
    """The exported network in the cache, made if absent; None where the cache cannot be written."""
    folder = cache_dir / f"generator-{_fingerprint(generator)}-{ov.__version__.split('-')[0]}-{_EXPORT_VERSION}"
    return exported(folder, "synthesis", lambda: export(generator))


def _fingerprint(generator: Exportable) -> str:
    digest = hashlib.sha256()
    if isinstance(generator, StyleGAN2):
        digest.update(repr(generator.config).encode())
    for name, value in sorted(_network(generator).state_dict().items()):
        digest.update(name.encode() + value.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
