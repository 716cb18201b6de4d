"""Where lips that the face mesh sees apart really end.

The mesh smooths: it cuts through the teeth of an open mouth, and takes a shaded or painted lip for a gap.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from workers.engines.preview.shaping import Floats, Pixels, blur_row, luminance, median_row

_WIDE_OPEN = 0.5  # half widths; the mesh takes nothing else for so large a gap
_TEETH = 0.15  # share of what is between the lips; less may be a light on a lip
_FURTHEST = 0.24  # half widths by which an edge of a wide open mouth may lie outside of the mesh's
_FURTHER = 0.09  # the same where the mesh sees less
_INWARDS = 0.14
_LIP_STAYS = 0.3  # share of a lip, from its outer edge, that is never taken for teeth
_LEAST_PIXELS = 30  # of lips and of what is between them, or nothing can be told
_SAMPLES = 150  # pixels of each kind that a pixel is compared with
_NEAREST = 5
_ALIKE = 4.0  # L*a*b*: distance over which two colours count as one
_SURE = 3.0  # one pixel decides no more than this
_STEP = 2  # rows by which an edge may rise or fall from one column to the next
_BEND = 0.5  # what a step of one row costs
_STAY = 6.0  # what the furthest place from the mesh's edge costs
_SHADOW = 0.8  # of the light of the lips: the line where they meet is darker


class LipLines(NamedTuple):
    """The edges of both lips over the columns."""

    upper_outer: Floats
    upper_inner: Floats
    lower_inner: Floats
    lower_outer: Floats


def find_lip_edges(local: Pixels, across: Floats, v: Floats, lines: LipLines, half: float) -> tuple[Floats, Floats]:
    """The inner edges of upper and lower lip, found in the picture near those of `lines`.

    `local` [rows, columns, 3] is the mouth along its lines; `across` its columns in half widths from the centre, `v`
    its rows.  What is between the lips (teeth in light or in shadow, tongue, dark) is told from lips by colours that
    this mouth shows where there is no doubt.  In each column the edge is put where it parts the two best, and all
    columns are chosen together, so that it does not jump (Viterbi).
    """
    soft = cv2.GaussianBlur(local, (0, 0), max(0.4, 0.012 * half))
    lab = cv2.cvtColor(soft.astype(np.float32) / 255, cv2.COLOR_BGR2LAB)
    row, near = v[:, None], np.abs(across) < 0.85
    gap = lines.lower_inner - lines.upper_inner
    upper_lip = (row > lines.upper_outer) & (row < (lines.upper_outer + lines.upper_inner) / 2) & near
    lower_lip = (row < lines.lower_outer) & (row > (lines.lower_outer + lines.lower_inner) / 2) & near
    if min(upper_lip.sum(), lower_lip.sum()) < _LEAST_PIXELS:
        return lines.upper_inner, lines.lower_inner
    # A column that the mesh leaves shut may be the dark corner of the mouth: it is looked at as far as the lips reach.
    reach = half * np.clip(1.04 - np.abs(across), 0, 0.12) / 0.12
    highest = lines.upper_outer + _LIP_STAYS * (lines.upper_inner - lines.upper_outer)
    lowest = lines.lower_outer - _LIP_STAYS * (lines.lower_outer - lines.lower_inner)
    zone = (row >= highest) & (row <= lowest)
    wide_open = float(np.median(gap[np.abs(across) < 0.3])) > _WIDE_OPEN * half
    outwards = reach * (_FURTHEST if wide_open else _FURTHER)
    if wide_open or _shows_teeth(local, row, across, lines, half):
        # The mesh lets the lower lip begin too low as often as it cuts the teeth: what is near it is not asked.
        between = row < lines.lower_inner - np.maximum(0.05 * half, 0.3 * gap)
        between &= (row > lines.upper_inner + 0.04 * half) & near
        upper, lower, inwards = lines.upper_inner, lines.lower_inner, _INWARDS * reach
    else:
        light = lab[..., 0]
        path = _path(np.where(zone, -light / 20, -1e6), v)
        darkest = np.where(np.abs(across) < 1, v[path], lines.upper_inner)
        upper = lower = blur_row(median_row(darkest, 0.06 * half), 0.03 * half)
        between = zone & near & (light < _SHADOW * np.median(light[upper_lip | lower_lip]))
        between &= np.abs(row - upper) < 0.15 * half
        inwards, outwards = np.zeros_like(reach), reach * _FURTHEST
    if between.sum() < _LEAST_PIXELS:
        return upper, lower
    within = _unlike(lab, between, zone)
    top = np.maximum(upper - outwards, highest)
    bottom = np.minimum(lower + outwards, lowest)
    upper = _edge(_unlike(lab, upper_lip, zone) - within, v, upper, (top, upper + inwards), half)
    # The same search, seen upside down.
    share = (_unlike(lab, lower_lip, zone) - within)[::-1]
    lower = -_edge(share, -v[::-1], -lower, (-bottom, -lower + inwards), half)
    middle = (upper + lower) / 2
    return np.minimum(upper, middle), np.maximum(lower, middle)


def _shows_teeth(local: Pixels, row: Floats, across: Floats, lines: LipLines, half: float) -> bool:
    """Whether a good part of what the mesh sees between the lips is paler than lips and as light as teeth."""
    saturation = cv2.cvtColor(local, cv2.COLOR_BGR2HSV)[..., 1].astype(np.float32)
    light = luminance(local)
    core = (row > lines.upper_inner) & (row < lines.lower_inner)
    lips = (row < lines.upper_inner - 0.02 * half) & (row > lines.upper_outer)
    lips |= (row > lines.lower_inner + 0.02 * half) & (row < lines.lower_outer)
    lips &= np.abs(across) < 1
    if core.sum() < _LEAST_PIXELS or not lips.any():
        return False
    pale = 0.55 * np.median(saturation[lips]) + 0.45 * np.percentile(saturation[core], 30)
    teeth = (core & (light > 0.62 * np.percentile(light[core], 80)) & (saturation < pale)).astype(np.uint8)
    teeth = cv2.morphologyEx(teeth, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    return bool(teeth.sum() > _TEETH * core.sum())


def _unlike(lab: Floats, kind: npt.NDArray[np.bool_], zone: npt.NDArray[np.bool_]) -> Floats:
    """How far the colour of each pixel of `zone` is from the nearest of those of `kind`, squared, [rows, columns].

    The nearest, not the mean: teeth in the shadow of the lip are few, and count as much as those in the light.
    """
    colours = lab[kind]
    colours = colours[np.linspace(0, len(colours) - 1, min(len(colours), _SAMPLES)).astype(int)]
    pixels = lab[zone]
    apart = (pixels**2).sum(axis=1)[:, None] - 2 * pixels @ colours.T + (colours**2).sum(axis=1)
    few = np.partition(apart, _NEAREST - 1, axis=1)[:, :_NEAREST].mean(axis=1)
    unlike = np.zeros(lab.shape[:2], np.float32)
    unlike[zone] = np.maximum(few, 0) / (2 * _ALIKE**2)
    return unlike


def _edge(share: Floats, v: Floats, line: Floats, bounds: tuple[Floats, Floats], half: float) -> Floats:
    """The line, between the `bounds`, that has lip above it and the inside below it; `share` is positive inside."""
    row, (high, low) = v[:, None], bounds
    may = (row >= high) & (row <= low)
    gain = np.where(may, np.clip(share, -_SURE, _SURE), 0)
    # With the edge above a row, it and what follows count as inside, and what is before as lip.
    score = -2 * (np.cumsum(gain, axis=0) - gain) - _STAY * np.abs(row - line) / (_FURTHEST * half)
    may |= np.abs(row - np.clip(line, high, low)) <= 0.5
    found = v[_path(np.where(may, score, -1e6), v)] - 0.5
    return blur_row(median_row(found - line, 0.10 * half), 0.04 * half) + line


def _path(score: Floats, v: Floats) -> npt.NDArray[np.intp]:
    """The row of each column that together score highest, without jumps (Viterbi)."""
    best, came = score[:, 0], []
    for column in score.T[1:]:
        padded = np.pad(best, _STEP, constant_values=-1e9)
        options = np.stack([padded[_STEP + k : _STEP + k + len(v)] - _BEND * abs(k) for k in range(-_STEP, _STEP + 1)])
        choice = options.argmax(axis=0)
        came.append(choice - _STEP)
        best = options[choice, np.arange(len(v))] + column
    places = [int(best.argmax())]
    for back in reversed(came):
        places.append(places[-1] + int(back[places[-1]]))
    return np.array(places[::-1], np.intp)
