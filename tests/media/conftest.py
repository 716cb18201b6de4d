"""Short real media: made by ffmpeg from test signals, or written sample by sample."""

from __future__ import annotations

import os
import subprocess
import wave
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from farm.media.encode import SegmentEncoder
from farm.media.profile import EncoderProfile, default_profile

MakeMedia = Callable[..., Path]
MakeSegment = Callable[..., Path]
WriteWav = Callable[..., Path]


@pytest.fixture
def make_media(ffmpeg: Path, tmp_path: Path) -> MakeMedia:
    """`make_media("x.mp3", "-f", "lavfi", ...)`: the file that this ffmpeg command line writes."""

    def make(name: str, *options: str) -> Path:
        target = tmp_path / name
        command = [ffmpeg, "-nostdin", "-v", "error", "-y", *options, f"file:{target}"]
        subprocess.run(command, check=True, timeout=120)
        return target

    return make


@pytest.fixture
def write_wav(tmp_path: Path) -> WriteWav:
    """`write_wav("x.wav", sound, rate)`: a 16-bit file of float `sound` [n] or [n, channels]."""

    def write(name: str, sound: np.ndarray, rate: int) -> Path:
        target = tmp_path / name
        with wave.open(str(target), "wb") as file:
            file.setnchannels(1 if sound.ndim == 1 else sound.shape[1])
            file.setsampwidth(2)
            file.setframerate(rate)
            file.writeframes((np.clip(sound, -1, 1) * 32767).round().astype("<i2").tobytes())
        return target

    return write


def quick_profile(fps: tuple[int, int] = (25, 1), size: int = 64) -> EncoderProfile:
    """A profile that costs next to nothing."""
    return replace(default_profile(size, size, fps), preset="ultrafast", crf=30, threads=1)


def moving_frames(first: int, count: int, size: int = 64) -> bytes:
    """yuv420p frames, each unlike its neighbours: a bar whose place and grey depend on the frame's number."""
    rows = np.arange(size)
    frames = []
    for number in range(first, first + count):
        luma = np.full((size, size), 40 + number * 7 % 150, np.uint8)
        luma[(rows + number * 5) % size < 8] = 220
        frames.append(luma.tobytes() + bytes([100 + number % 60]) * (size * size // 2))
    return b"".join(frames)


@pytest.fixture
def make_segment(tmp_path: Path) -> MakeSegment:
    """`make_segment(frames, first=0)`: a segment encoded through the pipe."""

    def make(frames: int, first: int = 0, profile: EncoderProfile | None = None, name: str | None = None) -> Path:
        profile = profile or quick_profile()
        target = tmp_path / (name or f"segment-{first:06}-{frames}.mp4")
        with SegmentEncoder(profile, "yuv420p", target) as encoder:
            write_all(encoder.write_fd, moving_frames(first, frames, profile.width))
            assert encoder.finish(60).frames == frames
        return target

    return make


def write_all(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]
