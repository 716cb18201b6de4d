"""Rules of the audit that look at files: artifacts as they were published, and nothing left behind."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from farm.artifacts import is_staging_name
from farm.config import Settings
from farm.ledger.audit.findings import Findings
from farm.ledger.row_values import artifact_value
from farm.ledger.tables import ArtifactRow, JobRow
from farm.states import FINISHED, ArtifactKind
from farm.store import Store


def files_are_as_published(session: Session, store: Store) -> Findings:
    """The files that still count exist with their size and hash: films, and all files of jobs that have not ended.

    A film whose path a newer film was written to is the newer one's.
    """
    newest = select(func.max(ArtifactRow.id)).group_by(ArtifactRow.path)
    query = (
        select(ArtifactRow)
        .join(JobRow, JobRow.id == ArtifactRow.job_id)
        .where(
            ArtifactRow.id.in_(newest),
            or_(ArtifactRow.kind == ArtifactKind.FILM, JobRow.state.not_in(list(FINISHED))),
        )
        .order_by(ArtifactRow.id)
    )
    for row in session.scalars(query):
        problem = store.fault(artifact_value(row))
        if problem:
            yield (f"{row.kind} of job {row.job_id}", f"{row.path} {problem}")


def no_orphan_staging_files(session: Session, settings: Settings, older_than_seconds: float) -> Findings:
    """No staging file is left of an attempt that ended long ago."""
    oldest = time.time() - older_than_seconds
    for path in _staging_files(session, settings):
        try:
            old = path.stat().st_mtime < oldest
        except FileNotFoundError:
            continue  # renamed or deleted meanwhile
        if old:
            yield (str(path), "an attempt that ended long ago left it")


def _staging_files(session: Session, settings: Settings) -> Iterable[Path]:
    """Below the artifacts, and beside the films."""
    for folder, _, names in os.walk(settings.artifacts_dir):
        yield from (Path(folder, name) for name in names if is_staging_name(Path(name)))
    for films in sorted({Path(output).parent for output in session.scalars(select(JobRow.output))}):
        if films.is_dir():
            yield from (path for path in films.iterdir() if is_staging_name(path))
