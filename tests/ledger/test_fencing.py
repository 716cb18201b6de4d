"""A write of a lease that is gone changes nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from farm.errors import LeaseLost
from farm.ledger import Ledger, control, moves, read
from farm.ledger.values import Lease
from farm.retry import Decision
from farm.states import ArtifactKind, Continuity, Event, SegmentState

from .scenes import POLICY, TTL, chain, claim, fail, hello, history, plan, planned, publish, run_out, segment, submit

Write = Callable[[Ledger, Lease], None]


def renew(ledger: Ledger, lease: Lease) -> None:
    moves.renew(ledger, lease, ttl_seconds=TTL, frames_now=5)


def release(event: Event) -> Write:
    def write(ledger: Ledger, lease: Lease) -> None:
        moves.release(ledger, lease, Decision(event, "r", "engine", counts=True, strike=True))

    return write


def publish_plan(ledger: Ledger, lease: Lease) -> None:
    plan(ledger, lease, chain(2))


WRITES: list[Write] = [
    renew,
    publish,
    publish_plan,
    release(Event.RETRY),
    release(Event.FAIL),
    release(Event.INTERRUPT),
]


def expire(ledger: Ledger, lease: Lease) -> None:
    run_out(ledger, lease)
    assert moves.expire_leases(ledger, POLICY) == [lease.segment.id]


def expire_and_lease_again(ledger: Ledger, lease: Lease) -> None:
    expire(ledger, lease)
    claim(ledger, "w2")


def expire_and_lease_again_to_the_same_worker(ledger: Ledger, lease: Lease) -> None:
    expire(ledger, lease)
    claim(ledger, "w1")


def finish_elsewhere(ledger: Ledger, lease: Lease) -> None:
    expire(ledger, lease)
    publish(ledger, claim(ledger, "w2"))


def cancel(ledger: Ledger, lease: Lease) -> None:
    control.cancel(ledger, lease.job.id)


def give_back(ledger: Ledger, lease: Lease) -> None:
    release(Event.INTERRUPT)(ledger, lease)


LOSSES = [
    expire,
    expire_and_lease_again,
    expire_and_lease_again_to_the_same_worker,
    finish_elsewhere,
    cancel,
    give_back,
]


def everything(ledger: Ledger, job_id: int) -> tuple[object, ...]:
    return (
        read.job(ledger, job_id),
        read.segments(ledger, job_id),
        read.attempts(ledger, job_id),
        read.artifacts(ledger, job_id),
        read.events(ledger),
        read.workers(ledger),
    )


@pytest.mark.parametrize("lose", LOSSES, ids=lambda f: f.__name__)
def test_no_write_of_a_lost_lease_leaves_a_trace(ledger: Ledger, lose: Write) -> None:
    for worker in ("w1", "w2"):
        hello(ledger, worker)
    job_id = planned(ledger, 2)
    stale = claim(ledger, "w1")
    lose(ledger, stale)
    before = everything(ledger, job_id)

    for write in WRITES:
        with pytest.raises(LeaseLost, match=f"job {job_id} segment 1/2: "):
            write(ledger, stale)

    assert everything(ledger, job_id) == before


def test_a_stale_worker_cannot_finish_a_segment_that_was_leased_again(ledger: Ledger) -> None:
    job_id = planned(ledger)
    stale = claim(ledger, "w1")
    expire(ledger, stale)
    fresh = claim(ledger, "w2")

    with pytest.raises(LeaseLost):
        publish(ledger, stale)

    assert segment(ledger, job_id).state is SegmentState.LEASED
    publish(ledger, fresh, b"the right one")
    assert claim(ledger).carry == b"the right one"
    assert [e for e in history(ledger, job_id) if e in ("lease", "expire", "succeed")] == [
        *["lease", "succeed"],  # prepare
        *["lease", "expire", "lease", "succeed"],
        "lease",
    ]


def test_a_worker_that_is_late_but_was_not_replaced_may_still_publish(ledger: Ledger) -> None:
    job_id = planned(ledger)
    late = claim(ledger)
    run_out(ledger, late)
    publish(ledger, late)
    assert segment(ledger, job_id).state is SegmentState.SUCCEEDED
    assert moves.expire_leases(ledger, POLICY) == []


def test_a_renewed_lease_is_not_expired_and_shows_its_progress(ledger: Ledger) -> None:
    job_id = planned(ledger)
    lease = claim(ledger)
    run_out(ledger, lease)
    moves.renew(ledger, lease, ttl_seconds=TTL, frames_now=25)
    assert moves.expire_leases(ledger, POLICY) == []
    found = segment(ledger, job_id)
    assert found.frames_now == 25
    assert found.lease_until is not None and found.lease_until > ledger.now() + TTL - 5


def test_tokens_only_ever_rise(ledger: Ledger) -> None:
    job_id = planned(ledger)
    tokens = []
    for _ in range(3):
        lease = claim(ledger)
        tokens.append(lease.token)
        give_back(ledger, lease)
    control.cancel(ledger, job_id)
    control.retry(ledger, job_id)
    tokens.append(claim(ledger).token)
    assert tokens == [1, 2, 3, 4]


@pytest.mark.parametrize("who_asks", ["lost", "cancelled", "paused", "failed", "drained", "nobody"])
def test_a_running_attempt_hears_what_is_wanted_of_it(ledger: Ledger, who_asks: str) -> None:
    hello(ledger)
    job_id = planned(ledger, 2, Continuity.PARALLEL)
    lease, other = claim(ledger), claim(ledger)
    wanted = {
        "lost": moves.Standing.LOST,
        "cancelled": moves.Standing.CANCELLED,
        "paused": moves.Standing.PAUSED,
        "failed": moves.Standing.CANCELLED,
        "drained": moves.Standing.DRAIN,
        "nobody": moves.Standing.KEEP,
    }
    if who_asks == "lost":
        expire(ledger, lease)
    elif who_asks == "cancelled":
        control.cancel(ledger, job_id)
    elif who_asks == "paused":
        control.pause(ledger, job_id)
    elif who_asks == "failed":
        fail(ledger, other, for_good=True)
    elif who_asks == "drained":
        control.drain_worker(ledger, "w1", now=True)
    assert moves.standing(ledger, lease) == wanted[who_asks]


def test_draining_without_now_lets_the_running_attempt_finish(ledger: Ledger) -> None:
    hello(ledger)
    planned(ledger)
    lease = claim(ledger)
    control.drain_worker(ledger, "w1")
    assert moves.standing(ledger, lease) == moves.Standing.KEEP


# Repeating a publish whose answer was lost


def test_publishing_twice_is_publishing_once(ledger: Ledger) -> None:
    job_id = planned(ledger)
    lease = claim(ledger)
    publish(ledger, lease, b"first")
    before = everything(ledger, job_id)
    publish(ledger, lease, b"second")
    assert everything(ledger, job_id) == before


def test_publishing_a_plan_twice_makes_one_set_of_segments(ledger: Ledger) -> None:
    (job_id,) = submit(ledger)
    lease = claim(ledger, "cpu", "cpu")
    plan(ledger, lease, chain(3))
    before = everything(ledger, job_id)
    plan(ledger, lease, chain(3))
    assert everything(ledger, job_id) == before
    assert len(read.segments(ledger, job_id)) == 5


def test_a_commit_whose_answer_is_lost_is_repeated_and_changes_nothing(ledger: Ledger, another_ledger: Ledger) -> None:
    """The connection breaks after the commit and before its answer: `write` runs the story again."""
    job_id = planned(ledger)
    lease = claim(ledger)
    broken: list[int] = []

    def lose_the_answer(connection: object) -> None:
        if not broken:
            broken.append(1)
            connection.connection.commit()  # type: ignore[attr-defined]
            raise_away()

    def raise_away() -> None:
        raise OperationalError("COMMIT", {}, sqlite3.OperationalError("server closed the connection unexpectedly"))

    event.listen(another_ledger.engine, "commit", lose_the_answer)
    publish(another_ledger, lease)
    assert broken
    assert segment(ledger, job_id).state is SegmentState.SUCCEEDED
    assert len(read.artifacts(ledger, job_id, ArtifactKind.SEGMENT)) == 1
    assert [a.outcome for a in read.attempts(ledger, job_id)] == ["succeed", "succeed"]
