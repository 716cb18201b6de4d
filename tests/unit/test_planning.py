"""The frame plan, in integers."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.planning import PlannedSegment, frame_count, plan_segments
from farm.states import Continuity

RATES = st.sampled_from([8000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000, 96_000])
FPS = st.sampled_from([(24, 1), (25, 1), (30, 1), (50, 1), (30_000, 1001), (24_000, 1001), (20, 1)])
CHUNKS = st.integers(1, 120)
FRAMES = st.integers(1, 300_000)


@given(st.integers(1, 10**12), RATES, FPS)
def test_frames_cover_the_last_sample_exactly(samples: int, rate: int, fps: tuple[int, int]) -> None:
    assert frame_count(samples, rate, fps) == math.ceil(Fraction(samples) * Fraction(*fps) / rate)


def test_a_film_of_one_sample_has_one_frame_and_of_a_whole_second_no_more_than_fps() -> None:
    assert frame_count(1, 48_000, (25, 1)) == 1
    assert frame_count(48_000, 48_000, (25, 1)) == 25
    assert frame_count(48_001, 48_000, (25, 1)) == 26


@st.composite
def plans(draw: st.DrawFn, continuity: st.SearchStrategy[Continuity]) -> tuple[dict[str, object], list[PlannedSegment]]:
    total = draw(FRAMES)
    starts = draw(st.lists(st.integers(0, total), max_size=20))
    asked: dict[str, object] = {
        "chunk_frames": draw(CHUNKS),
        "fps": draw(FPS),
        "segment_seconds": draw(st.floats(0.1, 120)),
        "first_seconds": draw(st.floats(0.1, 120)),
        "continuity": draw(continuity),
        "pauses": [(start, start + draw(st.integers(1, 200))) for start in starts],
    }
    return asked | {"total": total}, plan_segments(total, **asked)  # type: ignore[arg-type]


BOTH = st.sampled_from(Continuity)


@given(plans(BOTH))
def test_segments_tile_the_film(planned: tuple[dict[str, object], list[PlannedSegment]]) -> None:
    asked, plan = planned
    assert plan[0].first_frame == 0
    assert all(one.first_frame + one.frames == other.first_frame for one, other in pairwise(plan))
    assert plan[-1].first_frame + plan[-1].frames == asked["total"]
    assert all(segment.frames > 0 for segment in plan)


@given(plans(BOTH))
def test_only_the_last_segment_may_hold_a_partial_chunk(
    planned: tuple[dict[str, object], list[PlannedSegment]],
) -> None:
    asked, plan = planned
    assert all(segment.frames % asked["chunk_frames"] == 0 for segment in plan[:-1])  # type: ignore[operator]
    assert all(segment.first_frame % asked["chunk_frames"] == 0 for segment in plan)  # type: ignore[operator]


@given(plans(st.just(Continuity.CARRY)))
def test_a_carry_film_is_a_chain(planned: tuple[dict[str, object], list[PlannedSegment]]) -> None:
    _, plan = planned
    assert [segment.needs_carry for segment in plan] == [False, *[True] * (len(plan) - 1)]


@given(plans(st.just(Continuity.PARALLEL)))
def test_parallel_segments_need_nothing_of_each_other(
    planned: tuple[dict[str, object], list[PlannedSegment]],
) -> None:
    _, plan = planned
    assert not any(segment.needs_carry for segment in plan)


@given(plans(BOTH))
def test_no_segment_is_much_longer_than_asked_for(planned: tuple[dict[str, object], list[PlannedSegment]]) -> None:
    asked, plan = planned
    chunk, (num, den) = asked["chunk_frames"], asked["fps"]  # type: ignore[misc]
    usual = max(1, round(asked["segment_seconds"] * num / den / chunk)) * chunk  # type: ignore[operator, has-type]
    # A quarter for a cut that moved to a pause, a half for a rest that is not worth a segment of its own.
    assert max(segment.frames for segment in plan) <= usual + usual // 4 + usual // 2 + chunk  # type: ignore[has-type, operator]


def plan(total: int, **changes: object) -> list[PlannedSegment]:
    asked: dict[str, object] = {"chunk_frames": 25, "fps": (25, 1), "segment_seconds": 30.0, "first_seconds": 6.0}
    return plan_segments(total, **(asked | changes))  # type: ignore[arg-type]


def test_the_first_segment_is_short_so_that_a_film_can_be_looked_at_early() -> None:
    assert [segment.frames for segment in plan(25 * 90)] == [150, 750, 750, 600]


def test_a_rest_of_less_than_half_a_segment_joins_the_one_before() -> None:
    assert [segment.frames for segment in plan(25 * 40)] == [150, 850]
    assert [segment.frames for segment in plan(25 * 60)] == [150, 750, 600]


def test_a_short_film_is_one_segment() -> None:
    assert plan(7) == [PlannedSegment(0, 7, needs_carry=False)]
    assert plan(150) == [PlannedSegment(0, 150, needs_carry=False)]
    assert [segment.frames for segment in plan(150 + 24)] == [174]


def test_a_first_segment_is_never_longer_than_the_others() -> None:
    assert plan(25 * 90, first_seconds=90.0)[0].frames == 750


def test_parallel_cuts_move_to_the_nearest_pause_in_reach() -> None:
    pauses = [(880, 940), (960, 1010), (1500, 1510)]
    cuts = [s.first_frame for s in plan(25 * 90, continuity=Continuity.PARALLEL, pauses=pauses)]
    assert cuts == [0, 150, 900, 1500]
    cuts = [s.first_frame for s in plan(25 * 90, continuity=Continuity.PARALLEL, pauses=pauses[1:2])]
    assert cuts == [0, 150, 975, 1725]


def test_carry_cuts_do_not_care_for_pauses() -> None:
    assert plan(25 * 90, pauses=[(960, 1010)]) == plan(25 * 90)


def test_a_film_without_frames_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        plan(0)
