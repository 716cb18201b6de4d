"""The table of a segment's moves, and what a job is because of its segments."""

from __future__ import annotations

from enum import StrEnum
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.errors import IllegalMove
from farm.states import (
    FINISHED,
    MOVES,
    Event,
    JobState,
    SegmentKind,
    SegmentState,
    WorkerState,
    after,
    job_state,
    states_before,
)

ROOT = Path(__file__).resolve().parents[2]
PREPARE, RENDER, ASSEMBLE = SegmentKind.PREPARE, SegmentKind.RENDER, SegmentKind.ASSEMBLE
WAITING, QUEUED, LEASED = SegmentState.WAITING, SegmentState.QUEUED, SegmentState.LEASED
SUCCEEDED, FAILED, CANCELLED = SegmentState.SUCCEEDED, SegmentState.FAILED, SegmentState.CANCELLED
ILLEGAL = sorted(set(product(SegmentState, Event)) - set(MOVES))


@pytest.mark.parametrize(("state", "event"), ILLEGAL)
def test_every_move_not_in_the_table_is_refused(state: SegmentState, event: Event) -> None:
    with pytest.raises(IllegalMove, match=f"^a {state} segment cannot {event}$"):
        after(state, event)


@pytest.mark.parametrize(("state", "event"), sorted(MOVES))
def test_every_move_in_the_table_is_made(state: SegmentState, event: Event) -> None:
    assert after(state, event) is MOVES[state, event]


def test_nothing_leaves_succeeded() -> None:
    assert not [event for state, event in MOVES if state is SUCCEEDED]


def test_only_a_lease_can_end_in_success() -> None:
    assert states_before(Event.SUCCEED) == (LEASED,)
    assert {state for (state, _), to in MOVES.items() if to is LEASED} == {QUEUED}


def test_every_state_can_be_reached_and_every_open_one_can_be_cancelled() -> None:
    assert set(MOVES.values()) | {WAITING} == set(SegmentState)
    assert set(states_before(Event.CANCEL)) == {WAITING, QUEUED, LEASED}


@pytest.mark.parametrize("event", Event)
def test_states_before_an_event_are_those_of_the_table(event: Event) -> None:
    assert set(states_before(event)) == {state for state in SegmentState if (state, event) in MOVES}


# A job's state is derived from its segments


@pytest.mark.parametrize(
    ("segments", "state"),
    [
        ({(PREPARE, QUEUED): 1}, JobState.QUEUED),
        ({(PREPARE, WAITING): 1}, JobState.QUEUED),
        ({(PREPARE, LEASED): 1}, JobState.PREPARING),
        ({(PREPARE, SUCCEEDED): 1, (RENDER, WAITING): 3, (ASSEMBLE, WAITING): 1}, JobState.RENDERING),
        ({(PREPARE, SUCCEEDED): 1, (RENDER, QUEUED): 1, (ASSEMBLE, WAITING): 1}, JobState.RENDERING),
        (
            {(PREPARE, SUCCEEDED): 1, (RENDER, SUCCEEDED): 2, (RENDER, LEASED): 1, (ASSEMBLE, WAITING): 1},
            JobState.RENDERING,
        ),
        ({(PREPARE, SUCCEEDED): 1, (RENDER, SUCCEEDED): 3, (ASSEMBLE, QUEUED): 1}, JobState.ASSEMBLING),
        ({(PREPARE, SUCCEEDED): 1, (RENDER, SUCCEEDED): 3, (ASSEMBLE, LEASED): 1}, JobState.ASSEMBLING),
        ({(PREPARE, SUCCEEDED): 1, (RENDER, SUCCEEDED): 3, (ASSEMBLE, SUCCEEDED): 1}, JobState.SUCCEEDED),
        ({(PREPARE, FAILED): 1}, JobState.FAILED),
        ({(PREPARE, SUCCEEDED): 1, (RENDER, FAILED): 1, (RENDER, LEASED): 1, (ASSEMBLE, WAITING): 1}, JobState.FAILED),
        ({(PREPARE, SUCCEEDED): 1, (RENDER, SUCCEEDED): 3, (ASSEMBLE, FAILED): 1}, JobState.FAILED),
        ({(PREPARE, CANCELLED): 1}, JobState.CANCELLED),
        ({(PREPARE, SUCCEEDED): 1, (RENDER, SUCCEEDED): 1, (RENDER, CANCELLED): 2}, JobState.CANCELLED),
        ({(PREPARE, SUCCEEDED): 1, (RENDER, FAILED): 1, (RENDER, CANCELLED): 2}, JobState.FAILED),
    ],
)
def test_a_job_is_what_its_segments_say(segments: dict[tuple[SegmentKind, SegmentState], int], state: JobState) -> None:
    assert job_state(segments) is state


COUNTS = st.dictionaries(st.tuples(st.sampled_from(SegmentKind), st.sampled_from(SegmentState)), st.integers(0, 9))


@given(COUNTS)
def test_states_that_no_segment_is_in_do_not_count(counts: dict[tuple[SegmentKind, SegmentState], int]) -> None:
    assert job_state(counts) is job_state({key: count for key, count in counts.items() if count})


@given(COUNTS)
def test_a_failed_segment_outweighs_everything(counts: dict[tuple[SegmentKind, SegmentState], int]) -> None:
    assert job_state({**counts, (RENDER, FAILED): 1}) is JobState.FAILED


@given(COUNTS)
def test_a_job_has_ended_only_when_no_move_of_its_segments_can_change_that(
    counts: dict[tuple[SegmentKind, SegmentState], int],
) -> None:
    state = job_state(counts)
    kinds = {s for (_, s), count in counts.items() if count}
    assert (state in FINISHED) == (bool(kinds & {FAILED, CANCELLED}) or state is JobState.SUCCEEDED)


# docs/states.md


def diagram() -> str:
    """The table as a Mermaid diagram; what docs/states.md must hold."""
    lines = [f"    {state} --> {to}: {event}" for (state, event), to in MOVES.items()]
    return "\n".join(["```mermaid", "stateDiagram-v2", "    [*] --> waiting", "    [*] --> queued", *lines, "```"])


def test_the_diagram_in_the_documents_is_the_table() -> None:
    text = (ROOT / "docs/states.md").read_text(encoding="utf-8")
    found = text[text.index("```mermaid") :].partition("\n```")[0] + "\n```"
    assert found == diagram()


@pytest.mark.parametrize("kind", [SegmentState, JobState, WorkerState])
def test_every_state_is_explained_in_the_documents(kind: type[StrEnum]) -> None:
    text = (ROOT / "docs/states.md").read_text(encoding="utf-8")
    assert not [state for state in kind if f"| {state} |" not in text]
