"""Live sessions in the ledger: a worker's warm host, leased to one of them for a while.

The lease is a row of the locks: named after the worker, held by a token until an instant of the ledger's clock, taken
and renewed by compare-and-set.  Only who can read the ledger knows the token, so a worker gives its host to nobody
else.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from farm.errors import LeaseLost
from farm.ledger.history import append
from farm.ledger.presence import ready
from farm.ledger.store import Ledger, db_now
from farm.ledger.tables import LockRow, WorkerRow
from farm.states import WorkerState

ADDRESS = "live"  # key of a worker's info: the Unix socket where it is asked for its host


@dataclass(frozen=True, slots=True)
class LiveLease:
    """The right to one worker's warm host."""

    worker: str
    address: str
    token: str


def lease_host(
    ledger: Ledger, queue: str, *, owner: str, ttl_seconds: float, refused: Collection[str] = ()
) -> LiveLease | None:
    """Lease the warm host of a worker of `queue`, one that is idle before one that renders.

    None when no worker can be asked: none lives, each is drained, says why it takes nothing, has refused, or serves
    another session.
    """
    with ledger.read() as session:
        rows = session.scalars(
            select(WorkerRow).where(
                WorkerRow.queue == queue,
                ready(),
                WorkerRow.name.not_in(list(refused)),
            )
        ).all()
    for row in sorted(rows, key=lambda row: (row.state is not WorkerState.IDLE, row.name)):
        address = row.info.get(ADDRESS)
        if isinstance(address, str):
            lease = LiveLease(row.name, address, secrets.token_hex(16))
            if _take(ledger, lease, owner, ttl_seconds):
                return lease
    return None


def _take(ledger: Ledger, lease: LiveLease, owner: str, ttl_seconds: float) -> bool:
    name = _lock(lease.worker)

    def story(session: Session) -> bool:
        values = {"holder": lease.token, "until": db_now() + ttl_seconds}
        free = update(LockRow).where(LockRow.name == name, LockRow.until < db_now())
        won = session.scalar(free.values(**values).returning(LockRow.name)) or session.scalar(
            ledger.insert(LockRow).values(name=name, **values).on_conflict_do_nothing().returning(LockRow.name)
        )
        if won is not None:
            append(session, "live_lease", worker=lease.worker, detail=f"for {owner}")
        return won is not None

    return ledger.write(story, patience_seconds=5.0)


def is_leased(ledger: Ledger, worker: str, token: str) -> bool:
    """Whether this token holds the worker's host now."""
    with ledger.read() as session:
        held = select(LockRow.name).where(
            LockRow.name == _lock(worker), LockRow.holder == token, LockRow.until >= db_now()
        )
        return session.scalar(held) is not None


def renew(ledger: Ledger, worker: str, token: str, *, ttl_seconds: float) -> None:
    """Push the lease's end away.  Raises LeaseLost."""

    def story(session: Session) -> None:
        held = update(LockRow).where(LockRow.name == _lock(worker), LockRow.holder == token, LockRow.until >= db_now())
        if session.scalar(held.values(until=db_now() + ttl_seconds).returning(LockRow.name)) is None:
            raise LeaseLost(f"the live session's lease of {worker} is gone")

    ledger.write(story, patience_seconds=ttl_seconds / 2)


def release(ledger: Ledger, worker: str, token: str, how: str) -> None:
    """Give the host back to the batches; `how` the session ended goes into the history.  Twice is as good as once."""

    def story(session: Session) -> None:
        held = update(LockRow).where(LockRow.name == _lock(worker), LockRow.holder == token, LockRow.until >= db_now())
        if session.scalar(held.values(until=db_now() - 1.0).returning(LockRow.name)) is not None:
            append(session, "live_release", worker=worker, detail=how)

    ledger.write(story, patience_seconds=5.0)


def _lock(worker: str) -> str:
    return f"live:{hashlib.sha256(worker.encode()).hexdigest()[:32]}"
