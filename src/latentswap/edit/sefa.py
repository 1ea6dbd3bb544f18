"""SeFa (Shen and Zhou, arXiv 2007.06600): directions in closed form, from the weights that read the styles.

A row of W+ acts through affine maps, and what those amplify most is what changes the picture most: with A the matrix of
all chosen maps, a column of unit length for each of their outputs, the directions are the eigenvectors of A·Aᵀ, the
largest eigenvalue first. The sign of each is arbitrary: its largest entry is positive here.
"""

import re
from collections.abc import Collection

import torch
from torch import nn

from latentswap.edit.directions import Direction, Offset
from latentswap.errors import UsageError

# Layers of a state dictionary that read a row. NVIDIA's names: the picture of every block but the last is left out, as
# by the authors. MobileStyleGAN's: the one picture, at the end, is kept.
_STYLEGAN2 = re.compile(r"(?:.*\.)?b(\d+)\.(conv0|conv1|torgb)\.affine\.weight")
_MOBILE = re.compile(r"(?:.*\.)?(conv0|to_image|blocks\.(\d+)\.(up|conv1|conv2))\.affine\.weight")


def style_maps(generator: nn.Module) -> list[tuple[int, torch.Tensor]]:
    """The affine maps of the generator's styles: (row of W+ that it reads, weight [C, D]), in the order of its layers.

    Raises UsageError for a network whose layers have names of neither StyleGAN2 nor MobileStyleGAN.
    """
    state = {name: value for name, value in generator.state_dict().items() if name.endswith(".affine.weight")}
    found: list[tuple[int, torch.Tensor]] = []
    sides = [int(match[1]) for match in map(_STYLEGAN2.fullmatch, state) if match]
    blocks = [int(match[2] or 0) for match in map(_MOBILE.fullmatch, state) if match]
    for name, weight_CD in state.items():
        if sides and (match := _STYLEGAN2.fullmatch(name)):
            side, layer = int(match[1]), match[2]
            first = 2 * side.bit_length() - 7  # row of the block's first convolution; −1 for that of 4², which has none
            if layer != "torgb" or side == max(sides):
                found.append((first + {"conv0": 0, "conv1": 1, "torgb": 2}[layer], weight_CD))
        elif not sides and (match := _MOBILE.fullmatch(name)):
            last = 2 * max(blocks) + 3
            inside = 2 * int(match[2] or 0) + (2 if match[3] == "conv2" else 1)
            found.append(({"conv0": 0, "to_image": last}.get(match[1], inside), weight_CD))
    if not found:
        raise UsageError(
            f"{type(generator).__name__} has no style layers of StyleGAN2 or MobileStyleGAN; SeFa needs them."
        )
    return found


def factorise(weights: Collection[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Affine weights [C_i, D] → eigenvalues [D], largest first, and directions [D, D], one a row, of unit length."""
    a_CD = torch.cat([weight.double() for weight in weights])
    a_CD = a_CD / a_CD.norm(dim=1, keepdim=True).clamp_min(1e-12)
    values_D, vectors_DD = torch.linalg.eigh(a_CD.T @ a_CD)
    directions_DD = vectors_DD.T.flip(0)
    largest_D1 = directions_DD.abs().argmax(1, keepdim=True)
    return values_D.flip(0).float(), (directions_DD * directions_DD.gather(1, largest_D1).sign()).float()


def sefa(generator: nn.Module, *, rows: Collection[int] | None = None, count: int = 10) -> dict[str, Direction]:
    """The first `count` directions of these rows (all by default) as `sefa.0`, `sefa.1`, …; they edit those rows.

    Raises UsageError when the generator has no such row.
    """
    maps = style_maps(generator)
    known = sorted({row for row, _ in maps})
    chosen = tuple(known if rows is None else sorted(set(rows)))
    weights = [weight for row, weight in maps if row in chosen]
    if not weights or not set(chosen) <= set(known):
        raise UsageError(f"SeFa of rows {list(chosen)}: the styles of this generator are rows 0 to {known[-1]}.")
    _, directions_DD = factorise(weights)
    return {
        f"sefa.{i}": Direction(name=f"sefa.{i}", change=Offset(directions_DD[i][None].clone()), rows=chosen)
        for i in range(min(count, len(directions_DD)))
    }
