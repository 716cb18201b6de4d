"""The speech that drives a film: the file that `prepare` decoded, or what a live session has heard so far.

Runs in the host's child process: only the standard library and numpy, valid on Python 3.10.
"""

from __future__ import annotations

import os
import weakref
from pathlib import Path

import numpy as np
import numpy.typing as npt

from farm.errors import EngineError
from workers.engines.contract import DRIVING_RATE

KEPT_SECONDS = 30  # of a live session's past; the engines look back eight at most
_SAMPLE_BYTES = 4


class DrivingFile:
    """A finished recording: mono, 16 kHz, float32 little endian, raw.

    Read a window at a time and never mapped: the pages of a mapped file count as this process's memory, which must not
    grow with the film.
    """

    def __init__(self, path: Path, window: tuple[int, int] | None = None) -> None:
        """Open `path`, or its samples [start, stop) as if there were no others.

        Raises OSError when it cannot be read, ValueError when it is empty, cut inside a sample or shorter than that.
        """
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)
        size = os.fstat(self._descriptor).st_size
        if not size or size % _SAMPLE_BYTES:
            raise ValueError(f"{path} holds {size} bytes, which is no number of samples")
        start, stop = window or (0, size // _SAMPLE_BYTES)
        if not 0 <= start < stop <= size // _SAMPLE_BYTES:
            raise ValueError(f"{path} has {size // _SAMPLE_BYTES} samples, not [{start}, {stop})")
        self._start, self._samples = start, stop - start
        self.origin = (str(path), window)  # what another process opens to hear the same

    def __len__(self) -> int:
        return self._samples

    def read(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Samples [start, stop) as a new float32 [stop - start]; zeros before the beginning and after the end."""
        sound = np.zeros(max(0, stop - start), np.float32)
        first, last = max(start, 0), min(stop, self._samples)
        if first < last:
            offset = (self._start + first) * _SAMPLE_BYTES
            data = os.pread(self._descriptor, (last - first) * _SAMPLE_BYTES, offset)
            heard = np.frombuffer(data, "<f4")
            sound[first - start : first - start + len(heard)] = heard
        return sound


class GrowingSound:
    """A live session's sound: mono, 16 kHz.  Keeps its last half minute, so its length costs nothing."""

    def __init__(self) -> None:
        self._kept = np.zeros(0, np.float32)
        self._end = 0

    def __len__(self) -> int:
        return self._end

    def append(self, pcm: bytes) -> None:
        """Samples that were heard next, 16 bit little endian."""
        heard = np.frombuffer(pcm, "<i2").astype(np.float32) / 32768.0
        self._kept = np.concatenate([self._kept, heard])[-KEPT_SECONDS * DRIVING_RATE :]
        self._end += len(heard)

    def read(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Samples [start, stop) as a new float32 [stop - start]; zeros before the beginning and for what is to come.

        Raises EngineError for what is no longer kept.
        """
        sound = np.zeros(max(0, stop - start), np.float32)
        oldest = self._end - len(self._kept)
        if max(start, 0) < min(oldest, stop):
            raise EngineError(f"the engine reads sound that is more than {KEPT_SECONDS} s old")
        first, last = max(start, 0), min(stop, self._end)
        if first < last:
            sound[first - start : last - start] = self._kept[first - oldest : last - oldest]
        return sound
