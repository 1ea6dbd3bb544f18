"""A generator from a file, whichever network it holds."""

from collections.abc import Callable
from pathlib import Path

from latentswap.errors import WeightsError
from latentswap.generators.base import Generator
from latentswap.generators.mobile import MobileStyleGAN
from latentswap.generators.stylegan2 import StyleGAN2
from latentswap.weights.assets import asset_path
from latentswap.weights.header import read_header

_LOADERS: dict[str, Callable[[Path], Generator]] = {
    "generator/mobilestylegan": lambda path: MobileStyleGAN.load(path, asset_path("head256")),
    "generator/stylegan2": StyleGAN2.load,
}


def load_generator(path: str | Path) -> Generator:
    """The frozen generator in the safetensors file at `path`, on the CPU. Its metadata says which network it is.

    Raises WeightsError for a damaged file and for a kind that is no generator.
    """
    path = Path(path)
    kind = read_header(path).metadata.get("kind", "weights of an unstated kind")
    if kind not in _LOADERS:
        raise WeightsError(f"{path} holds {kind}, where a generator is needed: {' or '.join(_LOADERS)}")
    return _LOADERS[kind](path)
