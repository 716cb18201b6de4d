"""Publishing: files, carry and state in one commit, and what follows for the job."""

from __future__ import annotations

import pytest

from farm.ledger import Ledger, moves, read
from farm.ledger.repair import render_again
from farm.states import ArtifactKind, Continuity, JobState, SegmentKind, SegmentState

from .scenes import (
    QUEUE,
    artifact,
    chain,
    claim,
    fail,
    finished,
    gets_nothing,
    hello,
    open_attempts,
    plan,
    planned,
    publish,
    render_all,
    request,
    segment,
    states,
    submit,
    worker_row,
)

WAITING, QUEUED, LEASED = SegmentState.WAITING, SegmentState.QUEUED, SegmentState.LEASED
SUCCEEDED, FAILED = SegmentState.SUCCEEDED, SegmentState.FAILED


def test_a_plan_makes_segments_that_own_every_frame_once(ledger: Ledger) -> None:
    (job_id,) = submit(ledger, request(priority=3, due=77.0))
    plan(ledger, claim(ledger, "cpu", "cpu"), chain(3, frames=40))
    job = read.job(ledger, job_id)
    segments = read.segments(ledger, job_id)
    assert [(s.kind, s.first_frame, s.frames, s.needs_carry) for s in segments[1:]] == [
        (SegmentKind.RENDER, 0, 40, False),
        (SegmentKind.RENDER, 40, 40, True),
        (SegmentKind.RENDER, 80, 40, True),
        (SegmentKind.ASSEMBLE, 0, 0, False),
    ]
    assert [s.queue for s in segments] == ["cpu", QUEUE, QUEUE, QUEUE, "cpu"]
    assert (job.state, job.segments_total, job.total_frames, job.audio_rate) == (JobState.RENDERING, 3, 120, 16_000)
    assert job.notes == ("n",)


def test_a_chain_opens_segment_by_segment(ledger: Ledger) -> None:
    job_id = planned(ledger, 3)
    assert states(ledger, job_id) == [SUCCEEDED, QUEUED, WAITING, WAITING, WAITING]
    publish(ledger, claim(ledger))
    assert states(ledger, job_id) == [SUCCEEDED, SUCCEEDED, QUEUED, WAITING, WAITING]
    publish(ledger, claim(ledger))
    publish(ledger, claim(ledger))
    assert states(ledger, job_id) == [SUCCEEDED, SUCCEEDED, SUCCEEDED, SUCCEEDED, QUEUED]


def test_parallel_segments_open_together_and_the_last_one_opens_the_film(ledger: Ledger) -> None:
    job_id = planned(ledger, 3, Continuity.PARALLEL)
    assert states(ledger, job_id) == [SUCCEEDED, QUEUED, QUEUED, QUEUED, WAITING]
    leases = [claim(ledger) for _ in range(3)]
    for lease in reversed(leases):
        assert states(ledger, job_id)[-1] is WAITING
        publish(ledger, lease)
    assert states(ledger, job_id)[-1] is QUEUED


def test_a_job_shows_what_is_published(ledger: Ledger) -> None:
    job_id = planned(ledger, 3)
    publish(ledger, claim(ledger))
    job = read.job(ledger, job_id)
    assert (job.state, job.segments_done, job.frames_done) == (JobState.RENDERING, 1, 50)
    assert job.finished_at is None
    render_all(ledger)
    job = read.job(ledger, job_id)
    assert (job.state, job.segments_done, job.frames_done) == (JobState.ASSEMBLING, 3, 150)


def test_the_film_ends_the_job(ledger: Ledger) -> None:
    job_id = finished(ledger)
    job = read.job(ledger, job_id)
    assert job.state is JobState.SUCCEEDED
    assert job.finished_at is not None
    assert set(states(ledger, job_id)) == {SUCCEEDED}
    assert read.films(ledger, [job_id])[job_id].kind is ArtifactKind.FILM
    assert read.unfinished(ledger, [job_id]) == 0
    assert not read.has_open_work(ledger)


def test_publishing_closes_the_attempt_and_frees_the_worker(ledger: Ledger) -> None:
    hello(ledger)
    job_id = planned(ledger)
    publish(ledger, claim(ledger))
    attempt = read.attempts(ledger, job_id)[-1]
    assert (attempt.outcome, attempt.frames, attempt.device_seconds) == ("succeed", 50, 2.0)
    assert attempt.ended_at is not None
    assert open_attempts(ledger, job_id) == 0
    assert worker_row(ledger, "w1").segment_id is None


