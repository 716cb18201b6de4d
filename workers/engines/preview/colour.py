"""BT.709, limited range: the colours of the film's frames."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from workers.engines.preview.shaping import Floats, Pixels

# Rows Y, Cb, Cr over columns blue, green, red (ITU-R BT.709-6, tables 3 and 4), for 8-bit limited range.
_KR, _KB = 0.2126, 0.0722
_LUMA = np.array([_KB, 1 - _KR - _KB, _KR])
_MATRIX = (
    np.stack(
        [
            219 * _LUMA,
            224 * (np.array([1.0, 0, 0]) - _LUMA) / (2 * (1 - _KB)),
            224 * (np.array([0, 0, 1.0]) - _LUMA) / (2 * (1 - _KR)),
        ]
    )
    / 255
)
_OFFSET = np.array([16.0, 128.0, 128.0])


def to_yuv(bgr: npt.NDArray[Any]) -> Floats:
    """Y, Cb, Cr float32 [..., 3] of blue, green, red 0..255 [..., 3]."""
    flat = bgr.reshape(-1, 3).astype(np.float32) @ _MATRIX.T.astype(np.float32)
    return (flat + _OFFSET.astype(np.float32)).reshape(bgr.shape).astype(np.float32)


def planes(frame: Pixels) -> tuple[Pixels, Pixels, Pixels]:
    """Views of the Y [H, W], U and V [H / 2, W / 2] planes of a yuv420p frame [H * 3 / 2, W]."""
    width, height = frame.shape[1], frame.shape[0] * 2 // 3
    chroma = frame[height:].reshape(2, height // 2, width // 2)
    return frame[:height], chroma[0], chroma[1]
