"""A job of the ledger in OmniRT's words: its record, its result, its report and its events."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from farm.ledger import Ledger, read
from farm.ledger.values import Attempt, Job, LedgerEvent, Segment
from farm.states import ArtifactKind, Event, JobState, SegmentKind

SCHEMA_VERSION = "1.0.0"
TASK = "audio2video"
BACKENDS: Mapping[str, str] = {"cuda": "cuda", "ascend": "npu", "cpu-stub": "cpu"}  # OmniRT's word: ours


@dataclass(frozen=True)
class OutputArtifact:
    """OmniRT's Artifact: one file that a run made."""

    kind: str
    path: str
    mime: str
    width: int
    height: int
    num_frames: int | None
    transport: str = "path"
    data_b64: str | None = None


@dataclass(frozen=True)
class RunReport:
    """OmniRT's report of a run, schema 1.0.0.  Times are milliseconds."""

    run_id: str
    task: str
    model: str
    backend: str
    job_id: str | None = None
    trace_id: str | None = None
    worker_id: str | None = None
    enqueued_at_ms: int | None = None
    queue_wait_ms: int | None = None
    execution_mode: str | None = "persistent_worker"
    timings: dict[str, float] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)
    backend_timeline: list[Any] = field(default_factory=list)
    config_resolved: dict[str, Any] = field(default_factory=dict)
    artifacts: list[OutputArtifact] = field(default_factory=list)
    error: str | None = None
    latent_stats: dict[str, Any] | None = None
    cache_hits: list[str] = field(default_factory=list)
    device_placement: dict[str, str] = field(default_factory=dict)
    batch_size: int = 1
    batch_group_id: str | None = None
    stream_events: list[dict[str, Any]] = field(default_factory=list)
    schema_version: str = SCHEMA_VERSION


@dataclass(frozen=True)
class GenerateResult:
    outputs: list[OutputArtifact]
    metadata: RunReport

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def _repr_html_(self) -> str:
        from farm.notebook import film_html

        return film_html(Path(self.outputs[0].path))


def job_state(job: Job) -> str:
    """queued, running, succeeded, failed or cancelled."""
    if job.state in (JobState.QUEUED, JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED):
        return job.state.value
    return "running"


def trace_id(job: Job) -> str:
    """32 hexadecimal digits that belong to this job alone."""
    return uuid.uuid5(uuid.NAMESPACE_OID, f"{job.key}:{job.id}").hex


def outputs_of(ledger: Ledger, job: Job, path: Path | None = None) -> list[OutputArtifact]:
    films = read.artifacts(ledger, job.id, ArtifactKind.FILM)
    return [
        OutputArtifact(
            "video", str(path or film.path), "video/mp4", job.width, job.height, int(film.facts.get("frames", 0))
        )
        for film in films[-1:]
    ]


def result_of(ledger: Ledger, job: Job, path: Path | None = None) -> GenerateResult:
    """The result of a job that succeeded; `path` is where its film lies on this machine, if not at its place."""
    outputs = outputs_of(ledger, job, path)
    segments, attempts = read.segments(ledger, job.id), read.attempts(ledger, job.id)
    renders = rendering(attempts, segments)
    report = RunReport(
        run_id=str(uuid.uuid5(uuid.NAMESPACE_OID, f"run:{job.key}:{job.id}")),
        task=TASK,
        model=job.model,
        backend=backend_of(renders),
        job_id=str(job.id),
        trace_id=trace_id(job),
        worker_id=renders[-1].worker if renders else None,
        enqueued_at_ms=_ms(job.created_at),
        queue_wait_ms=None if job.started_at is None else _ms(job.started_at) - _ms(job.created_at),
        timings=_timings(segments, attempts),
        config_resolved=config_of(job),
        artifacts=outputs,
        error=job.reason,
        device_placement={a.worker: a.device for a in renders},
        stream_events=stream_events(read.events(ledger, job_id=job.id, limit=10_000), segments, before_end=True),
    )
    return GenerateResult(outputs, report)


def config_of(job: Job) -> dict[str, Any]:
    """Everything that decided the film's pixels; no path of this machine."""
    return {
        **job.settings,
        "preset": job.preset,
        "seed": job.seed,
        "fps": job.fps[0],
        "size": f"{job.width}x{job.height}",
    }


def rendering(attempts: Sequence[Attempt], segments: Sequence[Segment]) -> list[Attempt]:
    """The attempts that used a device."""
    renders = {segment.id for segment in segments if segment.kind is SegmentKind.RENDER}
    return [attempt for attempt in attempts if attempt.segment_id in renders]


