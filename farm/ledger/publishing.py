"""Publishing what an attempt made: files, carry and state in one commit, and after `prepare` the whole plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, insert, select, update
from sqlalchemy.orm import Session

from farm.errors import EngineChanged, LeaseLost, LedgerError
from farm.ledger.history import append
from farm.ledger.leases import close_attempt, held_lease
from farm.ledger.ripple import lock_job, owe, ready_all, ready_next, ripple
from farm.ledger.store import Ledger, db_now
from farm.ledger.tables import ArtifactRow, AttemptRow, JobRow, SegmentRow
from farm.ledger.values import Lease, NewArtifact, Reused
from farm.planning import PlannedSegment
from farm.states import Event, SegmentKind, SegmentState, after

REUSED = "reuse"  # the event of a segment whose frames another film lent, and the device of its attempt


def publish(
    ledger: Ledger,
    lease: Lease,
    *,
    artifacts: Sequence[NewArtifact],
    carry: bytes | None = None,
    frames: int = 0,
    device_seconds: float = 0.0,
    engine_version: str | None = None,
) -> None:
    """Make the result public: files, carry and state change in one commit.

    Repeating it after a commit whose answer was lost changes nothing and succeeds.  Raises LeaseLost, and EngineChanged
    when other segments of the film were published by another version of the engine.
    """
    _succeed(ledger, lease, artifacts, carry, frames, device_seconds, {"engine_version": engine_version}, None)


def publish_plan(
    ledger: Ledger,
    lease: Lease,
    *,
    artifacts: Sequence[NewArtifact],
    job: dict[str, Any],
    plan: Sequence[PlannedSegment],
    queue: str,
    device_seconds: float = 0.0,
    reused: Mapping[int, Reused] | None = None,
) -> None:
    """End `prepare`: write what was learnt into the job and make its render and assemble segments.

    `job` holds column values of JobRow: audio_rate, audio_samples, total_frames, facts, profile, notes …  `reused` are
    the segments of `plan`, by number, whose files exist already: they are published with it, each by an attempt of its
    own that took no device's time.
    """
    _succeed(ledger, lease, artifacts, None, 0, device_seconds, job, _Plan(plan, queue, reused or {}))


@dataclass(frozen=True, slots=True)
class _Plan:
    segments: Sequence[PlannedSegment]
    queue: str
    reused: Mapping[int, Reused]


def _succeed(
    ledger: Ledger,
    lease: Lease,
    artifacts: Sequence[NewArtifact],
    carry: bytes | None,
    frames: int,
    device_seconds: float,
    job_values: dict[str, Any],
    plan: _Plan | None,
) -> None:
    segment = lease.segment

    def story(session: Session) -> None:
        lock_job(session, segment.job_id)
        won = session.scalar(
            update(SegmentRow)
            .where(held_lease(lease))
            .values(
                state=after(SegmentState.LEASED, Event.SUCCEED),
                leased_by=None,
                lease_until=None,
                carry=carry,
                frames_now=frames,
                reason=None,
                failure=None,
                finished_at=db_now(),
            )
            .returning(SegmentRow.id)
        )
        if won is None:
            done = session.scalar(
                select(SegmentRow.id).where(
                    SegmentRow.id == segment.id,
                    SegmentRow.state == SegmentState.SUCCEEDED,
                    SegmentRow.token == lease.token,
                )
            )
            if done is not None:
                return  # our own earlier commit, whose answer was lost
            raise LeaseLost(f"{lease.label}: the lease is gone; its result is void")
        _refuse_a_second_version(session, segment.job_id, job_values.get("engine_version"))
        number = segment.number if segment.kind is SegmentKind.RENDER else -1
        for artifact in artifacts:
            # `farm jobs retry` may publish a job's poster or report again; the newest stands.
            session.execute(
                delete(ArtifactRow).where(
                    ArtifactRow.job_id == segment.job_id,
                    ArtifactRow.kind == artifact.kind,
                    ArtifactRow.segment_number == number,
                )
            )
            _insert_artifact(session, segment.job_id, number, artifact)
        close_attempt(session, lease, Event.SUCCEED, frames=frames, device_seconds=device_seconds)
        values = {key: value for key, value in job_values.items() if value is not None}
        if values:
            session.execute(update(JobRow).where(JobRow.id == segment.job_id).values(**values))
        if plan is not None:
            _insert_plan(session, lease, plan.segments, plan.queue)
            _publish_reused(session, lease, plan.reused)
        if plan is not None and plan.reused:
            ready_all(session, segment.job_id)
        else:
            ready_next(session, segment)
        ripple(session, segment.job_id)

    ledger.write(story)


def _insert_artifact(session: Session, job_id: int, number: int, artifact: NewArtifact) -> None:
    session.execute(
        insert(ArtifactRow).values(
            job_id=job_id,
            kind=artifact.kind,
            segment_number=number,
            path=artifact.path,
            size_bytes=artifact.size_bytes,
            sha256=artifact.sha256,
            facts=dict(artifact.facts),
            created_at=db_now(),
        )
    )


def _publish_reused(session: Session, lease: Lease, reused: Mapping[int, Reused]) -> None:
    """Take just planned segments through all their moves at once, in the name of the worker that prepared the film."""
    if not reused:
        return
    job_id = lease.segment.job_id
    state = SegmentState.WAITING
    for event in (Event.READY, Event.LEASE, Event.SUCCEED):
        state = after(state, event)
    for number, item in sorted(reused.items()):
        segment_id = session.scalar(
            update(SegmentRow)
            .where(
                SegmentRow.job_id == job_id,
                SegmentRow.kind == SegmentKind.RENDER,
                SegmentRow.number == number,
                SegmentRow.state == SegmentState.WAITING,
                SegmentRow.token == 0,
            )
            .values(
                state=state,
                token=1,
                attempt=1,
                carry=item.carry,
                frames_now=SegmentRow.frames,
                queued_at=db_now(),
                finished_at=db_now(),
            )
            .returning(SegmentRow.id)
        )
        if segment_id is None:
            raise LedgerError(f"segment {number} of job {job_id} was not just planned")
        session.execute(
            insert(AttemptRow).values(
                segment_id=segment_id,
                job_id=job_id,
                number=1,
                token=1,
                worker=lease.worker,
                device=REUSED,
                started_at=db_now(),
                ended_at=db_now(),
                outcome=Event.SUCCEED.value,
            )
        )
        _insert_artifact(session, job_id, number, item.artifact)
        told = {"job_id": job_id, "segment_id": segment_id, "attempt": 1, "worker": lease.worker}
        append(session, Event.LEASE, **told)
        append(session, REUSED, **told, detail=f"the frames are those of {item.source}")
        append(session, Event.SUCCEED, **told)
    versions = {item.engine_version for item in reused.values()}
    (version,) = versions
    session.execute(update(JobRow).where(JobRow.id == job_id).values(engine_version=version))


def _refuse_a_second_version(session: Session, job_id: int, version: str | None) -> None:
    if version is None:
        return
    begun_by = session.scalar(select(JobRow.engine_version).where(JobRow.id == job_id))
    if begun_by not in (None, version):
        raise EngineChanged.between(begun_by, version)


def _insert_plan(session: Session, lease: Lease, plan: Sequence[PlannedSegment], queue: str) -> None:
    row = session.get_one(SegmentRow, lease.segment.id, populate_existing=True)
    shared: dict[str, Any] = {
        "job_id": row.job_id,
        "unhaste": row.unhaste,
        "due": row.due,
        "rank": row.rank,
        "held": row.held,
    }
    rows = [
        shared
        | {
            "kind": SegmentKind.RENDER,
            "number": number,
            "first_frame": part.first_frame,
            "frames": part.frames,
            "needs_carry": part.needs_carry,
            "part": None if part.part is None else part.part.as_json(),
            "content_key": part.content_key,
            "queue": queue,
            "state": SegmentState.WAITING,
        }
        for number, part in enumerate(plan)
    ]
    assemble = shared | {
        "kind": SegmentKind.ASSEMBLE,
        "number": 0,
        "first_frame": 0,
        "frames": 0,
        "needs_carry": False,
        "part": None,
        "content_key": None,
        "queue": row.queue,
        "state": SegmentState.WAITING,
    }
    session.execute(insert(SegmentRow), [*rows, assemble])
    session.execute(update(JobRow).where(JobRow.id == row.job_id).values(segments_total=len(rows)))
    owe(session, queue)
