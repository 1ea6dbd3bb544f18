"""What a foreign file is: its container by its first bytes, its family by the names inside. Both tables are closed."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from latentswap.errors import UsageError, WeightsError
from latentswap.weights.convert import (
    arcface,
    bfm,
    latentswap_mixer,
    mobilestylegan,
    nvlabs,
    psp,
    resnet50,
    rosinality,
    simswap,
    tensorflow,
    torch_file,
)
from latentswap.weights.convert.tensors import Network
from latentswap.weights.convert.unpickle import Window, read_pickle
from latentswap.weights.header import MAX_FILE_BYTES

_SIMSWAP = "CC BY-NC 4.0 (repository); the generators' code: CC BY-NC-SA 4.0"
_NVIDIA = "NVIDIA Source Code License, non-commercial; trained on FFHQ (CC BY-NC-SA 4.0)"


@dataclass(frozen=True, kw_only=True)
class Family:
    """Checkpoints of one upstream project. `matches` looks at names only; `convert` raises WeightsError."""

    title: str
    published: str
    licence: str
    matches: Callable[[object], bool]
    convert: Callable[[Any], list[Network]]


FAMILIES: dict[str, Family] = {
    "nvlabs": Family(
        title="StyleGAN2, NVIDIA's PyTorch pickle",
        published="NVlabs/stylegan2-ada-pytorch, NVlabs/stylegan3 (StyleGAN2 networks)",
        licence=_NVIDIA,
        matches=nvlabs.matches,
        convert=nvlabs.convert,
    ),
    "tensorflow": Family(
        title="StyleGAN2, NVIDIA's TensorFlow pickle",
        published="NVlabs/stylegan2",
        licence=_NVIDIA,
        matches=tensorflow.matches,
        convert=tensorflow.convert,
    ),
    "rosinality": Family(
        title="StyleGAN2, rosinality's names",
        published="rosinality/stylegan2-pytorch",
        licence="MIT (code); converted weights: " + _NVIDIA,
        matches=rosinality.matches,
        convert=rosinality.convert,
    ),
    "psp": Family(
        title="pSp, e4e or ReStyle encoder with its generator",
        published="eladrich/pixel2style2pixel, omertov/encoder4editing, yuval-alaluf/restyle-encoder",
        licence="MIT (encoder); the generator inside: " + _NVIDIA,
        matches=psp.matches,
        convert=psp.convert,
    ),
    "arcface-ir-se50": Family(
        title="ArcFace IR-SE50",
        published="TreB1eN/InsightFace_Pytorch",
        licence="MIT",
        matches=arcface.matches_ir_se50,
        convert=arcface.convert_ir_se50,
    ),
    "arcface-iresnet": Family(
        title="ArcFace iresnet",
        published="deepinsight/insightface",
        licence="non-commercial research",
        matches=arcface.matches_iresnet,
        convert=arcface.convert_iresnet,
    ),
    "simswap": Family(
        title="SimSwap, generator",
        published="neuralchen/SimSwap",
        licence=_SIMSWAP,
        matches=simswap.matches_generator,
        convert=simswap.convert_generator,
    ),
    "simswap-discriminator": Family(
        title="SimSwap, one scale of the discriminator",
        published="neuralchen/SimSwap",
        licence=_SIMSWAP,
        matches=simswap.matches_discriminator,
        convert=simswap.convert_discriminator,
    ),
    "simswap-projected": Family(
        title="SimSwap, projected discriminator",
        published="written by neuralchen/SimSwap's train.py",
        licence=_SIMSWAP,
        matches=simswap.matches_projected,
        convert=simswap.convert_projected,
    ),
    "efficientnet-lite0": Family(
        title="EfficientNet-lite0 (timm's tf_efficientnet_lite0)",
        published="huggingface/pytorch-image-models",
        licence="Apache-2.0; trained on ImageNet",
        matches=simswap.matches_backbone,
        convert=simswap.convert_backbone,
    ),
    "simswap-arcface": Family(
        title="SimSwap's ArcFace, a pickled module",
        published="neuralchen/SimSwap (arcface_checkpoint.tar), after foamliu/InsightFace-v2",
        licence="not stated for the weights; the repository is " + _SIMSWAP,
        matches=simswap.matches_arcface,
        convert=simswap.convert_arcface,
    ),
    "latentswap": Family(
        title="LatentSwap's latent mixer",
        published="usingcolor/LatentSwap",
        licence="MIT (README) or BSD-3-Clause (LICENSE file)",
        matches=latentswap_mixer.matches,
        convert=latentswap_mixer.convert,
    ),
    "mobilestylegan": Family(
        title="MobileStyleGAN, training checkpoint",
        published="bes-dev/MobileStyleGAN.pytorch",
        licence="Apache-2.0 with NVIDIA and MIT portions; distilled from: " + _NVIDIA,
        matches=mobilestylegan.matches,
        convert=mobilestylegan.convert,
    ),
    "smoothswap": Family(
        title="Smooth-Swap's identity embedder",
        published="usingcolor/LatentSwap",
        licence="not stated for the weights; the repository is MIT (README) or BSD-3-Clause (LICENSE file)",
        matches=resnet50.matches_smoothswap,
        convert=resnet50.convert_smoothswap,
    ),
    "deep3d": Family(
        title="Deep3DFaceRecon's regressor",
        published="sicxu/Deep3DFaceRecon_pytorch",
        licence="MIT (code); its face model is for research only",
        matches=resnet50.matches_deep3d,
        convert=resnet50.convert_deep3d,
    ),
    "bfm": Family(
        title="Basel Face Model as Deep3DFaceRecon prepares it",
        published="faces.dmi.unibas.ch, after registration, and Deep3DFaceRecon_pytorch's preparation",
        licence="Basel Face Model: research only, not to be redistributed",
        matches=bfm.matches,
        convert=bfm.convert,
    ),
}

# First bytes of files that people take for checkpoints.
_OTHERS = (
    (b"\x1f\x8b", "a gzip archive: unpack it and convert what it holds"),
    (b"BZh", "a bzip2 archive: unpack it and convert what it holds"),
    (b"\xfd7zXZ", "an xz archive: unpack it and convert what it holds"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it and convert what it holds"),
    (b"Rar!", "a RAR archive: unpack it and convert what it holds"),
    (b"\x89HDF", "an HDF5 file, which holds no network that is supported"),
    (b"\x93NUMPY", "a NumPy array, not a network"),
    (b"GGUF", "a GGUF model, which is not supported"),
    (b"\x7fELF", "a program, not a network"),
    (b"<!DOCTYPE", "a web page: the download went wrong"),
    (b"<html", "a web page: the download went wrong"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself: fetch it with `git lfs pull`"),
)


@dataclass(frozen=True, kw_only=True)
class Found:
    """A file that was read: how it is packed, and what is in it (None: nothing that is known)."""

    container: str
    family: str | None
    value: Any


def read(file: BinaryIO, size: int) -> Found:
    """Read the structure of an open file; tensors stay on the disk, in `file`, which must stay open.

    Raises WeightsError when the file is damaged, of a kind that is not read, or refers to anything that could run.
    """
    if size > MAX_FILE_BYTES:
        raise WeightsError(f"it has {size:,} bytes; at most {MAX_FILE_BYTES:,} are accepted")
    source = Window(file, 0, size)
    head = source.bytes_at(0, min(size, 512))
    if head.startswith(torch_file.ZIP_MAGIC):
        container, value = "torch archive", torch_file.read_zip(file, size)
    elif head.startswith(torch_file.STREAM_MAGIC):
        container, value = "torch stream", torch_file.read_stream(source)
    elif head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        container, value = "pickle", read_pickle(source, nested=torch_file.read_nested)
        if source.tell() != size:
            raise WeightsError("more follows the pickle in it")
    elif head.startswith(bfm.MAGIC):
        container, value = "MATLAB file", bfm.read_mat(source)
    else:
        what = next((text for magic, text in _OTHERS if head.startswith(magic)), None)
        if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size:
            what = "a safetensors file already"
        if head[257:262] == b"ustar":
            what = "a tar archive: unpack it and convert what it holds"
        raise WeightsError(f"it is {what}" if what else "it is no format that is known here, or it is truncated")
    family = next((name for name, family in FAMILIES.items() if family.matches(value)), None)
    return Found(container=container, family=family, value=value)


def convert(found: Found, kind: str | None = None) -> list[Network]:
    """The networks in a file that was read, or the one of `kind`. Raises WeightsError."""
    if found.family is None:
        raise WeightsError(f"{describe(found.value)}, which is no network that is known here")
    networks = FAMILIES[found.family].convert(found.value)
    if kind is None:
        return networks
    chosen = [network for network in networks if network.kind == kind]
    if not chosen:
        raise WeightsError(f"it holds {', '.join(network.kind for network in networks)}, and no {kind[:40]!r}")
    return chosen


def settle(networks: list[Network], variant: str | None) -> list[Network]:
    """The networks with the variant in their configurations: the one that the file shows, or the one that is given.

    Raises UsageError where the file cannot tell and none is given, and for one that the file cannot be.
    """
    if variant is not None and not any(network.variants for network in networks):
        raise UsageError("there are no variants of what it holds; leave --variant out")
    settled = []
    for network in networks:
        possible = network.variants
        if variant is not None and possible and variant not in possible:
            raise UsageError(f"it is not {variant}: its tensors are those of {' or '.join(possible)}")
        if variant is None and len(possible) > 1:
            raise UsageError(
                f"it is {' or '.join(possible)}, which differ in nothing that the file shows; give --variant. "
                "SimSwap's released latest_net_G.pth is legacy224; what its train.py wrote is fix"
            )
        chosen = {"variant": variant or possible[0]} if possible else {}
        settled.append(replace(network, config={**network.config, **chosen}))
    return settled


def describe(value: object) -> str:
    """What the value of a file of no known family is, in a few words."""
    if not isinstance(value, dict):
        return f"it is a {type(value).__name__}"
    names = [key for key in value if isinstance(key, str)]
    return f"it is a table of {len(value):,} entries ({', '.join(name[:40] for name in names[:6])})"


def file_name(path: Path) -> str:
    """The name of a file as it goes into metadata: printable, and not long."""
    return "".join(c for c in path.name if c.isprintable())[:200]
