"""`latentswap train`: the networks that this project trains, each without a data set.

A run is a folder; the same command continues it. `log.jsonl` and TensorBoard files hold the losses, `samples/` the
sample sheets, and the trained network is written as `NAME.safetensors` at the end.
"""

import inspect
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from latentswap.cli._common import step_progress
from latentswap.cli._options import Device, Offline, check_seed
from latentswap.cli._training import (
    PeopleFolder,
    RunFolder,
    bank_config,
    bank_for,
    build,
    build_in_processes,
    half_precision,
    load_frozen,
    run,
)
from latentswap.cli.train_simswap import train_identities, train_lessons, train_simswap
from latentswap.cli.train_simswap_gan import train_simswap_gan
from latentswap.errors import UsageError


def train_people(
    *,
    out: RunFolder,
    people: int = 8000,
    views: int = 2,
    seed: int = 0,
    workers: int = 1,
    device: Device = "cpu",
    offline: Offline = False,
) -> None:
    """Make the people that the other trainings draw from: a folder of parts; parts that are there stay.

    Args:
        people: How many.
        views: Augmented pictures of each that the encoder learns from.
        workers: Processes that share the work, one thread each.
    """
    check_seed(seed)
    config = bank_config(people=people, views=views, seed=seed)
    if not 1 <= workers <= 64:
        raise UsageError(f"--workers is {workers}; it must be 1 to 64.")
    with ExitStack() as stack:
        if workers == 1:
            build(stack, load_frozen(stack, device=device, offline=offline), out, config, device=device)
        else:
            load_frozen(stack, device="cpu", offline=offline)  # fetched once, before the workers ask for them
            build_in_processes(out, config, workers)
    print(out)


def train_population(
    *,
    out: RunFolder,
    people_from: PeopleFolder = None,
    people: int = 8000,
    seed: int = 0,
    device: Device = "cpu",
    offline: Offline = False,
) -> None:
    """Measure the generated population: mean identity embedding and the shape model.

    Args:
        people: How many people are looked at.
    """
    check_seed(seed)
    config = bank_config(people=people, seed=seed)
    from latentswap.train.bank import save_population

    with ExitStack() as stack:
        bank = bank_for(stack, people_from or out / "people", config, device=device, offline=offline)
        out.mkdir(parents=True, exist_ok=True)
        save_population(out / "population.safetensors", bank)
    print(out / "population.safetensors")


def train_head(
    *,
    out: RunFolder,
    steps: int = 2400,
    batch: int = 16,
    lr: float = 2e-3,
    pictures: int = 1000,
    seed: int = 1,
    offline: Offline = False,
) -> None:
    """Train the 256² head: the generator's features at 128² to its own picture, area-reduced.

    Args:
        pictures: How many generated pictures its patches are cut from; they are made once, at the start.
    """
    check_seed(seed)
    import torch

    from latentswap.runtime.generator import OpenVINOSynthesis
    from latentswap.train.head import HeadConfig, HeadTrainee, build_head_bank
    from latentswap.train.loop import LoopConfig
    from latentswap.weights.fetch import cache_root

    config = HeadConfig(pictures=pictures, batch=batch, seed=seed)
    with ExitStack() as stack:
        generator, _, _ = load_frozen(stack, device="cpu", offline=offline)
        synthesis = OpenVINOSynthesis(generator, cache_dir=cache_root() / "runtime")
        advance = stack.enter_context(step_progress())("pictures")
        bank = build_head_bank(
            generator, config, render=lambda ws: torch.from_numpy(synthesis(ws.numpy())), on_item=advance
        )
        trainee = HeadTrainee(bank, config)
        losses = run(stack, trainee, LoopConfig(out=out, steps=steps, lr=lr, weight_decay=0.05, log_every=50))
        trainee.save(out / "head256.safetensors", summary={"steps": steps, "lr": lr, "losses": losses})
    print(out / "head256.safetensors")