def backend_of(renders: Sequence[Attempt]) -> str:
    """OmniRT's word for the devices that rendered."""
    words = {kind: word for word, kind in BACKENDS.items()}
    return words.get(renders[-1].device.split(":")[0], "auto") if renders else "auto"


def _timings(segments: Sequence[Segment], attempts: Sequence[Attempt]) -> dict[str, float]:
    """Of the attempts that published; several workers at once add up."""
    kinds = {segment.id: segment.kind for segment in segments}
    spent = dict.fromkeys(SegmentKind, 0.0)
    for attempt in attempts:
        if attempt.outcome == Event.SUCCEED.value and attempt.ended_at is not None:
            spent[kinds[attempt.segment_id]] += (attempt.ended_at - attempt.started_at) * 1000.0
    return {
        "prepare_conditions_ms": round(spent[SegmentKind.PREPARE], 3),
        "denoise_loop_ms": round(spent[SegmentKind.RENDER], 3),
        "export_ms": round(spent[SegmentKind.ASSEMBLE], 3),
        "chunk_count": float(sum(kind is SegmentKind.RENDER for kind in kinds.values())),
    }


def _ms(instant: float) -> int:
    return round(instant * 1000.0)


_ENDS: Mapping[str, str] = {
    "job_succeeded": "job_finished",
    "job_failed": "job_failed",
    "job_cancelled": "job_cancelled",
}
ENDS = frozenset(_ENDS.values())
_STAGES: Mapping[str, str] = {
    "lease": "stage_start",
    "succeed": "stage_end",
    "retry": "stage_error",
    "expire": "stage_error",
    "fail": "stage_error",
    "interrupt": "stage_error",
}
_OWN = frozenset({"pause", "resume", "priority", "deadline", "requeue"})


def stream_events(
    history: Sequence[LedgerEvent], segments: Sequence[Segment], *, before_end: bool = False
) -> list[dict[str, Any]]:
    """The job's history as OmniRT tells it; `before_end` leaves out the event that ended the job."""
    by_id = {segment.id: segment for segment in segments}
    told = [event for line in history for event in told_of(line, by_id)]
    return [event for event in told if not (before_end and event["event"] in ENDS)]


def told_of(line: LedgerEvent, segments: Mapping[int, Segment]) -> list[dict[str, Any]]:
    """One line of the ledger's history as OmniRT tells it; nothing for what only the ledger cares about."""
    segment = segments.get(line.segment_id or 0)
    if line.event == "submit":
        return [_event("job_enqueued", "job", line, {})]
    if line.event in _ENDS:
        return [_event(_ENDS[line.event], "job", line, {"error": line.detail} if line.detail else {})]
    if line.event in _STAGES and segment is not None:
        data: dict[str, Any] = {"segment": segment.number, "attempt": line.attempt, "worker": line.worker}
        name = _STAGES[line.event]
        if name == "stage_error" and line.detail:
            data["error"] = line.detail
        begins = line.event == "lease" and segment.kind is SegmentKind.PREPARE and line.attempt == 1
        started = [_event("job_started", "job", line, {})] if begins else []
        return [*started, _event(name, segment.kind.value, line, data)]
    if line.event in _OWN:
        return [_event(line.event, "job", line, {"detail": line.detail} if line.detail else {})]
    return []


def _event(name: str, stage: str, line: LedgerEvent, data: dict[str, Any]) -> dict[str, Any]:
    return {"event": name, "stage": stage, "timestamp_ms": _ms(line.at), "data": data, "id": line.id}


def job_record(ledger: Ledger, job: Job) -> dict[str, Any]:
    """OmniRT's JobRecord, with `result` once the job succeeded."""
    segments, attempts = read.segments(ledger, job.id), read.attempts(ledger, job.id)
    renders = rendering(attempts, segments)
    record: dict[str, Any] = {
        "id": str(job.id),
        "state": job_state(job),
        "backend": backend_of(renders),
        "request": {
            "task": TASK,
            "model": job.model,
            "backend": "auto",
            "inputs": {"image": job.portrait, "audio": job.audio} | ({"prompt": job.prompt} if job.prompt else {}),
            "config": config_of(job),
            "adapters": None,
        },
        "error": job.reason if job.state is JobState.FAILED else None,
        "trace_id": trace_id(job),
        "worker_id": (renders or attempts)[-1].worker if attempts else None,
        "enqueued_at_ms": _ms(job.created_at),
        "started_at_ms": None if job.started_at is None else _ms(job.started_at),
        "finished_at_ms": None if job.finished_at is None else _ms(job.finished_at),
        "execution_mode": "persistent_worker",
        "events": stream_events(read.events(ledger, job_id=job.id, limit=2000), segments),
    }
    if job.state is JobState.SUCCEEDED:
        record["result"] = result_of(ledger, job).to_dict()
    return record
