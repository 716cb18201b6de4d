"""Small numeric shapes that the warp is built from."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]


def smoothstep(low: Any, high: Any, x: Any) -> Any:
    """0 below `low`, 1 above `high`, 3t^2 - 2t^3 between; works on numbers and arrays."""
    t = np.minimum(np.maximum((x - low) / (high - low), 0.0), 1.0)  # quicker than np.clip on small arrays
    return t * t * (3.0 - 2.0 * t)


def ease(low: float, high: float, x: float) -> float:
    """`smoothstep` of one number, without the cost of an array."""
    t = min(1.0, max(0.0, (x - low) / (high - low)))
    return t * t * (3.0 - 2.0 * t)


def blur_row(row: npt.ArrayLike, sigma: float) -> Floats:
    """Gaussian blur of a curve [n]; `sigma` in samples; ends are repeated."""
    values = np.ascontiguousarray(row, np.float32)
    if sigma <= 0.3:
        return values
    taps = int(3 * sigma) | 1
    return cv2.GaussianBlur(values[None], (taps, 1), sigma, borderType=cv2.BORDER_REPLICATE)[0]


def median_row(row: npt.ArrayLike, width: float) -> Floats:
    """Running median of a curve [n] over an odd window of about `width` samples; ends are repeated."""
    taps = int(width) | 1
    padded = np.pad(np.asarray(row, np.float32), taps // 2, mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, taps), axis=1).astype(np.float32)


def through_points(points: npt.NDArray[np.float64], at: Floats) -> Floats:
    """The polyline through `points` [n, 2] read at abscissae `at`; constant beyond its ends."""
    ordered = points[np.argsort(points[:, 0], kind="stable")]
    return np.interp(at, ordered[:, 0], ordered[:, 1]).astype(np.float32)


def luminance(bgr: npt.ArrayLike) -> Any:
    """BT.601 luma of blue, green, red in the last axis, same scale as the input."""
    return np.asarray(bgr, np.float32) @ np.array([0.114, 0.587, 0.299], np.float32)
