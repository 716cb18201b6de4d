"""Which of the 468 points of the face mesh is where.  Left and right are the person's own."""

from __future__ import annotations

# fmt: off
# The outline of the face, from the top of the forehead.
OVAL = [10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152,
        148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109]
JAW = [132, 58, 172, 136, 150, 149, 176, 148, 152, 377, 400, 378, 379, 365, 397, 288, 361]
FOREHEAD, CHIN, NOSE_BASE = 10, 152, 2
NOSE_ROOT, NOSE_BRIDGE = 168, 197  # between the eyes, and half way to the tip
NOSTRILS = [64, 294, 2, 19, 1, 98, 327]
RIGHT_EDGE, LEFT_EDGE = 234, 454  # of the face, level with the ears
AROUND_MOUTH = [205, 425, 206, 426, 164, 18, 200, 199, 175, 50, 280]
RIGHT_CHEEK, LEFT_CHEEK = [205, 187, 50, 36], [425, 411, 280, 266]
UPPER_FACE = [151, 9, 108, 337, 6, 197, 118, 347, 101, 330]  # forehead, bridge of the nose, under the eyes
LOWER_FACE = [164, 167, 393, 205, 425, 187, 411, 212, 432, 200, 199, 18, 176, 400]  # what a mask would cover

RIGHT_EYE_OUTER, LEFT_EYE_OUTER = 33, 263
# Each from corner to corner, left to right in the picture.
RIGHT_UPPER_LID = [33, 246, 161, 160, 159, 158, 157, 173, 133]
RIGHT_LOWER_LID = [33, 7, 163, 144, 145, 153, 154, 155, 133]
LEFT_UPPER_LID = [362, 398, 384, 385, 386, 387, 388, 466, 263]
LEFT_LOWER_LID = [362, 382, 381, 380, 374, 373, 390, 249, 263]
RIGHT_BROW = [46, 53, 52, 65, 55]
LEFT_BROW = [285, 295, 282, 283, 276]

RIGHT_CORNER, LEFT_CORNER = 61, 291  # of the mouth
RIGHT_INNER_CORNER, LEFT_INNER_CORNER = 78, 308
UPPER_INNER_LIP = [78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308]
LOWER_INNER_LIP = [78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308]
UPPER_OUTER_LIP = [61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291]
LOWER_OUTER_LIP = [61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291]
UPPER_LIP_CENTRE, LOWER_LIP_CENTRE = 13, 14
LIPS = [0, 37, 267, 17, 84, 314, 91, 321]
# fmt: on
