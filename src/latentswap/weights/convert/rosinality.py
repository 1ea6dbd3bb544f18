"""StyleGAN2 as rosinality/stylegan2-pytorch names it: its .pt files, and the decoders of pSp, e4e and ReStyle."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from latentswap.errors import WeightsError
from latentswap.weights.convert import stylegan2
from latentswap.weights.convert.tensors import Network, Stored, of_array
from latentswap.weights.convert.unpickle import as_state


def matches(value: object) -> bool:
    """Whether the file has `g_ema` with rosinality's names."""
    g_ema = value.get("g_ema") if isinstance(value, dict) else None
    return isinstance(g_ema, dict) and {"style.1.weight", "input.input", "to_rgb1.bias"} <= g_ema.keys()


def convert(value: Any) -> list[Network]:
    """The averaged generator; the other networks and the optimisers of a training checkpoint are not read."""
    return [generator(tensors(value["g_ema"]), average(value.get("latent_avg")))]


def tensors(value: object) -> dict[str, Stored]:
    """A state dictionary, all of tensors. Raises WeightsError."""
    state = as_state(value)
    if bad := [name for name, tensor in state.items() if not isinstance(tensor, Stored)]:
        raise WeightsError(f"these entries are not tensors: {', '.join(sorted(bad)[:5])}")
    return state


def average(value: object) -> Stored | None:
    """`latent_avg` as one row [D]; None when the file has none or it is not the same in every row."""
    if not isinstance(value, Stored):
        return None
    rows = value.reshape(-1 if not value.shape else value.size // value.shape[-1], value.shape[-1]).read()
    return of_array(rows[0]) if len(rows) and (rows == rows[0]).all() else None


def generator(state: Mapping[str, Stored], w_avg: Stored | None, *, suffix: str = "") -> Network:
    """The generator with rosinality's names `state`. Without `w_avg` it is measured: the mean of w over seeded draws.

    Raises WeightsError for names that are not this architecture's.
    """
    depth = sum(bool(re.fullmatch(r"style\.\d+\.weight", name)) for name in state)
    sides = stylegan2.sides(1 + sum(bool(re.fullmatch(r"to_rgbs\.\d+\.bias", name)) for name in state))
    notes = ""
    if w_avg is None:
        notes = "w_avg was not in the file; it was measured over 10,000 seeded draws"
        names = [f"style.{i + 1}" for i in range(depth)]
        w_avg = of_array(stylegan2.mean_w(*stylegan2.effective_layers(state, names))[0])
    pairs = dict(_pairs(depth, sides))
    wanted = {*pairs.values(), *_kernels(sides)}
    missing, unexpected = sorted(wanted - state.keys()), sorted(state.keys() - wanted)
    if missing or unexpected:
        raise WeightsError(
            "the generator is not StyleGAN2 as published; "
            f"missing: {', '.join(missing[:5]) or 'nothing'}; unexpected: {', '.join(unexpected[:5]) or 'nothing'}"
        )
    for name in _kernels(sides):
        stylegan2.check_blur(state[name], gain=4)
    result = {ours: _reshaped(ours, state[theirs]) for ours, theirs in pairs.items()}
    result["mapping.w_avg"] = w_avg
    for side in sides:
        stylegan2.add_blur(result, side)
    return stylegan2.network(result, suffix=suffix, notes=notes)


def _pairs(depth: int, sides: list[int]) -> Iterator[tuple[str, str]]:
    """(our name, rosinality's name) of every tensor but the constant filters."""
    for i in range(depth):
        for part in ("weight", "bias"):
            yield f"mapping.fc{i}.{part}", f"style.{i + 1}.{part}"
    yield "synthesis.b4.const", "input.input"
    for level, side in enumerate(sides):
        block = f"synthesis.b{side}"
        if side > 4:
            yield from _convolution(f"{block}.conv0", f"convs.{2 * level - 2}", 2 * level - 1)
        yield from _convolution(f"{block}.conv1", f"convs.{2 * level - 1}" if level else "conv1", 2 * level)
        picture = f"to_rgbs.{level - 1}" if level else "to_rgb1"
        yield from _modulated(f"{block}.torgb", picture)
        yield f"{block}.torgb.bias", f"{picture}.bias"


def _convolution(ours: str, theirs: str, noise: int) -> Iterator[tuple[str, str]]:
    yield from _modulated(ours, theirs)
    yield f"{ours}.bias", f"{theirs}.activate.bias"
    yield f"{ours}.noise_strength", f"{theirs}.noise.weight"
    yield f"{ours}.noise_const", f"noises.noise_{noise}"


def _modulated(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    yield f"{ours}.weight", f"{theirs}.conv.weight"
    for part in ("weight", "bias"):
        yield f"{ours}.affine.{part}", f"{theirs}.conv.modulation.{part}"


def _kernels(sides: list[int]) -> list[str]:
    count = len(sides) - 1
    return [f"convs.{2 * i}.conv.blur.kernel" for i in range(count)] + [
        f"to_rgbs.{i}.upsample.kernel" for i in range(count)
    ]


def _reshaped(name: str, tensor: Stored) -> Stored:
    """Without the axes of length one that rosinality adds."""
    match name.rpartition(".")[2]:
        case "const":
            return tensor.reshape(*tensor.shape[-3:])
        case "noise_const":
            return tensor.reshape(*tensor.shape[-2:])
        case "noise_strength":
            return tensor.reshape()
        case "weight" if len(tensor.shape) == 5:
            return tensor.reshape(*tensor.shape[-4:])
        case "bias":
            return tensor.reshape(tensor.size)
    return tensor
