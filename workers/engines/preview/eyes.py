"""Blinks and brows.

The strip of lashes moves rigidly and only the clean skin of the lid above it stretches: stretched lashes smear.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from workers.engines.preview import landmarks
from workers.engines.preview.axes import Axes
from workers.engines.preview.framing import FramedPortrait
from workers.engines.preview.shaping import Floats, blur_row, luminance, smoothstep, through_points

_CROSSED = 0.06  # of the light on the nose; glasses change it by 0.1 and more, noses without by up to 0.02


@dataclass(frozen=True)
class Eye:
    """One eye's lines along its own axes."""

    axes: Axes
    u: Floats  # columns of the local grid
    v: Floats  # rows
    upper: Floats  # upper lid over the columns
    lower: Floats
    brow: float  # v of the brow
    half: float  # half the distance of its corners, pixels
    openness: float  # largest distance of the lids, pixels
    window: Floats  # 1 at the eye, 0 beside it
    glasses: bool
    ball: Floats  # [rows, columns], 1 at the iris, 0 at the lids and the corners: by how much a glance moves a pixel

    def glance(self, x: float, y: float, blink: float) -> tuple[np.float32, np.float32]:
        """Pixels by which a glance, -1..1 either way, moves where `ball` is 1; closing lids stop it."""
        free = max(0.0, 1 - 1.5 * blink)
        return np.float32(-0.13 * self.half * x * free), np.float32(-0.05 * self.half * y * free)

    def displacement(self, blink: float, lift: float) -> Floats:
        """dv [rows, columns] from a pixel to where it comes from; `blink` 0..1, `lift` of the brow about 0..1."""
        v = self.v[:, None]
        upper, lower = self.upper[None], self.lower[None]
        height = np.maximum(lower - upper, 0)
        relative = np.clip(height / max(self.openness, 1e-3), 0, 1)
        lower_rise = 0.14 * height * blink
        drop = np.maximum((lower - lower_rise - upper) * blink + 0.10 * self.openness * blink * relative, 0)
        lid = upper + drop
        # Under a low brow there is little lid: its hair must not be taken for skin and stretched.
        space = np.maximum(upper - self.brow, 0)
        lash = np.minimum(((0.25 if self.glasses else 0.34) * self.openness + 0.8), 0.6 * space) * np.sqrt(relative)
        top = np.minimum(0.85 * self.brow + 0.15 * upper, upper - lash - 0.5)
        if self.glasses:  # the frame stands between the brow and the lid and must not be stretched
            top = upper - lash - 0.22 * self.openness
        skin, moved_skin = upper - lash, lid - lash
        share = np.clip((v - top) / np.maximum(moved_skin - top, 1e-2), 0, 1)
        stretched = top + (skin - top) * (1 - (1 - share) ** 1.25)
        source = np.where(v < top, v, np.where(v < moved_skin, stretched, np.where(v < lid, v - drop, v)))
        if blink > 0:
            below = np.clip((v - lower + lower_rise) / (0.8 * self.half), 0, 1)
            source = np.where(v >= np.maximum(lower - lower_rise, lid), v + lower_rise * (1 - below) ** 2, source)
        moved = (source - v) * self.window[None]
        if lift > 1e-3 and not self.glasses:
            near = np.exp(-(((v - self.brow) / (0.55 * self.half)) ** 2))
            moved = moved + (0.16 * lift * self.half) * near * self.window[None]
        return np.ascontiguousarray(moved, np.float32)


def measure_eyes(portrait: FramedPortrait) -> tuple[Eye, Eye]:
    """The person's right and left eye."""
    glasses = wears_glasses(portrait)
    return (
        _measure(portrait, landmarks.RIGHT_UPPER_LID, landmarks.RIGHT_LOWER_LID, landmarks.RIGHT_BROW, glasses),
        _measure(portrait, landmarks.LEFT_UPPER_LID, landmarks.LEFT_LOWER_LID, landmarks.LEFT_BROW, glasses),
    )


def wears_glasses(portrait: FramedPortrait) -> bool:
    """Whether something crosses the bridge of the nose: skin there is smooth from the brows down."""
    flat = portrait.points[:, :2]
    across = flat[landmarks.LEFT_EYE_OUTER] - flat[landmarks.RIGHT_EYE_OUTER]
    top, bottom = flat[landmarks.NOSE_ROOT], flat[landmarks.NOSE_BRIDGE]
    down = np.linspace(-0.35, 1.0, 48)[:, None, None] * (bottom - top)
    places = (top + down + np.linspace(-0.05, 0.05, 9)[:, None] * across).astype(np.float32)
    smooth = cv2.GaussianBlur(luminance(portrait.image), (0, 0), max(0.5, 0.006 * float(np.linalg.norm(across))))
    light = cv2.remap(smooth, places[..., 0], places[..., 1], cv2.INTER_LINEAR).mean(axis=1)
    rows = np.linspace(-1, 1, len(light))
    bent = light - np.polyval(np.polyfit(rows, light, 3), rows)
    return bool(np.abs(bent).max() > _CROSSED * max(1.0, float(light.mean())))


def _measure(
    portrait: FramedPortrait, upper_lid: list[int], lower_lid: list[int], brow: list[int], glasses: bool
) -> Eye:
    flat = portrait.points[:, :2]
    start, stop = flat[upper_lid[0]], flat[upper_lid[-1]]
    axes = Axes.along(start, stop, (start + stop) / 2)
    half = max(2.0, float(np.linalg.norm(stop - start)) / 2)
    u = np.arange(-int(1.5 * half), int(1.5 * half) + 1, dtype=np.float32)
    soft = max(0.5, 0.05 * half)
    upper = blur_row(through_points(axes.to_local(flat[upper_lid]), u), soft)
    lower = np.maximum(blur_row(through_points(axes.to_local(flat[lower_lid]), u), soft), upper)
    level = float(np.median(axes.to_local(flat[brow])[:, 1]))
    v = np.arange(int(level - 0.9 * half), int(lower.max() + 0.9 * half) + 1, dtype=np.float32)
    window = (1 - smoothstep(1.05, 1.45, np.abs(u) / half)).astype(np.float32)
    row, openness = v[:, None], float((lower - upper).max())
    between = smoothstep(-0.15, 0.35, (row - upper) / max(openness, 1.0))
    between = between * smoothstep(-0.15, 0.35, (lower - row) / max(openness, 1.0))
    ball = between * (1 - smoothstep(0.45, 0.95, np.abs(u) / half))
    return Eye(axes, u, v, upper, lower, level, half, openness, window, glasses, ball.astype(np.float32))
