"""Pivotal tuning (Roich et al., arXiv 2106.05744) as LatentSwap's authors infer with it, for any generator.

First a pivot for each photograph: one w for all rows, found by Adam along the schedule of StyleGAN2's projector. Noise
maps that are standard normal move along, held to that by a regulariser, and are then thrown away. After that the
synthesis weights learn to draw every photograph of a pair at its pivot, taking turns, at full size.

Two things differ. The published distance is LPIPS, whose learnt weights this project does not have: the first stages of
the identity network stand in its place, over the face, the whole picture and, while tuning, a random square at full
size. They see colour poorly, so the first stage compares pixels as well. And w's mean and deviation are the
generator's own, not those of 600 draws.

`inversion.tune` does the same for MobileStyleGAN at a tenth of the price; the rate here is for StyleGAN2, whose weights
are of unit variance.
"""

import copy
import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F

from latentswap.errors import UsageError
from latentswap.generators.mobile import MobileStyleGAN
from latentswap.generators.stylegan2 import StyleGAN2, SynthesisBlock
from latentswap.identity.base import at_most_256
from latentswap.identity.dlib_resnet import CHIP_SIZE, DlibResNet, chip
from latentswap.inversion.delta import GeneratorDelta, Network, fingerprint
from latentswap.inversion.tune import OnStep, neighbour
from latentswap.losses import feature_distance
from latentswap.seeds import generator_for

AnyGenerator = MobileStyleGAN | StyleGAN2
_STAGES = 3  # of the identity network, that still say where
_RAMP_UP, _RAMP_DOWN = 0.05, 0.25  # shares of the projection in which its rate rises and falls
_NOISY = 0.75  # share of the projection in which w is noisy
_COARSEST = 8  # side of the smallest noise map that is regularised as part of a larger one


@dataclass(frozen=True, kw_only=True)
class PtiConfig:
    """Both stages, with the values of the published code.

    project_steps, project_lr: of the first stage; the rate is its peak.
    jitter: standard deviation of the noise on w at the start, in that of all of w.
    noise_maps: weight of the noise maps' regulariser.
    steps, lr: of the second stage; steps for each picture.
    pixel, perceptual: weights of the mean squared difference and of the distance of the identity network's stages.
    locality, locality_every, locality_distance: weight of what changes around a pivot, steps from one look to the next,
    and how far from the pivot it looks (Euclidean, over 18 rows). The published code has it off; where it is on, 0.1.
    """

    project_steps: int = 450
    project_lr: float = 0.01
    jitter: float = 0.05
    noise_maps: float = 1e5
    steps: int = 350
    lr: float = 3e-4
    pixel: float = 1.0
    perceptual: float = 1.0
    locality: float = 0.0
    locality_every: int = 1
    locality_distance: float = 30.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("project_steps", "steps", "locality_every"):
            if not 1 <= getattr(self, name) <= 5000:
                raise UsageError(f"{name} is {getattr(self, name)}; it runs from 1 to 5000.")
        for name in ("project_lr", "lr"):
            if not 0 < getattr(self, name) <= 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it lies above 0 and is at most 1.")
        weights = (self.jitter, self.noise_maps, self.pixel, self.perceptual, self.locality)
        if not min(weights) >= 0 or not self.locality_distance > 0:
            raise UsageError("The weights and the noise on w are 0 or more, and locality_distance is above 0.")


def project(
    generator: AnyGenerator,
    identity: DlibResNet,
    img_BCHW: torch.Tensor,
    config: PtiConfig | None = None,
    on_step: OnStep = lambda done, total: None,
) -> torch.Tensor:
    """The pivot of one photograph, [1, 3, S, S] in [-1, 1], any S: one w in every row of W+ [1, L, D].

    The generator is not touched. The same arguments give the same pivot. Raises UsageError for several photographs.
    """
    config = config or PtiConfig()
    if img_BCHW.ndim != 4 or len(img_BCHW) != 1:
        raise UsageError(f"One picture [1, 3, S, S] is projected at a time, not {list(img_BCHW.shape)}.")
    frozen = full_precision(generator)
    maps = [noise.requires_grad_() for name, noise in frozen.named_buffers() if name.endswith("noise_const")]
    w_11D = generator.w_avg.clone()[None, None].requires_grad_()
    spread = config.jitter * float(generator.w_std.norm())
    wanted_BCHW = _resized(at_most_256(img_BCHW.to(w_11D)), min(256, generator.resolution))
    adam = torch.optim.Adam([w_11D, *maps], lr=config.project_lr)
    for step in range(config.project_steps):
        time = step / config.project_steps
        adam.param_groups[0]["lr"] = config.project_lr * ramp(time)
        random = generator_for(config.seed, step, stream=8)
        noise_11D = torch.randn(w_11D.shape, generator=random).to(w_11D) * max(0.0, 1 - time / _NOISY) ** 2
        ws_BLD = (w_11D + spread * noise_11D).expand(-1, generator.num_ws, -1)
        loss = difference(identity, at_most_256(frozen.synthesis(ws_BLD)), wanted_BCHW, config)
        if maps:
            loss = loss + config.noise_maps * torch.stack([self_similarity(map_) for map_ in maps]).sum()
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()
        for map_ in maps:
            _standardise(map_)
        on_step(step + 1, config.project_steps)
    return w_11D.detach().expand(-1, generator.num_ws, -1).contiguous()


def ramp(time: float) -> float:
    """The projection's rate at a time in 0…1, as a share of its peak: up linearly, down along a cosine at the end."""
    down = min(1.0, (1 - time) / _RAMP_DOWN)
    return min(1.0, time / _RAMP_UP) * (0.5 - 0.5 * math.cos(math.pi * down))


