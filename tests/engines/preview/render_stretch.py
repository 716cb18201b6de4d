"""Renders one stretch of a film in a process of its own and prints a hash of each frame, then the carry.

Arguments: portrait, samples (raw float32), first frame, chunks, OpenCV threads, carry as text or "-".
"""

from __future__ import annotations

import hashlib
import math
import sys
from pathlib import Path

import numpy as np

from workers.engines.contract import DRIVING_RATE, FilmRequest
from workers.engines.preview import make_engine
from workers.engines.preview.film_facts import measure


class Sound:
    def __init__(self, samples: np.ndarray) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, start: int, stop: int) -> np.ndarray:
        padded = np.zeros(stop - start, np.float32)
        inside = self.samples[max(0, start) : max(0, stop)]
        padded[max(0, -start) : max(0, -start) + len(inside)] = inside
        return padded


def main(portrait: str, samples: str, first: str, chunks: str, threads: str, carry: str) -> None:
    sound = Sound(np.fromfile(samples, np.float32))
    frames = math.ceil(len(sound) * 25 / DRIVING_RATE)
    film = FilmRequest(Path(portrait), sound, frames, 256, 256, (25, 1), "", 7, {}, measure(sound))
    engine = make_engine({"threads": int(threads)})
    engine.load()
    session = engine.begin(film, int(first), None if carry == "-" else carry.encode())
    for _ in range(int(chunks)):
        for frame in session.step():
            sys.stdout.write(hashlib.sha256(frame.tobytes()).hexdigest() + "\n")
    sys.stdout.write(session.carry().decode() + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
