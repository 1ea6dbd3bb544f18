"""MobileStyleGAN as published in OpenVINO IR v10 (two XML graphs and their constants) → named tensors.

The XML is read as data: constants by name, in the order in which the convolutions consume them. The scalar that the
published graph multiplies each style with is folded into the affine that makes the style.
"""

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping

import numpy as np

from latentswap.errors import WeightsError

_PREFIX = "random_face/data/"
_W_STATISTICS_SAMPLES = 50_000
_W_STATISTICS_SEED = 20240302


def convert_mobilestylegan(members: Mapping[str, bytes]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Convert the four published members to the tensors of `generators.mobile.MobileStyleGAN`.

    Returns (tensors, metadata). Besides the published weights the tensors hold `w_avg` and `w_std` (both [512]): mean
    and standard deviation of the mapping network's output over 50,000 seeded draws, which the files do not carry.
    Raises WeightsError when the graph is not the published one.
    """
    mapping = _constants(members[_PREFIX + "MappingNetwork.xml"], members[_PREFIX + "MappingNetwork.bin"])
    synthesis = _constants(members[_PREFIX + "SynthesisNetwork.xml"], members[_PREFIX + "SynthesisNetwork.bin"])
    tensors = _mapping_tensors(mapping) | _synthesis_tensors(synthesis)
    tensors |= _w_statistics(tensors)
    return tensors, {"architecture": "mobilestylegan", "w_statistics_samples": str(_W_STATISTICS_SAMPLES)}


def _constants(xml: bytes, blob: bytes) -> list[tuple[str, np.ndarray]]:
    """Floating-point constants of a graph, with their names, in graph order."""
    if b"<!DOCTYPE" in xml or b"<!ENTITY" in xml:
        raise WeightsError("The network description declares XML entities; the published one does not.")
    found = []
    for layer in ET.fromstring(xml).iter("layer"):  # noqa: S314 - the member's sha256 is pinned, and entities are refused
        data = layer.find("data")
        if layer.get("type") != "Const" or data is None or data.get("element_type") != "f32":
            continue
        shape = tuple(int(n) for n in (data.get("shape") or "").split(",") if n.strip())
        offset, size = int(data.get("offset", -1)), int(data.get("size", -1))
        if not (0 <= offset and offset + size <= len(blob)) or size != 4 * int(np.prod(shape, dtype=np.int64)):
            raise WeightsError(f"Constant {layer.get('name')!r} lies outside the network's weight file.")
        values = np.frombuffer(blob, "<f4", size // 4, offset).reshape(shape)
        found.append((layer.get("name") or "", values.copy()))
    return found


def _mapping_tensors(constants: list[tuple[str, np.ndarray]]) -> dict[str, np.ndarray]:
    weights = [v for _, v in constants if v.shape == (512, 512)]
    biases = [v for _, v in constants if v.shape == (512,)]
    if len(weights) != 8 or len(biases) != 8:
        raise WeightsError(f"The mapping network has {len(weights)} layers, not 8.")
    tensors = {}
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        tensors[f"mapping_network.layers.{i}.weight"], tensors[f"mapping_network.layers.{i}.bias"] = weight, bias
    return tensors


def _synthesis_tensors(constants: list[tuple[str, np.ndarray]]) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    scales: dict[str, np.ndarray] = {}
    affine, convolution = "", ""  # the layers whose constants are being read
    for name, value in constants:
        if match := re.fullmatch(r"m\.(.+?)(?:\.conv)?\.modulation\.(weight|bias)(?:/.*)?", name):
            affine = match[1]
            tensors[f"{_target(affine)}.affine.{match[2]}"] = value.reshape(value.shape if match[2] == "weight" else -1)
        elif value.shape == (1, 1, 1, 1) and affine:
            scales[affine], affine = value, ""
        elif name == "m.input.input":
            tensors["synthesis_network.input"], convolution = value, "conv1"
        elif match := re.fullmatch(r"m\.(.+)\.conv\.weight_dw.*", name):
            convolution = match[1]
            tensors[f"{_target(convolution)}.depthwise"] = value.reshape(-1, 1, 3, 3)
        elif name.startswith("Mul_") and name.endswith("_copy"):
            kind = "weight" if value.shape[-1] == 3 else "pointwise"
            tensors[f"{_target(convolution)}.{kind}"] = value
        elif re.fullmatch(r"m\.layers\.\d\.to_img\.conv\.weight.*", name):
            convolution = name.split(".conv.")[0].removeprefix("m.")
            tensors[f"{_target(convolution)}.weight"] = value.reshape(value.shape[-4:])
        elif value.ndim == 4 and value.shape[:2] == (1, 1) and value.shape[2] > 1:
            tensors[f"{_target(convolution)}.noise"] = value
        elif match := re.fullmatch(r"m\.(.+)\.bias.*", name):
            tensors[f"{_target(match[1])}.bias"] = value.reshape(-1)
    for layer, scale in scales.items():
        for part in ("weight", "bias"):
            tensors[f"{_target(layer)}.affine.{part}"] = tensors[f"{_target(layer)}.affine.{part}"] * scale.reshape(())
    return tensors


def _target(published: str) -> str:
    """Published layer name → ours."""
    if published == "conv1":
        return "synthesis_network.conv0"
    if published.endswith("to_img"):
        return "synthesis_network.to_image"
    return "synthesis_network.blocks." + published.removeprefix("layers.")


def _w_statistics(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    x = np.random.default_rng(_W_STATISTICS_SEED).standard_normal((_W_STATISTICS_SAMPLES, 512), dtype=np.float32)
    x /= np.sqrt(np.mean(x**2, axis=1, keepdims=True) + 1e-8)
    for i in range(8):
        x = x @ tensors[f"mapping_network.layers.{i}.weight"].T + tensors[f"mapping_network.layers.{i}.bias"]
        x = np.where(x > 0, x, 0.2 * x) * np.float32(np.sqrt(2))
    x = x.astype(np.float64)
    return {"w_avg": x.mean(0).astype(np.float32), "w_std": x.std(0).astype(np.float32)}
