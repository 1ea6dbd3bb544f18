"""A network of SimSwap's kind through OpenVINO: the fast way to swap a crop on a CPU. See `runtime.generator`."""

import hashlib
import warnings
from pathlib import Path

import numpy as np
import openvino as ov
import torch
from torch import nn

from latentswap.runtime.exported import exported
from latentswap.swappers.compact import CompactSwap

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
        example = torch.zeros(2, 3, size, size), torch.zeros(2, identity_dim)
        self._compiled = compiled(network, example, cache_dir=cache_dir, threads=threads)

    def __call__(self, img_BCHW: np.ndarray, id_BE: np.ndarray) -> np.ndarray:
        """Crops float32 [B, 3, S, S] in [-1, 1] and identities [B, E] → float32 [B, 3, S, S], not clamped."""
        return self._compiled([np.ascontiguousarray(value, np.float32) for value in (img_BCHW, id_BE)])[0]


class OpenVINOCompact:
    """The layers of `swappers.compact.CompactSwap`, for squares of one size. Use from one thread at a time."""

    def __init__(
        self, network: CompactSwap, *, size: int, cache_dir: Path | None = None, threads: int | None = None
    ) -> None:
        """As for `OpenVINOInjection`."""
        example = (
            torch.zeros(2, 3, size, size),
            torch.zeros(2, 4, size, size),
            torch.zeros(2, network.config.identity_dim),
        )
        self._compiled = compiled(_Layers(network), example, cache_dir=cache_dir, threads=threads)

    def __call__(
        self, img_BCHW: torch.Tensor, guide_B4HW: torch.Tensor, embedding_BE: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `CompactSwap.layers`."""
        given = [np.ascontiguousarray(x.numpy(), np.float32) for x in (img_BCHW, guide_B4HW, embedding_BE)]
        results = self._compiled(given)
        return torch.from_numpy(results[0]), torch.from_numpy(results[1])


class _Layers(nn.Module):
    def __init__(self, network: CompactSwap) -> None:
        super().__init__()
        self.network, self.config = network, network.config

    def forward(self, img_BCHW: torch.Tensor, guide_B4HW: torch.Tensor, embedding_BE: torch.Tensor):
        return self.network.layers(img_BCHW, guide_B4HW, embedding_BE)


def compiled(
    network: nn.Module, example: tuple[torch.Tensor, ...], *, cache_dir: Path | None, threads: int | None
) -> ov.CompiledModel:
    """The network for inputs like the example's, any batch, compiled for this CPU in float32."""
    config: dict[str, object] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        config["INFERENCE_NUM_THREADS"] = threads
    core, path = ov.Core(), None
    if cache_dir is not None:
        name = f"injection-{_fingerprint(network, example)}-{ov.__version__.split('-')[0]}-{_EXPORT_VERSION}"
        path = exported(cache_dir / name, "injection", lambda: export(network, example))
    if path is not None:
        config["CACHE_DIR"] = str(path.parent / "compiled")
    return core.compile_model(export(network, example) if path is None else core.read_model(path), "CPU", config)


def export(network: nn.Module, example: tuple[torch.Tensor, ...]) -> ov.Model:
    """The network as an OpenVINO model for inputs like the example's, any batch."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer warns about checks of the shape, which do hold
        shapes = [ov.PartialShape([-1, *x.shape[1:]]) for x in example]
        return ov.convert_model(network, example_input=example, input=shapes)


def _fingerprint(network: nn.Module, example: tuple[torch.Tensor, ...]) -> str:
    shapes = [tuple(x.shape[1:]) for x in example]
    digest = hashlib.sha256(f"{type(network).__name__} {getattr(network, 'config', None)!r} {shapes}".encode())
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode() + value.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
