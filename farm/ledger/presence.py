"""Which workers are there: each question once for queries over rows, and once for a worker that was read.

A worker beats every few seconds (`lease.beat_seconds`).  The row of one that was killed keeps its last state until a
reaper notes the loss, so no state says by itself that a worker lives.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, and_

from farm.ledger.store import db_now
from farm.ledger.tables import WorkerRow
from farm.ledger.values import Worker
from farm.states import WorkerState

ALIVE_SECONDS = 60.0  # a worker that beat within so long is taken for alive

GONE = (WorkerState.STOPPED, WorkerState.LOST)
READY = (WorkerState.IDLE, WorkerState.RENDERING)
AT_WORK = (WorkerState.LOADING, *READY)


def alive(worker: type[WorkerRow] = WorkerRow) -> ColumnElement[bool]:
    """Whether it was heard of lately and did not say goodbye."""
    return and_(worker.state.not_in(GONE), worker.beat_at > db_now() - ALIVE_SECONDS)


def is_alive(worker: Worker | WorkerRow, now: float) -> bool:
    """The same at an instant of the ledger's clock."""
    return worker.state not in GONE and worker.beat_at > now - ALIVE_SECONDS


def at_work(worker: type[WorkerRow] = WorkerRow) -> ColumnElement[bool]:
    """Whether it takes work, be it now, after what it renders, or once its model is loaded."""
    return and_(worker.drain.is_(None), worker.state.in_(AT_WORK), worker.beat_at > db_now() - ALIVE_SECONDS)


def is_at_work(worker: Worker | WorkerRow, now: float) -> bool:
    """The same at an instant of the ledger's clock."""
    return worker.drain is None and worker.state in AT_WORK and worker.beat_at > now - ALIVE_SECONDS


def ready(worker: type[WorkerRow] = WorkerRow) -> ColumnElement[bool]:
    """Whether its model is loaded and nothing keeps it from taking work, be it now or after what it renders."""
    return and_(
        worker.drain.is_(None),
        worker.state.in_(READY),
        worker.reason.is_(None),  # otherwise it says why it takes nothing
        worker.beat_at > db_now() - ALIVE_SECONDS,
    )
