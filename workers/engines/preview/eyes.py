"""Blinks, glances and brows.

Closed lids are painted over the eye in the colours of the skin around it.  Stretching what little lid a photo shows
over the eye smeared lashes, pulled brows down and left a jagged line.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from workers.engines.preview import landmarks
from workers.engines.preview.axes import Axes
from workers.engines.preview.framing import FramedPortrait
from workers.engines.preview.patch import Patch
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
    skin_above: Floats  # [columns, 3], BGR of the lid's skin under the brow
    skin_below: Floats  # of the skin under the eye
    lashes: Floats  # [3], the darkest that the lid's edge shows
    ball: Floats  # [rows, columns], 1 at the iris, 0 at the lids and the corners: by how much a glance moves a pixel

    def glance(self, x: float, y: float, blink: float) -> tuple[np.float32, np.float32]:
        """Pixels by which a glance, -1..1 either way, moves where `ball` is 1; closing lids stop it."""
        free = max(0.0, 1 - 1.5 * blink)
        return np.float32(-0.13 * self.half * x * free), np.float32(-0.05 * self.half * y * free)

    def displacement(self, lift: float) -> Floats:
        """dv [rows, columns] from a pixel to where it comes from, for a brow lifted by about 0..1."""
        near = np.exp(-(((self.v[:, None] - self.brow) / (0.55 * self.half)) ** 2))
        share = 0.0 if self.glasses else 0.16 * lift * self.half
        return np.ascontiguousarray(share * near * self.window[None], np.float32)

    def lids(self, blink: float) -> Patch:
        """The upper lid over the eye, its edge and its lashes; `blink` 0..1."""
        v, upper, lower = self.v[:, None], self.upper[None], self.lower[None]
        height = np.maximum(lower - upper, 0)
        share = np.clip(height / max(self.openness, 1e-3), 0, 1)
        soft = max(0.7, 0.05 * self.half)
        lid = upper + (height + 0.10 * self.openness * share) * blink
        # The line of the open eye's lid goes with the lid: what is painted begins a little above it.
        top = upper - (0.30 * self.openness + 0.07 * self.half) * np.sqrt(share)
        cover = smoothstep(-2.0 * soft, 3.5 * soft, v - top) * smoothstep(-0.6, 0.6, lid - v)
        cover = cover * smoothstep(-0.05, 0.40, share) * min(1.0, 4 * blink)
        down = np.clip((v - top) / np.maximum(lid - top, 1.0), 0, 1)
        # A lid is a ball: lighter in its middle, darker under the brow and above the lashes.
        light = 0.97 + 0.05 * np.sin(np.pi * down**0.8)
        above = (0.90 - 0.62 * down)[..., None]
        colour = self.skin_above[None] * above + self.skin_below[None] * (1 - above)
        colour = colour * light[..., None]
        thick = max(0.55, 0.045 * self.half) * (0.6 + 0.6 * share)
        lash = np.exp(-(((v - lid) / thick) ** 2)) * smoothstep(0.02, 0.35, share) * min(1.0, 4 * blink) * 0.8
        joint = lash + cover * (1 - lash)
        part = (lash / np.maximum(joint, 1e-4))[..., None]
        return Patch(
            0, 0, np.asarray(colour * (1 - part) + self.lashes * part, np.float32), np.asarray(joint, np.float32)
        )


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
    above, below, lashes = _skin_around(portrait, axes, (u, v), (upper, lower), level, half)
    return Eye(
        axes, u, v, upper, lower, level, half, openness, window, glasses, above, below, lashes, ball.astype(np.float32)
    )


def _skin_around(
    portrait: FramedPortrait,
    axes: Axes,
    grid: tuple[Floats, Floats],
    lids: tuple[Floats, Floats],
    brow: float,
    half: float,
) -> tuple[Floats, Floats, Floats]:
    """Colours of the skin over and under an eye, column by column, and of its lashes."""
    (u, v), (upper, lower) = grid, lids
    local = cv2.remap(portrait.image, *axes.picture_grid(u, v), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    local = local.astype(np.float32)
    light, row, openness = luminance(local), v[:, None], float((lower - upper).max())

    def along(rows: Floats, percent: float) -> Floats:
        """The colour of the row that is lighter than `percent` of the `rows`, smoothed along the eye."""
        seen = np.where(rows.any(axis=0), rows, True)
        ranked = np.where(seen, light, np.nan)
        wanted = np.nanpercentile(ranked, percent, axis=0)
        place = np.nanargmin(np.abs(ranked - wanted), axis=0)
        found = local[place, np.arange(len(u))]
        taps = int(0.7 * half) | 1
        return cv2.GaussianBlur(found[None], (taps, 1), 0.18 * half, borderType=cv2.BORDER_REPLICATE)[0]

    below = along((row > lower + 0.28 * half) & (row < lower + 0.55 * half), 50)
    above = along((row > upper - 0.75 * openness) & (row < upper - 0.30 * openness), 50)
    # Under a low brow there is no lid to be seen, only its hair: then the lid is like the skin below, in some shade.
    shaded = 0.88 * below
    is_hair = smoothstep(0.66, 0.86, luminance(above) / np.maximum(luminance(below), 1))[:, None]
    above = above * is_hair + shaded * (1 - is_hair)
    edge = (np.abs(row - upper) < 0.2 * openness + 1) & (np.abs(u)[None] < 0.8 * half)
    dark = edge & (light <= np.percentile(light[edge], 12))
    return above, below, np.asarray(0.85 * local[dark].mean(axis=0), np.float32)
