"""Checkpoints of pSp, e4e and ReStyle: an encoder, the StyleGAN2 that it was trained for, and the average code."""

import re
from typing import Any

import numpy as np

from latentswap.errors import WeightsError
from latentswap.weights.convert import rosinality
from latentswap.weights.convert.arcface import trunk
from latentswap.weights.convert.tensors import Network, Stored, of_array, shape_of, under
from latentswap.weights.convert.unpickle import as_state, shown

# `opts.encoder_type` → (variant, heads).
_ENCODERS = {
    "Encoder4Editing": ("e4e", "pyramid"),
    "GradualStyleEncoder": ("psp", "pyramid"),
    "SingleStyleCodeEncoder": ("psp", "single"),
    "BackboneEncoderUsingLastLayerIntoW": ("psp", "single"),
    "ProgressiveBackboneEncoder": ("restyle-e4e", "last"),
    "BackboneEncoder": ("restyle-psp", "last"),
}


def matches(value: object) -> bool:
    """Whether the file has `opts` and a state with an encoder and a decoder."""
    state = value.get("state_dict") if isinstance(value, dict) else None
    return isinstance(state, dict) and "opts" in value and "encoder.input_layer.0.weight" in state  # pyright: ignore


def convert(value: Any) -> list[Network]:
    """The encoder, and its generator. Raises WeightsError for an encoder that is not on an IR-SE50 trunk."""
    opts = as_state(value["opts"])
    state = rosinality.tensors(value["state_dict"])
    kind = opts.get("encoder_type")
    if not isinstance(kind, str) or kind not in _ENCODERS:
        raise WeightsError(f"its encoder_type is {shown(kind)}; these are read: {', '.join(_ENCODERS)}")
    variant, heads = _ENCODERS[kind]
    encoder = under("encoder.", state)
    found = "pyramid" if "latlayer1.weight" in encoder else "single" if "linear.weight" in encoder else "last"
    iterated = shape_of(encoder, "input_layer.0.weight", 4)[1] == 6
    if found != heads or iterated != variant.startswith("restyle"):
        raise WeightsError(f"its tensors are not those of the {kind} that it says it is")
    average = value.get("latent_avg")
    rows = _rows(opts, encoder, average)
    last = "linear.weight" if heads == "single" else "styles.0.linear.weight"
    w_dim = shape_of(encoder, last, 2)[0]
    config = {
        "variant": variant,
        "heads": heads,
        "n_styles": rows,
        "add_average": opts.get("start_from_latent_avg") is True,
        "w_dim": w_dim,
        **trunk(encoder),
    }
    encoder["latent_avg"] = _average(average, rows, w_dim, needed=config["add_average"] or iterated)
    networks = [Network(kind="inverter/psp", config=config, tensors=encoder)]
    if decoder := under("decoder.", state):
        networks.append(rosinality.generator(decoder, rosinality.average(average), suffix="-generator"))
    others = [name for name in state if not name.startswith(("encoder.", "decoder."))]
    if others:
        raise WeightsError(f"it holds more than an encoder and a decoder: {', '.join(sorted(others)[:5])}")
    return networks


def _rows(opts: dict[str, Any], encoder: dict[str, Stored], average: object) -> int:
    """Rows of the encoder's codes: one head each, or as many as its generator takes."""
    heads = sum(bool(re.fullmatch(r"styles\.\d+\.linear\.weight", name)) for name in encoder)
    if heads:
        return heads
    stated = opts.get("n_styles")
    if type(stated) is int:
        return stated
    size = opts.get("output_size", opts.get("stylegan_size"))
    if type(size) is int and 4 <= size <= 4096:
        return 2 * size.bit_length() - 4
    if isinstance(average, Stored) and len(average.shape) == 2:
        return average.shape[0]
    raise WeightsError("it does not state how many rows its codes have")


def _average(value: object, rows: int, w_dim: int, *, needed: bool) -> Stored:
    """`latent_avg` as [rows, w_dim]; one row stands for all."""
    if not isinstance(value, Stored):
        if needed:
            raise WeightsError("it has no latent_avg, to which its codes are offsets")
        return of_array(np.zeros((rows, w_dim), np.float32))
    if value.size == w_dim:
        return of_array(np.repeat(value.read().reshape(1, w_dim), rows, 0))
    return value.reshape(rows, w_dim)
