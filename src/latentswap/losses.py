"""The losses of LatentSwap (arXiv 2402.18351), as pure functions of codes, embeddings and meshes.

L = λ_id · L_id + λ_lp · L_lp + λ_shape · L_shape, and two terms of ours that hold the target's eyes, mouth and picture.
Every function returns a scalar tensor, the mean over the batch.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from latentswap.shape import topology as T
from latentswap.shape.measures import openness
from latentswap.shape.repose import detail


def identity_loss(embedding_BE: torch.Tensor, source_BE: torch.Tensor) -> torch.Tensor:
    """L_id = mean(1 − cos(e(I_swap), e(I_source))); both centred and of unit length (`identity.centred`). 0 to 2."""
    return (1 - (embedding_BE * source_BE).sum(-1)).mean()


def away_loss(
    embedding_BE: torch.Tensor,
    target_BE: torch.Tensor,
    *,
    bound: float = 0.0,
    weight_B: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean of max(0, cos − bound) to the identity that is to be replaced; both of unit length. Ours, not the paper's.

    `weight_B`: 0 for those that do not count (a person onto themselves).
    """
    excess_B = ((embedding_BE * target_BE).sum(-1) - bound).clamp_min(0)
    if weight_B is None:
        return excess_B.mean()
    return (excess_B * weight_B).sum() / weight_B.sum().clamp_min(1)


def latent_penalty(
    ws_BLD: torch.Tensor, target_BLD: torch.Tensor, w_std_D: torch.Tensor, *, rows: int | None = None
) -> torch.Tensor:
    """L_lp: mean squared distance of the swapped code to the target's, in units of the standard deviation of w.

    The paper takes the plain mean square; dividing by `w_std` only makes its coefficient mean the same for every
    generator. `rows`: only the first rows count.
    """
    return ((ws_BLD - target_BLD) / w_std_D)[:, :rows].square().mean()


def shape_loss(mesh_BK3: torch.Tensor, fused_BK3: torch.Tensor) -> torch.Tensor:
    """L_shape: mean absolute distance in the picture plane between the swapped face's mesh and the fused one.

    The paper compares landmarks of a licensed 3-D model with fused coefficients (identity from the source, the rest
    from the target); here the fused mesh comes from `shape.fusion.fuse`. Both meshes in percent of the crop's side, so
    that the coefficient is of the order of the paper's.
    """
    return 100 * (mesh_BK3[..., :2] - fused_BK3[..., :2]).abs().mean()


def openness_loss(mesh_BK3: torch.Tensor, target_BK3: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of how far eyes and mouth are open, in units of eye and mouth width."""
    eyes_B2, mouth_B = openness(mesh_BK3)
    target_eyes_B2, target_mouth_B = openness(target_BK3)
    return (eyes_B2 - target_eyes_B2).abs().mean() + (mouth_B - target_mouth_B).abs().mean()


def contour_loss(mesh_BK3: torch.Tensor, target_BK3: torch.Tensor) -> torch.Tensor:
    """Like `shape_loss`, over the contours of eyes and lips, each taken about its own centre.

    Holds the form of eyes and mouth (shut, narrowed, smiling) and leaves to the shape loss where they sit.
    """
    total = mesh_BK3.new_zeros(())
    for contour in (T.RIGHT_EYE, T.LEFT_EYE, T.OUTER_LIPS + T.INNER_LIPS):
        index = torch.tensor(contour, device=mesh_BK3.device)
        a_BN2, b_BN2 = mesh_BK3[:, index, :2], target_BK3[:, index, :2]
        difference = (a_BN2 - a_BN2.mean(1, keepdim=True)) - (b_BN2 - b_BN2.mean(1, keepdim=True))
        total = total + 100 * difference.abs().mean() / 3
    return total


def pooled_pixel_loss(img_BCHW: torch.Tensor, target_BCHW: torch.Tensor, cells: int = 16) -> torch.Tensor:
    """Mean absolute difference of pictures [-1, 1] averaged to cells × cells: keeps light, colour and background."""
    return (F.adaptive_avg_pool2d(img_BCHW, cells) - F.adaptive_avg_pool2d(target_BCHW, cells)).abs().mean()


def detail_loss(img_BCHW: torch.Tensor, guide_BCHW: torch.Tensor, trust_B1HW: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of detail, in full and at half the side, where the guide can be trusted.

    Guide and trust are what `shape.repose.repose` returns. Ours, not the paper's.
    """
    difference = (detail(img_BCHW) - detail(guide_BCHW)) * trust_B1HW
    levels = [difference, F.avg_pool2d(difference, 2)]
    return torch.stack([level.abs().mean() for level in levels]).mean() / trust_B1HW.mean().clamp_min(1e-2)


def feature_distance(
    maps: Sequence[torch.Tensor], wanted_maps: Sequence[torch.Tensor], trust_B1HW: torch.Tensor | None = None
) -> torch.Tensor:
    """Squared distance of feature maps [B, C, h, w] of unit length per place, mean of places and maps: [B], 0 to 4.

    LPIPS (Zhang et al., CVPR 2018) without its learnt weights, on the identity network's maps. `trust_B1HW`, in 0…1,
    weighs the places; None for all alike.
    """
    apart = []
    for a_BCHW, b_BCHW in zip(maps, wanted_maps, strict=True):
        squared_B1HW = (F.normalize(a_BCHW, dim=1) - F.normalize(b_BCHW, dim=1)).square().sum(1, keepdim=True)
        if trust_B1HW is None:
            apart.append(squared_B1HW.mean((1, 2, 3)))
        else:
            weight_B1HW = F.adaptive_avg_pool2d(trust_B1HW, (a_BCHW.shape[2], a_BCHW.shape[3]))
            apart.append((squared_B1HW * weight_B1HW).sum((1, 2, 3)) / weight_B1HW.sum((1, 2, 3)).clamp_min(1e-2))
    return torch.stack(apart).mean(0)
