#!/usr/bin/env python
"""Measure the media module on this machine: encoding from a pipe, decoding an hour, joining an hour.

    python scripts/bench_media.py [--seconds-of-video 20] [--minutes 60] [--segments 120]

Prints one line per measurement.  Needs about 2 GB under the temporary directory at the default sizes.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from farm.media.assemble import assemble
from farm.media.binary import find_ffmpeg, version
from farm.media.decode import decode_driving
from farm.media.encode import PixelFormat, SegmentEncoder
from farm.media.pictures import contact_sheet
from farm.media.probe import probe_audio
from farm.media.profile import default_profile
from farm.media.verify import verify_film

SIDE, FPS = 512, 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds-of-video", type=int, default=20)
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument("--segments", type=int, default=120)
    asked = parser.parse_args()
    ffmpeg = find_ffmpeg()
    print(f"ffmpeg {version(ffmpeg)} at {ffmpeg}, {os.cpu_count()} processors")
    with tempfile.TemporaryDirectory(prefix="farm-bench-") as name:
        folder = Path(name)
        for pixel_format in ("rgb24", "yuv420p"):
            bench_encode(folder, pixel_format, asked.seconds_of_video * FPS)
        for sound in make_sounds(folder, asked.minutes):
            bench_decode(folder, sound)
        bench_assemble(folder, asked.segments, asked.minutes)


@contextmanager
def clock(taken: list[float]) -> Iterator[None]:
    began = time.perf_counter()
    yield
    taken.append(time.perf_counter() - began)


def make(*options: str) -> None:
    subprocess.run([find_ffmpeg(), "-nostdin", "-v", "error", "-y", *options], check=True)


def bench_encode(folder: Path, pixel_format: PixelFormat, frames: int) -> None:
    raw = folder / "frames.raw"
    pattern = f"testsrc2=size={SIDE}x{SIDE}:rate={FPS}"
    make("-f", "lavfi", "-i", pattern, "-frames:v", str(frames), "-pix_fmt", pixel_format, "-f", "rawvideo", str(raw))
    profile = default_profile(SIDE, SIDE, (FPS, 1))
    taken: list[float] = []
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with clock(taken), SegmentEncoder(profile, pixel_format, folder / "s.mp4") as encoder, raw.open("rb") as file:
        while piece := file.read(1 << 20):
            left = memoryview(piece)
            while left:
                left = left[os.write(encoder.write_fd, left) :]
        segment = encoder.finish(600)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    raw.unlink()
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    rate = segment.size_bytes * 8 * FPS / frames / 1e6
    said = f"{frames / taken[0]:.0f} fps, {1000 * busy / frames:.1f} ms of processor per frame, {rate:.2f} Mbit/s"
    print(f"encode {SIDE}x{SIDE} {pixel_format:8} {profile.preset} crf {profile.crf}: {said}")


def make_sounds(folder: Path, minutes: int) -> Iterator[Path]:
    noise = "anoisesrc=duration=60:sample_rate=44100:colour=pink:amplitude=0.3"
    for kind, options in (("wav", ("-ac", "2")), ("mp3", ("-ac", "2", "-b:a", "128k"))):
        minute, whole = folder / f"minute.{kind}", folder / f"whole.{kind}"
        make("-f", "lavfi", "-i", noise, *options, str(minute))
        make("-stream_loop", str(minutes - 1), "-i", str(minute), "-c", "copy", str(whole))
        yield whole


def bench_decode(folder: Path, sound: Path) -> None:
    probed: list[float] = []
    for _ in range(20):
        with clock(probed):
            probe_audio(sound)
    taken: list[float] = []
    with clock(taken):
        facts = decode_driving(sound, folder / "driving.f32")
    speed = facts.seconds / taken[0]
    milliseconds = 1000 * sorted(probed)[len(probed) // 2]
    print(
        f"decode {sound.suffix[1:]}, {facts.seconds / 60:.0f} min: {taken[0]:.1f} s, {speed:.0f} x real time; "
        f"probe {milliseconds:.1f} ms; peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB"
    )


def bench_assemble(folder: Path, count: int, minutes: int) -> None:
    frames = minutes * 60 * FPS
    profile = default_profile(SIDE, SIDE, (FPS, 1))
    each = frames // count
    picture = bytes(range(256)) * (SIDE * SIDE * 3 // 2 // 256)
    with SegmentEncoder(profile, "yuv420p", folder / "segment.mp4") as encoder:
        for _ in range(each):
            os.write(encoder.write_fd, picture)
        segment = encoder.finish(600)
    film, sound = folder / "film.mp4", folder / "whole.wav"
    taken: list[float] = []
    with clock(taken):
        assemble([segment.path] * count, sound, film, frames=each * count, profile=profile)
    with clock(taken):
        facts = verify_film(film, frames=each * count, fps=(FPS, 1))
    with clock(taken):
        contact_sheet(film, folder / "sheet.jpg")
    joined = f"{count} segments, {facts.video_seconds / 60:.0f} min, {facts.size_bytes / 1e6:.0f} MB"
    print(f"assemble {joined}: {taken[0]:.1f} s; verify {taken[1]:.1f} s; contact sheet {taken[2]:.1f} s")


if __name__ == "__main__":
    main()
