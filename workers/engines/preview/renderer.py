"""One frame: all motions composed into one map, one read of the photo, then the inner mouth over it.

Everything is linear in colour, so the photo is turned into Y, Cb, Cr once and frames come out as yuv420p.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from workers.engines.preview.axes import Axes
from workers.engines.preview.colour import planes, to_yuv
from workers.engines.preview.eyes import measure_eyes
from workers.engines.preview.framing import FramedPortrait
from workers.engines.preview.head import HeadField
from workers.engines.preview.inner_mouth import InnerMouth
from workers.engines.preview.motion import Pose
from workers.engines.preview.mouth import MouthWarp, measure_mouth
from workers.engines.preview.patch import Patch
from workers.engines.preview.shaping import Floats, Pixels

_SHARPNESS = 2  # the photo is enlarged this much once; a linear read of it then looks cubic at an eighth of the cost


@dataclass(frozen=True)
class _Painting:
    """A patch and where in the picture it may lie."""

    patch: Patch
    rows: slice
    columns: slice
    at_u: Floats  # [rows, columns], place of each pixel in the patch's local grid
    at_v: Floats


class Renderer:
    """Draws one person.  Holds nothing that a frame changes, so frames may be drawn in any order and at once."""

    def __init__(self, portrait: FramedPortrait, mouth_strength: float) -> None:
        self._size = portrait.size
        self._head = HeadField(portrait)
        geometry = measure_mouth(portrait)
        self._mouth = MouthWarp(geometry, mouth_strength)
        self._inside = InnerMouth(portrait, geometry)
        # Pixels by which a part of the face may move further at its edge than in its middle as the head turns.
        self._margin = 6 + int(0.15 * geometry.half)
        self._eyes = measure_eyes(portrait)
        self._covered = portrait.mouth_covered  # then the voice comes from behind the cloth

        photo = to_yuv(portrait.image)
        layers = [_to_bytes(_enlarge(photo[..., channel])) for channel in range(3)]
        # OpenCV reads four channels in a third of the time that three take.
        self._photo = cv2.merge([*layers, np.zeros_like(layers[0])])

    def draw(self, pose: Pose, frame: Pixels) -> None:
        """Draw one frame into `frame`, yuv420p [height * 3 / 2, width]."""
        x, y = self._head.backward(pose)
        paintings = [] if self._covered else self._move_mouth(x, y, pose)
        paintings = [*self._move_eyes(x, y, pose), *paintings]
        self._read_photo(x, y, frame)
        for painting in paintings:
            self._paint(frame, painting)

    def _move_mouth(self, x: Floats, y: Floats, pose: Pose) -> list[_Painting]:
        """Lips, jaw and chin, in place; what shows between the lips is painted later."""
        shape = self._mouth.shape(pose)
        g = self._mouth.geometry
        went = _went(x, y, g.axes)
        rows, columns = g.axes.region(g.u[0], g.v[0], len(g.u), len(g.v), self._margin + 2, self._size, went)
        mouth_u, mouth_v = g.axes.local_maps(x[rows, columns], y[rows, columns], g.u[0], g.v[0])
        moved = cv2.remap(shape.displacement, mouth_u, mouth_v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
        (cos, sin), _ = g.axes.turn.astype(np.float32)
        x[rows, columns] += cos * moved[..., 0] - sin * moved[..., 1]
        y[rows, columns] += sin * moved[..., 0] + cos * moved[..., 1]
        patch = self._inside.draw(pose, shape)
        if patch is None:
            return []
        height, width = patch.cover.shape
        left, top = g.u[0] + patch.column, g.v[0] + patch.row
        at = g.axes.region(left, top, width, height, self._margin, self._size, went)
        part = tuple(
            slice(inner.start - outer.start, inner.stop - outer.start)
            for inner, outer in zip(at, (rows, columns), strict=True)
        )
        return [_Painting(patch, *at, mouth_u[part], mouth_v[part])]

    def _move_eyes(self, x: Floats, y: Floats, pose: Pose) -> list[_Painting]:
        """Glances and brows, in place; closed lids are painted later."""
        lifts = pose.brow > 1e-3
        glances = abs(pose.gaze_x) > 1e-3 or abs(pose.gaze_y) > 1e-3
        paintings: list[_Painting] = []
        if not (lifts or glances or pose.blink > 0):
            return paintings
        for eye in self._eyes:
            went = _went(x, y, eye.axes)
            rows, columns = eye.axes.region(eye.u[0], eye.v[0], len(eye.u), len(eye.v), self._margin, self._size, went)
            at_u, at_v = eye.axes.local_maps(x[rows, columns], y[rows, columns], eye.u[0], eye.v[0])
            if pose.blink > 0:
                paintings.append(_Painting(eye.lids(pose.blink), rows, columns, at_u, at_v))
            (cos, sin), _ = eye.axes.turn.astype(np.float32)
            if glances:
                along, across = eye.glance(pose.gaze_x, pose.gaze_y, pose.blink)
                ball = cv2.remap(eye.ball, at_u, at_v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
                x[rows, columns] += (cos * along - sin * across) * ball
                y[rows, columns] += (sin * along + cos * across) * ball
            if lifts:
                down = np.float32(pose.brow) * cv2.remap(
                    eye.lift, at_u, at_v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT
                )
                x[rows, columns] -= sin * down
                y[rows, columns] += cos * down
        return paintings

    def _read_photo(self, x: Floats, y: Floats, frame: Pixels) -> None:
        """The photo, moved, into `frame`."""
        for axis in (x, y):  # in place: nobody reads them afterwards
            axis *= np.float32(_SHARPNESS)
            axis += np.float32((_SHARPNESS - 1) / 2)
        moved = cv2.remap(self._photo, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        half = cv2.resize(moved, (moved.shape[1] // 2, moved.shape[0] // 2), interpolation=cv2.INTER_AREA)
        luma, blue, red = planes(frame)
        cv2.extractChannel(moved, 0, luma)
        cv2.extractChannel(half, 1, blue)
        cv2.extractChannel(half, 2, red)

    def _paint(self, frame: Pixels, painting: _Painting) -> None:
        """Lay a patch over the picture; it moves with the head but is not stretched with what lies under it."""
        rows, columns = _even(painting.rows), _even(painting.columns)
        part = (
            slice(rows.start - painting.rows.start, rows.stop - painting.rows.start),
            slice(columns.start - painting.columns.start, columns.stop - painting.columns.start),
        )
        patch = painting.patch
        at_u, at_v = painting.at_u[part] - patch.column, painting.at_v[part] - patch.row
        layer = np.dstack([to_yuv(patch.colour) * patch.cover[..., None], patch.cover])
        layer = cv2.remap(layer, at_u, at_v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
        half = cv2.resize(layer, (layer.shape[1] // 2, layer.shape[0] // 2), interpolation=cv2.INTER_AREA)
        halves = slice(rows.start // 2, rows.stop // 2), slice(columns.start // 2, columns.stop // 2)
        luma, *chroma = planes(frame)
        _blend(luma[rows, columns], layer, 0)
        _blend(chroma[0][halves], half, 1)
        _blend(chroma[1][halves], half, 2)


def _went(x: Floats, y: Floats, axes: Axes) -> tuple[float, float]:
    """By how many pixels, to the right and down, the maps move the picture at the origin of `axes`."""
    height, width = x.shape
    column, row = (min(max(0, int(at)), most - 1) for at, most in zip(axes.origin, (width, height), strict=True))
    return float(column - x[row, column]), float(row - y[row, column])


def _enlarge(plane: Floats) -> Floats:
    size = plane.shape[1] * _SHARPNESS, plane.shape[0] * _SHARPNESS
    return cv2.resize(np.ascontiguousarray(plane), size, interpolation=cv2.INTER_LANCZOS4)


def _to_bytes(plane: Floats) -> Pixels:
    return np.clip(np.rint(plane), 0, 255).astype(np.uint8)


def _blend(target: Pixels, layer: Floats, channel: int) -> None:
    """`layer`'s channel, already multiplied by its cover in channel 3, over `target`, in place."""
    # Both are within 16..240 or so: the sum cannot leave a byte.
    target[:] = (target * (1 - layer[..., 3]) + layer[..., channel] + np.float32(0.5)).astype(np.uint8)


def _even(part: slice) -> slice:
    """Cut at even pixels, where chroma has its own; inwards, so that the part stays inside its region."""
    return slice(part.start + part.start % 2, part.stop - part.stop % 2)
