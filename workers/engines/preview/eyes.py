"""Blinks, glances and brows.

Closed lids are painted: once, the eye is taken out of the picture and the hole is filled from the skin around it, so
nothing of the open eye's outline is left; a blink lays that over the eye down to the lid's edge.  Stretching what
little lid a photo shows over the eye smeared lashes, pulled brows down and left a jagged line.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from workers.engines.preview import landmarks
from workers.engines.preview.axes import Axes
from workers.engines.preview.framing import FramedPortrait
from workers.engines.preview.patch import Patch
from workers.engines.preview.shaping import Floats, blur_row, ease, luminance, median_row, smoothstep, through_points

_COLOURED = 0.06  # redness of skin, red less green over light; a grey photo has none
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
    skin: Floats  # [rows, columns, 3], BGR of the place without an eye
    hole: Floats  # [rows, columns], 1 where the eye was taken out, soft at its edge
    lashes: Floats  # [3], the darkest that the lid's edge shows
    line: float  # thickness of the line of closed lids, 1 in a photo
    outer: float  # 1 if the outer corner has the larger u, else -1
    ball: Floats  # [rows, columns], 1 at the iris, 0 at the lids and the corners: by how much a glance moves a pixel
    lift: Floats  # [rows, columns], dv from a pixel to where it comes from when the brow is lifted by 1

    def glance(self, x: float, y: float, blink: float) -> tuple[np.float32, np.float32]:
        """Pixels by which a glance, -1..1 either way, moves where `ball` is 1; closing lids stop it."""
        free = max(0.0, 1 - 1.5 * blink)
        return np.float32(-0.13 * self.half * x * free), np.float32(-0.05 * self.half * y * free)

    def lids(self, blink: float) -> Patch:
        """The upper lid over the eye, its fold, its edge and its lashes; `blink` 0..1."""
        v, upper, lower = self.v[:, None], self.upper[None], self.lower[None]
        half, openness = self.half, self.openness
        across = (self.u / np.float32(half))[None]
        height = np.maximum(lower - upper, 0)
        share = np.clip(height / max(openness, 1e-3), 0, 1)
        begun = min(1.0, 4 * blink)
        lid = upper + (height + 0.03 * openness * share) * blink
        # Once the lids have met, the line between them is drawn, and nothing below it is left of the open eye.
        shut = ease(0.8, 1.0, blink)
        over = smoothstep(-0.6, 0.6, lid - v)
        cover = self.hole * (over + (1 - over) * shut) * begun

        # A lid is a ball: lighter in its middle, darker above the lashes and in the fold under the brow.
        top = upper - 0.20 * openness - 0.06 * half
        down = np.clip((v - top) / np.maximum(lid - top, 1.0), 0, 1)
        light = 1 + over * share * (-0.05 + 0.06 * np.sin(np.pi * down) - 0.10 * smoothstep(0.72, 1.0, down))
        fold = np.exp(-(((v - top) / (0.07 * half)) ** 2)) * np.clip(1 - across**2, 0, 1)
        light = light - 0.06 * fold * smoothstep(0.0, 0.3, share)

        # Lashes hang down from the edge, longer towards the outer corner.
        ends = smoothstep(-1.10, -0.85, -np.abs(across))
        outwards = 0.5 + 0.5 * np.clip(self.outer * across, -1, 1)
        thick = max(0.75, 0.050 * half) * self.line * (0.6 + 0.6 * np.clip(1 - np.abs(across) ** 3, 0, 1))
        long_ = max(1.2, 0.11 * half) * (0.6 + 0.7 * outwards)
        below = v - lid
        fringe = np.exp(-((below / long_) ** 2)) * (below > 0) * (0.36 + 0.30 * outwards)
        lash = np.maximum(min(1.0, 0.80 * self.line) * np.exp(-((below / thick) ** 2)), fringe) * ends * begun
        joint = lash + cover * (1 - lash)
        part = (lash / np.maximum(joint, 1e-4))[..., None]
        colour = self.skin * light[..., None] * (1 - part) + self.lashes * part
        return Patch(0, 0, np.asarray(colour, np.float32), np.asarray(joint, np.float32))


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
    v = np.arange(int(level - 0.9 * half), int(lower.max() + 1.1 * half) + 1, dtype=np.float32)
    row, openness = v[:, None], float((lower - upper).max())
    between = smoothstep(-0.15, 0.35, (row - upper) / max(openness, 1.0))
    between = between * smoothstep(-0.15, 0.35, (lower - row) / max(openness, 1.0))
    ball = between * (1 - smoothstep(0.45, 0.95, np.abs(u) / half))
    local = cv2.remap(portrait.image, *axes.picture_grid(u, v), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    local = local.astype(np.float32)
    hole = _hole(local, u / half, row, (upper, lower), openness, half)
    return Eye(
        axes=axes,
        u=u,
        v=v,
        upper=upper,
        lower=lower,
        brow=level,
        half=half,
        openness=openness,
        skin=_without_eye(local, hole, row > lower + 0.3 * half, half),
        hole=hole,
        lashes=_lashes(local, row - upper, u, openness, half),
        line=1.8 if portrait.drawn else 1.0,
        outer=1.0 if upper_lid is landmarks.LEFT_UPPER_LID else -1.0,
        ball=ball.astype(np.float32),
        lift=_brow_field(local, (u, v), upper, level, half, glasses),
    )


def _hole(local: Floats, t: Floats, row: Floats, lids: tuple[Floats, Floats], openness: float, half: float) -> Floats:
    """1 on the eye, its lashes and the shadow of its lids; 0 on the skin around it."""
    upper, lower = lids
    light = cv2.GaussianBlur(luminance(local), (0, 0), max(0.5, 0.03 * half))
    below = np.where((row > lower + 0.25 * half) & (row < lower + 0.6 * half + 1), light, np.nan)
    usual = np.nanmedian(below, axis=0)
    # Upwards from the lid as far as its lashes and its own shadow are dark.
    over = (row < upper - 0.05 * openness) & (row > upper - 0.62 * openness - 0.22 * half)
    clear = over & (light > 0.86 * usual)
    lowest = len(row) - 1 - np.argmax(clear[::-1], axis=0)
    dark = np.where(clear.any(axis=0), upper - row[lowest, 0], 0.45 * openness + 0.12 * half)
    dark = blur_row(median_row(dark, 0.35 * half), 0.12 * half) + 0.10 * half
    round_ = np.sqrt(np.clip(1 - (t / 1.32) ** 2, 0, 1))
    above = np.maximum(0.24 * openness + 0.08 * half, dark) * (1 - smoothstep(1.12, 1.42, np.abs(t)))
    under = (0.12 * openness + 0.09 * half) * round_
    soft = max(1.0, 0.08 * half)
    inside = smoothstep(-soft, soft, row - (upper - above)[None]) * smoothstep(-soft, soft, (lower + under)[None] - row)
    return np.asarray(inside * (1 - smoothstep(1.15, 1.42, np.abs(t)))[None], np.float32)


def _without_eye(local: Floats, hole: Floats, under: npt.NDArray[np.bool_], half: float) -> Floats:
    """The picture with its hole filled from around it, and with the grain of the skin under the eye."""
    light = luminance(local)
    usual = float(np.median(light[under & (hole < 0.01)]))
    # Neither brow nor frame nor lashes, and no glint of a lens, are skin.
    skin = smoothstep(0.55, 0.78, light / max(usual, 1.0)) * (1 - smoothstep(1.18, 1.4, light / max(usual, 1.0)))
    # A lens that mirrors the sky is as light as skin, but it is not as red.
    red = (local[..., 2] - local[..., 1]) / np.maximum(light, 1.0)
    usual_red = float(np.median(red[under & (hole < 0.01)]))
    if usual_red > _COLOURED:
        skin = skin * smoothstep(0.2, 0.6, red / usual_red)
    mixed = np.ones((max(3, int(0.10 * half) | 1),) * 2, np.uint8)  # with the colour of a frame, at its edge
    skin = cv2.erode(np.asarray(skin * (1 - smoothstep(0.0, 0.25, hole)), np.float32), mixed)
    filled = _fill(local, skin)
    grain = light - cv2.GaussianBlur(light, (0, 0), max(0.8, 0.16 * half))
    limit = max(1.0, 0.05 * usual)
    grain = np.clip(grain, -limit, limit)
    first = int(np.argmax(under.all(axis=1)))
    stripe = grain[first:]
    if len(stripe) < 3:
        return filled
    # Mirrored again and again, the stripe under the eye covers the rows above it.
    place = np.abs((np.arange(len(local)) - first) % (2 * len(stripe) - 2) - (len(stripe) - 1))
    return np.asarray(filled + stripe[len(stripe) - 1 - place][..., None], np.float32)


def _fill(image: Floats, known: Floats) -> Floats:
    """What is not known is made of what is known around it: by ever coarser pictures (push-pull)."""
    if min(known.shape) <= 2:
        total = float(known.sum())
        mean = (image * known[..., None]).sum(axis=(0, 1)) / total if total > 1e-6 else image.mean(axis=(0, 1))
        return image * known[..., None] + np.asarray(mean, np.float32) * (1 - known[..., None])
    weight = cv2.pyrDown(known)
    coarse = cv2.pyrDown(image * known[..., None]) / np.maximum(weight, np.float32(1e-4))[..., None]
    coarse = _fill(coarse, np.minimum(1, 2 * weight))
    fine = cv2.pyrUp(coarse, dstsize=(known.shape[1], known.shape[0]))
    return image * known[..., None] + fine * (1 - known[..., None])


def _lashes(local: Floats, from_lid: Floats, u: Floats, openness: float, half: float) -> Floats:
    """The colour of the lid's edge."""
    light = luminance(local)
    edge = (np.abs(from_lid) < 0.2 * openness + 1) & (np.abs(u)[None] < 0.8 * half)
    dark = edge & (light <= np.percentile(light[edge], 12))
    return np.asarray(0.78 * local[dark].mean(axis=0), np.float32)


