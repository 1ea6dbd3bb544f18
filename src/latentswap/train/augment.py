"""What photographs have and generated crops lack: misalignment, blur, colour, noise, compression, things in front.

An encoder that has seen generated pictures only takes all of these for a property of the person. Every function takes
crops [B, 3, S, S] in [-1, 1] and a random generator, and returns the like; none is differentiated.
"""

import math

import torch
import torch.nn.functional as F

_LUMA_TABLE = (  # ITU-T T.81, table K.1
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_EYES = ((0.385, 0.48), (0.615, 0.48))  # where they lie in an FFHQ-aligned crop
_TO_YCC = ((0.299, 0.587, 0.114), (-0.1687, -0.3313, 0.5), (0.5, -0.4187, -0.0813))


@torch.no_grad()
def augment(img_BCHW: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """Crops as a camera, a detector and a compressor would have left them. Keeps the shape."""
    x = misalign(img_BCHW, random)
    x = torch.stack([in_front(picture, random) for picture in x])
    x = torch.stack([_soften(picture, random) for picture in x])
    x = x * _draw(x, random, 0.8, 1.2) * _draw(x, random, 0.93, 1.07, 3)
    x = x + _draw(x, random, -0.15, 0.15) + _draw(x, random, -0.05, 0.05, 3)
    x = x + _draw(x, random, 0.0, 0.07) * torch.randn(x.shape, generator=random)
    return torch.stack([_compress(picture, random) for picture in x.clamp(-1, 1)])


def misalign(img_BCHW: torch.Tensor, random: torch.Generator, *, amount: float = 0.012) -> torch.Tensor:
    """Shifted, scaled and turned by about `amount` of the crop's side (twice that in radians)."""
    shift, angle, scale = torch.randn(len(img_BCHW), 4, generator=random).mul(amount).split((2, 1, 1), 1)
    cos, sin = (1 + 1.5 * scale) * angle.mul(2).cos(), (1 + 1.5 * scale) * angle.mul(2).sin()
    theta = torch.stack([torch.cat([cos, -sin, shift[:, :1]], 1), torch.cat([sin, cos, shift[:, 1:]], 1)], 1)
    grid = F.affine_grid(theta, list(img_BCHW.shape), align_corners=False)
    return F.grid_sample(img_BCHW, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def jpeg(img_CHW: torch.Tensor, quality: float) -> torch.Tensor:
    """What a JPEG of this quality (1 to 100) would keep: 8×8 cosine blocks, quantised; sides are multiples of 8."""
    scale = 50 / quality if quality < 50 else 2 - quality / 50
    table = (torch.tensor(_LUMA_TABLE, dtype=torch.float32) * scale).clamp_min(1)
    k = torch.arange(8, dtype=torch.float32)
    basis = torch.cos(math.pi * (2 * k[None] + 1) * k[:, None] / 16) / 2
    basis[0] /= 2**0.5
    to_ycc = torch.tensor(_TO_YCC)
    ycc = torch.einsum("dc,chw->dhw", to_ycc, img_CHW * 127.5)
    _, height, width = ycc.shape
    blocks = ycc.reshape(3, height // 8, 8, width // 8, 8)
    spectrum = torch.einsum("ui,chiwj,vj->chuwv", basis, blocks, basis)
    step = torch.stack([table, 1.6 * table, 1.6 * table])[:, None, :, None, :]
    spectrum = (spectrum / step).round() * step
    ycc = torch.einsum("ui,chuwv,vj->chiwj", basis, spectrum, basis).reshape(3, height, width)
    return torch.einsum("dc,chw->dhw", torch.linalg.inv(to_ycc), ycc).div(127.5).clamp(-1, 1)


def _draw(x: torch.Tensor, random: torch.Generator, low: float, high: float, channels: int = 1) -> torch.Tensor:
    return (torch.rand(len(x), channels, generator=random) * (high - low) + low)[:, :, None, None]


def _number(random: torch.Generator, low: float, high: float) -> float:
    return float(torch.rand((), generator=random)) * (high - low) + low


def _soften(img_CHW: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    size = img_CHW.shape[-1]
    side = int(size * (0.22 + 0.78 * _number(random, 0, 1) ** 0.5))
    small = F.interpolate(img_CHW[None], size=side, mode="area")
    return F.interpolate(small, size=size, mode="bilinear", align_corners=False)[0]


def _compress(img_CHW: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    quality = _number(random, 25, 140)
    return jpeg(img_CHW, quality) if quality <= 98 else img_CHW


def in_front(img_CHW: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """In one picture of five a patch of some colour and texture, in one of eight a pair of glasses."""
    size = img_CHW.shape[-1]
    line = (torch.arange(size) + 0.5) / size
    y, x = torch.meshgrid(line, line, indexing="ij")
    what = _number(random, 0, 1)
    if what < 0.2:
        cx, cy = _number(random, 0.1, 0.9), _number(random, 0.2, 1.0)
        a, b, angle = _number(random, 0.04, 0.2), _number(random, 0.04, 0.2), _number(random, 0, math.pi)
        u = ((x - cx) * math.cos(angle) + (y - cy) * math.sin(angle)) / a
        v = ((y - cy) * math.cos(angle) - (x - cx) * math.sin(angle)) / b
        power = _number(random, 2, 8)  # from an ellipse to a box
        inside = (u.abs() ** power + v.abs() ** power) ** (1 / power)
        alpha = ((1 - inside) * 20 + 0.5).clamp(0, 1)
        coarse = torch.randn(1, 3, 6, 6, generator=random) * _number(random, 0, 0.3)
        texture = F.interpolate(coarse, size=size, mode="bicubic", align_corners=False)[0]
        colour = torch.rand(3, 1, 1, generator=random) * 1.8 - 0.9
        return torch.lerp(img_CHW, (colour + texture).clamp(-1, 1), alpha)
    if what < 0.325:
        radius, width = _number(random, 0.07, 0.11), _number(random, 0.004, 0.014)
        squash, power = _number(random, 0.65, 1.0), _number(random, 2, 5)
        tint, rim = _number(random, 0, 1) ** 3 * 0.9, _number(random, -1, 0.2)
        dy = _number(random, 0, 0.02)
        for cx, cy in _EYES:
            u, v = (x - cx).abs() / radius, (y - cy - dy).abs() / (radius * squash)
            distance = ((u**power + v**power) ** (1 / power) - 1) * radius
            img_CHW = torch.lerp(img_CHW, torch.full_like(img_CHW, -0.9), tint * (distance < 0))
            img_CHW = torch.lerp(img_CHW, torch.full_like(img_CHW, rim), (distance.abs() < width).float())
        bridge = ((y - _EYES[0][1] - dy).abs() < width) & ((x - 0.5).abs() < 0.115 - radius)
        return torch.lerp(img_CHW, torch.full_like(img_CHW, rim), bridge.float())
    return img_CHW
