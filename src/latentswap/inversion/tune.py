"""Pivotal tuning (Roich et al., arXiv 2106.05744): the generator is moved, a little, until it draws a photograph.

The photograph's code, the pivot, stays where inversion left it; the synthesis weights learn what no code can say:
this background, this hair, these glasses. The result is a `GeneratorDelta`, the change of the weights alone.

A step at full size is ten times dearer than one at 256², so no step draws the whole picture at full size. Every step
computes the features at 128² once and looks at them twice: through the 256² head, which is tuned along, and through
the generator's own last blocks on a random square. Convolutions are local, so that square is what the full picture
has there, and its gradient is exact.

Locality: every few steps a code between the pivot and a stranger's is drawn by the tuned generator and by the original
one, and the difference is penalised, so that codes around the pivot still mix.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch.func import functional_call

from latentswap.errors import UsageError
from latentswap.generators.base import broadcast_w
from latentswap.generators.mobile import MobileStyleGAN, Synthesis
from latentswap.identity.dlib_resnet import CHIP_CENTRE, CHIP_SIDE, CHIP_SIZE, DlibResNet, centred, chip
from latentswap.inversion.delta import GeneratorDelta, fingerprint
from latentswap.losses import feature_distance, identity_loss
from latentswap.seeds import generator_for

OnStep = Callable[[int, int], None]
SHARED_BLOCKS = 5  # blocks that the 256² path and the full generator share: features at 128²
FEATURE_SIDE = 4 << SHARED_BLOCKS
MARGIN = 2  # pixels of the features that a square's own border reaches into, through the last blocks
_JITTER = (0.02, 0.02, 0.1, 0.05)  # of the views that the perceptual loss sees: shift, shift, log scale, angle
_WHOLE = (0.5 - CHIP_CENTRE[0], 0.5 - CHIP_CENTRE[1], -math.log(CHIP_SIDE), 0.0)  # moves the chip to the whole crop
_PERCEPTUAL_STAGES = 3
_PAPER_ROWS = 18  # the paper's distance is measured over so many rows


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """How far and by what the generator is tuned.

    steps: optimisation steps for each picture; pictures of a pair take turns.
    lr: Adam's, as a share of each tensor's root mean square. The paper's 3e-4 is for weights of unit variance, and
    these are of 0.04 to 6; 120 steps at 0.002 along a cosine go about as far as the paper's 350.
    layers: how the names of the parameters begin that may move. affines: whether style projections among them do too.
    pixel, detail: mean absolute difference at 256² (three scales) and on the square at full size.
    perceptual: distance of the identity network's first stages, over face, whole crop and square.
    identity: 1 − cosine to the photograph's identity.
    locality, locality_every, locality_distance: weight of the locality loss, steps from one to the next, and how far
    from the pivot it looks, as the paper's code measures it: Euclidean, over 18 rows.
    stop_at: tuning ends when every picture's loss at 256² (pixel and perceptual) has fallen to this; 0: never.
    patch: side of the square, in pixels of the features (8 times that in the picture).
    """

    steps: int = 120
    lr: float = 2e-3
    layers: tuple[str, ...] = ("synthesis_network.blocks", "synthesis_network.to_image", "head")
    affines: bool = False
    pixel: float = 1.0
    detail: float = 1.0
    perceptual: float = 1.0
    identity: float = 0.1
    locality: float = 1.0
    locality_every: int = 4
    locality_distance: float = 30.0
    stop_at: float = 0.0
    patch: int = 24
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        if not 1 <= self.steps <= 5000:
            raise UsageError(f"{self.steps} tuning steps are out of range (1 to 5000).")
        if not 0 < self.lr <= 0.1:
            raise UsageError(f"A tuning rate of {self.lr} is out of range (above 0, at most 0.1).")
        if not 1 <= self.locality_every <= 5000:
            raise UsageError(f"locality_every is {self.locality_every} steps; it runs from 1 to 5000.")
        smallest = math.ceil(CHIP_SIZE / 8) + 2 * MARGIN
        if not smallest <= self.patch <= FEATURE_SIDE:
            raise UsageError(f"A square of {self.patch} is out of range ({smallest} to {FEATURE_SIDE}).")


class Square(NamedTuple):
    """A square of the features at 128², in their pixels."""

    top: int
    left: int
    side: int

    def picture(self) -> tuple[slice, slice, slice, slice]:
        """Rows and columns that it holds true at 1024²: first within its own picture, then within the whole one.

        Its border reaches `MARGIN` into it, but the picture's own border is a border for both.
        """
        rows, columns = (_kept(start, self.side) for start in (self.top, self.left))
        return rows, columns, _moved(rows, 8 * self.top), _moved(columns, 8 * self.left)


def _kept(start: int, side: int) -> slice:
    end = side - MARGIN if start + side < FEATURE_SIDE else side
    return slice(8 * (MARGIN if start > 0 else 0), 8 * end)


def _moved(part: slice, by: int) -> slice:
    return slice(part.start + by, part.stop + by)


def draw_square(side: int, random: torch.Generator) -> Square:
    """A square anywhere in the picture. Corners and edges come as often as the middle: starts are clamped draws."""
    reach = FEATURE_SIDE - side
    starts = torch.randint(-side // 2, reach + side // 2 + 1, (2,), generator=random).clamp(0, reach)
    return Square(int(starts[0]), int(starts[1]), side)


def tail(network: Synthesis, x_BCHW: torch.Tensor, ws_BLD: torch.Tensor, square: Square) -> torch.Tensor:
    """The generator's last blocks on one square of the features [B, C, 128, 128] → [B, 3, 8·side, 8·side].

    Within `square.picture()` this is the full picture.
    """
    top, left, side = square
    x = x_BCHW[:, :, top : top + side, left : left + side]
    for i in range(SHARED_BLOCKS, len(network.blocks)):
        block, scale = network.blocks[i], 2 << (i - SHARED_BLOCKS)
        rows, columns = slice(scale * top, scale * (top + side)), slice(scale * left, scale * (left + side))
        noise = {f"{conv}.noise": block.get_buffer(f"{conv}.noise")[:, :, rows, columns] for conv in ("conv1", "conv2")}
        x = functional_call(block, noise, (x, ws_BLD[:, 2 * i + 1], ws_BLD[:, 2 * i + 2], "const"))
    return network.to_image(x, ws_BLD[:, -1])


class Look(NamedTuple):
    """One picture, seen whole and close."""

    small_BCHW: torch.Tensor  # [B, 3, 256, 256]
    close_BCHW: torch.Tensor  # of the picture at 1024², where the square holds true


def look(generator: MobileStyleGAN, ws_BLD: torch.Tensor, square: Square) -> Look:
    """The picture that the generator makes of a code. Raises UsageError when it has no 256² head."""
    if generator.head is None:
        raise UsageError("Tuning needs the generator's 256² head; give `head` to `load`.")
    network = generator.synthesis_network
    x_BCHW = network.features(ws_BLD, SHARED_BLOCKS)
    rows, columns, _, _ = square.picture()
    return Look(generator.head(x_BCHW, ws_BLD), tail(network, x_BCHW, ws_BLD, square)[:, :, rows, columns])


def neighbour(generator: MobileStyleGAN, pivot_BLD: torch.Tensor, distance: float, z_BD: torch.Tensor) -> torch.Tensor:
    """w_α = w_pivot + α · (w_r − w_pivot) / ‖w_r − w_pivot‖ with w_r = mapping(z, ψ = 0.5): [B, L, D].

    The norm is over all rows and D; α is `distance`, scaled from 18 rows to this generator's.
    """
    with torch.no_grad():
        stranger_BLD = broadcast_w(generator.mapping(z_BD, truncation_psi=0.5), generator.num_ws)
    direction_BLD = stranger_BLD - pivot_BLD
    alpha = distance * (generator.num_ws / _PAPER_ROWS) ** 0.5
    return pivot_BLD + alpha * direction_BLD / direction_BLD.flatten(1).norm(dim=1)[:, None, None]


def distance(
    identity: DlibResNet, mean_E: torch.Tensor, seen: Look, wanted: Look, config: TuneConfig, random: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """How far two looks at one picture (B = 1) are apart: (whole, at 256²; close, and identity). Scalars.

    Both are seen through the same randomly moved views, so that no single view is fitted.
    """
    shift_14 = torch.randn(1, 4, generator=random) * torch.tensor(_JITTER)
    stages = identity.stages(_views(seen, shift_14))
    with torch.no_grad():
        wanted_stages = identity.stages(_views(wanted, shift_14))
    face, whole, close = feature_distance(stages[:_PERCEPTUAL_STAGES], wanted_stages[:_PERCEPTUAL_STAGES])
    difference = seen.small_BCHW - wanted.small_BCHW
    pixel = torch.stack([F.avg_pool2d(difference, scale).abs().mean() for scale in (1, 2, 8)]).mean()
    detail = (seen.close_BCHW - wanted.close_BCHW).abs().mean()
    embedding_BE, wanted_BE = (centred(identity.fc(s[-1][:1].mean((2, 3))), mean_E) for s in (stages, wanted_stages))
    return (
        config.pixel * pixel + config.perceptual * (face + whole) / 2,
        config.detail * detail + config.perceptual * close + config.identity * identity_loss(embedding_BE, wanted_BE),
    )


def _views(picture: Look, shift_14: torch.Tensor) -> torch.Tensor:
    """Three chips for the identity network: the face, the whole crop, and the square at full size."""
    small_BCHW, close_BCHW = picture
    shift_14 = shift_14.to(small_BCHW)
    close = (close_BCHW[:, :, :CHIP_SIZE, :CHIP_SIZE].clamp(-1, 1) + 1) * 127.5
    return torch.cat([chip(small_BCHW, shift_14), chip(small_BCHW, shift_14 + shift_14.new_tensor(_WHOLE)), close])


def tune(
    generator: MobileStyleGAN,
    identity: DlibResNet,
    mean_E: torch.Tensor,
    pivots_BLD: torch.Tensor,
    crops: Sequence[np.ndarray] | torch.Tensor,
    config: TuneConfig | None = None,
    on_step: OnStep = lambda done, total: None,
) -> GeneratorDelta:
    """The change that makes the generator draw `crops` at `pivots_BLD`; the generator given is not touched.

    pivots: W+ [B, L, D], one for each crop, held fixed. crops: FFHQ-aligned, uint8 arrays [1024, 1024, 3] or a float
    tensor [B, 3, 1024, 1024] in [-1, 1]. Several (source and target) are tuned jointly, taking turns. The same
    arguments give the same delta. `on_step`: (steps done, steps in all); an early stop jumps to the end.
    Raises UsageError when the generator has no 256² head or is not in float32, the shapes do not fit, or no parameter
    is chosen.
    """
    config = config or TuneConfig()
    parent = fingerprint(generator)
    crops_BCHW = as_crops(crops, pivots_BLD)
    small_BCHW = F.interpolate(crops_BCHW, size=256, mode="area")
    tuned = copy.deepcopy(generator).requires_grad_(False)
    parameters = _chosen(tuned, config)
    scale = {name: float(value.square().mean().sqrt()) for name, value in parameters.items()}
    adam = torch.optim.Adam([{"params": [value.requires_grad_()]} for value in parameters.values()])
    count, total = len(crops_BCHW), config.steps * len(crops_BCHW)
    first, last, done = {}, dict.fromkeys(range(count), math.inf), 0
    for step in range(total):
        if max(last.values()) <= config.stop_at:
            on_step(total, total)
            break
        rate = config.lr * min(1.0, (step + 1) / 5) * (0.5 + 0.5 * math.cos(math.pi * step / total))
        for group, rms in zip(adam.param_groups, scale.values(), strict=True):
            group["lr"] = rate * rms
        random = generator_for(config.seed, step, stream=7)
        which, square = step % count, draw_square(config.patch, random)
        pivot_BLD = pivots_BLD[which : which + 1]
        _, _, rows, columns = square.picture()
        wanted = Look(small_BCHW[which : which + 1], crops_BCHW[which : which + 1, :, rows, columns])
        whole, rest = distance(identity, mean_E, look(tuned, pivot_BLD, square), wanted, config, random)
        last[which] = float(whole.detach())
        first.setdefault(which, last[which])
        loss = whole + rest
        if config.locality > 0 and step % config.locality_every == 0:
            z_BD = torch.randn(1, generator.w_dim, generator=random).to(pivot_BLD)
            near_BLD = neighbour(generator, pivot_BLD, config.locality_distance, z_BD)
            with torch.no_grad():
                before = look(generator, near_BLD, square)
            moved = distance(identity, mean_E, look(tuned, near_BLD, square), before, config, random)
            loss = loss + config.locality * sum(moved)
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()
        done = step + 1
        on_step(done, total)
    start = dict(generator.named_parameters())
    return GeneratorDelta(
        parent=parent,
        changes={name: (value.detach() - start[name]).half().cpu() for name, value in parameters.items()},
        about={
            "config": asdict(config),
            "pictures": count,
            "steps": done,
            "losses": {"first": list(first.values()), "last": list(last.values())},
        },
    )


def as_crops(crops: Sequence[np.ndarray] | torch.Tensor, pivots_BLD: torch.Tensor) -> torch.Tensor:
    """Crops as [B, 3, 1024, 1024] in [-1, 1], where the pivots are. Raises UsageError unless there is one per pivot."""
    if isinstance(crops, torch.Tensor):
        crops_BCHW = crops
    else:
        crops_BCHW = torch.stack(
            [torch.from_numpy(np.array(c)).movedim(-1, 0).float().div(127.5).sub(1) for c in crops]
        )
    expected = (len(pivots_BLD), 3, 1024, 1024)
    if tuple(crops_BCHW.shape) != expected:
        raise UsageError(
            f"{len(pivots_BLD)} pivots need crops of [{', '.join(map(str, expected))}] as a batch; "
            f"these are {list(crops_BCHW.shape)}."
        )
    return crops_BCHW.to(pivots_BLD)


def _chosen(generator: MobileStyleGAN, config: TuneConfig) -> dict[str, torch.nn.Parameter]:
    chosen = {
        name: value
        for name, value in generator.named_parameters()
        if name.startswith(config.layers) and (config.affines or "affine" not in name)
    }
    if not chosen:
        raise UsageError(f"No parameter of the generator begins with any of {config.layers!r}.")
    return chosen
