"""The farm over time: who rendered what when, how busy it was, what films cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import case, exists, func, or_, select, text

from farm.ledger.presence import at_work
from farm.ledger.row_values import segment_value
from farm.ledger.store import Ledger
from farm.ledger.tables import CLAIMABLE, LEASED, AttemptRow, EventRow, JobRow, SegmentRow, WorkerRow
from farm.ledger.values import Segment
from farm.states import FINISHED, Event, JobState, SegmentKind


@dataclass(frozen=True, slots=True)
class Span:
    """One attempt on the timeline."""

    worker: str
    device: str
    job_id: int
    job_name: str
    kind: SegmentKind
    number: int
    attempt: int
    started_at: float
    ended_at: float | None  # None: it runs
    outcome: str | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class Moment:
    """The farm in one slice of time."""

    at: float
    open_jobs: int  # submitted and not finished at the slice's end
    busy: float  # devices at work, on average over the slice


@dataclass(frozen=True, slots=True)
class Cost:
    """What the rendering of a job took, failed attempts included."""

    device_seconds: float
    attempts: int
    failed_attempts: int
    by_device: Mapping[str, float]  # device-seconds of each device set


def timeline(
    ledger: Ledger, *, since: float, until: float, job_ids: Sequence[int] = (), limit: int = 2000
) -> list[Span]:
    """The attempts that touch this stretch of time, the newest `limit` of them, oldest first."""
    query = (
        select(AttemptRow, SegmentRow.kind, SegmentRow.number, JobRow.name)
        .join(SegmentRow, SegmentRow.id == AttemptRow.segment_id)
        .join(JobRow, JobRow.id == AttemptRow.job_id)
        .where(AttemptRow.started_at <= until, or_(AttemptRow.ended_at.is_(None), AttemptRow.ended_at >= since))
        .order_by(AttemptRow.id.desc())
        .limit(limit)
    )
    if job_ids:
        query = query.where(AttemptRow.job_id.in_(job_ids))
    with ledger.read() as session:
        found = [
            Span(
                row.worker,
                row.device,
                row.job_id,
                name,
                kind,
                number,
                row.number,
                row.started_at,
                row.ended_at,
                row.outcome,
                row.reason,
            )
            for row, kind, number, name in session.execute(query)
        ]
    return found[::-1]


def busyness(ledger: Ledger, *, since: float, until: float, slices: int = 96) -> list[Moment]:
    """How many jobs were open and how many devices at work, in equal slices of time."""
    width = (until - since) / slices
    open_at = [0] * slices
    busy = [0.0] * slices
    with ledger.read() as session:
        jobs = session.execute(
            select(JobRow.created_at, JobRow.finished_at).where(
                JobRow.created_at <= until, or_(JobRow.finished_at.is_(None), JobRow.finished_at >= since)
            )
        ).all()
        attempts = session.execute(
            select(AttemptRow.started_at, AttemptRow.ended_at).where(
                AttemptRow.started_at <= until, or_(AttemptRow.ended_at.is_(None), AttemptRow.ended_at >= since)
            )
        ).all()
    for created, finished in jobs:
        first = max(0, int((created - since) // width))
        last = slices if finished is None else int((finished - since) // width)
        for index in range(first, min(last, slices)):
            open_at[index] += 1
    for started, ended in attempts:
        begin, end = max(started, since), min(ended if ended is not None else until, until)
        index = int((begin - since) // width)
        while begin < end and index < slices:
            edge = min(end, since + (index + 1) * width)
            busy[index] += (edge - begin) / width
            begin, index = edge, index + 1
    return [Moment(since + (i + 1) * width, open_at[i], busy[i]) for i in range(slices)]


def costs(ledger: Ledger, job_ids: Sequence[int]) -> dict[int, Cost]:
    """What rendering took for each of these jobs.  Prepare and assemble use no device and count nothing."""
    failed = func.sum(case((AttemptRow.outcome.in_(("retry", "fail", "expire")), 1), else_=0))
    with ledger.read() as session:
        rows = session.execute(
            select(AttemptRow.job_id, AttemptRow.device, func.sum(AttemptRow.device_seconds), func.count(), failed)
            .join(SegmentRow, SegmentRow.id == AttemptRow.segment_id)
            .where(AttemptRow.job_id.in_(job_ids), SegmentRow.kind == SegmentKind.RENDER)
            .group_by(AttemptRow.job_id, AttemptRow.device)
        )
        found: dict[int, Cost] = {}
        for job_id, device, seconds, count, bad in rows:
            sofar = found.get(job_id, Cost(0.0, 0, 0, {}))
            spent = float(seconds or 0.0)
            found[job_id] = Cost(
                sofar.device_seconds + spent,
                sofar.attempts + count,
                sofar.failed_attempts + int(bad or 0),
                {**sofar.by_device, device: spent},
            )
        return found


def counts_by_state(ledger: Ledger, *, owner: str | None = None) -> dict[str, int]:
    """How many jobs are in each state, as people see it."""
    query = select(JobRow.state, JobRow.paused, func.count()).group_by(JobRow.state, JobRow.paused)
    if owner is not None:
        query = query.where(JobRow.owner == owner)
    shown: dict[str, int] = {}
    with ledger.read() as session:
        for state, paused, count in session.execute(query):
            word = "paused" if paused and state not in FINISHED else state.value
            shown[word] = shown.get(word, 0) + count
    return shown


def active_job_ids(ledger: Ledger, *, limit: int = 200) -> list[int]:
    """Jobs with a segment under lease."""
    with ledger.read() as session:
        return list(dict.fromkeys(session.scalars(select(SegmentRow.job_id).where(text(LEASED)))))[:limit]


def last_event_id(ledger: Ledger) -> int:
    with ledger.read() as session:
        return session.scalar(select(func.max(EventRow.id))) or 0


def pulse(ledger: Ledger) -> tuple[int, int]:
    """Another one after every event of the history, and when a running segment tells of new frames.

    Where it is the same as before, jobs look the same as before, apart from what the clock alone changes.
    """
    newest = select(func.max(EventRow.id)).scalar_subquery()
    frames = select(func.sum(SegmentRow.frames_now)).where(text(LEASED)).scalar_subquery()
    with ledger.read() as session:
        event_id, frames_now = session.execute(select(newest, frames)).one()
    return event_id or 0, int(frames_now or 0)


def queue_has_worker(ledger: Ledger, queue: str) -> bool:
    """Whether a worker that beats could take work of this queue."""
    with ledger.read() as session:
        return bool(session.scalar(select(exists().where(WorkerRow.queue == queue, at_work()))))


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many observations were at most each bound (the last bound is infinity), and their sum."""

    counts: tuple[int, ...]
    total: float


