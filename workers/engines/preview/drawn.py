"""Whether a portrait is a drawing: a photographic mouth must not be set into lines and flat colours."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from workers.engines.preview import landmarks
from workers.engines.preview.shaping import Pixels, luminance

_FACE_WIDTH = 160  # pixels at which the face is looked at
# Measured on nine photos, four filtered ones and 41 paintings of a game, which are painted like photos.
_INK = 0.42  # of the light of the skin, by which a line of ink is darker than what is beside it
_FLAT = 0.008  # of the light of the skin: paper and flat colours vary by less, skin by more
_MUCH_INK = 0.11  # share of the lower face; old wrinkled skin has up to 0.04
_SOME_INK, _MUCH_FLAT = 0.03, 0.15


def is_drawn(image: Pixels, points: npt.NDArray[np.float64]) -> bool:
    """True when the lower face, without mouth and nostrils, is made of ink, or of some ink and flat colours."""
    low, high = points[landmarks.OVAL, :2].min(axis=0), points[landmarks.OVAL, :2].max(axis=0)
    scale = _FACE_WIDTH / max(1.0, float(high[0] - low[0]))
    # Only the face is blurred before it is made smaller, for a photo may have many million pixels.
    margin = 4 / scale
    (left, top), (right, bottom) = (np.maximum(corner, 0).astype(int) for corner in (low - margin, high + margin + 1))
    source = image[top:bottom, left:right]
    if not source.size:
        return False
    source = source if scale >= 1 else cv2.GaussianBlur(source, (0, 0), 0.4 / scale)
    size = _FACE_WIDTH, max(8, int((high[1] - low[1]) * scale))
    matrix = np.array([[scale, 0, (left - low[0]) * scale], [0, scale, (top - low[1]) * scale]])
    light = luminance(cv2.warpAffine(source, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))
    places = ((points[:, :2] - low) * scale).astype(np.int32)

    def part(where: list[int], grow: int) -> npt.NDArray[np.bool_]:
        mask = cv2.fillPoly(np.zeros(light.shape, np.uint8), [cv2.convexHull(places[where])], 1)
        kernel = np.ones((abs(grow), abs(grow)), np.uint8)
        return np.asarray((cv2.dilate if grow > 0 else cv2.erode)(mask, kernel) > 0)

    face = part(landmarks.OVAL, -7) & (np.arange(size[1])[:, None] > places[landmarks.NOSE_BRIDGE, 1])
    face &= ~part(landmarks.UPPER_OUTER_LIP + landmarks.LOWER_OUTER_LIP, 9) & ~part(landmarks.NOSTRILS, 7)
    if not face.any():
        return False
    skin = max(1.0, float(np.percentile(light[face], 70)))
    lines = cv2.morphologyEx(light, cv2.MORPH_BLACKHAT, np.ones((9, 9), np.uint8))
    mean = cv2.blur(light, (5, 5))
    varies = np.sqrt(np.maximum(cv2.blur(light * light, (5, 5)) - mean * mean, 0))
    ink, flat = float((lines > _INK * skin)[face].mean()), float((varies < _FLAT * skin)[face].mean())
    return ink > _MUCH_INK or (ink > _SOME_INK and flat > _MUCH_FLAT)
