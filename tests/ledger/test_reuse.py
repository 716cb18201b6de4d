"""Frames that another film has already: published with the plan, told in the history, and never half."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from farm.config import load_settings
from farm.errors import LeaseLost, LedgerError
from farm.ledger import Ledger, moves, read
from farm.ledger.audit import audit
from farm.ledger.repair import begin_again, render_again
from farm.ledger.reuse import known_segments
from farm.ledger.values import Lease, Reused
from farm.planning import Part, PlannedSegment
from farm.states import ArtifactKind, Continuity, JobState, SegmentState

from .scenes import (
    POLICY,
    QUEUE,
    artifact,
    chain,
    claim,
    gets_nothing,
    hello,
    history,
    publish,
    request,
    run_out,
    states,
    submit,
)

QUEUED, WAITING, SUCCEEDED = SegmentState.QUEUED, SegmentState.WAITING, SegmentState.SUCCEEDED


def keyed(parts: list[PlannedSegment]) -> list[PlannedSegment]:
    return [
        dataclasses.replace(p, content_key=f"{n:064x}", part=Part(n * 10, 10, p.frames + 1, n, {"speech_gain": 1.5}))
        for n, p in enumerate(parts)
    ]


def reused(number: int) -> Reused:
    return Reused(artifact(ArtifactKind.SEGMENT, frames=51), b"carry", "1", f"segment {number + 1} of job 7")


def publish_plan(ledger: Ledger, lease: Lease, parts: list[PlannedSegment], *numbers: int) -> None:
    made = [artifact(ArtifactKind.PORTRAIT), artifact(ArtifactKind.DRIVING)]
    values = {"audio_rate": 16_000, "audio_samples": 1, "total_frames": sum(p.frames for p in parts)}
    again = {number: reused(number) for number in numbers}
    moves.publish_plan(ledger, lease, artifacts=made, job=values, plan=parts, queue=QUEUE, reused=again)


def prepared(ledger: Ledger, *numbers: int, continuity: Continuity = Continuity.PARALLEL) -> int:
    """A job of three segments of which these were taken over."""
    (job_id,) = submit(ledger, request(continuity=continuity))
    publish_plan(ledger, claim(ledger, "cpu", "cpu"), keyed(chain(3, continuity=continuity)), *numbers)
    return job_id


def broken(ledger: Ledger) -> list[str]:
    return [str(violation) for violation in audit(ledger, load_settings(), check_files=False)]


def test_the_others_are_rendered_and_the_history_tells_whose_frames_these_are(ledger: Ledger) -> None:
    job_id = prepared(ledger, 0, 2)
    assert states(ledger, job_id) == [SUCCEEDED, SUCCEEDED, QUEUED, SUCCEEDED, WAITING]
    job = read.job(ledger, job_id)
    assert (job.segments_done, job.frames_done, job.engine_version) == (2, 100, "1")
    told = [line.detail for line in read.events(ledger, job_id=job_id) if line.event == moves.REUSED]
    assert told == ["the frames are those of segment 1 of job 7", "the frames are those of segment 3 of job 7"]
    assert broken(ledger) == []
    hello(ledger)
    publish(ledger, claim(ledger))
    assert states(ledger, job_id)[-1] is QUEUED
    publish(ledger, claim(ledger, "cpu", "cpu"))
    assert read.job(ledger, job_id).state is JobState.SUCCEEDED
    assert broken(ledger) == []


def test_a_film_of_nothing_but_known_segments_is_assembled_at_once(ledger: Ledger) -> None:
    job_id = prepared(ledger, 0, 1, 2)
    hello(ledger)
    assert gets_nothing(ledger)
    assert read.job(ledger, job_id).state is JobState.ASSEMBLING
    publish(ledger, claim(ledger, "cpu", "cpu"))
    assert broken(ledger) == []


def test_the_first_segment_of_a_chain_that_is_left_starts_from_the_carry_that_was_taken_over(ledger: Ledger) -> None:
    job_id = prepared(ledger, 0, continuity=Continuity.CARRY)
    hello(ledger)
    lease = claim(ledger)
    assert (lease.job.id, lease.segment.number, lease.carry) == (job_id, 1, b"carry")
    assert broken(ledger) == []


def test_the_attempt_took_no_time_of_a_device_and_counts_no_frames(ledger: Ledger) -> None:
    job_id = prepared(ledger, 1)
    (attempt,) = [a for a in read.attempts(ledger, job_id) if a.device == moves.REUSED]
    assert (attempt.outcome, attempt.frames, attempt.device_seconds, attempt.worker) == ("succeed", 0, 0.0, "cpu")


def test_what_a_segment_is_rendered_from_reaches_the_worker(ledger: Ledger) -> None:
    prepared(ledger)
    hello(ledger)
    lease = claim(ledger)
    assert lease.segment.part == Part(0, 10, 51, 0, {"speech_gain": 1.5})
    assert lease.segment.content_key == f"{0:064x}"


def test_only_published_segments_with_a_file_and_a_version_are_known_the_newest_first(ledger: Ledger) -> None:
    hello(ledger)
    keys = [f"{n:064x}" for n in range(3)]
    assert known_segments(ledger, keys) == []
    first = prepared(ledger)
    for _ in range(2):
        publish(ledger, claim(ledger))
    second = prepared(ledger, 1)
    found = known_segments(ledger, keys)
    assert [(item.job_id, item.number, item.engine_version) for item in found] == [
        (second, 1, "1"),
        (first, 1, "1"),
        (first, 0, "1"),
    ]
    assert known_segments(ledger, keys[2:]) == []
    assert found[-1].carry == b"carry of 0"


def test_a_plan_that_is_published_twice_or_after_its_lease_takes_nothing_over_twice(ledger: Ledger) -> None:
    (job_id,) = submit(ledger, request(continuity=Continuity.PARALLEL))
    lease = claim(ledger, "cpu", "cpu")
    parts = keyed(chain(3, continuity=Continuity.PARALLEL))
    publish_plan(ledger, lease, parts, 0)
    publish_plan(ledger, lease, parts, 0)
    assert history(ledger, job_id).count(moves.REUSED) == 1
    submit(ledger, request(continuity=Continuity.PARALLEL))
    late = claim(ledger, "cpu", "cpu")
    run_out(ledger, late)
    moves.expire_leases(ledger, POLICY)
    with pytest.raises(LeaseLost):
        publish_plan(ledger, late, parts, 0)
    assert broken(ledger) == []


def test_a_number_that_is_not_in_the_plan_is_refused_and_nothing_is_written(ledger: Ledger) -> None:
    (job_id,) = submit(ledger, request(continuity=Continuity.PARALLEL))
    with pytest.raises(LedgerError, match="segment 9 of job"):
        publish_plan(ledger, claim(ledger, "cpu", "cpu"), keyed(chain(3, continuity=Continuity.PARALLEL)), 9)
    assert len(states(ledger, job_id)) == 1


def test_a_file_that_was_taken_over_and_is_gone_is_rendered(ledger: Ledger) -> None:
    job_id = prepared(ledger, 0, 1, 2)
    assert render_again(ledger, job_id, 1, "its file is gone")
    hello(ledger)
    publish(ledger, claim(ledger))
    publish(ledger, claim(ledger, "cpu", "cpu"))
    assert read.job(ledger, job_id).state is JobState.SUCCEEDED
    assert broken(ledger) == []


def test_another_version_of_the_engine_renders_what_was_taken_over_as_well(ledger: Ledger) -> None:
    job_id = prepared(ledger, 0, 2)
    hello(ledger)
    assert begin_again(ledger, claim(ledger), "the film was begun by version 1")
    assert states(ledger, job_id) == [SUCCEEDED, QUEUED, QUEUED, QUEUED, WAITING]
    assert read.artifacts(ledger, job_id, ArtifactKind.SEGMENT) == []
    assert Path(read.artifacts(ledger, job_id, ArtifactKind.DRIVING)[0].path).name.startswith("driving")
    assert broken(ledger) == []
