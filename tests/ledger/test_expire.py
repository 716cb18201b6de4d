"""Leases that ran out: what their segment, their attempt and their worker become."""

from __future__ import annotations

import time

import pytest

from farm.ledger import Ledger, control, moves, read
from farm.retry import RetryPolicy
from farm.states import JobState, SegmentState

from .scenes import (
    POLICY,
    chain,
    claim,
    gets_nothing,
    hello,
    history,
    open_attempts,
    plan,
    planned,
    publish,
    run_out,
    segment,
    submit,
    worker_row,
)


def lose(ledger: Ledger, worker: str = "w1", policy: RetryPolicy = POLICY) -> None:
    """Claim, and vanish."""
    lease = claim(ledger, worker)
    run_out(ledger, lease)
    assert moves.expire_leases(ledger, policy) == [lease.segment.id]


def test_a_lease_that_ran_out_is_offered_again_at_once(ledger: Ledger) -> None:
    hello(ledger, "w1")
    job_id = planned(ledger)
    lose(ledger)
    found = segment(ledger, job_id)
    assert (found.state, found.leased_by, found.lease_until) == (SegmentState.QUEUED, None, None)
    assert (found.errors, found.losses, found.failure) == (0, 1, "lost")
    assert found.reason == "worker w1 vanished while it held the lease"
    assert worker_row(ledger, "w1").segment_id is None
    assert claim(ledger, "w2").attempt == 2


def test_the_attempt_is_closed_and_no_strike_against_the_worker(ledger: Ledger) -> None:
    job_id = planned(ledger)
    lose(ledger)
    attempt = read.attempts(ledger, job_id)[-1]
    assert (attempt.outcome, attempt.failure, attempt.strike) == ("expire", "lost", False)
    assert attempt.ended_at is not None
    assert open_attempts(ledger, job_id) == 0
    assert claim(ledger, "w1").attempt == 2


def test_a_lease_that_still_runs_is_left_alone(ledger: Ledger) -> None:
    planned(ledger)
    claim(ledger)
    assert moves.expire_leases(ledger, POLICY) == []


def test_only_the_clock_of_the_database_judges_a_lease(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    planned(ledger)
    lease = claim(ledger)
    true_time = time.time
    monkeypatch.setattr(time, "time", lambda: true_time() + 86_400)
    assert moves.expire_leases(ledger, POLICY) == []
    run_out(ledger, lease)
    monkeypatch.setattr(time, "time", lambda: true_time() - 86_400)
    assert moves.expire_leases(ledger, POLICY) == [lease.segment.id]


def test_every_dead_lease_is_taken_back_in_one_round(ledger: Ledger) -> None:
    leases = []
    for _ in range(3):
        planned(ledger, 1)
        leases.append(claim(ledger))
    for lease in leases[:2]:
        run_out(ledger, lease)
    assert moves.expire_leases(ledger, POLICY) == [lease.segment.id for lease in leases[:2]]


def test_all_leases_of_a_worker_whose_death_is_known_end_at_once(ledger: Ledger) -> None:
    planned(ledger, 1)
    planned(ledger, 1)
    dead, alive = claim(ledger, "w1"), claim(ledger, "w2")
    assert moves.expire_leases(ledger, POLICY, worker="w1") == [dead.segment.id]
    publish(ledger, alive)


def test_losses_wait_only_from_the_third_on(ledger: Ledger) -> None:
    policy = RetryPolicy(max_losses=8, base_delay_seconds=1000.0, max_delay_seconds=5000.0)
    planned(ledger)
    lose(ledger, policy=policy)
    lose(ledger, policy=policy)
    lose(ledger, policy=policy)
    assert gets_nothing(ledger)


def test_a_segment_that_loses_too_many_workers_is_given_up_with_the_last_ones_name(ledger: Ledger) -> None:
    job_id = planned(ledger)
    for number in range(POLICY.max_losses):
        lose(ledger, f"w{number}")
    job = read.job(ledger, job_id)
    assert job.state is JobState.FAILED
    assert job.reason == "given up: 4 workers vanished while rendering this; the last one was w3"
    assert (job.failure, segment(ledger, job_id).losses) == ("lost", 4)
    assert job.finished_at is not None
    assert segment(ledger, job_id).finished_at is not None
    assert [a.outcome for a in read.attempts(ledger, job_id)][1:] == ["expire"] * 3 + ["fail"]
    assert gets_nothing(ledger)


def test_losses_do_not_count_as_errors(ledger: Ledger) -> None:
    job_id = planned(ledger)
    for _ in range(3):
        lose(ledger)
    found = segment(ledger, job_id)
    assert (found.errors, found.losses, found.attempt) == (0, 3, 3)


def test_a_prepare_that_vanished_lets_the_job_wait_again(ledger: Ledger) -> None:
    (job_id,) = submit(ledger)
    lease = claim(ledger, "c1", "cpu")
    run_out(ledger, lease)
    moves.expire_leases(ledger, POLICY)
    assert read.job(ledger, job_id).state is JobState.QUEUED
    plan(ledger, claim(ledger, "c2", "cpu"), chain(1))
    assert read.job(ledger, job_id).state is JobState.RENDERING


def test_a_lease_of_a_paused_job_runs_out_and_stays_held(ledger: Ledger) -> None:
    job_id = planned(ledger)
    lease = claim(ledger)
    control.pause(ledger, job_id)
    run_out(ledger, lease)
    assert moves.expire_leases(ledger, POLICY)
    assert segment(ledger, job_id).held
    assert gets_nothing(ledger)
    control.resume(ledger, job_id)
    assert claim(ledger).attempt == 2


def test_the_history_tells_who_vanished(ledger: Ledger) -> None:
    job_id = planned(ledger)
    lose(ledger, "w7")
    line = read.events(ledger, job_id=job_id)[-1]
    assert (line.event, line.worker, line.attempt) == ("expire", "w7", 1)
    assert history(ledger, job_id)[-2:] == ["lease", "expire"]


def test_workers_whose_lease_ran_out_are_found_by_their_machine(ledger: Ledger) -> None:
    hello(ledger, "w1")
    planned(ledger)
    lease = claim(ledger)
    assert read.overdue_workers(ledger, "box") == []
    run_out(ledger, lease)
    assert [worker.name for worker in read.overdue_workers(ledger, "box")] == ["w1"]
    assert read.overdue_workers(ledger, "elsewhere") == []
