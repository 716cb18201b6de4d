"""Log-mel features of the driving audio, as the speech network was trained on them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from workers.engines.contract import DRIVING_RATE

HOP = 160  # samples; one feature every 10 ms, feature t is centred on sample 160 t + 80
WINDOW = 400  # samples, Hann
LEAD = (WINDOW - HOP) // 2  # samples by which a feature's window starts before its hop
BANDS = 40
_FFT = 512
_FLOOR = 1e-5
_ROWS = 24

Doubles = npt.NDArray[np.float64]


def _edges() -> Doubles:
    """BANDS + 2 frequencies from 60 to 7600 Hz, equally spaced in mel (2595 log10(1 + f / 700))."""

    def mel(hz: float) -> float:
        return float(2595.0 * np.log10(1.0 + hz / 700.0))

    return 700.0 * (10.0 ** (np.linspace(mel(60.0), mel(7600.0), BANDS + 2) / 2595.0) - 1.0)


def _mel_bank() -> Doubles:
    """Triangles [BANDS, _FFT / 2 + 1] over three neighbouring edges each."""
    edges = _edges()
    bins = np.fft.rfftfreq(_FFT, 1.0 / DRIVING_RATE)[None]
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return np.maximum(0.0, np.minimum(rising, falling))


_BANK = np.ascontiguousarray(_mel_bank().T)
_HANN = np.hanning(WINDOW + 1)[:-1]


def throat(factor: float) -> Doubles:
    """The matrix [BANDS, BANDS] that makes log-mels those of a vocal tract whose spectrum lies `factor` times as high.

    The pace stays: each band is read where it came from, between the two bands nearest to there.
    """
    centres = _edges()[1:-1]
    places = np.interp(centres / factor, centres, np.arange(BANDS))
    low = np.minimum(places.astype(int), BANDS - 2)
    matrix, bands = np.zeros((BANDS, BANDS)), np.arange(BANDS)
    matrix[low, bands] = 1 - (places - low)
    matrix[low + 1, bands] = places - low
    return matrix


def product(rows: Doubles, matrix: Doubles) -> Doubles:
    """`rows @ matrix`, a few rows at a time.

    BLAS starts threads for larger products; they then wait for each other while an encoder has the cores, which is far
    slower than one thread.
    """
    return np.concatenate([rows[k : k + _ROWS] @ matrix for k in range(0, len(rows), _ROWS)])


def samples_for(count: int) -> int:
    """How many samples `count` features read."""
    return (count - 1) * HOP + WINDOW


def features(samples: npt.NDArray[np.float32], gain: float) -> tuple[Doubles, Doubles]:
    """Log-mels [n, BANDS] and log energies [n] of `samples`, which hold exactly `samples_for(n)` samples.

    Computed in double precision: the last-bit differences between FFT and BLAS builds then vanish in the rounding of
    the curves (articulation.py).
    """
    windows = np.lib.stride_tricks.sliding_window_view(samples.astype(np.float64) * gain, WINDOW)[::HOP] * _HANN
    power = np.abs(np.fft.rfft(windows, _FFT, axis=1)) ** 2
    return np.log(product(power, _BANK) + _FLOOR), np.log((windows * windows).mean(axis=1) + 1e-7)