def self_similarity(noise: torch.Tensor) -> torch.Tensor:
    """How far a noise map [H, H] resembles itself a pixel on, at its own size and halved down to 8²: 0 for noise."""
    x_11HW, total = noise[None, None], noise.new_zeros(())
    while True:
        for axis in (2, 3):
            total = total + (x_11HW * x_11HW.roll(1, axis)).mean().square()
        if x_11HW.shape[-1] <= _COARSEST:
            return total
        x_11HW = F.avg_pool2d(x_11HW, 2)


@torch.no_grad()
def _standardise(noise: torch.Tensor) -> None:
    """Zero mean and unit mean square, in place."""
    noise.sub_(noise.mean())
    noise.mul_(noise.square().mean().rsqrt())


def tune_pair(
    generator: AnyGenerator,
    identity: DlibResNet,
    pivots_BLD: torch.Tensor,
    img_BCHW: torch.Tensor,
    config: PtiConfig | None = None,
    on_step: OnStep = lambda done, total: None,
) -> GeneratorDelta:
    """The change that makes the generator draw `img` [B, 3, S, S] in [-1, 1], S its full size, at the pivots [B, L, D].

    Source and target are tuned jointly, taking turns; there may be one picture or several. The generator given is not
    touched. The same arguments give the same delta. Raises UsageError when the shapes do not fit, or the generator is
    not in float32.
    """
    config = config or PtiConfig()
    expected = (len(pivots_BLD), 3, generator.resolution, generator.resolution)
    if tuple(img_BCHW.shape) != expected:
        raise UsageError(f"{len(pivots_BLD)} pivots need pictures {list(expected)}; these are {list(img_BCHW.shape)}.")
    parent, wanted_BCHW = fingerprint(generator), img_BCHW.to(pivots_BLD)
    original, tuned = full_precision(generator), full_precision(generator)
    parameters = {name: value for name, value in tuned.named_parameters() if not name.startswith("mapping")}
    adam = torch.optim.Adam([value.requires_grad_() for value in parameters.values()], lr=config.lr)
    count, total = len(img_BCHW), config.steps * len(img_BCHW)
    first, last = {}, {}
    for step in range(total):
        random, which = generator_for(config.seed, step, stream=9), step % count
        pivot_BLD, one_BCHW = pivots_BLD[which : which + 1], wanted_BCHW[which : which + 1]
        loss = difference(identity, tuned.synthesis(pivot_BLD), one_BCHW, config, random)
        last[which] = float(loss.detach())
        first.setdefault(which, last[which])
        if config.locality > 0 and step % config.locality_every == 0:
            z_BD = torch.randn(1, generator.w_dim, generator=random).to(pivot_BLD)
            near_BLD = neighbour(original, pivot_BLD, config.locality_distance, z_BD)  # pyright: ignore[reportArgumentType]
            with torch.no_grad():
                before_BCHW = original.synthesis(near_BLD, noise="none")
            now_BCHW = tuned.synthesis(near_BLD, noise="none")
            loss = loss + config.locality * difference(identity, now_BCHW, before_BCHW, config, random)
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()
        on_step(step + 1, total)
    start = dict(original.named_parameters())
    return GeneratorDelta(
        parent=parent,
        changes={
            name: (value.detach() - start[name]).half().cpu()
            for name, value in parameters.items()
            if value.grad is not None  # a 256² head has no part in this
        },
        about={
            "method": "pti",
            "config": asdict(config),
            "pictures": count,
            "steps": total,
            "losses": {"first": list(first.values()), "last": list(last.values())},
        },
    )


def difference(
    identity: DlibResNet,
    img_BCHW: torch.Tensor,
    wanted_BCHW: torch.Tensor,
    config: PtiConfig,
    random: torch.Generator | None = None,
) -> torch.Tensor:
    """How far two pictures [1, 3, S, S] in [-1, 1] are apart: pixels, and what the identity network sees. A scalar.

    random: places the square that is compared at full size; None for no square.
    """
    corner = None if random is None else torch.rand(2, generator=random)
    stages = identity.stages(_views(img_BCHW, corner))[:_STAGES]
    with torch.no_grad():
        wanted_stages = identity.stages(_views(wanted_BCHW, corner))[:_STAGES]
    pixel = (img_BCHW - wanted_BCHW).square().mean()
    return config.pixel * pixel + config.perceptual * feature_distance(stages, wanted_stages).mean()


def _views(img_BCHW: torch.Tensor, corner: torch.Tensor | None) -> torch.Tensor:
    """Chips for the identity network: the face, the whole picture, and a square of a picture larger than a chip."""
    whole = (_resized(img_BCHW, CHIP_SIZE).clamp(-1, 1) + 1) * 127.5
    views, room = [chip(img_BCHW), whole], img_BCHW.shape[-1] - CHIP_SIZE
    if corner is not None and room > 0:
        top, left = (int(share * (room + 1)) for share in corner)
        close = img_BCHW[:, :, top : top + CHIP_SIZE, left : left + CHIP_SIZE]
        views.append((close.clamp(-1, 1) + 1) * 127.5)
    return torch.cat(views)


def _resized(img_BCHW: torch.Tensor, size: int) -> torch.Tensor:
    if img_BCHW.shape[-1] == size:
        return img_BCHW
    return F.interpolate(img_BCHW, size=size, mode="bilinear", align_corners=False, antialias=True)


def full_precision(generator: Network) -> Network:
    """A frozen copy that computes in float32 on every device, as the published code asks of StyleGAN2."""
    frozen = copy.deepcopy(generator).eval().requires_grad_(False)
    for block in frozen.modules():
        if isinstance(block, SynthesisBlock):
            block.float16_on_gpu = block.bfloat16_everywhere = False
    return frozen
