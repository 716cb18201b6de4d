"""A film's frames come from one version of its engine; another version begins it again, a bounded number of times."""

from __future__ import annotations

import pytest

from farm.config import load_settings
from farm.errors import EngineChanged, LeaseLost
from farm.ledger import Ledger, control, moves, read
from farm.ledger.audit import audit
from farm.ledger.repair import MAX_BEGINNINGS, begin_again, render_again
from farm.ledger.tables import JobRow
from farm.ledger.values import Lease
from farm.states import ArtifactKind, Continuity, JobState, SegmentState

from .scenes import (
    artifact,
    change,
    claim,
    fail,
    gets_nothing,
    interrupt,
    open_attempts,
    planned,
    publish,
    render_all,
    states,
)

SUCCEEDED, LEASED, QUEUED, WAITING = (
    SegmentState.SUCCEEDED,
    SegmentState.LEASED,
    SegmentState.QUEUED,
    SegmentState.WAITING,
)


def publish_as(ledger: Ledger, lease: Lease, version: str) -> None:
    moves.publish(
        ledger,
        lease,
        artifacts=[artifact(ArtifactKind.SEGMENT)],
        carry=b"c",
        frames=lease.segment.frames,
        engine_version=version,
    )


def violations(ledger: Ledger) -> list[str]:
    return [str(violation) for violation in audit(ledger, load_settings(), check_files=False)]


def test_a_second_version_cannot_publish_into_a_film(ledger: Ledger) -> None:
    job_id = planned(ledger)
    publish(ledger, claim(ledger))
    lease = claim(ledger)
    assert lease.job.engine_version == "1"
    with pytest.raises(EngineChanged, match="begun by version 1 of the engine and this is 2"):
        publish_as(ledger, lease, "2")
    assert states(ledger, job_id)[1:4] == [SUCCEEDED, LEASED, WAITING]  # as if it had not been tried


def test_a_film_that_begins_again_has_no_old_frame_left(ledger: Ledger) -> None:
    job_id = planned(ledger)
    publish(ledger, claim(ledger))
    assert begin_again(ledger, claim(ledger), "another version")
    assert states(ledger, job_id) == [SUCCEEDED, QUEUED, WAITING, WAITING, WAITING]
    assert read.artifacts(ledger, job_id, ArtifactKind.SEGMENT) == []
    job = read.job(ledger, job_id)
    assert (job.engine_version, job.segments_done, job.frames_done) == (None, 0, 0)
    assert open_attempts(ledger, job_id) == 0
    assert violations(ledger) == []
    while (lease := claim(ledger)).segment.number < 2:
        assert lease.carry == (None if lease.segment.number == 0 else b"c")
        publish_as(ledger, lease, "2")
    publish_as(ledger, lease, "2")
    publish(ledger, claim(ledger, "cpu", "cpu"))
    assert read.job(ledger, job_id).state is JobState.SUCCEEDED
    assert read.job(ledger, job_id).engine_version == "2"


def test_segments_that_others_render_at_the_same_time_are_fenced(ledger: Ledger) -> None:
    job_id = planned(ledger, continuity=Continuity.PARALLEL)
    mine, theirs = claim(ledger, "w1"), claim(ledger, "w2")
    publish_as(ledger, claim(ledger, "w3"), "1")
    assert begin_again(ledger, mine, "another version")
    with pytest.raises(LeaseLost):
        publish_as(ledger, theirs, "1")
    with pytest.raises(LeaseLost):
        begin_again(ledger, theirs, "another version")
    assert states(ledger, job_id)[1:4] == [QUEUED] * 3
    assert violations(ledger) == []


def test_versions_that_take_turns_are_stopped(ledger: Ledger) -> None:
    planned(ledger)
    for _ in range(MAX_BEGINNINGS - 1):
        assert begin_again(ledger, claim(ledger), "another version")
    last = claim(ledger)
    assert not begin_again(ledger, last, "another version")
    publish_as(ledger, last, "1")  # the lease was kept


def test_a_film_that_waits_for_its_assembly_is_not_touched(ledger: Ledger) -> None:
    job_id = planned(ledger)
    render_all(ledger)
    change(ledger, JobRow, job_id, engine_version="0")
    assert gets_nothing(ledger)
    publish(ledger, claim(ledger, "cpu", "cpu"))
    assert read.job(ledger, job_id).state is JobState.SUCCEEDED


def publish_while_paused(ledger: Ledger, job_id: int) -> None:
    """The pause came when the last chunk was rendered, so the segment was published before anybody read of it."""
    lease = claim(ledger)
    control.pause(ledger, job_id)
    publish(ledger, lease)
    control.resume(ledger, job_id)


def test_a_segment_that_was_published_in_a_paused_job_can_be_rendered_again_afterwards(ledger: Ledger) -> None:
    job_id = planned(ledger)
    publish_while_paused(ledger, job_id)
    assert begin_again(ledger, claim(ledger), "another version")
    assert violations(ledger) == []
    publish(ledger, claim(ledger))
    publish_while_paused(ledger, job_id)
    render_all(ledger)
    interrupt(ledger, claim(ledger, "cpu", "cpu"))
    for number in (0, 1):
        assert render_again(ledger, job_id, number, "its file is gone")
    assert violations(ledger) == []
    render_all(ledger)
    assert states(ledger, job_id) == [SUCCEEDED, SUCCEEDED, SUCCEEDED, SUCCEEDED, QUEUED]


def test_files_that_are_lost_while_a_job_is_paused_are_not_rendered_before_it_goes_on(ledger: Ledger) -> None:
    job_id = planned(ledger)
    render_all(ledger)
    control.pause(ledger, job_id)
    for number in (0, 1):
        assert render_again(ledger, job_id, number, "its file is gone")
    assert gets_nothing(ledger)
    assert violations(ledger) == []


def test_another_version_does_not_take_up_what_has_failed_for_good(ledger: Ledger) -> None:
    job_id = planned(ledger, continuity=Continuity.PARALLEL)
    failing, mine = claim(ledger, "w1"), claim(ledger, "w2")
    publish_as(ledger, claim(ledger, "w3"), "1")
    fail(ledger, failing, for_good=True)
    assert begin_again(ledger, mine, "another version")
    assert read.job(ledger, job_id).state is JobState.FAILED
    assert gets_nothing(ledger)
    assert violations(ledger) == []
    assert control.retry(ledger, job_id) == 1
    render_all(ledger)
    publish(ledger, claim(ledger, "cpu", "cpu"))
