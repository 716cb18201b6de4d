"""Reading a face: where it is, its 468 landmarks, and which pixels are the person.

Three MediaPipe models, read by OpenCV's dnn module on the CPU.  The anchors, boxes and regions follow MediaPipe's own
graphs (face_detection_short_range, face_landmark, selfie_segmentation).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from farm.errors import ConfigError
from workers.engines.preview import face_models
from workers.engines.preview.landmarks import LEFT_EYE_OUTER, RIGHT_EYE_OUTER
from workers.engines.preview.shaping import Floats, Pixels

Doubles = npt.NDArray[np.float64]

_DETECTOR_SIDE = 128
_MESH_SIDE = 192
_MATTE_SIDE = 256
_MESH_MARGIN = 1.5  # side of the region that the mesh looks at, in face sizes
_SCORE = 0.5
_TILE_SCORE = 0.6  # parts of a picture raise more false alarms than the whole
_OVERLAP = 0.3
# Regions beside the usual one, of which a face that shows gives the same landmarks: right and down in shares of the
# side, size, turn in radians.
_BESIDE = ((0.04, 0, 1, 0), (-0.04, 0, 1, 0), (0, 0.04, 1, 0), (0, -0.04, 1, 0))
_BESIDE += ((0, 0, 1.1, 0), (0, 0, 0.92, 0), (0, 0, 1, 0.12), (0, 0, 1, -0.12))
# The detector knows faces of at least about a tenth of what it looks at; smaller ones are searched in these tiles.
_TILES = ((0.6, 2), (0.3, 4), (0.18, 7))  # side as a share of the picture's longer side, tiles along the longer side


@dataclass(frozen=True)
class Detection:
    """One face found, in pixels of the picture."""

    score: float
    box: Doubles  # [4]: left, top, right, bottom
    eyes: Doubles  # [2, 2]: x, y of the person's right and left eye

    @property
    def size(self) -> float:
        """The longer side of the box."""
        return float(max(self.box[2] - self.box[0], self.box[3] - self.box[1]))


@dataclass(frozen=True)
class Mesh:
    """The landmarks of one face."""

    points: Doubles  # [468, 3]: x, y in pixels; z in the same unit, smaller is nearer
    presence: float  # 0..1, that a face is there at all


class FaceReader:
    """The three networks, loaded.  Raises ConfigError when they are missing or damaged."""

    def __init__(self, models: Mapping[str, Path] | None = None) -> None:
        models = models if models is not None else face_models.checked_models()
        self._detector = _read_net(models, face_models.DETECTOR.name)
        self._mesh = _read_net(models, face_models.MESH.name)
        self._matte = _read_net(models, face_models.MATTE.name)
        self._anchors = _anchors()

    def warm_up(self) -> None:
        """Run each network once: its first run is several times slower than the next ones."""
        grey = np.full((_MATTE_SIDE, _MATTE_SIDE, 3), 128, np.uint8)
        self._detect(grey, _SCORE)
        self._mesh_once(grey, np.array([128.0, 128.0]), _MESH_SIDE, 0.0)
        self.matte(grey)

    def detect(self, bgr: Pixels) -> list[Detection]:
        """Faces in a picture [H, W, 3], the most prominent first (size times score)."""
        found = self._detect(bgr, _SCORE)
        height, width = bgr.shape[:2]
        for share, along in _TILES:
            if found:
                break
            side = math.ceil(max(height, width) * share)
            for top in _tile_starts(height, side, along):
                for left in _tile_starts(width, side, along):
                    shift = np.array([left, top], np.float64)
                    for face in self._detect(bgr[top : top + side, left : left + side], _TILE_SCORE):
                        found.append(Detection(face.score, face.box + np.tile(shift, 2), face.eyes + shift))
            found = _merge(found)
        return sorted(found, key=lambda face: -face.size * face.score)

    def mesh(self, bgr: Pixels, face: Detection) -> Mesh:
        """Landmarks of a detected face."""
        dx, dy = face.eyes[1] - face.eyes[0]
        centre = (face.box[:2] + face.box[2:]) / 2
        return self._mesh_twice(bgr, centre, _MESH_MARGIN * face.size, math.atan2(dy, dx))

    def mesh_again(self, bgr: Pixels, points: Doubles) -> Mesh:
        """Landmarks of a face whose landmarks are roughly known."""
        return self._mesh_twice(bgr, *_mesh_region(points))

    def mesh_at(self, bgr: Pixels, points: Doubles, scale: float = 1.0, lower: float = 0.0) -> Mesh:
        """Landmarks from one look at a region `scale` times as large as usual, moved down by `lower` of its side.

        What differs between such looks at one face is the noise of the mesh.
        """
        centre, side, angle = _mesh_region(points)
        down = np.array([-math.sin(angle), math.cos(angle)])
        return self._mesh_once(bgr, centre + lower * side * down, scale * side, angle)

    def mesh_beside(self, bgr: Pixels, points: Doubles) -> Doubles:
        """The landmarks [8, 468, 2] of a face whose landmarks are known, seen in regions a little beside the usual one.

        Where they differ the mesh guesses: a part of the face is hidden.
        """
        centre, side, angle = _mesh_region(points)
        return np.stack(
            [
                self._mesh_once(bgr, centre + side * np.array([right, down]), side * size, angle + turn).points[:, :2]
                for right, down, size, turn in _BESIDE
            ]
        )

    def matte(self, bgr: Pixels) -> Floats:
        """How much each pixel belongs to a person, float32 [H, W] in 0..1."""
        height, width = bgr.shape[:2]
        small = cv2.resize(bgr, (_MATTE_SIDE, _MATTE_SIDE), interpolation=cv2.INTER_AREA)
        self._matte.setInput(cv2.dnn.blobFromImage(small, 1 / 255.0, swapRB=True))
        person = self._matte.forward().reshape(_MATTE_SIDE, _MATTE_SIDE)
        # The grid of 1/255 hides last-bit differences between builds.
        person = np.round(np.clip(person, 0, 1) * 255).astype(np.float32) / 255
        return np.clip(cv2.resize(person, (width, height), interpolation=cv2.INTER_CUBIC), 0, 1)

    def _detect(self, bgr: Pixels, threshold: float) -> list[Detection]:
        height, width = bgr.shape[:2]
        side = max(height, width)
        scale = _DETECTOR_SIDE / side
        small_width, small_height = max(1, round(width * scale)), max(1, round(height * scale))
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        small = cv2.resize(bgr, (small_width, small_height), interpolation=how)
        left, top = (_DETECTOR_SIDE - small_width) // 2, (_DETECTOR_SIDE - small_height) // 2
        right, bottom = _DETECTOR_SIDE - small_width - left, _DETECTOR_SIDE - small_height - top
        square = cv2.copyMakeBorder(small, top, bottom, left, right, cv2.BORDER_CONSTANT)
        self._detector.setInput(cv2.dnn.blobFromImage(square, 1 / 127.5, mean=(127.5,) * 3, swapRB=True))
        raw_scores, raw_boxes = self._detector.forward(["classificators", "regressors"])
        scores = 1 / (1 + np.exp(-np.clip(raw_scores.reshape(-1).astype(np.float64), -50, 50)))
        above = np.flatnonzero(scores > threshold)
        offsets = raw_boxes.reshape(-1, 16)[above].astype(np.float64) / _DETECTOR_SIDE
        anchors = self._anchors[above]
        centre, extent = offsets[:, :2] + anchors, offsets[:, 2:4]
        eyes = offsets[:, 4:8].reshape(-1, 2, 2) + anchors[:, None]
        corners = np.stack([centre - extent / 2, centre + extent / 2], axis=1)
        shift = np.array([left, top])
        corners, eyes = (corners * _DETECTOR_SIDE - shift) / scale, (eyes * _DETECTOR_SIDE - shift) / scale
        return _merge(
            [
                Detection(float(score), box.reshape(4), pair)
                for score, box, pair in zip(scores[above], corners, eyes, strict=True)
            ]
        )

    def _mesh_twice(self, bgr: Pixels, centre: Doubles, side: float, angle: float) -> Mesh:
        """The second look uses the region that the first look's landmarks ask for, as a tracker would."""
        first = self._mesh_once(bgr, centre, side, angle)
        return self._mesh_once(bgr, *_mesh_region(first.points))

    def _mesh_once(self, bgr: Pixels, centre: Doubles, side: float, angle: float) -> Mesh:
        scale = side / _MESH_SIDE
        cos, sin, half = math.cos(angle) * scale, math.sin(angle) * scale, _MESH_SIDE / 2
        to_picture = np.array(
            [[cos, -sin, centre[0] - half * cos + half * sin], [sin, cos, centre[1] - half * sin - half * cos]]
        )
        if scale > 3:  # a much larger face is blurred first, or the sampling would alias
            bgr = cv2.GaussianBlur(bgr, (0, 0), 0.4 * scale)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        region = cv2.warpAffine(bgr, to_picture, (_MESH_SIDE, _MESH_SIDE), flags=flags)
        self._mesh.setInput(cv2.dnn.blobFromImage(region, 1 / 255.0, swapRB=True))
        landmarks, flag = self._mesh.forward(["conv2d_21", "conv2d_31"])
        local = landmarks.reshape(468, 3).astype(np.float64)
        flat = local[:, :2] @ to_picture[:, :2].T + to_picture[:, 2]
        points = np.concatenate([flat, local[:, 2:] * scale], axis=1)
        return Mesh(points, 1 / (1 + math.exp(-float(np.clip(flag.reshape(-1)[0], -50, 50)))))


