"""Published segments that another film may use again, found by their content keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import exists, select

from farm.ledger.row_values import artifact_value
from farm.ledger.store import Ledger
from farm.ledger.tables import ArtifactRow, JobRow, SegmentRow
from farm.ledger.values import Artifact, JobRequest
from farm.states import ArtifactKind, SegmentKind, SegmentState

_KEYS_PER_QUERY = 500


@dataclass(frozen=True, slots=True)
class KnownSegment:
    """A published segment whose file the ledger still knows."""

    content_key: str
    job_id: int
    number: int
    engine_version: str
    file: Artifact
    carry: bytes | None


def known_sounds(ledger: Ledger, request: JobRequest) -> set[str]:
    """Hashes of the stretches of sound for which segments like this request's are published.

    "Like" means what a submission knows: portrait, model, settings, seed and size.  What `prepare` measures may still
    tell them apart, so this serves for a forecast.
    """
    with ledger.read() as session:
        jobs = session.execute(
            select(JobRow.id, JobRow.settings).where(
                JobRow.portrait_sha256 == request.portrait_sha256,
                JobRow.model == request.model,
                JobRow.preset == request.preset,
                JobRow.prompt == request.prompt,
                JobRow.seed == request.seed,
                JobRow.width == request.width,
                JobRow.height == request.height,
                JobRow.fps_num == request.fps[0],
                JobRow.fps_den == request.fps[1],
                JobRow.continuity == request.continuity,
                JobRow.engine_version.is_not(None),
            )
        )
        alike = [job_id for job_id, settings in jobs if settings == dict(request.settings)]
        found: set[str] = set()
        for start in range(0, len(alike), _KEYS_PER_QUERY):
            file = exists().where(
                ArtifactRow.job_id == SegmentRow.job_id,
                ArtifactRow.kind == ArtifactKind.SEGMENT,
                ArtifactRow.segment_number == SegmentRow.number,
            )
            parts = session.scalars(
                select(SegmentRow.part).where(
                    SegmentRow.job_id.in_(alike[start : start + _KEYS_PER_QUERY]),
                    SegmentRow.kind == SegmentKind.RENDER,
                    SegmentRow.state == SegmentState.SUCCEEDED,
                    file,
                )
            )
            found.update(part["sound"] for part in parts if part and part.get("sound"))
    return found


def known_segments(ledger: Ledger, keys: Sequence[str]) -> list[KnownSegment]:
    """Every published segment with one of these keys, the newest first."""
    found: list[KnownSegment] = []
    with ledger.read() as session:
        for start in range(0, len(keys), _KEYS_PER_QUERY):
            rows = session.execute(
                select(SegmentRow.content_key, SegmentRow.number, SegmentRow.carry, JobRow.engine_version, ArtifactRow)
                .join(JobRow, JobRow.id == SegmentRow.job_id)
                .join(
                    ArtifactRow,
                    (ArtifactRow.job_id == SegmentRow.job_id)
                    & (ArtifactRow.kind == ArtifactKind.SEGMENT)
                    & (ArtifactRow.segment_number == SegmentRow.number),
                )
                .where(
                    SegmentRow.content_key.in_(keys[start : start + _KEYS_PER_QUERY]),
                    SegmentRow.kind == SegmentKind.RENDER,
                    SegmentRow.state == SegmentState.SUCCEEDED,
                    JobRow.engine_version.is_not(None),
                )
                .order_by(ArtifactRow.id.desc())
            )
            found += [
                KnownSegment(str(key), file.job_id, number, str(version), artifact_value(file), carry)
                for key, number, carry, version, file in rows
            ]
    return found
