"""StyleCLIP's latent mapper (Patashnik et al., arXiv 2103.17249): a small network that reads a code and moves it.

Three branches, for rows 0–3, 4–7 and the rest; each is PixelNorm and four equalised linear layers with fused leaky
ReLU. An edit adds 0.1 · M(w). Branches that a checkpoint lacks (trained with `--no_fine_mapper` and so on) change
nothing.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from latentswap.errors import WeightsError

BRANCHES = {"course_mapping": (0, 4), "medium_mapping": (4, 8), "fine_mapping": (8, None)}  # the published spelling
STEP = 0.1  # of the mapper's answer for a strength of 1
_DEPTH = 4
_LR_MUL = 0.01
_WIDEST = 4096


class Branch(nn.Module):
    """Rows [B, R, D] → their change [B, R, D]; PixelNorm over the channels of each row."""

    def __init__(self, w_dim: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.randn(w_dim, w_dim) / _LR_MUL for _ in range(_DEPTH))
        self.biases = nn.ParameterList(torch.zeros(w_dim) for _ in range(_DEPTH))

    def forward(self, ws_BRD: torch.Tensor) -> torch.Tensor:
        x = ws_BRD * torch.rsqrt(ws_BRD.square().mean(-1, keepdim=True) + 1e-8)
        for weight_DD, bias_D in zip(self.weights, self.biases, strict=True):
            x = F.linear(x, weight_DD * (_LR_MUL / weight_DD.shape[1] ** 0.5), bias_D * _LR_MUL)
            x = F.leaky_relu(x, 0.2) * 2**0.5
        return x


class LevelsMapper(nn.Module):
    """A `directions.Change`: W+ [B, L, D] and a strength → [B, L, D]."""

    def __init__(self, w_dim: int, branches: tuple[str, ...] = tuple(BRANCHES)) -> None:
        super().__init__()
        self.width = w_dim
        self.branches = nn.ModuleDict({name: Branch(w_dim) for name in branches})

    def forward(self, ws_BLD: torch.Tensor, strength: float = 1.0) -> torch.Tensor:
        change_BLD = torch.zeros_like(ws_BLD)
        for name, branch in self.branches.items():
            rows = slice(*BRANCHES[name])
            change_BLD[:, rows] = strength * STEP * branch(ws_BLD[:, rows])
        return change_BLD

    @classmethod
    def from_state(cls, state: Mapping[str, torch.Tensor]) -> "LevelsMapper":
        """The frozen mapper from the names of a published checkpoint, without `mapper.`: `BRANCH.mapping.I.weight` and
        `.bias`, I from 1 (0 is the PixelNorm, which has none). Raises WeightsError for any other set of tensors."""
        names = tuple(name for name in BRANCHES if any(key.startswith(f"{name}.") for key in state))
        own = {
            f"branches.{name}.{ours}.{i}": f"{name}.mapping.{i + 1}.{theirs}"
            for name in names
            for i in range(_DEPTH)
            for ours, theirs in (("weights", "weight"), ("biases", "bias"))
        }
        if not names or set(own.values()) != set(state):
            odd = sorted(set(own.values()) ^ set(state))[:4]
            raise WeightsError(
                f"these are not the tensors of StyleCLIP's LevelsMapper (see {', '.join(odd) or 'none'})"
            )
        first = state[f"{names[0]}.mapping.1.weight"]
        if first.ndim != 2 or not 1 <= first.shape[1] <= _WIDEST:
            raise WeightsError(f"a mapper's layer has the shape {list(first.shape)}")
        with torch.device("meta"):
            mapper = cls(first.shape[1], names)
        try:
            mapper.load_state_dict({key: state[theirs].float() for key, theirs in own.items()}, assign=True)
        except RuntimeError as error:
            raise WeightsError(f"StyleCLIP's mapper does not fit: {str(error).splitlines()[-1].strip()}") from error
        return mapper.eval().requires_grad_(False)
