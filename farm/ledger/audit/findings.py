"""What a rule of the audit yields, and the queries that several rules are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from sqlalchemy import ColumnElement, ColumnExpressionArgument, Select, exists, select
from sqlalchemy.orm import Session

from farm.ledger.crew import REAPER_LOCK
from farm.ledger.store import db_now
from farm.ledger.tables import LockRow, SegmentRow

Findings = Iterator[tuple[str, str]]
"""Pairs of which row breaks a promise ("job 3", "render segment 7 of job 3", a path) and a sentence that says how."""

Rule = Callable[[Session], Findings]
"""One promise as one query.  The function's name is the rule's, its docstring the promise."""


def segments_where(*where: ColumnExpressionArgument[bool]) -> Select[Any]:
    """Segments, in the order of their ids."""
    return select(SegmentRow).where(*where).order_by(SegmentRow.id)


def about(row: SegmentRow) -> str:
    """How findings name a segment."""
    return f"{row.kind} segment {row.number} of job {row.job_id}"


def broken_by(session: Session, query: Select[Any], say: Callable[[SegmentRow], str]) -> Findings:
    """A finding for each segment that `query` selects."""
    for row in session.scalars(query):
        yield about(row), say(row)


def a_reaper_leads() -> ColumnElement[bool]:
    """Whether some reaper holds the lock at this instant, so that what it must do can be expected."""
    return exists().where(LockRow.name == REAPER_LOCK, LockRow.until > db_now()).correlate(None)
