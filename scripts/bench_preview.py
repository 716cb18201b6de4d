#!/usr/bin/env python3
"""How fast the preview engine is on this machine, alone and with x264 behind it.

    python scripts/bench_preview.py [--seconds 20] [--sizes 256,512,768,1024] [--threads 0]

Each size runs in a process of its own, so that the memory it reports is its own.  `x real time` is against a film of
25 frames per second; `with x264` uses the farm's encoder, through a pipe, with preset veryfast and two threads.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from farm.media.binary import find_ffmpeg  # noqa: E402
from farm.media.encode import SegmentEncoder  # noqa: E402
from farm.media.profile import default_profile  # noqa: E402
from workers.engines.contract import DRIVING_RATE, Engine, FilmRequest  # noqa: E402
from workers.engines.preview import make_engine  # noqa: E402
from workers.engines.preview.film_facts import measure  # noqa: E402
from workers.host.audio import DrivingFile  # noqa: E402
from workers.host.child import FrameWriter  # noqa: E402

FPS = 25


def decode_speech(source: Path, seconds: float, target: Path) -> None:
    """Speech as raw float32 at 16 kHz, repeated to the asked length."""
    argv = [str(find_ffmpeg()), "-v", "error", "-i", str(source), "-ac", "1", "-ar", str(DRIVING_RATE)]
    once = np.frombuffer(subprocess.run([*argv, "-f", "f32le", "-"], capture_output=True, check=True).stdout, "<f4")
    np.resize(once, int(seconds * DRIVING_RATE)).tofile(target)


def render(engine: Engine, film: FilmRequest, encode_to: Path | None) -> float:
    """Seconds that the whole film took, without `begin`."""
    session = engine.begin(film, 0, None)
    began = time.perf_counter()
    if encode_to is None:
        for _ in range(0, film.total_frames, FPS):
            session.step()
        return time.perf_counter() - began
    profile = default_profile(film.width, film.height, film.fps)
    profile = dataclasses.replace(profile, preset="veryfast", crf=20, threads=2)
    with SegmentEncoder(profile, "yuv420p", encode_to) as encoder:
        writer = FrameWriter(os.dup(encoder.write_fd))
        encoder.close_write_end()
        for _ in range(0, film.total_frames, FPS):
            writer.put(session.step())
        writer.finish()
        encoder.finish(timeout_seconds=600)
    return time.perf_counter() - began


def measure_size(portrait: Path, samples: Path, side: int, threads: int) -> dict[str, float]:
    """The figures of one size, in this process."""
    sound = DrivingFile(samples)
    frames = math.ceil(len(sound) * FPS / DRIVING_RATE)
    film = FilmRequest(portrait, sound, frames, side, side, (FPS, 1), "", 7, {}, measure(sound))
    engine = make_engine({"threads": threads})
    loaded = engine.load()
    began = time.perf_counter()
    engine.begin(film, 0, None).step()
    first = time.perf_counter() - began
    alone = render(engine, film, None)
    with tempfile.TemporaryDirectory() as folder:
        encoded = render(engine, film, Path(folder) / "segment")
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "load_seconds": loaded.seconds,
        "first_chunk_seconds": first,
        "fps": frames / alone,
        "fps_encoded": frames / encoded,
        "rss_mib": rss,
    }


def main() -> int:
    """Measure every size and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--portrait", type=Path, default=ROOT / "examples/portraits/astronaut.jpg")
    parser.add_argument("--speech", type=Path, default=ROOT / "examples/speech/reading_en.flac")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of the film")
    parser.add_argument("--sizes", default="256,512,768,1024", help="sides of the square pictures, pixels")
    parser.add_argument("--threads", type=int, default=0, help="frames drawn at once; 0 for one per core")
    parser.add_argument("--one", metavar="SAMPLES", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    sizes = [int(word) for word in chosen.sizes.split(",")]
    if chosen.one:
        print(json.dumps(measure_size(chosen.portrait, Path(chosen.one), sizes[0], chosen.threads)))
        return 0

    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    print(f"{cores} cores, load {load:.1f} before the start, {chosen.seconds:g} s of speech at {FPS} fps")
    print(f"{'size':>10} {'alone':>10} {'x real':>7} {'with x264':>10} {'x real':>7} {'first chunk':>12} {'memory':>9}")
    with tempfile.TemporaryDirectory() as folder:
        samples = Path(folder) / "speech.f32"
        decode_speech(chosen.speech, chosen.seconds, samples)
        for side in sizes:
            argv = [sys.executable, __file__, "--portrait", str(chosen.portrait), "--one", str(samples)]
            argv += ["--sizes", str(side), "--threads", str(chosen.threads)]
            found = json.loads(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)
            print(
                f"{side:>5}x{side:<4} {found['fps']:>6.1f} fps {found['fps'] / FPS:>7.2f}"
                f" {found['fps_encoded']:>6.1f} fps {found['fps_encoded'] / FPS:>7.2f}"
                f" {found['first_chunk_seconds']:>10.2f} s {found['rss_mib']:>5.0f} MiB",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
