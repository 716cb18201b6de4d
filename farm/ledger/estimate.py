"""When films will be there, from what the ledger has seen; and how wrong such estimates were."""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from farm.errors import FarmError
from farm.ledger.presence import at_work
from farm.ledger.store import Ledger
from farm.ledger.tables import AttemptRow, JobRow, SegmentRow, WorkerRow
from farm.ledger.workload import Look, Portion, portions
from farm.models import load_model
from farm.states import Continuity, Event, JobState, SegmentKind

FILMS = 10  # by how many finished films the error is judged
SEGMENTS = 50  # how many of the newest segments a speed is taken from
LOOK_BACK = 50_000  # attempts, and films: an older history is not searched for a model that it may not know at all


@dataclass(frozen=True, slots=True)
class Work:
    """What one queue still has to render of one model."""

    queue: str
    model: str
    jobs: int
    film_seconds: float
    seconds: float | None  # that one worker would take for it; None while no speed is known


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds until the films are there.  What has no history, or is paused, has no estimate."""

    jobs: dict[int, float]  # of many open jobs only those of the batches that were asked for
    batches: dict[int, float]  # until the last film of the batch
    error: float | None  # median of |estimated - needed| / needed over the last films; None without history
    films: int  # how many films that is
    work: list[Work]


def estimate(ledger: Ledger, *, batches: Collection[int] = ()) -> Estimate:
    """The open jobs one after another in the order of the claim, on as many workers as each queue has now.

    A film with carried state is rendered by one worker at a time; the segments of others are spread over all.  Of more
    open jobs than workload.FEW, those of `batches` are told one by one and the others by their batch.
    """
    with ledger.read() as session:
        crew = _crew(session)
        open_jobs = portions(session, batches)
        speeds = _Speeds(session)
        ends = {model: _seconds_to_end(session, model) for model in {portion.look[0] for portion in open_jobs}}
        free: dict[str, list[float]] = {}
        jobs: dict[int, float] = {}
        until: dict[int, float] = {}
        unknown: set[int] = set()
        for portion in open_jobs:
            per_frame = speeds.seconds_per_frame(portion.look)
            if per_frame is None:
                unknown.add(portion.batch_id)
                continue
            model, preset, _, _ = portion.look
            queue = speeds.queue_of(model, preset)
            workers = free.setdefault(queue, [0.0] * max(1, crew.get(queue, 0)))
            at_once = portion.jobs if portion.continuity is Continuity.CARRY else len(workers)
            done = _lay(workers, portion.frames * per_frame, at_once) + ends[model] * portion.longest
            if portion.job_id is not None:
                jobs[portion.job_id] = done
            until[portion.batch_id] = max(until.get(portion.batch_id, 0.0), done)
        error, films = _error(session)
        work = _work_of(open_jobs, speeds)
    return Estimate(jobs, {batch: s for batch, s in until.items() if batch not in unknown}, error, films, work)


def queue_work(ledger: Ledger) -> list[Work]:
    """What there is to render in each queue, by model: the signal that more or fewer workers are wanted."""
    with ledger.read() as session:
        return _work_of(portions(session), _Speeds(session))


def _work_of(open_jobs: Sequence[Portion], speeds: _Speeds) -> list[Work]:
    told: dict[tuple[str, str], Work] = {}
    for portion in open_jobs:
        model, preset, _, _ = portion.look
        key = (speeds.queue_of(model, preset), model)
        per_frame = speeds.seconds_per_frame(portion.look)
        before = told.get(key, Work(*key, 0, 0.0, 0.0))
        told[key] = Work(
            *key,
            before.jobs + portion.jobs,
            before.film_seconds + portion.film_seconds,
            None if before.seconds is None or per_frame is None else before.seconds + portion.frames * per_frame,
        )
    return [told[key] for key in sorted(told)]


def _lay(free: list[float], work: float, at_once: int) -> float:
    """Lay work of `at_once` equal parts on the workers that are free first.  Returns when its last part is done.

    `free` is a heap of the seconds at which each worker is free.
    """
    done = 0.0
    if at_once <= len(free):
        for _ in range(at_once):
            done = max(done, free[0] + work / at_once)
            heapq.heapreplace(free, free[0] + work / at_once)
        return done
    # More parts than workers: these end nearly together, so the work is poured in like water.
    free.sort()
    for count in range(len(free), 0, -1):
        level = (sum(free[:count]) + work) / count
        if level >= free[count - 1]:
            break
    free[:count] = [level] * count
    return level


def _crew(session: Session) -> dict[str, int]:
    """How many workers each queue has now."""
    rows = session.execute(select(WorkerRow.queue, func.count()).where(at_work()).group_by(WorkerRow.queue))
    return {queue: count for queue, count in rows}


class _Speeds:
    """What the ledger knows of each model's speed, asked once for each look."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._of_look: dict[Look, float | None] = {}
        self._of_model: dict[str, float | None] = {}
        self._queues: dict[tuple[str, str], str] = {}

    def seconds_per_frame(self, look: Look) -> float | None:
        """Of one worker; of the model where nothing that looks alike was rendered; None for a model without history."""
        model = look[0]
        if model not in self._of_model:
            self._of_model[model] = _mean_of_newest(self._session, JobRow.model == model)
        if self._of_model[model] is None:
            return None
        if look not in self._of_look:
            alike = _mean_of_newest(self._session, *_looks_like(look))
            self._of_look[look] = alike or self._of_model[model]
        return self._of_look[look]

    def queue_of(self, model: str, preset: str) -> str:
        if (model, preset) not in self._queues:
            self._queues[model, preset] = _queue_of(model, preset)
        return self._queues[model, preset]


