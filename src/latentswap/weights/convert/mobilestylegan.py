"""MobileStyleGAN's own checkpoint (Lightning): the student and its mapping network.

The style scales and the demodulation, which does not depend on the style, are folded into the weights: what comes out
is laid out as the published OpenVINO graphs are after conversion (`openvino_ir`). The checkpoint has strengths of noise
but no noise; maps are drawn from a fixed seed.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from latentswap.weights.convert import stylegan2
from latentswap.weights.convert.rosinality import tensors
from latentswap.weights.convert.tensors import Network, Stored, of_array, shape_of, under

_NOISE_SEED = 20210407


def matches(value: object) -> bool:
    """Whether the file has a student with depthwise convolutions and demodulation by constants."""
    state = value.get("state_dict") if isinstance(value, dict) else None
    return isinstance(state, dict) and "student.layers.0.conv1.conv.weight_dw" in state


def convert(value: Any) -> list[Network]:
    """The generator of `generators.mobile`. Raises WeightsError for tensors that are missing or misshapen."""
    state = tensors(value["state_dict"])
    student, mapping = under("student.", state), under("mapping_net.", state)
    blocks = sum(bool(re.fullmatch(r"layers\.\d+\.conv1\.conv\.weight_dw", name)) for name in student)
    noise = np.random.default_rng(_NOISE_SEED)
    arrays = {"synthesis_network.input": student["input.input"].read()}
    arrays |= _convolution(student, "conv1", "conv0", 4, noise)
    for i in range(blocks):
        up = f"layers.{i}.up"
        arrays |= _affine(student, f"{up}.modulation", f"blocks.{i}.up", 1)
        for conv in ("conv1", "conv2"):
            arrays |= _convolution(student, f"layers.{i}.{conv}", f"blocks.{i}.{conv}", 8 << i, noise)
    arrays |= _picture(student, f"layers.{blocks - 1}.to_img")
    depth = sum(bool(re.fullmatch(r"layers\.\d+\.weight", name)) for name in mapping)
    weights, biases = stylegan2.effective_layers(mapping, [f"layers.{i + 1}" for i in range(depth)])
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        arrays[f"mapping_network.layers.{i}.weight"], arrays[f"mapping_network.layers.{i}.bias"] = weight, bias
    arrays["w_avg"], arrays["w_std"] = stylegan2.mean_w(weights, biases)
    notes = "noise maps drawn from a fixed seed; w_avg and w_std measured over 10,000 seeded draws"
    converted = {name: of_array(np.asarray(array, np.float32)) for name, array in arrays.items()}
    return [Network(kind="generator/mobilestylegan", config={}, tensors=converted, notes=notes)]


def _affine(student: Mapping[str, Stored], theirs: str, ours: str, scale: float) -> dict[str, np.ndarray]:
    return {
        f"synthesis_network.{ours}.affine.{part}": student[f"{theirs}.{part}"].read() * np.float32(scale)
        for part in ("weight", "bias")
    }


def _convolution(
    student: Mapping[str, Stored], theirs: str, ours: str, side: int, noise: np.random.Generator
) -> dict[str, np.ndarray]:
    """A styled convolution, full or depthwise and pointwise."""
    name, conv = f"synthesis_network.{ours}", f"{theirs}.conv"
    inverse = student[f"{conv}.style_inv"].read().reshape(1, -1, 1, 1)
    full = f"{conv}.weight" in student
    if full:
        weight = student[f"{conv}.weight"].read()
    else:
        depthwise = student[f"{conv}.weight_dw"].read()
        pointwise = student[f"{conv}.weight_permute"].read()
        weight = depthwise.transpose(1, 0, 2, 3) * pointwise
    scale = (weight.shape[1] * weight.shape[2] ** 2) ** -0.5
    norm = np.square(scale * inverse * weight, dtype=np.float64).sum((1, 2, 3), keepdims=True)
    demodulation = (1 / np.sqrt(norm + 1e-8)).astype(np.float32)
    arrays = _affine(student, f"{conv}.modulation", ours, scale)
    if full:
        arrays[f"{name}.weight"] = weight * demodulation
    else:
        arrays[f"{name}.depthwise"], arrays[f"{name}.pointwise"] = depthwise, pointwise * demodulation
    strength = student[f"{theirs}.noise.weight"].read().reshape(())
    arrays[f"{name}.noise"] = noise.standard_normal((1, 1, side, side), dtype=np.float32) * strength
    arrays[f"{name}.bias"] = student[f"{theirs}.bias"].read().reshape(-1)
    return arrays


def _picture(student: Mapping[str, Stored], theirs: str) -> dict[str, np.ndarray]:
    channels = shape_of(student, f"{theirs}.conv.weight", 4)[1]
    arrays = _affine(student, f"{theirs}.conv.modulation", "to_image", channels**-0.5)
    arrays["synthesis_network.to_image.weight"] = student[f"{theirs}.conv.weight"].read()
    arrays["synthesis_network.to_image.bias"] = student[f"{theirs}.bias"].read().reshape(-1)
    return arrays
