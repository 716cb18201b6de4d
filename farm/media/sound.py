"""Measure speech while it streams by: peak, level, loudness, and where it pauses.

Holds one byte per 20 ms and eight per 100 ms of sound, 2 MB for ten hours, whatever the length.
"""

from __future__ import annotations

import os
import weakref
from array import array
from pathlib import Path

import numpy as np
import numpy.typing as npt

from farm.media.kweighting import BLOCK, POWER_RESPONSE
from farm.media.kweighting import RATE as RATE

WINDOW = 320  # samples, 20 ms: one level of the pause map
STEP = 16_000  # samples taken at a time; a multiple of both
SILENT_DB = -120

Samples = npt.NDArray[np.float32]


class SoundMeter:
    """Takes mono 16 kHz float32 sound in order, in pieces of any size; then `close` and read."""

    def __init__(self) -> None:
        self.samples = 0
        self.peak = 0.0
        self._squares = 0.0
        self._levels = array("b")
        self._powers = array("d")
        self._rest = np.empty(0, np.float32)

    def take(self, sound: Samples) -> None:
        """`sound`: float32 [n], finite."""
        self.samples += len(sound)
        pending = np.concatenate([self._rest, sound]) if len(self._rest) else sound
        whole = len(pending) - len(pending) % STEP
        for start in range(0, whole, STEP):
            self._measure(pending[start : start + STEP])
        self._rest = pending[whole:].copy()

    def close(self) -> None:
        """Measure what is left; the last window and block are filled up with silence."""
        missing = -len(self._rest) % BLOCK
        if len(self._rest):
            self._measure(np.concatenate([self._rest, np.zeros(missing, np.float32)]))
        windows = -(-self.samples // WINDOW)
        del self._levels[windows:]
        self._rest = np.empty(0, np.float32)

    def _measure(self, step: Samples) -> None:
        self.peak = max(self.peak, float(np.abs(step).max()))
        exact = step.astype(np.float64)
        power = np.square(exact).reshape(-1, WINDOW).mean(axis=1)
        self._squares += float(power.sum()) * WINDOW
        levels = 10 * np.log10(np.maximum(power, 1e-12))
        self._levels.frombytes(np.clip(levels, SILENT_DB, 127).round().astype(np.int8).tobytes())
        spectrum = np.fft.rfft(exact.reshape(-1, BLOCK), axis=1)
        self._powers.extend((np.square(np.abs(spectrum)) @ POWER_RESPONSE).tolist())

    @property
    def rms_dbfs(self) -> float:
        """Root mean square level over everything, dB relative to full scale."""
        return _decibels(self._squares / self.samples if self.samples else 0.0)

    @property
    def loudness_lufs(self) -> float:
        """Integrated loudness after ITU-R BS.1770-4: K-weighted, gated at -70 LUFS and at 10 LU below the rest."""
        powers = np.frombuffer(self._powers, np.float64)
        if len(powers) >= 4:
            sums = np.cumsum(np.concatenate([[0.0], powers]))
            powers = (sums[4:] - sums[:-4]) / 4  # 400 ms blocks that overlap by three quarters
        loud = powers[powers > 10 ** ((-70 + 0.691) / 10)]
        if not len(loud):
            return float(SILENT_DB)
        return _decibels(float(loud[loud > loud.mean() / 10].mean())) - 0.691

    def pauses(self, shortest_seconds: float = 0.2) -> tuple[tuple[int, int], ...]:
        """Where nobody speaks: [start, stop) in samples at 16 kHz, in order.

        Quiet is relative: 35 dB below the loud parts, or just above the room's noise where that is louder, but always
        15 dB below the loud parts, so that steady sound has no pauses.
        """
        levels = np.frombuffer(self._levels, np.int8)
        if not len(levels):
            return ()
        loud, floor = np.percentile(levels, 90), np.percentile(levels, 5)
        quiet = np.ones(len(levels), bool) if loud <= -70 else levels < min(max(loud - 35, floor + 6), loud - 15)
        edges = np.flatnonzero(np.diff(np.concatenate([[False], quiet, [False]]).astype(np.int8)))
        spans = (edges.reshape(-1, 2) * WINDOW).tolist()
        shortest = min(round(shortest_seconds * RATE), self.samples)
        cut = ((start, min(stop, self.samples)) for start, stop in spans)
        return tuple((start, stop) for start, stop in cut if stop - start >= shortest)


def _decibels(power: float) -> float:
    return float(10 * np.log10(max(power, 1e-12)))


class NativeSound:
    """A recording that `decode_native` wrote: mono int16 little endian.  Slices of it are arrays, read when asked for.

    Never mapped: the pages of a mapped file count as this process's memory, which must not grow with the film.
    """

    def __init__(self, path: Path) -> None:
        """Raises OSError when it cannot be read."""
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)
        self._samples = os.fstat(self._descriptor).st_size // 2

    def __len__(self) -> int:
        return self._samples

    def __getitem__(self, part: slice) -> npt.NDArray[np.int16]:
        """Samples [start, stop) as a new array.  Raises EOFError when the file was cut off meanwhile."""
        start, stop, _ = part.indices(self._samples)
        wanted = max(0, stop - start) * 2
        data = os.pread(self._descriptor, wanted, start * 2)
        if len(data) != wanted:
            raise EOFError(f"{wanted} bytes were asked for at {start * 2}, {len(data)} are there")
        return np.frombuffer(data, "<i2").astype(np.int16, copy=False)
