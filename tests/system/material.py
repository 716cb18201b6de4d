"""Small inputs for fault tests, made on the spot and equal in every run."""

from __future__ import annotations

import csv
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def portrait(path: Path, seed: int = 0) -> Path:
    """A picture of noise; engines that look for a face refuse it."""
    pixels = np.random.default_rng(seed).integers(0, 255, (96, 96, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def sound(path: Path, seconds: float, seed: int = 0, rate: int = 16_000) -> Path:
    """Tone and noise in words of half a second with pauses between them, as mono 16-bit WAV."""
    time = np.arange(round(seconds * rate)) / rate
    dice = np.random.default_rng(seed)
    loud = (time % 0.8) < 0.5
    wavy = np.sin(2 * np.pi * (180 + 40 * seed) * time) * 0.3 + dice.normal(0, 0.05, len(time))
    samples = (np.clip(wavy * loud, -1, 1) * 32767).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return path


def batch(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """A batch file with these rows; columns are those of the first row."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path