def _read_net(models: Mapping[str, Path], name: str) -> Any:
    # OpenCV 5 has two engines; only the classic one gives all outputs of these models, and only when given a path.
    engine = getattr(cv2.dnn, "ENGINE_CLASSIC", None)
    choice = () if engine is None else (engine,)
    try:
        return cv2.dnn.readNetFromTFLite(str(models[name]), *choice)
    except cv2.error as error:
        raise ConfigError(f"this OpenCV ({cv2.__version__}) cannot read the face model {name}: {error.err}") from error


def _anchors() -> Doubles:
    """Centres [896, 2] of the detector's anchors, in 0..1: a grid of 16 with 2 each, then a grid of 8 with 6 each."""
    grids = []
    for cells, each in ((16, 2), (8, 6)):
        y, x = np.mgrid[:cells, :cells]
        centres = np.stack([(x + 0.5) / cells, (y + 0.5) / cells], axis=-1).reshape(-1, 2)
        grids.append(np.repeat(centres, each, axis=0))
    return np.concatenate(grids)


def _merge(faces: list[Detection]) -> list[Detection]:
    """Weighted non-maximum suppression: boxes that overlap become their mean, weighted by score."""
    waiting = sorted(faces, key=lambda face: -face.score)
    merged = []
    while waiting:
        best = waiting[0]
        same = [face for face in waiting if _overlap(best.box, face.box) > _OVERLAP] or [best]
        waiting = [face for face in waiting if all(face is not other for other in same)]
        weights = np.array([face.score for face in same])
        weights /= weights.sum()
        box = np.tensordot(weights, np.stack([face.box for face in same]), axes=1)
        eyes = np.tensordot(weights, np.stack([face.eyes for face in same]), axes=1)
        merged.append(Detection(best.score, box, eyes))
    return merged


def _overlap(a: Doubles, b: Doubles) -> float:
    """Intersection over union of two boxes."""
    inner = np.prod(np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None))
    union = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - inner
    return float(inner / union) if union > 0 else 0.0


def _tile_starts(length: int, side: int, along: int) -> list[int]:
    """Evenly spread starts of tiles that together cover `length`."""
    if side >= length:
        return [0]
    count = max(2, min(along, math.ceil((length - side) / (side * 0.75)) + 1))
    return sorted({round(k * (length - side) / (count - 1)) for k in range(count)})


def _mesh_region(points: Doubles) -> tuple[Doubles, float, float]:
    """Centre, side and angle of the square that the mesh should look at next."""
    dx, dy = points[LEFT_EYE_OUTER, :2] - points[RIGHT_EYE_OUTER, :2]
    angle = math.atan2(dy, dx)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    level = points[:, :2] @ turn.T
    low, high = level.min(axis=0), level.max(axis=0)
    return ((low + high) / 2) @ turn, _MESH_MARGIN * float((high - low).max()), angle
