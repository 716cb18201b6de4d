"""Mending the ledger when published work is gone or lies elsewhere, and copying it."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from sqlalchemy import delete, func, make_url, select, update
from sqlalchemy.orm import Session

from farm.errors import ConfigError, InputError, LeaseLost
from farm.ledger.history import append
from farm.ledger.leases import held_lease, held_seconds
from farm.ledger.ripple import hold_as_the_job_is, lock_job, owe, ripple
from farm.ledger.store import Ledger, db_now
from farm.ledger.tables import ArtifactRow, AttemptRow, EventRow, JobRow, SegmentRow, WorkerRow
from farm.ledger.values import Lease
from farm.states import ArtifactKind, Event, SegmentKind, SegmentState

LOST_AGAIN = "render_again"  # outcome of an attempt whose published file is gone
BEGIN_AGAIN = "begin_again"
MAX_BEGINNINGS = 3  # then workers of several versions take turns, and the film would never end


def render_again(ledger: Ledger, job_id: int, number: int, reason: str) -> bool:
    """Queue a published render segment again because its file is missing or was changed.

    One of two ways out of `succeeded` (see `begin_again`), taken only while the film is not published: the ledger
    promised a file that is not there, and promising it further would fail the job for good.  The segments after it keep
    their carries; the engine's determinism makes the new file equal to the old one.
    """

    def story(session: Session) -> bool:
        lock_job(session, job_id)
        row = session.scalar(
            select(SegmentRow).where(
                SegmentRow.job_id == job_id, SegmentRow.kind == SegmentKind.RENDER, SegmentRow.number == number
            )
        )
        film = session.scalar(
            select(ArtifactRow.id).where(ArtifactRow.job_id == job_id, ArtifactRow.kind == ArtifactKind.FILM)
        )
        if row is None or row.state is not SegmentState.SUCCEEDED or film is not None:
            return False
        session.execute(
            update(SegmentRow)
            .where(SegmentRow.id == row.id, SegmentRow.token == row.token)
            .values(state=SegmentState.QUEUED, queued_at=db_now(), finished_at=None, not_before=0.0, reason=reason)
        )
        session.execute(
            update(SegmentRow)
            .where(
                SegmentRow.job_id == job_id,
                SegmentRow.kind == SegmentKind.ASSEMBLE,
                SegmentRow.state.in_((SegmentState.QUEUED, SegmentState.FAILED)),
            )
            .values(state=SegmentState.WAITING, finished_at=None)
        )
        session.execute(
            delete(ArtifactRow).where(
                ArtifactRow.job_id == job_id,
                ArtifactRow.segment_number == number,
            )
        )
        # The attempt that published it counts no longer: a segment has one published attempt.
        session.execute(
            update(AttemptRow)
            .where(AttemptRow.segment_id == row.id, AttemptRow.outcome == Event.SUCCEED.value)
            .values(outcome=LOST_AGAIN)
        )
        append(session, LOST_AGAIN, job_id=job_id, segment_id=row.id, attempt=row.attempt, detail=reason)
        ripple(session, job_id)
        hold_as_the_job_is(session, job_id)
        owe(session, row.queue)
        return True

    return ledger.write(story)


def begin_again(ledger: Ledger, lease: Lease, reason: str) -> bool:
    """Void every published segment of the leased film, because another version of the engine goes on with it.

    The lease ends with it, and so do those of the film's other segments.  What has failed for good stays so until a
    person retries it.  False when the film was begun so often that workers of several versions must be taking turns;
    the lease is kept then.  Raises LeaseLost.
    """
    job_id = lease.job.id

    def story(session: Session) -> bool:
        lock_job(session, job_id)
        if session.scalar(select(SegmentRow.id).where(held_lease(lease))) is None:
            raise LeaseLost(f"{lease.label}: the lease is gone")
        before = select(func.count()).where(EventRow.job_id == job_id, EventRow.event == BEGIN_AGAIN)
        if (session.scalar(before) or 0) + 1 >= MAX_BEGINNINGS:
            return False
        mine = (SegmentRow.job_id == job_id, SegmentRow.kind == SegmentKind.RENDER)
        ids = select(SegmentRow.id).where(*mine)
        without_work = update(WorkerRow).where(WorkerRow.segment_id.in_(ids)).values(segment_id=None)
        session.execute(without_work.execution_options(synchronize_session=False))
        for needs_carry, state in ((False, SegmentState.QUEUED), (True, SegmentState.WAITING)):
            session.execute(
                update(SegmentRow)
                .where(*mine, SegmentRow.needs_carry.is_(needs_carry), SegmentRow.state != SegmentState.FAILED)
                .values(
                    state=state,
                    carry=None,
                    leased_by=None,
                    lease_until=None,
                    frames_now=0,
                    finished_at=None,
                    queued_at=db_now(),
                    not_before=0.0,
                    reason=reason,
                )
                .execution_options(synchronize_session=False)
            )
        session.execute(
            update(SegmentRow)
            .where(SegmentRow.job_id == job_id, SegmentRow.kind == SegmentKind.ASSEMBLE)
            .values(state=SegmentState.WAITING, leased_by=None, lease_until=None, finished_at=None)
        )
        session.execute(delete(ArtifactRow).where(ArtifactRow.job_id == job_id, ArtifactRow.segment_number >= 0))
        theirs = update(AttemptRow).where(AttemptRow.segment_id.in_(ids)).execution_options(synchronize_session=False)
        session.execute(theirs.where(AttemptRow.outcome == Event.SUCCEED.value).values(outcome=LOST_AGAIN))
        ended = {"ended_at": db_now(), "outcome": Event.INTERRUPT.value, "failure": "stop", "reason": reason}
        for row in session.execute(
            theirs.where(AttemptRow.ended_at.is_(None))
            .values(**ended, device_seconds=held_seconds(db_now()))
            .returning(AttemptRow.segment_id, AttemptRow.number, AttemptRow.worker)
        ).all():
            append(
                session,
                Event.INTERRUPT,
                job_id=job_id,
                segment_id=row.segment_id,
                attempt=row.number,
                worker=row.worker,
                detail=reason,
            )
        session.execute(update(JobRow).where(JobRow.id == job_id).values(engine_version=None))
        append(session, BEGIN_AGAIN, job_id=job_id, worker=lease.worker, detail=reason)
        ripple(session, job_id)
        hold_as_the_job_is(session, job_id)
        owe(session, lease.segment.queue)
        return True

    return ledger.write(story)


def relocate_artifacts(ledger: Ledger, old: str, new: str) -> int:
    """Say that what lay under `old` lies under `new` now.  Returns how many artifacts; the files are not touched."""
    before, after_move = f"{old}/", f"{new}/"

    def story(session: Session) -> int:
        moved = session.scalars(
            update(ArtifactRow)
            .where(func.substr(ArtifactRow.path, 1, len(before)) == before)
            .values(path=after_move + func.substr(ArtifactRow.path, len(before) + 1))
            .returning(ArtifactRow.id)
            .execution_options(synchronize_session=False)
        ).all()
        append(session, "relocate", detail=f"{len(moved)} artifacts from {old} to {new}")
        return len(moved)

    return ledger.write(story)


def back_up(ledger: Ledger, target: Path) -> None:
    """Copy an SQLite ledger as it is at one instant, while the farm works.

    Raises ConfigError for another database, InputError when `target` exists or cannot be written.
    """
    if not ledger.is_sqlite:
        raise ConfigError("the ledger is on PostgreSQL; pg_dump makes its backup")
    if target.exists():
        raise InputError(f"{target} exists; give another name")
    source = make_url(ledger.url).database
    assert source is not None
    try:
        with (
            contextlib.closing(sqlite3.connect(source)) as from_here,
            contextlib.closing(sqlite3.connect(target)) as there,
        ):
            from_here.backup(there)
    except sqlite3.Error as error:
        raise InputError(f"the backup {target} cannot be written: {error}") from None
