"""The moves of a segment under lease: claim, renew, publish, release, expire.

Each is one transaction.  Each write names the state and the fencing token that it relies on; when no row answers, the
lease is lost and nothing was changed.  Every move writes the history line and ripples to the job.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Double,
    String,
    and_,
    bindparam,
    delete,
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

from farm.errors import EngineChanged, LeaseLost, LedgerError
from farm.ledger.history import append
from farm.ledger.owners import breaks_quota, within_quota
from farm.ledger.read import job_value, segment_value
from farm.ledger.ripple import lock_job, owe, ready_all, ready_next, ripple
from farm.ledger.store import Ledger, db_now
from farm.ledger.tables import CLAIMABLE, LEASED, ArtifactRow, AttemptRow, JobRow, SegmentRow, WorkerRow, plain
from farm.ledger.values import Lease, NewArtifact, Reused
from farm.planning import PlannedSegment
from farm.retry import Decision, RetryPolicy
from farm.states import Event, SegmentKind, SegmentState, WorkerState, after

REUSED = "reuse"  # the event of a segment whose frames another film lent, and the device of its attempt
STRIKES_PER_JOB = 3  # a worker that failed a job this often does not get it again
_CLAIM_TRIES = 3
ALIVE_SECONDS = 60.0  # a worker that beat this recently counts as one that could take a segment

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
        other.drain.is_(None),
        other.state.in_((WorkerState.IDLE, WorkerState.RENDERING)),
        other.reason.is_(None),  # otherwise it says why it takes nothing
        other.beat_at > db_now() - ALIVE_SECONDS,
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


def publish(
    ledger: Ledger,
    lease: Lease,
    *,
    artifacts: Sequence[NewArtifact],
    carry: bytes | None = None,
    frames: int = 0,
    device_seconds: float = 0.0,
    engine_version: str | None = None,
) -> None:
    """Make the result public: files, carry and state change in one commit.

    Repeating it after a commit whose answer was lost changes nothing and succeeds.  Raises LeaseLost, and EngineChanged
    when other segments of the film were published by another version of the engine.
    """
    _succeed(ledger, lease, artifacts, carry, frames, device_seconds, {"engine_version": engine_version}, None)


def publish_plan(
    ledger: Ledger,
    lease: Lease,
    *,
    artifacts: Sequence[NewArtifact],
    job: dict[str, Any],
    plan: Sequence[PlannedSegment],
    queue: str,
    device_seconds: float = 0.0,
    reused: Mapping[int, Reused] | None = None,
) -> None:
    """End `prepare`: write what was learnt into the job and make its render and assemble segments.

    `job` holds column values of JobRow: audio_rate, audio_samples, total_frames, facts, profile, notes …  `reused` are
    the segments of `plan`, by number, whose files exist already: they are published with it, each by an attempt of its
    own that took no device's time.
    """
    _succeed(ledger, lease, artifacts, None, 0, device_seconds, job, _Plan(plan, queue, reused or {}))


@dataclass(frozen=True, slots=True)
class _Plan:
    segments: Sequence[PlannedSegment]
    queue: str
    reused: Mapping[int, Reused]


def _succeed(
    ledger: Ledger,
    lease: Lease,
    artifacts: Sequence[NewArtifact],
    carry: bytes | None,
    frames: int,
    device_seconds: float,
    job_values: dict[str, Any],
    plan: _Plan | None,
) -> None:
    segment = lease.segment

    def story(session: Session) -> None:
        lock_job(session, segment.job_id)
        won = session.scalar(
            update(SegmentRow)
            .where(held_lease(lease))
            .values(
                state=after(SegmentState.LEASED, Event.SUCCEED),
                leased_by=None,
                lease_until=None,
                carry=carry,
                frames_now=frames,
                reason=None,
                failure=None,
                finished_at=db_now(),
            )
            .returning(SegmentRow.id)
        )
        if won is None:
            done = session.scalar(
                select(SegmentRow.id).where(
                    SegmentRow.id == segment.id,
                    SegmentRow.state == SegmentState.SUCCEEDED,
                    SegmentRow.token == lease.token,
                )
            )
            if done is not None:
                return  # our own earlier commit, whose answer was lost
            raise LeaseLost(f"{lease.label}: the lease is gone; its result is void")
        _refuse_a_second_version(session, segment.job_id, job_values.get("engine_version"))
        number = segment.number if segment.kind is SegmentKind.RENDER else -1
        for artifact in artifacts:
            # `farm jobs retry` may publish a job's poster or report again; the newest stands.
            session.execute(
                delete(ArtifactRow).where(
                    ArtifactRow.job_id == segment.job_id,
                    ArtifactRow.kind == artifact.kind,
                    ArtifactRow.segment_number == number,
                )
            )
            _insert_artifact(session, segment.job_id, number, artifact)
        close_attempt(session, lease, Event.SUCCEED, frames=frames, device_seconds=device_seconds)
        values = {key: value for key, value in job_values.items() if value is not None}
        if values:
            session.execute(update(JobRow).where(JobRow.id == segment.job_id).values(**values))
        if plan is not None:
            _insert_plan(session, lease, plan.segments, plan.queue)
            _publish_reused(session, lease, plan.reused)
        if plan is not None and plan.reused:
            ready_all(session, segment.job_id)
        else:
            ready_next(session, segment)
        ripple(session, segment.job_id)

    ledger.write(story)


def _insert_artifact(session: Session, job_id: int, number: int, artifact: NewArtifact) -> None:
    session.execute(
        insert(ArtifactRow).values(
            job_id=job_id,
            kind=artifact.kind,
            segment_number=number,
            path=artifact.path,
            size_bytes=artifact.size_bytes,
            sha256=artifact.sha256,
            facts=dict(artifact.facts),
            created_at=db_now(),
        )
    )


def _publish_reused(session: Session, lease: Lease, reused: Mapping[int, Reused]) -> None:
    """Take just planned segments through all their moves at once, in the name of the worker that prepared the film."""
    if not reused:
        return
    job_id = lease.segment.job_id
    state = SegmentState.WAITING
    for event in (Event.READY, Event.LEASE, Event.SUCCEED):
        state = after(state, event)
    for number, item in sorted(reused.items()):
        segment_id = session.scalar(
            update(SegmentRow)
            .where(
                SegmentRow.job_id == job_id,
                SegmentRow.kind == SegmentKind.RENDER,
                SegmentRow.number == number,
                SegmentRow.state == SegmentState.WAITING,
                SegmentRow.token == 0,
            )
            .values(
                state=state,
                token=1,
                attempt=1,
                carry=item.carry,
                frames_now=SegmentRow.frames,
                queued_at=db_now(),
                finished_at=db_now(),
            )
            .returning(SegmentRow.id)
        )
        if segment_id is None:
            raise LedgerError(f"segment {number} of job {job_id} was not just planned")
        session.execute(
            insert(AttemptRow).values(
                segment_id=segment_id,
                job_id=job_id,
                number=1,
                token=1,
                worker=lease.worker,
                device=REUSED,
                started_at=db_now(),
                ended_at=db_now(),
                outcome=Event.SUCCEED.value,
            )
        )
        _insert_artifact(session, job_id, number, item.artifact)
        told = {"job_id": job_id, "segment_id": segment_id, "attempt": 1, "worker": lease.worker}
        append(session, Event.LEASE, **told)
        append(session, REUSED, **told, detail=f"the frames are those of {item.source}")
        append(session, Event.SUCCEED, **told)
    versions = {item.engine_version for item in reused.values()}
    (version,) = versions
    session.execute(update(JobRow).where(JobRow.id == job_id).values(engine_version=version))


def _refuse_a_second_version(session: Session, job_id: int, version: str | None) -> None:
    if version is None:
        return
    begun_by = session.scalar(select(JobRow.engine_version).where(JobRow.id == job_id))
    if begun_by not in (None, version):
        raise EngineChanged.between(begun_by, version)


def _insert_plan(session: Session, lease: Lease, plan: Sequence[PlannedSegment], queue: str) -> None:
    row = session.get_one(SegmentRow, lease.segment.id, populate_existing=True)
    shared: dict[str, Any] = {
        "job_id": row.job_id,
        "unhaste": row.unhaste,
        "due": row.due,
        "rank": row.rank,
        "held": row.held,
    }
    rows = [
        shared
        | {
            "kind": SegmentKind.RENDER,
            "number": number,
            "first_frame": part.first_frame,
            "frames": part.frames,
            "needs_carry": part.needs_carry,
            "part": None if part.part is None else part.part.as_json(),
            "content_key": part.content_key,
            "queue": queue,
            "state": SegmentState.WAITING,
        }
        for number, part in enumerate(plan)
    ]
    assemble = shared | {
        "kind": SegmentKind.ASSEMBLE,
        "number": 0,
        "first_frame": 0,
        "frames": 0,
        "needs_carry": False,
        "part": None,
        "content_key": None,
        "queue": row.queue,
        "state": SegmentState.WAITING,
    }
    session.execute(insert(SegmentRow), [*rows, assemble])
    session.execute(update(JobRow).where(JobRow.id == row.job_id).values(segments_total=len(rows)))
    owe(session, queue)


def release(ledger: Ledger, lease: Lease, decision: Decision, *, frames: int = 0, device_seconds: float = 0.0) -> None:
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
            frames=frames,
            device_seconds=device_seconds,
        )
        ripple(session, lease.segment.job_id, reason=decision.reason, failure=decision.failure)
        if to is SegmentState.QUEUED:
            owe(session, lease.segment.queue)

    ledger.write(story)


def close_attempt(
    session: Session,
    lease: Lease,
    event: Event,
    *,
    strike: bool = False,
    failure: str | None = None,
    reason: str | None = None,
    frames: int = 0,
    device_seconds: float = 0.0,
) -> None:
    """Close the open attempt of `lease`, append the history line and free the worker."""
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
            device_seconds=device_seconds,
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
        .values(ended_at=db_now(), outcome=event.value, failure="lost", reason=reason)
    )
    session.execute(
        update(WorkerRow).where(WorkerRow.name == gone, WorkerRow.segment_id == segment_id).values(segment_id=None)
    )
    append(session, event, job_id=job_id, segment_id=segment_id, attempt=number, worker=gone, detail=reason)
    ripple(session, job_id, reason=reason, failure="lost")
    if to is SegmentState.QUEUED:
        owe(session, row.queue)
    return True


class Standing:
    """What the ledger wants of a lease at this moment."""

    KEEP = "keep"
    LOST = "lost"
    CANCELLED = "cancelled"
    PAUSED = "paused"
    DRAIN = "drain"


def standing(ledger: Ledger, lease: Lease) -> str:
    """Whether to go on with this lease: one of Standing's words.  Asked at every chunk."""
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
