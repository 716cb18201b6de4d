"""The motion of head and shoulders: a small turn of an ellipsoid, a roll about the neck, a sway, and breath.

The shoulders carry the head: what moves them moves both, so the neck is hardly stretched.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from workers.engines.preview.framing import FramedPortrait
from workers.engines.preview.landmarks import CHIN, FOREHEAD, LEFT_EYE_OUTER, OVAL, RIGHT_EYE_OUTER
from workers.engines.preview.motion import Pose
from workers.engines.preview.shaping import Floats, smoothstep

_BESIDE = 0.28  # face heights over which what is behind the head stops to go along
_BESIDE_BODY = 0.45  # the same for the shoulders, which move further
_STEADY = 0.015  # face heights around the person that move as the person does: wisps of hair
_NOBODY = 0.08  # share of the picture; with less the model has found no person
_EDGE = 0.08  # share of the picture over which the shoulders' motion fades at its sides and its bottom
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
        away = _away(portrait, (columns, rows), u, v, face)
        near = 1 - smoothstep(0.95, 1.5, np.sqrt(u * u + 0.7 * np.minimum(v, 0) ** 2))
        head = cv2.GaussianBlur((on_head * near * _fall(away, _BESIDE)).astype(np.float32), (0, 0), 2.0)
        ball = np.sqrt(np.clip(1 - (u / 0.62) ** 2 - ((v + 0.08) / 0.85) ** 2, 0, 1))
        nose = np.exp(-(u**2 + (v - 0.08) ** 2) / (2 * 0.13**2))
        depth = cv2.GaussianBlur(ball.astype(np.float32), (0, 0), 3.0) - np.float32(0.35)
        depth += np.float32(0.18) * nose.astype(np.float32)
        pivot = centre + 0.75 * face * down
        self._head, self._deep = head, head * depth
        self._head_x, self._head_y = head * (x - np.float32(pivot[0])), head * (y - np.float32(pivot[1]))

        # Shoulders sway about the waist and stand still where the picture cuts them, so its edge shows no smear.
        body = _fall(away, _BESIDE_BODY) * (1 - 0.6 * smoothstep(0.8, 3.2, v))
        body = body * (1 - smoothstep(1.8, 2.8, np.abs(u)))  # nobody else goes along
        body = cv2.GaussianBlur(body.astype(np.float32), (0, 0), 2.0)
        self._body_x, self._body_y = body * _from_sides(columns)[None], body * _from_bottom(rows)[:, None]
        self._rise = self._body_y * smoothstep(0.5, 1.05, v).astype(np.float32)
        self._widen = self._body_x * (smoothstep(0.5, 1.05, v) * np.clip(u, -1.2, 1.2)).astype(np.float32)

    def backward(self, pose: Pose) -> tuple[Floats, Floats]:
        """x and y, float32 [height, width], of where each pixel comes from."""
        unit = self._unit
        roll = math.radians(1.25) * pose.roll
        yaw, pitch = 0.030 * unit * pose.yaw, 0.022 * unit * pose.pitch
        shift_x, shift_y = 0.016 * unit * pose.shift_x, 0.016 * unit * pose.shift_y
        body_x, body_y = 0.050 * unit * pose.body_x, 0.030 * unit * pose.body_y
        along_x = (shift_x + 0.5 * yaw, self._head), (-roll, self._head_y), (2.2 * yaw, self._deep)
        along_y = (shift_y + 0.4 * pitch - 0.006 * unit * pose.breath, self._head), (roll, self._head_x)
        forward_x = _sum(*along_x, (body_x, self._body_x), (0.008 * unit * pose.breath, self._widen))
        forward_y = _sum(
            *along_y, (2.2 * pitch, self._deep), (body_y, self._body_y), (-0.016 * unit * pose.breath, self._rise)
        )

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


def _sum(*parts: tuple[float, Floats]) -> Floats:
    """Fields, each times its number."""
    total = np.float32(parts[0][0]) * parts[0][1]
    for size, field in parts[1:]:
        total += np.float32(size) * field
    return total


def _fall(away: Floats, over: float) -> Floats:
    """1 on the person, falling to 0 over so many face heights of what is behind."""
    return np.asarray(1 - smoothstep(_STEADY, _STEADY + over, away), np.float32)


def _from_sides(columns: int) -> Floats:
    """0 at the picture's left and right edge, 1 inside."""
    away = np.minimum(np.arange(columns), np.arange(columns)[::-1])
    return np.asarray(smoothstep(0, 1, away / (_EDGE * columns)), np.float32)


def _from_bottom(rows: int) -> Floats:
    """0 at the picture's bottom, 1 inside."""
    return np.asarray(smoothstep(0, 1, np.arange(rows)[::-1] / (_EDGE * rows)), np.float32)


def _away(portrait: FramedPortrait, size: tuple[int, int], u: Floats, v: Floats, face: float) -> Floats:
    """How far each place is from the person, in face heights; where no person was found, from the head."""
    # On a drawing or before a crowd the matte may miss a part of the head: its oval belongs to it in any case.
    person = (u / 0.46) ** 2 + ((v + 0.08) / 0.62) ** 2 < 1
    if portrait.matte.mean() <= _NOBODY:
        person |= (np.abs(u) < 1) & (v < 1.2)
    else:
        person |= cv2.resize(portrait.matte, size, interpolation=cv2.INTER_AREA) > 0.35
    scale = portrait.size[0] / size[0]
    return np.asarray(cv2.distanceTransform((~person).astype(np.uint8), cv2.DIST_L2, 5) * scale / face, np.float32)
