"""Reading the ledger: every question that people, pages and workers ask of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, case, exists, func, or_, select, text
from sqlalchemy.orm import Session

from farm.errors import NotFound
from farm.ledger.presence import at_work, is_alive, is_at_work
from farm.ledger.row_values import artifact_value, attempt_value, job_value, segment_value, worker_value
from farm.ledger.store import Ledger, db_now
from farm.ledger.tables import (
    CLAIMABLE,
    LEASED,
    ArtifactRow,
    AttemptRow,
    BatchRow,
    EventRow,
    JobRow,
    SegmentRow,
    WorkerRow,
)
from farm.ledger.values import Artifact, Attempt, Batch, Job, LedgerEvent, Segment, Worker
from farm.retry import STRIKES_PER_JOB
from farm.states import (
    FINISHED,
    OPEN_STATES,
    ArtifactKind,
    Event,
    JobState,
    SegmentKind,
    SegmentState,
    WorkerState,
)

PAUSED, OPEN = "paused", "open"  # what no job's state is, and people look for
SHOWN_STATES = (*(state.value for state in JobState), PAUSED, OPEN)


def job(ledger: Ledger, job_id: int) -> Job:
    """Raises NotFound."""
    with ledger.read() as session:
        row = session.get(JobRow, job_id)
        if row is None:
            raise NotFound(f"there is no job {job_id}; `farm jobs list` shows those there are")
        return job_value(row)


def jobs(
    ledger: Ledger,
    *,
    states: Sequence[JobState] = (),
    shown_as: Sequence[str] = (),
    batch_id: int | None = None,
    owner: str | None = None,
    ids: Sequence[int] | None = None,
    name_contains: str | None = None,
    limit: int | None = 100,
    before_id: int | None = None,
) -> list[Job]:
    """Jobs, newest first; of `ids` only those, which may be none.

    `shown_as` are words of `SHOWN_STATES`, as people see them: a paused job is `paused` and nothing else but `open`.
    """
    query = select(JobRow).order_by(JobRow.id.desc())
    if states:
        query = query.where(JobRow.state.in_(states))
    if shown_as:
        query = query.where(or_(*map(_is_shown_as, shown_as)))
    if batch_id is not None:
        query = query.where(JobRow.batch_id == batch_id)
    if owner is not None:
        query = query.where(JobRow.owner == owner)
    if ids is not None:
        query = query.where(JobRow.id.in_(ids))
    if name_contains:
        query = query.where(JobRow.name.contains(name_contains, autoescape=True))
    if before_id is not None:
        query = query.where(JobRow.id < before_id)
    if limit is not None:
        query = query.limit(limit)
    with ledger.read() as session:
        return [job_value(row) for row in session.scalars(query)]


def _is_shown_as(word: str) -> ColumnElement[bool]:
    if word == PAUSED:
        return and_(JobRow.state.in_(OPEN_STATES), JobRow.paused)
    if word == OPEN:
        return JobRow.state.in_(OPEN_STATES)
    state = JobState(word)
    return JobRow.state == state if state in FINISHED else and_(JobRow.state == state, ~JobRow.paused)


def segments(ledger: Ledger, job_id: int) -> list[Segment]:
    """The job's segments in the order in which they come: prepare, render 0…, assemble."""
    order = case({kind.value: place for place, kind in enumerate(SegmentKind)}, value=SegmentRow.kind)
    with ledger.read() as session:
        rows = session.scalars(
            select(SegmentRow).where(SegmentRow.job_id == job_id).order_by(order, SegmentRow.number)
        ).all()
        return [segment_value(row) for row in rows]


def attempts(ledger: Ledger, job_id: int) -> list[Attempt]:
    with ledger.read() as session:
        rows = session.scalars(select(AttemptRow).where(AttemptRow.job_id == job_id).order_by(AttemptRow.id)).all()
        return [attempt_value(row) for row in rows]


def artifacts(ledger: Ledger, job_id: int, kind: ArtifactKind | None = None) -> list[Artifact]:
    query = select(ArtifactRow).where(ArtifactRow.job_id == job_id).order_by(ArtifactRow.segment_number)
    if kind is not None:
        query = query.where(ArtifactRow.kind == kind)
    with ledger.read() as session:
        return [artifact_value(row) for row in session.scalars(query)]


def artifact(ledger: Ledger, job_id: int, kind: ArtifactKind) -> Artifact:
    """The one artifact of a kind.  Raises NotFound."""
    found = artifacts(ledger, job_id, kind)
    if not found:
        raise NotFound(f"job {job_id} has no {kind} yet")
    return found[-1]


def newest_places(ledger: Ledger, *, limit: int = 5) -> list[str]:
    """Where the files lie that were published last, films aside: those go where their rows say."""
    query = select(ArtifactRow.path).where(ArtifactRow.kind != ArtifactKind.FILM)
    with ledger.read() as session:
        return list(session.scalars(query.order_by(ArtifactRow.id.desc()).limit(limit)))


