"""The one number that a film needs of its whole audio: how much to amplify its speech.

Only the standard library and numpy; memory is constant, so hours of audio are fine.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from workers.engines.contract import DRIVING_RATE, DrivingAudio

_SPEECH_RMS = 0.05  # the level that the speech network was trained at (full scale is 1)
_FRAME = DRIVING_RATE // 50  # samples, 20 ms
_BLOCK = _FRAME * 50 * 60  # samples read at once, one minute
_STEP_DB = 0.25
_BINS = int(140 / _STEP_DB)  # levels from -140 dB to 0 dB


def measure(audio: DrivingAudio) -> dict[str, Any]:
    """{"speech_gain": factor that brings the speech in `audio` to the level the network expects}.

    Speech is what lies above 5 % of the loudest 20 ms frame and above 15 % of the 95th percentile; levels are counted
    in a histogram of 0.25 dB, so nothing grows with the length.  Silence has gain 1.
    """
    counts = np.zeros(_BINS, np.int64)
    energies = np.zeros(_BINS, np.float64)
    total = len(audio) // _FRAME * _FRAME
    for start in range(0, total, _BLOCK):
        stop = min(start + _BLOCK, total)
        frames = audio.read(start, stop).reshape(-1, _FRAME).astype(np.float64)
        energy = np.clip(np.nan_to_num((frames * frames).mean(axis=1)), 1e-14, 1.0)
        level = np.clip(((10.0 * np.log10(energy) + 140.0) / _STEP_DB).astype(np.int64), 0, _BINS - 1)
        counts += np.bincount(level, minlength=_BINS)
        energies += np.bincount(level, weights=energy, minlength=_BINS)

    heard = np.flatnonzero(counts)
    if not len(heard) or _amplitude(heard[-1]) < 1e-5:
        return {"speech_gain": 1.0}
    ranked = np.searchsorted(np.cumsum(counts), 0.95 * counts.sum())
    threshold = max(0.05 * _amplitude(heard[-1]), 0.15 * _amplitude(int(ranked)))
    speech = np.array([_amplitude(level) >= threshold for level in range(_BINS)])
    rms = float(np.sqrt(energies[speech].sum() / counts[speech].sum()))
    # Six digits are plenty and survive any text format on the way to a segment.
    return {"speech_gain": float(f"{np.clip(_SPEECH_RMS / rms, 0.02, 100.0):.6g}")}


def _amplitude(level: int) -> float:
    return float(10.0 ** (((level + 0.5) * _STEP_DB - 140.0) / 20.0))
