"""What StyleGAN2 is made of (Karras et al., arXiv 1912.04958), arranged for a CPU and for autograd.

A modulated convolution is written with one weight for the whole batch: styles scale what goes in, demodulation scales
what comes out. Where the weight is smaller than the activations, both scale the weight instead.

Shapes: B batch, I channels in, O channels out, K kernel, H W pixels.
"""

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_weight

TAPS = (1.0, 3.0, 3.0, 1.0)  # the low-pass of every change of size, before it is normalised
_EPS = 1e-8
_NNPACK = "_nnpack_spatial_convolution"  # Winograd's F(6×6, 3×3): up to three times as fast as F.conv2d on a CPU
_WINOGRAD_PIXELS = 1024  # from 32² on, Winograd's transforms cost less than the products that they save
_FEW_CHANNELS = 256  # up to here a transposed convolution is bound by memory, and one of four times the channels is not


def resample_filter() -> torch.Tensor:
    """The low-pass [4, 4] as checkpoints carry it: an outer product that sums to one."""
    taps = torch.tensor(TAPS)
    return taps.outer(taps) / taps.sum() ** 2


def upsample(img_BCHW: torch.Tensor) -> torch.Tensor:
    """Pictures [B, C, H, W] → [B, C, 2H, 2W] through the low-pass; black beyond the border."""
    channels = img_BCHW.shape[1]
    return F.conv_transpose2d(img_BCHW, _low_pass(img_BCHW), stride=2, padding=1, groups=channels)


def modulated_conv(
    x_BIHW: torch.Tensor,
    weight_OIKK: torch.Tensor,
    style_BI: torch.Tensor,
    bias_O: torch.Tensor,
    *,
    up: bool = False,
    gain: float = 1.0,
) -> torch.Tensor:
    """gain · demodulated 3×3 convolution of x, its channels scaled by `style`, + bias: [B, O, H, W].

    Demodulation divides by the size that the output would have for x of unit variance. `up` doubles the side:
    transposed convolution of stride 2, then the low-pass. `x` may be of a lower precision than the rest, and the output
    is of x's.
    """
    if x_BIHW.dtype == torch.float16:  # the largest factors become one; demodulation takes it back
        fan_in = weight_OIKK[0].numel()
        weight_OIKK = weight_OIKK / (fan_in**0.5 * weight_OIKK.abs().amax((1, 2, 3), keepdim=True))
        style_BI = style_BI / style_BI.abs().amax(1, keepdim=True)
    scale_BO = gain * torch.rsqrt(F.linear(style_BI.square(), weight_OIKK.square().sum((2, 3))) + _EPS)
    bias = bias_O.to(x_BIHW.dtype)
    if len(x_BIHW) == 1 and weight_OIKK.numel() < x_BIHW.numel() and eager_on_cpu(x_BIHW):
        weight_OIKK = scale_BO[0, :, None, None, None] * weight_OIKK * style_BI[0, :, None, None]
        return _conv(x_BIHW, weight_OIKK.to(x_BIHW.dtype), bias, up)
    x = x_BIHW * style_BI.to(x_BIHW.dtype)[:, :, None, None]
    x = _conv(x, weight_OIKK.to(x.dtype), None, up)
    return torch.addcmul(bias[:, None, None], x, scale_BO.to(x.dtype)[:, :, None, None])


def modulated_sum(
    x_BIHW: torch.Tensor, weight_OI: torch.Tensor, style_BI: torch.Tensor, bias_O: torch.Tensor
) -> torch.Tensor:
    """1×1 convolution of x, its channels scaled by `style`, + bias, not demodulated: [B, O, H, W] for a few O."""
    weight_BOI = (weight_OI * style_BI[:, None]).to(x_BIHW.dtype)
    y = torch.bmm(weight_BOI, x_BIHW.flatten(2)) + bias_O.to(x_BIHW.dtype)[:, None]
    return y.unflatten(2, x_BIHW.shape[2:])


