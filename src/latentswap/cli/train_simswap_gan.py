"""`latentswap train simswap-gan`: SimSwap's own training, with a discriminator."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from latentswap.cli._options import Device, Offline, check_seed
from latentswap.cli._training import RunFolder, load_frozen, run
from latentswap.errors import UsageError

NetworkName = Literal["compact", "legacy224", "legacy512", "fix", "fix_deep"]


def train_simswap_gan(
    identities: Annotated[Path, tyro.conf.Positional],
    *,
    out: RunFolder,
    objective: Literal["paper", "upstream-2022"] = "paper",
    network: NetworkName = "compact",
    start: Path | None = None,
    width: int = 512,
    discriminator_width: int = 64,
    identity_network: Path | None = None,
    steps: int | None = None,
    batch: int | None = None,
    lr: float | None = None,
    accumulate: int = 1,
    ema: float = 0.999,
    feature_from: int | None = None,
    seed: int = 0,
    sample_every: int = 1000,
    device: Device = "cpu",
    offline: Offline = False,
) -> None:
    """Train a SimSwap network as its authors did, against a discriminator, on what `train identities` gathered.

    Args:
        identities: A file that `train identities` wrote.
        objective: Which published figures: loss weights, Adam's, batch and steps (docs/simswap.md).
        network: The compact network, or a published variant.
        start: A network of that kind to go on from.
        width: Channels of a published variant's ID blocks.
        discriminator_width: Channels of the discriminator's first layer.
        identity_network: A converted identity network; default: the shipped one.
        steps: Optimiser steps in all; default: the objective's.
        batch: Targets a step; default: the objective's.
        lr: Learning rate; default: the objective's.
        accumulate: Compute a batch in so many parts, for cards with less memory.
        ema: Decay of the average of the weights, which is what is written; 0 for the last weights.
        feature_from: First discriminator layer whose features are matched: 0 for all, 3 for weak feature matching.
    """
    check_seed(seed)
    from latentswap.losses_simswap import get_preset
    from latentswap.train.adversarial import AdversarialTrainee, AdversarialTraining
    from latentswap.train.loop import LoopConfig

    preset = get_preset(objective)
    if feature_from is not None:
        preset = replace(preset, feature_from=feature_from)
    # The projected discriminator stands on a network that is nobody's to ship; its objective works with the PatchGAN.
    preset = replace(preset, discriminator="patchgan")
    training = AdversarialTraining(
        objective=preset, batch=preset.batch if batch is None else batch, accumulate=accumulate, seed=seed, ema=ema
    )
    loop = LoopConfig(
        out=out,
        steps=preset.steps if steps is None else steps,
        lr=preset.learning_rate if lr is None else lr,
        lr_end=1.0,
        warmup=0,
        betas=preset.betas,
        epsilon=preset.epsilon,
        clip=1e9,
        sample_every=sample_every,
    )
    if not identities.is_file():
        raise UsageError(f"There is no file {identities}; make it with `latentswap train identities`.")
    with ExitStack() as stack:
        trainee = _trainee(
            stack,
            AdversarialTrainee,
            training,
            identities,
            (network, width, start),
            discriminator_width,
            identity_network,
            device=device,
            offline=offline,
        )
        losses = run(stack, trainee, loop)
        summary = {"steps": loop.steps, "lr": loop.lr, "losses": losses, "config": trainee.describe()}
        trainee.average.save(out / "simswap.safetensors", summary=summary)
    print(out / "simswap.safetensors")


def _trainee(
    stack: ExitStack,
    build: Any,
    training: Any,
    identities: Path,
    generator: tuple[NetworkName, int, Path | None],
    discriminator_width: int,
    identity_network: Path | None,
    *,
    device: str,
    offline: bool,
) -> Any:
    import torch

    from latentswap.swappers.compact import CompactSwap, InnerDlib, Unguided, inner
    from latentswap.swappers.patchgan import PatchGANConfig, TwoScales
    from latentswap.swappers.simswap import SimSwapConfig, SimSwapGenerator
    from latentswap.train.identities import Identities
    from latentswap.train.paper import CentredDlib
    from latentswap.weights.assets import asset_path
    from latentswap.weights.load import load_tensors

    name, width, start = generator
    compact = name == "compact"
    faces = Identities.load(identities, alignment="ffhq")
    _, dlib, _ = load_frozen(stack, device=device, offline=offline)
    population, _ = load_tensors(asset_path("population"), kind="population")
    mean_E = population["identity.mean_E"].to(device)
    if identity_network is not None:
        from latentswap.networks import load_identity

        if compact:
            raise UsageError("The compact network reads the shipped identity network; leave --identity-network out.")
        identity: Any = load_identity(identity_network).to(device)
    else:
        identity = (InnerDlib if compact else CentredDlib)(network=dlib, mean_E=mean_E)
    torch.manual_seed(training.seed)

    def make() -> Any:
        if name == "compact":
            return Unguided(CompactSwap())
        return SimSwapGenerator(SimSwapConfig(variant=name, width=width, identity_dim=identity.embedding_dim))

    networks = [make().to(device), make().to(device)]
    if start is not None:
        trained = (CompactSwap if compact else SimSwapGenerator).load(start)
        wanted = networks[0].network if compact else networks[0]
        if trained.config != wanted.config:
            raise UsageError(f"{start} holds {trained.config}, and {wanted.config} is to be trained.")
        wanted.load_state_dict(trained.state_dict())
    for network in networks:
        network.to(memory_format=torch.channels_last)
    discriminator = TwoScales(PatchGANConfig(width=discriminator_width)).to(device)
    cut = {"prepare": inner} if compact else {}
    return build(*networks, discriminator, identity, faces, training, **cut)
