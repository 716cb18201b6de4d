"""When films will be there, from what the ledger has seen; and how wrong such estimates were."""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, func, select, text
from sqlalchemy.orm import Session

from farm.errors import FarmError
from farm.ledger.overview import ALIVE_SECONDS
from farm.ledger.store import Ledger, db_now
from farm.ledger.tables import LEASED, AttemptRow, JobRow, SegmentRow, WorkerRow
from farm.models import load_model
from farm.states import FINISHED, Continuity, JobState, SegmentKind, WorkerState

FILMS = 10  # by how many finished films the error is judged
SEGMENTS = 50  # how many of the newest segments a speed is taken from
_Look = tuple[str, str, int, int]  # model, preset, width, height: what decides the speed


@dataclass(frozen=True, slots=True)
class Forecast:
    """Seconds until the films are there.  What has no history, or is paused, has no estimate."""

    jobs: dict[int, float]
    batches: dict[int, float]  # until the last film of the batch
    error: float | None  # median of |estimated - needed| / needed over the last films; None without history
    films: int  # how many films that is


def forecast(ledger: Ledger) -> Forecast:
    """The open jobs one after another in the order of the claim, on as many workers as each queue has now.

    A film with carried state is rendered by one worker at a time; the segments of others are spread over all.
    """
    with ledger.read() as session:
        now = session.scalar(select(db_now())) or 0.0
        crew: dict[str, int] = {
            queue: count
            for queue, count in session.execute(
                select(WorkerRow.queue, func.count())
                .where(
                    WorkerRow.beat_at > now - ALIVE_SECONDS,
                    WorkerRow.drain.is_(None),
                    WorkerRow.state.in_((WorkerState.IDLE, WorkerState.RENDERING, WorkerState.LOADING)),
                )
                .group_by(WorkerRow.queue)
            )
        }
        rows = session.execute(
            select(
                JobRow.id,
                JobRow.batch_id,
                JobRow.model,
                JobRow.preset,
                JobRow.width,
                JobRow.height,
                JobRow.continuity,
                JobRow.audio_seconds,
                JobRow.fps_num,
                JobRow.fps_den,
                JobRow.total_frames,
                JobRow.frames_done,
            )
            .where(JobRow.state.not_in(list(FINISHED)), ~JobRow.paused)
            .order_by(JobRow.priority.desc(), JobRow.due, JobRow.id)
        ).all()
        running: dict[int, int] = {
            job_id: int(frames)
            for job_id, frames in session.execute(
                select(SegmentRow.job_id, func.sum(SegmentRow.frames_now))
                .where(text(LEASED), SegmentRow.kind == SegmentKind.RENDER)
                .group_by(SegmentRow.job_id)
            )
        }
        paces: dict[_Look, float | None] = {}
        ends = {model: _seconds_to_end(session, model) for model in {row.model for row in rows}}
        queues: dict[tuple[str, str], str] = {}
        free: dict[str, list[float]] = {}
        jobs: dict[int, float] = {}
        batches: dict[int, float] = {}
        unknown: set[int] = set()
        for row in rows:
            look: _Look = (row.model, row.preset, row.width, row.height)
            if look not in paces:
                paces[look] = _seconds_per_frame(session, look, before=None)
            pace = paces[look]
            if pace is None:
                unknown.add(row.batch_id)
                continue
            total = row.total_frames or round(row.audio_seconds * row.fps_num / row.fps_den)
            left = max(0, total - row.frames_done - running.get(row.id, 0)) * pace
            if (row.model, row.preset) not in queues:
                queues[row.model, row.preset] = _queue_of(row.model, row.preset)
            queue = queues[row.model, row.preset]
            workers = free.setdefault(queue, [0.0] * max(1, crew.get(queue, 0)))
            parts = 1 if row.continuity is Continuity.CARRY else len(workers)
            done = 0.0
            for _ in range(parts):
                end = heapq.heappop(workers) + left / parts
                heapq.heappush(workers, end)
                done = max(done, end)
            jobs[row.id] = done + ends[row.model] * row.audio_seconds
            batches[row.batch_id] = max(batches.get(row.batch_id, 0.0), jobs[row.id])
        error, films = _error(session)
    return Forecast(jobs, {b: s for b, s in batches.items() if b not in unknown}, error, films)


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


def _seconds_per_frame(session: Session, look: _Look, *, before: float | None) -> float | None:
    """Of the newest published segments that look alike, or of the model when there are none, from claim to publish."""
    model, preset, width, height = look
    known = [JobRow.model == model, *([] if before is None else [AttemptRow.ended_at < before])]
    alike = (JobRow.preset == preset, JobRow.width == width, JobRow.height == height)
    return _mean_of_newest(session, *known, *alike) or _mean_of_newest(session, *known)


def _mean_of_newest(session: Session, *where: ColumnElement[bool]) -> float | None:
    newest = (
        select(AttemptRow.frames.label("frames"), (AttemptRow.ended_at - AttemptRow.started_at).label("seconds"))
        .join(JobRow, JobRow.id == AttemptRow.job_id)
        .where(AttemptRow.outcome == "succeed", AttemptRow.frames > 0, *where)
        .order_by(AttemptRow.id.desc())
        .limit(SEGMENTS)
        .subquery()
    )
    frames, seconds = session.execute(select(func.sum(newest.c.frames), func.sum(newest.c.seconds))).one()
    return float(seconds) / float(frames) if frames and seconds else None


def _seconds_to_end(session: Session, model: str) -> float:
    """What assembling takes for each second of sound, of the model's newest films; 0 without history."""
    rows = session.execute(
        select(AttemptRow.ended_at - AttemptRow.started_at, JobRow.audio_seconds)
        .join(SegmentRow, SegmentRow.id == AttemptRow.segment_id)
        .join(JobRow, JobRow.id == AttemptRow.job_id)
        .where(
            JobRow.model == model,
            JobRow.state == JobState.SUCCEEDED,
            SegmentRow.kind == SegmentKind.ASSEMBLE,
            AttemptRow.outcome == "succeed",
        )
        .order_by(JobRow.id.desc())
        .limit(FILMS)
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
                AttemptRow.job_id == film.id, AttemptRow.outcome == "succeed", AttemptRow.frames > 0
            )
        ).one()
        if not took or not film.total_frames:
            continue
        pace = _seconds_per_frame(session, (film.model, film.preset, film.width, film.height), before=began)
        if pace is not None:
            misses.append(abs(pace * film.total_frames - took) / took)
    return (statistics.median(misses) if misses else None), len(misses)
