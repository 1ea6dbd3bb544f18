"""A first encoder: features of the pretrained identity and mesh networks → a W+ code near W.

Pretrained features make it frugal with data: it learns within minutes from generated people alone (`train/encoder.py`).
It predicts one w and an offset for each of three groups of rows (coarse, middle, fine), so that its codes stay close to
what the generator and the mixer know.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from latentswap.errors import UsageError, WeightsError
from latentswap.identity.dlib_resnet import DlibResNet, chip
from latentswap.shape.mesh import MeshNet, crop_mesh
from latentswap.shape.topology import MESH_POINTS
from latentswap.weights.header import read_header
from latentswap.weights.load import half_matrices, load_into, save_tensors

_POOLED = ((1, 8), (2, 6), (3, 3))  # stages of the identity network and the side they are pooled to
_THUMBNAIL = 20
_MAPS = 64 * 64 + 128 * 36 + 256 * 9
EMBEDDING = slice(_MAPS, _MAPS + 128)  # where the features hold the identity embedding
FEATURES = EMBEDDING.stop + 3 * MESH_POINTS + 3 * _THUMBNAIL**2
_GROUPS = (0, 4, 8)  # first rows of the coarse, middle and fine group


def trunk_features(identity: DlibResNet, mesh: MeshNet, img_BCHW: torch.Tensor) -> torch.Tensor:
    """FFHQ-aligned crops [B, 3, S, S] in [-1, 1] → features [B, FEATURES].

    Three pooled maps and the embedding of the identity network, the mesh, and the picture at 20².
    """
    chips = chip(img_BCHW)
    stages = identity.stages(chips)
    parts = [F.adaptive_avg_pool2d(stages[i], side).flatten(1) for i, side in _POOLED]
    parts.append(identity.fc(stages[-1].mean((2, 3))))
    parts.append(crop_mesh(mesh, img_BCHW).flatten(1))
    parts.append(F.adaptive_avg_pool2d(img_BCHW, _THUMBNAIL).flatten(1))
    return torch.cat(parts, 1)


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Size of the encoder's own layers."""

    features: int = FEATURES
    width: int = 768
    num_ws: int = 16
    w_dim: int = 512

    def __post_init__(self) -> None:
        if not (1 <= self.features <= 1 << 16 and 1 <= self.width <= 8192):
            raise UsageError(f"An encoder of {self.features} features and width {self.width} is out of range.")


class FeatureEncoder(nn.Module):
    """Features [B, FEATURES] → W+ [B, L, D]: linear plus a small residual network, in deviations of w."""

    feature_mean: torch.Tensor
    feature_std: torch.Tensor
    w_avg: torch.Tensor
    w_std: torch.Tensor

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        out = (1 + len(_GROUPS)) * config.w_dim
        for name, size, value in (
            ("feature_mean", config.features, 0.0),
            ("feature_std", config.features, 1.0),
            ("w_avg", config.w_dim, 0.0),
            ("w_std", config.w_dim, 1.0),
        ):
            self.register_buffer(name, torch.full((size,), value))
        self.reduce = nn.Linear(config.features, config.width)
        self.hidden = nn.Linear(config.width, config.width)
        self.out = nn.Linear(config.width, out)
        self.dropout = nn.Dropout(0.4)

    @classmethod
    def load(cls, path: Path) -> "FeatureEncoder":
        """The frozen encoder from its asset. Raises WeightsError."""
        try:
            config = EncoderConfig(**json.loads(read_header(path, kind="encoder").metadata["config"]))
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(f"{path} does not describe an encoder: {error}") from error
        encoder = cls(config)
        load_into(encoder, path, kind="encoder")
        return encoder.eval().requires_grad_(False)

    def save(self, path: Path, *, summary: Mapping[str, object]) -> None:
        """Write weights (matrices in float16) and a summary of the training to safetensors."""
        metadata = {"kind": "encoder", "config": json.dumps(asdict(self.config)), "training": json.dumps(dict(summary))}
        save_tensors(path, half_matrices(self), metadata | {"licence": "non-commercial (lineage FFHQ)"})

    def forward(self, features_BF: torch.Tensor) -> torch.Tensor:
        x = self.dropout((features_BF - self.feature_mean) / self.feature_std)
        x = self.reduce(x.clamp(-8, 8))
        x = x + self.hidden(self.dropout(F.gelu(x)))
        groups = self.out(self.dropout(x)).unflatten(1, (-1, self.config.w_dim))
        row_group = torch.bucketize(torch.arange(self.config.num_ws), torch.tensor(_GROUPS), right=True)
        ws_BLD = groups[:, :1] + groups[:, row_group]
        return self.w_avg + self.w_std * ws_BLD
