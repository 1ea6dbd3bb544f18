"""Published checkpoints in miniature: the names and shapes of each upstream project, written from its specification."""

import argparse
import contextlib
import io
import itertools
import pickle
import sys
import types
import typing
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

Shapes = dict[str, tuple[int, ...]]
FIR = torch.outer(torch.tensor([1.0, 3, 3, 1]), torch.tensor([1.0, 3, 3, 1])) / 64
TRACKED = "num_batches_tracked"


def filled(shapes: Shapes, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random tensors; the integers and constants that the layouts have are right."""
    draw = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    for name in tensors:
        if name.endswith("resample_filter"):
            tensors[name] = FIR.clone()
        elif name.endswith(".kernel"):
            tensors[name] = FIR * 4
        elif name.endswith(TRACKED):
            tensors[name] = torch.tensor(len(name))
    return tensors


def parameters(shapes: Shapes) -> int:
    """Trainable numbers: no statistics, noise maps, filters or averages."""
    buffers = ("running_mean", "running_var", TRACKED, "resample_filter", "noise_const", "w_avg", ".kernel")
    return sum(int(np.prod(shape)) for name, shape in shapes.items() if not name.endswith(buffers))


# ------------------------------------------------------------------------------------------------- StyleGAN2


def generator_shapes(size: int = 32, base: int = 256, most: int = 16, w: int = 8, depth: int = 3, z: int = 8) -> Shapes:
    """NVIDIA's names (stylegan2-ada-pytorch)."""
    shapes: Shapes = {"mapping.w_avg": (w,)}
    for i in range(depth):
        shapes |= {f"mapping.fc{i}.weight": (w, w if i else z), f"mapping.fc{i}.bias": (w,)}
    side, c_in = 4, 0
    while side <= size:
        c, block = min(base // side, most), f"synthesis.b{side}"
        shapes[f"{block}.resample_filter"] = (4, 4)
        if side == 4:
            shapes[f"{block}.const"] = (c, 4, 4)
        for conv, inputs in (("conv0", c_in), ("conv1", c)):
            if inputs:
                name = f"{block}.{conv}"
                shapes |= {f"{name}.weight": (c, inputs, 3, 3), f"{name}.bias": (c,), f"{name}.noise_strength": ()}
                shapes |= {f"{name}.affine.weight": (inputs, w), f"{name}.affine.bias": (inputs,)}
                shapes |= {f"{name}.resample_filter": (4, 4), f"{name}.noise_const": (side, side)}
        shapes |= {f"{block}.torgb.weight": (3, c, 1, 1), f"{block}.torgb.bias": (3,)}
        shapes |= {f"{block}.torgb.affine.weight": (c, w), f"{block}.torgb.affine.bias": (c,)}
        side, c_in = 2 * side, c
    return shapes


def full_generator_shapes() -> Shapes:
    return generator_shapes(1024, 32768, 512, 512, 8, 512)


def rosinality_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A generator under rosinality's names, without its average."""
    size = max(int(name.split(".")[1][1:]) for name in state if name.startswith("synthesis.b"))
    levels, out = size.bit_length() - 2, {}
    for i in range(sum(name.startswith("mapping.fc") for name in state) // 2):
        out[f"style.{i + 1}.weight"], out[f"style.{i + 1}.bias"] = (
            state[f"mapping.fc{i}.{p}"] for p in ("weight", "bias")
        )
    out["input.input"] = state["synthesis.b4.const"][None]

    def styled(theirs: str, ours: str, noise: int, up: bool) -> None:
        out[f"{theirs}.conv.weight"] = state[f"{ours}.weight"][None]
        out[f"{theirs}.conv.modulation.weight"] = state[f"{ours}.affine.weight"]
        out[f"{theirs}.conv.modulation.bias"] = state[f"{ours}.affine.bias"]
        if up:
            out[f"{theirs}.conv.blur.kernel"] = FIR * 4
        out[f"{theirs}.noise.weight"] = state[f"{ours}.noise_strength"].reshape(1)
        out[f"{theirs}.activate.bias"] = state[f"{ours}.bias"]
        out[f"noises.noise_{noise}"] = state[f"{ours}.noise_const"][None, None]

    def picture(theirs: str, ours: str, up: bool) -> None:
        out[f"{theirs}.bias"] = state[f"{ours}.bias"].reshape(1, -1, 1, 1)
        if up:
            out[f"{theirs}.upsample.kernel"] = FIR * 4
        out[f"{theirs}.conv.weight"] = state[f"{ours}.weight"][None]
        out[f"{theirs}.conv.modulation.weight"] = state[f"{ours}.affine.weight"]
        out[f"{theirs}.conv.modulation.bias"] = state[f"{ours}.affine.bias"]

    styled("conv1", "synthesis.b4.conv1", 0, False)
    picture("to_rgb1", "synthesis.b4.torgb", False)
    for j in range(levels - 1):
        block = f"synthesis.b{8 << j}"
        styled(f"convs.{2 * j}", f"{block}.conv0", 2 * j + 1, True)
        styled(f"convs.{2 * j + 1}", f"{block}.conv1", 2 * j + 2, False)
        picture(f"to_rgbs.{j}", f"{block}.torgb", True)
    return out


def tensorflow_variables(state: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """A generator as TensorFlow's variables."""
    out: dict[str, np.ndarray] = {}
    for name, tensor in state.items():
        a, parts = tensor.numpy(), name.split(".")
        if name.endswith("resample_filter"):
            continue
        if name == "mapping.w_avg":
            out["dlatent_avg"] = a
        elif parts[0] == "mapping":
            out[f"mapping/Dense{parts[1][2:]}/{parts[2]}"] = a.T if parts[2] == "weight" else a
        elif name == "synthesis.b4.const":
            out["synthesis/4x4/Const/const"] = a[None]
        else:
            side, layer, part = int(parts[1][1:]), parts[2], ".".join(parts[3:])
            theirs = {"conv0": "Conv0_up", "conv1": "Conv" if side == 4 else "Conv1", "torgb": "ToRGB"}[layer]
            prefix = f"synthesis/{side}x{side}/{theirs}"
            if part == "noise_const":
                number = 2 * (side.bit_length() - 1) - (5 if layer == "conv0" else 4)
                out[f"synthesis/noise{number}"] = a[None, None]
            elif part == "weight":
                a = a.transpose(2, 3, 1, 0)
                out[f"{prefix}/weight"] = a[::-1, ::-1].copy() if layer == "conv0" else np.ascontiguousarray(a)
            elif part == "affine.weight":
                out[f"{prefix}/mod_weight"] = a.T.copy()
            elif part == "affine.bias":
                out[f"{prefix}/mod_bias"] = a - 1
            else:
                out[f"{prefix}/{part}"] = a[()]  # a number where there are no axes, as sessions return it
    return out


@contextlib.contextmanager
def upstream_modules(**modules: dict[str, Any]) -> Iterator[None]:
    """Stand-ins for upstream modules, so that pickles are written with the published global names."""
    made = {}
    for path, members in modules.items():
        parts = path.split("__")
        for i in range(len(parts)):
            name = ".".join(parts[: i + 1])
            if name not in sys.modules:
                made[name] = sys.modules[name] = types.ModuleType(name)
        for key, value in members.items():
            with contextlib.suppress(AttributeError, TypeError):
                value.__module__, value.__qualname__ = ".".join(parts), key
            setattr(sys.modules[".".join(parts)], key, value)
    try:
        yield
    finally:
        for name in made:
            del sys.modules[name]


def _reconstruct_persistent_obj(meta: dict[str, Any]) -> None:
    raise AssertionError("the pickle was loaded")


class EasyDict(dict):
    pass


class Persistent:
    """An object that pickles as NVIDIA's persistent classes do."""

    def __init__(self, class_name: str, state: dict[str, Any], source: str = "raise SystemExit") -> None:
        self.meta = {"type": "class", "version": 6, "module_src": source, "class_name": class_name, "state": state}

    def __reduce__(self) -> tuple[Any, ...]:
        return (_reconstruct_persistent_obj, (self.meta,))


def persistent_generator(
    state: dict[str, torch.Tensor], *, c_dim: int = 0, clamp: float | None = 256, source: str = "raise SystemExit"
) -> Persistent:
    """The module tree of `Generator` with its plain attributes."""
    sides = sorted({int(name.split(".")[1][1:]) for name in state if name.startswith("synthesis.b")})

    def module(name: str) -> Persistent:
        prefix = name + "." if name else ""
        inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        children = list(dict.fromkeys(key.partition(".")[0] for key in inside if "." in key))
        own = {key: value for key, value in inside.items() if "." not in key}
        buffers = {k: v for k, v in own.items() if k in ("w_avg", "resample_filter", "noise_const")}
        last = name.rpartition(".")[2]
        class_name, extra = "Generator", {}
        if not name:
            w_dim, z_dim = inside["mapping.fc0.weight"].shape
            extra = {"z_dim": z_dim, "c_dim": c_dim, "w_dim": w_dim, "img_resolution": sides[-1], "img_channels": 3}
        elif last in ("mapping", "synthesis"):
            class_name = {"mapping": "MappingNetwork", "synthesis": "SynthesisNetwork"}[last]
        elif last.startswith("b"):
            class_name = "SynthesisBlock"
            extra = {
                "architecture": "skip",
                "use_fp16": int(last[1:]) in sides[-2:],
                "is_last": int(last[1:]) == sides[-1],
            }
        elif last.startswith("conv"):
            class_name = "SynthesisLayer"
            extra = {"activation": "lrelu", "conv_clamp": clamp, "use_noise": True, "act_gain": np.float64(2**0.5)}
        elif last == "torgb":
            class_name, extra = "ToRGBLayer", {"conv_clamp": clamp, "weight_gain": np.sqrt(1 / 16)}
        else:
            class_name, extra = (
                "FullyConnectedLayer",
                {"activation": "lrelu", "weight_gain": np.float64(0.1), "bias_gain": 0.01},
            )
        fields = {
            "training": False,
            "_parameters": OrderedDict((k, torch.nn.Parameter(v)) for k, v in own.items() if k not in buffers),
            "_buffers": OrderedDict(buffers),
            "_non_persistent_buffers_set": set(),
            "_forward_hooks": OrderedDict(),
            "_modules": OrderedDict((child, module(prefix + child)) for child in children),
            "_init_args": (),
            "_init_kwargs": EasyDict(synthesis_kwargs=EasyDict(channel_base=256)),
        }
        return Persistent(class_name, fields | extra, source)

    return module("")


def nvlabs_pickle(generator: Any, protocol: int = 3) -> bytes:
    """A snapshot, with G_ema last, as training writes it."""
    with upstream_modules(
        torch_utils__persistence={"_reconstruct_persistent_obj": _reconstruct_persistent_obj},
        dnnlib__util={"EasyDict": EasyDict},
    ):
        other = Persistent("Discriminator", {"_parameters": OrderedDict(w=torch.nn.Parameter(torch.ones(3)))})
        return pickle.dumps({"training_set_kwargs": EasyDict(), "G": None, "D": other, "G_ema": generator}, protocol)


class Network:
    """TensorFlow's network object: plain attributes."""


def tensorflow_pickle(variables: dict[str, np.ndarray], *, protocol: int = 4, **settings: Any) -> bytes:
    def network(prefix: str, names: dict[str, np.ndarray], components: dict[str, Any]) -> Network:
        made = Network()
        made.__dict__.update(
            version=4,
            name=prefix or "Gs",
            static_kwargs=EasyDict(settings),
            components=EasyDict(components),
            build_module_src="raise SystemExit",
            build_func_name="G_main",
            variables=[(name.removeprefix(prefix), value) for name, value in names.items()],
        )
        return made

    parts = {
        part: network(f"{part}/", {k: v for k, v in variables.items() if k.startswith(part)}, {})
        for part in ("mapping", "synthesis")
    }
    with upstream_modules(dnnlib__tflib__network={"Network": Network}, dnnlib__util={"EasyDict": EasyDict}):
        whole = network("", {k: v for k, v in variables.items() if "/" not in k}, parts)
        return pickle.dumps((network("", {}, {}), network("", {}, {}), whole), protocol)


# ------------------------------------------------------------------------------------------ residual networks


def _norm(name: str, channels: int) -> Shapes:
    shapes: Shapes = {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}
    return shapes | {f"{name}.{TRACKED}": ()}


def ir_se_shapes(units: tuple[int, ...], widths: tuple[int, ...], channels: int = 3) -> Shapes:
    """IR-SE50's stem and trunk."""
    shapes: Shapes = {"input_layer.0.weight": (widths[0], channels, 3, 3), **_norm("input_layer.1", widths[0])}
    shapes["input_layer.2.weight"] = (widths[0],)
    i, c_in = 0, widths[0]
    for count, c in zip(units, widths, strict=True):
        for _ in range(count):
            unit = f"body.{i}"
            if c_in != c:
                shapes |= {f"{unit}.shortcut_layer.0.weight": (c, c_in, 1, 1), **_norm(f"{unit}.shortcut_layer.1", c)}
            shapes |= {**_norm(f"{unit}.res_layer.0", c_in), f"{unit}.res_layer.1.weight": (c, c_in, 3, 3)}
            shapes |= {f"{unit}.res_layer.2.weight": (c,), f"{unit}.res_layer.3.weight": (c, c, 3, 3)}
            shapes |= _norm(f"{unit}.res_layer.4", c)
            shapes |= {
                f"{unit}.res_layer.5.fc1.weight": (c // 16, c, 1, 1),
                f"{unit}.res_layer.5.fc2.weight": (c, c // 16, 1, 1),
            }
            i, c_in = i + 1, c
    return shapes


def ir_se50_shapes(units: tuple[int, ...], widths: tuple[int, ...], embedding: int) -> Shapes:
    shapes = ir_se_shapes(units, widths) | _norm("output_layer.0", widths[-1])
    shapes |= {"output_layer.3.weight": (embedding, widths[-1] * 49), "output_layer.3.bias": (embedding,)}
    return shapes | _norm("output_layer.4", embedding)


def psp_shapes(
    units: tuple[int, ...], widths: tuple[int, ...], w: int, rows: int, *, heads: str, channels: int = 3
) -> Shapes:
    """An encoder of pSp, e4e (pyramid) or ReStyle (last), without `encoder.`."""
    shapes = ir_se_shapes(units, widths, channels)
    if heads == "single":
        return shapes | {"linear.weight": (w, widths[-1]), "linear.bias": (w,)}
    for row in range(rows):
        convs = 4 if heads == "last" or row < 3 else 5 if row < 7 else 6
        for i in range(convs):
            shapes |= {f"styles.{row}.convs.{2 * i}.weight": (w, w if i else widths[-1], 3, 3)}
            shapes |= {f"styles.{row}.convs.{2 * i}.bias": (w,)}
        shapes |= {f"styles.{row}.linear.weight": (w, w), f"styles.{row}.linear.bias": (w,)}
    if heads == "pyramid":
        shapes |= {"latlayer1.weight": (widths[3], widths[2], 1, 1), "latlayer1.bias": (widths[3],)}
        shapes |= {"latlayer2.weight": (widths[3], widths[1], 1, 1), "latlayer2.bias": (widths[3],)}
    return shapes


def iresnet_shapes(units: tuple[int, ...], widths: tuple[int, ...], embedding: int) -> Shapes:
    shapes: Shapes = {"conv1.weight": (widths[0], 3, 3, 3), **_norm("bn1", widths[0]), "prelu.weight": (widths[0],)}
    c_in = widths[0]
    for stage, (count, c) in enumerate(zip(units, widths, strict=True), 1):
        for i in range(count):
            unit = f"layer{stage}.{i}"
            shapes |= {**_norm(f"{unit}.bn1", c_in), f"{unit}.conv1.weight": (c, c_in, 3, 3), **_norm(f"{unit}.bn2", c)}
            shapes |= {f"{unit}.prelu.weight": (c,), f"{unit}.conv2.weight": (c, c, 3, 3), **_norm(f"{unit}.bn3", c)}
            if i == 0:
                shapes |= {f"{unit}.downsample.0.weight": (c, c_in, 1, 1), **_norm(f"{unit}.downsample.1", c)}
            c_in = c
    shapes |= {**_norm("bn2", c_in), "fc.weight": (embedding, c_in * 49), "fc.bias": (embedding,)}
    return shapes | _norm("features", embedding)


def resnet_shapes(units: tuple[int, ...], width: int) -> Shapes:
    """torchvision's bottleneck ResNet, without its last layer."""
    shapes: Shapes = {"conv1.weight": (width, 3, 7, 7), **_norm("bn1", width)}
    c_in = width
    for stage, count in enumerate(units):
        c = width << stage
        for i in range(count):
            unit = f"layer{stage + 1}.{i}"
            shapes |= {f"{unit}.conv1.weight": (c, c_in, 1, 1), **_norm(f"{unit}.bn1", c)}
            shapes |= {f"{unit}.conv2.weight": (c, c, 3, 3), **_norm(f"{unit}.bn2", c)}
            shapes |= {f"{unit}.conv3.weight": (4 * c, c, 1, 1), **_norm(f"{unit}.bn3", 4 * c)}
            if i == 0:
                shapes |= {f"{unit}.downsample.0.weight": (4 * c, c_in, 1, 1), **_norm(f"{unit}.downsample.1", 4 * c)}
            c_in = 4 * c
    return shapes


def smoothswap_shapes(units: tuple[int, ...], width: int, classes: int, hidden: int, embedding: int) -> Shapes:
    shapes = {f"resnet.{name}": shape for name, shape in resnet_shapes(units, width).items()}
    shapes |= {"resnet.fc.weight": (classes, width * 32), "resnet.fc.bias": (classes,)}
    shapes |= {"last.0.weight": (hidden, classes), "last.0.bias": (hidden,), **_norm("last.1", hidden)}
    return shapes | {"last.3.weight": (embedding, hidden), "last.3.bias": (embedding,), **_norm("last.4", embedding)}


def deep3d_shapes(units: tuple[int, ...], width: int) -> Shapes:
    shapes = {f"backbone.{name}": shape for name, shape in resnet_shapes(units, width).items()}
    for i, outputs in enumerate((80, 64, 80, 3, 27, 2, 1)):
        shapes |= {f"final_layers.{i}.weight": (outputs, width * 32, 1, 1), f"final_layers.{i}.bias": (outputs,)}
    return shapes


# ---------------------------------------------------------------------------------------------------- others


def mixer_shapes(rows: int, w: int, hidden: tuple[int, ...]) -> Shapes:
    widths = (2 * w, *hidden, w)
    shapes: Shapes = {}
    for row in range(rows):
        for k in range(len(widths) - 1):
            shapes[f"mixer.{row}.{2 * k}.weight"] = (widths[k + 1], widths[k])
            shapes[f"mixer.{row}.{2 * k}.bias"] = (widths[k + 1],)
    return shapes


def mobile_shapes(w: int, channels: tuple[int, ...], depth: int) -> Shapes:
    """MobileStyleGAN's student and mapping network, with their prefixes."""

    def linear(name: str, c: int) -> Shapes:
        return {f"{name}.weight": (c, w), f"{name}.bias": (c,)}

    def styled(name: str, c_in: int, c: int, separable: bool) -> Shapes:
        weights: Shapes = {"weight_dw": (c_in, 1, 3, 3), "weight_permute": (c, c_in, 1, 1)}
        shapes = weights if separable else {"weight": (c, c_in, 3, 3)}
        shapes = {f"{name}.conv.{part}": shape for part, shape in shapes.items()}
        shapes |= {**linear(f"{name}.conv.modulation", c_in), f"{name}.conv.style_inv": (1, 1, c_in, 1, 1)}
        return shapes | {f"{name}.noise.weight": (1,), f"{name}.bias": (1, c, 1, 1)}

    def picture(name: str, c: int) -> Shapes:
        return {
            f"{name}.conv.weight": (12, c, 1, 1),
            **linear(f"{name}.conv.modulation", c),
            f"{name}.bias": (1, 12, 1, 1),
        }

    first = channels[0]
    shapes: Shapes = {"input.input": (1, first, 4, 4), "device_info": (1,), "idwt.g0_col": (1, 1, 2, 1)}
    shapes |= {**styled("conv1", first, first, False), **picture("to_img1", first)}
    for i, (c_in, c) in enumerate(itertools.pairwise(channels)):
        shapes |= linear(f"layers.{i}.up.modulation", c_in)
        shapes |= {**styled(f"layers.{i}.conv1", c_in // 4, c, True), **styled(f"layers.{i}.conv2", c, c, True)}
        shapes |= picture(f"layers.{i}.to_img", c)
    shapes = {f"student.{name}": shape for name, shape in shapes.items()}
    for i in range(depth):
        shapes |= {f"mapping_net.layers.{i + 1}.weight": (w, w), f"mapping_net.layers.{i + 1}.bias": (w,)}
    return shapes | {"style_mean": (1, 23, w)}


def mat_file(**matrices: np.ndarray) -> bytes:
    """MATLAB level 5, uncompressed: `scipy.io.savemat` writes the same."""
    out = io.BytesIO()
    out.write(b"MATLAB 5.0 MAT-file, made by a test".ljust(124) + b"\x00\x01IM")
    codes = {"f8": (9, 6), "f4": (7, 7), "i8": (12, 14), "u2": (4, 11)}

    def element(kind: int, data: bytes) -> bytes:
        if len(data) <= 4:
            return np.array([kind | len(data) << 16], "<u4").tobytes() + data.ljust(4, b"\0")
        return np.array([kind, len(data)], "<u4").tobytes() + data + b"\0" * (-len(data) % 8)

    for name, array in matrices.items():
        kind, array_class = codes[array.dtype.str[1:]]
        body = element(6, np.array([array_class, 0], "<u4").tobytes())
        body += element(5, np.array(array.shape, "<i4").tobytes()) + element(1, name.encode())
        out.write(element(14, body + element(kind, array.tobytes(order="F"))))
    return out.getvalue()


def lightning(state: dict[str, torch.Tensor], path: Path) -> Path:
    """A Lightning checkpoint: the state beside callbacks, hyper-parameters and optimiser states."""

    class ModelCheckpoint:
        pass

    class DictConfig:
        pass

    config = DictConfig()
    config.__dict__.update(_content={"lr": 1e-4}, _ref_type=typing.Any, _key_type=typing.Dict[str, Any])  # noqa: UP006
    hyper = argparse.Namespace(batch_size=32, path=Path("/home/author"))
    with upstream_modules(
        pytorch_lightning__callbacks__model_checkpoint={"ModelCheckpoint": ModelCheckpoint},
        omegaconf__dictconfig={"DictConfig": DictConfig},
    ):
        torch.save(
            {
                "epoch": 39,
                "global_step": 200_000,
                "pytorch-lightning_version": "1.4.9",
                "callbacks": {ModelCheckpoint: {"best_model_score": torch.tensor(0.1)}},
                "hyper_parameters": {"hp": config, "args": hyper},
                "optimizer_states": [
                    {"state": {0: {"exp_avg": torch.zeros(3), "step": 5}}, "param_groups": [{"lr": 1e-4}]}
                ],
                "lr_schedulers": [],
                "state_dict": OrderedDict(state),
            },
            path,
        )
    return path
