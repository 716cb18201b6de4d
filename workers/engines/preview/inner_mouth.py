"""What shows between the lips: cavity, tongue, lower teeth on the jaw, upper teeth on the skull.

Where the portrait shows its own teeth they are the texture; otherwise teeth are drawn in the light of the face.  A
drawing gets a drawn mouth: flat colours and a line of ink.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from workers.engines.preview.framing import FramedPortrait
from workers.engines.preview.landmarks import AROUND_MOUTH, LEFT_CHEEK, LIPS, RIGHT_CHEEK
from workers.engines.preview.motion import Pose
from workers.engines.preview.mouth import MouthGeometry, MouthShape
from workers.engines.preview.patch import Patch
from workers.engines.preview.shaping import Floats, blur_row, ease, luminance, median_row, smoothstep

_TOOTH_WIDTH = 0.29  # of one in the middle, in half widths of the mouth; each face's own differs a little
# Where teeth end, from the midline, in widths of the first one, and by how much each is longer, in half widths.
_UPPER_ROW, _UPPER_LONGER = (0.0, 1.0, 1.78, 2.56, 3.2, 3.7), (0.008, -0.010, 0.002, -0.020, -0.035)
_LOWER_ROW = (0.0, 0.66, 1.36, 2.1, 2.8, 3.4)
_BEHIND = 0.05  # half widths by which a full turn of the head shifts the teeth, which stand behind the lips


@dataclass(frozen=True)
class _Palette:
    """Colours taken from the portrait, BGR."""

    cavity: Floats
    lips: Floats  # in the shade, as beside the line where they meet
    seam: Floats  # that line
    tooth: Floats
    tongue: Floats
    ink: Floats  # the darkest around the mouth


@dataclass(frozen=True)
class _OwnTeeth:
    """The portrait's teeth."""

    texture: Floats  # [rows, columns, 3] of the local grid
    edge: Floats  # v of the upper row's lower edge over the columns
    lower: Floats | None  # v of the lower row's upper edge, where the portrait shows one
    colour: Floats


