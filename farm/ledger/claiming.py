"""Claiming work: the one statement that chooses a segment and leases it."""

from __future__ import annotations

from functools import cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Double,
    String,
    and_,
    bindparam,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.orm import Session, aliased

from farm.ledger.history import append
from farm.ledger.owners import breaks_quota, within_quota
from farm.ledger.presence import ready
from farm.ledger.ripple import ripple
from farm.ledger.row_values import job_value, segment_value
from farm.ledger.store import Ledger, db_now
from farm.ledger.tables import CLAIMABLE, AttemptRow, JobRow, SegmentRow, WorkerRow, plain
from farm.ledger.values import Lease
from farm.retry import STRIKES_PER_JOB
from farm.states import Event, SegmentKind, SegmentState, WorkerState, after

_CLAIM_TRIES = 3

_SEGMENTS, _ATTEMPTS, _WORKERS = plain(SegmentRow), plain(AttemptRow), plain(WorkerRow)
_OPEN_ATTEMPT = insert(_ATTEMPTS).values(started_at=db_now())
_OCCUPY_WORKER = (
    update(_WORKERS)
    .where(_WORKERS.c.name == bindparam("of_name"))
    .values(segment_id=bindparam("by_segment"), state=WorkerState.RENDERING, reason=None)
)
_CARRY = select(_SEGMENTS.c.carry).where(
    _SEGMENTS.c.job_id == bindparam("of_job"),
    _SEGMENTS.c.kind == SegmentKind.RENDER,
    _SEGMENTS.c.number == bindparam("of_number"),
)


def claim(
    ledger: Ledger, *, worker: str, queue: str, device: str, ttl_seconds: float, warm_job: int | None = None
) -> Lease | None:
    """Lease the best claimable segment of `queue`: priority, deadline, the warm job, fair rank, first come.

    One statement chooses and takes it.  Returns None when there is nothing that this worker may take; the segments of
    an owner whose quota is under lease are passed by.
    """

    def story(session: Session) -> Lease | None:
        wanted: dict[str, object] = {"by_worker": worker, "of_queue": queue, "for_seconds": ttl_seconds}
        if warm_job is not None:
            wanted["warm_job"] = warm_job
        row = session.scalar(_claim_statement(has_warm_job=warm_job is not None), wanted)
        if row is None:
            return None
        job = session.get_one(JobRow, row.job_id)
        if row.kind is SegmentKind.RENDER and breaks_quota(session, job.owner):
            raise _QuotaTaken
        after(SegmentState.QUEUED, Event.LEASE)
        session.execute(
            _OPEN_ATTEMPT,
            {
                "segment_id": row.id,
                "job_id": row.job_id,
                "number": row.attempt,
                "token": row.token,
                "worker": worker,
                "device": device,
            },
        )
        append(session, Event.LEASE, job_id=row.job_id, segment_id=row.id, attempt=row.attempt, worker=worker)
        if row.kind is SegmentKind.PREPARE:  # the only lease that changes what its job is
            ripple(session, row.job_id)
            session.refresh(job)
        session.execute(_OCCUPY_WORKER, {"of_name": worker, "by_segment": row.id})
        carry = None
        if row.needs_carry:
            carry = session.scalar(_CARRY, {"of_job": row.job_id, "of_number": row.number - 1})
        return Lease(
            segment=segment_value(row),
            job=job_value(job),
            token=row.token,
            attempt=row.attempt,
            worker=worker,
            carry=carry,
            smaller=row.smaller,
        )

    for _ in range(_CLAIM_TRIES):
        try:
            return ledger.write(story)
        except _QuotaTaken:
            continue  # rolled back; the next look sees the other's lease and passes by this owner
    return None


class _QuotaTaken(Exception):
    """Another claim took the last lease of the owner's quota at the same instant."""


@cache  # building it takes longer than running it
def _claim_statement(*, has_warm_job: bool) -> Any:
    """Takes the parameters by_worker, of_queue, for_seconds and, if there is one to prefer, warm_job."""
    segment = SegmentRow
    worker, queue = bindparam("by_worker", type_=String), bindparam("of_queue", type_=String)
    claimable = and_(
        text(CLAIMABLE),
        segment.not_before <= db_now(),
        within_quota(),
        _may_take(worker, queue),
    )
    columns = (segment.id, segment.unhaste, segment.due)
    order = (segment.unhaste, segment.due, segment.rank, segment.id)
    best = select(*columns, literal(0).label("warm")).where(segment.queue == queue, claimable).order_by(*order).limit(1)
    best_cte = best.with_for_update(skip_locked=True).cte("best")
    candidates = select(best_cte.c.id, best_cte.c.unhaste, best_cte.c.due, best_cte.c.warm)
    if has_warm_job:
        warm = (
            select(*columns, literal(1).label("warm"))
            .where(
                segment.job_id == bindparam("warm_job", type_=BigInteger),
                # An expression, so that SQLite does not search the index of the queue, all of it, for one job.
                segment.queue.concat("") == queue,
                claimable,
            )
            .order_by(segment.number)
            .limit(1)
        )
        warm_cte = warm.with_for_update(skip_locked=True).cte("warm")
        both = candidates.union_all(select(warm_cte.c.id, warm_cte.c.unhaste, warm_cte.c.due, warm_cte.c.warm))
        candidates = both.subquery("candidate").select()
    chosen = candidates.subquery("chosen")
    pick = select(chosen.c.id).order_by(chosen.c.unhaste, chosen.c.due, chosen.c.warm.desc()).limit(1)
    return (
        update(segment)
        .where(segment.id == pick.scalar_subquery(), segment.state == SegmentState.QUEUED)
        .values(
            state=SegmentState.LEASED,
            token=segment.token + 1,
            attempt=segment.attempt + 1,
            leased_by=worker,
            lease_until=db_now() + bindparam("for_seconds", type_=Double),
            frames_now=0,
        )
        .returning(segment)
        .execution_options(synchronize_session=False)
    )


def _may_take(worker: ColumnElement[str], queue: ColumnElement[str]) -> ColumnElement[bool]:
    """A worker does not get back what it failed while another can take it, nor a job that it failed too often.

    A worker that people drain gets nothing, from the moment that the ledger knows of it.
    """
    segment = SegmentRow
    me, other = aliased(WorkerRow), aliased(WorkerRow)
    mine, theirs = aliased(AttemptRow), aliased(AttemptRow)
    draining = exists().where(me.name == worker, me.drain.is_not(None))
    failed_it = exists().where(mine.segment_id == segment.id, mine.worker == worker, mine.strike)
    another_can = exists().where(
        other.queue == queue,
        other.name != worker,
        ready(other),
        # Without `correlate`, a subquery this deep would read all segments in place of the one that is looked at.
        ~exists()
        .where(theirs.segment_id == segment.id, theirs.worker == other.name, theirs.strike)
        .correlate_except(theirs),
        _strikes(other.name) < STRIKES_PER_JOB,
    )
    return and_(~draining, or_(~failed_it, ~another_can), _strikes(worker) < STRIKES_PER_JOB)


def _strikes(worker: Any) -> ColumnElement[int]:
    """How often a worker failed the job of the segment that is looked at."""
    strike = aliased(AttemptRow)
    return (
        select(func.count())
        .where(strike.job_id == SegmentRow.job_id, strike.worker == worker, strike.strike)
        .correlate_except(strike)
        .scalar_subquery()
    )
