"""One frame: all motions composed into one map, one read of the photo, then the inner mouth over it.

Everything is linear in colour, so the photo is turned into Y, Cb, Cr once and frames come out as yuv420p.
"""

from __future__ import annotations

import cv2
import numpy as np

from workers.engines.preview.backdrop import measure_backdrop
from workers.engines.preview.colour import planes, to_yuv
from workers.engines.preview.eyes import measure_eyes
from workers.engines.preview.framing import FramedPortrait
from workers.engines.preview.head import HeadField
from workers.engines.preview.inner_mouth import InnerMouth, InnerPatch
from workers.engines.preview.motion import Pose
from workers.engines.preview.mouth import MouthWarp, measure_mouth
from workers.engines.preview.shaping import Floats, Pixels

_SHARPNESS = 2  # the photo is enlarged this much once; a linear read of it then looks cubic at an eighth of the cost


class Renderer:
    """Draws one person.  Holds nothing that a frame changes, so frames may be drawn in any order and at once."""

    def __init__(self, portrait: FramedPortrait, mouth_strength: float) -> None:
        self._size = width, height = portrait.size
        self._head = HeadField(portrait)
        geometry = measure_mouth(portrait)
        self._mouth = MouthWarp(geometry, mouth_strength)
        self._inside = InnerMouth(portrait, geometry)
        self._margin = 6 + int(0.25 * geometry.half)  # pixels by which the head's motion may move a part of the face
        self._eyes = measure_eyes(portrait)

        photo = to_yuv(portrait.image)
        backdrop = measure_backdrop(portrait)
        if backdrop is None:
            cover, plate = np.ones((height, width), np.float32), np.zeros_like(photo)
        else:
            cover, plate = backdrop.cover, to_yuv(backdrop.plate)
        # The person's colours are multiplied by their cover once; laying them over the plate is then one addition.
        cover = np.clip(_enlarge(cover), 0, 1)
        layers = [_to_bytes(_enlarge(photo[..., channel]) * cover) for channel in range(3)]
        self._person = cv2.merge([*layers, _to_bytes(cover * 255)])
        half = cv2.resize(plate, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
        self._plate = tuple(_to_bytes(plane) for plane in (plate[..., 0], half[..., 1], half[..., 2]))

    def draw(self, pose: Pose, frame: Pixels) -> None:
        """Draw one frame into `frame`, yuv420p [height * 3 / 2, width]."""
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

        self._lay_over_plate(self._read_photo(x, y), frame)
        patch = self._inside.draw(pose, shape)
        if patch is not None:
            self._paint(frame, patch, (rows, columns), mouth_u, mouth_v)

    def _move_eyes(self, x: Floats, y: Floats, pose: Pose) -> None:
        lids = pose.blink > 0 or pose.brow > 1e-3
        glances = abs(pose.gaze_x) > 1e-3 or abs(pose.gaze_y) > 1e-3
        if not lids and not glances:
            return
        for eye in self._eyes:
            rows, columns = eye.axes.region(eye.u[0], eye.v[0], len(eye.u), len(eye.v), self._margin, self._size)
            at_u, at_v = eye.axes.local_maps(x[rows, columns], y[rows, columns], eye.u[0], eye.v[0])
            (cos, sin), _ = eye.axes.turn.astype(np.float32)
            if glances:
                along, across = eye.glance(pose.gaze_x, pose.gaze_y, pose.blink)
                ball = cv2.remap(eye.ball, at_u, at_v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
                x[rows, columns] += (cos * along - sin * across) * ball
                y[rows, columns] += (sin * along + cos * across) * ball
            if lids:
                field = eye.displacement(pose.blink, pose.brow)
                # Between the lids the field jumps: anything between its two sides would show the white of a closed eye.
                how = cv2.INTER_NEAREST if pose.blink > 0 else cv2.INTER_LINEAR
                down = cv2.remap(field, at_u, at_v, how, borderMode=cv2.BORDER_CONSTANT)
                x[rows, columns] -= sin * down
                y[rows, columns] += cos * down

    def _read_photo(self, x: Floats, y: Floats) -> Pixels:
        """The person moved: Y, Cb, Cr times cover, and cover, uint8 [height, width, 4]."""
        for axis in (x, y):  # in place: nobody reads them afterwards
            axis *= np.float32(_SHARPNESS)
            axis += np.float32((_SHARPNESS - 1) / 2)
        return cv2.remap(self._person, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)

    def _lay_over_plate(self, person: Pixels, frame: Pixels) -> None:
        half = cv2.resize(person, (person.shape[1] // 2, person.shape[0] // 2), interpolation=cv2.INTER_AREA)
        _, blue, red, half_cover = cv2.split(half)
        layers = cv2.extractChannel(person, 0), blue, red
        covers = cv2.extractChannel(person, 3), half_cover, half_cover
        for layer, cover, plate, target in zip(layers, covers, self._plate, planes(frame), strict=True):
            cv2.add(layer, cv2.multiply(plate, cv2.bitwise_not(cover), scale=1 / 255.0), dst=target)

    def _paint(
        self, frame: Pixels, patch: InnerPatch, mouth: tuple[slice, slice], mouth_u: Floats, mouth_v: Floats
    ) -> None:
        """Lay the inner mouth over the picture; it moves with the head but is not stretched with the lips."""
        g = self._mouth.geometry
        height, width = patch.cover.shape
        left, top = g.u[0] + patch.column, g.v[0] + patch.row
        rows, columns = (_even(part) for part in g.axes.region(left, top, width, height, self._margin, self._size))
        part = (
            slice(rows.start - mouth[0].start, rows.stop - mouth[0].start),
            slice(columns.start - mouth[1].start, columns.stop - mouth[1].start),
        )
        at_u, at_v = mouth_u[part] - patch.column, mouth_v[part] - patch.row
        layer = np.dstack([to_yuv(patch.colour) * patch.cover[..., None], patch.cover])
        layer = cv2.remap(layer, at_u, at_v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
        half = cv2.resize(layer, (layer.shape[1] // 2, layer.shape[0] // 2), interpolation=cv2.INTER_AREA)
        halves = slice(rows.start // 2, rows.stop // 2), slice(columns.start // 2, columns.stop // 2)
        luma, *chroma = planes(frame)
        _blend(luma[rows, columns], layer, 0)
        _blend(chroma[0][halves], half, 1)
        _blend(chroma[1][halves], half, 2)


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