class InnerMouth:
    """Draws the inside of one person's mouth."""

    def __init__(self, portrait: FramedPortrait, geometry: MouthGeometry) -> None:
        self._geometry = geometry
        skin, lips = _colour_at(portrait, AROUND_MOUTH), _colour_at(portrait, LIPS)
        self._palette = _palette(skin, lips, _darkest(portrait, geometry))
        self._drawn = portrait.drawn
        self._own = _find_teeth(portrait, geometry, skin) if geometry.parted else None
        self._tooth = self._own.colour if self._own else self._palette.tooth
        if self._drawn:
            self._tooth = 0.5 * self._tooth + np.float32(0.5 * 238)
        self._slope = _side_light(portrait)
        # No two people have the same teeth; what this face measures decides, so every film of it shows the same ones.
        measure = abs(geometry.lines.chin.mean() - geometry.lines.nose.mean()) / geometry.half
        self._tooth_width = _TOOTH_WIDTH * (0.88 + 0.24 * float(measure * 7.0 % 1.0))
        self._midline = 0.04 * (float(measure * 31.0 % 1.0) - 0.5)

    def draw(self, pose: Pose, shape: MouthShape) -> Patch | None:
        """The inside for one frame, or nothing when the lips are closed."""
        g = self._geometry
        if shape.opening <= 0.35 and not g.parted:
            return None
        first = int(np.searchsorted(shape.columns, g.inner[0] - 1))
        last = int(np.searchsorted(shape.columns, g.inner[1] + 1))
        if last - first < 4:
            return None
        upper, lower = shape.upper[first:last], shape.lower[first:last]
        top = max(0, int(upper.min() - g.v[0]) - 3)
        bottom = min(len(g.v), int(lower.max() - g.v[0]) + 4)
        if bottom - top < 2:
            return None

        v = g.v[top:bottom, None]
        upper, lower, columns = upper[None], lower[None], shape.columns[first:last]
        across = np.clip((columns - np.float32(g.centre)) / np.float32(g.half), -1, 1)[None]
        gap = np.maximum(lower - upper, np.float32(1e-3))
        cover = np.clip(v - upper + 0.6, 0, 1) * np.clip(lower - v + 0.6, 0, 1) * np.clip((gap - 0.25) / 0.9, 0, 1)

        behind = across + np.float32(_BEHIND * pose.yaw)
        paint = self._flat if self._drawn else self._lifelike
        colour = paint(pose, shape, v, upper, lower, behind, columns)
        if not self._drawn:  # the shadow of the upper lip, and the line where the lower one begins
            shade = 0.62 + 0.38 * smoothstep(-0.5, 0.07 * g.half, v - upper)
            shade = shade * (0.60 + 0.40 * smoothstep(-0.5, 0.06 * g.half, lower - v))
            colour = _shaded(colour, shade)
        if g.parted:
            colour, cover = self._close_seam(colour, cover, v, upper, lower, across, gap)
        return Patch(
            row=top,
            column=first,
            colour=np.clip(colour, 0, 255).astype(np.float32),
            cover=cover.astype(np.float32),
        )

    @property
    def _soft(self) -> float:
        """Width of soft edges, pixels."""
        return max(1.0, 0.035 * self._geometry.half)

    def _lifelike(
        self, pose: Pose, shape: MouthShape, v: Floats, upper: Floats, lower: Floats, across: Floats, columns: Floats
    ) -> Floats:
        """From the back to the front."""
        depth = np.clip((v - upper) / np.maximum(lower - upper, np.float32(1e-3)), 0, 1)
        colour = self._cavity(across, depth)
        colour = self._add_tongue(colour, pose, shape, v, upper, lower, across)
        colour = self._add_lower_teeth(colour, pose, shape, v, lower, across, columns)
        if self._own:
            colour = self._add_own_teeth(colour, self._own, shape, v, upper, across, columns)
        else:
            colour = self._add_drawn_teeth(colour, pose, shape, v, upper, across, columns)
        # The light that falls on the face from one side falls on teeth and tongue as well.
        return colour * (1 + self._slope * np.clip(across, -1, 1))[..., None]

    def _flat(
        self, pose: Pose, shape: MouthShape, v: Floats, upper: Floats, lower: Floats, across: Floats, columns: Floats
    ) -> Floats:
        """As a drawing shows it: one dark colour, a tongue, one band of teeth, and a line of ink around them."""
        g, palette = self._geometry, self._palette
        half, aside = g.half, np.abs(across)
        colour = np.broadcast_to(palette.cavity * 1.4, (*np.broadcast_shapes(v.shape, across.shape), 3))
        rises = ease(0.25, 0.75, pose.tongue)
        height = (0.04 * half + (0.34 + 0.4 * rises) * shape.opening) * (1 - 0.8 * across**2)
        tongue = smoothstep(-0.7, 0.7, v - lower + height) * (1 - smoothstep(0.55, 0.60, aside))
        colour = _mix(colour, palette.tongue * 0.85, tongue * ease(0.12 * half, 0.2 * half, shape.opening))
        shown = 0.08 + 0.06 * pose.teeth + 0.05 * max(0.0, shape.spread) - 0.04 * shape.rounding
        shown = max(shown, 0.75 * g.gap / half)  # a drawn grin keeps its band of teeth
        edge = np.interp(columns, g.u, g.lines.upper_inner)[None] + (shown - 0.08 * across**2) * half
        teeth = (1 - smoothstep(-0.7, 0.7, v - edge)) * (1 - smoothstep(0.70, 0.75, aside))
        colour = _mix(colour, self._tooth, teeth * ease(0.06 * half, 0.14 * half, shape.opening))
        line = max(0.8, 0.05 * half)
        return _mix(colour, palette.ink, 1 - smoothstep(0.3 * line, 1.3 * line, np.minimum(v - upper, lower - v)))

    def _cavity(self, across: Floats, depth: Floats) -> Floats:
        sides = 1.05 - 0.45 * np.abs(across)[..., None]
        glow = 0.6 + 0.6 * smoothstep(0.35, 1.0, depth)
        return self._palette.cavity * sides * glow[..., None]

    def _add_tongue(
        self, colour: Floats, pose: Pose, shape: MouthShape, v: Floats, upper: Floats, lower: Floats, across: Floats
    ) -> Floats:
        """It lies behind the lower teeth; for l, n, t, d and th its tip rises to the upper ones."""
        half, soft = self._geometry.half, self._soft
        aside = np.abs(across)
        rises = ease(0.25, 0.75, pose.tongue)
        lying = (0.04 * half + 0.42 * shape.opening) * (1 - 0.8 * across**2)
        raised = 0.90 * (lower - upper) * np.clip(1 - (aside / 0.72) ** 2, 0, 1) ** 0.6
        height = lying + rises * np.maximum(0, raised - lying)
        share = smoothstep(-2.0 * soft, 2.0 * soft, v - lower + height) * (1 - smoothstep(0.45, 0.80, aside))
        share = share * (0.95 * ease(0.04 * half, 0.18 * half, shape.opening))
        back = np.clip((lower - v) / np.maximum(height, 1.0), 0, 1)
        # Wet, with a furrow along its middle and a glint where the light comes in; its back lies in the dark.
        front = 0.86 if self._own else 0.80  # under the teeth of a grin its front is all that shows
        light = (
            front
            + (0.88 - front) * rises
            - (0.50 - 0.38 * rises) * back
            - 0.07 * np.exp(-((across / 0.09) ** 2)) * (1 - back)
        )
        light = light + 0.12 * np.exp(-(((across - 0.16) / 0.14) ** 2) - ((back - 0.45 - 0.3 * rises) / 0.16) ** 2)
        # It lies lower than the lip, in whose shade it begins, or it would be taken for the lip.
        light = light * (0.55 + 0.45 * smoothstep(0, 0.13 * half, lower - v))
        return _mix(colour, self._palette.tongue * light[..., None], share)

    def _add_lower_teeth(
        self, colour: Floats, pose: Pose, shape: MouthShape, v: Floats, lower: Floats, across: Floats, columns: Floats
    ) -> Floats:
        """They stand on the jaw and go with it: the lip bares them as far as it is lowered further than the jaw."""
        g, soft = self._geometry, self._soft
        half = g.half
        shown = 0.035 + 0.05 * pose.teeth + 0.06 * max(0.0, shape.spread) - 0.05 * shape.rounding
        edge = np.interp(columns, g.u, g.lines.lower_inner)[None] + self._drop(shape)
        _, between = self._teeth_at(across - 0.5 * self._midline, _LOWER_ROW)
        edge = edge + (0.10 * across**2 + 0.012 * between**3 - shown) * half
        share = smoothstep(-0.6 * soft, 0.6 * soft, v - edge) * (1 - smoothstep(0.38, 0.66, np.abs(across)))
        share = share * (0.60 + 0.25 * pose.teeth) * ease(0.05 * half, 0.15 * half, shape.opening)
        lines = 1 - 0.18 * smoothstep(0.76, 1.0, between) * ease(14, 40, half)
        light = 0.72 * lines * (1 - 0.4 * np.abs(across) ** 1.5)
        return _mix(colour, _lit(self._tooth, light), share * (1 - 0.7 * shape.rounding))

    def _drop(self, shape: MouthShape) -> float:
        """By how much the lower teeth are lower than in the portrait, pixels; negative where they are higher."""
        gap = self._geometry.gap
        change = shape.opening - gap
        if change > 0:
            return 0.72 * change
        # A closing lip soon covers them; there they may go back unseen, or they would fill the last narrow gap.
        return 0.4 * change * (1 - ease(0.25, 0.7, -change / max(gap, 1.0)))

    def _add_own_teeth(
        self,
        colour: Floats,
        own: _OwnTeeth,
        shape: MouthShape,
        v: Floats,
        upper: Floats,
        across: Floats,
        columns: Floats,
    ) -> Floats:
        g, soft = self._geometry, self._soft
        gum, lip, edge = (
            np.interp(columns, g.u, line)[None] for line in (g.lines.upper_inner, g.lines.lower_inner, own.edge)
        )
        edge = np.minimum(edge, lip - 0.02 * g.half)
        begun = smoothstep(-0.3 * soft, 0.8 * soft, v - gum + 0.01 * g.half)
        rows = np.broadcast_to(v, (len(v), len(columns)))
        if own.lower is None:
            share = begun * (1 - smoothstep(-soft, 0.6 * soft, v - edge))
        else:
            # The upper row stays, the lower row goes with the jaw, and what is between them is stretched.
            begins = np.maximum(np.interp(columns, g.u, own.lower)[None], edge + 1)
            moved = np.maximum(begins + self._drop(shape), edge + 0.5)
            between = edge + (v - edge) * ((begins - edge) / (moved - edge))
            rows = np.where(v < edge, v, np.where(v < moved, between, v - moved + begins))
            rows, share = np.minimum(rows, lip - 0.02 * g.half), begun
        at_u = np.broadcast_to((columns - g.u[0]).astype(np.float32), rows.shape)
        texture = cv2.remap(own.texture, at_u, (rows - g.v[0]).astype(np.float32), cv2.INTER_LINEAR)
        # Above the part of the teeth that the portrait shows, more tooth appears when the upper lip rises.
        above = (1 - begun) * (1 - smoothstep(0.5, 0.8, np.abs(across)))
        colour = _mix(_mix(colour, self._tooth * 0.82, above), texture, share)
        colour = _shaded(colour, 0.72 + 0.28 * smoothstep(0, 0.10 * g.half, v - upper))
        # Lips that are pushed forward shade them.
        return _lit(colour, np.asarray(1 - 0.4 * shape.rounding, np.float32))

    def _add_drawn_teeth(
        self, colour: Floats, pose: Pose, shape: MouthShape, v: Floats, upper: Floats, across: Floats, columns: Floats
    ) -> Floats:
        """Upper teeth hang from the skull: they show as far as the lip rises over them, a little more in a smile."""
        g, soft = self._geometry, self._soft
        half = g.half
        shown = 0.07 + 0.05 * pose.teeth + 0.05 * max(0.0, shape.spread) - 0.03 * shape.rounding
        # The lip rises over the teeth as the mouth opens.
        shown = shown + 0.045 * ease(0.2 * half, 0.45 * half, shape.opening) * (1 - shape.rounding)
        along, between = self._teeth_at(across - self._midline, _UPPER_ROW)
        longer = np.interp(along, np.arange(len(_UPPER_LONGER)) + 0.5, _UPPER_LONGER)
        edge = np.interp(columns, g.u, g.lines.upper_inner)[None] - 0.10 * half * across**2
        edge = edge + (shown + longer - 0.018 * between**4) * half
        share = (1 - smoothstep(-0.6 * soft, 0.6 * soft, v - edge)) * (1 - smoothstep(0.42, 0.80, np.abs(across)))
        # In a narrow gap the teeth lie in the shadow of the lips.
        bright = ease(0.08 * half, 0.28 * half, shape.opening)
        share = share * (0.20 + 0.75 * bright + 0.5 * pose.teeth * (1 - bright))  # an s shows them even so
        lines = 1 - 0.20 * smoothstep(0.80, 1.0, between) * ease(14, 40, half)
        light = (0.50 + 0.44 * smoothstep(-0.01 * half, 0.12 * half, v - upper)) * (1 - 0.5 * np.abs(across) ** 1.5)
        return _mix(colour, _lit(self._tooth, light * lines), share)

    def _teeth_at(self, across: Floats, row: tuple[float, ...]) -> tuple[Floats, Floats]:
        """Which tooth stands in each column, counted from the midline, and 0 in its middle to 1 between two."""
        along = np.interp(np.abs(across) / self._tooth_width, row, np.arange(len(row)))
        return along, np.abs(along % 1 - 0.5) * 2

    def _close_seam(
        self, colour: Floats, cover: Floats, v: Floats, upper: Floats, lower: Floats, across: Floats, gap: Floats
    ) -> tuple[Floats, Floats]:
        """Lips that the photo shows apart were never seen meeting: a drawn line hides the join."""
        # What was between the lips must not show beside the line, so it lies in a band of the lips' own colour.
        aside, away = np.abs(across), v - (upper + lower) / 2
        band = (0.024 * self._geometry.half + 0.6) * (1 - 0.6 * smoothstep(0.65, 1.0, aside))
        seam = np.exp(-((away / np.maximum(band, 0.5 * gap + 0.6 * band)) ** 4))
        seam = seam * (1 - smoothstep(1.0, 3.2, gap)) * (1 - smoothstep(0.80, 1.0, aside)) * 0.92
        if not self._drawn:
            # Of shut lips it is thinner and paler towards the corners, and ends in nothing.
            line = np.exp(-((away / ((0.75 * band + 0.25 * gap) * (1 - 0.5 * across**2))) ** 2))
            line = line * (1 - 0.65 * smoothstep(0.6, 1.0, aside))
            shut = 1 - ease(0.05 * self._geometry.half, 0.15 * self._geometry.half, float(gap.max()))
            ink = _mix(self._palette.seam, self._palette.lips, shut * (1 - line))
        else:
            ink = self._palette.ink
        joint = seam + cover * (1 - seam)
        return _mix(colour, ink, seam / np.maximum(joint, 1e-4)), joint


