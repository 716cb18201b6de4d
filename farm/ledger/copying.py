"""A whole ledger copied into another database, as a farm that grows from SQLite to PostgreSQL needs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import RowMapping, func, select
from sqlalchemy import Table as TableClause
from sqlalchemy.orm import Session

from farm.errors import InputError
from farm.ledger.presence import alive
from farm.ledger.store import Ledger
from farm.ledger.tables import JobRow, Table, WorkerRow

COPIED_AT_ONCE = 500  # rows; a carry in each may be a megabyte


def copy_into(source: Ledger, target: Ledger) -> int:
    """Copy every row of a ledger into an empty one of the same shape, of either database.  Returns how many jobs.

    Raises InputError when a worker of the source is at work, since what it does next would be lost, or when the target
    holds something.
    """
    with source.read() as session:
        busy = session.scalars(select(WorkerRow.name).where(alive()).order_by(WorkerRow.name)).all()
    if busy:
        raise InputError(f"at work: {', '.join(busy)}; stop all workers (`farm down` on each machine), then copy")

    def story(session: Session) -> int:
        if any(session.scalar(select(func.count()).select_from(table)) for table in Table.metadata.sorted_tables):
            raise InputError("the other ledger holds something already; give an empty database")
        with source.read() as reading:
            for table in Table.metadata.sorted_tables:
                for rows in reading.execute(select(table)).mappings().partitions(COPIED_AT_ONCE):
                    _insert(session, table, rows)
        if not target.is_sqlite:
            for table in Table.metadata.sorted_tables:
                _count_on(session, table)
        return session.scalar(select(func.count()).select_from(JobRow)) or 0

    return target.write(story)


def _insert(session: Session, table: TableClause, rows: Sequence[RowMapping]) -> None:
    """What is NULL is left out: a None that is given to a JSON column becomes JSON's null."""
    alike: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        values = {name: value for name, value in row.items() if value is not None}
        alike.setdefault(tuple(values), []).append(values)
    for same in alike.values():
        session.execute(table.insert(), same)


def _count_on(session: Session, table: TableClause) -> None:
    """Let PostgreSQL number new rows after those that were copied with their numbers."""
    for column in table.primary_key.columns:
        sequence = session.scalar(select(func.pg_get_serial_sequence(table.name, column.name)))
        highest = session.scalar(select(func.max(column))) if sequence else None
        if highest is not None:
            session.execute(select(func.setval(sequence, highest)))
