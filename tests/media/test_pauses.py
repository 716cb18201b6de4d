"""Pauses are found where the sound has them, at the same sample of the same words wherever these stand."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from farm.media.pauses import find_pauses

RATE = 8_000
Samples = npt.NDArray[np.int16]


def speech(seed: int, seconds: float, hum: float = 0.0) -> Samples:
    """Bursts of noise with pauses of different lengths between them, and perhaps a steady hum under all of it."""
    dice = np.random.default_rng(seed)
    pieces: list[npt.NDArray[np.float64]] = []
    while sum(map(len, pieces)) < seconds * RATE:
        pieces.append(dice.normal(0, 3000, dice.integers(RATE // 2, 3 * RATE)))
        pieces.append(dice.normal(0, 20, dice.integers(RATE // 10, RATE)))
    sound = np.concatenate(pieces)[: round(seconds * RATE)] + hum * np.sin(np.arange(round(seconds * RATE)) * 0.1)
    return np.clip(sound, -32768, 32767).astype(np.int16)


def test_a_pause_is_found_in_its_middle_with_its_length() -> None:
    dice = np.random.default_rng(1)
    loud = dice.normal(0, 3000, 4 * RATE).astype(np.int16)
    (pause,) = find_pauses(np.concatenate([loud, np.zeros(RATE * 6 // 10, np.int16), loud]), RATE)
    assert abs(pause.at - 4.3 * RATE) <= 0.01 * RATE
    assert abs(pause.length - 0.6 * RATE) <= 0.02 * RATE


@pytest.mark.parametrize("sound", [np.zeros(60_000, np.int16), speech(1, 8)[:0], np.full(60_000, 9000, np.int16)])
def test_sound_without_a_change_has_no_pauses_inside(sound: Samples) -> None:
    assert [p for p in find_pauses(sound, RATE) if RATE < p.at < len(sound) - RATE] == []


def test_pauses_are_found_over_a_hum_15_db_under_the_speech() -> None:
    assert len(find_pauses(speech(5, 60, hum=700.0), RATE)) > 15


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 99), st.integers(1, 70_000), st.integers(0, 40 * RATE))
def test_an_insertion_of_any_length_leaves_the_pauses_away_from_it_as_they_are(seed: int, more: int, at: int) -> None:
    sound = speech(seed, 40)
    edited = np.concatenate([sound[:at], speech(seed + 1000, more / RATE), sound[at:]])
    by = len(edited) - len(sound)
    margin = 4 * RATE  # a pause is judged by what lies up to 3.5 s from its middle
    before, after = find_pauses(sound, RATE), find_pauses(edited, RATE)
    assert [p for p in before if p.at < at - margin] == [p for p in after if p.at < at - margin]
    late = [(p.length, p.mark, p.at + by) for p in before if p.at > at + margin]
    assert late == [(p.length, p.mark, p.at) for p in after if p.at > at + margin + by]


def test_what_is_found_does_not_depend_on_how_the_sound_is_read_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = speech(3, 40)
    whole = find_pauses(sound, RATE)
    monkeypatch.setattr("farm.media.pauses._BLOCK_SECONDS", 3)
    assert find_pauses(sound, RATE) == whole
