"""What recordings do to a voice: other throats, rooms, telephones, noise, music.  And sound in which nobody speaks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.signal import butter, fftconvolve, lfilter, resample_poly

from workers.engines.contract import DRIVING_RATE

Samples = npt.NDArray[np.float32]
Chance = np.random.Generator


def change_size(samples: Samples, curves: Samples, chance: Chance) -> tuple[Samples, Samples]:
    """A larger or smaller speaker: sound and curves faster or slower by up to 18 %."""
    percent = int(chance.integers(84, 119))
    faster = np.asarray(resample_poly(samples, 100, percent), np.float32)
    at = (np.arange(len(faster) * 100 // DRIVING_RATE) * percent / 100).astype(int)
    return faster, curves[np.minimum(at, len(curves) - 1)]


def put_into_room(samples: Samples, chance: Chance) -> Samples:
    """Reverberation of 0.08 to 0.4 s, the direct sound first."""
    seconds = np.arange(int(DRIVING_RATE * chance.uniform(0.08, 0.40))) / DRIVING_RATE
    answer = chance.standard_normal(len(seconds)) * np.exp(-seconds / chance.uniform(0.02, 0.10))
    answer /= np.sqrt((answer**2).sum())
    answer[0] += chance.uniform(0.8, 4.0)
    return fftconvolve(samples, answer / np.sqrt((answer**2).sum()))[: len(samples)].astype(np.float32)


def narrow_band(samples: Samples, chance: Chance) -> Samples:
    """What telephones and codecs leave."""
    edges = [chance.uniform(40, 280), chance.uniform(3200, 7500)]
    return lfilter(*butter(2, edges, "band", fs=DRIVING_RATE), samples).astype(np.float32)


def make_noise(count: int, chance: Chance) -> Samples:
    """Hiss, rumble, hum, or knocks; mean square 1."""
    hiss = chance.standard_normal(count)
    kind = chance.random()
    if kind < 0.35:
        sound = lfilter([1], [1, -chance.uniform(0, 0.97)], hiss)
    elif kind < 0.55:
        sound = lfilter(*butter(2, chance.uniform(150, 3000), "low", fs=DRIVING_RATE), hiss)
    elif kind < 0.75:
        seconds = np.arange(count) / DRIVING_RATE
        base = chance.uniform(45, 180)
        sound = sum(
            chance.uniform(0, 1) / k * np.sin(2 * np.pi * (base * k * seconds + chance.random())) for k in range(1, 12)
        )
        sound = sound + 0.1 * hiss
    elif kind < 0.88:  # a place with traffic: noise that swells
        slow = np.interp(np.arange(count), np.linspace(0, count, 12), chance.uniform(0.1, 1, 12) ** 2)
        sound = slow * lfilter([1], [1, -0.93], hiss)
    else:  # keys, dishes, steps
        sound = 0.02 * hiss
        for at in chance.integers(0, max(1, count - 2000), max(1, count // 5000)):
            length = int(chance.integers(100, 1500))
            knock = hiss[at : at + length] * np.exp(-np.arange(length) / (0.2 * length))[: len(hiss[at : at + length])]
            sound[at : at + length] += knock * chance.uniform(0.3, 2)
    return (sound / max(1e-6, float(np.sqrt((sound**2).mean())))).astype(np.float32)


def make_music(count: int, chance: Chance) -> Samples:
    """Chords, a tune and a drum of our own; mean square 1.  No voice sings in it."""
    seconds = np.arange(count) / DRIVING_RATE
    beat = chance.uniform(0.25, 0.7)
    sound = np.zeros(count)
    root = chance.uniform(80, 220)
    scale = 2 ** (np.array([0, 2, 4, 5, 7, 9, 11, 12]) / 12)
    bright, vibrato = chance.uniform(0.4, 1.6), chance.uniform(0, 0.006)
    for k in range(int(seconds[-1] / beat) + 1):
        low, high = int(k * beat * DRIVING_RATE), min(count, int((k + 1.6) * beat * DRIVING_RATE))
        if high - low < 100:
            continue
        t = seconds[: high - low]
        swell = np.minimum(1, t / chance.uniform(0.004, 0.08)) * np.exp(-t / chance.uniform(0.15, 1.5))
        chord = [(root * 2 * scale[chance.integers(8)], 1.0)]
        if k % 4 == 0:
            chord += [(root * scale[s % 8], 0.7) for s in (0, 2, 4)]
        for pitch, loud in chord:
            phase = 2 * np.pi * pitch * (t + vibrato * np.sin(2 * np.pi * 5 * t) / 5)
            for partial in range(1, 9):
                sound[low:high] += loud * swell * np.sin(partial * phase) / partial**bright / 2
        if chance.random() < 0.5:
            drum = chance.standard_normal(len(t)) * np.exp(-t / 0.03) * chance.uniform(0, 1.5)
            sound[low:high] += drum
    return (sound / max(1e-6, float(np.sqrt((sound**2).mean())))).astype(np.float32)
