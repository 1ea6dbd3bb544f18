"""dlib's face recognition ResNet-29 (King, public domain, 99.38 % on LFW), differentiable.

128 numbers a face. They are not of unit length and share a large common part, so cosines are taken after subtracting
the mean over many people (`centred`).
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from latentswap.errors import UsageError
from latentswap.weights.load import load_into

CHIP_SIZE = 150
_MEAN = (122.782, 117.001, 104.298)
_STAGES = (
    (32, 3, False),
    (64, 4, True),
    (128, 3, True),
    (256, 3, True),
    (256, 1, True),
)  # channels, blocks, halved first

# Where dlib's own face chip lies in an FFHQ-aligned crop, in crop fractions; nearly constant over faces.
CHIP_CENTRE = (0.503, 0.606)
CHIP_SIDE = 0.694


class DlibResNet(nn.Module):
    """RGB chips [B, 3, 150, 150] in 0…255 → identity embeddings [B, 128]."""

    embedding_dim = 128
    pixel_mean: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        convs, width = [nn.Conv2d(3, 32, 7, stride=2)], 32
        for channels, blocks, halved in _STAGES:
            for i in range(blocks):
                down = halved and i == 0
                convs.append(nn.Conv2d(width, channels, 3, stride=2 if down else 1, padding=0 if down else 1))
                convs.append(nn.Conv2d(channels, channels, 3, padding=1))
                width = channels
        self.convs = nn.ModuleList(convs)
        self.fc = nn.Linear(width, self.embedding_dim, bias=False)
        self.register_buffer("pixel_mean", torch.tensor(_MEAN)[None, :, None, None], persistent=False)

    @classmethod
    def load(cls, path: Path) -> "DlibResNet":
        """The frozen network from its converted weights. Raises WeightsError."""
        network = cls()
        load_into(network, path, kind="identity/dlib-resnet")
        return network.eval().requires_grad_(False)

    def stages(self, chip_BCHW: torch.Tensor) -> list[torch.Tensor]:
        """Outputs of the five residual stages: 32@35², 64@17², 128@8², 256@4², 256@2²."""
        if chip_BCHW.shape[1:] != (3, CHIP_SIZE, CHIP_SIZE):
            raise UsageError(f"A chip has shape [B, 3, {CHIP_SIZE}, {CHIP_SIZE}], not {tuple(chip_BCHW.shape)}.")
        x = (chip_BCHW - self.pixel_mean) / 256
        x = F.max_pool2d(F.relu(self.convs[0](x)), 3, 2)
        outputs, at = [], 1
        for _, blocks, halved in _STAGES:
            for i in range(blocks):
                shortcut = F.avg_pool2d(x, 2) if halved and i == 0 else x
                x = self.convs[at + 1](F.relu(self.convs[at](x)))
                x = F.relu(_padded_sum(x, shortcut))
                at += 2
            outputs.append(x)
        return outputs

    def forward(self, chip_BCHW: torch.Tensor) -> torch.Tensor:
        return self.fc(self.stages(chip_BCHW)[-1].mean((2, 3)))


def _padded_sum(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a + b, each filled with zeros to the larger of the two in channels, height and width, as dlib adds."""
    if a.shape[1:] == b.shape[1:]:
        return a + b
    shape = [max(m, n) for m, n in zip(a.shape[1:], b.shape[1:], strict=True)]

    def fill(x: torch.Tensor) -> torch.Tensor:
        missing = [n - m for m, n in zip(x.shape[1:], shape, strict=True)]
        return F.pad(x, (0, missing[2], 0, missing[1], 0, missing[0]))

    return fill(a) + fill(b)


def chip(img_BCHW: torch.Tensor, shift_B4: torch.Tensor | None = None) -> torch.Tensor:
    """dlib's face chip out of FFHQ-aligned crops, differentiable.

    img: [B, 3, S, S] RGB in [-1, 1], any S. shift: [B, 4] of (dx, dy, log scale, angle in radians) that moves the chip
    a little, dx and dy in crop fractions; None for the chip itself. Returns [B, 3, 150, 150] in 0…255.
    """
    if img_BCHW.shape[-1] > 512:
        img_BCHW = F.interpolate(img_BCHW, size=256, mode="area")
    if shift_B4 is None:
        shift_B4 = img_BCHW.new_zeros(1, 4).expand(len(img_BCHW), -1)
    dx, dy, log_scale, angle = shift_B4.unbind(1)
    scale = CHIP_SIDE * log_scale.exp()
    cos, sin = scale * angle.cos(), scale * angle.sin()
    # grid_sample's coordinates run from -1 to 1 over the crop, pixel edges at the ends.
    x0, y0 = 2 * (CHIP_CENTRE[0] + dx) - 1, 2 * (CHIP_CENTRE[1] + dy) - 1
    theta = torch.stack([torch.stack([cos, -sin, x0], 1), torch.stack([sin, cos, y0], 1)], 1)
    grid = F.affine_grid(theta, [len(img_BCHW), 3, CHIP_SIZE, CHIP_SIZE], align_corners=False)
    out = F.grid_sample(img_BCHW, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return (out.clamp(-1, 1) + 1) * 127.5


def centred(embedding_BE: torch.Tensor, mean_E: torch.Tensor) -> torch.Tensor:
    """Embeddings with the common part removed, unit length: their dot product is the cosine of this project."""
    return F.normalize(embedding_BE - mean_E, dim=-1)
