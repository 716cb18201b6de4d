"""The speech that drives a film, read from the file that `prepare` decoded.

Runs in the host's child process: only the standard library and numpy, valid on Python 3.10.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt


class DrivingFile:
    """A finished recording: mono, 16 kHz, float32 little endian, raw.  Memory-mapped, so its length costs nothing."""

    def __init__(self, path: Path) -> None:
        """Map `path`.  Raises OSError when it cannot be read, ValueError when it is empty or cut inside a sample."""
        self._sound = np.memmap(path, dtype="<f4", mode="r")

    def __len__(self) -> int:
        return len(self._sound)

    def read(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Samples [start, stop) as a new float32 [stop - start]; zeros before the beginning and after the end."""
        sound = np.zeros(max(0, stop - start), np.float32)
        first, last = max(start, 0), min(stop, len(self._sound))
        if first < last:
            sound[first - start : last - start] = self._sound[first:last]
        return sound
