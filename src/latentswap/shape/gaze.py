"""Where the eyes look: the place of the iris between the corners of its eye.

Pure, batched, differentiable torch functions. Shape letters: B batch, E eyes (0 the person's right, 1 the left),
N points of an eye. An eye's own axes are those of the patch that the iris network sees: x from the outer corner to the
inner one, y downwards, so that a left eye is seen mirrored and both eyes look alike.

The corners are the iris network's own. The mesh only says where to look: its corners wander by 2 % of the eye's width
when the face is moved a little, and that would be read as a gaze.
"""

from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from latentswap.shape.iris import IRIS_SIZE, IrisNet
from latentswap.shape.measures import openness
from latentswap.shape.topology import LEFT_EYE_CORNERS, RIGHT_EYE_CORNERS

EYE_SPAN: Final = 2.3  # side of an eye's square in eye widths, as the iris network was trained
SHUT, OPEN = 0.15, 0.21  # openness (lid gap / eye width) at which gaze starts to count, and counts fully
NARROW, WIDE = 0.45, 0.75  # width of an eye over the wider eye's, likewise: the far eye of a turned head says little
_REDUCE_FROM = 384  # side of a crop from which on its eyes are larger than the network's input
_OUTER, _INNER = 0, 8  # corners among the contour's points


class Gaze(NamedTuple):
    """Gaze of both eyes and how far it is to be trusted."""

    gaze_BE2: Tensor  # eye widths: x from the outer corner (0) to the inner one (1), y below the line between them
    weight_BE: Tensor  # 0 (shut, or hidden by the turn of the head) to 1


def eye_frames(corners_BE22: Tensor) -> Tensor:
    """The eyes' own axes, [B, E, 2, 3]: a point in eye widths (see `Gaze`) → the plane that the corners are given in.

    corners_BE22: outer and inner corner of both eyes, (x, y). A left eye's frame turns the handedness.
    """
    outer_BE2, inner_BE2 = corners_BE22.unbind(2)
    x_BE2 = inner_BE2 - outer_BE2
    hand_E = corners_BE22.new_tensor((1.0, -1.0))
    y_BE2 = torch.stack((-x_BE2[..., 1] * hand_E, x_BE2[..., 0] * hand_E), dim=-1)
    return torch.stack((x_BE2, y_BE2, outer_BE2), dim=-1)


def mesh_corners(mesh_BK3: Tensor) -> Tensor:
    """Outer and inner corner of the right and the left eye in a mesh: [B, E, 2, 2]."""
    index = torch.tensor((RIGHT_EYE_CORNERS, LEFT_EYE_CORNERS), device=mesh_BK3.device)
    return mesh_BK3[:, index, :2]


def cut_eyes(img_BCHW: Tensor, corners_BE22: Tensor) -> Tensor:
    """Both eyes as the iris network sees them: [B, E, 3, 64, 64] in [0, 1], bilinear, differentiable in the pixels.

    Args:
        img_BCHW: RGB in [-1, 1]. At 256² an FFHQ-aligned face's eye is sampled pixel by pixel.
        corners_BE22: in fractions of the picture.
    """
    frames_BE23 = eye_frames(corners_BE22)
    # Patch (−1 to 1, pixel edges) → eye widths about the middle of the eye → picture (−1 to 1).
    middle_BE2 = frames_BE23[..., 2] + frames_BE23[..., 0] / 2
    theta_BE23 = torch.cat((frames_BE23[..., :2] * EYE_SPAN, 2 * middle_BE2[..., None] - 1), dim=-1)
    size = [2 * len(img_BCHW), 3, IRIS_SIZE, IRIS_SIZE]
    grid = F.affine_grid(theta_BE23.flatten(0, 1), size, align_corners=False)
    unit_BCHW = (img_BCHW.float().clamp(-1.0, 1.0) + 1.0) / 2.0
    twice_BCHW = unit_BCHW.repeat_interleave(2, dim=0)
    return F.grid_sample(twice_BCHW, grid, mode="bilinear", align_corners=False).unflatten(0, (-1, 2))


def from_patch(points: Tensor) -> Tensor:
    """Points [..., 2] of an eye's patch, in pixels, → eye widths in the frame that the patch was cut with."""
    return points * (EYE_SPAN / IRIS_SIZE) - points.new_tensor(((EYE_SPAN - 1) / 2, EYE_SPAN / 2))


def move(frames_BE23: Tensor, points_BEN2: Tensor) -> Tensor:
    """Points in eye widths → the plane of the frames, [B, E, N, 2]."""
    return points_BEN2 @ frames_BE23[..., :2].mT + frames_BE23[..., None, :, 2]


