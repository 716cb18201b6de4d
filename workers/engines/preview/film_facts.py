"""What a film's whole audio tells the engine, measured once: the speech's level, and how far its curves reach.

Voices differ: a quiet or synthetic one moves the network's curves half as far as a lively one.  The ranges measured
here let the renderer open every mouth to a natural width, whoever speaks.  Only numpy is needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from workers.engines.contract import DRIVING_RATE, DrivingAudio
from workers.engines.preview import loudness
from workers.engines.preview.articulation import FUTURE, RATE, UNIT, Curve, SpeechCurves, SpeechNetwork

_MOST_SECONDS = 600  # of the film that are looked at, spread evenly: the time this takes does not grow with the film
_LEAST_VALUES = 3 * RATE  # of speech; with fewer there is nothing to measure
_MEASURED = (Curve.OPEN, Curve.WIDE, Curve.ROUND, Curve.CLOSE)
_SPEAKS = UNIT // 2
_AUDIBLE = -12 * UNIT  # natural logarithm of energy, about 20 dB under the level of speech
_SMOOTH = np.hanning(11)[1:-1] / np.hanning(11).sum()  # as motion.py smooths the jaw
_EDGE = len(_SMOOTH) // 2
_LEAST = 0.18  # distance of a range's ends: a hum must not be blown up to a shout


@dataclass(frozen=True)
class SpeechRange:
    """Where the curves of one voice lie while it speaks, 0..1."""

    open_low: float = 0.08  # half the 15th percentile
    open_high: float = 0.55  # 92nd
    wide_middle: float = 0.40  # median
    wide_high: float = 0.60  # 90th
    round_low: float = 0.08  # 30th
    round_high: float = 0.50  # 95th
    close_gate: float = 0.35  # 90th, within bounds: above it the lips close for p, b, m

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> SpeechRange:
        """Read from a film's facts."""
        return cls(**{name: float(value) for name, value in facts["speech_range"].items()})


def measure(audio: DrivingAudio, network: SpeechNetwork | None = None) -> dict[str, Any]:
    """{"speech_gain": see loudness.measure, "speech_range": the fields of SpeechRange}.

    Percentiles over all frames in which somebody speaks; without speech, or with less than three seconds of it, those
    of an ordinary voice.
    """
    facts = loudness.measure(audio)
    return {**facts, "speech_range": _range_of(audio, network or SpeechNetwork(), facts["speech_gain"])}


def _range_of(audio: DrivingAudio, network: SpeechNetwork, gain: float) -> dict[str, float]:
    seconds = len(audio) // DRIVING_RATE
    speech = SpeechCurves(network, audio, gain)
    looked_at = np.unique(np.linspace(0, max(0, seconds - 1), min(max(1, seconds), _MOST_SECONDS)).astype(int))
    kept = []
    for second in looked_at.tolist():
        start = second * RATE + FUTURE  # exactly one block of the curves
        curves = speech.window(start, start + RATE)
        heard = ((curves[:, Curve.TALK] > _SPEAKS) & (curves[:, Curve.LEVEL] > _AUDIBLE))[_EDGE:-_EDGE]
        if heard.any():
            smooth = [np.convolve(curves[:, c] / UNIT, _SMOOTH, "valid") for c in _MEASURED]
            kept.append(np.stack(smooth, axis=1)[heard])
    return asdict(_ranges(np.concatenate(kept) if kept else np.empty((0, len(_MEASURED)))))


def measure_parts(whole: DrivingAudio, parts: Sequence[DrivingAudio]) -> list[dict[str, Any]]:
    """`measure` for each part of a film that is rendered in parts, from that part's own sound.

    An edit elsewhere in the film must not change a part, so the film's own level only bounds a part's gain: a part in
    which nobody speaks is not amplified to the level of speech.  The bounds lie 9 dB around the film's gain rounded to
    6 dB, so no part of usual loudness meets them, and they rarely move.
    """
    network = SpeechNetwork()
    usual = round(_decibels(loudness.measure(whole)["speech_gain"]) / 6.0) * 6.0
    found = []
    for part in parts:
        gain = _decibels(loudness.measure(part)["speech_gain"])
        bounded = min(max(gain, usual - 9.0), usual + 9.0)
        facts = {"speech_gain": float(f"{10.0 ** (bounded / 20.0):.6g}")}
        found.append({**facts, "speech_range": _range_of(part, network, facts["speech_gain"])})
    return found


def _decibels(factor: float) -> float:
    return 20.0 * math.log10(factor)


def _ranges(values: np.ndarray[Any, np.dtype[np.float64]]) -> SpeechRange:
    usual = SpeechRange()
    if len(values) < _LEAST_VALUES:
        return usual
    opened, wide, rounded, closed = values.T
    # Consonants that part the lips a little lie at the 15th percentile: what lay below it was drawn as shut, and the
    # curve lost more there than in all its smoothing.
    low, high = np.percentile(opened, (15, 92))
    low = min(0.5 * low, 0.2)
    middle, widest = np.percentile(wide, (50, 90))
    least_round, most_round = np.percentile(rounded, (30, 95))
    found = SpeechRange(
        open_low=low,
        open_high=max(high, low + _LEAST),
        wide_middle=middle,
        wide_high=max(widest, middle + _LEAST / 2),
        round_low=least_round,
        round_high=max(most_round, least_round + _LEAST),
        # Lips are closed for a small share of any speech: where the network says more, it is unsure.  A p that stays
        # open is seen at once; lips that touch for a t or an n, which are nearly closed anyway, are not.
        close_gate=min(0.55, max(0.26, np.percentile(closed, 90))),
    )
    # Three digits are plenty and survive any text format on the way to a segment.
    return SpeechRange(**{name: round(float(value), 3) for name, value in asdict(found).items()})
