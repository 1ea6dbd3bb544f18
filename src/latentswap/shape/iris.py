"""MediaPipe's iris network (contour of one eye, five points of its iris) as a frozen, differentiable torch network.

Ablavatski et al., "Real-time Pupil Tracking from Monocular Video for Digital Puppetry", 2020.
"""

from typing import Final

from torch import Tensor

from latentswap.shape.graph import GraphNet

IRIS_KIND: Final = "shape/mediapipe-iris"
IRIS_SIZE: Final = 64  # side of the network's input, pixels
CONTOUR_POINTS: Final = 71
IRIS_POINTS: Final = 5  # the centre, then four points of the rim


class IrisNet(GraphNet):
    """The iris network: frozen, float32, differentiable with respect to its input, any batch size."""

    kind = IRIS_KIND
    size = IRIS_SIZE
    outputs = frozenset({"contour", "iris"})

    def forward(self, eye_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Find the contour and the iris of one eye that fills 1 / 2.3 of each picture.

        Args:
            eye_BCHW: RGB [B, 3, 64, 64] in [0, 1]; a person's left eye as it is, a right eye mirrored.

        Returns:
            contour_BN3 [B, 71, 3] (the first 16 points are the lids' edges) and iris_BN3 [B, 5, 3]: x, y in input
            pixels (0 to 64), z in the same unit.
        """
        values, batch = self.walk(eye_BCHW), eye_BCHW.shape[0]
        contour_BN3 = values["contour"].reshape(batch, CONTOUR_POINTS, 3)
        return contour_BN3, values["iris"].reshape(batch, IRIS_POINTS, 3)
