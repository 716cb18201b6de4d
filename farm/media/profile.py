"""How the segments of one job are encoded: chosen once, frozen on the job, compared before anything is joined.

There are no B-frames, and no field for them.  With them the joins lose their exact time stamps as soon as a segment
is shorter than the reordering delay (measured: repeated DTS and a film two frames short), and they save only 1 to 7
per cent of the bytes.  Without them every frame's PTS equals its DTS equals its number.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

SMALLEST_TIMESCALE = 10_000
SOFTWARE = "libx264"  # encodes on every machine
NVENC_PRESET = "p5"  # of p1 (fastest) to p7 (best); it has no word for those of x264


@dataclass(frozen=True, slots=True)
class EncoderProfile:
    """Everything that decides a segment's bytes, given its frames."""

    width: int  # pixels, even
    height: int  # pixels, even
    fps: tuple[int, int]  # numerator, denominator
    gop: int  # frames from one IDR frame to the next
    video_track_timescale: int  # ticks per second; a multiple of fps, so that every time stamp is exact
    codec: str = SOFTWARE  # or h264_nvenc
    preset: str = "fast"
    crf: int = 18  # NVENC's cq
    threads: int = 4  # fixed, because x264 writes other bytes with another number
    pix_fmt: str = "yuv420p"
    matrix: str = "bt709"
    primaries: str = "bt709"
    transfer: str = "bt709"
    range: str = "tv"

    def to_json(self) -> str:
        """Equal profiles give equal text."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> EncoderProfile:
        """The inverse of `to_json`."""
        fields: dict[str, Any] = json.loads(text)
        return cls(**{**fields, "fps": tuple(fields["fps"])})

    def fingerprint(self) -> str:
        """SHA-256 of the profile, in hex; segments with different ones are never joined by copying."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def default_profile(width: int, height: int, fps: tuple[int, int], codec: str = SOFTWARE) -> EncoderProfile:
    """The profile of a new job: an IDR frame every two seconds.  Raises ValueError for odd sizes."""
    if width <= 0 or height <= 0 or width % 2 or height % 2:
        raise ValueError(f"a film must have an even width and height, not {width}x{height}")
    rate = Fraction(*fps)
    timescale = rate.numerator
    while timescale < SMALLEST_TIMESCALE:
        timescale *= 2
    return EncoderProfile(
        width=width,
        height=height,
        fps=(rate.numerator, rate.denominator),
        gop=max(1, round(2 * rate)),
        video_track_timescale=timescale,
        codec=codec,
        preset="fast" if codec == SOFTWARE else NVENC_PRESET,
    )
