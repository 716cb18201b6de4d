"""How far jobs are, how fast, and how long they still take: from the ledger alone, so it survives every restart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select

from farm.ledger.row_values import job_value
from farm.ledger.store import Ledger, db_now
from farm.ledger.tables import AttemptRow, JobRow, SegmentRow
from farm.ledger.values import Job
from farm.states import FINISHED, Event, JobState, SegmentKind, SegmentState


@dataclass(frozen=True, slots=True)
class JobProgress:
    """One job at one instant."""

    job: Job
    frames: int  # published, and of the running attempts
    total_frames: int | None  # None until it is prepared
    doing: str  # "segment 3/12 on gpu0@box", "prepare", "waits for a worker" …
    workers: tuple[str, ...]
    frames_per_second: float | None  # of the running attempts together, else of what was published
    seconds_left: float | None  # at that speed, once it is being rendered
    last_error: str | None

    @property
    def share(self) -> float:
        """Part of the frames that exist, 0 to 1."""
        if self.job.state is JobState.SUCCEEDED:
            return 1.0
        return self.frames / self.total_frames if self.total_frames else 0.0

    @property
    def times_real_time(self) -> float | None:
        """Seconds of film per second of rendering."""
        if self.frames_per_second is None:
            return None
        return self.frames_per_second * self.job.fps[1] / self.job.fps[0]


def job_progress(ledger: Ledger, job_ids: Sequence[int]) -> list[JobProgress]:
    """The progress of these jobs, in the order of their ids."""
    if not job_ids:
        return []
    with ledger.read() as session:
        now = session.scalar(select(db_now())) or 0.0
        jobs = [
            job_value(row) for row in session.scalars(select(JobRow).where(JobRow.id.in_(job_ids)).order_by(JobRow.id))
        ]
        running = session.execute(
            select(SegmentRow, AttemptRow.started_at)
            .join(AttemptRow, (AttemptRow.segment_id == SegmentRow.id) & (AttemptRow.token == SegmentRow.token))
            .where(SegmentRow.job_id.in_(job_ids), SegmentRow.state == SegmentState.LEASED)
            .order_by(SegmentRow.number)
        ).all()
        spent = {
            job_id: (frames, seconds)
            for job_id, frames, seconds in session.execute(
                select(AttemptRow.job_id, func.sum(AttemptRow.frames), func.sum(AttemptRow.device_seconds))
                .where(AttemptRow.job_id.in_(job_ids), AttemptRow.frames > 0, AttemptRow.outcome == Event.SUCCEED.value)
                .group_by(AttemptRow.job_id)
            )
        }
        errors = {
            job_id: reason
            for job_id, reason in session.execute(
                select(SegmentRow.job_id, SegmentRow.reason)
                .where(
                    SegmentRow.job_id.in_(job_ids),
                    SegmentRow.reason.is_not(None),
                    SegmentRow.failure.not_in(("stop", "cancel")),
                    SegmentRow.state != SegmentState.SUCCEEDED,
                )
                .order_by(SegmentRow.number)
            )
        }
    found: list[JobProgress] = []
    for job in jobs:
        mine = [(row, started) for row, started in running if row.job_id == job.id]
        found.append(_progress_of(job, mine, spent.get(job.id), errors.get(job.id), now))
    return found


def _progress_of(
    job: Job,
    running: Sequence[tuple[SegmentRow, float]],
    spent: tuple[int, float] | None,
    error: str | None,
    now: float,
) -> JobProgress:
    frames = job.frames_done + sum(row.frames_now for row, _ in running if row.kind is SegmentKind.RENDER)
    live = sum(
        row.frames_now / max(now - started, 0.5)
        for row, started in running
        if row.kind is SegmentKind.RENDER and row.frames_now
    )
    speed: float | None = live or None
    if speed is None and spent is not None and spent[1]:
        speed = float(spent[0]) / float(spent[1])
    left: float | None = None
    if job.state is JobState.RENDERING and job.total_frames and speed:
        left = max(0, job.total_frames - frames) / speed
    return JobProgress(
        job=job,
        frames=frames,
        total_frames=job.total_frames,
        doing=_doing(job, [row for row, _ in running]),
        workers=tuple(row.leased_by for row, _ in running if row.leased_by),
        frames_per_second=speed,
        seconds_left=left,
        last_error=job.reason or error,
    )


def _doing(job: Job, running: Sequence[SegmentRow]) -> str:
    if job.state in FINISHED:
        return ""
    if not running:
        return "paused" if job.paused else "waits for a worker"
    row = running[0]
    what = f"segment {row.number + 1}/{job.segments_total}" if row.kind is SegmentKind.RENDER else row.kind.value
    more = f" and {len(running) - 1} more" if len(running) > 1 else ""
    return f"{what} on {row.leased_by}{more}"
