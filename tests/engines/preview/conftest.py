"""The real engine, the real face models, a public domain portrait and a minute of real speech."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from farm.errors import ConfigError
from tests.conftest import ROOT, do_without
from workers.engines.contract import DRIVING_RATE, Engine, FilmRequest
from workers.engines.preview import make_engine
from workers.engines.preview.face import FaceReader
from workers.engines.preview.film_facts import measure

ASTRONAUT = ROOT / "examples/portraits/astronaut.jpg"
SPEECH = ROOT / "examples/speech/reading_en.flac"

MakeFilm = Callable[..., FilmRequest]
Samples = npt.NDArray[np.float32]


class Sound:
    """Driving audio in memory that notes how far it was read."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples
        self.furthest = 0
        self.largest = 0

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, start: int, stop: int) -> Samples:
        self.furthest = max(self.furthest, stop)
        self.largest = max(self.largest, stop - start)
        out = np.zeros(stop - start, np.float32)
        low, high = max(0, start), min(len(self.samples), stop)
        if high > low:
            out[low - start : high - start] = self.samples[low:high]
        return out


@pytest.fixture(scope="session")
def reader() -> FaceReader:
    try:
        return FaceReader()
    except ConfigError as error:
        do_without(str(error))


@pytest.fixture(scope="session")
def engine(reader: FaceReader) -> Engine:
    made = make_engine({})
    made.load()
    return made


@pytest.fixture(scope="session")
def speech(ffmpeg: Path) -> Samples:
    """Six seconds of a reading voice."""
    argv = [ffmpeg, "-v", "error", "-i", SPEECH, "-t", "6", "-ac", "1", "-ar", str(DRIVING_RATE), "-f", "f32le", "-"]
    return np.frombuffer(subprocess.run(argv, capture_output=True, check=True).stdout, np.float32)


@pytest.fixture(scope="session")
def make_film(speech: Samples) -> MakeFilm:
    """A small film of the astronaut; `sound`, `portrait`, `fps`, `total_frames` and settings may differ."""

    def make(
        sound: Sound | None = None,
        portrait: Path = ASTRONAUT,
        size: tuple[int, int] = (256, 256),
        fps: int = 25,
        total_frames: int | None = None,
        seed: int = 7,
        **settings: Any,
    ) -> FilmRequest:
        sound = sound or Sound(speech)
        frames = total_frames or math.ceil(len(sound) * fps / DRIVING_RATE)
        return FilmRequest(portrait, sound, frames, *size, (fps, 1), "", seed, settings, measure(sound))

    return make


def render(engine: Engine, film: FilmRequest, first: int = 0, carry: bytes | None = None) -> npt.NDArray[np.uint8]:
    """All frames from `first` to the film's end, copied."""
    session = engine.begin(film, first, carry)
    chunks = []
    while first + sum(map(len, chunks)) < film.total_frames:
        chunks.append(session.step().copy())
    return np.concatenate(chunks)
