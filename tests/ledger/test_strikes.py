"""Who may try again what failed, and which worker is sick."""

from __future__ import annotations

import pytest

from farm.ledger import Ledger, control, crew, moves, read
from farm.ledger.tables import AttemptRow, WorkerRow
from farm.states import Continuity, JobState, WorkerState

from .scenes import (
    POLICY,
    QUEUE,
    age_worker,
    beat,
    change,
    claim,
    fail,
    gets_nothing,
    hello,
    interrupt,
    planned,
    publish,
    run_out,
    worker_row,
)


def test_a_segment_does_not_go_back_to_the_worker_that_failed_it_while_another_can_take_it(ledger: Ledger) -> None:
    hello(ledger, "w1")
    hello(ledger, "w2")
    planned(ledger)
    fail(ledger, claim(ledger, "w1"))
    assert gets_nothing(ledger, "w1")
    assert claim(ledger, "w2").attempt == 2


def test_a_lone_worker_gets_back_what_it_failed(ledger: Ledger) -> None:
    hello(ledger, "w1")
    planned(ledger)
    fail(ledger, claim(ledger, "w1"))
    assert claim(ledger, "w1").attempt == 2


@pytest.mark.parametrize("state", [s for s in WorkerState if s not in (WorkerState.IDLE, WorkerState.RENDERING)])
def test_a_worker_that_is_not_ready_keeps_nobody_waiting(ledger: Ledger, state: WorkerState) -> None:
    hello(ledger, "w1")
    hello(ledger, "w2", state=state, reason="why")
    planned(ledger)
    fail(ledger, claim(ledger, "w1"))
    assert claim(ledger, "w1").attempt == 2


def test_a_worker_without_room_keeps_nobody_waiting(ledger: Ledger) -> None:
    hello(ledger, "w1")
    hello(ledger, "w2", reason="only 0.1 GB of disk are free")
    planned(ledger)
    fail(ledger, claim(ledger, "w1"))
    assert claim(ledger, "w1").attempt == 2


def test_a_draining_a_silent_and_a_foreign_worker_keep_nobody_waiting(ledger: Ledger) -> None:
    for name in ("w1", "draining", "silent"):
        hello(ledger, name)
    hello(ledger, "foreign", queue="other")
    control.drain_worker(ledger, "draining")
    age_worker(ledger, "silent", 120.0)
    planned(ledger)
    fail(ledger, claim(ledger, "w1"))
    assert claim(ledger, "w1").attempt == 2


def test_when_all_failed_a_segment_all_may_try_again(ledger: Ledger) -> None:
    hello(ledger, "w1")
    hello(ledger, "w2")
    planned(ledger)
    fail(ledger, claim(ledger, "w1"))
    fail(ledger, claim(ledger, "w2"))
    beat(ledger, "w1")
    beat(ledger, "w2")
    assert claim(ledger, "w1").attempt == 3


def test_failing_another_segment_does_not_make_a_worker_unable_to_take_this_one(ledger: Ledger) -> None:
    hello(ledger, "w1")
    hello(ledger, "w2")
    planned(ledger, 1)
    fail(ledger, claim(ledger, "w2"))
    publish(ledger, claim(ledger, "w1"))
    publish(ledger, claim(ledger, "cpu", "cpu"))
    planned(ledger, 1)
    fail(ledger, claim(ledger, "w1"))
    for worker in ("w1", "w2"):
        beat(ledger, worker)
    assert gets_nothing(ledger, "w1")
    assert not gets_nothing(ledger, "w2")


def strikes(ledger: Ledger, worker: str, count: int) -> int:
    """A job with waiting segments, of which `worker` has failed this many."""
    job_id = planned(ledger, count + 2, Continuity.PARALLEL)
    for lease in [claim(ledger, worker) for _ in range(count)]:
        fail(ledger, lease, delay=1000.0)
        beat(ledger, worker)
    return job_id


def test_three_strikes_block_a_worker_for_that_job_and_no_other(ledger: Ledger) -> None:
    hello(ledger, "w1")
    strikes(ledger, "w1", 3)
    assert gets_nothing(ledger, "w1")
    other = planned(ledger)
    assert claim(ledger, "w1").job.id == other


def test_two_strikes_block_nobody(ledger: Ledger) -> None:
    hello(ledger, "w1")
    job_id = strikes(ledger, "w1", 2)
    assert claim(ledger, "w1").job.id == job_id


def test_a_worker_blocked_for_the_job_keeps_nobody_waiting(ledger: Ledger) -> None:
    hello(ledger, "w1")
    hello(ledger, "blocked")
    strikes(ledger, "blocked", 3)
    fail(ledger, claim(ledger, "w1"))
    beat(ledger, "w1")
    taken = {claim(ledger, "w1").segment.number for _ in range(2)}
    assert taken == {3, 4}, "w1 gets back what it failed, since nobody else may take it"


def test_a_stop_that_was_asked_for_is_no_strike(ledger: Ledger) -> None:
    hello(ledger, "w1")
    hello(ledger, "w2")
    job_id = planned(ledger)
    for _ in range(4):
        interrupt(ledger, claim(ledger, "w1"))
    assert claim(ledger, "w1").attempt == 5
    assert read.segments(ledger, job_id)[1].errors == 0


def test_retrying_a_job_forgives_the_workers_what_they_failed_in_it(ledger: Ledger) -> None:
    hello(ledger, "w1")
    job_id = strikes(ledger, "w1", 3)
    assert gets_nothing(ledger, "w1")
    control.retry(ledger, job_id)
    assert claim(ledger, "w1").job.id == job_id


# Sick workers


def fail_jobs(ledger: Ledger, worker: str, count: int) -> list[int]:
    jobs = []
    for _ in range(count):
        jobs.append(planned(ledger, 1))
        fail(ledger, claim(ledger, worker), for_good=True)
    return jobs


