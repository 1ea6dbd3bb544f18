"""Networks on torchvision's ResNet-50: Smooth-Swap's identity embedder and Deep3DFaceRecon's regressor."""

from collections.abc import Mapping
from typing import Any

from latentswap.weights.convert.arcface import stages
from latentswap.weights.convert.rosinality import tensors
from latentswap.weights.convert.tensors import Network, Stored, shape_of, under


def matches_smoothswap(value: object) -> bool:
    """Whether the file is a Lightning checkpoint of Smooth-Swap's embedder."""
    state = value.get("state_dict") if isinstance(value, dict) else None
    return isinstance(state, dict) and {"net.resnet.conv1.weight", "net.last.0.weight"} <= state.keys()


def convert_smoothswap(value: Any) -> list[Network]:
    """The embedder, without `net.`."""
    state = under("net.", tensors(value["state_dict"]))
    hidden, classes = shape_of(state, "last.0.weight", 2)
    config = {
        **_trunk(state, "resnet."),
        "classes": classes,
        "hidden": hidden,
        "embedding_dim": shape_of(state, "last.3.weight", 2)[0],
    }
    return [Network(kind="identity/smoothswap", config=config, tensors=state)]


def matches_deep3d(value: object) -> bool:
    """Whether the file has `net_recon`."""
    return isinstance(value, dict) and isinstance(value.get("net_recon"), dict)


def convert_deep3d(value: Any) -> list[Network]:
    """The regressor under its own names; the optimiser is not read."""
    state = tensors(value["net_recon"])
    return [Network(kind="shape/deep3d", config=_trunk(state, "backbone."), tensors=state)]


def _trunk(state: Mapping[str, Stored], prefix: str) -> dict[str, Any]:
    units, widths = stages(under(prefix, state), r"layer(\d+)\.(\d+)\.conv1\.weight")
    return {"units": units, "width": widths[0] if widths else 0}
