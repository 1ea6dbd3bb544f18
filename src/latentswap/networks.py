"""The networks that the product consists of, loaded together."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from latentswap.errors import UsageError, WeightsError
from latentswap.generators.load import load_generator
from latentswap.generators.mobile import MobileStyleGAN
from latentswap.generators.stylegan2 import StyleGAN2
from latentswap.identity import arcface, arcface_se, smoothswap
from latentswap.identity.arcface import IRSE50, IResNet, load_arcface
from latentswap.identity.arcface_se import ArcFaceSE
from latentswap.identity.dlib_resnet import DlibResNet
from latentswap.identity.smoothswap import SmoothSwapEmbedder
from latentswap.inversion.encoder import FeatureEncoder
from latentswap.seeds import generator_for
from latentswap.shape.fusion import ShapeModel, default_shape_model
from latentswap.shape.iris import IrisNet
from latentswap.shape.mesh import MeshNet
from latentswap.swappers.mixer import LatentMixer
from latentswap.weights.assets import asset_path
from latentswap.weights.fetch import weights_path
from latentswap.weights.header import read_header
from latentswap.weights.load import load_tensors

_SAME_W = 0.01  # mean squared difference of w, in variances, up to which two mappings are one


@dataclass(frozen=True, kw_only=True, eq=False)
class Networks:
    """Everything between a crop and a swapped code, frozen, on one device."""

    generator: MobileStyleGAN | StyleGAN2
    shipped: MobileStyleGAN  # the one that the encoder is for
    identity: DlibResNet
    mesh: MeshNet
    iris: IrisNet
    encoder: FeatureEncoder
    encodes: bool = True  # whether the encoder's codes mean anything to the generator
    mixer: LatentMixer | None  # None: only for codes, edits and samples
    mean_E: torch.Tensor  # mean identity embedding of generated people: what `centred` subtracts
    shape_model: ShapeModel
    files: Mapping[str, Path] = field(default_factory=dict)  # what they were loaded from, for an output's credentials


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
    generator: str | Path | None = None,
    mixer: str | Path | None = None,
    mixes: bool = True,
    device: str = "cpu",
    offline: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> Networks:
    """The default networks, fetched at first use, or files in place of the generator and the mixer.

    mixes: whether anything is to be swapped; without it a generator of the user's needs no mixer, and has none.
    Raises WeightsError, and UsageError for a mixer that does not fit the generator.
    """
    mine = None if generator is None else load_any(generator)
    mixing = None
    if mixes or mixer is not None or mine is None:
        mixing = LatentMixer.load(asset_path("mixer") if mixer is None else Path(mixer))
        if mine is not None:
            _check_fit(mine, mixing, "The shipped mixer" if mixer is None else f"The mixer {mixer}")
    shipped, identity, mesh = load_trunks(device=device, offline=offline, progress=progress)
    if mine is None and mixing is not None:
        _check_fit(shipped, mixing, f"The mixer {mixer}")
    chosen = shipped if mine is None else mine.to(device)
    shares = mine is None or shares_w_space(chosen, shipped)
    if mixing is not None and mixer is None and not shares:
        raise UsageError("The shipped mixer was trained in another W space than this generator's; give --mixer FILE.")
    population, _ = load_tensors(asset_path("population"), kind="population")
    files = {"generator": weights_path("mobilestylegan-ffhq-1024", offline=True) if generator is None else generator}
    files |= {"identity": weights_path("dlib-resnet-v1", offline=True), "encoder": asset_path("encoder")}
    if mixing is not None:
        files["mixer"] = asset_path("mixer") if mixer is None else mixer
    return Networks(
        generator=chosen,
        shipped=shipped,
        identity=identity,
        mesh=mesh,
        iris=IrisNet.load(weights_path("mediapipe-iris", offline=offline, progress=progress)).to(device),
        encoder=FeatureEncoder.load(asset_path("encoder")).to(device),
        encodes=shares,
        mixer=None if mixing is None else mixing.to(device),
        mean_E=population["identity.mean_E"].to(device),
        shape_model=default_shape_model(),
        files={name: Path(path) for name, path in files.items()},
    )


def load_any(path: str | Path) -> MobileStyleGAN | StyleGAN2:
    """`load_generator`, for what is swapped and trained with. Raises WeightsError."""
    generator = load_generator(path)
    assert isinstance(generator, MobileStyleGAN | StyleGAN2)  # noqa: S101 - for the type checker
    return generator


def load_identity(path: str | Path) -> SmoothSwapEmbedder | IRSE50 | IResNet | ArcFaceSE:
    """The frozen identity network in the file at `path`: Smooth-Swap's or an ArcFace. Raises WeightsError."""
    kind = read_header(Path(path)).metadata.get("kind", "weights of an unstated kind")
    loaders: dict[str, Callable[..., SmoothSwapEmbedder | IRSE50 | IResNet | ArcFaceSE]]
    loaders = {smoothswap.KIND: SmoothSwapEmbedder.load, arcface.KIND: load_arcface, arcface_se.KIND: ArcFaceSE.load}
    if kind not in loaders:
        raise WeightsError(f"{path} holds {kind}, where an identity network is needed: {' or '.join(loaders)}")
    return loaders[kind](path)


@torch.no_grad()
def shares_w_space(a: MobileStyleGAN | StyleGAN2, b: MobileStyleGAN | StyleGAN2) -> bool:
    """Whether codes of the one mean the same to the other: whether they map the same z to the same w.

    MobileStyleGAN's mapping is StyleGAN2-FFHQ's at 1024²; `inversion.base.rows_for` translates between their rows.
    """
    if a.w_dim != b.w_dim or a.num_ws not in (16, 18):
        return False
    z_BD = torch.randn(4, a.w_dim, generator=generator_for(0, 0)).to(a.w_avg)
    difference_BD = (a.mapping(z_BD) - b.mapping(z_BD)) / b.w_std
    return bool(difference_BD.square().mean() < _SAME_W)


def _check_fit(generator: MobileStyleGAN | StyleGAN2, mixer: LatentMixer, name: str) -> None:
    """Refuse a mixer whose codes have another shape than the generator's. `name` says which mixer it is."""
    config = mixer.config
    if (config.num_ws, config.w_dim) == (generator.num_ws, generator.w_dim):
        return
    raise UsageError(
        f"{name} mixes codes of {config.num_ws} rows × {config.w_dim}, and the generator's have {generator.num_ws} × "
        f"{generator.w_dim}. Give --mixer FILE with a mixer for this generator: a published one "
        "(`latentswap models convert`), or train it (`latentswap train mixer --paper --generator FILE`)."
    )