def _mix(under: Floats, over: Floats, share: Floats) -> Floats:
    share = share[..., None]
    return under * (1 - share) + over * share


def _lit(colour: Floats, light: Floats) -> Floats:
    """`colour` in weaker light; shade in a mouth is red, since flesh lights it."""
    return colour * np.stack([light**1.25, light**1.18, light**0.92], axis=-1)


def _shaded(colour: Floats, light: Floats) -> Floats:
    """`colour` beside a lip, whose red light fills its shade: without that, teeth would have an outline of grey."""
    others = light**1.3
    return colour * np.stack([others, others, light**0.6], axis=-1)


def _colour_at(portrait: FramedPortrait, where: list[int]) -> Floats:
    """Median BGR at some landmarks."""
    width, height = portrait.size
    x = np.clip(portrait.points[where, 0], 0, width - 1).astype(int)
    y = np.clip(portrait.points[where, 1], 0, height - 1).astype(int)
    return np.median(portrait.image[y, x], axis=0).astype(np.float32)


def _side_light(portrait: FramedPortrait) -> float:
    """By what share the light on the right cheek of the picture exceeds that in the middle; less on the left."""
    left, right = (float(luminance(_colour_at(portrait, where))) for where in (RIGHT_CHEEK, LEFT_CHEEK))
    return max(-0.3, min(0.3, 0.7 * (right - left) / max(1.0, right + left)))


