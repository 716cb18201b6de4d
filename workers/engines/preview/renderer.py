"""One frame: all motions composed into one map, one read of the photo, then the inner mouth over it."""

from __future__ import annotations

import cv2
import numpy as np

from workers.engines.preview.backdrop import measure_backdrop
from workers.engines.preview.eyes import measure_eyes
from workers.engines.preview.framing import FramedPortrait
from workers.engines.preview.head import HeadField
from workers.engines.preview.inner_mouth import InnerMouth, InnerPatch
from workers.engines.preview.motion import Pose
from workers.engines.preview.mouth import MouthWarp, measure_mouth
from workers.engines.preview.shaping import Floats, Pixels

_SHARPNESS = 2  # the photo is enlarged this much once; a linear read of it then looks cubic at an eighth of the cost


class Renderer:
    """Draws one person.  Reads nothing but the pose, so a frame depends on nothing else."""

    def __init__(self, portrait: FramedPortrait, mouth_strength: float) -> None:
        self._size = portrait.size
        width, height = self._size
        self._head = HeadField(portrait)
        geometry = measure_mouth(portrait)
        self._mouth = MouthWarp(geometry, mouth_strength)
        self._inside = InnerMouth(portrait, geometry)
        self._margin = 6 + int(0.25 * geometry.half)  # pixels by which the head's motion may move a part of the face
        self._eyes = measure_eyes(portrait)
        backdrop = measure_backdrop(portrait)
        source = portrait.image
        if backdrop is not None:
            source = np.dstack([source, np.rint(backdrop.cover * 255).astype(np.uint8)])
        large = (_SHARPNESS * width, _SHARPNESS * height)
        self._source = cv2.resize(source, large, interpolation=cv2.INTER_LANCZOS4)
        self._plate = None if backdrop is None else backdrop.plate

    def frame(self, pose: Pose) -> Pixels:
        """One frame [height, width, 3], BGR."""
        x, y = self._head.backward(pose)
        shape = self._mouth.shape(pose)
        g = self._mouth.geometry
        rows, columns = g.axes.region(g.u[0], g.v[0], len(g.u), len(g.v), self._margin + 2, self._size)
        mouth_u, mouth_v = g.axes.local_maps(x[rows, columns], y[rows, columns], g.u[0], g.v[0])
        moved = cv2.remap(shape.displacement, mouth_u, mouth_v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
        (cos, sin), _ = g.axes.turn.astype(np.float32)
        x[rows, columns] += cos * moved[..., 0] - sin * moved[..., 1]
        y[rows, columns] += sin * moved[..., 0] + cos * moved[..., 1]
        self._move_eyes(x, y, pose)

        picture = self._read_photo(x, y)
        patch = self._inside.draw(pose, shape)
        if patch is not None:
            self._paint(picture, patch, (rows, columns), mouth_u, mouth_v)
        return picture

    def _move_eyes(self, x: Floats, y: Floats, pose: Pose) -> None:
        if pose.blink <= 0 and pose.brow <= 1e-3:
            return
        for eye in self._eyes:
            rows, columns = eye.axes.region(eye.u[0], eye.v[0], len(eye.u), len(eye.v), self._margin, self._size)
            at_u, at_v = eye.axes.local_maps(x[rows, columns], y[rows, columns], eye.u[0], eye.v[0])
            field = eye.displacement(pose.blink, pose.brow)
            down = cv2.remap(field, at_u, at_v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
            (cos, sin), _ = eye.axes.turn.astype(np.float32)
            x[rows, columns] -= sin * down
            y[rows, columns] += cos * down

    def _read_photo(self, x: Floats, y: Floats) -> Pixels:
        half = np.float32((_SHARPNESS - 1) / 2)
        whole, part = cv2.convertMaps(x * _SHARPNESS + half, y * _SHARPNESS + half, cv2.CV_16SC2)
        moved = cv2.remap(self._source, whole, part, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        if self._plate is None:
            return moved
        person = cv2.cvtColor(moved, cv2.COLOR_BGRA2BGR)
        cover = cv2.cvtColor(cv2.extractChannel(moved, 3), cv2.COLOR_GRAY2BGR)
        front = cv2.multiply(person, cover, scale=1 / 255.0)
        return cv2.add(front, cv2.multiply(self._plate, cv2.bitwise_not(cover), scale=1 / 255.0))

    def _paint(
        self, picture: Pixels, patch: InnerPatch, mouth: tuple[slice, slice], mouth_u: Floats, mouth_v: Floats
    ) -> None:
        """Lay the inner mouth over the picture; it moves with the head but is not stretched with the lips."""
        g = self._mouth.geometry
        height, width = patch.cover.shape
        left, top = g.u[0] + patch.column, g.v[0] + patch.row
        rows, columns = g.axes.region(left, top, width, height, self._margin, self._size)
        part = (
            slice(rows.start - mouth[0].start, rows.stop - mouth[0].start),
            slice(columns.start - mouth[1].start, columns.stop - mouth[1].start),
        )
        at_u, at_v = mouth_u[part] - patch.column, mouth_v[part] - patch.row
        layer = np.dstack([patch.colour * patch.cover[..., None], patch.cover])
        layer = cv2.remap(layer, at_u, at_v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
        blended = picture[rows, columns] * (1 - layer[..., 3:]) + layer[..., :3] + 0.5
        picture[rows, columns] = np.clip(blended, 0, 255).astype(np.uint8)
