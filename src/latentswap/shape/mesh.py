"""MediaPipe's face mesh (468 three-dimensional points) as a frozen, differentiable torch network.

Kartynnik et al., "Real-time Facial Surface Geometry from Monocular Video on Mobile GPUs", 2019.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from latentswap.shape.graph import GraphNet
from latentswap.shape.topology import MESH_POINTS, MESH_SIZE

MESH_KIND = "shape/mediapipe-mesh"

# Where the network looks in an FFHQ-aligned crop: a square with the crop's side (1.5 times the mesh's box, which
# is 0.66 of the crop on generated faces, centred at (0.50, 0.59)), moved down by a whole number of input pixels.
# Against the mean of jittered, individually refined squares this one square is off by 0.0039 of the crop (root mean
# square); the jitter itself makes 0.003. Without the shift: 0.0043.
CROP_ROI_SHIFT = 17  # input pixels: the square's centre is at (0.5, 0.5 + 17 / 192) of the crop


class MeshNet(GraphNet):
    """The face mesh network: frozen, float32, differentiable with respect to its input, any batch size."""

    kind = MESH_KIND
    size = MESH_SIZE
    outputs = frozenset({"mesh", "score"})

    def forward(self, img_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Find the mesh of one face that fills about two thirds of each picture.

        Args:
            img_BCHW: RGB [B, 3, 192, 192] in [0, 1], which is what the network was trained on: in [-1, 1] it also finds
                faces, but moves 14 % more when the square is shifted and takes a cat for a person.

        Returns:
            mesh_BK3 [B, 468, 3]: x, y in input pixels (0 to 192), z in the same unit, smaller towards the camera;
            score_B: probability that the picture shows a face; the logit is 30 to 60 on a face, −11 on plain grey.
        """
        values, batch = self.walk(img_BCHW), img_BCHW.shape[0]
        mesh_BK3 = values["mesh"].reshape(batch, MESH_POINTS, 3)
        return mesh_BK3, torch.sigmoid(values["score"].reshape(batch))


def crop_mesh(net: MeshNet, img_BCHW: Tensor) -> Tensor:
    """Mesh of FFHQ-aligned crops, differentiable in the pixels.

    Args:
        net: the mesh network.
        img_BCHW: RGB [B, 3, S, S] in [-1, 1] (values outside are clamped without a gradient), any S.

    Returns:
        mesh_BK3 [B, 468, 3] in fractions of the crop: x, y (0 to 1, pixel-edge convention), z in the same unit.
    """
    unit_BCHW = (img_BCHW.float().clamp(-1.0, 1.0) + 1.0) / 2.0
    if unit_BCHW.shape[-2:] != (MESH_SIZE, MESH_SIZE):
        unit_BCHW = F.interpolate(
            unit_BCHW, size=(MESH_SIZE, MESH_SIZE), mode="bilinear", align_corners=False, antialias=True
        )
    shifted_BCHW = F.pad(unit_BCHW[:, :, CROP_ROI_SHIFT:], (0, 0, 0, CROP_ROI_SHIFT))
    mesh_BK3, _ = net(shifted_BCHW)
    shift_3 = mesh_BK3.new_tensor((0.0, CROP_ROI_SHIFT, 0.0))
    return (mesh_BK3 + shift_3) / MESH_SIZE