def train_encoder(
    *,
    out: RunFolder,
    people_from: PeopleFolder = None,
    steps: int = 1000,
    batch: int = 256,
    image: int = 0,
    image_from: int = 0,
    lr: float = 8e-4,
    width: int = 768,
    identity: float = 0.5,
    shape: float = 0.1,
    keep: float = 0.1,
    picture: float = 1.0,
    held_out: int = 256,
    people: int = 8000,
    seed: int = 0,
    device: Device = "cpu",
    offline: Offline = False,
) -> None:
    """Train the encoder, photograph to W+ in one pass, on augmented pictures of people who do not exist.

    Args:
        batch: Codes a step.
        image: How many of them are also rendered and compared as pictures.
        image_from: The step from which on they are.
        width: Width of the encoder's hidden layers.
        identity: Weight of the identity of the rendered code.
        shape: Weight of its mesh.
        keep: Weight of the contours and the openness of its eyes and mouth.
        picture: Weight of its pixels at 64².
        held_out: People that are never trained on, for the figure of what is explained.
        people: How many people the pictures are of.
    """
    check_seed(seed)
    config = bank_config(people=people, seed=seed)
    from latentswap.inversion.encoder import EncoderConfig
    from latentswap.train.encoder import EncoderTrainee, EncoderTraining
    from latentswap.train.loop import LoopConfig

    training = EncoderTraining(
        encoder=EncoderConfig(width=width),
        batch=batch,
        image=image,
        image_from=image_from,
        seed=seed,
        identity=identity,
        shape=shape,
        keep=keep,
        picture=picture,
        held_out=held_out,
    )
    loop = LoopConfig(out=out, steps=steps, lr=lr, weight_decay=0.1, log_every=50)
    with ExitStack() as stack:
        bank = bank_for(stack, people_from or out / "people", config, device=device, offline=offline)
        generator, embedder, mesh = load_frozen(stack, device=device, offline=offline)
        trainee = EncoderTrainee(half_precision(generator, device), embedder, mesh, bank, training)
        losses = run(stack, trainee, loop)
        explained = round(trainee.explained(), 4)
        summary = {"steps": steps, "lr": lr, "people": people, "losses": losses, "r2_held_out": explained}
        trainee.encoder.save(out / "encoder.safetensors", summary=summary | {"config": trainee.describe()})
    print(out / "encoder.safetensors")


def train_mixer(
    *,
    out: RunFolder,
    people_from: PeopleFolder = None,
    encoder: Path | None = None,
    start: Path | None = None,
    paper: bool = False,
    generator: Path | None = None,
    identity_network: Path | None = None,
    shape_network: Path | None = None,
    landmarks: Path | None = None,
    accumulate: int = 1,
    steps: int | None = None,
    batch: int | None = None,
    lr: float | None = None,
    people: int = 8000,
    identity: float | None = None,
    latent: float | None = None,
    colour: float = 0.5,
    shape: float | None = None,
    keep: float = 0.5,
    away: float = 0.3,
    detail: float = 4.0,
    features: float = 0.5,
    pixel: float = 2.0,
    same: float | None = None,
    inverted: float = 0.75,
    hidden: tuple[int, ...] | None = None,
    seed: int = 0,
    sample_every: int = 100,
    device: Device = "cpu",
    offline: Offline = False,
) -> None:
    """Train the latent mixer on people who do not exist (LatentSwap's three losses, and ours).

    Of two defaults the second is the paper's, which --paper takes.

    Args:
        encoder: The encoder whose codes the mixer learns on; default: the shipped one.
        start: A trained mixer to go on from.
        paper: The paper's own setting: fresh codes at every step, all rows mixed, no input beside the codes, three
            losses, any generator.
        generator: With --paper: a converted generator, at its full size; default: the shipped one at 256².
        identity_network: With --paper: a converted identity network, Smooth-Swap's in the paper; default: the shipped.
        shape_network: With --paper: Deep3DFaceRecon, converted; default, as for --landmarks: the shipped mesh network.
        landmarks: With --shape-network: the landmarks of your face model, converted.
        accumulate: With --paper: compute a batch in so many parts, for cards with less memory.
        steps: Optimiser steps in all; a run that was stopped goes on from its last save. 1,900; 200,000.
        batch: Pairs a step. 8; 32.
        lr: Peak learning rate. 6e-4; 1e-4.
        people: How many people the pairs are drawn from.
        identity: Weight of the identity loss: more takes more of the source. 2; 1.
        latent: Weight of the latent penalty: more keeps more of the target. 0.15, in variances of w; 100, in w's units.
        colour: Weight of the latent penalty on the rows of colour and light.
        shape: Weight of the shape loss: source's face shape, target's pose and expression. 0.5; 0.1.
        keep: Weight of the target's eyes and mouth.
        away: Weight of the distance to the target's identity.
        detail: Weight of the difference to the source's picture, bent into shape.
        features: Weight of the difference to the identity network's maps of that picture.
        pixel: Weight of the difference to the target's light and colours.
        same: Share of pairs in which source and target are one person. 0.15; 0.2.
        inverted: Share of pairs with the encoder's codes; the others have the true ones.
        hidden: Widths of each row's layers. 512 512; 1024 1024 512 512.
    """
    check_seed(seed)
    settings = {name: value for name, value in locals().items() if name in _SETTINGS}
    settings = {name: _SETTINGS[name][paper] if value is None else value for name, value in settings.items()}
    _check_setting(locals(), paper=paper)
    loop = {"out": out, "steps": settings.pop("steps"), "lr": settings.pop("lr"), "sample_every": sample_every}
    if paper:
        files = (generator, identity_network, shape_network, landmarks)
        settings |= {"seed": seed, "accumulate": accumulate}
        _train_as_published(settings, loop, *files, device=device, offline=offline)
        return
    from latentswap.inversion.encoder import FeatureEncoder
    from latentswap.inversion.optimise import EXACT_ROWS
    from latentswap.swappers.mixer import LatentMixer, MixerConfig
    from latentswap.train.loop import LoopConfig
    from latentswap.train.mixer import MixerTrainee, MixerTraining
    from latentswap.weights.assets import asset_path

    schedule = LoopConfig(**loop, save_every=50)
    widths = settings.pop("hidden")
    training = MixerTraining(
        mixer=MixerConfig(hidden=widths, rows=EXACT_ROWS, identity_dim=128),
        seed=seed,
        inverted=inverted,
        colour=colour,
        keep=keep,
        away=away,
        detail=detail,
        features=features,
        pixel=pixel,
        **settings,
    )
    config = bank_config(people=people, seed=seed)
    with ExitStack() as stack:
        bank = bank_for(stack, people_from or out / "people", config, device=device, offline=offline)
        drawing, embedder, mesh = load_frozen(stack, device=device, offline=offline)
        inverter = FeatureEncoder.load(encoder or asset_path("encoder")).to(device) if training.inverted else None
        first = None if start is None else LatentMixer.load(start)
        trainee = MixerTrainee(half_precision(drawing, device), embedder, mesh, bank, training, inverter, first)
        losses = run(stack, trainee, schedule)
        summary = {"steps": schedule.steps, "lr": schedule.lr, "people": people, "losses": losses}
        trainee.mixer.save(out / "mixer.safetensors", summary=summary | {"config": trainee.describe()})
    print(out / "mixer.safetensors")


