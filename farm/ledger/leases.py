"""A lease while it is held: is it still ours, renew it, ask what the ledger wants of it, close its attempt."""

from __future__ import annotations

from enum import StrEnum

from sqlalchemy import ColumnElement, and_, case, select, update
from sqlalchemy.orm import Session

from farm.errors import LeaseLost
from farm.ledger.history import append
from farm.ledger.store import Ledger, db_now
from farm.ledger.tables import AttemptRow, JobRow, SegmentRow, WorkerRow
from farm.ledger.values import Lease
from farm.states import Event, SegmentState, WorkerState


def held_lease(lease: Lease) -> ColumnElement[bool]:
    """Whether a segment's row is still this lease's."""
    return and_(
        SegmentRow.id == lease.segment.id,
        SegmentRow.state == SegmentState.LEASED,
        SegmentRow.token == lease.token,
    )


def renew(ledger: Ledger, lease: Lease, *, ttl_seconds: float, frames_now: int) -> None:
    """Push the lease's end away and note the progress.  Raises LeaseLost."""

    def story(session: Session) -> None:
        won = session.scalar(
            update(SegmentRow)
            .where(held_lease(lease))
            .values(lease_until=db_now() + ttl_seconds, frames_now=frames_now)
            .returning(SegmentRow.id)
        )
        if won is None:
            raise LeaseLost(f"{lease.label}: the lease is gone")

    ledger.write(story, patience_seconds=ttl_seconds)


def close_attempt(
    session: Session,
    lease: Lease,
    event: Event,
    *,
    strike: bool = False,
    failure: str | None = None,
    reason: str | None = None,
    frames: int = 0,
    device_seconds: float | None = None,
) -> None:
    """Close the open attempt of `lease`, append the history line and free the worker.

    Without `device_seconds` it took the device for as long as it held the lease.
    """
    session.execute(
        update(AttemptRow)
        .where(
            AttemptRow.segment_id == lease.segment.id, AttemptRow.token == lease.token, AttemptRow.ended_at.is_(None)
        )
        .values(
            ended_at=db_now(),
            outcome=event.value,
            strike=strike,
            failure=failure,
            reason=reason,
            frames=frames,
            device_seconds=device_seconds if device_seconds is not None else held_seconds(db_now()),
        )
    )
    session.execute(
        update(WorkerRow)
        .where(WorkerRow.name == lease.worker, WorkerRow.segment_id == lease.segment.id)
        .values(segment_id=None, state=WorkerState.IDLE)
    )
    append(
        session,
        event,
        job_id=lease.segment.job_id,
        segment_id=lease.segment.id,
        attempt=lease.attempt,
        worker=lease.worker,
        detail=reason,
    )


def held_seconds(until: ColumnElement[float] | float) -> ColumnElement[float]:
    """For how long an attempt that came to nothing had its device, `until` then; it is paid for like any other."""
    seconds: ColumnElement[float] = until - AttemptRow.started_at
    return case((seconds > 0.0, seconds), else_=0.0)


class Standing(StrEnum):
    """What the ledger wants of a lease at this moment."""

    KEEP = "keep"
    LOST = "lost"
    CANCELLED = "cancelled"
    PAUSED = "paused"
    DRAIN = "drain"


def standing(ledger: Ledger, lease: Lease) -> Standing:
    """Whether to go on with this lease: asked at every chunk."""
    with ledger.read() as session:
        row = session.execute(
            select(SegmentRow.state, SegmentRow.token, SegmentRow.held, JobRow.paused, WorkerRow.drain)
            .join(JobRow, JobRow.id == SegmentRow.job_id)
            .outerjoin(WorkerRow, WorkerRow.name == lease.worker)
            .where(SegmentRow.id == lease.segment.id)
        ).one_or_none()
    if row is None or row.token != lease.token:
        return Standing.LOST
    if row.state is SegmentState.CANCELLED:
        return Standing.CANCELLED
    if row.state is not SegmentState.LEASED:
        return Standing.LOST
    if row.paused:
        return Standing.PAUSED
    if row.held:
        return Standing.CANCELLED  # another segment of the job failed: the film will never be
    if row.drain == "now":
        return Standing.DRAIN
    return Standing.KEEP
