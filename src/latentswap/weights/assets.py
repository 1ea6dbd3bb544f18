"""The weights that this project trained and ships, as files."""

from importlib import resources
from pathlib import Path

ASSETS = (
    *("head256", "population", "mesh_mean", "encoder", "mixer", "attributes", "gallery", "directions", "matching"),
    "simswap",
)


def asset_path(name: str) -> Path:
    """`assets/NAME.safetensors` of the installed package. `name` is one of ASSETS."""
    return Path(str(resources.files("latentswap").joinpath(f"assets/{name}.safetensors")))