def _queue_of(model: str, preset: str) -> str:
    try:
        return load_model(model).queue_for(preset)
    except FarmError:
        return model  # the model's file is gone; its jobs still wait for somebody


def pace(ledger: Ledger, model: str) -> float | None:
    """Frames that one worker lately rendered of this model in a second; None if it never did."""
    with ledger.read() as session:
        seconds = _mean_of_newest(session, JobRow.model == model)
    return 1.0 / seconds if seconds else None


def _looks_like(look: Look) -> tuple[ColumnElement[bool], ...]:
    model, preset, width, height = look
    return (JobRow.model == model, JobRow.preset == preset, JobRow.width == width, JobRow.height == height)


def _mean_of_newest(session: Session, *where: ColumnElement[bool]) -> float | None:
    newest = (
        select(AttemptRow.frames.label("frames"), (AttemptRow.ended_at - AttemptRow.started_at).label("seconds"))
        .join(JobRow, JobRow.id == AttemptRow.job_id)
        .where(
            AttemptRow.id > (session.scalar(select(func.max(AttemptRow.id))) or 0) - LOOK_BACK,
            AttemptRow.outcome == Event.SUCCEED.value,
            AttemptRow.frames > 0,
            *where,
        )
        .order_by(AttemptRow.id.desc())
        .limit(SEGMENTS)
        .subquery()
    )
    frames, seconds = session.execute(select(func.sum(newest.c.frames), func.sum(newest.c.seconds))).one()
    return float(seconds) / float(frames) if frames and seconds else None


def _seconds_to_end(session: Session, model: str) -> float:
    """What assembling takes for each second of sound, of the model's newest films; 0 without history."""
    done = (
        select(JobRow.id, JobRow.model, JobRow.audio_seconds)
        .where(JobRow.state == JobState.SUCCEEDED)
        .order_by(JobRow.id.desc())
        .limit(LOOK_BACK)
        .subquery()
    )
    films = select(done.c.id, done.c.audio_seconds).where(done.c.model == model).limit(FILMS).subquery()
    rows = session.execute(
        select(AttemptRow.ended_at - AttemptRow.started_at, films.c.audio_seconds)
        .join(films, films.c.id == AttemptRow.job_id)
        .join(SegmentRow, SegmentRow.id == AttemptRow.segment_id)
        .where(SegmentRow.kind == SegmentKind.ASSEMBLE, AttemptRow.outcome == Event.SUCCEED.value)
    ).all()
    shares = [seconds / audio for seconds, audio in rows if audio and seconds is not None]
    return statistics.median(shares) if shares else 0.0


def _error(session: Session) -> tuple[float | None, int]:
    """Each of the last films estimated with what was known before its first frame, against what it took."""
    films: Sequence[JobRow] = session.scalars(
        select(JobRow).where(JobRow.state == JobState.SUCCEEDED).order_by(JobRow.id.desc()).limit(FILMS)
    ).all()
    misses: list[float] = []
    for film in films:
        began, took = session.execute(
            select(func.min(AttemptRow.started_at), func.sum(AttemptRow.ended_at - AttemptRow.started_at)).where(
                AttemptRow.job_id == film.id, AttemptRow.outcome == Event.SUCCEED.value, AttemptRow.frames > 0
            )
        ).one()
        if not took or not film.total_frames:
            continue
        earlier = AttemptRow.ended_at < began
        alike = _looks_like((film.model, film.preset, film.width, film.height))
        pace = _mean_of_newest(session, *alike, earlier) or _mean_of_newest(session, alike[0], earlier)
        if pace is not None:
            misses.append(abs(pace * film.total_frames - took) / took)
    return (statistics.median(misses) if misses else None), len(misses)