def films(ledger: Ledger, job_ids: Iterable[int]) -> dict[int, Artifact]:
    """The published film of each job that has one."""
    with ledger.read() as session:
        rows = session.scalars(
            select(ArtifactRow).where(ArtifactRow.job_id.in_(list(job_ids)), ArtifactRow.kind == ArtifactKind.FILM)
        ).all()
        return {row.job_id: artifact_value(row) for row in rows}


def batch(ledger: Ledger, batch_id: int) -> Batch:
    """Raises NotFound."""
    with ledger.read() as session:
        row = session.get(BatchRow, batch_id)
        if row is None:
            raise NotFound(f"there is no batch {batch_id}; `farm batches list` shows those there are")
        return _batch_value(session, row)


def batches(
    ledger: Ledger, *, owner: str | None = None, unfinished: bool = False, limit: int | None = 50
) -> list[Batch]:
    """Batches, newest first: all, or only one owner's, or only those with a job that has not ended."""
    query = select(BatchRow).order_by(BatchRow.id.desc()).limit(limit)
    if owner is not None:
        query = query.where(BatchRow.owner == owner)
    if unfinished:
        query = query.where(BatchRow.id.in_(select(JobRow.batch_id).where(JobRow.state.in_(OPEN_STATES))))
    with ledger.read() as session:
        rows = session.scalars(query).all()
        return [_batch_value(session, row) for row in rows]


def _batch_value(session: Session, row: BatchRow) -> Batch:
    counted = session.execute(
        select(JobRow.state, JobRow.paused, func.count())
        .where(JobRow.batch_id == row.id)
        .group_by(JobRow.state, JobRow.paused)
    ).all()
    shown: dict[str, int] = {}
    for state, paused, count in counted:
        word = "paused" if paused and state not in FINISHED else state.value
        shown[word] = shown.get(word, 0) + count
    return Batch(
        row.id, row.key, row.name, row.source, row.owner, row.created_at, shown, row.budget, row.budget_spent_at
    )


def events(
    ledger: Ledger, *, job_id: int | None = None, after_id: int = 0, limit: int = 500, newest: bool = False
) -> list[LedgerEvent]:
    """The history, oldest first; `newest` takes the last `limit` lines instead of the first."""
    query = select(EventRow).where(EventRow.id > after_id).limit(limit)
    if job_id is not None:
        query = query.where(EventRow.job_id == job_id)
    query = query.order_by(EventRow.id.desc() if newest else EventRow.id)
    with ledger.read() as session:
        rows = list(session.scalars(query))
        if newest:
            rows.reverse()
        return [
            LedgerEvent(r.id, r.at, r.event, r.batch_id, r.job_id, r.segment_id, r.attempt, r.worker, r.detail)
            for r in rows
        ]


def workers(ledger: Ledger) -> list[Worker]:
    with ledger.read() as session:
        return [worker_value(row) for row in session.scalars(select(WorkerRow).order_by(WorkerRow.name))]


def workers_at_work(ledger: Ledger, queue: str) -> list[Worker]:
    """A queue's workers that take work, be they busy or loading."""
    query = select(WorkerRow).where(WorkerRow.queue == queue, at_work()).order_by(WorkerRow.name)
    with ledger.read() as session:
        return [worker_value(row) for row in session.scalars(query)]


def running(ledger: Ledger, job_ids: Sequence[int] = ()) -> list[Segment]:
    """Segments under lease now."""
    query = select(SegmentRow).where(text(LEASED))
    if job_ids:
        query = query.where(SegmentRow.job_id.in_(job_ids))
    with ledger.read() as session:
        return [segment_value(row) for row in session.scalars(query)]


def queue_depths(ledger: Ledger) -> dict[str, int]:
    """How many segments wait in each queue for a worker."""
    with ledger.read() as session:
        rows = session.execute(
            select(SegmentRow.queue, func.count()).where(text(CLAIMABLE)).group_by(SegmentRow.queue)
        ).all()
        return {queue: count for queue, count in rows}


def ringable_queues(ledger: Ledger, older_than_seconds: float) -> list[str]:
    """Queues in which something claimable has waited longer than this."""
    with ledger.read() as session:
        queues = session.scalars(select(SegmentRow.queue).where(text(CLAIMABLE)).distinct()).all()
        # One question a queue, which its first segment answers, in place of one that looks at all that waits.
        waits = select(SegmentRow.id).where(
            text(CLAIMABLE),
            SegmentRow.not_before <= db_now(),
            func.coalesce(SegmentRow.queued_at, 0.0) < db_now() - older_than_seconds,
        )
        return [
            queue for queue in queues if session.scalar(waits.where(SegmentRow.queue == queue).limit(1)) is not None
        ]


@dataclass(frozen=True, slots=True)
class Stuck:
    """Work that no worker can take, and why."""

    queue: str
    segments: int
    job_ids: tuple[int, ...]
    reason: str