def _conv(x_BIHW: torch.Tensor, weight_OIKK: torch.Tensor, bias_O: torch.Tensor | None, up: bool) -> torch.Tensor:
    winograd = eager_on_cpu(x_BIHW) and x_BIHW.shape[2] * x_BIHW.shape[3] >= _WINOGRAD_PIXELS and _has_winograd(x_BIHW)
    if not up:
        if winograd:
            return _Winograd.apply(x_BIHW, weight_OIKK, bias_O)  # type: ignore[return-value]
        return F.conv2d(x_BIHW, weight_OIKK, bias_O, padding=1)
    if winograd and weight_OIKK.shape[1] <= _FEW_CHANNELS:
        bias = None if bias_O is None else bias_O.repeat_interleave(4)
        phases = _Winograd.apply(x_BIHW, _phases(weight_OIKK), bias)
        # F.pixel_shuffle, three times as fast on a CPU.
        return phases.unflatten(1, (-1, 2, 2)).permute(0, 1, 4, 2, 5, 3).flatten(4).flatten(2, 3)  # type: ignore
    x = F.conv_transpose2d(x_BIHW, weight_OIKK.transpose(0, 1), stride=2)
    return F.conv2d(x, _low_pass(x), bias_O, padding=1, groups=x.shape[1])


def _phases(weight_OIKK: torch.Tensor) -> torch.Tensor:
    """Transposed convolution and low-pass as one convolution of the small side: [O, I, 3, 3] → [4·O, I, 3, 3].

    Four output channels for the four pixels that a pixel becomes. Along one axis, pixel 2q + p sees the input at q + d
    through the weights j and the taps k that meet there: k = 2d + 1 − p + j.
    """
    taps = [t / 4 for t in TAPS]
    at = {(p, d, j): 2 * d + 1 - p + j for p in (0, 1) for d in (-1, 0, 1) for j in (0, 1, 2)}
    meet_PDJ = weight_OIKK.new_tensor([taps[k] if 0 <= k < 4 else 0.0 for k in at.values()]).view(2, 3, 3)
    return torch.einsum("oijk,pdj,qek->opqide", weight_OIKK, meet_PDJ, meet_PDJ).flatten(0, 2)


def _low_pass(x_BCHW: torch.Tensor) -> torch.Tensor:
    """One filter [C, 1, 4, 4] for each channel. The gain of 4 makes up for the zeros that doubling the side puts in."""
    return (4 * resample_filter()).to(x_BCHW).expand(x_BCHW.shape[1], 1, 4, 4)


def eager_on_cpu(x: torch.Tensor) -> bool:
    """Not on a GPU and not being traced: a graph compiler wants constant weights and ordinary operators."""
    return x.device.type == "cpu" and not torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]


def _has_winograd(x: torch.Tensor) -> bool:
    return x.dtype == torch.float32 and torch.backends.nnpack.is_available() and hasattr(torch, _NNPACK)


class _Winograd(torch.autograd.Function):
    """3×3 convolution, padded by one pixel, with a fifth of the products; relative error 5e-6. The gradient of the
    input is such a convolution too."""

    @staticmethod
    def forward(ctx, x_BIHW: torch.Tensor, weight_OIKK: torch.Tensor, bias_O: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x_BIHW, weight_OIKK)
        ctx.biased = bias_O is not None
        return _winograd(x_BIHW, weight_OIKK, bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_BOHW: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        x_BIHW, weight_OIKK = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = _winograd(grad_BOHW, weight_OIKK.transpose(0, 1).flip(2, 3), None)
        if ctx.needs_input_grad[1]:
            grad_weight = conv2d_weight(x_BIHW, weight_OIKK.shape, grad_BOHW, padding=1)
        if ctx.biased and ctx.needs_input_grad[2]:
            grad_bias = grad_BOHW.sum((0, 2, 3))
        return grad_x, grad_weight, grad_bias


def _winograd(x_BIHW: torch.Tensor, weight_OIKK: torch.Tensor, bias_O: torch.Tensor | None) -> torch.Tensor:
    # One picture at a time: its batched form transforms the whole input first, which is slow and takes gigabytes.
    convolve, weight = getattr(torch, _NNPACK), weight_OIKK.contiguous()
    singles = [convolve(x, weight, bias_O, [1, 1], [1, 1]) for x in x_BIHW.contiguous().split(1)]
    return singles[0] if len(singles) == 1 else torch.cat(singles)
