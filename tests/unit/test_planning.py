"""The frame plan, in integers."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.media.pauses import Pause
from farm.planning import PlannedSegment, choose_cuts, frame_count, plan_segments, stretches

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
def plans(draw: st.DrawFn) -> tuple[dict[str, object], list[PlannedSegment]]:
    total = draw(FRAMES)
    asked: dict[str, object] = {
        "chunk_frames": draw(CHUNKS),
        "fps": draw(FPS),
        "segment_seconds": draw(st.floats(0.1, 120)),
        "first_seconds": draw(st.floats(0.1, 120)),
    }
    return asked | {"total": total}, plan_segments(total, **asked)  # type: ignore[arg-type]


@given(plans())
def test_segments_tile_the_film(planned: tuple[dict[str, object], list[PlannedSegment]]) -> None:
    asked, plan = planned
    assert plan[0].first_frame == 0
    assert all(one.first_frame + one.frames == other.first_frame for one, other in pairwise(plan))
    assert plan[-1].first_frame + plan[-1].frames == asked["total"]
    assert all(segment.frames > 0 for segment in plan)


@given(plans())
def test_only_the_last_segment_may_hold_a_partial_chunk(
    planned: tuple[dict[str, object], list[PlannedSegment]],
) -> None:
    asked, plan = planned
    assert all(segment.frames % asked["chunk_frames"] == 0 for segment in plan[:-1])  # type: ignore[operator]
    assert all(segment.first_frame % asked["chunk_frames"] == 0 for segment in plan)  # type: ignore[operator]


@given(plans())
def test_the_segments_of_a_carry_film_are_a_chain(planned: tuple[dict[str, object], list[PlannedSegment]]) -> None:
    _, plan = planned
    assert [segment.needs_carry for segment in plan] == [False, *[True] * (len(plan) - 1)]


@given(plans())
def test_no_segment_is_much_longer_than_asked_for(planned: tuple[dict[str, object], list[PlannedSegment]]) -> None:
    asked, plan = planned
    chunk, (num, den) = asked["chunk_frames"], asked["fps"]  # type: ignore[misc]
    usual = max(1, round(asked["segment_seconds"] * num / den / chunk)) * chunk  # type: ignore[operator, has-type]
    # A half for a rest that is not worth a segment of its own.
    assert max(segment.frames for segment in plan) <= usual + usual // 2 + chunk  # type: ignore[has-type, operator]


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


def test_a_film_without_frames_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        plan(0)


# Parallel films: cuts that the sound decides


USUAL = 3000  # samples


@st.composite
def recordings(draw: st.DrawFn, most: int = 60) -> tuple[list[Pause], int]:
    """Pauses of a recording, and its length: at most one in 150 samples, as `find_pauses` finds them."""
    gaps = draw(st.lists(st.integers(150, 5000), max_size=most))
    # Few lengths and marks, so that equal pauses are frequent.
    pauses, at = [], 0
    for gap in gaps:
        at += gap
        pauses.append(Pause(draw(st.integers(1, 9)), draw(st.integers(0, 3)), at))
    return pauses, at + draw(st.integers(150, 5000))


def moved(pauses: list[Pause], by: int) -> list[Pause]:
    return [Pause(pause.length, pause.mark, pause.at + by) for pause in pauses]


@given(recordings())
def test_stretches_between_cuts_are_neither_too_short_nor_too_long(recording: tuple[list[Pause], int]) -> None:
    pauses, total = recording
    cuts = choose_cuts(pauses, total, USUAL)
    lengths = [stop - start for start, stop in pairwise([0, *cuts, total])]
    assert all(length > 0 for length in lengths)
    assert not cuts or min(lengths) >= USUAL // 4
    assert max(lengths) <= 2 * USUAL


@given(recordings())
def test_cuts_lie_at_pauses_where_there_are_any(recording: tuple[list[Pause], int]) -> None:
    pauses, total = recording
    places = {pause.at for pause in pauses}
    known = [0, *choose_cuts(pauses, total, USUAL), total]
    for before, cut in pairwise(known[:-1]):
        assert cut in places or cut - before == USUAL


@given(recordings(), recordings(10), st.data())
def test_an_insertion_moves_the_cuts_behind_it_and_changes_only_those_beside_it(
    recording: tuple[list[Pause], int], inserted: tuple[list[Pause], int], data: st.DataObject
) -> None:
    pauses, total = recording
    where = data.draw(st.integers(0, total))
    new, by = inserted
    early, late = [p for p in pauses if p.at < where], [p for p in pauses if p.at >= where]
    after = choose_cuts([*early, *moved(new, where), *moved(late, by)], total + by, USUAL)
    before = choose_cuts(pauses, total, USUAL)

    reach = USUAL // 2
    # A cut that the pauses around it decide, far enough from the edit and the film's ends, is one in both.
    anchors = [c for c in before if c > where + reach and _is_the_best_around(c, pauses)]
    if anchors:
        kept = [c for c in before if c >= anchors[0]]
        assert [c - by for c in after if c - by >= anchors[0]] == kept
    anchors = [c for c in before if c < where - reach and _is_the_best_around(c, pauses)]
    if anchors:
        assert [c for c in after if c <= anchors[-1]] == [c for c in before if c <= anchors[-1]]


def _is_the_best_around(cut: int, pauses: list[Pause]) -> bool:
    # Those too near to the film's ends to be cuts count as well: an insertion may take them away from there.
    near = [p for p in pauses if abs(p.at - cut) <= USUAL // 2]
    mine = next((p for p in near if p.at == cut), None)
    return mine is not None and max(near) == mine


@given(st.lists(st.integers(8_000, 900_000), max_size=30), st.integers(8_000, 900_000), RATES, FPS)
def test_parallel_stretches_tile_the_film_within_half_a_frame_of_the_sound(
    lengths: list[int], last: int, rate: int, fps: tuple[int, int]
) -> None:
    cuts = [sum(lengths[: n + 1]) for n in range(len(lengths))]
    total = sum(lengths) + last
    found = stretches(cuts, total, rate, fps)
    assert [one.first_frame + one.frames for one in found] == [
        *(o.first_frame for o in found[1:]),
        found[-1].first_frame + found[-1].frames,
    ]
    assert found[0].first_frame == 0 and found[-1].first_frame + found[-1].frames == frame_count(total, rate, fps)
    for one in found:
        apart = Fraction(one.first_frame) / Fraction(*fps) - Fraction(one.start, rate)
        assert abs(apart * Fraction(*fps)) <= Fraction(1, 2)
        assert one.rendered - one.frames in ((0, 1, 2) if one is found[-1] else (1, 2))


@given(st.integers(8_000, 900_000), st.integers(8_000, 900_000), st.integers(8_000, 900_000), RATES, FPS)
def test_what_is_rendered_of_a_stretch_does_not_depend_on_where_it_stands(
    before: int, length: int, other: int, rate: int, fps: tuple[int, int]
) -> None:
    here = stretches([before, before + length], before + length + 9_000, rate, fps)[1]
    there = stretches([other, other + length], other + length + 9_000, rate, fps)[1]
    assert here.rendered == there.rendered
