"""Workers in the ledger: hello, beats, sickness, goodbye; and who leads."""

from __future__ import annotations

from typing import Any

from sqlalchemy import and_, delete, func, or_, select, update
from sqlalchemy.orm import Session

from farm.errors import LeaseLost
from farm.ledger.history import append
from farm.ledger.presence import GONE, alive
from farm.ledger.row_values import worker_value
from farm.ledger.store import Ledger, db_now
from farm.ledger.tables import AttemptRow, LockRow, OutboxRow, WorkerRow
from farm.ledger.values import Worker
from farm.states import Event, WorkerState

SICK_AFTER_JOBS = 3  # a worker that fails this many different jobs in a row is sick
FORGIVE_AFTER_SECONDS = 3600.0
REAPER_LOCK = "reaper"  # who expires leases for the whole farm


def say_hello(
    ledger: Ledger,
    *,
    name: str,
    queue: str,
    machine: str,
    pid: int,
    incarnation: str,
    device: str,
    info: dict[str, Any],
) -> Worker | None:
    """Write that a worker starts.  Returns what the ledger held under that name before, None for a new one."""

    def story(session: Session) -> Worker | None:
        before = session.get(WorkerRow, name)
        previous = worker_value(before) if before is not None else None
        values = {
            "queue": queue,
            "machine": machine,
            "pid": pid,
            "incarnation": incarnation,
            "device": device,
            "state": WorkerState.LOADING,
            "reason": None,
            "segment_id": None,
            "host_pid": None,
            "host_restarts": 0,
            "info": info,
        }
        session.execute(
            ledger.insert(WorkerRow)
            .values(name=name, started_at=db_now(), beat_at=db_now(), forgiven_at=0.0, **values)
            .on_conflict_do_update(
                index_elements=[WorkerRow.name], set_=values | {"started_at": db_now(), "beat_at": db_now()}
            )
        )
        append(session, "worker_hello", worker=name, detail=f"{queue} on {device}, pid {pid} at {machine}")
        return previous

    return ledger.write(story)


def beat(
    ledger: Ledger,
    *,
    name: str,
    incarnation: str,
    state: WorkerState,
    reason: str | None,
    host_pid: int | None,
    host_restarts: int,
    info: dict[str, Any],
) -> Worker:
    """Say that the worker lives.  Returns its row, which holds what people want of it.

    Raises LeaseLost when another process has taken the worker's name: this one must stop.
    """

    def story(session: Session) -> Worker:
        row = session.scalar(
            update(WorkerRow)
            .where(WorkerRow.name == name, WorkerRow.incarnation == incarnation)
            .values(
                beat_at=db_now(), state=state, reason=reason, host_pid=host_pid, host_restarts=host_restarts, info=info
            )
            .returning(WorkerRow)
            .execution_options(synchronize_session=False)
        )
        if row is None:
            raise LeaseLost(f"another process works as {name}; this one stops")
        return worker_value(row)

    return ledger.write(story, patience_seconds=20.0)


def say_goodbye(ledger: Ledger, *, name: str, incarnation: str) -> None:
    def story(session: Session) -> None:
        won = session.scalar(
            update(WorkerRow)
            .where(WorkerRow.name == name, WorkerRow.incarnation == incarnation)
            .values(state=WorkerState.STOPPED, segment_id=None, host_pid=None, beat_at=db_now())
            .returning(WorkerRow.name)
        )
        if won is not None:
            append(session, "worker_goodbye", worker=name)

    ledger.write(story, patience_seconds=5.0)


def sick_reason(ledger: Ledger, name: str) -> str | None:
    """Why this worker should take nothing: it failed several different jobs since it last finished one."""
    with ledger.read() as session:
        forgiven = session.scalar(select(WorkerRow.forgiven_at).where(WorkerRow.name == name)) or 0.0
        last_good = session.scalar(
            select(func.max(AttemptRow.ended_at)).where(
                AttemptRow.worker == name, AttemptRow.outcome == Event.SUCCEED.value
            )
        )
        since = max(forgiven, last_good or 0.0)
        strikes = session.execute(
            select(AttemptRow.job_id, AttemptRow.reason)
            .where(
                AttemptRow.worker == name,
                AttemptRow.strike,
                AttemptRow.ended_at > since,
                AttemptRow.ended_at > db_now() - FORGIVE_AFTER_SECONDS,
            )
            .order_by(AttemptRow.id)
        ).all()
        failed = {job_id for job_id, _ in strikes}
        if len(failed) < SICK_AFTER_JOBS:
            return None
        shown = ", ".join(str(job_id) for job_id in sorted(failed)[:5])
        last = f", the last one because {strikes[-1].reason}" if strikes[-1].reason else ""
        return f"failed {len(failed)} different jobs in a row ({shown}){last}"


def mark_lost(ledger: Ledger) -> list[str]:
    """Note the workers that stopped beating without a goodbye.  Returns their names."""

    def story(session: Session) -> list[str]:
        names = session.scalars(
            update(WorkerRow)
            .where(WorkerRow.state.not_in(GONE), ~alive())
            .values(state=WorkerState.LOST)
            .returning(WorkerRow.name)
        ).all()
        for name in names:
            append(session, "worker_lost", worker=name)
        return list(names)

    return ledger.write(story)


def lead(ledger: Ledger, lock: str, holder: str, *, ttl_seconds: float) -> bool:
    """Take or keep the named lock until `ttl_seconds` from now by the ledger's clock.  True if `holder` has it."""

    def story(session: Session) -> bool:
        won = session.scalar(
            update(LockRow)
            .where(and_(LockRow.name == lock, or_(LockRow.holder == holder, LockRow.until < db_now())))
            .values(holder=holder, until=db_now() + ttl_seconds)
            .returning(LockRow.name)
        )
        if won is not None:
            return True
        return (
            session.scalar(
                ledger.insert(LockRow)
                .values(name=lock, holder=holder, until=db_now() + ttl_seconds)
                .on_conflict_do_nothing()
                .returning(LockRow.name)
            )
            is not None
        )

    return ledger.write(story, patience_seconds=5.0)


def stop_leading(ledger: Ledger, lock: str, holder: str) -> None:
    """Give the lock back before its time."""

    def story(session: Session) -> None:
        session.execute(
            update(LockRow).where(LockRow.name == lock, LockRow.holder == holder).values(until=db_now() - 1.0)
        )

    ledger.write(story, patience_seconds=2.0)


def take_owed_doorbells(ledger: Ledger) -> list[str]:
    """The queues that are owed a doorbell since the last call; each is owed no longer.

    A crash between this and the ringing loses a doorbell, which costs the poll interval of an idle worker and no work.
    """

    def story(session: Session) -> list[str]:
        rows = session.execute(select(OutboxRow.id, OutboxRow.queue).order_by(OutboxRow.id).limit(1000)).all()
        if not rows:
            return []
        session.execute(delete(OutboxRow).where(OutboxRow.id.in_([i for i, _ in rows])))
        return sorted({queue for _, queue in rows})

    with ledger.read() as session:
        if session.scalar(select(OutboxRow.id).limit(1)) is None:
            return []
    return ledger.write(story, patience_seconds=5.0)
