"""From curves and time to the pose of each frame.

Nothing here has memory.  Smoothing is done by finite windows over the curves, at 100 values a second and in integers,
so it is exact in any order; blinks and sway are functions of the seed and the time.  A frame's pose is therefore the
same wherever the render started.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from workers.engines.preview.articulation import FUTURE, RATE, UNIT, Curve, Curves, SpeechCurves
from workers.engines.preview.film_facts import SpeechRange
from workers.engines.preview.settings import PreviewSettings
from workers.engines.preview.shaping import ease

_FINE = 64  # smoothing works in units of 1 / (UNIT * _FINE), so that slow curves do not move in visible steps
_WHOLE = UNIT * _FINE
_PAST = 500  # curve values before a frame that its pose may depend on: 300 for the rest after 160 for its talk
_REST_LIMIT = 3 * RATE

# Half widths of the smoothing windows, in curve values of 10 ms.
_SMOOTHING = {
    Curve.OPEN: 5,
    Curve.WIDE: 8,
    Curve.ROUND: 8,
    Curve.CLOSE: 3,
    Curve.TUCK: 4,
    Curve.TEETH: 5,
    Curve.TONGUE: 5,
    Curve.TALK: 8,
}
# A closed p, b or m may last only 60 ms; holding its peak this long makes sure that one frame at 24 fps shows it.
_HOLD = {Curve.CLOSE: 2, Curve.TUCK: 2}
_HUSH = 8  # curve values
_STEADY = 150

_SWAY = ((0.11, 0.50), (0.23, 0.30), (0.41, 0.15), (0.67, 0.07))  # Hz, amplitude
_BREATH_HZ = 0.26
# A talking head does not swing like a pendulum: it takes a posture, holds it, and takes another.
_POSTURE_SECONDS = 2.6
_POSTURE_MOVE_SECONDS = (0.45, 0.85)
_GAZE_SECONDS = 1.7
_GAZE_MOVE_SECONDS = (0.04, 0.06)  # a saccade
_GAZE_AHEAD = 0.45  # share of glances that return to the camera
_CALM = 0.35  # share of the head's motion that is left in a long pause
_LID_SECONDS = (0.0, 0.03, 0.07, 0.09, 0.14, 0.18, 0.22, 0.27, 0.34)
_LID_CLOSED = (0.0, 0.35, 0.90, 1.0, 1.0, 0.80, 0.45, 0.20, 0.0)
_DOUBLE_BLINK = 0.08  # share of blinks that come twice
_DOUBLE_AFTER_SECONDS = 0.42


@dataclass(frozen=True)
class Pose:
    """One frame's expression and head position.  Mouth values are 0..1; the head's are about -1..1."""

    open: float
    wide: float
    round: float
    close: float
    tuck: float
    teeth: float
    tongue: float
    talk: float
    level: float  # loudness of the speech, 0..1
    rest_seconds: float  # since somebody spoke, at most 3
    blink: float  # 1 = lids closed
    brow: float
    yaw: float
    pitch: float
    roll: float
    shift_x: float
    shift_y: float
    breath: float
    gaze_x: float  # of the eyes in the head
    gaze_y: float


# Where segments of a parallel film are joined: the head returns to its middle over the first time, mouth and lids over
# the second.  The last frames are at rest, because the film leaves out one or two of them.
_RETURN_SECONDS = 0.9
_CLOSE_SECONDS = 0.16
_REST_FRAMES = 3
_HEAD = ("brow", "yaw", "pitch", "roll", "shift_x", "shift_y", "breath", "gaze_x", "gaze_y")
_FACE = ("open", "wide", "round", "close", "tuck", "teeth", "tongue", "talk", "level", "blink")

STILL = Pose(0, 0.25, 0.1, 0.15, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)  # the portrait itself, at rest


class Motion:
    """Poses of one film."""

    def __init__(
        self,
        curves: SpeechCurves,
        seed: int,
        fps: tuple[int, int],
        settings: PreviewSettings,
        speech_range: SpeechRange | None = None,
        rest_after: int | None = None,
    ) -> None:
        """With `rest_after` the film begins and, after so many frames, ends at rest."""
        self._rest_after = rest_after
        self._curves = curves
        self._range = speech_range or SpeechRange()
        self._seed = seed
        self._fps = fps
        self._settings = settings
        self._sway = [
            [
                (hz * (0.8 + 0.4 * self._chance("hz", way, k)), self._chance("phase", way, k), size)
                for k, (hz, size) in enumerate(_SWAY)
            ]
            for way in range(6)
        ]
        self._sway_size = [0.7 + 0.6 * self._chance("size", way) for way in range(6)]

    def poses(self, first: int, count: int) -> Iterator[Pose]:
        """Poses of frames [first, first + count)."""
        numerator, denominator = self._fps
        # Frame i is centred on curve position (i + 1/2) * RATE / fps - 1/2, kept as an exact fraction of 2 * numerator.
        places = (2 * np.arange(first, first + count, dtype=np.int64) + 1) * RATE * denominator - numerator
        left, part = np.divmod(places, 2 * numerator)
        start = int(left[0]) - _PAST
        window = self._curves.window(start, int(left[-1]) + 1 + FUTURE)
        left -= start

        def sample(series: npt.NDArray[np.int64]) -> list[float]:
            exact = series[left] * (2 * numerator - part) + series[left + 1] * part
            return [float(v) for v in exact / (2 * numerator * _WHOLE)]

        mouth = {curve: sample(_smoothed(window, curve)) for curve in _SMOOTHING}
        level, stress = _level_and_stress(window)
        levels = sample(level)
        nods = sample(_weigh(stress, _hann(26), ahead=8))
        brows = sample(_weigh(np.maximum(0, stress - _fine(0.12)), _hann(36), ahead=8))
        talking = _smoothed(window, Curve.TALK)
        rests = sample(_rest(talking))
        # The smoothed curve lacks its last values, so the mean over a phrase looks no further ahead than they reach.
        phrases = sample(_weigh(talking, _hann(70), ahead=6))

        for k in range(count):
            seconds = (first + k) * denominator / numerator
            pose = self._pose(
                seconds, {c: mouth[c][k] for c in mouth}, levels[k], nods[k], brows[k], rests[k], phrases[k]
            )
            yield pose if self._rest_after is None else self._near_rest(pose, first + k, self._rest_after)

    def _near_rest(self, pose: Pose, frame: int, frames: int) -> Pose:
        """`pose`, drawn towards the portrait with shut lips where the film's ends are near."""
        second = self._fps[1] / self._fps[0]
        since, until = frame * second, max(0, frames - _REST_FRAMES - frame) * second
        near = min(since, until)
        if near >= _RETURN_SECONDS and since >= pose.rest_seconds:
            return pose
        head, face = ease(0.0, _RETURN_SECONDS, near), ease(0.0, _CLOSE_SECONDS, near)
        values = {}
        for names, share in ((_HEAD, head), (_FACE, face)):
            for name in names:
                at_rest = getattr(STILL, name)
                values[name] = _on_grid(at_rest + share * (getattr(pose, name) - at_rest))
        # Lips that were just shut part again as after speech, however long the silence before was.
        values["rest_seconds"] = min(pose.rest_seconds, since) * ease(0.0, 2 * _CLOSE_SECONDS, until)
        return replace(pose, **values)

    def _pose(
        self,
        seconds: float,
        mouth: dict[Curve, float],
        level: float,
        nod: float,
        brow: float,
        rest: float,
        phrase: float,
    ) -> Pose:
        move, feel = self._settings.head_motion, self._settings.expression
        # The head moves while it talks and settles in pauses.
        lively = move * (_CALM + (1 - _CALM) * min(1.0, 1.3 * phrase))
        yaw, pitch, roll, shift_x, shift_y = (
            lively * (0.55 * self._sway_at(way, seconds) + self._posture_at(way, seconds)) for way in range(5)
        )
        breath = math.sin(2 * math.pi * (_BREATH_HZ * seconds + self._sway[5][0][1]))
        nod *= feel * min(1.0, move)
        # The eyes stay on the camera while the head turns, and glance aside now and then.
        gaze_x, gaze_y = (feel * self._glance_at(way, seconds) for way in ("x", "y"))
        voice = self._range
        return Pose(
            open=_on_grid(_between(voice.open_low, voice.open_high, mouth[Curve.OPEN], 1.2)),
            wide=_on_grid(0.35 + 0.3 * _between(voice.wide_middle, voice.wide_high, mouth[Curve.WIDE], 1.3, -1.3)),
            round=_on_grid(0.8 * _between(voice.round_low, voice.round_high, mouth[Curve.ROUND], 1.2)),
            close=_on_grid(min(1.0, mouth[Curve.CLOSE] * 0.5 / voice.close_gate)),
            tuck=mouth[Curve.TUCK],
            teeth=mouth[Curve.TEETH],
            tongue=mouth[Curve.TONGUE],
            talk=mouth[Curve.TALK],
            level=level,
            rest_seconds=rest / RATE,
            blink=_on_grid(self._blink_at(seconds)),
            brow=_on_grid(2.8 * brow * feel),
            yaw=_on_grid(yaw),
            pitch=_on_grid(0.7 * pitch + 2.3 * nod),
            roll=_on_grid(0.8 * roll),
            shift_x=_on_grid(0.8 * shift_x),
            shift_y=_on_grid(0.5 * shift_y + 1.5 * nod),
            breath=_on_grid(breath * min(1.0, move)),
            gaze_x=_on_grid(gaze_x - 0.35 * yaw),
            gaze_y=_on_grid(0.5 * gaze_y),
        )

    def _sway_at(self, way: int, seconds: float) -> float:
        waves = (size * math.sin(2 * math.pi * (hz * seconds + phase)) for hz, phase, size in self._sway[way])
        return self._sway_size[way] * sum(waves)

    def _posture_at(self, way: int, seconds: float) -> float:
        """Where the head wants to be, -1..1: a place held for seconds, then the next one within a good half second."""
        return self._step_at(("posture", way), seconds, _POSTURE_SECONDS, _POSTURE_MOVE_SECONDS)

    def _glance_at(self, way: str, seconds: float) -> float:
        """Where the eyes look, -1..1; both ways of one glance begin together."""
        return self._step_at(("glance", way), seconds, _GAZE_SECONDS, _GAZE_MOVE_SECONDS, "glance", _GAZE_AHEAD)

    def _step_at(
        self,
        name: tuple[object, ...],
        seconds: float,
        slot_seconds: float,
        move_seconds: tuple[float, float],
        timing: str = "",
        at_zero: float = 0.0,
    ) -> float:
        """A value that rests and steps.  Each slot of time holds one step at a place that is drawn for it."""
        slot = int(seconds // slot_seconds)
        clock = timing or name
        quick, slow = move_seconds
        begin = (slot + 0.6 * self._chance("begin", clock, slot)) * slot_seconds
        took = (seconds - begin) / (quick + (slow - quick) * self._chance("took", clock, slot))
        share = ease(0.0, 1.0, took)

        def place(of: int) -> float:
            if of < 0 or self._chance("zero", clock, of) < at_zero:
                return 0.0
            return 2 * self._chance(*name, of) - 1

        return place(slot - 1) * (1 - share) + place(slot) * share

    def _blink_at(self, seconds: float) -> float:
        """How far the lids are closed.  Time is cut into equal slots; each holds one blink at a place drawn for it."""
        if self._settings.blink_rate <= 0:
            return 0.0
        slot_seconds = 60.0 / self._settings.blink_rate
        here = int(seconds // slot_seconds)
        closed = 0.0
        for slot in (here - 1, here):
            if slot < 0:
                continue
            onset = (slot + 0.10 + 0.80 * self._chance("blink", slot)) * slot_seconds
            closed = max(closed, _lids(seconds - onset))
            if self._chance("double", slot) < _DOUBLE_BLINK:
                closed = max(closed, _lids(seconds - onset - _DOUBLE_AFTER_SECONDS))
        return closed

    def _chance(self, *key: object) -> float:
        """A number in [0, 1) that only the seed and the key decide."""
        name = ":".join(map(str, (self._seed, *key))).encode()
        return int.from_bytes(hashlib.blake2b(name, digest_size=6).digest(), "little") / 2**48


def _between(low: float, high: float, value: float, most: float, least: float = 0.0) -> float:
    """0 at `low`, 1 at `high`."""
    return min(most, max(least, (value - low) / (high - low)))


def _lids(seconds: float) -> float:
    return float(np.interp(seconds, _LID_SECONDS, _LID_CLOSED))


def _on_grid(value: float) -> float:
    """Rounded to 1/4096, far below what a pixel shows: hides last-bit differences between maths libraries."""
    return round(value * 4096) / 4096


def _fine(value: float) -> int:
    return round(value * _WHOLE)


def _hann(half: int) -> Curves:
    """Integer weights of a raised cosine that reaches `half` values to either side."""
    return np.rint(4096 * np.hanning(2 * half + 1)[1:-1]).astype(np.int64)


def _weigh(series: Curves, weights: Curves, ahead: int) -> Curves:
    """Weighted mean of the values around each value, `ahead` of them after it.

    The first len(weights) - 1 - ahead and the last `ahead` results lack values and must not be used.
    """
    return np.convolve(series, weights)[ahead : ahead + len(series)] // weights.sum()


def _smoothed(window: Curves, curve: Curve) -> Curves:
    series = window[:, curve] * _FINE
    if curve is Curve.TALK:
        series = series * _audible(window) // _WHOLE
    hold = _HOLD.get(curve, 0)
    if hold:
        padded = np.pad(series, hold, mode="edge")
        series = np.lib.stride_tricks.sliding_window_view(padded, 2 * hold + 1).max(axis=1)
    half = _SMOOTHING[curve]
    return _weigh(series, _hann(half), ahead=half - 1)


def _audible(window: Curves) -> Curves:
    """Whether there is a voice that the network may have heard: 0..1 in units of 1 / _WHOLE.

    The network has never heard digital silence and may take it for a whisper: 0 at 30 dB under the speech level, 1 at
    20 dB.  It may take the drone of a machine for a vowel: 0 where the level stayed within 4 dB for a second and a
    half, 1 where it moved by 8 dB, as it does in speech all the time.
    """
    level = window[:, Curve.LEVEL] * _FINE
    loud = np.clip((level + 14 * _WHOLE) * 2 // 5, 0, _WHOLE)
    # Held over the short silence of a p, t or k.
    loud = np.lib.stride_tricks.sliding_window_view(np.pad(loud, _HUSH, mode="edge"), 2 * _HUSH + 1).max(axis=1)

    steady = _weigh(level, _hann(8), ahead=7)
    past = np.lib.stride_tricks.sliding_window_view(np.pad(steady, (_STEADY, 0), mode="edge"), _STEADY + 1)
    moved = past.max(axis=1) - past.min(axis=1)  # of a natural logarithm of energy: 4 dB are 0.92
    lively = np.clip((moved - _fine(0.92)) * 100 // 92, 0, _WHOLE)
    return loud * lively // _WHOLE


_SLOW = np.rint(4096 * np.exp(-np.arange(400) / 133.0)).astype(np.int64)


def _level_and_stress(window: Curves) -> tuple[Curves, Curves]:
    """Loudness, 0 at 20 dB under the speech level, and by how much it stands out from the last seconds."""
    loud = np.clip((window[:, Curve.LEVEL] + round(11.5 * UNIT)) * _FINE // 7, 0, _WHOLE)
    level = _weigh(loud, _hann(8), ahead=7)
    return level, np.maximum(0, level - _weigh(loud, _SLOW, ahead=0) - _fine(0.08))


def _rest(talk: Curves) -> Curves:
    """Curve values since somebody spoke, in units of 1 / _WHOLE."""
    places = np.arange(len(talk))
    spoke = np.maximum.accumulate(np.where(talk > _fine(0.35), places, -_REST_LIMIT))
    return np.minimum(places - spoke, _REST_LIMIT) * _WHOLE
