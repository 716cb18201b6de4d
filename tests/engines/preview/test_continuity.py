"""A resumed film is the film, and a segment that starts afresh is the same stretch of it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from farm.errors import EngineError
from farm.models import load_model
from tests.conftest import ROOT
from tests.engines.preview.conftest import ASTRONAUT, MakeFilm, Samples, Sound, render
from workers.engines.contract import Engine
from workers.host.audio import GrowingSound

LIVE = load_model("preview").live
assert LIVE is not None
LIVE_FACTS, SLICE = LIVE.facts, LIVE.slice_frames


def hashes(frames: np.ndarray) -> list[str]:
    return [hashlib.sha256(frame.tobytes()).hexdigest() for frame in frames]


def render_in_child(
    samples: Path, first: int, chunks: int, carry: str, cv_threads: int, blas_threads: int
) -> tuple[list[str], str]:
    script = Path(__file__).with_name("render_stretch.py")
    words = [ASTRONAUT, samples, first, chunks, cv_threads, carry]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": str(blas_threads)}
    argv = [sys.executable, str(script), *map(str, words)]
    lines = subprocess.run(argv, capture_output=True, text=True, check=True, env=environment).stdout.splitlines()
    return lines[:-1], lines[-1]


def test_a_film_resumed_in_fresh_processes_equals_the_film_rendered_in_one_go(
    engine: Engine, make_film: MakeFilm, speech: Samples, tmp_path: Path
) -> None:
    samples = tmp_path / "speech.f32"
    speech.tofile(samples)
    whole = hashes(render(engine, make_film()))

    head, carry = render_in_child(samples, 0, 2, "-", cv_threads=1, blas_threads=2)
    tail, _ = render_in_child(samples, 50, 4, carry, cv_threads=2, blas_threads=1)

    assert len(carry) < 1024
    assert head + tail == whole


def test_a_segment_that_starts_afresh_equals_the_same_stretch_of_the_carried_film(
    engine: Engine, make_film: MakeFilm
) -> None:
    film = make_film()
    whole = render(engine, film)
    for first in (25, 75, 125):
        assert np.array_equal(render(engine, film, first), whole[first:])


@pytest.mark.parametrize("fps", [24, 30, 50])
def test_other_frame_rates_start_afresh_exactly_too(engine: Engine, make_film: MakeFilm, fps: int) -> None:
    film = make_film(fps=fps, total_frames=3 * fps)
    assert np.array_equal(render(engine, film, 2 * fps), render(engine, film)[2 * fps :])


def test_frames_stop_at_the_end_of_the_film(engine: Engine, make_film: MakeFilm) -> None:
    session = engine.begin(make_film(total_frames=33), 0, None)
    assert [len(session.step()), len(session.step())] == [25, 8]
    with pytest.raises(EngineError, match="no more frames"):
        session.step()


def test_a_chunk_stays_unchanged_while_the_next_one_is_made(engine: Engine, make_film: MakeFilm) -> None:
    session = engine.begin(make_film(), 0, None)
    chunk = session.step()
    before = chunk.copy()
    session.step()
    assert np.array_equal(chunk, before)


def test_a_step_reads_no_further_ahead_than_it_says(engine: Engine, make_film: MakeFilm, speech: Samples) -> None:
    for fps in (24, 25, 30, 50):
        film = make_film(fps=fps)
        sound = Sound(speech)
        session = engine.begin(type(film)(**{**vars(film), "audio": sound}), fps, None)
        session.step()
        assert sound.furthest <= 2 * 16_000 + engine.describe().lookahead_samples
        assert sound.largest < 16_000 * 2, "only windows of the audio are read"


@pytest.mark.parametrize("key", ["version", "film", "frame", "engine"])
def test_a_carry_of_another_film_or_version_is_refused(engine: Engine, make_film: MakeFilm, key: str) -> None:
    film = make_film()
    session = engine.begin(film, 0, None)
    session.step()
    carry = json.loads(session.carry())
    assert engine.begin(film, 25, session.carry())
    with pytest.raises(EngineError, match=f"another {key}"):
        engine.begin(film, 25, json.dumps({**carry, key: "other"}).encode())


@pytest.mark.parametrize("carry", [b"", b"[]", b"\xff\x00", b"nonsense"])
def test_a_carry_that_is_not_ours_is_refused(engine: Engine, make_film: MakeFilm, carry: bytes) -> None:
    with pytest.raises(EngineError, match="not one of the preview engine's"):
        engine.begin(make_film(), 25, carry)


def test_a_segment_begins_only_at_a_chunk_of_the_film(engine: Engine, make_film: MakeFilm) -> None:
    for first in (10, -25, 10_000 * 25):
        with pytest.raises(EngineError, match="cannot begin at frame"):
            engine.begin(make_film(), first, None)


def test_a_live_sessions_frames_are_those_of_the_film_whose_sound_was_there_from_the_beginning(
    engine: Engine, make_film: MakeFilm, speech: Samples
) -> None:
    whole = dataclasses.replace(make_film(), facts=LIVE_FACTS)
    pcm = (speech * 32767.0).astype("<i2")
    heard = GrowingSound()
    heard.append(pcm.tobytes())
    film = dataclasses.replace(whole, audio=heard)
    expected = hashes(render(engine, film))  # of the same 16 bit sound

    growing = GrowingSound()
    session = engine.begin(dataclasses.replace(whole, audio=growing, live_frames=SLICE), 0, None)
    frames: list[np.ndarray] = []
    for start in range(0, len(pcm), SLICE * 640):
        growing.append(pcm[start : start + SLICE * 640].tobytes())
        while (len(frames) + 1) * SLICE * 640 + engine.describe().lookahead_samples <= len(growing):
            frames.append(session.step())
    assert len(frames) == len(pcm) // (SLICE * 640) - 1
    assert hashes(np.concatenate(frames)) == expected[: len(frames) * SLICE]
