"""The methods of swapping, put together from their networks: what `Swapper.from_pretrained` builds."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from latentswap.errors import UsageError
from latentswap.inversion.delta import GeneratorDelta
from latentswap.inversion.psp import EncoderName, PspEncoder, PspInverter, check_name
from latentswap.networks import Networks, load_networks
from latentswap.swappers.compact import is_compact
from latentswap.swappers.guided import GuidedSwapper
from latentswap.swappers.injection import InjectionSwapper, load_simswap, refuse_options
from latentswap.swappers.latentswap import Inversion, LatentSwap, Render, is_pivotal, known, to_pixels
from latentswap.weights.assets import asset_path
from latentswap.weights.fetch import cache_root

Method = LatentSwap | InjectionSwapper | GuidedSwapper
OnFetch = Callable[[int, int, str], None]
Files = Mapping[str, str | Path | None]
"""Converted files in place of the shipped ones: encoder, tuned, generator, mixer, identity; None for none."""


def build_method(
    method: str,
    inversion: Inversion | EncoderName,
    files: Files,
    *,
    joint: bool = False,
    mixes: bool = True,
    device: str = "cpu",
    offline: bool = False,
    progress: OnFetch | None = None,
) -> tuple[Networks, Method]:
    """Networks and method for the options of `Swapper.from_pretrained`, which says what they mean and raises."""
    if method not in ("latentswap", "simswap"):
        raise UsageError(f"method is {method!r}; there are: latentswap, simswap.")
    check_device(device)
    if method == "simswap":
        refuse_options(encoder=files["encoder"], joint=joint, tuned=files["tuned"], mixer=files["mixer"])
        return simswap_method(files["generator"], files["identity"], device=device, offline=offline, progress=progress)
    if files["identity"] is not None:
        raise UsageError("An identity network of your own is for method simswap; LatentSwap swaps with its own.")
    return latentswap_method(
        inversion, files, joint=joint, mixes=mixes, device=device, offline=offline, progress=progress
    )


def latentswap_method(
    inversion: Inversion | EncoderName,
    files: Files,
    *,
    joint: bool,
    mixes: bool,
    device: str,
    offline: bool,
    progress: OnFetch | None,
) -> tuple[Networks, LatentSwap]:
    """LatentSwap with the shipped networks or those in `files`."""
    encoder, tuned = files["encoder"], files["tuned"]
    published = None if encoder is None else PspEncoder.load(encoder)
    if joint and inversion != "tune":
        raise UsageError(f"Only `tune` can tune to the pair jointly, not inversion {inversion!r}.")
    if inversion in ("e4e", "psp", "restyle"):
        check_name(published, inversion)
        inversion = "fast"
    networks = load_networks(
        generator=files["generator"],
        mixer=files["mixer"],
        mixes=mixes,
        device=device,
        offline=offline,
        progress=progress,
    )
    if tuned is not None:
        delta = GeneratorDelta.load(tuned, networks.generator)
        used = {**networks.files, "tuned": Path(tuned)}
        networks = replace(networks, generator=delta.apply(networks.generator), files=used)
    if encoder is not None:
        networks = replace(networks, files={**networks.files, "encoder": Path(encoder)})
    inverter = None if published is None else PspInverter(published.to(device), networks.generator)
    is_pivotal(networks, inversion, inverter)  # refused before the generator is compiled
    render = make_render(networks, device)
    return networks, LatentSwap(networks, render, inversion=inversion, joint=joint, inverter=inverter)


def simswap_method(
    generator: str | Path | None,
    identity: str | Path | None,
    *,
    device: str,
    offline: bool,
    progress: OnFetch | None,
) -> tuple[Networks, InjectionSwapper | GuidedSwapper]:
    """SimSwap: the shipped network or one that `train simswap` wrote, or a published one with its identity network."""
    cache = cache_root() / "runtime"
    published = None  # loaded, and refused, before anything is fetched
    if identity is not None or not (generator is None or is_compact(generator)):
        published = load_simswap(generator, identity, device=device, cache=cache)
    networks = load_networks(mixes=False, device=device, offline=offline, progress=progress)
    files = {**networks.files, "simswap": Path(asset_path("simswap") if generator is None else generator)}
    networks = replace(networks, files=files if identity is None else {**files, "identity": Path(identity)})
    if published is None:
        return networks, GuidedSwapper.load(networks, device=device, cache=cache, path=generator)
    return networks, InjectionSwapper(published, partial(known, networks), device=device)


def check_device(device: str) -> None:
    """Raise UsageError for a device that torch does not have here."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"--device {device!r} is not available here; use cpu. ({str(error).splitlines()[0]})"
        ) from error


def make_render(networks: Networks, device: str) -> Render:
    """The generator at full size: OpenVINO on a CPU, torch on anything else."""
    if device != "cpu":

        def on_device(ws_BLD: torch.Tensor) -> np.ndarray:
            with torch.no_grad():
                return to_pixels(networks.generator.synthesis(ws_BLD.to(device)))

        return on_device
    from latentswap.runtime.generator import OpenVINOSynthesis

    synthesis = OpenVINOSynthesis(networks.generator, cache_dir=cache_root() / "runtime")
    return lambda ws_BLD: to_pixels(torch.from_numpy(synthesis(ws_BLD.detach().cpu().numpy())))
