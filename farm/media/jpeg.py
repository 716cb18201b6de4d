"""Frames as JPEG pictures, fast enough for a live session."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import ColorRange, Colorspace

from farm.errors import MediaError

_ROWS = {"yuv420p": (3, 2), "rgb24": (1, 1), "bgr24": (1, 1)}  # of the array, to the picture's height
# The frames of one message are packed side by side while the client waits: one after the other, 28 of them at 448x768
# take longer than what a real-time session has to spare beside rendering.
_THREADS = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


class JpegEncoder:
    """Makes pictures of one size from an engine's frames.  A context, whose end stops its threads."""

    def __init__(self, width: int, height: int, pixel_format: str, quality: int) -> None:
        """`pixel_format` as engines yield it, yuv420p in BT.709 limited range; `quality` from 1 to 100."""
        self._format = pixel_format
        numerator, denominator = _ROWS[pixel_format]
        planes = (height * numerator // denominator, width)
        self._shape = planes if pixel_format == "yuv420p" else (*planes, 3)
        self._lanes = [_Lane(width, height, pixel_format, quality) for _ in range(_THREADS)]
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="jpeg")

    def __enter__(self) -> JpegEncoder:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown()

    def encode(self, pixels: bytes, count: int) -> list[bytes]:
        """`count` frames, one after the other, as one JPEG each.  Raises MediaError."""
        pictures: list[bytes] = [b""] * count
        lanes = len(self._lanes)
        try:
            frames = np.frombuffer(pixels, np.uint8).reshape(count, *self._shape)
            shares = [frames[first::lanes] for first in range(lanes)]
            for first, made in enumerate(self._threads.map(_Lane.encode, self._lanes, shares)):
                pictures[first::lanes] = made
        except (av.FFmpegError, ValueError) as error:
            raise MediaError(["mjpeg"], 0, str(error)) from error
        return pictures


class _Lane:
    """One encoder, used by one thread at a time; a picture does not depend on those before it."""

    def __init__(self, width: int, height: int, pixel_format: str, quality: int) -> None:
        self._format = pixel_format
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

    def encode(self, frames: npt.NDArray[Any]) -> list[bytes]:
        """Raises FFmpegError and ValueError."""
        pictures: list[bytes] = []
        for frame in frames:
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
        if len(pictures) != len(frames):
            raise ValueError(f"{len(pictures)} pictures of {len(frames)} frames")
        return pictures
