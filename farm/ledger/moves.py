"""The moves of a segment under lease: claim, renew, publish, release, expire.

Each is one transaction.  Each write names the state and the fencing token that it relies on; when no row answers, the
lease is lost and nothing was changed.  Every move writes the history line and ripples to the job.

Claiming, publishing and what is asked of a lease while it is held have modules of their own; here is how an attempt
ends without a result, and the one name under which workers find them all.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, select, text, update
from sqlalchemy.orm import Session

from farm.errors import LeaseLost
from farm.ledger.claiming import claim
from farm.ledger.history import append
from farm.ledger.leases import Standing, close_attempt, held_lease, held_seconds, renew, standing
from farm.ledger.publishing import REUSED, publish, publish_plan
from farm.ledger.ripple import lock_job, owe, ripple
from farm.ledger.store import Ledger, db_now
from farm.ledger.tables import LEASED, AttemptRow, SegmentRow, WorkerRow
from farm.ledger.values import Lease
from farm.retry import Decision, RetryPolicy
from farm.states import Event, SegmentState, after

__all__ = [
    "REUSED",
    "Standing",
    "claim",
    "expire_leases",
    "publish",
    "publish_plan",
    "release",
    "renew",
    "standing",
]


def release(ledger: Ledger, lease: Lease, decision: Decision) -> None:
    """End the attempt without a result, as `decision` says.  Raises LeaseLost."""

    def story(session: Session) -> None:
        lock_job(session, lease.segment.job_id)
        to = after(SegmentState.LEASED, decision.event)
        values: dict[str, Any] = {
            "state": to,
            "leased_by": None,
            "lease_until": None,
            "frames_now": 0,
            "reason": decision.reason,
            "failure": decision.failure,
            "not_before": db_now() + decision.delay_seconds,
            "errors": SegmentRow.errors + (1 if decision.counts else 0),
        }
        if decision.smaller:
            values["smaller"] = True
        if to is SegmentState.FAILED:
            values["finished_at"] = db_now()
        if to is SegmentState.QUEUED:
            values["queued_at"] = db_now()
        won = session.scalar(update(SegmentRow).where(held_lease(lease)).values(**values).returning(SegmentRow.id))
        if won is None:
            raise LeaseLost(f"{lease.label}: the lease is gone")
        close_attempt(
            session,
            lease,
            decision.event,
            strike=decision.strike,
            failure=decision.failure,
            reason=decision.reason,
        )
        ripple(session, lease.segment.job_id, reason=decision.reason, failure=decision.failure)
        if to is SegmentState.QUEUED:
            owe(session, lease.segment.queue)

    ledger.write(story)


def expire_leases(
    ledger: Ledger, policy: RetryPolicy, *, worker: str | None = None, before: float | None = None
) -> list[int]:
    """Take back every lease that ran out, with `before` only those that ran out before that instant of the ledger's
    clock; with `worker`, every lease of that worker whose death was confirmed.

    Returns the segments' ids.  A segment that lost too many workers is given up: it is suspected to kill them.
    """
    dead: ColumnElement[bool] = SegmentRow.lease_until < (db_now() if before is None else before)
    if worker is not None:
        dead = SegmentRow.leased_by == worker
    with ledger.read() as session:
        # Sorted here: an ORDER BY would lead SQLite through all segments in their order instead of the leases' index.
        rows = session.execute(select(SegmentRow.id, SegmentRow.job_id).where(text(LEASED), dead)).all()
        found = sorted((segment_id, job_id) for segment_id, job_id in rows)
    return [
        segment_id
        for segment_id, job_id in found
        if ledger.write(partial(_expire, segment_id=segment_id, job_id=job_id, dead=dead, policy=policy))
    ]


def _expire(session: Session, segment_id: int, job_id: int, dead: ColumnElement[bool], policy: RetryPolicy) -> bool:
    """Take back one lease if it is still `dead`; it may have been renewed or ended since it was found."""
    lock_job(session, job_id)
    row = session.scalar(
        select(SegmentRow)
        .where(SegmentRow.id == segment_id, SegmentRow.state == SegmentState.LEASED, dead)
        .with_for_update()
    )
    if row is None:
        return False
    gone, number = row.leased_by, row.attempt
    losses = row.losses + 1
    event = Event.EXPIRE if losses < policy.max_losses else Event.FAIL
    reason = f"worker {gone} vanished while it held the lease"
    if event is Event.FAIL:
        reason = f"given up: {losses} workers vanished while rendering this; the last one was {gone}"
    to = after(SegmentState.LEASED, event)
    session.execute(
        update(SegmentRow)
        .where(SegmentRow.id == segment_id, SegmentRow.state == SegmentState.LEASED, SegmentRow.token == row.token)
        .values(
            state=to,
            leased_by=None,
            lease_until=None,
            losses=losses,
            frames_now=0,
            reason=reason,
            failure="lost",
            # The first losses are most likely not the segment's fault, so it is offered again at once.
            not_before=db_now() + (policy.delay_after(losses - 2) if losses > 2 else 0.0),
            queued_at=db_now(),
            finished_at=db_now() if to is SegmentState.FAILED else None,
        )
        .execution_options(synchronize_session=False)
    )
    session.execute(
        update(AttemptRow)
        .where(AttemptRow.segment_id == segment_id, AttemptRow.ended_at.is_(None))
        .values(
            ended_at=db_now(),
            outcome=event.value,
            failure="lost",
            reason=reason,
            # It may have died long before anybody could look; and before its lease ran out, if its death was seen.
            device_seconds=held_seconds(min(row.lease_until or 0.0, session.scalar(select(db_now())) or 0.0)),
        )
    )
    session.execute(
        update(WorkerRow).where(WorkerRow.name == gone, WorkerRow.segment_id == segment_id).values(segment_id=None)
    )
    append(session, event, job_id=job_id, segment_id=segment_id, attempt=number, worker=gone, detail=reason)
    ripple(session, job_id, reason=reason, failure="lost")
    if to is SegmentState.QUEUED:
        owe(session, row.queue)
    return True
