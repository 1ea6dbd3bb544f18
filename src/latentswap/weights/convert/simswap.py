"""SimSwap's files: bare state dictionaries of generators and discriminators, and a pickled module, its ArcFace.

Two variants of the generator have the same names and shapes and differ in the colours that they take and give. The file
cannot tell which it holds, so whoever converts it must.
"""

import re
from collections.abc import Mapping
from typing import Any

from latentswap.errors import WeightsError
from latentswap.weights.convert.arcface import stages
from latentswap.weights.convert.modules import state_of
from latentswap.weights.convert.rosinality import tensors
from latentswap.weights.convert.tensors import Network, Stored, shape_of, under
from latentswap.weights.convert.unpickle import Record

VARIANTS = ("legacy224", "legacy512", "fix", "fix_deep")

_STEM = {"conv_stem": 0, "bn1": 1}
_DEPTHS = ((0, 2), (2, 3), (3, 5), (5, 7))  # stages of EfficientNet at each depth of the projected discriminator
_ARCFACE = re.compile(r"(\w+\.)*ResNet")
_PARALLEL = "torch.nn.parallel.data_parallel.DataParallel"
_BLOCK = re.compile(r"BottleNeck\.(\d+)\.(conv[12]\.1|style[12]\.linear)\.(weight|bias)")
_NORM_PARTS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def matches_generator(value: object) -> bool:
    """Whether the file is a bare state dictionary of a SimSwap generator."""
    return isinstance(value, dict) and {"first_layer.1.weight", "BottleNeck.0.style1.linear.weight"} <= value.keys()


def convert_generator(value: Any) -> list[Network]:
    """The generator under its own names. Normalisations inside the ID blocks, which the network does not have, go."""
    state = tensors(value)
    extra = {name for name in state if name.startswith("BottleNeck.") and _is_norm(name, state)}
    state = {name: tensor for name, tensor in state.items() if name not in extra}
    width, _, _, _ = shape_of(state, "BottleNeck.0.conv1.1.weight", 4)
    config = {
        "width": width,
        "identity_dim": shape_of(state, "BottleNeck.0.style1.linear.weight", 2)[1],
        "blocks": len({match[1] for name in state if (match := _BLOCK.fullmatch(name))}),
    }
    notes = f"{len(extra)} tensors of normalisations in the ID blocks left out, which the network has no use for"
    return [
        Network(
            kind="swapper/simswap",
            config=config,
            tensors=state,
            variants=_variants(state),
            notes=notes if extra else "",
        )
    ]


def _variants(state: Mapping[str, Stored]) -> tuple[str, ...]:
    if "down0.0.weight" in state:
        return ("legacy512",)
    if "down4.0.weight" in state:
        return ("fix_deep",)
    return ("legacy224", "fix")


def _is_norm(name: str, state: Mapping[str, Stored]) -> bool:
    """Whether this is a tensor of a normalisation: nothing of an ID block, a vector or a count, and named like one."""
    return not _BLOCK.fullmatch(name) and len(state[name].shape) <= 1 and name.rpartition(".")[2] in _NORM_PARTS


def matches_discriminator(value: object) -> bool:
    """Whether the file is one scale of the two-scale discriminator."""
    names = {"down1.0.weight", "down4.1.running_mean", "conv1.1.running_mean", "conv2.0.weight"}
    return isinstance(value, dict) and names <= value.keys()


def convert_discriminator(value: Any) -> list[Network]:
    """One scale under its own names."""
    state = tensors(value)
    config = {"width": shape_of(state, "down1.0.weight", 4)[0]}
    return [Network(kind="discriminator/patchgan", config=config, tensors=state)]


def matches_projected(value: object) -> bool:
    """Whether the file is the projected discriminator of the later training script."""
    names = {"feature_network.scratch.layer0_ccm.weight", "discriminator.mini_discs.3.main.0.main.0.weight_orig"}
    return isinstance(value, dict) and names <= value.keys()


def convert_projected(value: Any) -> list[Network]:
    """The discriminator under its own names, its classifier and its random part with it."""
    state = tensors(value)
    config = {"width": shape_of(state, "feature_network.scratch.layer0_ccm.weight", 4)[0]}
    return [Network(kind="discriminator/projected", config=config, tensors=state)]


def matches_backbone(value: object) -> bool:
    """Whether the file is timm's state dictionary of EfficientNet-lite0."""
    return isinstance(value, dict) and {"conv_stem.weight", "blocks.6.0.conv_pwl.weight"} <= value.keys()


def convert_backbone(value: Any) -> list[Network]:
    """The classifier up to its last unit, by the depths at which the projected discriminator reads it."""
    state = {}
    for name, tensor in tensors(value).items():
        first, _, rest = name.partition(".")
        if first in _STEM:
            state[f"layer0.{_STEM[first]}.{rest}"] = tensor
        elif first == "blocks":
            stage, _, rest = rest.partition(".")
            depth = next(i for i, (start, end) in enumerate(_DEPTHS) if start <= int(stage) < end)
            state[f"layer{depth}.{int(stage) - _DEPTHS[depth][0] + (3 if depth == 0 else 0)}.{rest}"] = tensor
        elif first not in ("conv_head", "bn2", "classifier"):
            raise WeightsError(f"{name[:100]} belongs to no EfficientNet-lite0")
    return [Network(kind="backbone/efficientnet-lite0", config={}, tensors=state)]


def matches_arcface(value: object) -> bool:
    """Whether the file is a pickled ResNet of SimSwap's, or a training checkpoint with one as its `model`."""
    return _module(value) is not None


def convert_arcface(value: Any) -> list[Network]:
    """The identity network under its own names; an optimiser and a classifier beside it are not read."""
    state = state_of(_module(value))
    state = under("module.", state) if any(name.startswith("module.") for name in state) else state
    if "layer1.0.se.fc.0.weight" not in state:
        raise WeightsError("the module in it is no residual network with squeeze and excitation")
    units, widths = stages(state, r"layer(\d+)\.(\d+)\.conv2\.weight")
    config = {"units": units, "widths": widths, "embedding_dim": shape_of(state, "fc.weight", 2)[0]}
    return [Network(kind="identity/arcface-se", config=config, tensors=state)]


def _module(value: object) -> Record | None:
    model = value.get("model") if isinstance(value, dict) else value
    if isinstance(model, Record) and (model.name == _PARALLEL or _ARCFACE.fullmatch(model.name)):
        return model
    return None
