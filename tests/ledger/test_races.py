"""What happens when two want the same at the same instant."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest
from sqlalchemy import event, text

from farm.config import Settings, load_settings
from farm.errors import LeaseLost
from farm.ledger import Ledger, control, moves, read
from farm.ledger.audit import audit
from farm.ledger.values import Lease
from farm.states import Continuity, JobState, SegmentKind, SegmentState

from .conftest import empty, open_quick
from .scenes import (
    POLICY,
    QUEUE,
    TTL,
    chain,
    claim,
    fail,
    gets_nothing,
    history,
    plan,
    planned,
    publish,
    run_out,
    segment,
    states,
    submit,
)


@pytest.fixture
def settings(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("FARM_HOME", str(tmp_path))
    return load_settings()


def clean(ledger: Ledger, settings: Settings) -> bool:
    return [str(violation) for violation in audit(ledger, settings, check_files=False)] == []


# Many workers, one queue


def claim_everything(ledger: Ledger, worker: str, together: threading.Barrier) -> list[int]:
    """What one worker gets until there is nothing left."""
    taken = []
    together.wait()
    misses = 0
    while misses < 3 or read.queue_depths(ledger):  # another one's row lock can hide the last segments for a moment
        lease = moves.claim(ledger, worker=worker, queue=QUEUE, device="cpu", ttl_seconds=TTL, warm_job=1)
        if lease is None:
            misses += 1
            time.sleep(0.01)
        else:
            taken.append(lease.segment.id)
    return taken


def test_sixteen_workers_lease_each_segment_exactly_once(postgres: Ledger, settings: Settings) -> None:
    """Without the compare of the state and SKIP LOCKED in the claim, two workers get one segment here."""
    workers = 16
    job_ids = [planned(postgres, 20, Continuity.PARALLEL) for _ in range(4)]
    together = threading.Barrier(workers)
    opened = [open_quick(postgres.url) for _ in range(workers)]
    try:
        with ThreadPoolExecutor(workers) as pool:
            taken = list(pool.map(lambda n: claim_everything(opened[n], f"w{n}", together), range(workers)))
    finally:
        for ledger in opened:
            ledger.close()
    times = Counter(segment_id for mine in taken for segment_id in mine)
    assert set(times.values()) == {1}
    assert len(times) == 80
    assert all(s.attempt == s.token == 1 for job in job_ids for s in read.segments(postgres, job)[1:-1])
    assert clean(postgres, settings)


def test_four_processes_worth_of_workers_share_an_sqlite_ledger(sqlite_ledger: Ledger, settings: Settings) -> None:
    empty(sqlite_ledger)
    planned(sqlite_ledger, 20, Continuity.PARALLEL)
    together = threading.Barrier(4)
    opened = [open_quick(sqlite_ledger.url) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        taken = list(pool.map(lambda n: claim_everything(opened[n], f"w{n}", together), range(4)))
    for ledger in opened:
        ledger.close()
    assert sorted(Counter(s for mine in taken for s in mine).values()) == [1] * 20
    assert clean(sqlite_ledger, settings)


# A late worker, step by step


def test_a_worker_that_slept_past_its_lease_cannot_publish_over_its_successor(
    ledger: Ledger, another_ledger: Ledger
) -> None:
    """A claims and sleeps; its lease runs out; B claims; A wakes up and publishes; B publishes."""
    job_id = planned(ledger, 1)
    slept, awake = threading.Event(), threading.Event()

    def a() -> str:
        lease = claim(ledger, "A", ttl=0.05)
        slept.set()
        assert awake.wait(60)
        try:
            publish(ledger, lease, b"from A")
        except LeaseLost:
            return "fenced"
        return "published"

    with ThreadPoolExecutor(1) as pool:
        late: Future[str] = pool.submit(a)
        assert slept.wait(60)
        while not moves.expire_leases(another_ledger, POLICY):
            time.sleep(0.01)
        successor = claim(another_ledger, "B")
        awake.set()
        assert late.result(60) == "fenced"
        publish(another_ledger, successor, b"from B")
    assert [a.outcome for a in read.attempts(ledger, job_id)][1:] == ["expire", "succeed"]
    assert segment(ledger, job_id).state is SegmentState.SUCCEEDED


# Two at once, decided by the lock: one holds a transaction open while the other one comes


def wait_until_somebody_waits(ledger: Ledger) -> None:
    """Until a statement on this PostgreSQL waits for another transaction's lock."""
    deadline = time.monotonic() + 60
    query = text(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    with ledger.engine.connect() as connection:
        while not connection.scalar(query):
            connection.rollback()
            assert time.monotonic() < deadline, "nobody waits"
            time.sleep(0.01)


def while_it_commits(postgres: Ledger, first: Callable[[Ledger], Any], second: Callable[[Ledger], Any]) -> list[Any]:
    """Run `first` up to its commit, start `second`, and commit once `second` waits for it.  Both results or errors."""
    with closing(open_quick(postgres.url)) as one, closing(open_quick(postgres.url)) as other:
        arrived = threading.Event()
        held: list[int] = []

        def hold(_: object) -> None:
            if not held:
                held.append(1)
                arrived.set()
                wait_until_somebody_waits(postgres)

        event.listen(one.engine, "commit", hold)

        def late(story: Callable[[Ledger], Any], ledger: Ledger) -> Any:
            try:
                return story(ledger)
            except LeaseLost:
                return "fenced"

        with ThreadPoolExecutor(2) as pool:
            a = pool.submit(late, first, one)
            assert arrived.wait(60)
            b = pool.submit(late, second, other)
            return [a.result(120), b.result(120)]


def test_a_cancel_that_meets_a_plan_cancels_what_was_just_planned(postgres: Ledger, settings: Settings) -> None:
    (job_id,) = submit(postgres)
    lease = claim(postgres, "cpu", "cpu")
    _, cancelled = while_it_commits(
        postgres, lambda one: plan(one, lease, chain(3)), lambda other: control.cancel(other, job_id)
    )
    assert cancelled
    assert read.job(postgres, job_id).state is JobState.CANCELLED
    assert states(postgres, job_id) == [SegmentState.SUCCEEDED, *[SegmentState.CANCELLED] * 4]
    assert gets_nothing(postgres)
    assert clean(postgres, settings)


def test_a_pause_that_meets_a_plan_holds_what_was_just_planned(postgres: Ledger, settings: Settings) -> None:
    (job_id,) = submit(postgres)
    lease = claim(postgres, "cpu", "cpu")
    while_it_commits(postgres, lambda one: plan(one, lease, chain(3)), lambda other: control.pause(other, job_id))
    assert gets_nothing(postgres)
    assert clean(postgres, settings)
    control.resume(postgres, job_id)
    claim(postgres)


def test_a_new_priority_that_meets_a_plan_reaches_what_was_just_planned(postgres: Ledger) -> None:
    (job_id,) = submit(postgres)
    lease = claim(postgres, "cpu", "cpu")
    while_it_commits(
        postgres, lambda one: plan(one, lease, chain(1)), lambda other: control.set_priority(other, job_id, 5)
    )
    planned(postgres, 1, priority=4)
    assert claim(postgres).job.id == job_id


def test_a_plan_that_meets_a_cancel_is_void(postgres: Ledger, settings: Settings) -> None:
    (job_id,) = submit(postgres)
    lease = claim(postgres, "cpu", "cpu")
    results = while_it_commits(
        postgres, lambda one: control.cancel(one, job_id), lambda other: plan(other, lease, chain(3))
    )
    assert results == [True, "fenced"]
    assert states(postgres, job_id) == [SegmentState.CANCELLED]
    assert clean(postgres, settings)


def test_a_publish_that_meets_the_reaper_wins_or_is_void_but_never_both(postgres: Ledger, settings: Settings) -> None:
    job_id = planned(postgres, 1)
    lease = claim(postgres)
    run_out(postgres, lease)
    _, expired = while_it_commits(
        postgres, lambda one: publish(one, lease), lambda other: moves.expire_leases(other, POLICY)
    )
    assert expired == []
    assert segment(postgres, job_id).state is SegmentState.SUCCEEDED
    publish(postgres, claim(postgres, "cpu", "cpu"))

    job_id = planned(postgres, 1)
    lease = claim(postgres)
    run_out(postgres, lease)
    results = while_it_commits(
        postgres, lambda one: moves.expire_leases(one, POLICY), lambda other: publish(other, lease)
    )
    assert results == [[lease.segment.id], "fenced"]
    assert segment(postgres, job_id).state is SegmentState.QUEUED
    assert clean(postgres, settings)


def test_a_renewal_that_meets_the_reaper_keeps_the_lease(postgres: Ledger) -> None:
    planned(postgres, 1)
    lease = claim(postgres)
    run_out(postgres, lease)
    _, expired = while_it_commits(
        postgres,
        lambda one: moves.renew(one, lease, ttl_seconds=TTL, frames_now=1),
        lambda other: moves.expire_leases(other, POLICY),
    )
    assert expired == []
    publish(postgres, lease)


def test_the_last_two_segments_that_end_at_once_open_the_film_once(postgres: Ledger, settings: Settings) -> None:
    job_id = planned(postgres, 2, Continuity.PARALLEL)
    first, second = claim(postgres), claim(postgres)
    while_it_commits(postgres, lambda one: publish(one, first), lambda other: publish(other, second))
    assert states(postgres, job_id)[-1] is SegmentState.QUEUED
    assert read.job(postgres, job_id).state is JobState.ASSEMBLING
    assert clean(postgres, settings)
    assert claim(postgres, "cpu", "cpu").segment.kind is SegmentKind.ASSEMBLE


def test_a_failure_that_meets_a_publish_fails_the_job_with_its_reason(postgres: Ledger, settings: Settings) -> None:
    job_id = planned(postgres, 2, Continuity.PARALLEL)
    first, second = claim(postgres), claim(postgres)
    while_it_commits(postgres, lambda one: fail(one, first, for_good=True), lambda other: publish(other, second))
    job = read.job(postgres, job_id)
    assert (job.state, job.reason, job.segments_done) == (JobState.FAILED, "boom", 1)
    assert clean(postgres, settings)


def test_stories_of_one_job_never_break_a_deadlock(postgres: Ledger, settings: Settings) -> None:
    """PostgreSQL breaks a deadlock after a second and the story is run again; the order of locks makes none."""
    with closing(open_quick(postgres.url)) as counting:
        count = text("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
        with counting.engine.connect() as connection:
            before = connection.scalar(count)
        for _ in range(3):
            job_id = planned(postgres, 8, Continuity.PARALLEL)
            leases = [claim(postgres, f"w{n}") for n in range(8)]
            together = threading.Barrier(9)

            def end(lease: Lease, together: threading.Barrier = together) -> None:
                together.wait()
                publish(postgres, lease)

            def hesitate(job_id: int = job_id, together: threading.Barrier = together) -> None:
                together.wait()
                control.pause(postgres, job_id)
                control.resume(postgres, job_id)

            with ThreadPoolExecutor(9) as pool:
                ends = [pool.submit(end, lease) for lease in leases]
                ends.append(pool.submit(hesitate))
                for future in ends:
                    future.result(120)
            publish(postgres, claim(postgres, "cpu", "cpu"))
        with counting.engine.connect() as connection:
            assert connection.scalar(count) == before
    assert clean(postgres, settings)


def test_workers_that_end_together_leave_a_consistent_ledger_on_sqlite_too(
    sqlite_ledger: Ledger, settings: Settings
) -> None:
    empty(sqlite_ledger)
    job_id = planned(sqlite_ledger, 4, Continuity.PARALLEL)
    leases = [claim(sqlite_ledger, f"w{n}") for n in range(4)]
    together = threading.Barrier(4)

    def end(lease: Lease) -> None:
        together.wait()
        publish(sqlite_ledger, lease)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(end, leases))
    assert read.job(sqlite_ledger, job_id).state is JobState.ASSEMBLING
    assert history(sqlite_ledger, job_id).count("job_assembling") == 1
    assert clean(sqlite_ledger, settings)


def test_two_people_who_cancel_and_retry_at_once_leave_a_consistent_job(ledger: Ledger, settings: Settings) -> None:
    job_id = planned(ledger, 3)
    together = threading.Barrier(4)

    def person(number: int) -> None:
        together.wait()
        for _ in range(3):
            (control.cancel if number % 2 else control.retry)(ledger, job_id)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(person, range(4)))
    assert clean(ledger, settings)
    control.retry(ledger, job_id)
    assert read.job(ledger, job_id).state is JobState.RENDERING
