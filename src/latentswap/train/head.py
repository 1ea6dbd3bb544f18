"""Training of `Head256`: the generator's features at 128² → its own picture, area-reduced to 256².

No data set: (code, picture) pairs come from the generator. The head is local, so it learns from small patches cut
from a bank of pairs that is computed once.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from latentswap.generators.mobile import Head256, MobileStyleGAN
from latentswap.seeds import generator_for
from latentswap.train.sample import CodeConfig, sample_codes
from latentswap.weights.load import half_matrices, save_tensors

_PATCH = 32  # side of a patch in the features; twice that in the picture


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """`pictures` pairs, `patches` cut from each; `batch` patches a step."""

    pictures: int = 1000
    patches: int = 4
    batch: int = 16
    seed: int = 1
    codes: CodeConfig = field(default_factory=CodeConfig)


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadBank:
    """Patches: features float16 [N, 256, 32, 32], pictures float32 [N, 3, 64, 64], codes [N, L, D]."""

    features: torch.Tensor
    pictures: torch.Tensor
    codes: torch.Tensor


@torch.no_grad()
def build_head_bank(
    generator: MobileStyleGAN,
    config: HeadConfig,
    *,
    indices: range | None = None,
    render: Callable[[torch.Tensor], torch.Tensor] | None = None,
    on_item: Callable[[int, int], None] = lambda done, total: None,
) -> HeadBank:
    """Pairs `indices` (all by default); pair i is a function of (seed, i). `render`: a faster way to full size."""
    indices = range(config.pictures) if indices is None else indices
    features, pictures, codes = [], [], []
    for done, i in enumerate(indices, 1):
        random = generator_for(config.seed, i, stream=1)
        ws_BLD = sample_codes(generator, 1, random, config.codes)
        x_BCHW = generator.synthesis_network.features(ws_BLD, 5)
        target = F.interpolate((render or generator.synthesis)(ws_BLD), size=256, mode="area")
        for _ in range(config.patches):
            top, left = torch.randint(0, 128 - _PATCH + 1, (2,), generator=random).tolist()
            features.append(x_BCHW[0, :, top : top + _PATCH, left : left + _PATCH].half())
            top, left, side = 2 * top, 2 * left, 2 * _PATCH
            pictures.append(target[0, :, top : top + side, left : left + side].clone())
            codes.append(ws_BLD[0])
        on_item(done, len(indices))
    return HeadBank(features=torch.stack(features), pictures=torch.stack(pictures), codes=torch.stack(codes))


class HeadTrainee:
    """See `train.loop.Trainee`."""

    name = "head"

    def __init__(self, bank: HeadBank, config: HeadConfig) -> None:
        self.bank, self.config = bank, config
        torch.manual_seed(config.seed)
        self.head = Head256()
        for affine in (self.head.affine1, self.head.affine2, self.head.affine3):
            torch.nn.init.zeros_(affine.weight)  # what the codes say is learnt, not drawn

    def module(self) -> torch.nn.Module:
        return self.head

    def describe(self) -> dict[str, object]:
        return asdict(self.config)

    def losses(self, step: int) -> dict[str, torch.Tensor]:
        """Mean squared and mean absolute error in [-1, 1]; a border of one feature pixel is not compared (padding)."""
        random = generator_for(self.config.seed, step)
        index = torch.randint(0, len(self.bank.features), (self.config.batch,), generator=random)
        out = self.head(self.bank.features[index].float(), self.bank.codes[index])
        error = (out - self.bank.pictures[index])[:, :, 2:-2, 2:-2]
        mse, mae = error.square().mean(), error.abs().mean()
        return {"total": mse + 0.1 * mae, "mse": mse, "psnr": 10 * torch.log10(4 / mse.detach())}

    def save(self, path: Path, *, summary: Mapping[str, object]) -> None:
        """Write weights (matrices in float16) and a summary of the training to safetensors."""
        metadata = {"kind": "head256", "training": json.dumps(dict(summary) | {"config": self.describe()})}
        save_tensors(path, half_matrices(self.head), metadata | {"licence": "non-commercial (lineage FFHQ)"})

    def sample_sheet(self) -> np.ndarray | None:
        return None