# Of `train mixer`: our defaults and the paper's.
_SETTINGS: dict[str, tuple[Any, Any]] = {
    "steps": (1900, 200_000),
    "batch": (8, 32),
    "lr": (6e-4, 1e-4),
    "identity": (2.0, 1.0),
    "latent": (0.15, 100.0),
    "shape": (0.5, 0.1),
    "same": (0.15, 0.2),
    "hidden": ((512, 512), (1024, 1024, 512, 512)),
}
_PAPER_ONLY = ("generator", "identity_network", "shape_network", "landmarks", "accumulate")
_OURS_ONLY = (
    *("people_from", "encoder", "start", "people", "inverted"),
    *("colour", "keep", "away", "detail", "features", "pixel"),
)


def _check_setting(options: dict[str, Any], *, paper: bool) -> None:
    """Refuse options of `train mixer` that the other setting has."""
    defaults = inspect.signature(train_mixer).parameters
    for name in _OURS_ONLY if paper else _PAPER_ONLY:
        if options[name] != defaults[name].default:
            option, where = f"--{name.replace('_', '-')}", "with" if paper else "without"
            raise UsageError(f"{option} has no meaning {where} --paper; leave it out.")
    if (options["shape_network"] is None) != (options["landmarks"] is None):
        raise UsageError("--shape-network and --landmarks belong together: give both or neither.")


def _train_as_published(
    settings: dict[str, Any],
    loop: dict[str, Any],
    generator: Path | None,
    identity_network: Path | None,
    shape_network: Path | None,
    landmarks: Path | None,
    *,
    device: str,
    offline: bool,
) -> None:
    """`train mixer --paper`."""
    from latentswap.networks import load_any, load_identity
    from latentswap.shape.deep3d import Deep3D, LandmarkModel
    from latentswap.shape.fusion import default_shape_model
    from latentswap.train.loop import LoopConfig
    from latentswap.train.paper import CentredDlib, LandmarkShape, MeshShape, PaperTrainee, PaperTraining
    from latentswap.weights.assets import asset_path
    from latentswap.weights.load import load_tensors

    schedule = LoopConfig(**loop, lr_end=1.0, warmup=0, weight_decay=0.01, log_every=20)
    training = PaperTraining(**settings, resolution=256 if generator is None else None)
    with ExitStack() as stack:
        drawing, embedder, mesh = load_frozen(stack, device=device, offline=offline)
        if generator is not None:
            drawing = load_any(generator).to(device)
        if identity_network is not None:
            identity: Any = load_identity(identity_network).to(device)
        else:
            population, _ = load_tensors(asset_path("population"), kind="population")
            identity = CentredDlib(network=embedder, mean_E=population["identity.mean_E"].to(device))
        shape: Any = MeshShape(network=mesh, model=default_shape_model())
        if shape_network is not None and landmarks is not None:
            network, model = Deep3D.load(shape_network).to(device), LandmarkModel.load(landmarks).to(device)
            shape = LandmarkShape(network=network, model=model)
        trainee = PaperTrainee(drawing, identity, shape, training)
        losses = run(stack, trainee, schedule)
        summary = {"steps": schedule.steps, "lr": schedule.lr, "losses": losses, "config": trainee.describe()}
        trainee.mixer.save(schedule.out / "mixer.safetensors", summary=summary)
    print(schedule.out / "mixer.safetensors")


COMMANDS = {
    "people": train_people,
    "population": train_population,
    "head": train_head,
    "encoder": train_encoder,
    "mixer": train_mixer,
    "lessons": train_lessons,
    "identities": train_identities,
    "simswap": train_simswap,
    "simswap-gan": train_simswap_gan,
}