def _brow_field(
    local: Floats, grid: tuple[Floats, Floats], upper: Floats, brow: float, half: float, glasses: bool
) -> Floats:
    """dv when the brow is lifted: the brow and what is around it, but no frame of glasses."""
    u, v = grid
    window = 1 - smoothstep(1.05, 1.45, np.abs(u) / half)
    near = np.exp(-(((v[:, None] - brow) / (0.55 * half)) ** 2))
    free = 1.0 if not glasses else _above_frame(local, grid, upper, brow, half)
    return np.ascontiguousarray(0.16 * half * near * window[None] * free, np.float32)


def _above_frame(local: Floats, grid: tuple[Floats, Floats], upper: Floats, brow: float, half: float) -> Floats:
    """1 on the skin, and a pale brow if it shows, above the frame of glasses; 0 on the frame and below it.

    What is dark over the eye is taken for the frame from its upper edge on, dark brows with it.  Where nothing is, for
    a frame may be thin or pale, only the forehead above the brow moves.
    """
    u, v = grid
    row, light = v[:, None], cv2.GaussianBlur(luminance(local), (0, 0), max(0.5, 0.03 * half))
    skin = float(np.percentile(light[v > brow], 75))
    dark = (row > brow - 0.5 * half) & (row < upper) & (light < 0.5 * skin)
    found = dark.any(axis=0)
    if found[np.abs(u) < half].mean() < 0.6:
        edge = np.full(len(u), brow - 0.35 * half, np.float32)
    else:
        top = np.interp(u, u[found], v[np.argmax(dark, axis=0)][found]).astype(np.float32)
        reach = np.ones((1, int(0.3 * half) | 1), np.uint8)
        edge = blur_row(cv2.erode(top[None], reach)[0], 0.1 * half) - 0.06 * half
    return np.asarray(smoothstep(0.0, 0.25 * half, edge[None] - row), np.float32)
