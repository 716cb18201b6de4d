"""What a face does by itself: blinks, glances, postures, sway and breath, as functions of the seed and the time.

Nothing here has memory, and nothing comes round again.  Time is cut into stretches; the events of a stretch follow each
other at intervals that are drawn as a person's scatter, so any moment is found without what came before its stretch.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Callable
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from workers.engines.preview.shaping import ease

Chance = Callable[..., float]
_NORMAL = NormalDist()
_EVENTS_IN_A_STRETCH = 16.0  # on average
_KEPT_STRETCHES = 8

_SWAY = ((0.23, 0.80), (0.47, 0.45), (0.83, 0.20), (1.40, 0.10))  # places a second, amplitude
_LID_SECONDS = (0.0, 0.03, 0.07, 0.09, 0.14, 0.18, 0.22, 0.27, 0.34)
_LID_CLOSED = (0.0, 0.35, 0.90, 1.0, 1.0, 0.80, 0.45, 0.20, 0.0)
_BLINK_SPREAD = 0.75
_BLINK_LEAST_SECONDS = 0.7
_DOUBLE_BLINK = 0.06  # share of blinks that come twice
_DOUBLE_AFTER_SECONDS = 0.42
_WITH_A_GLANCE_SECONDS = 0.35  # lids close as the eyes move, where both happen at nearly the same time
_LONGEST_BLINK_SECONDS = 1.4  # from its moment, with a delay and a second one
_HALF_BLINK = 0.10  # share of blinks that do not close the lids entirely
_GLANCE_MOVE_SECONDS = (0.04, 0.06)  # a saccade
_HEAD_FOLLOWS_SECONDS = (0.35, 0.6)
_ASIDE = 0.5  # share of glances that leave the camera, unless the one before did
_POSTURE_MOVE_SECONDS = (0.45, 0.85)
_SETTLE_MOVE_SECONDS = (0.8, 1.5)
_INHALE = (0.34, 0.44)  # share of a breath


def chance_of(seed: int) -> Chance:
    """A function of any key: a number in [0, 1) that only the seed and the key decide."""

    @lru_cache(maxsize=2048, typed=True)  # a frame asks for what the frame before it asked for
    def chance(*key: object) -> float:
        name = ":".join(map(str, (seed, *key))).encode()
        return int.from_bytes(hashlib.blake2b(name, digest_size=6).digest(), "little") / 2**48

    return chance


class Events:
    """Moments at which something happens again and again; the logarithm of an interval is normally distributed."""

    def __init__(self, chance: Chance, name: str, mean: float, spread: float, least: float) -> None:
        """`mean` and `least` are seconds from one event to the next, `spread` the deviation of the logarithm."""
        self._chance, self._name, self._least, self._spread = chance, name, least, spread
        self._scale = (mean - least) * math.exp(-(spread**2) / 2)
        self._stretch = _EVENTS_IN_A_STRETCH * mean
        self._known: dict[int, list[float]] = {}

    def around(self, seconds: float, count: int = 2) -> list[float]:
        """The last `count` events up to `seconds`, and the next one."""
        here = math.floor(seconds / self._stretch)
        near = self._known.get(here)
        if near is None:
            if len(self._known) >= _KEPT_STRETCHES:
                self._known.clear()
            near = [moment for stretch in range(here - 3, here + 3) for moment in self._draw(stretch)]
            self._known[here] = near
        after = bisect_right(near, seconds)
        return near[after - count : after + 1]

    def _draw(self, stretch: int) -> list[float]:
        # Stretches differ in length, or their beginnings would be a rhythm of their own.
        begin, end = ((k + 0.4 * self._chance(self._name, "from", k)) * self._stretch for k in (stretch, stretch + 1))
        found = [begin + (self._interval(stretch, 0) - self._least) * self._chance(self._name, "first", stretch)]
        found = [min(found[0], end - self._least)]
        while (after := found[-1] + self._interval(stretch, len(found))) <= end - self._least:
            found.append(after)
        # Moments are keys of what is drawn for them: whole milliseconds hide last-bit differences of maths libraries.
        return [round(moment, 3) for moment in found]

    def _interval(self, stretch: int, count: int) -> float:
        drawn = min(0.999, max(0.001, self._chance(self._name, "interval", stretch, count)))
        return self._least + self._scale * math.exp(self._spread * _NORMAL.inv_cdf(drawn))


class Idle:
    """One person's motion without speech.  All values are about -1..1 unless it says otherwise."""

    def __init__(self, seed: int, blink_rate: float) -> None:
        """`blink_rate` is blinks a minute; 0 for none."""
        self._chance = chance = chance_of(seed)
        self._sway_size = {way: 0.7 + 0.6 * chance("size", way) for way in range(5)}
        self._postures = [
            Events(chance, "turn", 2.9, 0.5, _POSTURE_MOVE_SECONDS[1]),
            Events(chance, "lean", 3.7, 0.5, _POSTURE_MOVE_SECONDS[1]),
        ]
        self._settles = Events(chance, "settle", 6.5, 0.6, _SETTLE_MOVE_SECONDS[1])
        self._glances = Events(chance, "glance", 1.9, 0.7, 0.3)
        self._breaths = Events(chance, "breath", 4.1, 0.45, 2.2)
        self._lifts = Events(chance, "lift", 8.0, 0.7, 1.6)
        self._blinks = None
        if blink_rate > 0:
            mean = 60.0 / blink_rate * (1 + _DOUBLE_BLINK)
            self._blinks = Events(chance, "blink", mean, _BLINK_SPREAD, min(_BLINK_LEAST_SECONDS, 0.4 * mean))

    def sway(self, way: int, seconds: float) -> float:
        """Slow, never still: of one of five ways of the head."""
        return self._sway_size[way] * sum(
            size * self._noise(seconds * rate, "sway", way, k) for k, (rate, size) in enumerate(_SWAY)
        )

    def posture(self, way: int, seconds: float) -> float:
        """Where the head wants to be: a place held for seconds, then the next one within a good half second."""
        return self._step(
            self._postures[way % 2],
            seconds,
            _POSTURE_MOVE_SECONDS,
            lambda moment: 2 * self._chance("posture", way, moment) - 1,
        )

    def settle(self, way: str, seconds: float) -> float:
        """Where the shoulders are: they carry the head, move more rarely and more slowly, and sway a little."""
        place = self._step(
            self._settles, seconds, _SETTLE_MOVE_SECONDS, lambda moment: 2 * self._chance("settle", way, moment) - 1
        )
        return 0.8 * place + 0.5 * self._noise(0.29 * seconds, "settle sway", way)

    def glance(self, way: str, seconds: float) -> float:
        """Where the eyes look: mostly at the camera, though never quite at the same point of it."""
        return self._step(self._glances, seconds, _GLANCE_MOVE_SECONDS, lambda moment: self._looks(way, moment))

    def follow(self, way: str, seconds: float) -> float:
        """The head that goes after a glance."""
        return self._step(self._glances, seconds, _HEAD_FOLLOWS_SECONDS, lambda moment: self._looks(way, moment), 4)

    def breath(self, seconds: float) -> float:
        """-1 when the lungs are empty.  No two breaths are equally long or deep."""
        _, begun, ends = self._breaths.around(seconds)
        least, most = _INHALE
        share = (seconds - begun) / (ends - begun)
        inhale = least + (most - least) * self._chance("inhale", begun)
        deep = 1.5 + 0.6 * self._chance("depth", begun)
        drawn = ease(0.0, inhale, share)
        # Air is let out quickly at first.
        left = (1 - ease(0.0, 1.0, max(0.0, (share - inhale) / (1 - inhale)) ** 0.8)) if share > inhale else 1.0
        return deep * drawn * left - 1.0

    def lift(self, seconds: float) -> float:
        """A short raise of the brows now and then, 0..1."""
        _, begun, _ = self._lifts.around(seconds)
        if self._chance("lifts", begun) > 0.5:
            return 0.0
        since = seconds - begun
        return (0.4 + 0.6 * self._chance("high", begun)) * ease(0.0, 0.22, since) * (1 - ease(0.45, 1.3, since))

    def smile(self, seconds: float) -> float:
        """The corners of the mouth, never quite still."""
        return 1.3 * self._noise(0.31 * seconds, "smile", 0) + 0.5 * self._noise(0.83 * seconds, "smile", 1)

    def blink(self, seconds: float) -> float:
        """How far the lids are closed, 0..1."""
        if self._blinks is None:
            return 0.0
        return max(self._lids(seconds, moment) for moment in self._blinks.around(seconds))

    def _lids(self, seconds: float, moment: float) -> float:
        """Of the blink that was drawn for one moment."""
        if not -_WITH_A_GLANCE_SECONDS <= seconds - moment <= _LONGEST_BLINK_SECONDS:
            return 0.0
        onset = moment
        for glance in self._glances.around(moment):
            if abs(glance - moment) < _WITH_A_GLANCE_SECONDS:
                onset = glance
        slow = 0.88 + 0.34 * self._chance("slow", moment)
        closed = _lids_after((seconds - onset) / slow)
        if self._chance("double", moment) < _DOUBLE_BLINK:
            closed = max(closed, _lids_after((seconds - onset - _DOUBLE_AFTER_SECONDS) / slow))
        far = self._chance("far", moment)
        return closed * (1.0 if far > _HALF_BLINK else 0.6 + 3.0 * far)

    def _looks(self, way: str, moment: float) -> float:
        """Where one glance goes.  The film begins with eyes on the camera, and each way back leads there."""
        if moment < 0:
            return 0.0
        drawn = 2 * self._chance("glance", way, moment) - 1
        previous = self._glances.around(moment)[0]
        aside = self._chance("aside", moment) < _ASIDE and self._chance("aside", previous) >= _ASIDE
        return math.copysign(0.25 + 0.75 * abs(drawn), drawn) if aside else 0.14 * drawn

    def _step(
        self,
        events: Events,
        seconds: float,
        moves: tuple[float, float],
        place: Callable[[float], float],
        count: int = 2,
    ) -> float:
        """A value that rests at the place of the last event and steps to the next one's.

        The last `count` events must reach further back than a step takes.
        """
        first, *others = events.around(seconds, count)[:-1]
        quick, slow = moves
        value = at = place(first)
        for moment in others:
            took = quick + (slow - quick) * self._chance("took", moment)
            before, at = at, place(moment)
            value += (at - before) * ease(0.0, 1.0, (seconds - moment) / took)
        return value

    def _noise(self, place: float, *key: object) -> float:
        """Values drawn at whole places, joined smoothly."""
        low = math.floor(place)
        share = place - low
        share = share**3 * (share * (6 * share - 15) + 10)
        before, after = (2 * self._chance(*key, k) - 1 for k in (low, low + 1))
        return before + (after - before) * share


def _lids_after(seconds: float) -> float:
    return float(np.interp(seconds, _LID_SECONDS, _LID_CLOSED))
