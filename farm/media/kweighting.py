"""The K-weighting of ITU-R BS.1770-4 as a power response over the bins of a 100 ms block at 16 kHz.

Weighting the spectrum in place of running the two filters needs no state between blocks; what leaks between 100 ms
blocks is far below the 0.1 LU that anyone reads.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

RATE = 16_000  # Hz, of what drives every engine
BLOCK = 1_600  # samples, 100 ms: one power of the loudness
# Tables 1 and 2 of the recommendation, given there for 48 kHz: a high shelf (the head), then a high pass.
TABLE_RATE = 48_000
SHELF_B, SHELF_A = (1.53512485958697, -2.69169618940638, 1.19839281085285), (1.0, -1.69065929318241, 0.73248077421585)
PASS_B, PASS_A = (1.0, -2.0, 1.0), (1.0, -1.99004745483398, 0.99007225036621)


def _power_response() -> npt.NDArray[np.float64]:
    """float64 [BLOCK // 2 + 1]: dot with |rfft(block)|^2 to get the block's K-weighted mean square (Parseval)."""
    z = np.exp(-2j * np.pi * np.fft.rfftfreq(BLOCK, 1 / RATE) / TABLE_RATE)

    def gain(b: tuple[float, ...], a: tuple[float, ...]) -> npt.NDArray[np.float64]:
        response: npt.NDArray[np.float64] = np.abs(np.polyval(b[::-1], z) / np.polyval(a[::-1], z)) ** 2
        return response

    sides = np.full(BLOCK // 2 + 1, 2.0)
    sides[0] = sides[-1] = 1.0  # the constant and the highest bin have no mirror image
    weighted: npt.NDArray[np.float64] = gain(SHELF_B, SHELF_A) * gain(PASS_B, PASS_A) * sides / BLOCK**2
    return weighted


POWER_RESPONSE = _power_response()
