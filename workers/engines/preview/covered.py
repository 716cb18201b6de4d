"""Whether a mask, a scarf or a cup hides the mouth: lips must not be drawn into cloth."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from workers.engines.preview import landmarks
from workers.engines.preview.shaping import Floats, Pixels

# Distances in CIE L*a*b*, measured on photos and paintings, bare, bearded and with cloth laid over them.
_CLOTH_DIFFERS = 26.0  # cloth from the upper face; bare skin differs by up to 21
_CLOTH_EVEN = 10.0  # spread of cloth; beards have more
_LIPS_SHOW = 7.0  # lips from what is around them, where they may be cloth
_POINT_DIFFERS = 9.0


def is_mouth_covered(image: Pixels, points: npt.NDArray[np.float64]) -> bool:
    """True when the lower face is of one colour, lips and all, and that is not the upper face's.

    A bare hand is not noticed: it is skin.
    """
    radius = max(
        1, round(0.02 * float(np.linalg.norm(points[landmarks.LEFT_EDGE, :2] - points[landmarks.RIGHT_EDGE, :2])))
    )
    upper, lower, lips = (
        _colours(image, points[where, :2], radius)
        for where in (landmarks.UPPER_FACE, landmarks.LOWER_FACE, landmarks.LIPS)
    )
    skin, cloth, lip = (np.median(colours, axis=0) for colours in (upper, lower, lips))
    differs = np.linalg.norm((lower - skin)[:, 1:], axis=1) > _POINT_DIFFERS
    differs |= np.abs(lower[:, 0] - skin[0]) > 3 * _POINT_DIFFERS
    even = float(np.median(np.linalg.norm(lower - cloth, axis=1)))
    return bool(
        differs.all()
        and np.linalg.norm(skin - cloth) > _CLOTH_DIFFERS
        and even < _CLOTH_EVEN
        and np.linalg.norm(lip - cloth) < _LIPS_SHOW
    )


def _colours(image: Pixels, places: npt.NDArray[np.float64], radius: int) -> Floats:
    """Median colour around each place, L*a*b* [n, 3]."""
    height, width = image.shape[:2]
    found = []
    for x, y in places:
        column, row = int(min(max(x, 0), width - 1)), int(min(max(y, 0), height - 1))
        part = image[max(0, row - radius) : row + radius + 1, max(0, column - radius) : column + radius + 1]
        found.append(np.median(part.reshape(-1, 3), axis=0))
    return np.asarray(cv2.cvtColor(np.asarray([found], np.float32) / 255, cv2.COLOR_BGR2LAB)[0], np.float32)
