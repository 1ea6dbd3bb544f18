"""LatentSwap's latent mixer (Choi et al., arXiv 2402.18351): one small MLP per row of W+.

    w_swap[l] = MLP_l([w_source[l], w_target[l]]) + r · w_target[l]

Source first, residual on the target, SiLU between linear layers, no weight shared between rows. All rows run in one
batched product per layer.
"""

import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from latentswap.errors import UsageError, WeightsError
from latentswap.weights.header import read_header
from latentswap.weights.load import half_matrices, load_into, save_tensors

PAPER_HIDDEN = (1024, 1024, 512, 512)


@dataclass(frozen=True, kw_only=True)
class MixerConfig:
    """Size of a mixer. The paper's: 18 rows, hidden (1024, 1024, 512, 512); ours has half of the layers.

    rows: the first so many rows of W+ are mixed, the others are the target's; None for all, as in the paper.
    identity_dim: width of the source photograph's identity embedding, which every row's MLP then also reads; 0, the
    paper's, for none. What inversion has lost of a person the embedding still says.
    """

    num_ws: int = 16
    w_dim: int = 512
    hidden: tuple[int, ...] = (512, 512)
    residual: float = 1.0
    rows: int | None = None
    identity_dim: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        if not 1 <= self.num_ws <= 64 or not 1 <= self.w_dim <= 2048:
            raise UsageError(f"A mixer of {self.num_ws} rows × {self.w_dim} is out of range (1–64 rows × 1–2048).")
        if not self.hidden or len(self.hidden) > 8 or not all(1 <= n <= 4096 for n in self.hidden):
            raise UsageError(f"Hidden widths {self.hidden} are out of range: 1 to 8 layers of 1 to 4096.")
        if self.rows is not None and not 1 <= self.rows <= self.num_ws:
            raise UsageError(f"{self.rows} mixed rows are out of range (1 to {self.num_ws}).")
        if not 0 <= self.identity_dim <= 4096:
            raise UsageError(f"An identity embedding of {self.identity_dim} is out of range (0 to 4096).")

    def widths(self) -> tuple[int, ...]:
        return (2 * self.w_dim + self.identity_dim, *self.hidden, self.w_dim)

    def mixed(self) -> int:
        return self.num_ws if self.rows is None else self.rows


class RowLinear(nn.Module):
    """One linear layer per row: [L, B, I] → [L, B, O]."""

    def __init__(self, rows: int, c_in: int, c_out: int) -> None:
        super().__init__()
        bound = c_in**-0.5  # nn.Linear's own initialisation
        self.weight = nn.Parameter(torch.empty(rows, c_out, c_in).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(rows, c_out).uniform_(-bound, bound))

    def forward(self, x_LBI: torch.Tensor) -> torch.Tensor:
        return torch.baddbmm(self.bias[:, None], x_LBI, self.weight.mT)


class LatentMixer(nn.Module):
    """(source, target) W+ codes → swapped W+ code.

    `centre` and `scale` [D] normalise the codes that the MLPs see and undo it on their output: w_avg and w_std of the
    generator. With 0 and 1, their initial values, this is the paper's mixer to the letter.
    """

    centre: torch.Tensor
    scale: torch.Tensor

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(
            RowLinear(config.mixed(), c_in, c_out) for c_in, c_out in itertools.pairwise(config.widths())
        )
        self.register_buffer("centre", torch.zeros(config.w_dim))
        self.register_buffer("scale", torch.ones(config.w_dim))

    @torch.no_grad()
    def start_at_target(self, centre_D: torch.Tensor, scale_D: torch.Tensor) -> None:
        """Our initial state: normalised codes, and an output close to the target, as the residual means it."""
        self.centre.copy_(centre_D)
        self.scale.copy_(scale_D)
        last = self.layers[-1]
        assert isinstance(last, RowLinear)  # noqa: S101 - for the type checker
        last.weight.mul_(0.1)
        last.bias.zero_()

    @classmethod
    def load(cls, path: Path) -> "LatentMixer":
        """A frozen mixer, its size read from the file's metadata. Raises WeightsError."""
        try:
            fields = json.loads(read_header(path, kind="mixer").metadata["config"])
            mixer = cls(MixerConfig(**fields))
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(f"{path} does not describe a mixer: {error}") from error
        load_into(mixer, path, kind="mixer")
        return mixer.eval().requires_grad_(False)

    def save(self, path: Path, *, summary: Mapping[str, object]) -> None:
        """Write weights (float16), size and a summary of the training to safetensors."""
        metadata = {"kind": "mixer", "config": json.dumps(asdict(self.config)), "training": json.dumps(dict(summary))}
        save_tensors(path, half_matrices(self), metadata)

    def forward(
        self, source_BLD: torch.Tensor, target_BLD: torch.Tensor, embedding_BE: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Codes [B, L, D]; embedding [B, E], centred, unit length. Raises UsageError for shapes that are not its own.

        `embedding_BE` is the source's; a mixer without identity input ignores it.
        """
        config = self.config
        expected = (config.num_ws, config.w_dim)
        if source_BLD.shape != target_BLD.shape or source_BLD.shape[1:] != expected:
            raise UsageError(
                f"Codes of shape {tuple(source_BLD.shape)} and {tuple(target_BLD.shape)}; this mixer takes two of "
                f"[B, {expected[0]}, {expected[1]}]."
            )
        inputs = [(ws_BLD[:, : config.mixed()] - self.centre) / self.scale for ws_BLD in (source_BLD, target_BLD)]
        if config.identity_dim:
            if embedding_BE is None or embedding_BE.shape != (len(source_BLD), config.identity_dim):
                raise UsageError(f"This mixer also takes the source's identity embedding, [B, {config.identity_dim}].")
            spread = config.identity_dim**0.5  # unit length → unit variance
            inputs.append(embedding_BE[:, None].expand(-1, config.mixed(), -1) * spread)
        x_LBI = torch.cat(inputs, -1).transpose(0, 1)
        for layer in self.layers[:-1]:
            x_LBI = F.silu(layer(x_LBI))
        change_BLD = self.layers[-1](x_LBI).transpose(0, 1) * self.scale
        return config.residual * target_BLD + F.pad(change_BLD, (0, 0, 0, config.num_ws - config.mixed()))


def mixer_parameters(config: MixerConfig) -> int:
    """Number of parameters: 56,687,616 for the paper's 18 rows."""
    return config.mixed() * sum(prod(pair) + pair[1] for pair in itertools.pairwise(config.widths()))


def blend_rows(
    target_BLD: torch.Tensor, swapped_BLD: torch.Tensor, *, strength: float = 1.0, layers: tuple[int, ...] | None = None
) -> torch.Tensor:
    """Between the target's code and the swapped one: `strength` 0 to 1, in all rows or in those of `layers` only.

    Raises UsageError for a strength or a row out of range.
    """
    if not 0 <= strength <= 1:
        raise UsageError(f"Strength is {strength}; it runs from 0 (the target) to 1 (the swap).")
    rows = target_BLD.shape[1]
    if layers is not None and not all(0 <= row < rows for row in layers):
        raise UsageError(f"Rows {layers} are out of range; this code has rows 0 to {rows - 1}.")
    weight_L = torch.full((rows,), float(strength)) if layers is None else torch.zeros(rows)
    if layers is not None:
        weight_L[list(layers)] = strength
    return torch.lerp(target_BLD, swapped_BLD, weight_L.to(target_BLD)[:, None])
