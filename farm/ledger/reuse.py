"""Published segments that another film may use again, found by their content keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select

from farm.ledger.read import artifact_value
from farm.ledger.store import Ledger
from farm.ledger.tables import ArtifactRow, JobRow, SegmentRow
from farm.ledger.values import Artifact
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
