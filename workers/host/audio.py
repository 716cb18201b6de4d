"""The speech that drives a film, read from the file that `prepare` decoded.

Runs in the host's child process: only the standard library and numpy, valid on Python 3.10.
"""

from __future__ import annotations

import os
import weakref
from pathlib import Path

import numpy as np
import numpy.typing as npt

_SAMPLE_BYTES = 4


class DrivingFile:
    """A finished recording: mono, 16 kHz, float32 little endian, raw.

    Read a window at a time and never mapped: the pages of a mapped file count as this process's memory, which must not
    grow with the film.
    """

    def __init__(self, path: Path) -> None:
        """Open `path`.  Raises OSError when it cannot be read, ValueError when it is empty or cut inside a sample."""
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)
        size = os.fstat(self._descriptor).st_size
        if not size or size % _SAMPLE_BYTES:
            raise ValueError(f"{path} holds {size} bytes, which is no number of samples")
        self._samples = size // _SAMPLE_BYTES

    def __len__(self) -> int:
        return self._samples

    def read(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Samples [start, stop) as a new float32 [stop - start]; zeros before the beginning and after the end."""
        sound = np.zeros(max(0, stop - start), np.float32)
        first, last = max(start, 0), min(stop, self._samples)
        if first < last:
            data = os.pread(self._descriptor, (last - first) * _SAMPLE_BYTES, first * _SAMPLE_BYTES)
            heard = np.frombuffer(data, "<f4")
            sound[first - start : first - start + len(heard)] = heard
        return sound