def found_corners(contour_BEN3: Tensor, corners_BE22: Tensor) -> Tensor:
    """The corners that the network found, [B, E, 2, 2], in the plane of the corners that the patch was cut with."""
    return move(eye_frames(corners_BE22), from_patch(contour_BEN3[..., [_OUTER, _INNER], :2]))


def eye_gaze(contour_N3: Tensor, iris_N3: Tensor) -> Tensor:
    """What the network found in a patch ([..., 71, 3] and [..., 5, 3], pixels) → gaze [..., 2] in eye widths."""
    outer_2, inner_2, iris_2 = contour_N3[..., _OUTER, :2], contour_N3[..., _INNER, :2], iris_N3[..., 0, :2]
    along_2, off_2 = inner_2 - outer_2, iris_2 - outer_2
    x = (off_2 * along_2).sum(-1)
    y = along_2[..., 0] * off_2[..., 1] - along_2[..., 1] * off_2[..., 0]
    return torch.stack((x, y), dim=-1) / along_2.square().sum(-1, keepdim=True)


def gaze_weight(mesh_BK3: Tensor) -> Tensor:
    """How far gaze can be told, [B, E], 0 to 1, without a gradient: open eyes that are not turned away."""
    with torch.no_grad():
        outer_BE2, inner_BE2 = mesh_corners(mesh_BK3).unbind(2)
        width_BE = (inner_BE2 - outer_BE2).norm(dim=-1)
        ratio_BE = width_BE / width_BE.amax(dim=1, keepdim=True)
        open_BE, _ = openness(mesh_BK3)
        seen_BE = ((open_BE - SHUT) / (OPEN - SHUT)).clamp(0.0, 1.0)
        return seen_BE * ((ratio_BE - NARROW) / (WIDE - NARROW)).clamp(0.0, 1.0)


def measure_gaze(net: IrisNet, img_BCHW: Tensor, mesh_BK3: Tensor) -> Gaze:
    """Gaze in FFHQ-aligned crops, differentiable in the pixels.

    Two passes: the first, without a gradient, finds the corners that the second is cut with. One pass alone draws them
    towards the mesh's and sees a fifth less of a gaze.

    Args:
        net: the iris network.
        img_BCHW: RGB [B, 3, S, S] in [-1, 1] (values outside are clamped without a gradient), any S.
        mesh_BK3: meshes in fractions of the crop; they only say where to look and get no gradient.
    """
    if img_BCHW.shape[-1] > _REDUCE_FROM:
        img_BCHW = F.interpolate(img_BCHW, size=256, mode="area")
    with torch.no_grad():
        corners_BE22 = mesh_corners(mesh_BK3)
        contour_BEN3, _ = _look(net, img_BCHW, corners_BE22)
        corners_BE22 = found_corners(contour_BEN3, corners_BE22)
    return Gaze(eye_gaze(*_look(net, img_BCHW, corners_BE22)), gaze_weight(mesh_BK3))


def _look(net: IrisNet, img_BCHW: Tensor, corners_BE22: Tensor) -> tuple[Tensor, Tensor]:
    contour_BN3, iris_BN3 = net(cut_eyes(img_BCHW, corners_BE22).flatten(0, 1))
    return contour_BN3.unflatten(0, (-1, 2)), iris_BN3.unflatten(0, (-1, 2))


def gaze_turn(gaze_BE2: Tensor, target_BE2: Tensor, weight_BE: Tensor) -> Tensor:
    """From the target's direction to this one's, [B, 2]: eye widths to the picture's right and down; 0 if none is seen.

    What both eyes share. Where the iris sits in each eye differs between people who look the same way (by 0.05): that
    is the cut of the eye, not its direction, and the source's to keep.
    """
    hand_E2 = gaze_BE2.new_tensor(((1.0, 1.0), (-1.0, 1.0)))  # towards the nose: the picture's right or its left
    share_BE = weight_BE / weight_BE.sum(1, keepdim=True).clamp_min(1e-6)
    return ((gaze_BE2 - target_BE2) * hand_E2 * share_BE[..., None]).sum(1)


def gaze_loss(gaze_BE2: Tensor, target_BE2: Tensor, weight_BE: Tensor) -> Tensor:
    """Mean length of `gaze_turn` in percent of an eye's width, over the people whose eyes can be told; 0 if none can.

    weight_BE: product of both pictures' weights.
    """
    turn_B2 = gaze_turn(gaze_BE2, target_BE2, weight_BE)
    length_B = turn_B2.square().sum(-1).add(1e-8).sqrt()  # a finite slope where they agree
    weight_B = weight_BE.amax(1)
    return 100 * (length_B * weight_B).sum() / weight_B.sum().clamp_min(1.0)
