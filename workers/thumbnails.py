"""A small picture of a segment's last frame, made from the frame itself: no decoder is started for it."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

WIDTH = 320  # pixels
QUALITY = 80


def thumbnail_jpeg(frame: bytes, width: int, height: int, pixel_format: str) -> bytes:
    """One frame (rgb24, bgr24 or yuv420p in BT.709 limited range, as engines yield them) as a JPEG of WIDTH pixels."""
    data = np.frombuffer(frame, np.uint8)
    if pixel_format == "yuv420p":
        picture = _from_planes(data, width, height)
    else:
        rgb = data.reshape(height, width, 3)
        picture = Image.fromarray(rgb if pixel_format == "rgb24" else rgb[..., ::-1].copy())
    picture.thumbnail((WIDTH, WIDTH * 4), Image.Resampling.BOX)
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def _from_planes(data: np.ndarray, width: int, height: int) -> Image.Image:
    """RGB at half size, where the planes of colour have their own: enough for a thumbnail.

    Coefficients: ITU-R BT.709, limited range.
    """
    area, half = width * height, (height // 2, width // 2)
    luma = data[:area].reshape(half[0], 2, half[1], 2).mean((1, 3))
    blue = data[area : area + area // 4].reshape(half) - 128.0
    red = data[area + area // 4 :].reshape(half) - 128.0
    y = (luma - 16.0) * (255.0 / 219.0)
    rgb = np.stack([y + 1.7927 * red, y - 0.2132 * blue - 0.5329 * red, y + 2.1124 * blue], -1)
    return Image.fromarray(np.clip(rgb + 0.5, 0, 255).astype(np.uint8))