def test_a_worker_that_fails_three_different_jobs_in_a_row_is_sick_and_says_which(ledger: Ledger) -> None:
    hello(ledger, "w1")
    jobs = fail_jobs(ledger, "w1", 2)
    assert crew.sick_reason(ledger, "w1") is None
    jobs += fail_jobs(ledger, "w1", 1)
    shown = ", ".join(map(str, jobs))
    assert crew.sick_reason(ledger, "w1") == f"failed 3 different jobs in a row ({shown}), the last one because boom"


def test_failing_one_job_often_makes_nobody_sick(ledger: Ledger) -> None:
    hello(ledger, "w1")
    strikes(ledger, "w1", 3)
    assert crew.sick_reason(ledger, "w1") is None


def test_one_success_makes_a_worker_well(ledger: Ledger) -> None:
    hello(ledger, "w1")
    fail_jobs(ledger, "w1", 3)
    planned(ledger, 1)
    publish(ledger, claim(ledger, "w1"))
    assert crew.sick_reason(ledger, "w1") is None


def test_a_person_can_forgive_a_sick_worker(ledger: Ledger) -> None:
    hello(ledger, "w1")
    fail_jobs(ledger, "w1", 3)
    beat(ledger, "w1", WorkerState.SICK, "failed 3 different jobs")
    crew.take_owed_doorbells(ledger)
    control.resume_worker(ledger, "w1")
    assert crew.sick_reason(ledger, "w1") is None
    row = worker_row(ledger, "w1")
    assert (row.state, row.reason, row.drain) == (WorkerState.IDLE, None, None)
    assert crew.take_owed_doorbells(ledger) == [QUEUE]


def test_time_forgives_a_sick_worker(ledger: Ledger) -> None:
    hello(ledger, "w1")
    fail_jobs(ledger, "w1", 3)
    with ledger.read() as session:
        ids = [row.id for row in session.query(AttemptRow).filter_by(worker="w1")]
    change(ledger, AttemptRow, ids[0], ended_at=ledger.now() - crew.FORGIVE_AFTER_SECONDS - 1.0)
    assert crew.sick_reason(ledger, "w1") is None


def test_losing_a_job_is_not_failing_it(ledger: Ledger) -> None:
    hello(ledger, "w1")
    for _ in range(3):
        planned(ledger, 1)
        lease = claim(ledger, "w1")
        run_out(ledger, lease)
        moves.expire_leases(ledger, POLICY)
    assert crew.sick_reason(ledger, "w1") is None


# What no worker can take is said aloud


def said(ledger: Ledger) -> list[str]:
    return [stuck.reason for stuck in read.stuck(ledger)]


def test_nothing_is_stuck_where_nothing_waits_or_somebody_can(ledger: Ledger) -> None:
    assert said(ledger) == []
    hello(ledger, "w1")
    planned(ledger)
    assert said(ledger) == []


def test_a_queue_without_workers_is_said(ledger: Ledger) -> None:
    job_id = planned(ledger)
    (stuck,) = read.stuck(ledger)
    assert (stuck.queue, stuck.segments, stuck.job_ids) == (QUEUE, 1, (job_id,))
    assert (
        stuck.reason == f"no worker serves queue {QUEUE}; name one in workers.toml if there is none, and run `farm up`"
    )


def test_why_each_worker_takes_nothing_is_said(ledger: Ledger) -> None:
    hello(ledger, "e-full", reason="only 0.1 GB of disk are free")  # whoever came first, they are named in one order
    hello(ledger, "d-sick", state=WorkerState.SICK, reason="failed 3 different jobs in a row (1, 2, 3)")
    hello(ledger, "c-draining")
    control.drain_worker(ledger, "c-draining")
    hello(ledger, "b-silent")
    age_worker(ledger, "b-silent", 120.0)
    hello(ledger, "a-stopped", state=WorkerState.STOPPED)
    planned(ledger)
    (sentence,) = said(ledger)
    assert sentence == (
        f"no worker can take work of queue {QUEUE}: a-stopped is not running; b-silent is not running; "
        "c-draining is draining (`farm workers resume c-draining`); "
        "d-sick is sick: failed 3 different jobs in a row (1, 2, 3) (`farm workers resume d-sick`); "
        "e-full takes nothing: only 0.1 GB of disk are free"
    )


def test_a_worker_that_loads_is_waited_for(ledger: Ledger) -> None:
    hello(ledger, "w1", state=WorkerState.LOADING)
    planned(ledger)
    assert said(ledger) == []


def test_a_job_that_every_worker_failed_too_often_is_said_with_the_way_out(ledger: Ledger) -> None:
    hello(ledger, "w1")
    job_id = strikes(ledger, "w1", 3)
    (stuck,) = read.stuck(ledger)
    assert (stuck.job_ids, stuck.segments) == ((job_id,), 5)
    assert stuck.reason == (
        f"every worker of queue {QUEUE} (w1) failed job {job_id} too often; `farm jobs retry {job_id}` forgives them"
    )
    hello(ledger, "w2")
    assert said(ledger) == []


def test_held_work_is_not_called_stuck(ledger: Ledger) -> None:
    job_id = planned(ledger)
    control.pause(ledger, job_id)
    assert said(ledger) == []
    assert read.job(ledger, job_id).state is JobState.RENDERING


def test_a_worker_row_keeps_its_drain_over_a_restart(ledger: Ledger) -> None:
    hello(ledger, "w1")
    control.drain_worker(ledger, "w1", now=True)
    hello(ledger, "w1")
    assert worker_row(ledger, "w1").drain == "now"
    change(ledger, WorkerRow, "w1", drain=None)
    assert worker_row(ledger, "w1").drain is None
