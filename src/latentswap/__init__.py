"""Face swapping and face anonymisation in the latent space of a face generator.

Importing this package loads no model and none of the heavy libraries; the public names are imported when first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from latentswap.errors import LatentSwapError as LatentSwapError
    from latentswap.pipeline import Swapper as Swapper
    from latentswap.provenance.apply import Marking as Marking
    from latentswap.provenance.verify import verify as verify
    from latentswap.types import Crop as Crop
    from latentswap.types import Face as Face
    from latentswap.types import Image as Image
    from latentswap.types import SwapResult as SwapResult
    from latentswap.weights.fetch import weights_path as weights_path
    from latentswap.weights.load import load_tensors as load_tensors

# Public name → module that has it.
_EXPORTS = {
    "Crop": "latentswap.types",
    "Face": "latentswap.types",
    "Image": "latentswap.types",
    "LatentSwapError": "latentswap.errors",
    "Marking": "latentswap.provenance.apply",
    "SwapResult": "latentswap.types",
    "Swapper": "latentswap.pipeline",
    "load_tensors": "latentswap.weights.load",
    "verify": "latentswap.provenance.verify",
    "weights_path": "latentswap.weights.fetch",
}

__all__ = ["__version__", *_EXPORTS]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
