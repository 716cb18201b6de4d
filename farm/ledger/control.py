"""What people ask of jobs and workers: cancel, pause, resume, retry, priority, deadline, drain.

All of it is written here first; running workers read it at their next chunk.
"""

from __future__ import annotations

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from farm.errors import InputError, NotFound
from farm.ledger.history import append
from farm.ledger.intake import open_writer
from farm.ledger.leases import held_seconds
from farm.ledger.ripple import hold, owe, ready_all, ripple
from farm.ledger.store import Ledger, db_now
from farm.ledger.tables import NO_DEADLINE, ArtifactRow, AttemptRow, JobRow, SegmentRow, WorkerRow
from farm.states import (
    FINISHED,
    ArtifactKind,
    Event,
    JobState,
    SegmentKind,
    SegmentState,
    WorkerState,
    after,
    states_before,
)


def cancel(ledger: Ledger, job_id: int, *, reason: str = "cancelled by request") -> bool:
    """Cancel what is not finished of a job.  False if the job had ended already.  Raises NotFound."""

    def story(session: Session) -> bool:
        job = _job(session, job_id)
        if job.state in FINISHED:
            return False
        for state in states_before(Event.CANCEL):
            ended = session.execute(
                update(SegmentRow)
                .where(SegmentRow.job_id == job_id, SegmentRow.state == state)
                .values(
                    state=after(state, Event.CANCEL),
                    leased_by=None,
                    lease_until=None,
                    reason=reason,
                    finished_at=db_now(),
                )
                .returning(SegmentRow.id)
                .execution_options(synchronize_session=False)
            ).all()
            if state is SegmentState.LEASED and ended:
                ids = [segment_id for (segment_id,) in ended]
                closed = session.execute(
                    update(AttemptRow)
                    .where(AttemptRow.segment_id.in_(ids), AttemptRow.ended_at.is_(None))
                    .values(
                        ended_at=db_now(),
                        outcome=Event.CANCEL.value,
                        reason=reason,
                        device_seconds=held_seconds(db_now()),
                    )
                    .returning(AttemptRow.segment_id, AttemptRow.number, AttemptRow.worker)
                ).all()
                for segment_id, number, worker in closed:
                    append(session, Event.CANCEL, job_id=job_id, segment_id=segment_id, attempt=number, worker=worker)
                session.execute(update(WorkerRow).where(WorkerRow.segment_id.in_(ids)).values(segment_id=None))
        append(session, Event.CANCEL, job_id=job_id, detail=reason)
        ripple(session, job_id, reason=reason, failure="cancel")
        return True

    return ledger.write(story)


def pause(ledger: Ledger, job_id: int) -> bool:
    """Keep a job's open segments from being rendered.  False if there is nothing to pause.  Raises NotFound."""

    def story(session: Session) -> bool:
        job = _job(session, job_id)
        if job.state in FINISHED or job.paused:
            return False
        hold(session, job_id, held=True)
        session.execute(update(JobRow).where(JobRow.id == job_id).values(paused=True))
        append(session, "pause", job_id=job_id)
        return True

    return ledger.write(story)


def resume(ledger: Ledger, job_id: int) -> bool:
    """Undo `pause`.  False if the job was not paused.  Raises NotFound."""

    def story(session: Session) -> bool:
        job = _job(session, job_id)
        if not job.paused:
            return False
        hold(session, job_id, held=job.state in (JobState.FAILED, JobState.CANCELLED))
        session.execute(update(JobRow).where(JobRow.id == job_id).values(paused=False))
        append(session, "resume", job_id=job_id)
        _ring_for(session, job_id)
        return True

    return ledger.write(story)


def retry(ledger: Ledger, job_id: int, *, segment_number: int | None = None) -> int:
    """Put a job's failed and cancelled segments back into the queue; published work stays.

    With `segment_number` (counted from 0) only that render segment is put back.  Forgives the workers what they
    failed in this job.  Returns how many segments were put back.  Raises NotFound, and InputError when its working
    files were deleted since or another job is about to write its film.
    """

    def story(session: Session) -> int:
        job = _job(session, job_id)
        if (
            job.state is not JobState.SUCCEEDED
            and job.total_frames is not None
            and not _has_working_files(session, job_id)
        ):
            raise InputError(
                f"the working files of job {job_id} were deleted by `farm gc`; submit its row with --again"
            )
        if job.state in (JobState.FAILED, JobState.CANCELLED):
            _refuse_while_another_writes(session, job)
        put_back = 0
        for state in states_before(Event.REQUEUE):
            query = update(SegmentRow).where(SegmentRow.job_id == job_id, SegmentRow.state == state)
            if segment_number is not None:
                query = query.where(SegmentRow.kind == SegmentKind.RENDER, SegmentRow.number == segment_number)
            rows = session.execute(
                query.values(
                    state=after(state, Event.REQUEUE),
                    errors=0,
                    losses=0,
                    smaller=False,
                    not_before=0.0,
                    reason=None,
                    failure=None,
                    finished_at=None,
                    held=False,
                )
                .returning(SegmentRow.id)
                .execution_options(synchronize_session=False)
            ).all()
            put_back += len(rows)
        session.execute(update(AttemptRow).where(AttemptRow.job_id == job_id).values(strike=False))
        if put_back:
            append(session, Event.REQUEUE, job_id=job_id, detail=f"{put_back} segments")
            session.execute(update(JobRow).where(JobRow.id == job_id).values(paused=False))
            ready_all(session, job_id)
            # When only one of several failed segments was put back, the job stays failed and nobody may go on with it.
            became = ripple(session, job_id)
            hold(session, job_id, held=became in (JobState.FAILED, JobState.CANCELLED))
        _ring_for(session, job_id)  # also without a segment put back: the forgiven workers may take what waits
        return put_back

    return ledger.write(story)


