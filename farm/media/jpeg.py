"""Frames as JPEG pictures, fast enough for a live session."""

from __future__ import annotations

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

from farm.errors import MediaError

_ROWS = {"yuv420p": (3, 2), "rgb24": (1, 1), "bgr24": (1, 1)}  # of the array, to the picture's height


class JpegEncoder:
    """Makes pictures of one size from an engine's frames."""

    def __init__(self, width: int, height: int, pixel_format: str, quality: int) -> None:
        """`pixel_format` as engines yield it, yuv420p in BT.709 limited range; `quality` from 1 to 100."""
        self._format = pixel_format
        numerator, denominator = _ROWS[pixel_format]
        planes = (height * numerator // denominator, width)
        self._shape = planes if pixel_format == "yuv420p" else (*planes, 3)
        codec = av.CodecContext.create("mjpeg", "w")
        assert isinstance(codec, av.VideoCodecContext)
        codec.width, codec.height, codec.pix_fmt = width, height, "yuvj420p"
        codec.time_base = codec.framerate = 1  # type: ignore[assignment]  # the pictures hold no time
        codec.color_range = ColorRange.JPEG
        # mjpeg's own scale runs from 2, hardly any loss, to 31.
        codec.qmin = codec.qmax = max(2, round(31 - 29 * quality / 100))
        codec.options = {"strict": "unofficial"}
        self._codec = codec
        self._made = 0

    def encode(self, pixels: bytes, count: int) -> list[bytes]:
        """`count` frames, one after the other, as one JPEG each.  Raises MediaError."""
        pictures = []
        try:
            for frame in np.frombuffer(pixels, np.uint8).reshape(count, *self._shape):
                picture = av.VideoFrame.from_ndarray(frame, self._format).reformat(
                    format="yuvj420p",
                    src_colorspace=Colorspace.ITU709 if self._format == "yuv420p" else None,
                    dst_colorspace=Colorspace.ITU601,  # JFIF knows no other
                    src_color_range=ColorRange.MPEG if self._format == "yuv420p" else None,
                    dst_color_range=ColorRange.JPEG,
                )
                picture.pts = self._made
                self._made += 1
                pictures += [bytes(packet) for packet in self._codec.encode(picture)]
        except (av.FFmpegError, ValueError) as error:
            raise MediaError(["mjpeg"], 0, str(error)) from error
        if len(pictures) != count:
            raise MediaError(["mjpeg"], 0, f"{len(pictures)} pictures of {count} frames")
        return pictures
