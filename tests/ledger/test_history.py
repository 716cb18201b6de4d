"""The history tells everything that happened, in order, and is never changed."""

from __future__ import annotations

from farm.ledger import Ledger, control, moves, overview, read
from farm.ledger.history import DETAIL_LIMIT
from farm.retry import Decision
from farm.states import Event, JobState

from .scenes import (
    POLICY,
    TTL,
    beat,
    claim,
    fail,
    finished,
    hello,
    history,
    interrupt,
    planned,
    publish,
    request,
    run_out,
    submit,
)


def test_a_quiet_job_tells_its_whole_story(ledger: Ledger) -> None:
    job_id = finished(ledger, 2)
    assert history(ledger, job_id) == [
        "submit",
        *["lease", "job_preparing", "succeed", "job_rendering"],
        *["lease", "succeed"],
        *["lease", "succeed", "job_assembling"],
        *["lease", "succeed", "job_succeeded"],
    ]


def test_an_unlucky_job_tells_who_did_what_and_why(ledger: Ledger) -> None:
    job_id = planned(ledger, 1)
    fail(ledger, claim(ledger, "w1"))
    lease = claim(ledger, "w2")
    run_out(ledger, lease)
    moves.expire_leases(ledger, POLICY)
    interrupt(ledger, claim(ledger, "w3"))
    control.pause(ledger, job_id)
    control.resume(ledger, job_id)
    control.set_priority(ledger, job_id, 5)
    claim(ledger, "w4")
    control.cancel(ledger, job_id)
    control.retry(ledger, job_id)
    fail(ledger, claim(ledger, "w5"), for_good=True)
    lines = [
        (line.event, line.worker, line.attempt)
        for line in read.events(ledger, job_id=job_id)
        if line.worker != "cpu" and line.event not in ("submit", "job_preparing", "job_rendering")
    ]
    assert lines == [
        ("lease", "w1", 1),
        ("retry", "w1", 1),
        ("lease", "w2", 2),
        ("expire", "w2", 2),
        ("lease", "w3", 3),
        ("interrupt", "w3", 3),
        ("pause", None, None),
        ("resume", None, None),
        ("priority", None, None),
        ("lease", "w4", 4),
        ("cancel", "w4", 4),
        ("cancel", None, None),
        ("job_cancelled", None, None),
        ("requeue", None, None),
        ("lease", "w5", 5),
        ("fail", "w5", 5),
        ("job_failed", None, None),
    ]


def test_every_attempt_has_a_line_for_its_begin_and_one_for_its_end(ledger: Ledger) -> None:
    job_id = planned(ledger, 2)
    fail(ledger, claim(ledger))
    publish(ledger, claim(ledger))
    claim(ledger)
    lines = [(e.segment_id, e.attempt, e.event) for e in read.events(ledger, job_id=job_id) if e.segment_id]
    for attempt in read.attempts(ledger, job_id):
        told = [event for segment, number, event in lines if (segment, number) == (attempt.segment_id, attempt.number)]
        assert told == (["lease", attempt.outcome] if attempt.ended_at is not None else ["lease"])


def test_times_come_from_the_ledger_and_never_go_back(ledger: Ledger) -> None:
    began = ledger.now()
    finished(ledger, 2)
    times = [line.at for line in read.events(ledger)]
    assert times == sorted(times)
    assert began <= times[0] <= times[-1] <= ledger.now()


def test_an_endless_error_text_does_not_swell_the_history(ledger: Ledger) -> None:
    job_id = planned(ledger)
    moves.release(ledger, claim(ledger), Decision(Event.RETRY, "x" * 100_000, "engine", counts=True))
    (line,) = [line for line in read.events(ledger, job_id=job_id) if line.event == "retry"]
    assert line.detail == "x" * DETAIL_LIMIT


def test_the_history_is_read_forward_backward_and_in_parts(ledger: Ledger) -> None:
    first, second = submit(ledger, request(), request())
    control.cancel(ledger, first)
    everything = read.events(ledger)
    assert read.events(ledger, after_id=everything[1].id) == everything[2:]
    assert read.events(ledger, limit=2) == everything[:2]
    assert read.events(ledger, limit=2, newest=True) == everything[-2:]
    assert {line.job_id for line in read.events(ledger, job_id=second)} == {second}


def test_why_a_job_failed_is_told_by_the_job_itself(ledger: Ledger) -> None:
    job_id = planned(ledger, 1)
    moves.release(ledger, claim(ledger), Decision(Event.FAIL, "the mouth is covered", "input"))
    job = read.job(ledger, job_id)
    assert (job.state, job.reason, job.failure) == (JobState.FAILED, "the mouth is covered", "input")
    assert read.events(ledger, job_id=job_id)[-1].detail == "the mouth is covered"


def test_the_pulse_moves_with_every_event_and_with_new_frames_and_with_nothing_else(ledger: Ledger) -> None:
    hello(ledger, "cpu", queue="cpu")
    job_id = planned(ledger)
    lease = claim(ledger, hello(ledger))
    seen = [overview.pulse(ledger)]
    beat(ledger, "w1")
    assert overview.pulse(ledger) == seen[-1]
    for move in (
        lambda: moves.renew(ledger, lease, ttl_seconds=TTL, frames_now=7),
        lambda: publish(ledger, lease),
        lambda: control.pause(ledger, job_id),
        lambda: control.set_priority(ledger, job_id, 5),
    ):
        move()
        seen.append(overview.pulse(ledger))
    assert len(set(seen)) == len(seen)
