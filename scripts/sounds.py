"""Sounds that scripts read out of recordings and write for films, mono, 16 bit; and those that engines hear."""

from __future__ import annotations

import subprocess
import wave
from pathlib import Path

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.int16]


class HeldSound:
    """Driving audio in memory: float32 at the engines' rate."""

    def __init__(self, samples: npt.NDArray[np.float32]) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def read(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Samples [start, stop), zeros beyond the ends."""
        inside = self._samples[max(0, start) : max(0, stop)]
        before = min(max(0, -start), stop - start)
        return np.pad(inside, (before, stop - start - before - len(inside))).astype(np.float32)


def read_sound(path: Path, rate: int) -> Samples:
    """A recording of any kind as levels [n] at `rate` Hz."""
    from farm.media.binary import find_ffmpeg

    argv = [str(find_ffmpeg()), "-nostdin", "-v", "error", "-i", str(path)]
    argv += ["-f", "s16le", "-ac", "1", "-ar", str(rate), "pipe:1"]
    return np.frombuffer(subprocess.run(argv, check=True, stdout=subprocess.PIPE, timeout=60).stdout, "<i2")


def write_sound(path: Path, levels: Samples, rate: int) -> None:
    """Levels [n] at `rate` Hz as a WAV file."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(levels.astype("<i2").tobytes())
