"""Whether something hides the mouth (a mask, a hand, a microphone, a cup): lips must not be drawn into it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from workers.engines.preview import landmarks
from workers.engines.preview.axes import Axes
from workers.engines.preview.face import Doubles, FaceReader
from workers.engines.preview.shaping import Floats, Pixels

# Distances in CIE L*a*b*, measured on photos and paintings, bare, bearded and with cloth laid over them.
_CLOTH_DIFFERS = 26.0  # cloth from the upper face; bare skin differs by up to 21
_CLOTH_EVEN = 10.0  # spread of cloth; beards have more
_LIPS_SHOW = 7.0  # lips from what is around them, where they may be cloth
_POINT_DIFFERS = 9.0

SURE = 4.2  # `doubt` above which something hides the mouth
DOUBTFUL = 1.0  # above which it may
# `doubt`, fitted on photos and drawings, plain and in bad versions, and on things laid over them.
_BASE, _OF_TREMBLING, _OF_LINE, _OF_CONTRAST, _OF_GAP = 3.66, 6.42, 4.76, 1.02, 17.3
_FACE_WIDTH = 200  # pixels at which the face is looked at; smaller ones stay as they are
_STEPS = 40  # of the mouth's picture to half its width
_LINE = 3.0  # L*, by which the line between the lips is darker than what is above and below it
_LIDS = sorted({*landmarks.RIGHT_UPPER_LID, *landmarks.RIGHT_LOWER_LID})
_LIDS += sorted({*landmarks.LEFT_UPPER_LID, *landmarks.LEFT_LOWER_LID})
_OUTLINE = landmarks.UPPER_OUTER_LIP + landmarks.LOWER_OUTER_LIP
_INSIDE = landmarks.UPPER_INNER_LIP + landmarks.LOWER_INNER_LIP


@dataclass(frozen=True)
class MouthSigns:
    """What tells lips that show from lips that the mesh only guesses."""

    trembles: float  # how much more than the lids' the lips' landmarks differ between regions; lips that show: about 1
    line: float  # share of the mouth's width in which there is a dark line between the lips, 0..1
    contrast: float  # colour of the lips from that of what is around them, L*a*b*
    gap: float  # between the lips in mouth widths: what hides a mouth is never taken for an open one

    @property
    def doubt(self) -> float:
        """How much speaks for something before the mouth: the logarithm of its odds, by logistic regression."""
        return (
            _BASE
            + _OF_TREMBLING * math.log(max(self.trembles, 0.1))
            - _OF_LINE * self.line
            - _OF_CONTRAST * math.log1p(self.contrast)
            - _OF_GAP * min(self.gap, 0.2)
        )


def is_mouth_covered(image: Pixels, points: Doubles, reader: FaceReader) -> bool:
    """True when the mouth is certainly hidden: by cloth of one colour, or by anything that leaves no sign of lips."""
    return is_cloth(image, points) or look_for_mouth(image, points, reader).doubt > SURE


def look_for_mouth(image: Pixels, points: Doubles, reader: FaceReader) -> MouthSigns:
    """The signs of a mouth where the mesh of this face, [468, 3] in pixels of `image`, says that it is."""
    face, at = _cut_face(image, points[:, :2])
    seen = reader.mesh_beside(face, at)
    spread = np.linalg.norm(seen.std(axis=0), axis=1)
    width = np.linalg.norm(seen[:, landmarks.LEFT_CORNER] - seen[:, landmarks.RIGHT_CORNER], axis=1)
    gap = np.linalg.norm(seen[:, landmarks.LOWER_LIP_CENTRE] - seen[:, landmarks.UPPER_LIP_CENTRE], axis=1)

    right, left = at[landmarks.RIGHT_CORNER], at[landmarks.LEFT_CORNER]
    half = max(2.0, float(np.linalg.norm(left - right)) / 2)
    axes = Axes.along(at[landmarks.RIGHT_EYE_OUTER], at[landmarks.LEFT_EYE_OUTER], (right + left) / 2)
    across = np.arange(-1.7, 1.7, 1 / _STEPS, dtype=np.float32)
    down = np.arange(-1.1, 1.5, 1 / _STEPS, dtype=np.float32)
    soft = cv2.GaussianBlur(face, (0, 0), 0.45 * half / _STEPS) if half > 1.2 * _STEPS else face
    grid = axes.picture_grid(across * np.float32(half), down * np.float32(half))
    mouth = cv2.remap(soft, *grid, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    lab = cv2.cvtColor(mouth.astype(np.float32) / 255, cv2.COLOR_BGR2LAB)
    places = axes.to_local(at) / half
    return MouthSigns(
        trembles=float(spread[_OUTLINE + _INSIDE].mean() / max(float(spread[_LIDS].mean()), 1e-3)),
        line=_dark_line(lab[..., 0], across, down, places),
        contrast=_contrast(lab, (places - [across[0], down[0]]) * _STEPS),
        gap=float((gap / np.maximum(width, 1.0)).mean()),
    )


def _cut_face(image: Pixels, points: Doubles) -> tuple[Pixels, Doubles]:
    """The face's part of a photo, at most of the usual width, and the landmarks in it."""
    low, high = points.min(axis=0), points.max(axis=0)
    margin = 0.7 * float((high - low).max())
    height, width = image.shape[:2]
    left, top = (int(max(0, edge - margin)) for edge in low)
    right, bottom = (int(min(most, edge + margin + 1)) for edge, most in zip(high, (width, height), strict=True))
    face = image[top : max(bottom, top + 1), left : max(right, left + 1)]
    scale = _FACE_WIDTH / max(1.0, float(high[0] - low[0]))
    if scale >= 1:
        return np.ascontiguousarray(face), points - [left, top]
    size = max(1, round(face.shape[1] * scale)), max(1, round(face.shape[0] * scale))
    ratio = np.array([size[0] / face.shape[1], size[1] / face.shape[0]])
    return cv2.resize(face, size, interpolation=cv2.INTER_AREA), (points - [left, top] + 0.5) * ratio - 0.5


