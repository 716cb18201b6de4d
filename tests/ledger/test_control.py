"""What people ask of jobs and workers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from farm.errors import InputError, NotFound
from farm.ledger import Ledger, control, crew, moves, read
from farm.ledger.intake import take_in
from farm.states import Continuity, JobState, SegmentState

from .scenes import (
    QUEUE,
    chain,
    claim,
    fail,
    finished,
    gets_nothing,
    hello,
    interrupt,
    open_attempts,
    plan,
    planned,
    prepare,
    publish,
    request,
    segment,
    states,
    submit,
    worker_row,
)

WAITING, QUEUED, LEASED = SegmentState.WAITING, SegmentState.QUEUED, SegmentState.LEASED
SUCCEEDED, FAILED, CANCELLED = SegmentState.SUCCEEDED, SegmentState.FAILED, SegmentState.CANCELLED


def test_cancelling_ends_what_is_not_finished_and_keeps_what_is_published(ledger: Ledger) -> None:
    hello(ledger)
    job_id = planned(ledger, 3)
    publish(ledger, claim(ledger))
    claim(ledger)
    assert control.cancel(ledger, job_id)
    assert states(ledger, job_id) == [SUCCEEDED, SUCCEEDED, CANCELLED, CANCELLED, CANCELLED]
    job = read.job(ledger, job_id)
    assert (job.state, job.reason, job.failure) == (JobState.CANCELLED, "cancelled by request", "cancel")
    assert job.finished_at is not None
    assert open_attempts(ledger, job_id) == 0
    assert read.attempts(ledger, job_id)[-1].outcome == "cancel"
    assert worker_row(ledger, "w1").segment_id is None


def test_cancelling_what_has_ended_changes_nothing(ledger: Ledger) -> None:
    job_id = finished(ledger)
    before = read.job(ledger, job_id), read.segments(ledger, job_id)
    assert not control.cancel(ledger, job_id)
    assert (read.job(ledger, job_id), read.segments(ledger, job_id)) == before


def test_a_job_nobody_has_looked_at_can_be_cancelled_and_taken_up_again(ledger: Ledger) -> None:
    (job_id,) = submit(ledger)
    control.cancel(ledger, job_id)
    assert gets_nothing(ledger, "c", "cpu")
    assert control.retry(ledger, job_id) == 1
    assert read.job(ledger, job_id).state is JobState.QUEUED
    claim(ledger, "c", "cpu")


def test_a_cancelled_job_goes_on_where_it_was(ledger: Ledger) -> None:
    job_id = planned(ledger, 3)
    publish(ledger, claim(ledger), b"zero")
    control.cancel(ledger, job_id)
    assert control.retry(ledger, job_id) == 3
    assert states(ledger, job_id) == [SUCCEEDED, SUCCEEDED, QUEUED, WAITING, WAITING]
    job = read.job(ledger, job_id)
    assert (job.state, job.reason, job.failure, job.finished_at) == (JobState.RENDERING, None, None, None)
    assert claim(ledger).carry == b"zero"


def test_retrying_forgives_errors_and_back_off(ledger: Ledger) -> None:
    job_id = planned(ledger, 2)
    fail(ledger, claim(ledger), delay=0.0)
    fail(ledger, claim(ledger), for_good=True, delay=1000.0)
    found = segment(ledger, job_id)
    assert (found.state, found.errors) == (FAILED, 2)
    assert control.retry(ledger, job_id) == 1
    found = segment(ledger, job_id)
    assert (found.state, found.errors, found.losses, found.reason, found.finished_at) == (QUEUED, 0, 0, None, None)
    assert claim(ledger).attempt == 3


def test_retrying_one_of_several_failed_segments_does_not_open_the_rest_of_a_failed_job(ledger: Ledger) -> None:
    job_id = planned(ledger, 3, Continuity.PARALLEL)
    for lease in [claim(ledger), claim(ledger)]:
        fail(ledger, lease, for_good=True)
    assert control.retry(ledger, job_id, segment_number=0) == 1
    assert read.job(ledger, job_id).state is JobState.FAILED
    assert gets_nothing(ledger), "the job is still failed, so its film will never be"
    assert control.retry(ledger, job_id, segment_number=1) == 1
    assert read.job(ledger, job_id).state is JobState.RENDERING
    assert sorted(claim(ledger).segment.number for _ in range(3)) == [0, 1, 2]


def test_a_job_is_not_retried_while_another_is_about_to_write_its_film(ledger: Ledger) -> None:
    first = planned(ledger, output="/out/lecture.mp4")
    fail(ledger, claim(ledger), for_good=True)
    (second,) = submit(ledger, request(output="/out/lecture.mp4"))
    with pytest.raises(InputError, match=f"job {second} is about to write /out/lecture.mp4"):
        control.retry(ledger, first)
    assert read.job(ledger, first).state is JobState.FAILED
    assert control.retry(ledger, second) == 0  # what has not failed is only forgiven, as ever
    control.cancel(ledger, second)
    assert control.retry(ledger, first) == 1


def test_retrying_what_did_not_fail_puts_nothing_back(ledger: Ledger) -> None:
    job_id = planned(ledger)
    assert control.retry(ledger, job_id) == 0
    assert control.retry(ledger, job_id, segment_number=99) == 0
    assert control.retry(ledger, finished(ledger)) == 0


def test_a_failed_assembly_is_retried_without_rendering(ledger: Ledger) -> None:
    job_id = planned(ledger, 1)
    publish(ledger, claim(ledger))
    fail(ledger, claim(ledger, "c", "cpu"), for_good=True)
    assert control.retry(ledger, job_id) == 1
    assert read.job(ledger, job_id).state is JobState.ASSEMBLING
    publish(ledger, claim(ledger, "c", "cpu"))
    assert read.job(ledger, job_id).state is JobState.SUCCEEDED


def test_pausing_keeps_open_segments_back_and_resuming_gives_them_again(ledger: Ledger) -> None:
    job_id = planned(ledger)
    assert control.pause(ledger, job_id)
    assert not control.pause(ledger, job_id)
    assert read.job(ledger, job_id).shown_state == "paused"
    assert gets_nothing(ledger)
    assert not read.has_open_work(ledger)
    assert control.resume(ledger, job_id)
    assert not control.resume(ledger, job_id)
    assert read.job(ledger, job_id).shown_state == "rendering"
    claim(ledger)


def test_a_segment_that_ends_while_its_job_is_paused_opens_the_next_one_held(ledger: Ledger) -> None:
    job_id = planned(ledger, 2)
    lease = claim(ledger)
    control.pause(ledger, job_id)
    publish(ledger, lease)
    assert states(ledger, job_id)[2] is QUEUED
    assert gets_nothing(ledger)
    control.resume(ledger, job_id)
    assert claim(ledger).segment.number == 1


def test_a_job_paused_before_it_was_planned_gets_a_plan_that_is_held(ledger: Ledger) -> None:
    (job_id,) = submit(ledger)
    lease = claim(ledger, "c", "cpu")
    control.pause(ledger, job_id)
    plan(ledger, lease, chain(2))
    assert gets_nothing(ledger)
    control.resume(ledger, job_id)
    claim(ledger)


def test_a_finished_job_is_not_paused(ledger: Ledger) -> None:
    assert not control.pause(ledger, finished(ledger))


def test_resuming_a_failed_job_does_not_open_it(ledger: Ledger) -> None:
    job_id = planned(ledger, 2, Continuity.PARALLEL)
    lease = claim(ledger)
    control.pause(ledger, job_id)
    fail(ledger, lease, for_good=True)
    control.resume(ledger, job_id)
    assert gets_nothing(ledger)


def test_what_is_given_back_in_a_failed_job_stays_held(ledger: Ledger) -> None:
    planned(ledger, 2, Continuity.PARALLEL)
    first, second = claim(ledger), claim(ledger)
    fail(ledger, first, for_good=True)
    interrupt(ledger, second)
    assert gets_nothing(ledger)


def test_priority_and_deadline_reach_segments_that_wait_and_those_still_to_come(ledger: Ledger) -> None:
    first, second = planned(ledger, 2), planned(ledger, 2)
    control.set_priority(ledger, second, 5)
    assert claim(ledger).job.id == second
    control.set_priority(ledger, second, 0)
    control.set_deadline(ledger, first, 10.0)
    assert read.job(ledger, first).due == 10.0
    assert claim(ledger).job.id == first
    control.set_deadline(ledger, first, None)
    assert read.job(ledger, first).due is None


def test_a_new_priority_before_the_plan_holds_for_the_plan(ledger: Ledger) -> None:
    other = planned(ledger, 1)
    (job_id,) = submit(ledger)
    control.set_priority(ledger, job_id, 5)
    prepare(ledger, job_id, 1)
    assert claim(ledger).job.id == job_id
    assert claim(ledger).job.id == other


@pytest.mark.parametrize(
    "ask",
    [
        control.cancel,
        control.pause,
        control.resume,
        control.retry,
        lambda ledger, job: control.set_priority(ledger, job, 1),
        lambda ledger, job: control.set_deadline(ledger, job, 1.0),
        read.job,
    ],
)
def test_an_unknown_job_is_told_with_a_way_to_find_the_known(
    ledger: Ledger, ask: Callable[[Ledger, int], object]
) -> None:
    with pytest.raises(NotFound, match="there is no job 99; `farm jobs list` shows those there are"):
        ask(ledger, 99)


@pytest.mark.parametrize("ask", [control.drain_worker, control.resume_worker])
def test_an_unknown_worker_is_told(ledger: Ledger, ask: Callable[[Ledger, str], None]) -> None:
    with pytest.raises(NotFound, match="there is no worker 'x'; `farm workers list` shows those there are"):
        ask(ledger, "x")


def test_draining_is_undone_by_resuming_which_rings(ledger: Ledger) -> None:
    hello(ledger)
    planned(ledger)
    control.drain_worker(ledger, "w1")
    assert gets_nothing(ledger)
    crew.take_owed_doorbells(ledger)
    control.resume_worker(ledger, "w1")
    assert crew.take_owed_doorbells(ledger) == [QUEUE]
    claim(ledger)


def test_resuming_and_retrying_ring_the_queues_that_have_work(ledger: Ledger) -> None:
    job_id = planned(ledger)
    control.pause(ledger, job_id)
    crew.take_owed_doorbells(ledger)
    control.resume(ledger, job_id)
    assert crew.take_owed_doorbells(ledger) == [QUEUE]
    fail(ledger, claim(ledger), for_good=True)
    crew.take_owed_doorbells(ledger)
    control.retry(ledger, job_id)
    assert crew.take_owed_doorbells(ledger) == [QUEUE]


def test_a_batchs_jobs_are_found_and_counted_as_people_see_them(ledger: Ledger) -> None:
    ids = submit(ledger, *[request() for _ in range(3)])
    batch_id = read.job(ledger, ids[0]).batch_id
    control.cancel(ledger, ids[1])
    control.pause(ledger, ids[2])
    assert control.job_ids_of_batch(ledger, batch_id) == list(ids)
    assert read.batch(ledger, batch_id).jobs == {"queued": 1, "cancelled": 1, "paused": 1}
    assert [batch.id for batch in read.batches(ledger)] == [batch_id]


def test_batches_are_chosen_before_they_are_counted_off(ledger: Ledger) -> None:
    mine = take_in(ledger, [request()], name="b", source="b.csv", owner="ann")
    for _ in range(2):
        theirs = take_in(ledger, [request()], name="b", source="b.csv", owner="ben")
        control.cancel(ledger, theirs.new_job_ids[0])
    assert [b.id for b in read.batches(ledger, owner="ann", limit=1)] == [mine.batch_id]
    assert [b.id for b in read.batches(ledger, unfinished=True, limit=1)] == [mine.batch_id]
    control.cancel(ledger, mine.new_job_ids[0])
    assert read.batches(ledger, unfinished=True) == []


def test_a_late_lease_of_a_cancelled_job_hears_that_it_is_not_wanted(ledger: Ledger) -> None:
    job_id = planned(ledger)
    lease = claim(ledger)
    control.cancel(ledger, job_id)
    assert moves.standing(ledger, lease) == moves.Standing.CANCELLED
    control.retry(ledger, job_id)
    assert moves.standing(ledger, lease) == moves.Standing.LOST
