"""The networks that the product consists of, loaded together."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from latentswap.generators.mobile import MobileStyleGAN
from latentswap.identity.dlib_resnet import DlibResNet
from latentswap.inversion.encoder import FeatureEncoder
from latentswap.shape.fusion import ShapeModel, default_shape_model
from latentswap.shape.iris import IrisNet
from latentswap.shape.mesh import MeshNet
from latentswap.swappers.mixer import LatentMixer
from latentswap.weights.assets import asset_path
from latentswap.weights.fetch import weights_path
from latentswap.weights.load import load_tensors


@dataclass(frozen=True, kw_only=True, eq=False)
class Networks:
    """Everything between a crop and a swapped code, frozen, on one device."""

    generator: MobileStyleGAN
    identity: DlibResNet
    mesh: MeshNet
    iris: IrisNet
    encoder: FeatureEncoder
    mixer: LatentMixer
    mean_E: torch.Tensor  # mean identity embedding of generated people: what `centred` subtracts
    shape_model: ShapeModel


def load_trunks(
    *,
    device: str = "cpu",
    offline: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> tuple[MobileStyleGAN, DlibResNet, MeshNet]:
    """The three networks that others have trained, fetched at first use. Raises WeightsError."""
    generator, identity, mesh = (
        weights_path(name, offline=offline, progress=progress)
        for name in ("mobilestylegan-ffhq-1024", "dlib-resnet-v1", "mediapipe-mesh")
    )
    return (
        MobileStyleGAN.load(generator, asset_path("head256")).to(device),
        DlibResNet.load(identity).to(device),
        MeshNet.load(mesh).to(device),
    )


def load_networks(
    *,
    device: str = "cpu",
    offline: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> Networks:
    """The default networks, fetched at first use. Raises WeightsError."""
    generator, identity, mesh = load_trunks(device=device, offline=offline, progress=progress)
    population, _ = load_tensors(asset_path("population"), kind="population")
    return Networks(
        generator=generator,
        identity=identity,
        mesh=mesh,
        iris=IrisNet.load(weights_path("mediapipe-iris", offline=offline, progress=progress)).to(device),
        encoder=FeatureEncoder.load(asset_path("encoder")).to(device),
        mixer=LatentMixer.load(asset_path("mixer")).to(device),
        mean_E=population["identity.mean_E"].to(device),
        shape_model=default_shape_model(),
    )