def stuck(ledger: Ledger, *, sample: int = 5) -> list[Stuck]:
    """Queues with work that no worker can take at present, each with a sentence that says why.

    At most `sample` jobs are named for each queue.
    """
    found: list[Stuck] = []
    with ledger.read() as session:
        waiting = session.execute(
            select(SegmentRow.queue, func.count())
            .where(text(CLAIMABLE))
            .group_by(SegmentRow.queue)
            .order_by(SegmentRow.queue)
        ).all()
        now = session.scalar(select(db_now())) or 0.0
        for queue, count in waiting:
            rows = session.scalars(select(WorkerRow).where(WorkerRow.queue == queue).order_by(WorkerRow.name)).all()
            can = [row for row in rows if is_at_work(row, now) and not (row.reason and row.state is WorkerState.IDLE)]
            if can:
                blocked = _blocked_jobs(session, queue, [row.name for row in can])
                for job_id, n in blocked:
                    names = ", ".join(row.name for row in can)
                    found.append(
                        Stuck(
                            queue,
                            n,
                            (job_id,),
                            f"every worker of queue {queue} ({names}) failed job {job_id} too often; "
                            f"`farm jobs retry {job_id}` forgives them",
                        )
                    )
                continue
            ids = session.scalars(
                select(SegmentRow.job_id)
                .where(SegmentRow.queue == queue, text(CLAIMABLE))
                .distinct()
                .order_by(SegmentRow.job_id)
                .limit(sample)
            ).all()
            found.append(Stuck(queue, count, tuple(ids), _why_nobody(queue, rows, now)))
    return found


def _blocked_jobs(session: Session, queue: str, names: list[str]) -> list[tuple[int, int]]:
    strikes = (
        select(AttemptRow.job_id, AttemptRow.worker)
        .where(AttemptRow.strike, AttemptRow.worker.in_(names))
        .group_by(AttemptRow.job_id, AttemptRow.worker)
        .having(func.count() >= STRIKES_PER_JOB)
        .subquery()
    )
    rows = session.execute(
        select(SegmentRow.job_id, func.count(SegmentRow.id.distinct()), func.count(strikes.c.worker.distinct()))
        .join(strikes, strikes.c.job_id == SegmentRow.job_id)
        .where(SegmentRow.queue == queue, SegmentRow.state == SegmentState.QUEUED, ~SegmentRow.held)
        .group_by(SegmentRow.job_id)
        .order_by(SegmentRow.job_id)
    ).all()
    return [(job_id, count) for job_id, count, workers_out in rows if workers_out >= len(names)]


def _why_nobody(queue: str, rows: Sequence[WorkerRow], now: float) -> str:
    if not rows:
        return f"no worker serves queue {queue}; name one in workers.toml if there is none, and run `farm up`"
    said: list[str] = []
    for row in rows:
        if not is_alive(row, now):
            said.append(f"{row.name} is not running")
        elif row.drain is not None:
            said.append(f"{row.name} is draining (`farm workers resume {row.name}`)")
        elif row.state is WorkerState.SICK:
            said.append(f"{row.name} is sick: {row.reason} (`farm workers resume {row.name}`)")
        else:
            said.append(f"{row.name} takes nothing: {row.reason}")
    return f"no worker can take work of queue {queue}: " + "; ".join(said)


def render_speed(ledger: Ledger, model: str, *, last: int = 50) -> float | None:
    """Frames per device-second over the newest published segments of a model; None without history."""
    newest = (
        select(AttemptRow.frames, AttemptRow.device_seconds)
        .join(JobRow, JobRow.id == AttemptRow.job_id)
        .where(JobRow.model == model, AttemptRow.outcome == Event.SUCCEED.value, AttemptRow.frames > 0)
        .order_by(AttemptRow.id.desc())
        .limit(last)
        .subquery()
    )
    with ledger.read() as session:
        frames, seconds = session.execute(select(func.sum(newest.c.frames), func.sum(newest.c.device_seconds))).one()
    return float(frames) / float(seconds) if frames and seconds else None


def unfinished(ledger: Ledger, job_ids: Sequence[int]) -> int:
    """How many of these jobs have not ended."""
    with ledger.read() as session:
        return (
            session.scalar(select(func.count()).where(JobRow.id.in_(job_ids), JobRow.state.not_in(list(FINISHED)))) or 0
        )


def has_open_work(ledger: Ledger) -> bool:
    """Whether any job of the ledger can still move."""
    with ledger.read() as session:
        return bool(session.scalar(select(exists().where(JobRow.state.not_in(list(FINISHED)), ~JobRow.paused))))


def overdue_workers(ledger: Ledger, machine: str, *, before: float | None = None) -> list[Worker]:
    """Workers of a machine that work on a lease which ran out, or ran out `before` an instant of the ledger's clock."""
    with ledger.read() as session:
        rows = session.scalars(
            select(WorkerRow)
            .join(SegmentRow, SegmentRow.leased_by == WorkerRow.name)
            .where(
                WorkerRow.machine == machine,
                # A claim whose answer was lost leaves a lease that its worker knows nothing of.
                WorkerRow.segment_id == SegmentRow.id,
                text(LEASED),
                SegmentRow.lease_until < (db_now() if before is None else before),
            )
        ).all()
        return [worker_value(row) for row in rows]
