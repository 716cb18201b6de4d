"""What a segment's move means for its job and for the segments that build on it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnExpressionArgument, bindparam, func, insert, select, update
from sqlalchemy.orm import Session

from farm.ledger.history import append
from farm.ledger.store import db_now
from farm.ledger.tables import JobRow, OutboxRow, SegmentRow, plain
from farm.ledger.values import Segment
from farm.states import FINISHED, Event, JobState, SegmentKind, SegmentState, after, job_state


def lock_job(session: Session, job_id: int) -> None:
    """Wait for every other story of this job.

    A story takes the job's row first and its segments afterwards, so two stories never wait for each other, and two
    segments that end at the same instant see each other.  Only the claim cannot, since it does not know its job yet.
    The lock lets others refer to the row: with a stronger one, two segments that publish their artifacts at the same
    instant would each wait for the other's foreign key.
    """
    session.execute(_LOCK_JOB, {"job": job_id})


_JOBS, _SEGMENTS = plain(JobRow), plain(SegmentRow)
# Built once: to build these and to look up what they compile to took longer than to run them.
_LOCK_JOB = (
    select(_JOBS.c.state, _JOBS.c.started_at, _JOBS.c.batch_id, _JOBS.c.paused)
    .where(_JOBS.c.id == bindparam("job"))
    .with_for_update(key_share=True)
)
_COUNT_SEGMENTS = (
    select(_SEGMENTS.c.kind, _SEGMENTS.c.state, func.count(), func.sum(_SEGMENTS.c.frames))
    .where(_SEGMENTS.c.job_id == bindparam("job"))
    .group_by(_SEGMENTS.c.kind, _SEGMENTS.c.state)
)
_HOLD = (
    update(_SEGMENTS)
    .where(
        _SEGMENTS.c.job_id == bindparam("job"),
        _SEGMENTS.c.state.in_((SegmentState.WAITING, SegmentState.QUEUED, SegmentState.LEASED)),
        _SEGMENTS.c.held != bindparam("wanted"),
    )
    .values(held=bindparam("wanted"))
)
_RING = insert(plain(OutboxRow)).values(created_at=db_now())


def owe(session: Session, queue: str) -> None:
    """Owe a doorbell to a queue; it is rung after the commit."""
    session.execute(_RING, {"queue": queue})


def ripple(session: Session, job_id: int, *, reason: str | None = None, failure: str | None = None) -> JobState:
    """Derive the job's state from its segments and write it down.  Returns the state."""
    job = session.execute(_LOCK_JOB, {"job": job_id}).one()
    counted = session.execute(_COUNT_SEGMENTS, {"job": job_id}).all()
    state = job_state({(kind, segment_state): count for kind, segment_state, count, _ in counted})
    done = [
        (count, frames)
        for kind, s, count, frames in counted
        if kind is SegmentKind.RENDER and s is SegmentState.SUCCEEDED
    ]
    values: dict[str, Any] = {
        "state": state,
        "segments_done": done[0][0] if done else 0,
        "frames_done": int(done[0][1]) if done else 0,
    }
    if job.started_at is None and state is not JobState.QUEUED:
        values["started_at"] = db_now()
    if state in FINISHED:
        if job.state not in FINISHED:
            values["finished_at"] = db_now()
    else:
        values["finished_at"] = None
    dead = state in (JobState.FAILED, JobState.CANCELLED)
    if not dead:
        values |= {"reason": None, "failure": None}
    elif reason is not None and job.state not in FINISHED:
        values |= {"reason": reason, "failure": failure}
    session.execute(update(JobRow).where(JobRow.id == job_id).values(**values))
    if state is not job.state:
        append(session, f"job_{state}", job_id=job_id, batch_id=job.batch_id, detail=reason)
        hold(session, job_id, held=dead or job.paused)
    return state


def hold(session: Session, job_id: int, *, held: bool) -> None:
    """Take the job's open segments out of every queue, or put them back."""
    session.execute(_HOLD, {"job": job_id, "wanted": held})


def hold_as_the_job_is(session: Session, job_id: int) -> None:
    """For segments that were published and are open again: while they were not, nobody held them or let them go."""
    job = session.execute(_LOCK_JOB, {"job": job_id}).one()
    hold(session, job_id, held=job.paused or job.state in (JobState.FAILED, JobState.CANCELLED))


def ready_next(session: Session, done: Segment) -> None:
    """Queue every waiting segment of the job whose foundations are published now that `done` is.

    The caller holds the job's lock, or the last two segments of a film could each take the other for unfinished.
    """
    if done.kind is SegmentKind.PREPARE:
        _ready(
            session,
            SegmentRow.job_id == done.job_id,
            SegmentRow.kind == SegmentKind.RENDER,
            ~SegmentRow.needs_carry,
        )
    elif done.kind is SegmentKind.RENDER:
        _ready(
            session,
            SegmentRow.job_id == done.job_id,
            SegmentRow.kind == SegmentKind.RENDER,
            SegmentRow.number == done.number + 1,
        )
        left = session.scalar(
            select(func.count()).where(
                SegmentRow.job_id == done.job_id,
                SegmentRow.kind == SegmentKind.RENDER,
                SegmentRow.state != SegmentState.SUCCEEDED,
            )
        )
        if not left:
            _ready(session, SegmentRow.job_id == done.job_id, SegmentRow.kind == SegmentKind.ASSEMBLE)


def ready_all(session: Session, job_id: int) -> None:
    """Queue every waiting segment of a job whose foundations stand.  Used after a requeue."""
    rows = session.scalars(select(SegmentRow).where(SegmentRow.job_id == job_id)).all()
    by_key = {(row.kind, row.number): row for row in rows}
    renders = [row for row in rows if row.kind is SegmentKind.RENDER]
    prepared = by_key[SegmentKind.PREPARE, 0].state is SegmentState.SUCCEEDED
    for row in rows:
        if row.state is not SegmentState.WAITING:
            continue
        if row.kind is SegmentKind.RENDER:
            ready = prepared and (
                not row.needs_carry or by_key[SegmentKind.RENDER, row.number - 1].state is SegmentState.SUCCEEDED
            )
        elif row.kind is SegmentKind.ASSEMBLE:
            ready = bool(renders) and all(other.state is SegmentState.SUCCEEDED for other in renders)
        else:
            ready = True
        if ready:
            _ready(session, SegmentRow.id == row.id)


def _ready(session: Session, *where: ColumnExpressionArgument[bool]) -> None:
    queues = session.scalars(
        update(SegmentRow)
        .where(*where, SegmentRow.state == SegmentState.WAITING)
        .values(state=after(SegmentState.WAITING, Event.READY), queued_at=db_now(), not_before=0.0)
        .returning(SegmentRow.queue)
        .execution_options(synchronize_session=False)
    ).all()
    for queue in sorted(set(queues)):
        owe(session, queue)
