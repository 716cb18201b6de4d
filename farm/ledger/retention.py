"""Which artifacts of ended jobs are only working files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import delete, func, select
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
    sha256: str
    ended_at: float  # when its job ended


def working_artifacts(ledger: Ledger) -> list[WorkingArtifact]:
    """Working files of jobs that ended, those of the job that ended first in front."""
    with ledger.read() as session:
        rows = session.execute(
            select(ArtifactRow.id, ArtifactRow.path, ArtifactRow.size_bytes, ArtifactRow.sha256, JobRow.finished_at)
            .join(JobRow, JobRow.id == ArtifactRow.job_id)
            .where(ArtifactRow.kind.in_(WORKING_KINDS), JobRow.state.in_(list(FINISHED)))
            .order_by(JobRow.finished_at, ArtifactRow.id)
        ).all()
    return [WorkingArtifact(key, path, size, sha256, ended or 0.0) for key, path, size, sha256, ended in rows]


def open_job_ids(ledger: Ledger) -> list[int]:
    """Jobs that have not ended."""
    with ledger.read() as session:
        return list(session.scalars(select(JobRow.id).where(JobRow.state.not_in(list(FINISHED)))))


def upload_uses(ledger: Ledger) -> dict[str, float | None]:
    """Uploads that jobs name, by owner's folder and file: when the last such job ended; None while one is open."""
    uses: dict[str, float | None] = {}
    with ledger.read() as session:
        for column in (JobRow.portrait, JobRow.audio):
            rows = session.execute(
                select(column, JobRow.state, func.max(JobRow.finished_at))
                .where(column.contains("/uploads/"))
                .group_by(column, JobRow.state)
            ).all()
            for path, state, ended in rows:
                name = "/".join(path.split("/")[-2:])  # the home may have another path for whoever looks from elsewhere
                before = uses.get(name, 0.0)
                uses[name] = None if state not in FINISHED or before is None else max(before, ended or 0.0)
    return uses


def input_uses(ledger: Ledger) -> dict[str, float | None]:
    """Contents that jobs were given, by SHA-256: when the last such job ended; None while one is open."""
    uses: dict[str, float | None] = {}
    with ledger.read() as session:
        for column in (JobRow.portrait_sha256, JobRow.audio_sha256):
            rows = session.execute(
                select(column, JobRow.state, func.max(JobRow.finished_at)).group_by(column, JobRow.state)
            )
            for sha256, state, ended in rows:
                before = uses.get(sha256, 0.0)
                uses[sha256] = None if state not in FINISHED or before is None else max(before, ended or 0.0)
    return uses


def forget_artifacts(ledger: Ledger, ids: Sequence[int]) -> set[int]:
    """Forget these working files, but for those of jobs that were retried meanwhile.  Returns what was forgotten."""

    def story(session: Session) -> set[int]:
        forgotten: set[int] = set()
        for start in range(0, len(ids), _PER_STATEMENT):
            some = ArtifactRow.id.in_(list(ids[start : start + _PER_STATEMENT]))
            jobs = select(ArtifactRow.job_id).where(some)
            # A retry waits for this lock, and then finds the files gone instead of losing them while it runs.
            ended = session.scalars(
                select(JobRow.id)
                .where(JobRow.id.in_(jobs), JobRow.state.in_(list(FINISHED)))
                .order_by(JobRow.id)
                .with_for_update(key_share=True)
            ).all()
            gone = delete(ArtifactRow).where(some, ArtifactRow.job_id.in_(ended)).returning(ArtifactRow.id)
            forgotten.update(session.scalars(gone))
        return forgotten

    return ledger.write(story)
