"""StyleGAN2's first pickles, of TensorFlow (stylegan2-ffhq-config-f.pkl): (G, D, Gs), whose variables are arrays."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from latentswap.errors import WeightsError
from latentswap.weights.convert import stylegan2
from latentswap.weights.convert.tensors import Network, Stored, of_array
from latentswap.weights.convert.unpickle import Record, as_state, plain, shown

_NETWORK = "dnnlib.tflib.network.Network"
_OLDEST = 4  # the first version of the format that says enough
# What the converted network assumes; a file that states otherwise is refused.
_ASSUMED = {
    "architecture": ("skip",),
    "nonlinearity": ("lrelu",),
    "mapping_nonlinearity": ("lrelu",),
    "mapping_lrmul": (stylegan2.LR_MULTIPLIER,),
    "label_size": (0,),
    "fused_modconv": (True, False),
    "normalize_latents": (True,),
    "resample_kernel": ([1, 3, 3, 1],),
}


def matches(value: object) -> bool:
    """Whether the file is three TensorFlow networks."""
    return (
        isinstance(value, tuple)
        and len(value) == 3
        and all(isinstance(part, Record) and part.name == _NETWORK for part in value)
    )


def convert(value: Any) -> list[Network]:
    """The averaged generator Gs. Raises WeightsError for anything but StyleGAN2 without labels."""
    variables = _variables(value[2], "", 0)
    settings = as_state(as_state(value[2]).get("static_kwargs", {}))
    for name, known in _ASSUMED.items():
        if name in settings and settings[name] not in known:
            raise WeightsError(f"its {name} is {shown(settings[name])}; only {known[0]} is supported")
    if any("LabelEmbed" in name or "LabelConcat" in name for name in variables):
        raise WeightsError("this generator is conditional; only generators without labels are supported")
    state: dict[str, Stored] = {}
    unknown = [name for name, tensor in variables.items() if not _take(name, tensor, state)]
    if unknown or "mapping.w_avg" not in state:
        raise WeightsError(
            f"this is not StyleGAN2's generator; it has {', '.join(sorted(unknown)[:5]) or 'no average'}"
        )
    for side in stylegan2.sides(sum(name.endswith(".torgb.weight") for name in state)):
        stylegan2.add_blur(state, side)
    clamp, half = settings.get("conv_clamp"), settings.get("num_fp16_res", 0)
    return [stylegan2.network(state, conv_clamp=None if clamp is None else float(clamp), num_fp16_res=half)]


def _variables(network: Any, prefix: str, depth: int) -> dict[str, Stored]:
    """The variables of a network and its components, their names joined by slashes."""
    fields = as_state(network)
    if depth > 2 or not isinstance(network, Record) or network.name != _NETWORK:
        raise WeightsError("its networks are nested in an unknown way")
    version, variables = fields.get("version"), fields.get("variables")
    if type(version) is not int or version < _OLDEST or not isinstance(variables, list):
        raise WeightsError(f"it is of version {shown(version)} of TensorFlow's pickles; {_OLDEST} and later are read")
    found: dict[str, Stored] = {}
    for entry in variables:
        name, array = entry if isinstance(entry, tuple) and len(entry) == 2 else (None, None)
        # A variable without axes was written as a number.
        array = of_array(np.array(array, np.float32)) if isinstance(array, float) else plain(array)
        if not isinstance(name, str) or not isinstance(array, Stored):
            raise WeightsError("one of its variables is not an array")
        found[prefix + name] = array
    for name, component in as_state(fields.get("components", {})).items():
        found |= _variables(component, f"{prefix}{name}/", depth + 1)
    return found


def _take(name: str, tensor: Stored, state: dict[str, Stored]) -> bool:
    """Put one variable into the state under its name there. Returns whether it is a variable of StyleGAN2."""
    if name in ("lod", "synthesis/lod"):
        return True  # progress of a training run, read by nothing
    if name == "dlatent_avg":
        state["mapping.w_avg"] = tensor
    elif name == "synthesis/4x4/Const/const":
        state["synthesis.b4.const"] = _changed(tensor, lambda a: a[0])
    elif match := re.fullmatch(r"mapping/Dense(\d+)/(weight|bias)", name):
        transform = np.transpose if match[2] == "weight" else None
        state[f"mapping.fc{match[1]}.{match[2]}"] = _changed(tensor, transform)
    elif match := re.fullmatch(r"synthesis/noise(\d+)", name):
        level = int(match[1])  # 0 is the only one at 4²; from there on two a side
        layer = f"b{4 << (level + 1) // 2}.conv{level % 2 ^ 1}"
        state[f"synthesis.{layer}.noise_const"] = _changed(tensor, lambda a: a[0, 0])
    elif match := re.fullmatch(r"synthesis/(\d+)x\1/(Conv|Conv0_up|Conv1|ToRGB)/(\w+)", name):
        layer = {"Conv": "conv1", "Conv0_up": "conv0", "Conv1": "conv1", "ToRGB": "torgb"}[match[2]]
        if match[3] not in _PARTS or (layer != "torgb" and (match[2] == "Conv") != (match[1] == "4")):
            return False
        part, transform = _PARTS[match[3]]
        if part == "weight" and layer == "conv0":
            transform = _flipped
        state[f"synthesis.b{match[1]}.{layer}.{part}"] = _changed(tensor, transform)
    else:
        return False
    return True


def _kernel(a: np.ndarray) -> np.ndarray:
    """[h, w, I, O] → [O, I, h, w]."""
    return a.transpose(3, 2, 0, 1)


def _flipped(a: np.ndarray) -> np.ndarray:
    return _kernel(a[::-1, ::-1])


_PARTS: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray] | None]] = {
    "weight": ("weight", _kernel),
    "bias": ("bias", None),
    "noise_strength": ("noise_strength", None),
    "mod_weight": ("affine.weight", np.transpose),
    "mod_bias": ("affine.bias", lambda a: a + 1),
}


def _changed(tensor: Stored, transform: Callable[[np.ndarray], np.ndarray] | None) -> Stored:
    if transform is None:
        return tensor
    shape = transform(np.broadcast_to(np.zeros((), np.int8), tensor.shape)).shape
    return Stored(shape, tensor.dtype, lambda: np.asarray(transform(tensor.read()), order="C"))
