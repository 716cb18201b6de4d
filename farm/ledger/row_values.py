"""Rows of the ledger as the frozen values that leave it."""

from __future__ import annotations

from farm.ledger.tables import NO_DEADLINE, ArtifactRow, AttemptRow, JobRow, SegmentRow, WorkerRow
from farm.ledger.values import Artifact, Attempt, Job, Segment, Worker
from farm.planning import Part


def job_value(row: JobRow) -> Job:
    return Job(
        id=row.id,
        batch_id=row.batch_id,
        row_number=row.row_number,
        key=row.key,
        name=row.name,
        owner=row.owner,
        tags=tuple(row.tags),
        portrait=row.portrait,
        portrait_sha256=row.portrait_sha256,
        audio=row.audio,
        audio_sha256=row.audio_sha256,
        output=row.output,
        model=row.model,
        preset=row.preset,
        settings=row.settings,
        prompt=row.prompt,
        seed=row.seed,
        width=row.width,
        height=row.height,
        fps=(row.fps_num, row.fps_den),
        continuity=row.continuity,
        priority=row.priority,
        due=None if row.due >= NO_DEADLINE else row.due,
        paused=row.paused,
        state=row.state,
        reason=row.reason,
        failure=row.failure,
        notes=tuple(row.notes),
        fresh=row.fresh,
        audio_seconds=row.audio_seconds,
        audio_rate=row.audio_rate,
        audio_samples=row.audio_samples,
        total_frames=row.total_frames,
        facts=row.facts,
        profile=row.profile,
        engine_version=row.engine_version,
        segments_total=row.segments_total,
        segments_done=row.segments_done,
        frames_done=row.frames_done,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
    )


def segment_value(row: SegmentRow) -> Segment:
    return Segment(
        id=row.id,
        job_id=row.job_id,
        kind=row.kind,
        number=row.number,
        first_frame=row.first_frame,
        frames=row.frames,
        needs_carry=row.needs_carry,
        part=None if row.part is None else Part.from_json(row.part),
        content_key=row.content_key,
        queue=row.queue,
        state=row.state,
        held=row.held,
        not_before=row.not_before,
        token=row.token,
        attempt=row.attempt,
        errors=row.errors,
        losses=row.losses,
        leased_by=row.leased_by,
        lease_until=row.lease_until,
        frames_now=row.frames_now,
        reason=row.reason,
        failure=row.failure,
        queued_at=row.queued_at,
        finished_at=row.finished_at,
    )


def artifact_value(row: ArtifactRow) -> Artifact:
    return Artifact(
        row.id,
        row.job_id,
        row.kind,
        row.segment_number,
        row.path,
        row.size_bytes,
        row.sha256,
        row.facts,
        row.created_at,
    )


def worker_value(row: WorkerRow) -> Worker:
    return Worker(
        name=row.name,
        queue=row.queue,
        machine=row.machine,
        pid=row.pid,
        incarnation=row.incarnation,
        device=row.device,
        state=row.state,
        drain=row.drain,
        reason=row.reason,
        segment_id=row.segment_id,
        host_pid=row.host_pid,
        host_restarts=row.host_restarts,
        info=row.info,
        started_at=row.started_at,
        beat_at=row.beat_at,
    )


def attempt_value(row: AttemptRow) -> Attempt:
    return Attempt(
        row.id,
        row.segment_id,
        row.job_id,
        row.number,
        row.worker,
        row.device,
        row.started_at,
        row.ended_at,
        row.outcome,
        row.strike,
        row.failure,
        row.reason,
        row.frames,
        row.device_seconds,
    )
