"""What the open jobs still ask of the farm, read in one grouped query, so that a hundred thousand of them are a glance.

Jobs of one batch that look alike, with the same priority and deadlines in the same hour, are one portion.  While few
jobs are open, and for batches that are asked for, each job is a portion of its own.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Select, case, cast, func, null, select, text
from sqlalchemy.orm import Session

from farm.ledger.tables import LEASED, JobRow, SegmentRow
from farm.states import OPEN_STATES, Continuity, SegmentKind

FEW = 2000  # so many open jobs are looked at one by one
_DUE_SECONDS = 3600.0  # deadlines this near to each other count as one

Look = tuple[str, str, int, int]  # model, preset, width, height: what decides the speed


@dataclass(frozen=True, slots=True)
class Portion:
    """Open jobs that wait in one place of the queue."""

    batch_id: int
    job_id: int | None  # of the one job that it is; None when it may be several
    look: Look
    continuity: Continuity
    jobs: int
    frames: float  # that are still to be rendered; what a running attempt has done is taken off
    film_seconds: float  # how long these are in the film
    longest: float  # seconds of the longest job's sound


def portions(session: Session, batches: Collection[int] = ()) -> list[Portion]:
    """The open jobs that are not paused, in the order of the claim; jobs of these `batches` one by one."""
    count = session.scalar(select(func.count()).where(JobRow.state.in_(OPEN_STATES))) or 0
    one_by_one: ColumnElement[Any] = cast(null(), BigInteger)
    if count <= FEW:
        one_by_one = cast(JobRow.id, BigInteger)
    elif batches:
        one_by_one = case((JobRow.batch_id.in_(sorted(batches)), JobRow.id))
    rows = session.execute(_grouped(one_by_one)).all()
    of_job, of_group = _rendered_now(session)
    found: list[tuple[tuple[int, float, int], Portion]] = []
    for row in rows:
        look = (row.model, row.preset, row.width, row.height)
        now = of_group.pop((row.batch_id, look), 0) if row.job_id is None else of_job.get(row.job_id, 0)
        frames = float(row.planned) - float(row.done)
        left = max(0.0, frames - now)
        portion = Portion(
            batch_id=row.batch_id,
            job_id=row.job_id,
            look=look,
            continuity=row.continuity,
            jobs=row.jobs,
            frames=left,
            film_seconds=left * row.seconds_per_frame,
            longest=row.longest,
        )
        found.append(((-row.priority, row.due, row.first), portion))
    return [portion for _, portion in sorted(found, key=lambda pair: pair[0])]


def _rendered_now(session: Session) -> tuple[dict[int, int], dict[tuple[int, Look], int]]:
    """Frames that running attempts have done and not published, by job, and by batch and look."""
    done = func.sum(SegmentRow.frames_now)
    of_job: dict[int, int] = {}
    of_group: dict[tuple[int, Look], int] = {}
    for job_id, batch_id, model, preset, width, height, frames in session.execute(
        select(JobRow.id, JobRow.batch_id, JobRow.model, JobRow.preset, JobRow.width, JobRow.height, done)
        .join(SegmentRow, SegmentRow.job_id == JobRow.id)
        .where(text(LEASED), SegmentRow.kind == SegmentKind.RENDER)
        .group_by(JobRow.id)
    ):
        group = (batch_id, (model, preset, width, height))
        of_job[job_id] = int(frames)
        of_group[group] = of_group.get(group, 0) + int(frames)
    return of_job, of_group


def _grouped(one_by_one: ColumnElement[Any]) -> Select[Any]:
    jobs = (
        select(
            JobRow.batch_id,
            JobRow.model,
            JobRow.preset,
            JobRow.width,
            JobRow.height,
            JobRow.continuity,
            JobRow.priority,
            cast(JobRow.due / _DUE_SECONDS, BigInteger).label("hour"),
            one_by_one.label("job_id"),
            JobRow.audio_seconds,
            JobRow.fps_num,
            JobRow.fps_den,
            JobRow.total_frames,
            JobRow.frames_done,
            JobRow.due,
            JobRow.id,
        )
        .where(JobRow.state.in_(OPEN_STATES), ~JobRow.paused)
        .subquery()
    )
    one = jobs.c
    keys = (
        one.batch_id,
        one.model,
        one.preset,
        one.width,
        one.height,
        one.continuity,
        one.priority,
        one.hour,
        one.job_id,
    )
    return select(
        *keys,
        func.count().label("jobs"),
        func.sum(func.coalesce(one.total_frames, one.audio_seconds * one.fps_num / one.fps_den)).label("planned"),
        func.sum(one.frames_done).label("done"),
        # Rates of one model differ hardly, and the seconds are for people and for scaling.
        func.max(one.fps_den * 1.0 / one.fps_num).label("seconds_per_frame"),
        func.max(one.audio_seconds).label("longest"),
        func.min(one.due).label("due"),
        func.min(one.id).label("first"),
    ).group_by(*keys)
