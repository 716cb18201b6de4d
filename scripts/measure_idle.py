#!/usr/bin/env python3
"""Does a face repeat itself?  The engine's own motion over ten minutes, by its autocorrelation.

    .venv/bin/python scripts/measure_idle.py [--minutes 10] [--seeds 5]

Each curve is read ten times a second as the engine reads it, without speech.  `comes back` is the largest
autocorrelation at any lag from 15 seconds to half the time: 1 would be a motion that comes round again exactly, and
noise without any rhythm reaches 0.2 to 0.3 by accident.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from workers.engines.preview.idle import Idle  # noqa: E402

Doubles = npt.NDArray[np.float64]

RATE = 10  # values a second
WAYS = ("turn", "nod", "lean", "sideways", "up and down")


def curves_of(idle: Idle) -> dict[str, Callable[[float], float]]:
    """All that moves without speech, by name, as functions of seconds."""

    def head(way: int) -> Callable[[float], float]:
        return lambda t: 0.55 * idle.sway(way, t) + idle.posture(way, t)

    return {
        **{f"head, {name}": head(way) for way, name in enumerate(WAYS)},
        "shoulders, sideways": lambda t: idle.settle("x", t),
        "shoulders, up and down": lambda t: idle.settle("y", t),
        "breath": idle.breath,
        "eyes, aside": lambda t: idle.glance("x", t),
        "eyes, up and down": lambda t: idle.glance("y", t),
        "brows": idle.lift,
        "corners of the mouth": idle.smile,
        "lids": idle.blink,
    }


def autocorrelation(curve: Doubles) -> Doubles:
    """Of a curve [n] with itself, moved by 0 to n / 2 values; 1 at lag 0."""
    centred = curve - curve.mean()
    spectrum = np.fft.rfft(centred, 2 * len(curve))
    whole = np.fft.irfft(np.abs(spectrum) ** 2)[: len(curve) // 2]
    # Each lag has fewer pairs than the one before it.
    found = whole / (whole[0] * (1 - np.arange(len(whole)) / len(curve)))
    return np.asarray(found, np.float64)


def comes_back(curve: Doubles, rate: float) -> float:
    """The largest autocorrelation at lags from 15 seconds on."""
    return float(autocorrelation(curve)[round(15 * rate) :].max())


def blink_intervals(idle: Idle, seconds: float) -> Doubles:
    """Seconds from one blink to the next."""
    times = np.arange(0, seconds, 0.02)
    shut = np.array([idle.blink(t) > 0.5 for t in times.tolist()])
    return np.asarray(np.diff(times[1:][shut[1:] & ~shut[:-1]]))


def main() -> int:
    """Print one table over all seeds, and how blinks and glances are spread."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seeds", type=int, default=5)
    chosen = parser.parse_args()
    seconds = 60 * chosen.minutes
    times = (np.arange(int(seconds * RATE)) / RATE).tolist()
    worst: dict[str, float] = {}
    intervals, looks = [], []
    for seed in range(chosen.seeds):
        idle = Idle(seed, 16.0)
        for name, curve in curves_of(idle).items():
            values = np.array([curve(t) for t in times])
            worst[name] = max(worst.get(name, -1.0), comes_back(values, RATE))
            if name == "eyes, aside":
                looks.append(np.mean(np.abs(values) < 0.2))
        intervals.append(blink_intervals(idle, seconds))
    print(f"{chosen.minutes:g} minutes, {chosen.seeds} seeds, the worst of them")
    print(f"{'curve':<24} {'comes back':>10}")
    for name, far in worst.items():
        print(f"{name:<24} {far:>10.2f}")
    gaps = np.concatenate(intervals)
    print(f"blinks: {60 * len(gaps) / (seconds * chosen.seeds):.1f} a minute; seconds between two of them:")
    print("  " + ", ".join(f"{p} % {np.percentile(gaps, p):.1f}" for p in (5, 25, 50, 75, 95)))
    print(f"  deviation over mean {gaps.std() / gaps.mean():.2f}")
    print(f"eyes on the camera {np.mean(looks):.0%} of the time")
    return 0


if __name__ == "__main__":
    sys.exit(main())
