"""The mouth: its lines in the portrait, and how they move.

In a frame along the lips every column has seven knots: nose base, outer and inner edge of the upper lip, inner and
outer edge of the lower lip, chin, neck.  A pose moves the knots; between them the picture is stretched linearly.  The
backward map (where each pixel comes from) is therefore exact and always invertible, without iterations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np

from workers.engines.preview import landmarks
from workers.engines.preview.axes import Axes
from workers.engines.preview.face import Doubles
from workers.engines.preview.framing import FramedPortrait
from workers.engines.preview.lip_edges import LipLines, find_lip_edges
from workers.engines.preview.motion import Pose
from workers.engines.preview.shaping import (
    Floats,
    blur_row,
    ease,
    smoothstep,
    through_points,
)

_PARTED = 0.16  # a gap of this share of the mouth's half width counts as a portrait with parted lips
_AGAPE = (0.5, 0.72)  # from the first to the second gap the jaw, not the grin, is what holds the lips apart
# A mouth at rest and in a grin: its width in distances of the eyes' outer corners; how far it sags below its corners.
_GRIN_WIDTH, _GRIN_SAG = (0.56, 0.72), (0.0, 0.12)


@dataclass(frozen=True)
class MouthLines:
    """Lines of the mouth in local coordinates; each a curve over the columns u."""

    nose: Floats
    upper_outer: Floats
    upper_inner: Floats
    lower_inner: Floats
    lower_outer: Floats
    chin: Floats
    neck: Floats

    def at(self, columns: Floats, u: Floats) -> MouthLines:
        """The lines read at other columns."""
        return MouthLines(*(np.interp(columns, u, line).astype(np.float32) for line in vars(self).values()))


@dataclass(frozen=True)
class MouthGeometry:
    """The mouth as the portrait shows it."""

    axes: Axes  # u along the lips, origin between the corners
    half: float  # half the distance of the corners, pixels
    u: Floats  # columns of the local grid
    v: Floats  # rows
    lines: MouthLines
    centre: float  # u between the corners
    inner: tuple[float, float]  # u of the inner corners
    reach: tuple[float, float]  # distance from the centre to the jaw's edge on either side, in halves
    gap: float  # between the lips in the portrait, pixels
    parted: bool  # the portrait shows parted lips
    agape: float  # 0..1, how far it is the jaw that holds them apart
    grin: float  # 0..1, how much a smile pulls lips that it has parted
    flat: tuple[Floats, Floats]  # of upper and lower lip: its thickness across itself for that in its column

    @property
    def across(self) -> Floats:
        """Columns in halves from the centre; the corners are at -1 and 1."""
        return (self.u - self.centre) / np.float32(self.half)


@dataclass(frozen=True)
class MouthShape:
    """One frame's mouth."""

    displacement: Floats  # [rows, columns, 2]: du, dv from a pixel to where it comes from
    opening: float  # of the lips at the centre, pixels
    jaw: float  # by how much the jaw is lower than in the portrait, pixels
    columns: Floats  # u in the portrait that each column shows
    upper: Floats  # moved inner edge of the upper lip
    lower: Floats  # moved inner edge of the lower lip
    talk: float  # 0 at rest, 1 in speech
    rounding: float
    spread: float


