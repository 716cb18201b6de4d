"""What was learnt of input files, remembered so that a repeated submit reads no file twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from farm.ledger.store import Ledger
from farm.ledger.tables import FileRow

_PER_STATEMENT = 200


@dataclass(frozen=True, slots=True)
class KnownFile:
    path: str
    size_bytes: int
    mtime_ns: int
    sha256: str
    facts: Mapping[str, Any]


def known_files(ledger: Ledger, paths: Sequence[str]) -> dict[str, KnownFile]:
    """What is remembered of these paths; the caller compares size and change time."""
    found: dict[str, KnownFile] = {}
    with ledger.read() as session:
        for start in range(0, len(paths), _PER_STATEMENT):
            rows = session.scalars(select(FileRow).where(FileRow.path.in_(paths[start : start + _PER_STATEMENT])))
            for row in rows:
                found[row.path] = KnownFile(row.path, row.size_bytes, row.mtime_ns, row.sha256, row.facts)
    return found


def remember_files(ledger: Ledger, files: Sequence[KnownFile]) -> None:
    def story(session: Session) -> None:
        for start in range(0, len(files), _PER_STATEMENT):
            statement = ledger.insert(FileRow).values(
                [
                    {
                        "path": f.path,
                        "size_bytes": f.size_bytes,
                        "mtime_ns": f.mtime_ns,
                        "sha256": f.sha256,
                        "facts": dict(f.facts),
                    }
                    for f in files[start : start + _PER_STATEMENT]
                ]
            )
            session.execute(
                statement.on_conflict_do_update(
                    index_elements=[FileRow.path],
                    set_={
                        name: getattr(statement.excluded, name)
                        for name in ("size_bytes", "mtime_ns", "sha256", "facts")
                    },
                )
            )

    if files:
        ledger.write(story)