@dataclass(frozen=True, slots=True)
class Figures:
    """What the metrics say of the whole ledger."""

    jobs: dict[tuple[str, str], int]  # by model and state
    queued: dict[str, int]  # by queue
    attempts: dict[tuple[str, str, str], int]  # by kind, outcome and failure
    device_seconds: dict[tuple[str, str], float]  # by model and device
    frames: dict[str, int]  # published, by model
    waits: Histogram  # from being submitted to being begun
    renders: dict[str, Histogram]  # seconds of one published segment, by model
    speeds: dict[str, float]  # frames per device-second, by model
    film_seconds: dict[str, float]  # length of published films, by model


def figures(ledger: Ledger, bounds: Sequence[float]) -> Figures:
    """Everything that Prometheus is told, in a few aggregate queries."""
    wait = JobRow.started_at - JobRow.created_at
    took = AttemptRow.ended_at - AttemptRow.started_at
    with ledger.read() as session:
        jobs = session.execute(select(JobRow.model, JobRow.state, func.count()).group_by(JobRow.model, JobRow.state))
        by_state = {(model, state.value): count for model, state, count in jobs}
        queued = session.execute(
            select(SegmentRow.queue, func.count()).where(text(CLAIMABLE)).group_by(SegmentRow.queue)
        )
        depth = {queue: count for queue, count in queued}
        ended = session.execute(
            select(SegmentRow.kind, AttemptRow.outcome, AttemptRow.failure, func.count())
            .join(SegmentRow, SegmentRow.id == AttemptRow.segment_id)
            .where(AttemptRow.outcome.is_not(None))
            .group_by(SegmentRow.kind, AttemptRow.outcome, AttemptRow.failure)
        )
        attempts = {(kind.value, outcome or "", failure or ""): count for kind, outcome, failure, count in ended}
        spent = session.execute(
            select(JobRow.model, AttemptRow.device, func.sum(AttemptRow.device_seconds))
            .join(JobRow, JobRow.id == AttemptRow.job_id)
            .join(SegmentRow, SegmentRow.id == AttemptRow.segment_id)
            .where(SegmentRow.kind == SegmentKind.RENDER)
            .group_by(JobRow.model, AttemptRow.device)
        )
        seconds = {(model, device): float(value or 0.0) for model, device, value in spent}
        waited = session.execute(
            select(*[func.sum(case((wait <= b, 1), else_=0)) for b in bounds], func.count(wait), func.sum(wait))
        ).one()
        rendered = session.execute(
            select(
                JobRow.model,
                func.sum(AttemptRow.frames),
                func.sum(AttemptRow.device_seconds),
                *[func.sum(case((took <= b, 1), else_=0)) for b in bounds],
                func.count(took),
                func.sum(took),
            )
            .join(JobRow, JobRow.id == AttemptRow.job_id)
            .where(AttemptRow.outcome == Event.SUCCEED.value, AttemptRow.frames > 0)
            .group_by(JobRow.model)
        ).all()
        films = session.execute(
            select(JobRow.model, func.sum(JobRow.audio_seconds))
            .where(JobRow.state == JobState.SUCCEEDED)
            .group_by(JobRow.model)
        )
        film_seconds = {model: float(value or 0.0) for model, value in films}
    return Figures(
        jobs=by_state,
        queued=depth,
        attempts=attempts,
        device_seconds=seconds,
        frames={row[0]: int(row[1] or 0) for row in rendered},
        waits=Histogram(tuple(int(n or 0) for n in waited[:-1]), float(waited[-1] or 0.0)),
        renders={row[0]: Histogram(tuple(int(n or 0) for n in row[3:-1]), float(row[-1] or 0.0)) for row in rendered},
        speeds={row[0]: float(row[1]) / float(row[2]) for row in rendered if row[1] and row[2]},
        film_seconds=film_seconds,
    )


def segments_by_id(ledger: Ledger, segment_ids: Sequence[int]) -> dict[int, Segment]:
    if not segment_ids:
        return {}
    with ledger.read() as session:
        rows = session.scalars(select(SegmentRow).where(SegmentRow.id.in_(set(segment_ids))))
        return {row.id: segment_value(row) for row in rows}


def owned_by(ledger: Ledger, owner: str, job_ids: Sequence[int]) -> set[int]:
    """Which of these jobs are the owner's."""
    with ledger.read() as session:
        return set(session.scalars(select(JobRow.id).where(JobRow.id.in_(job_ids), JobRow.owner == owner)))