def measure_mouth(portrait: FramedPortrait) -> MouthGeometry:
    """Find the mouth's lines in the landmarks; where teeth show, sharpen the lip edges by their colour."""
    flat = portrait.points[:, :2]
    origin = (flat[landmarks.RIGHT_CORNER] + flat[landmarks.LEFT_CORNER]) / 2
    axes = Axes.along(flat[landmarks.RIGHT_EYE_OUTER], flat[landmarks.LEFT_EYE_OUTER], origin)
    local = axes.to_local(flat)
    corners = local[[landmarks.RIGHT_CORNER, landmarks.LEFT_CORNER]]
    half = max(4.0, float(corners[1, 0] - corners[0, 0]) / 2)
    centre = float(corners[:, 0].mean())
    jaw_left, jaw_right = float(local[landmarks.JAW, 0].min()), float(local[landmarks.JAW, 0].max())
    nose_base, chin = 0.80 * float(local[landmarks.NOSE_BASE, 1]), float(local[landmarks.CHIN, 1])

    u = np.arange(int(1.08 * jaw_left), int(1.08 * jaw_right) + 1, dtype=np.float32)
    v = np.arange(int(nose_base - 1.5 * half), int(chin + 1.25 * half) + 1, dtype=np.float32)
    upper_inner, lower_inner = (
        through_points(local[landmarks.UPPER_INNER_LIP], u),
        through_points(local[landmarks.LOWER_INNER_LIP], u),
    )
    lower_inner = np.maximum(lower_inner, upper_inner)  # the landmarks of closed lips may cross
    upper_outer = np.minimum(through_points(local[landmarks.UPPER_OUTER_LIP], u), upper_inner - 0.01)
    lower_outer = np.maximum(through_points(local[landmarks.LOWER_OUTER_LIP], u), lower_inner + 0.01)
    near_centre = np.abs(u - centre) < 0.3 * half
    if float(np.median((lower_inner - upper_inner)[near_centre])) > _PARTED * half and not portrait.drawn:
        local_picture = cv2.remap(portrait.image, *axes.picture_grid(u, v), cv2.INTER_LINEAR)
        edges = LipLines(upper_outer, upper_inner, lower_inner, lower_outer)
        across = (u - np.float32(centre)) / np.float32(half)
        upper_inner, lower_inner = find_lip_edges(local_picture, across, v, edges, half)

    soft = max(0.5, 0.03 * half)
    upper_outer, upper_inner, lower_inner, lower_outer = (
        blur_row(line, soft) for line in (upper_outer, upper_inner, lower_inner, lower_outer)
    )
    chin_line = blur_row(np.maximum(through_points(local[landmarks.JAW], u), lower_outer + 0.25 * half), 0.2 * half)
    nose = np.minimum(np.full_like(u, nose_base), upper_outer - 0.12 * half)
    lines = MouthLines(nose, upper_outer, upper_inner, lower_inner, lower_outer, chin_line, chin_line + 1.15 * half)
    gap = float(np.median(np.maximum(lower_inner - upper_inner, 0)[near_centre]))
    parted = gap > _PARTED * half
    eyes = float(np.linalg.norm(np.subtract(*flat[[landmarks.LEFT_EYE_OUTER, landmarks.RIGHT_EYE_OUTER]])))
    sag = float(np.median((upper_inner + lower_inner)[near_centre])) / 2 - float(corners[:, 1].mean())
    agape = ease(*_AGAPE, gap / half)
    grin = ease(*_GRIN_WIDTH, 2 * half / max(eyes, 1.0)) * ease(*_GRIN_SAG, sag / half) * (1 - agape) if parted else 0.0
    return MouthGeometry(
        axes=axes,
        half=half,
        u=u,
        v=v,
        lines=lines,
        centre=centre,
        inner=_inner_corners(local, u, lower_inner - upper_inner, half),
        reach=(_bounded((centre - jaw_left) / half), _bounded((jaw_right - centre) / half)),
        gap=gap,
        parted=parted,
        agape=agape,
        grin=grin,
        flat=(_flatness((upper_outer + upper_inner) / 2), _flatness((lower_outer + lower_inner) / 2)),
    )


def _inner_corners(local: Doubles, u: Floats, gap: Floats, half: float) -> tuple[float, float]:
    """Where the lips' inner edges meet on either side: the mesh's corners, or further out if there is still a gap."""
    right, left = (float(local[where, 0]) for where in (landmarks.RIGHT_INNER_CORNER, landmarks.LEFT_INNER_CORNER))
    outer = local[[landmarks.RIGHT_CORNER, landmarks.LEFT_CORNER], 0]
    apart = u[(gap > 0.06 * half) & (u > outer[0]) & (u < outer[1])]
    if not len(apart):
        return right, left
    return min(right, float(apart[0])), max(left, float(apart[-1]))


def _flatness(line: Floats) -> Floats:
    """The cosine of a line's slope: a lip that runs down steeply is thinner than it is high."""
    return np.asarray(1 / np.sqrt(1 + np.gradient(line) ** 2), np.float32)


def _bounded(reach: float) -> float:
    return min(2.5, max(1.35, reach))


