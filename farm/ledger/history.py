"""Appending to the ledger's history."""

from __future__ import annotations

from sqlalchemy import insert
from sqlalchemy.orm import Session

from farm.ledger.store import db_now
from farm.ledger.tables import EventRow, plain
from farm.logs import redact

DETAIL_LIMIT = 2000  # characters; a library's endless error text must not swell the history
_APPEND = insert(plain(EventRow)).values(at=db_now())


def append(
    session: Session,
    event: str,
    *,
    batch_id: int | None = None,
    job_id: int | None = None,
    segment_id: int | None = None,
    attempt: int | None = None,
    worker: str | None = None,
    detail: str | None = None,
) -> None:
    """Append one line, at the ledger's own time."""
    session.execute(
        _APPEND,
        {
            "event": str(event),
            "batch_id": batch_id,
            "job_id": job_id,
            "segment_id": segment_id,
            "attempt": attempt,
            "worker": worker,
            "detail": redact(detail)[:DETAIL_LIMIT] if detail else None,
        },
    )
