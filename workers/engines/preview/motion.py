"""From curves and time to the pose of each frame.

Nothing here has memory.  Smoothing is done by finite windows over the curves, at 100 values a second and in integers,
so it is exact in any order; blinks and sway are functions of the seed and the time.  A frame's pose is therefore the
same wherever the render started.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from workers.engines.preview.articulation import FUTURE, RATE, UNIT, Curve, Curves, SpeechCurves
from workers.engines.preview.film_facts import SpeechRange
from workers.engines.preview.idle import Idle
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
_ONE_CLOSURE = 8  # curve values by which a closure's flanks may lie beside its peak
_HUSH = 8  # curve values
_STEADY = 150

_CALM = 0.45  # share of the head's motion that is left in a long pause
_BODY_LATER_SECONDS = 0.14  # by which the shoulders come after the head


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
    body_x: float = 0.0  # of the shoulders, which carry the head
    body_y: float = 0.0
    smile: float = 0.0  # of the corners of the mouth while nobody speaks

    @property
    def closing(self) -> float:
        """How far a p, b or m shuts the lips, 0..1; one that is far from sure leaves the vowels beside it alone."""
        return ease(0.4, 0.58, self.close)


# A film begins with the portrait and ends with it: the head returns to its middle over the first time, mouth and lids
# over the second.  Of a segment of a parallel film the last frames are at rest, because the film leaves out one or two.
_RETURN_SECONDS = 0.9
_CLOSE_SECONDS = 0.16
_REST_FRAMES = 3
_HEAD = ("brow", "yaw", "pitch", "roll", "shift_x", "shift_y", "breath", "gaze_x", "gaze_y", "body_x", "body_y")
_FACE = ("open", "wide", "round", "close", "tuck", "teeth", "tongue", "talk", "level", "blink", "smile")

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
        joined: bool = False,
    ) -> None:
        """With `rest_after` the film begins and, after so many frames, ends at rest.

        `joined` says that others are joined to both ends: then they have to be the same picture, with shut lips.
        """
        self._rest_after = rest_after
        self._joined = joined
        self._curves = curves
        self._range = speech_range or SpeechRange()
        self._fps = fps
        self._settings = settings
        self._idle = Idle(seed, settings.blink_rate)

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
        rest_frames = _REST_FRAMES if self._joined else 1
        since, until = frame * second, max(0, frames - rest_frames - frame) * second
        near = min(since, until)
        if near >= _RETURN_SECONDS and (since >= pose.rest_seconds or not self._joined):
            return pose
        head, face = ease(0.0, _RETURN_SECONDS, near), ease(0.0, _CLOSE_SECONDS, near)
        values = {}
        for names, share in ((_HEAD, head), (_FACE, face)):
            for name in names:
                at_rest = getattr(STILL, name)
                values[name] = _on_grid(at_rest + share * (getattr(pose, name) - at_rest))
        if self._joined:
            # Lips that were just shut part again as after speech, however long the silence before was.
            values["rest_seconds"] = min(pose.rest_seconds, since) * ease(0.0, 2 * _CLOSE_SECONDS, until)
        else:
            still = 1 - ease(0.0, _CLOSE_SECONDS, since)
            values["rest_seconds"] = _on_grid(pose.rest_seconds + still * (STILL.rest_seconds - pose.rest_seconds))
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
        idle = self._idle
        yaw, pitch, roll, shift_x, shift_y = (
            lively * (0.55 * idle.sway(way, seconds) + idle.posture(way, seconds)) for way in range(5)
        )
        # The head goes after a long glance, and the shoulders after the head.
        yaw, pitch = yaw + 0.3 * move * idle.follow("x", seconds), pitch + 0.15 * move * idle.follow("y", seconds)
        later = seconds - _BODY_LATER_SECONDS
        body_x = lively * (idle.settle("x", later) + 0.25 * idle.posture(0, later))
        body_y = lively * 0.5 * idle.settle("y", later)
        # In a pause the brows and the corners of the mouth live on.
        lift, smile = (feel * (1 - min(1.0, phrase)) * value for value in (idle.lift(seconds), idle.smile(seconds)))
        nod *= feel * min(1.0, move)
        # The eyes stay on the camera while the head turns, and glance aside now and then.
        gaze_x, gaze_y = (feel * idle.glance(way, seconds) for way in ("x", "y"))
        voice = self._range
        return Pose(
            open=_on_grid(_between(voice.open_low, voice.open_high, mouth[Curve.OPEN], 1.4)),
            wide=_on_grid(0.35 + 0.3 * _between(voice.wide_middle, voice.wide_high, mouth[Curve.WIDE], 1.3, -1.3)),
            round=_on_grid(0.8 * _between(voice.round_low, voice.round_high, mouth[Curve.ROUND], 1.2)),
            close=_on_grid(min(1.0, mouth[Curve.CLOSE] * 0.5 / voice.close_gate)),
            tuck=mouth[Curve.TUCK],
            teeth=mouth[Curve.TEETH],
            tongue=mouth[Curve.TONGUE],
            talk=mouth[Curve.TALK],
            level=level,
            rest_seconds=rest / RATE,
            blink=_on_grid(idle.blink(seconds)),
            brow=_on_grid(2.8 * brow * feel + 0.35 * lift),
            yaw=_on_grid(yaw),
            pitch=_on_grid(0.7 * pitch + 2.3 * nod),
            roll=_on_grid(0.8 * roll),
            shift_x=_on_grid(0.4 * shift_x),
            shift_y=_on_grid(0.5 * shift_y + 1.5 * nod),
            breath=_on_grid(idle.breath(seconds) * min(1.0, move)),
            gaze_x=_on_grid(gaze_x - 0.35 * yaw),
            gaze_y=_on_grid(0.5 * gaze_y),
            body_x=_on_grid(body_x),
            body_y=_on_grid(body_y),
            smile=_on_grid(smile),
        )


def _between(low: float, high: float, value: float, most: float, least: float = 0.0) -> float:
    """0 at `low`, 1 at `high`."""
    return min(most, max(least, (value - low) / (high - low)))


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
    smooth = _weigh(series, _hann(half), ahead=half - 1)
    return _steepen(smooth) if curve is Curve.CLOSE else smooth


def _steepen(closure: Curves) -> Curves:
    """The flanks of a closure lowered, its peak kept.

    A closure that the network is sure of would pass the gate long before the lips meet, and shut the mouth on the
    vowels beside it.
    """
    padded = np.pad(closure, _ONE_CLOSURE, mode="edge")
    peak = np.lib.stride_tricks.sliding_window_view(padded, 2 * _ONE_CLOSURE + 1).max(axis=1)
    share = np.minimum(_WHOLE, closure * _WHOLE // np.maximum(1, peak * 9 // 10))
    square = share * share // _WHOLE
    return closure * square // _WHOLE * square // _WHOLE


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
