"""Converting published checkpoints: each is read in a process of its own; what comes out is checked, and then kept.

The other process (`worker`) has no rights beyond reading the file and writing into one folder, and none of this
process's environment. Here its output is loaded as any weights are, into the network that it says it is for.
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import latentswap
from latentswap.errors import ResourceError, UsageError, WeightsError
from latentswap.media.atomic import check_destination
from latentswap.weights.convert.simswap import VARIANTS
from latentswap.weights.files import resource_error

_MAX_REPORT_BYTES = 1 << 20
_SECONDS = 1800
_ERRORS = {"ResourceError": ResourceError, "UsageError": UsageError}  # of the other process; any other: WeightsError

# Kind → (module, configuration class or None where there is one size, what builds the network). Closed.
NETWORKS: dict[str, tuple[str, str | None, str]] = {
    "generator/stylegan2": ("latentswap.generators.stylegan2", "StyleGAN2Config", "StyleGAN2"),
    "generator/mobilestylegan": ("latentswap.generators.mobile", None, "MobileStyleGAN"),
    "inverter/psp": ("latentswap.inversion.psp", "PspConfig", "PspEncoder"),
    "identity/arcface": ("latentswap.identity.arcface", "ArcFaceConfig", "build_arcface"),
    "identity/smoothswap": ("latentswap.identity.smoothswap", "SmoothSwapConfig", "SmoothSwapEmbedder"),
    "identity/arcface-se": ("latentswap.identity.arcface_se", "ArcFaceSEConfig", "ArcFaceSE"),
    "swapper/simswap": ("latentswap.swappers.simswap", "SimSwapConfig", "SimSwapGenerator"),
    "discriminator/patchgan": ("latentswap.swappers.patchgan", "PatchGANConfig", "PatchGAN"),
    "discriminator/projected": ("latentswap.swappers.projected", "ProjectedConfig", "ProjectedDiscriminator"),
    "backbone/efficientnet-lite0": ("latentswap.swappers.projected", None, "EfficientNetLite0"),
    "shape/deep3d": ("latentswap.shape.deep3d", "Deep3DConfig", "Deep3D"),
    "shape/deep3d-landmarks": ("latentswap.shape.deep3d", None, "LandmarkModel"),
    "mixer": ("latentswap.swappers.mixer", "MixerConfig", "LatentMixer"),
}


@dataclass(frozen=True, kw_only=True)
class Converted:
    """A network that a published file became."""

    kind: str
    path: Path


def convert(
    source: str | Path, output: str | Path | None = None, *, kind: str | None = None, variant: str | None = None
) -> list[Converted]:
    """Convert a published checkpoint to safetensors, one file for each network that it holds.

    Args:
        source: the published file. Nothing that it carries is run.
        output: where the first network goes, by default beside `source` with the suffix .safetensors; a second one goes
            beside it, its name extended ("e4e-generator.safetensors").
        kind: convert only the network of this kind, one of NETWORKS.
        variant: which variant of SimSwap's generator it is, where the file cannot tell.

    Raises:
        WeightsError: the file is damaged, hostile or of no known family, or its network is not one that is supported.
        UsageError: an unknown kind, a variant that is unknown, missing or not the file's, or an output that cannot be.
        ResourceError: the output cannot be written.
    """
    source = Path(source)
    output = source.with_suffix(".safetensors") if output is None else Path(output)
    if kind is not None and kind not in NETWORKS:
        raise UsageError(f"{kind!r} is not a kind of network; there are: {', '.join(NETWORKS)}")
    if variant is not None and variant not in VARIANTS:
        raise UsageError(f"{variant!r} is not a variant of SimSwap's generator; there are: {', '.join(VARIANTS)}")
    _check_source(source)
    if output.resolve() == source.resolve():
        raise UsageError(f"{source} would be overwritten; name another file for the OUTPUT")
    check_destination(output)
    with _private_folder(output.parent) as folder:
        report = _run("convert", source, Path(folder), kind, variant)
        moves = []
        for i, entry in enumerate(report["written"]):
            made, destination = Path(folder) / f"{i}.safetensors", output.with_stem(output.stem + entry["suffix"])
            check_destination(destination)
            _verify(made, entry["kind"], source)
            moves.append((made, Converted(kind=entry["kind"], path=destination)))
        try:
            for made, converted in moves:
                os.replace(made, converted.path)
        except OSError as error:
            raise resource_error(error, output) from error
    return [converted for _, converted in moves]


def inspect(source: str | Path) -> dict[str, Any]:
    """What a foreign file is: container, family, licence, and its networks or the problem with them.

    Raises WeightsError for a file that is damaged, hostile or of no known format.
    """
    source = Path(source)
    _check_source(source)
    with _private_folder(None) as folder:
        return _run("inspect", source, Path(folder), None)


def _check_source(source: Path) -> None:
    if not source.is_file():
        raise WeightsError(f"{source} is not a file")
    if not os.access(source, os.R_OK):
        raise WeightsError(f"{source} cannot be read")


def _private_folder(parent: Path | None) -> "tempfile.TemporaryDirectory[str]":
    try:
        return tempfile.TemporaryDirectory(prefix=".latentswap-", dir=parent, ignore_cleanup_errors=True)
    except OSError as error:
        raise resource_error(error, parent or Path(tempfile.gettempdir())) from error


def _run(action: str, source: Path, folder: Path, kind: str | None, variant: str | None = None) -> dict[str, Any]:
    command = [sys.executable, "-P", "-s", "-m", "latentswap.weights.convert.worker"]
    command += [action, str(source.absolute()), str(folder.absolute()), kind or "", variant or ""]
    environment = {
        "PYTHONPATH": str(Path(latentswap.__file__).parent.parent),
        "OPENBLAS_NUM_THREADS": "1",  # its threads would reserve memory, which is limited
        "OMP_NUM_THREADS": "1",
        **({"SYSTEMROOT": os.environ["SYSTEMROOT"]} if "SYSTEMROOT" in os.environ else {}),
    }
    try:
        ended = subprocess.run(  # noqa: S603 - the interpreter and a module of this package; only the file is foreign
            command,
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise WeightsError(f"{source}: reading it took longer than {_SECONDS // 60} minutes") from None
    try:
        with (folder / "report.json").open("rb") as file:
            report = json.loads(file.read(_MAX_REPORT_BYTES))
    except (OSError, ValueError):
        if ended.returncode > 0:
            raise RuntimeError(
                f"the conversion process failed:\n{ended.stderr[-4000:].decode(errors='replace')}"
            ) from None
        raise WeightsError(f"{source}: reading it exceeded the limits of memory or time") from None
    for key in report.keys() & {"error", "problem"}:  # these may quote names in the file
        report[key] = "".join(c if c.isprintable() else "?" for c in report[key])
    if "error" in report:
        raise _ERRORS.get(report["type"], WeightsError)(f"{source}: {report['error']}")
    return report


def _verify(path: Path, kind: str, source: Path) -> None:
    """Load the file as its users will. Raises WeightsError when it is not what it says."""
    from latentswap.weights.described import load_described  # late: telling what a file is needs no torch

    module, config, network = (importlib.import_module(NETWORKS[kind][0]), *NETWORKS[kind][1:])
    made = getattr(module, network)
    build, fields = (made, getattr(module, config)) if config else (lambda _: made(), dict)
    try:
        load_described(path, kind=kind, config=fields, build=build)
    except WeightsError as error:
        raise WeightsError(f"{source}: {str(error).replace(str(path), 'what it holds')}") from error
