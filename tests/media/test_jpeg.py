"""Pictures of a live session have the colours of the frames that they are made from."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest
from PIL import Image

from farm.errors import MediaError
from farm.media.jpeg import JpegEncoder

RED, BLUE = (200, 40, 30), (20, 60, 220)


def halves() -> np.ndarray:
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:32], picture[32:] = RED, BLUE
    return picture


def as_engines_yield(rgb: np.ndarray, pixel_format: str) -> bytes:
    if pixel_format == "bgr24":
        return rgb[..., ::-1].tobytes()
    if pixel_format == "yuv420p":
        frame = av.VideoFrame.from_ndarray(rgb, "rgb24")
        planes = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
        return planes.to_ndarray().tobytes()
    return rgb.tobytes()


@pytest.mark.parametrize("pixel_format", ["rgb24", "bgr24", "yuv420p"])
def test_a_picture_shows_the_frames_colours_in_every_format_of_an_engine(pixel_format: str) -> None:
    encoder = JpegEncoder(96, 64, pixel_format, quality=85)
    pixels = as_engines_yield(halves(), pixel_format)
    for _ in range(2):  # a session encodes many messages one after the other
        pictures = encoder.encode(pixels * 3, 3)
        assert len(pictures) == 3
        shown = np.asarray(Image.open(io.BytesIO(pictures[2])).convert("RGB")).astype(int)
        assert shown.shape == (64, 96, 3)
        assert np.abs(shown[8, 8] - RED).max() <= 6
        assert np.abs(shown[56, 80] - BLUE).max() <= 6


def test_a_higher_quality_is_a_larger_picture() -> None:
    noise = np.random.default_rng(1).integers(0, 255, (64, 96, 3), np.uint8).tobytes()
    sizes = [len(JpegEncoder(96, 64, "rgb24", quality).encode(noise, 1)[0]) for quality in (20, 60, 95)]
    assert sizes == sorted(set(sizes))


def test_the_frames_of_a_message_are_packed_side_by_side_and_keep_their_order() -> None:
    frames = np.random.default_rng(2).integers(0, 255, (19, 64, 96, 3), np.uint8)
    with JpegEncoder(96, 64, "rgb24", 85) as encoder:
        together = encoder.encode(frames.tobytes(), 19)
        alone = [encoder.encode(frame.tobytes(), 1)[0] for frame in frames]
    assert together == alone
    assert len(set(together)) == 19


def test_pixels_that_are_no_frames_are_a_media_error() -> None:
    with pytest.raises(MediaError):
        JpegEncoder(96, 64, "rgb24", 85).encode(b"abc", 1)
