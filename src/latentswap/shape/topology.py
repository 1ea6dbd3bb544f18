"""Which of the 468 mesh points are what.

"Right" and "left" are the person's own: the right eye is on the left of an unmirrored picture. Contours are closed and
ordered; lids and brows run from the outer end to the inner end. The numbers are MediaPipe Face Mesh's fixed topology.
"""

from typing import Final

Indices = tuple[int, ...]

MESH_POINTS: Final = 468
MESH_SIZE: Final = 192  # side of the mesh network's input, pixels

# Eye contours: from the outer corner along the lower lid to the inner corner and back along the upper lid.
RIGHT_EYE: Final[Indices] = (33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246)
LEFT_EYE: Final[Indices] = (263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466)

# Lids without the corners; index i of the upper lid lies above index i of the lower lid.
RIGHT_UPPER_LID: Final[Indices] = (246, 161, 160, 159, 158, 157, 173)
RIGHT_LOWER_LID: Final[Indices] = (7, 163, 144, 145, 153, 154, 155)
LEFT_UPPER_LID: Final[Indices] = (466, 388, 387, 386, 385, 384, 398)
LEFT_LOWER_LID: Final[Indices] = (249, 390, 373, 374, 380, 381, 382)

RIGHT_EYE_CORNERS: Final[Indices] = (33, 133)  # outer, inner
LEFT_EYE_CORNERS: Final[Indices] = (263, 362)

RIGHT_BROW_UPPER: Final[Indices] = (70, 63, 105, 66, 107)
RIGHT_BROW_LOWER: Final[Indices] = (46, 53, 52, 65, 55)
LEFT_BROW_UPPER: Final[Indices] = (300, 293, 334, 296, 336)
LEFT_BROW_LOWER: Final[Indices] = (276, 283, 282, 295, 285)
RIGHT_BROW: Final[Indices] = RIGHT_BROW_UPPER + RIGHT_BROW_LOWER
LEFT_BROW: Final[Indices] = LEFT_BROW_UPPER + LEFT_BROW_LOWER

# Lips: from the right mouth corner along the lower lip to the left corner and back along the upper lip.
OUTER_LIPS: Final[Indices] = (
    *(61, 146, 91, 181, 84, 17, 314, 405, 321, 375),
    *(291, 409, 270, 269, 267, 0, 37, 39, 40, 185),
)
INNER_LIPS: Final[Indices] = (
    *(78, 95, 88, 178, 87, 14, 317, 402, 318, 324),
    *(308, 415, 310, 311, 312, 13, 82, 81, 80, 191),
)
MOUTH_CORNERS: Final[Indices] = (61, 291)  # right, left; outer contour
INNER_MOUTH_CORNERS: Final[Indices] = (78, 308)
INNER_UPPER_LIP: Final[Indices] = (81, 82, 13, 312, 311)  # index i lies above index i of the lower lip
INNER_LOWER_LIP: Final[Indices] = (178, 87, 14, 317, 402)

# Outline, clockwise as seen in the picture, from the top of the forehead.
FACE_OVAL: Final[Indices] = (
    *(10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377),
    *(152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109),
)
CHIN: Final[int] = 152

NOSE_BRIDGE: Final[Indices] = (168, 6, 197, 195, 5)  # between the eyes, downwards
NOSE_TIP: Final[int] = 4
NOSE_BASE: Final[Indices] = (98, 97, 2, 326, 327)  # under the nostrils, from the person's right to the left
NOSE: Final[Indices] = (*NOSE_BRIDGE, NOSE_TIP, 1, *NOSE_BASE)

# Points that expression barely moves: bridge of the nose, eye corners, forehead, temples, cheekbones.
RIGID: Final[Indices] = (
    *(168, 6, 197, 195),
    *(33, 133, 362, 263),
    *(10, 109, 338, 67, 297, 103, 332, 54, 284),
    *(21, 251, 162, 389, 127, 356, 234, 454),
    *(116, 345, 227, 447, 143, 372, 34, 264),
)

# The 68-point scheme's six points an eye: outer corner, two of the upper lid, inner corner, two of the lower lid for
# the right eye; inner corner first for the left eye. Their mean stands for the eye in FFHQ alignment.
EYE_68_RIGHT: Final[Indices] = (33, 160, 158, 133, 153, 144)
EYE_68_LEFT: Final[Indices] = (362, 385, 387, 263, 373, 380)

# Five points, each the mean of a group: right eye, left eye, tip of the nose, right and left mouth corner.
FIVE_POINTS: Final[tuple[Indices, ...]] = (EYE_68_RIGHT, EYE_68_LEFT, (NOSE_TIP,), (61,), (291,))