def set_priority(ledger: Ledger, job_id: int, priority: int) -> None:
    """Raises NotFound."""

    def story(session: Session) -> None:
        _job(session, job_id)
        session.execute(update(SegmentRow).where(SegmentRow.job_id == job_id).values(unhaste=-priority))
        session.execute(update(JobRow).where(JobRow.id == job_id).values(priority=priority))
        append(session, "priority", job_id=job_id, detail=str(priority))

    ledger.write(story)


def set_deadline(ledger: Ledger, job_id: int, due: float | None) -> None:
    """`due` in seconds since 1970-01-01 UTC, None for no deadline.  Raises NotFound."""

    def story(session: Session) -> None:
        _job(session, job_id)
        value = NO_DEADLINE if due is None else due
        session.execute(update(SegmentRow).where(SegmentRow.job_id == job_id).values(due=value))
        session.execute(update(JobRow).where(JobRow.id == job_id).values(due=value))
        append(session, "deadline", job_id=job_id, detail=None if due is None else str(due))

    ledger.write(story)


def job_ids_of_batch(ledger: Ledger, batch_id: int) -> list[int]:
    with ledger.read() as session:
        return list(session.scalars(select(JobRow.id).where(JobRow.batch_id == batch_id).order_by(JobRow.id)))


def drain_worker(ledger: Ledger, name: str, *, now: bool = False) -> None:
    """Let a worker take nothing new; with `now` it also gives back what it holds.  Raises NotFound."""

    def story(session: Session) -> None:
        won = session.scalar(
            update(WorkerRow)
            .where(WorkerRow.name == name)
            .values(drain="now" if now else "finish")
            .returning(WorkerRow.name)
        )
        if won is None:
            raise NotFound(f"there is no worker {name!r}; `farm workers list` shows those there are")
        append(session, "drain", worker=name, detail="now" if now else "finish")

    ledger.write(story)


def resume_worker(ledger: Ledger, name: str) -> None:
    """Undo `drain_worker`, and forgive a sick worker.  Raises NotFound."""

    def story(session: Session) -> None:
        row = session.get(WorkerRow, name)
        if row is None:
            raise NotFound(f"there is no worker {name!r}; `farm workers list` shows those there are")
        row.drain = None
        row.forgiven_at = session.scalar(select(db_now())) or 0.0
        if row.state is WorkerState.SICK:
            row.state, row.reason = WorkerState.IDLE, None
        append(session, "resume", worker=name)
        owe(session, row.queue)

    ledger.write(story)


def _has_working_files(session: Session, job_id: int) -> bool:
    """Whether `farm gc`, which takes a job's oldest files first, has spared it."""
    oldest = (ArtifactKind.PORTRAIT, ArtifactKind.DRIVING)
    kept = select(func.count()).where(ArtifactRow.job_id == job_id, ArtifactRow.kind.in_(oldest))
    return session.scalar(kept) == len(oldest)


def _refuse_while_another_writes(session: Session, job: JobRow) -> None:
    """Two jobs that join their films at one path at once could publish each other's.  Raises InputError."""
    other = open_writer(session, [job.output], other_than=job.id)
    if other is not None:
        raise InputError(
            f"job {job.id} cannot be retried: job {other[0]} is about to write {job.output}; let it end or cancel it"
        )


def _job(session: Session, job_id: int) -> JobRow:
    """The job's row, locked as by `lock_job`: what follows must see every segment that a plan just added."""
    row = session.get(JobRow, job_id, with_for_update={"key_share": True})
    if row is None:
        raise NotFound(f"there is no job {job_id}; `farm jobs list` shows those there are")
    return row


def _ring_for(session: Session, job_id: int) -> None:
    queues = session.scalars(
        select(SegmentRow.queue).where(SegmentRow.job_id == job_id, SegmentRow.state == SegmentState.QUEUED).distinct()
    ).all()
    for queue in queues:
        owe(session, queue)
