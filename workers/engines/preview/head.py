"""The head's motion: a small turn of an ellipsoid, a roll about the neck, a sway, and breathing shoulders."""

from __future__ import annotations

import math

import cv2
import numpy as np

from workers.engines.preview.framing import FramedPortrait
from workers.engines.preview.landmarks import CHIN, FOREHEAD, LEFT_EYE_OUTER, OVAL, RIGHT_EYE_OUTER
from workers.engines.preview.motion import Pose
from workers.engines.preview.shaping import Floats, smoothstep

_BESIDE = 0.15  # face heights
_STEADY = 0.015  # face heights around the person that move as the person does: wisps of hair
_NOBODY = 0.08  # share of the picture; with less the model has found no person
_COARSE = 4  # the field is smooth: it is computed on a grid this much coarser and enlarged


class HeadField:
    """Where every pixel comes from when the head moves."""

    def __init__(self, portrait: FramedPortrait) -> None:
        width, height = portrait.size
        columns, rows = math.ceil(width / _COARSE), math.ceil(height / _COARSE)
        self._size = width, height
        self._step = width / columns, height / rows
        grid_y, grid_x = np.mgrid[:rows, :columns].astype(np.float32)
        self._index_x, self._index_y = grid_x, grid_y
        x = (grid_x + np.float32(0.5)) * np.float32(self._step[0]) - np.float32(0.5)
        y = (grid_y + np.float32(0.5)) * np.float32(self._step[1]) - np.float32(0.5)
        self._x, self._y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))

        flat = portrait.points[:, :2]
        self._unit = float(np.linalg.norm(flat[LEFT_EYE_OUTER] - flat[RIGHT_EYE_OUTER]))
        centre = flat[OVAL].mean(axis=0)
        down = flat[CHIN] - flat[FOREHEAD]
        face = float(np.linalg.norm(down))
        down /= face
        right = np.array([down[1], -down[0]])
        # Along the face's own axes, in face heights.
        u = ((x - centre[0]) * right[0] + (y - centre[1]) * right[1]) / face
        v = ((x - centre[0]) * down[0] + (y - centre[1]) * down[1]) / face

        on_head = 1 - smoothstep(0.48, 1.15, v)  # fades down the neck to nothing at the shoulders
        # What stands close behind the head goes along a little, so nothing is uncovered that the photo does not show.
        beside = _follow_outline(portrait, (columns, rows), u, v, face)
        self._share = cv2.GaussianBlur((on_head * beside).astype(np.float32), (0, 0), 2.0)
        ball = np.sqrt(np.clip(1 - (u / 0.62) ** 2 - ((v + 0.08) / 0.85) ** 2, 0, 1))
        nose = np.exp(-(u**2 + (v - 0.08) ** 2) / (2 * 0.13**2))
        self._depth = cv2.GaussianBlur(ball.astype(np.float32), (0, 0), 3.0) - np.float32(0.35)
        self._depth += np.float32(0.18) * nose.astype(np.float32)
        pivot = centre + 0.75 * face * down
        self._from_pivot = (x - np.float32(pivot[0])).astype(np.float32), (y - np.float32(pivot[1])).astype(np.float32)
        self._shoulders = smoothstep(0.5, 1.3, v).astype(np.float32)

    def backward(self, pose: Pose) -> tuple[Floats, Floats]:
        """x and y, float32 [height, width], of where each pixel comes from."""
        unit = self._unit
        roll = math.radians(1.25) * pose.roll
        yaw, pitch = 0.030 * unit * pose.yaw, 0.022 * unit * pose.pitch
        shift_x, shift_y = 0.016 * unit * pose.shift_x, 0.016 * unit * pose.shift_y
        from_x, from_y = self._from_pivot
        forward_x = shift_x + 0.5 * yaw - roll * from_y + 2.2 * yaw * self._depth
        forward_y = shift_y + 0.4 * pitch - 0.004 * unit * pose.breath + roll * from_x + 2.2 * pitch * self._depth
        forward_y = self._share * forward_y - self._shoulders * np.float32(0.006 * unit * pose.breath)
        forward_x = (self._share * forward_x).astype(np.float32)
        forward_y = forward_y.astype(np.float32)

        # The inverse of a small smooth field, by two steps towards the fixed point of b(p) = -f(p + b(p)).
        back_x, back_y = -forward_x, -forward_y
        scale_x, scale_y = np.float32(1 / self._step[0]), np.float32(1 / self._step[1])
        for _ in range(2):
            at_x, at_y = self._index_x + back_x * scale_x, self._index_y + back_y * scale_y
            back_x, back_y = (
                -cv2.remap(field, at_x, at_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
                for field in (forward_x, forward_y)
            )
        x, y = (cv2.resize(back, self._size, interpolation=cv2.INTER_LINEAR) for back in (back_x, back_y))
        x += self._x
        y += self._y
        return x, y


def _follow_outline(portrait: FramedPortrait, size: tuple[int, int], u: Floats, v: Floats, face: float) -> Floats:
    """1 on the person near the head, falling to 0 over _BESIDE face heights of what is behind."""
    head = 1 - smoothstep(0.95, 1.5, np.sqrt(u * u + 0.7 * np.minimum(v, 0) ** 2))
    if portrait.matte.mean() <= _NOBODY:
        return np.asarray(head, np.float32)
    # On a drawing or before a crowd the matte may miss a part of the head: its oval belongs to it in any case.
    oval = (u / 0.46) ** 2 + ((v + 0.08) / 0.62) ** 2 < 1
    person = (cv2.resize(portrait.matte, size, interpolation=cv2.INTER_AREA) > 0.35) | oval
    scale = portrait.size[0] / size[0]
    away = cv2.distanceTransform((~person).astype(np.uint8), cv2.DIST_L2, 5) * scale / face
    return np.asarray(head * (1 - smoothstep(_STEADY, _STEADY + _BESIDE, away)), np.float32)