def _dark_line(light: Floats, across: Floats, down: Floats, places: Doubles) -> float:
    """Share of the columns in which a row near the lips' inner edges is darker than what is above and below it."""
    light = cv2.GaussianBlur(light, (0, 0), 1.0)
    edges = [np.interp(across, *places[where].T) for where in (landmarks.UPPER_INNER_LIP, landmarks.LOWER_INNER_LIP)]
    reach = round(0.35 * _STEPS)
    found = []
    for column in np.flatnonzero(np.abs(across) < 0.8):
        low, high = min(edge[column] for edge in edges) - 0.16, max(edge[column] for edge in edges) + 0.16
        rows = np.flatnonzero((down > low) & (down < high))
        if len(rows):
            row = int(rows[light[rows, column].argmin()])
            beside = light[max(0, row - reach) : row, column], light[row + 1 : row + 1 + reach, column]
            found.append(min(float(part.max(initial=0)) for part in beside) - float(light[row, column]) > _LINE)
    return float(np.mean(found)) if found else 0.0


def _contrast(lab: Floats, places: Doubles) -> float:
    """Distance of the lips' median colour from that of the skin around them."""

    def part(where: list[int], grow: int) -> npt.NDArray[np.bool_]:
        hull = cv2.convexHull(places[where].astype(np.float32)).astype(np.int32)
        mask = cv2.fillPoly(np.zeros(lab.shape[:2], np.uint8), [hull], 1)
        return np.asarray(cv2.dilate(mask, np.ones((grow, grow), np.uint8)) > 0)

    whole, around = part(_OUTLINE, 1), part(_OUTLINE, 27) & ~part(_OUTLINE, 9)
    lips = whole & ~part(_INSIDE, 3)
    lips = lips if lips.sum() >= 20 else whole
    if not lips.any() or not around.any():
        return 0.0
    return float(np.linalg.norm(np.median(lab[lips], axis=0) - np.median(lab[around], axis=0)))


def is_cloth(image: Pixels, points: Doubles) -> bool:
    """True when the lower face is of one colour, lips and all, and that is not the upper face's."""
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
