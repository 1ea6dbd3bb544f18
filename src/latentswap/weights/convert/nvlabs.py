"""NVIDIA's StyleGAN2 pickles (stylegan2-ada-pytorch, and the StyleGAN2 of the stylegan3 repository).

The pickle holds whole modules together with their source code. The code is never looked at: a module here is a record
with `_parameters`, `_buffers`, `_modules` and the plain attributes that its constructor left.
"""

from typing import Any

from latentswap.errors import WeightsError
from latentswap.weights.convert import stylegan2
from latentswap.weights.convert.tensors import Network, Stored
from latentswap.weights.convert.unpickle import Record, as_state, shown

_PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"
_MAX_MODULES = 2_000
_MAX_DEPTH = 8


def matches(value: object) -> bool:
    """Whether the file is a snapshot with `G_ema`, or one whole generator."""
    module = value.get("G_ema") if isinstance(value, dict) else value
    return isinstance(module, Record) and module.name == _PERSISTENT


def convert(value: Any) -> list[Network]:
    """The generator, its tensors under their own names. Raises WeightsError for one that is not StyleGAN2."""
    generator = value["G_ema"] if isinstance(value, dict) else value
    if (class_name := _meta(generator).get("class_name")) != "Generator":
        raise WeightsError(f"it holds {shown(class_name)} where a generator is expected")
    modules: dict[str, dict[str, Any]] = {}
    state: dict[str, Stored] = {}
    _walk(generator, "", modules, state, 0)
    if "synthesis.input" in modules or not any(name.startswith("synthesis.b4.") for name in modules):
        raise WeightsError(
            "this generator is not StyleGAN2 (StyleGAN3 and others have another latent space); it is not supported"
        )
    if _setting(modules[""], "c_dim") != 0:
        raise WeightsError("this generator is conditional (c_dim > 0); only generators without labels are supported")
    blocks = [name for name in modules if name.startswith("synthesis.b") and name.count(".") == 1]
    sides = stylegan2.sides(len(blocks))
    if sorted(blocks) != sorted(f"synthesis.b{side}" for side in sides):
        raise WeightsError(f"it has the blocks {', '.join(sorted(blocks))}")
    _check_supported(modules, blocks, state)
    network = stylegan2.network(
        state,
        conv_clamp=_clamp(modules, sides),
        num_fp16_res=sum(_setting(modules[name], "use_fp16") is True for name in blocks),
    )
    for ours, theirs in (("z_dim", "z_dim"), ("w_dim", "w_dim"), ("resolution", "img_resolution")):
        if (stated := _setting(modules[""], theirs)) != network.config[ours]:
            raise WeightsError(f"it states {theirs} {shown(stated)}, and its tensors say {network.config[ours]}")
    return [network]


def _meta(module: Any) -> dict[str, Any]:
    """What a persistent object was pickled as: class_name, state and more."""
    if not (isinstance(module, Record) and module.name == _PERSISTENT and len(module.args) == 1):
        raise WeightsError("it holds something other than a module where a module is expected")
    return as_state(module.args[0])


def _attributes(module: Any) -> dict[str, Any]:
    if isinstance(module, Record) and module.name.startswith("torch.nn.modules."):
        return as_state(module)
    return as_state(_meta(module).get("state"))


def _walk(module: Any, name: str, modules: dict[str, Any], state: dict[str, Stored], depth: int) -> None:
    """Collect the attributes of all modules by dotted name, and their tensors."""
    if depth > _MAX_DEPTH or len(modules) > _MAX_MODULES:
        raise WeightsError("its modules are nested deeper, or are more, than any generator's")
    attributes = modules[name] = _attributes(module)
    prefix = name + "." if name else ""
    for group in ("_parameters", "_buffers"):
        for key, tensor in as_state(attributes.get(group, {})).items():
            if isinstance(tensor, Stored):
                state[prefix + key] = tensor
            elif tensor is not None:
                raise WeightsError(f"{prefix}{key} is not a tensor")
    for key, child in as_state(attributes.get("_modules", {})).items():
        if child is not None:
            _walk(child, prefix + key, modules, state, depth + 1)


def _setting(attributes: dict[str, Any], name: str) -> Any:
    """A hyper-parameter: an attribute of the module, or what its constructor was given."""
    given = attributes.get("_init_kwargs")
    if name in attributes:
        return attributes[name]
    if isinstance(given, dict) and name in given:
        return given[name]
    raise WeightsError(f"it does not state its {name}, without which the weights mean nothing")


def _clamp(modules: dict[str, Any], sides: list[int]) -> float | None:
    stated = {_setting(modules[f"synthesis.b{side}.conv1"], "conv_clamp") for side in sides}
    if len(stated) != 1 or not all(value is None or type(value) in (int, float) for value in stated):
        raise WeightsError("its layers state several values of conv_clamp")
    (value,) = stated
    return None if value is None else float(value)


def _check_supported(modules: dict[str, Any], blocks: list[str], state: dict[str, Stored]) -> None:
    """Refuse what would load and give wrong pictures."""
    for name in blocks:
        if (architecture := _setting(modules[name], "architecture")) != "skip":
            raise WeightsError(f"its architecture is {shown(architecture)}; only 'skip' is supported")
        if (activation := _setting(modules[f"{name}.conv1"], "activation")) != "lrelu":
            raise WeightsError(f"its activation is {shown(activation)}; only 'lrelu' is supported")
    if (gain := _setting(modules["mapping.fc0"], "bias_gain")) != stylegan2.LR_MULTIPLIER:
        raise WeightsError(
            f"its mapping network has the gain {shown(gain)}; only {stylegan2.LR_MULTIPLIER} is supported"
        )
    for name, tensor in state.items():
        if name.endswith("resample_filter"):
            stylegan2.check_blur(tensor)
