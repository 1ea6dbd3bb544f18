"""What the published forms of StyleGAN2 have in common: the names of `generators.stylegan2`, and its configuration."""

from collections.abc import Mapping, Sequence

import numpy as np

from latentswap.errors import WeightsError
from latentswap.weights.convert.tensors import Network, Stored, of_array, shape_of

KIND = "generator/stylegan2"
LR_MULTIPLIER = 0.01  # of the mapping network, in every published form
_DRAWS = 10_000
_SEED = 20240302


def sides(count: int) -> list[int]:
    """Sides of the first `count` blocks: 4, 8, … Raises WeightsError for a number that no generator has."""
    if not 2 <= count <= 10:
        raise WeightsError(f"a generator of {count} blocks; published ones have 2 to 10")
    return [4 << i for i in range(count)]


def network(
    state: dict[str, Stored],
    *,
    conv_clamp: float | None = None,
    num_fp16_res: int = 0,
    suffix: str = "",
    notes: str = "",
) -> Network:
    """The generator with the tensors `state`; its size is read from their shapes."""
    count = sum(name.endswith(".torgb.weight") for name in state)
    channels = {side: shape_of(state, f"synthesis.b{side}.conv1.bias", 1)[0] for side in sides(count)}
    base, most = _channel_law(channels)
    w_dim, z_dim = shape_of(state, "mapping.fc0.weight", 2)
    config = {
        "z_dim": z_dim,
        "w_dim": w_dim,
        "resolution": max(channels),
        "img_channels": shape_of(state, "synthesis.b4.torgb.weight", 4)[0],
        "channel_base": base,
        "channel_max": most,
        "mapping_layers": sum(name.startswith("mapping.fc") and name.endswith(".weight") for name in state),
        "conv_clamp": conv_clamp,
        "num_fp16_res": num_fp16_res,
    }
    return Network(kind=KIND, config=config, tensors=state, suffix=suffix, notes=notes)


def blur() -> np.ndarray:
    """The resampling filter of every published generator, float32 [4, 4]: binomial, of sum one."""
    row = np.array([1, 3, 3, 1], np.float32)
    return np.outer(row, row) / 64


def add_blur(state: dict[str, Stored], side: int) -> None:
    """Add the filters of one block, which other forms leave out."""
    for layer in ("", "conv0.", "conv1."):
        if side > 4 or layer != "conv0.":
            state[f"synthesis.b{side}.{layer}resample_filter"] = of_array(blur())


def check_blur(kernel: Stored, *, gain: float = 1) -> None:
    """Raise WeightsError for a generator that resamples with another filter."""
    if kernel.shape != (4, 4) or not np.allclose(kernel.read(), blur() * gain, atol=1e-6):
        raise WeightsError("this generator resamples with another filter than the published ones")


def mean_w(weights: Sequence[np.ndarray], biases: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation, float32 [D], of w over seeded draws of z.

    The layers are the effective ones (their learning-rate multiplier applied). z is normalised to unit mean square;
    each layer ends with LeakyReLU 0.2 times √2.
    """
    x = np.random.default_rng(_SEED).standard_normal((_DRAWS, weights[0].shape[1]), dtype=np.float32)
    x /= np.sqrt(np.mean(x**2, axis=1, keepdims=True) + 1e-8)
    for weight, bias in zip(weights, biases, strict=True):
        x = x @ weight.T + bias
        x = np.where(x > 0, x, 0.2 * x) * np.float32(np.sqrt(2))
    return x.mean(0, dtype=np.float64).astype(np.float32), x.std(0, dtype=np.float64).astype(np.float32)


def effective_layers(state: Mapping[str, Stored], names: Sequence[str]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Weights and biases of the mapping layers `names` with the learning-rate multiplier applied."""
    weights = [state[f"{name}.weight"].read() for name in names]
    return (
        [weight * np.float32(LR_MULTIPLIER / weight.shape[1] ** 0.5) for weight in weights],
        [state[f"{name}.bias"].read() * np.float32(LR_MULTIPLIER) for name in names],
    )


def _channel_law(channels: Mapping[int, int]) -> tuple[int, int]:
    """(channel_base, channel_max) such that the block of a side has min(channel_base // side, channel_max)."""
    most = max(channels.values())
    base = max((side * count for side, count in channels.items() if count < most), default=most * max(channels))
    if any(min(base // side, most) != count for side, count in channels.items()):
        raise WeightsError(f"channels of {list(channels.values())} follow no law of the published generators")
    return base, most
