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
from workers.engines.preview.shaping import Floats, blur_row, smoothstep, through_points


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

    def displacement(self, blink: float, lift: float) -> Floats:
        """dv [rows, columns] from a pixel to where it comes from; `blink` 0..1, `lift` of the brow about 0..1."""
        v = self.v[:, None]
        upper, lower = self.upper[None], self.lower[None]
        height = np.maximum(lower - upper, 0)
        relative = np.clip(height / max(self.openness, 1e-3), 0, 1)
        lower_rise = 0.14 * height * blink
        drop = np.maximum((lower - lower_rise - upper) * blink + 0.05 * self.openness * blink * relative, 0)
        lid = upper + drop
        lash = (0.34 * self.openness + 0.8) * np.sqrt(relative)
        top = np.minimum(0.90 * self.brow + 0.10 * upper, upper - lash - 0.3 * self.openness)
        skin, moved_skin = upper - lash, lid - lash
        share = np.clip((v - top) / np.maximum(moved_skin - top, 1e-2), 0, 1)
        stretched = top + (skin - top) * (1 - (1 - share) ** 1.25)
        source = np.where(v < top, v, np.where(v < moved_skin, stretched, np.where(v < lid, v - drop, v)))
        if blink > 0:
            below = np.clip((v - lower + lower_rise) / (0.8 * self.half), 0, 1)
            source = np.where(v >= np.maximum(lower - lower_rise, lid), v + lower_rise * (1 - below) ** 2, source)
        moved = (source - v) * self.window[None]
        if lift > 1e-3:
            near = np.exp(-(((v - self.brow) / (0.55 * self.half)) ** 2))
            moved = moved + (0.16 * lift * self.half) * near * self.window[None]
        return cv2.GaussianBlur(moved.astype(np.float32), (0, 0), 0.6)


def measure_eyes(portrait: FramedPortrait) -> tuple[Eye, Eye]:
    """The person's right and left eye."""
    return (
        _measure(portrait, landmarks.RIGHT_UPPER_LID, landmarks.RIGHT_LOWER_LID, landmarks.RIGHT_BROW),
        _measure(portrait, landmarks.LEFT_UPPER_LID, landmarks.LEFT_LOWER_LID, landmarks.LEFT_BROW),
    )


def _measure(portrait: FramedPortrait, upper_lid: list[int], lower_lid: list[int], brow: list[int]) -> Eye:
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
    return Eye(axes, u, v, upper, lower, level, half, float((lower - upper).max()), window)