def test_artifacts_belong_to_their_segment_and_the_newest_stands(ledger: Ledger) -> None:
    job_id = planned(ledger, 2)
    publish(ledger, claim(ledger))
    moves.publish(
        ledger, claim(ledger), artifacts=[artifact(ArtifactKind.SEGMENT, "/a/1.mp4", frames=50)], carry=b"c", frames=50
    )
    found = read.artifacts(ledger, job_id, ArtifactKind.SEGMENT)
    assert [(a.segment_number, a.facts.get("frames")) for a in found] == [(0, None), (1, 50)]
    assert read.artifact(ledger, job_id, ArtifactKind.PORTRAIT).segment_number == -1


def test_a_retried_segment_keeps_what_was_published_before_it(ledger: Ledger) -> None:
    job_id = planned(ledger, 2)
    publish(ledger, claim(ledger), b"zero")
    fail(ledger, claim(ledger), strike=False)
    again = claim(ledger)
    assert (again.segment.number, again.attempt, again.carry) == (1, 2, b"zero")
    assert segment(ledger, job_id, 0).state is SUCCEEDED


# A published file that is gone


def assembling(ledger: Ledger, segments: int = 3) -> int:
    job_id = planned(ledger, segments)
    render_all(ledger)
    return job_id


def test_a_lost_file_is_rendered_again_from_the_same_carry_and_then_assembled(ledger: Ledger) -> None:
    job_id = assembling(ledger)
    fail(ledger, claim(ledger, "cpu", "cpu"), strike=False)
    assert render_again(ledger, job_id, 1, "file gone")
    assert read.job(ledger, job_id).state is JobState.RENDERING
    assert states(ledger, job_id) == [SUCCEEDED, SUCCEEDED, QUEUED, SUCCEEDED, WAITING]
    assert gets_nothing(ledger, "cpu", "cpu")
    lease = claim(ledger)
    assert (lease.segment.number, lease.attempt, lease.carry) == (1, 2, b"carry of 0")
    publish(ledger, lease)
    assert states(ledger, job_id) == [SUCCEEDED, SUCCEEDED, SUCCEEDED, SUCCEEDED, QUEUED]
    publish(ledger, claim(ledger, "cpu", "cpu"))
    assert read.job(ledger, job_id).state is JobState.SUCCEEDED


def test_an_attempt_whose_file_is_gone_no_longer_counts_as_published(ledger: Ledger) -> None:
    job_id = assembling(ledger)
    render_again(ledger, job_id, 1, "file gone")
    render_all(ledger)
    lost = segment(ledger, job_id, 1)
    outcomes = [a.outcome for a in read.attempts(ledger, job_id) if a.segment_id == lost.id]
    assert outcomes == ["render_again", "succeed"]


def test_a_lost_file_revives_a_job_that_had_failed_to_assemble(ledger: Ledger) -> None:
    job_id = assembling(ledger)
    fail(ledger, claim(ledger, "cpu", "cpu"), for_good=True)
    assert read.job(ledger, job_id).state is JobState.FAILED
    assert render_again(ledger, job_id, 0, "file gone")
    job = read.job(ledger, job_id)
    assert (job.state, job.reason, job.finished_at) == (JobState.RENDERING, None, None)
    render_all(ledger)
    publish(ledger, claim(ledger, "cpu", "cpu"))
    assert read.job(ledger, job_id).state is JobState.SUCCEEDED


def test_nothing_is_rendered_again_once_the_film_stands_or_where_nothing_was_published(ledger: Ledger) -> None:
    assert not render_again(ledger, finished(ledger), 0, "file gone")
    job_id = planned(ledger)
    assert not render_again(ledger, job_id, 0, "never published")
    assert not render_again(ledger, job_id, 99, "no such segment")


@pytest.mark.parametrize("number", [0, 2])
def test_a_lost_file_does_not_move_segments_that_are_under_lease(ledger: Ledger, number: int) -> None:
    job_id = planned(ledger, 4)
    for _ in range(3):
        publish(ledger, claim(ledger))
    running = claim(ledger)
    assert render_again(ledger, job_id, number, "file gone")
    assert segment(ledger, job_id, 3).state is LEASED
    publish(ledger, running)
    assert states(ledger, job_id)[-1] is WAITING
    render_all(ledger)
    assert states(ledger, job_id)[-1] is QUEUED


def test_render_speed_is_that_of_published_segments(ledger: Ledger) -> None:
    assert read.render_speed(ledger, "preview") is None
    finished(ledger)
    assert read.render_speed(ledger, "preview") == 25.0
    assert read.render_speed(ledger, "other") is None