def _palette(skin: Floats, lips: Floats, ink: Floats) -> _Palette:
    light = float(luminance(skin))
    tint = skin / max(1.0, light)
    enamel = np.array([0.86, 0.92, 0.96], np.float32) * (0.50 * tint + 0.50) * min(232.0, 1.08 * light + 12)
    flesh = np.array([96, 90, 190], np.float32) * (0.95 * min(200.0, light + 20) / 255)
    return _Palette(
        cavity=lips * np.array([0.13, 0.12, 0.25], np.float32),
        lips=lips * np.array([0.74, 0.74, 0.80], np.float32),
        seam=lips * np.array([0.36, 0.34, 0.42], np.float32),
        tooth=np.clip(enamel, 0, 240).astype(np.float32),
        tongue=(0.38 * lips * np.array([0.85, 0.85, 1.0], np.float32) + flesh).astype(np.float32),
        ink=ink,
    )


def _darkest(portrait: FramedPortrait, geometry: MouthGeometry) -> Floats:
    """The colour of the darkest fiftieth of the mouth's picture, BGR."""
    g = geometry
    local = cv2.remap(portrait.image, *g.axes.picture_grid(g.u, g.v), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    pixels = local.reshape(-1, 3)
    light = luminance(pixels)
    return np.asarray(pixels[light <= np.percentile(light, 2)].mean(axis=0), np.float32)


def _find_teeth(portrait: FramedPortrait, geometry: MouthGeometry, skin: Floats) -> _OwnTeeth | None:
    """The portrait's own teeth: pale, bright pixels between the lips."""
    skin_light = float(luminance(skin))
    skin_saturation = float(1 - skin.min() / max(1.0, float(skin.max()))) * 255
    g = geometry
    local = cv2.remap(portrait.image, *g.axes.picture_grid(g.u, g.v), cv2.INTER_CUBIC)
    row = g.v[:, None]
    inside = (row > g.lines.upper_inner + 0.02 * g.half) & (row < g.lines.lower_inner - 0.02 * g.half)
    saturation = cv2.cvtColor(local, cv2.COLOR_BGR2HSV)[..., 1]
    teeth = inside & (saturation < max(110.0, 0.95 * skin_saturation)) & (luminance(local) > 0.62 * skin_light)
    if teeth.sum() <= 0.18 * max(1, inside.sum()):
        return None
    # A lip that shines is as red as the skin around it and no lighter; teeth are one or the other.
    pale = float(np.median(saturation[teeth])) < 0.65 * skin_saturation
    if not pale and float(np.percentile(luminance(local)[teeth], 65)) < 0.98 * skin_light:
        return None
    between = _between_rows(teeth, g)
    upper_row = teeth & (row < between[None]) if between is not None else teeth
    edge = _steady(g, upper_row, g.v[::-1][np.argmax(upper_row[::-1], axis=0)])
    lower = None
    if between is not None:
        lower_row = teeth & (row > between[None])
        lower = _steady(g, lower_row, g.v[np.argmax(lower_row, axis=0)])
    colour = np.clip(np.percentile(local[teeth], 65, axis=0), 0, 245).astype(np.float32)
    return _OwnTeeth(local.astype(np.float32), edge, lower, colour)


def _steady(geometry: MouthGeometry, teeth: npt.NDArray[np.bool_], line: Floats) -> Floats:
    """An edge of `teeth` over all columns, without its single steps."""
    shown, half = teeth.any(axis=0), geometry.half
    whole = np.interp(geometry.u, geometry.u[shown], line[shown])
    return blur_row(median_row(whole, 0.3 * half), 0.12 * half)


def _between_rows(teeth: npt.NDArray[np.bool_], geometry: MouthGeometry) -> Floats | None:
    """A line over the columns between the upper teeth and the lower ones; nothing where only one row is seen."""
    middles = np.full(len(geometry.u), np.nan)
    for column in np.flatnonzero(teeth.any(axis=0)):
        rows = np.flatnonzero(teeth[:, column])
        apart = np.diff(rows)
        if len(apart) and apart.max() > max(2.0, 0.06 * geometry.half):
            widest = int(np.argmax(apart))
            middles[column] = (geometry.v[rows[widest]] + geometry.v[rows[widest + 1]]) / 2
    found = np.isfinite(middles)
    if found[np.abs(geometry.across) < 0.5].mean() < 0.5:
        return None
    return np.interp(geometry.u, geometry.u[found], middles[found]).astype(np.float32)
