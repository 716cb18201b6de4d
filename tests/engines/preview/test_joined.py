"""Segments of a parallel film depend on their own sound only and meet at rest."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from tests.engines.preview.conftest import MakeFilm, Samples, Sound, render
from workers.engines.contract import Engine
from workers.engines.preview.face import FaceReader
from workers.engines.preview.film_facts import measure, measure_parts
from workers.engines.preview.framing import frame_portrait
from workers.engines.preview.motion import STILL
from workers.engines.preview.renderer import Renderer


def test_a_joined_segment_begins_and_ends_with_the_same_picture_whatever_its_sound_and_seed(
    engine: Engine, make_film: MakeFilm, speech: Samples
) -> None:
    first = render(engine, replace(make_film(Sound(speech[:40_000])), joined=True))
    other = render(engine, replace(make_film(Sound(speech[30_000:70_000]), seed=99), joined=True))
    # The film leaves out one or two of the last frames, so those before them rest as well.
    assert np.array_equal(first[0], other[0])
    for frames in (first, other):
        assert np.array_equal(frames[0], frames[-1])
        assert np.array_equal(frames[0], frames[-2])
        assert np.array_equal(frames[0], frames[-3])
        assert not np.array_equal(frames[0], frames[len(frames) // 2])


def test_every_film_begins_with_the_portrait_and_ends_at_rest(
    engine: Engine, make_film: MakeFilm, speech: Samples, reader: FaceReader
) -> None:
    films = [make_film(Sound(speech[:48_000]), seed=seed) for seed in (7, 99)]
    first, other = (render(engine, film) for film in films)
    still = np.empty_like(first[0])
    photo = cv2.imread(str(films[0].portrait))
    Renderer(frame_portrait(photo, films[0].width, films[0].height, "auto", reader), 1.0).draw(STILL, still)
    assert np.array_equal(first[0], still)
    assert np.array_equal(first[0], other[0])
    assert np.array_equal(first[-1], other[-1])
    assert not np.array_equal(first[-20], other[-20])
    steps = np.abs(np.diff(first.astype(np.int16), axis=0)).mean(axis=(1, 2))
    assert max(steps[:10].max(), steps[-10:].max()) <= 1.2 * steps[10:-10].max(), "and does not jump there"


def test_no_step_near_a_join_is_larger_than_those_inside(engine: Engine, make_film: MakeFilm, speech: Samples) -> None:
    frames = render(engine, replace(make_film(), joined=True)).astype(np.int16)
    steps = np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2))
    inside = steps[25:-25].max()
    assert max(steps[:25].max(), steps[-25:].max()) <= 1.2 * inside


def test_a_joined_film_moves_between_its_ends_as_it_would_alone(engine: Engine, make_film: MakeFilm) -> None:
    film = make_film()
    alone, joined = render(engine, film), render(engine, replace(film, joined=True))
    assert np.array_equal(alone[75:-30], joined[75:-30])


def test_a_part_is_measured_alike_wherever_it_stands(speech: Samples) -> None:
    part = Sound(speech[:48_000])
    quiet = Sound(np.concatenate([part.samples, 0.7 * speech]))
    loud = Sound(np.concatenate([1.4 * speech, part.samples]))
    assert measure_parts(quiet, [part]) == measure_parts(loud, [part])
    (facts,), alone = measure_parts(part, [part]), measure(part)
    assert facts["speech_gain"] == pytest.approx(alone["speech_gain"], rel=1e-5)
    assert facts["speech_range"] == pytest.approx(alone["speech_range"], abs=2e-3)


def test_a_part_without_speech_is_not_amplified_to_the_level_of_speech(speech: Samples) -> None:
    noise = Sound(np.random.default_rng(1).normal(0, 1e-4, 48_000).astype(np.float32))
    (facts,) = measure_parts(Sound(np.concatenate([speech, noise.samples])), [noise])
    assert facts["speech_gain"] < measure(noise)["speech_gain"] / 4


def test_the_portrait_at_rest_has_shut_lips() -> None:
    assert STILL.open == STILL.talk == 0
