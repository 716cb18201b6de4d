"""Which artifacts of ended jobs are only working files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from farm.ledger.store import Ledger
from farm.ledger.tables import ArtifactRow, JobRow
from farm.states import FINISHED, ArtifactKind

WORKING_KINDS = (ArtifactKind.SEGMENT, ArtifactKind.THUMBNAIL, ArtifactKind.DRIVING, ArtifactKind.PORTRAIT)
_PER_STATEMENT = 500


@dataclass(frozen=True, slots=True)
class WorkingArtifact:
    artifact_id: int
    path: str
    size_bytes: int
    ended_at: float  # when its job ended


def working_artifacts(ledger: Ledger) -> list[WorkingArtifact]:
    """Working files of jobs that ended, those of the job that ended first in front."""
    with ledger.read() as session:
        rows = session.execute(
            select(ArtifactRow.id, ArtifactRow.path, ArtifactRow.size_bytes, JobRow.finished_at)
            .join(JobRow, JobRow.id == ArtifactRow.job_id)
            .where(ArtifactRow.kind.in_(WORKING_KINDS), JobRow.state.in_(list(FINISHED)))
            .order_by(JobRow.finished_at, ArtifactRow.id)
        ).all()
    return [WorkingArtifact(key, path, size, ended or 0.0) for key, path, size, ended in rows]


def open_job_ids(ledger: Ledger) -> list[int]:
    """Jobs that have not ended."""
    with ledger.read() as session:
        return list(session.scalars(select(JobRow.id).where(JobRow.state.not_in(list(FINISHED)))))


def forget_artifacts(ledger: Ledger, ids: Sequence[int]) -> None:
    def story(session: Session) -> None:
        for start in range(0, len(ids), _PER_STATEMENT):
            session.execute(delete(ArtifactRow).where(ArtifactRow.id.in_(list(ids[start : start + _PER_STATEMENT]))))

    ledger.write(story)
