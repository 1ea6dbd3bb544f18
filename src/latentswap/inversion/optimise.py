"""Inversion by regularised optimisation at 256², and the refinement of a swapped code on its pair.

Both move a W+ code by Adam through the generator's cheap path. What keeps them on the manifold is the
parametrisation: a code is one shared w plus an offset per row, in standard deviations of w, and the offsets are
penalised; wandering rows look right at 256² and fall apart when mixed or edited. Rows of layers that the cheap path
does not have (`EXACT_ROWS` on) get no offset of their own: the head that stands for those layers only approximates
them, and an optimiser finds codes that it draws well and the generator does not.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from latentswap.errors import UsageError
from latentswap.generators.base import Generator
from latentswap.identity.dlib_resnet import DlibResNet, centred, chip
from latentswap.losses import (
    away_loss,
    contour_loss,
    detail_loss,
    identity_loss,
    latent_penalty,
    openness_loss,
    pooled_pixel_loss,
    shape_loss,
)
from latentswap.seeds import generator_for
from latentswap.shape.gaze import gaze_loss, measure_gaze
from latentswap.shape.iris import IrisNet
from latentswap.shape.mesh import MeshNet, crop_mesh
from latentswap.shape.repose import repose

OnStep = Callable[[int, int], None]
EXACT_ROWS = 11  # rows below drive the layers that the 256² path and the full generator share
COLOUR_ROWS = 9  # rows from here on say colour, light and texture more than who it is
_CHIP_JITTER = (0.008, 0.008, 0.03, 0.03)  # shift, shift, log scale, angle: the identity must not hang on one chip


@dataclass(frozen=True, kw_only=True)
class InvertConfig:
    """Coefficients of `invert`; distances between codes in standard deviations of w."""

    steps: int = 40
    lr: float = 0.07
    pixel: float = 3.0
    identity: float = 1.0
    detail: float = 6.0
    shape: float = 0.05
    keep: float = 0.1
    near_start: float = 0.1  # squared distance of the shared w to where it started
    near_shared: float = 0.6  # squared distance of every row to the shared w's own

    def __post_init__(self) -> None:
        _check_steps(self.steps)


@dataclass(frozen=True, kw_only=True)
class RefineConfig:
    """Coefficients of `refine`: the mixer's training losses on one pair, the target's light, the source's detail."""

    steps: int = 36
    lr: float = 0.05
    identity: float = 2.0
    away: float = 0.5
    detail: float = 12.0
    latent: float = 0.1
    colour: float = 1.0
    shape: float = 0.5
    keep: float = 0.6
    gaze: float = 0.1
    pixel: float = 3.0
    near_shared: float = 0.3

    def __post_init__(self) -> None:
        _check_steps(self.steps)


def _check_steps(steps: int) -> None:
    if not 0 <= steps <= 5000:
        raise UsageError(f"{steps} optimisation steps are out of range (0 to 5000).")


def embed(identity: DlibResNet, img_BCHW: torch.Tensor, mean_E: torch.Tensor) -> torch.Tensor:
    """Identity embedding of FFHQ-aligned crops, averaged over shifts and the mirror image: [B, E], unit length."""
    shift_V4 = torch.tensor([[0, 0, 0, 0], [0.01, 0, 0.03, 0.03], [-0.01, 0.01, -0.03, -0.03], [0, -0.01, 0, 0.0]])
    both = torch.cat([img_BCHW, img_BCHW.flip(3)])
    views = torch.cat([chip(both, shift_4.expand(len(both), 4).to(both)) for shift_4 in shift_V4])  # at once: faster
    with torch.no_grad():
        each_VBE = centred(identity(views), mean_E).unflatten(0, (2 * len(shift_V4), len(img_BCHW)))
    return F.normalize(each_VBE.mean(0), dim=-1)


def invert(
    generator: Generator,
    identity: DlibResNet,
    mesh: MeshNet,
    img_BCHW: torch.Tensor,
    start_BLD: torch.Tensor,
    mean_E: torch.Tensor,
    config: InvertConfig,
    on_step: OnStep = lambda done, total: None,
) -> torch.Tensor:
    """W+ codes [B, L, D] whose pictures resemble `img_BCHW`, [B, 3, 256, 256] in [-1, 1]; starts at the encoder's."""
    wanted_BE = embed(identity, img_BCHW, mean_E)
    with torch.no_grad():
        wanted_BK3 = crop_mesh(mesh, img_BCHW)
        _, face_B1HW = repose(img_BCHW, wanted_BK3, wanted_BK3)

    def losses(ws_BLD: torch.Tensor, random: torch.Generator) -> torch.Tensor:
        out_BCHW = generator.synthesis(ws_BLD, resolution=256)
        mesh_BK3 = crop_mesh(mesh, out_BCHW)
        return (
            config.pixel * _pyramid_loss(out_BCHW, img_BCHW)
            + config.detail * detail_loss(out_BCHW, img_BCHW, face_B1HW)
            + config.identity * identity_loss(jittered_embedding(identity, out_BCHW, mean_E, random), wanted_BE)
            + config.shape * shape_loss(mesh_BK3, wanted_BK3)
            + config.keep * (contour_loss(mesh_BK3, wanted_BK3) + 2 * openness_loss(mesh_BK3, wanted_BK3))
        )

    return _descend(generator, start_BLD, losses, config, config.near_start, on_step)