class MouthWarp:
    """Moves a mouth.  `strength` scales how far it opens and the lips travel."""

    def __init__(self, geometry: MouthGeometry, strength: float) -> None:
        self.geometry = geometry
        self._strength = strength
        g, t, (left, right) = geometry, geometry.across, geometry.reach
        share = np.clip(np.where(t < 0, -t / left, t / right) * 0.98, 0, 1)
        self._chin_share = (np.cos(share * math.pi / 2) ** 2).astype(np.float32)
        # Movements fade out towards the cheeks, the nose and the neck.
        self._sides = (1 - smoothstep(0.86, 1.04, np.where(t < 0, -t / left, t / right))).astype(np.float32)[None]
        far = np.exp(-((np.abs(g.v - 0.05 * g.half) / (0.95 * g.half)) ** 2.2))
        self._rows = (far * smoothstep(g.v[0], g.v[0] + 0.5 * g.half, g.v)).astype(np.float32)[:, None]

    def shape(self, pose: Pose) -> MouthShape:
        """The mouth of one pose."""
        g, gain = self.geometry, self._strength
        half = g.half
        closing = pose.closing
        talk = ease(0.15, 0.5, pose.talk)
        rounding, spread = pose.round * talk, (pose.wide - 0.35) * talk
        opening = self._opening(pose, closing, talk)

        stretch = 1 + 0.11 * spread * gain - 0.27 * rounding * gain * (1 - 0.3 * closing) + 0.022 * pose.smile
        # A grin is not kept while talking: its corners come in and down.
        relaxed = g.grin * (0.35 + 0.65 * talk)
        jaw = max(0.0, opening - (0.6 + 0.4 * g.agape) * g.gap) * 0.72
        # A jaw that drops draws the corners in.
        narrowed = 0.13 * relaxed + (0.03 * talk if g.parted else 0.0) + (0.05 + 0.15 * g.grin) * jaw / half
        columns = self._source_columns(stretch - narrowed)
        source = g.lines.at(columns, g.u)
        across = (columns - np.float32(g.centre)) / np.float32(half)
        distance = np.abs(across)

        profile = self._profile(columns, pose.open, rounding)
        apart = np.maximum(source.lower_inner - source.upper_inner, 0)
        change = opening * profile - apart
        # Opening lowers the lower lip most.  Closing brings both lips of a grin together, and those of a jaw that hangs
        # as the jaw does, from below.
        upper_share = np.where(change > 0, np.float32(0.20), np.float32(0.32 - 0.14 * g.agape))
        lower_share = 1 - upper_share
        corner = np.where(distance > 0.8, np.exp(-(((distance - 1) / 0.7) ** 2)), 1)
        sinks = (0.50 + 0.14 * g.grin) * jaw - 0.02 * half * pose.smile + 0.07 * half * relaxed
        corner = corner * sinks * np.clip(distance, 0, 1) ** 2
        belly = smoothstep(0, 0.55, np.clip(1 - distance, 0, 1))
        lift = (0.035 * half * pose.tuck * talk + 0.02 * half * spread) * belly
        press, pucker = 0.05 * half * closing * belly, 0.055 * half * rounding * gain * belly
        tuck = 0.075 * half * pose.tuck * talk * belly

        upper_inner = source.upper_inner - upper_share * change - lift + corner
        lower_inner = source.lower_inner + lower_share * change + corner - 0.5 * tuck
        shut = np.clip(-change / np.maximum(apart, np.float32(1)), 0, 1)
        if g.parted:  # lips that were never seen meeting meet in a smooth line
            smooth = shut * (blur_row(upper_inner, 0.12 * half) - upper_inner)
            upper_inner, lower_inner = upper_inner + smooth, lower_inner + smooth
        upper_outer = source.upper_outer - 0.75 * upper_share * change - 0.9 * lift + corner + press - pucker
        follow = np.where(change > 0, np.float32(0.93), np.float32(0.55))
        lower_outer = source.lower_outer + lower_share * change * follow + corner - press + pucker - tuck
        if g.agape:
            above, below = self._kept_thickness(columns, source)
            carried = shut * np.float32(g.agape)
            upper_outer += carried * (upper_inner - above + 0.3 * press - pucker - upper_outer)
            lower_outer += carried * (lower_inner + below - 0.3 * press + pucker - 0.5 * tuck - lower_outer)
        raised = min(0.0, opening - g.gap) * (0.30 + 0.28 * g.agape)
        chin = source.chin + (jaw + raised) * self._chin_share
        # Lips keep some thickness, and no line crosses its neighbour.
        upper_outer = np.minimum(upper_outer, upper_inner - 0.35 * (source.upper_inner - source.upper_outer))
        lower_outer = np.maximum(lower_outer, lower_inner + 0.35 * (source.lower_outer - source.lower_inner))
        chin = np.maximum(chin, lower_outer + 0.4 * (source.chin - source.lower_outer))

        if g.parted:
            # Closing lips roll in a little: what is nearest to the teeth, and may be a shaded tooth, goes from sight.
            roll = (0.02 + 0.06 * g.agape) * half * shut
            rolled = source.upper_inner - np.minimum(roll, 0.4 * (source.upper_inner - source.upper_outer))
            under = source.lower_inner + np.minimum(0.5 * roll, 0.4 * (source.lower_outer - source.lower_inner))
            source = replace(source, upper_inner=rolled, lower_inner=under)
        moved = MouthLines(source.nose, upper_outer, upper_inner, lower_inner, lower_outer, chin, source.neck)
        down = cv2.GaussianBlur(_stretch(g.v, moved, source), (0, 0), max(0.5, 0.022 * half)) * self._sides
        along = (columns - g.u)[None] * self._rows
        return MouthShape(
            displacement=np.dstack([along, down]).astype(np.float32),
            opening=opening,
            jaw=jaw,
            columns=columns,
            upper=upper_inner.astype(np.float32),
            lower=lower_inner.astype(np.float32),
            talk=talk,
            rounding=rounding,
            spread=spread,
        )

    def _kept_thickness(self, columns: Floats, source: MouthLines) -> tuple[Floats, Floats]:
        """Of both lips in each column once they lie level: a jaw that hangs carries them and squeezes nothing."""
        g = self.geometry
        above, below = (np.interp(columns, g.u, flat).astype(np.float32) for flat in g.flat)
        return (source.upper_inner - source.upper_outer) * above, (source.lower_outer - source.lower_inner) * below

    def _opening(self, pose: Pose, closing: float, talk: float) -> float:
        """Distance of the lips at the centre, in pixels."""
        g, gain = self.geometry, self._strength
        apart = 1 - closing
        wanted = (0.40 if g.parted else 0.50) * gain * pose.open * (0.85 + 0.25 * pose.level) * talk
        opening = g.half * max(wanted, gain * (0.085 * pose.teeth + 0.09 * pose.tuck) * talk) * apart
        # Lips come together in short pauses, and in long ones they are as the portrait has them, or nearly.  A jaw that
        # hangs does not hang on while nobody speaks.
        settled = ease(0.8, 2.4, pose.rest_seconds)
        if g.parted:
            resting = g.gap * (0.04 + 0.52 * settled) * (1 - 0.75 * g.agape)
            opening += 0.25 * g.gap * min(1.0, 1.3 * pose.open) * talk * apart
        else:
            resting = min(g.gap, 0.04 * g.half) * (0.25 + 0.75 * settled)
        return opening + (1 - talk) * apart * resting + talk * apart * min(g.gap, 0.03 * g.half)

    def _source_columns(self, stretch: float) -> Floats:
        """u in the portrait that each column shows, when the corners stand `stretch` times as far apart."""
        g, t, (left, right) = self.geometry, self.geometry.across, self.geometry.reach
        stretch = min(1.14, max(0.68, stretch))
        cheek_left, cheek_right = 1 + (left - 1) * 0.45, 1 + (right - 1) * 0.45
        cheek_shift = (stretch - 1) * 0.42
        moved = [-left, -cheek_left - cheek_shift, -stretch, 0, stretch, cheek_right + cheek_shift, right]
        fixed = [-left, -cheek_left, -1, 0, 1, cheek_right, right]
        source = np.where((t > -left) & (t < right), np.interp(t, moved, fixed), t)
        return g.u + blur_row((source - t) * g.half, 0.14 * g.half)

    def _profile(self, columns: Floats, opened: float, rounding: float) -> Floats:
        """The opening along the lips, 1 at the centre, 0 at the inner corners: a lens, rounder for o and u."""
        left, right = self.geometry.inner
        t = np.clip(np.abs((columns - (left + right) / 2) / ((right - left) / 2)), 0, 1)
        power = 2.0 + 0.8 * max(0.0, opened - 0.45) + 0.9 * rounding
        lens = np.maximum(0, 1 - t**power) ** 1.2
        round_shape = np.sqrt(np.maximum(0, 1 - t * t))
        roundness = min(0.5, 0.25 * rounding + 0.36 * ease(0.25, 0.9, opened))
        return (lens * (1 - roundness) + roundness * round_shape).astype(np.float32)


def _stretch(v: Floats, moved: MouthLines, source: MouthLines) -> Floats:
    """dv [rows, columns] of the map that is linear between each column's knots and still outside them.

    Written as a sum of ramps: each segment adds its own stretch to the rows inside it and passes its whole change on.
    """
    rows = v[:, None]
    to, back = [np.asarray(line, np.float32) for line in vars(moved).values()], list(vars(source).values())
    result = np.zeros((len(v), len(to[0])), np.float32)
    for d0, d1, s0, s1 in zip(to, to[1:], back, back[1:], strict=False):
        length = np.maximum(d1 - d0, np.float32(1e-2))
        factor = (s1 - s0) / length - 1
        first, last = np.searchsorted(v, (d0.min(), (d0 + length).max()))
        inside = rows[first:last] - d0
        np.maximum(inside, 0, out=inside)
        np.minimum(inside, length, out=inside)
        inside *= factor
        result[first:last] += inside
        result[last:] += length * factor
    return result