@dataclass(frozen=True, kw_only=True, eq=False)
class Wanted:
    """What a refined swap is to be like: of the source who it is, of the target all else."""

    code_BLD: torch.Tensor  # the target's
    img_BCHW: torch.Tensor  # the target photograph, [B, 3, 256, 256] in [-1, 1]
    mesh_BK3: torch.Tensor  # the target's, crop fractions
    fused_BK3: torch.Tensor  # `shape.fusion.fuse`: source's shape, target's pose and expression
    source_BE: torch.Tensor  # identity of the source photograph, centred, unit length
    other_BE: torch.Tensor  # identity of the target photograph
    guide_BCHW: torch.Tensor  # `shape.repose.repose`: the source's face bent into the fused mesh
    trust_B1HW: torch.Tensor  # and where it can be trusted


def refine(
    generator: Generator,
    identity: DlibResNet,
    mesh: MeshNet,
    iris: IrisNet,
    start_BLD: torch.Tensor,
    wanted: Wanted,
    mean_E: torch.Tensor,
    config: RefineConfig,
    on_step: OnStep = lambda done, total: None,
) -> torch.Tensor:
    """The mixer's codes [B, L, D], refined on their own pairs with the mixer's training losses and two more.

    The source's photograph, bent into place, says what 128 numbers of identity leave open (`detail`); the iris network
    where the target looks (`gaze`).
    """
    bound = max(0.0, float((wanted.source_BE * wanted.other_BE).sum(-1).max()))  # as far as the source itself is
    target = wanted.code_BLD
    with torch.no_grad():
        target_gaze = measure_gaze(iris, wanted.img_BCHW, wanted.mesh_BK3)

    def losses(ws_BLD: torch.Tensor, random: torch.Generator) -> torch.Tensor:
        out_BCHW = generator.synthesis(ws_BLD, resolution=256)
        mesh_BK3 = crop_mesh(mesh, out_BCHW)
        embedding_BE = jittered_embedding(identity, out_BCHW, mean_E, random)
        total = (
            config.identity * identity_loss(embedding_BE, wanted.source_BE)
            + config.away * away_loss(embedding_BE, wanted.other_BE, bound=bound)
            + config.detail * detail_loss(out_BCHW, wanted.guide_BCHW, wanted.trust_B1HW)
            + config.latent * latent_penalty(ws_BLD, target, generator.w_std)
            + config.colour * latent_penalty(ws_BLD[:, COLOUR_ROWS:], target[:, COLOUR_ROWS:], generator.w_std)
            + config.shape * shape_loss(mesh_BK3, wanted.fused_BK3)
            + config.keep * (contour_loss(mesh_BK3, wanted.mesh_BK3) + 2 * openness_loss(mesh_BK3, wanted.mesh_BK3))
            + config.pixel * pooled_pixel_loss(out_BCHW, wanted.img_BCHW)
        )
        if config.gaze:
            gaze = measure_gaze(iris, out_BCHW, mesh_BK3)
            weight_BE = gaze.weight_BE * target_gaze.weight_BE
            total = total + config.gaze * gaze_loss(gaze.gaze_BE2, target_gaze.gaze_BE2, weight_BE)
        return total

    return _descend(generator, start_BLD, losses, config, 0.0, on_step)


def jittered_embedding(
    identity: DlibResNet, img_BCHW: torch.Tensor, mean_E: torch.Tensor, random: torch.Generator
) -> torch.Tensor:
    """Identity [B, E] of crops seen through a chip that is a little off and now and then mirrored; differentiable."""
    shift_B4 = torch.randn(len(img_BCHW), 4, generator=random) * torch.tensor(_CHIP_JITTER)
    if torch.rand((), generator=random) < 0.5:
        img_BCHW = img_BCHW.flip(3)
    return centred(identity(chip(img_BCHW, shift_B4.to(img_BCHW))), mean_E)


def _pyramid_loss(img_BCHW: torch.Tensor, wanted_BCHW: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference at 32², 128² and 256², a third each, with the inner face counting double."""
    size = img_BCHW.shape[-1]
    weight = torch.ones(1, 1, size, size, device=img_BCHW.device)
    weight[:, :, size // 4 : size * 15 // 16, size // 5 : size * 4 // 5] = 2
    difference = (img_BCHW - wanted_BCHW) * weight / weight.mean()
    levels = [difference, F.avg_pool2d(difference, 2), F.avg_pool2d(difference, 8)]
    return torch.stack([level.abs().mean() for level in levels]).mean()


def _descend(
    generator: Generator,
    start_BLD: torch.Tensor,
    losses: Callable[[torch.Tensor, torch.Generator], torch.Tensor],
    config: InvertConfig | RefineConfig,
    near_start: float,
    on_step: OnStep,
) -> torch.Tensor:
    """Adam on (shared w, row offsets), both in standard deviations of w; the rate falls to zero along a cosine."""
    std_D = generator.w_std
    shared_B1D = torch.zeros_like(start_BLD[:, :1]).requires_grad_()
    rows_BLD = torch.zeros_like(start_BLD[:, :EXACT_ROWS]).requires_grad_()
    adam = torch.optim.Adam([shared_B1D, rows_BLD], lr=config.lr, betas=(0.9, 0.99))

    def moved() -> torch.Tensor:
        missing = start_BLD.shape[1] - rows_BLD.shape[1]
        return start_BLD + (shared_B1D + F.pad(rows_BLD, (0, 0, 0, missing))) * std_D

    for step in range(config.steps):
        progress = step / config.steps
        rate = config.lr * min(1.0, (step + 1) / 5) * (0.5 + 0.5 * float(torch.cos(torch.tensor(torch.pi * progress))))
        for group in adam.param_groups:
            group["lr"] = rate
        adam.zero_grad(set_to_none=True)
        ws_BLD = moved()
        loss = losses(ws_BLD, generator_for(0, step, stream=5))
        loss = loss + config.near_shared * rows_BLD.square().mean() + near_start * shared_B1D.square().mean()
        loss.backward()
        adam.step()
        on_step(step + 1, config.steps)
    return moved().detach()
