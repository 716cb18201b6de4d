"""What leaves the ledger: frozen copies, safe to keep after the session is gone.

Instants (`…_at`, `due`, `lease_until`, `not_before`) are seconds since 1970-01-01 UTC by the ledger's clock; frames and
segments are counted from 0, attempts from 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from farm.planning import Part
from farm.states import ArtifactKind, Continuity, JobState, SegmentKind, SegmentState, WorkerState


@dataclass(frozen=True, slots=True)
class JobRequest:
    """One checked row of a batch file, ready to become a job."""

    row_number: int
    key: str
    name: str
    owner: str
    tags: tuple[str, ...]
    portrait: str
    portrait_sha256: str
    audio: str
    audio_sha256: str
    audio_seconds: float
    output: str
    model: str
    preset: str
    queue: str
    settings: Mapping[str, Any]
    prompt: str
    seed: int
    width: int
    height: int
    fps: tuple[int, int]
    continuity: Continuity
    priority: int
    due: float | None
    notes: tuple[str, ...] = ()
    fresh: bool = False  # render everything, whatever other films could lend


@dataclass(frozen=True, slots=True)
class Job:
    id: int
    batch_id: int
    row_number: int
    key: str
    name: str
    owner: str
    tags: tuple[str, ...]
    portrait: str
    portrait_sha256: str
    audio: str
    audio_sha256: str
    output: str
    model: str
    preset: str
    settings: Mapping[str, Any]
    prompt: str
    seed: int
    width: int
    height: int
    fps: tuple[int, int]
    continuity: Continuity
    priority: int
    due: float | None
    paused: bool
    state: JobState
    reason: str | None
    failure: str | None
    notes: tuple[str, ...]
    fresh: bool
    audio_seconds: float
    audio_rate: int | None
    audio_samples: int | None
    total_frames: int | None
    facts: Mapping[str, Any]
    profile: Mapping[str, Any]
    engine_version: str | None  # of the engine that rendered what is published
    segments_total: int
    segments_done: int
    frames_done: int
    created_at: float
    started_at: float | None
    finished_at: float | None

    @property
    def shown_state(self) -> str:
        """The state as people see it: a paused job is paused, whatever it would be otherwise."""
        return "paused" if self.paused and self.finished_at is None else self.state.value


@dataclass(frozen=True, slots=True)
class Segment:
    """What one worker leases: frames [first_frame, first_frame + frames) of a film, or a step of it without frames."""

    id: int
    job_id: int
    kind: SegmentKind
    number: int
    first_frame: int
    frames: int
    needs_carry: bool
    part: Part | None
    content_key: str | None
    queue: str
    state: SegmentState
    held: bool
    not_before: float
    token: int
    attempt: int
    errors: int
    losses: int
    leased_by: str | None
    lease_until: float | None
    frames_now: int
    reason: str | None
    failure: str | None
    queued_at: float | None
    finished_at: float | None


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to render one segment while the ledger's clock is before its end, renewed by heartbeats."""

    segment: Segment
    job: Job
    token: int
    attempt: int
    worker: str
    carry: bytes | None = None  # the state to start from, if the segment needs one
    smaller: bool = False  # the attempt before ran out of memory

    @property
    def label(self) -> str:
        """How logs and Flower name this lease."""
        if self.segment.kind is SegmentKind.RENDER:
            return f"job {self.job.id} segment {self.segment.number + 1}/{self.job.segments_total}"
        return f"job {self.job.id} {self.segment.kind}"

    @property
    def ids(self) -> dict[str, str | int]:
        """What each line of a log bears while somebody works on this; segments are counted from 1."""
        ids: dict[str, str | int] = {"job": self.job.id, "step": self.segment.kind.value}
        if self.segment.kind is SegmentKind.RENDER:
            ids["segment"] = self.segment.number + 1
        return ids | {"attempt": self.attempt}


@dataclass(frozen=True, slots=True)
class NewArtifact:
    """A finished file that the ledger does not know yet."""

    kind: ArtifactKind
    path: str
    size_bytes: int
    sha256: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reused:
    """A segment of a new film whose file exists already, hash-checked and under a name of its own."""

    artifact: NewArtifact
    carry: bytes | None
    engine_version: str
    source: str  # for the history: "segment 3 of job 7"


@dataclass(frozen=True, slots=True)
class Artifact:
    """A published file.  What belongs to the whole job has -1 as its `segment_number`."""

    id: int
    job_id: int
    kind: ArtifactKind
    segment_number: int
    path: str
    size_bytes: int
    sha256: str
    facts: Mapping[str, Any]
    created_at: float


@dataclass(frozen=True, slots=True)
class Attempt:
    """One lease of one segment; open while `ended_at` is None."""

    id: int
    segment_id: int
    job_id: int
    number: int
    worker: str
    device: str
    started_at: float
    ended_at: float | None
    outcome: str | None
    strike: bool
    failure: str | None
    reason: str | None
    frames: int
    device_seconds: float


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker as of its last beat, and what people want of it (`drain`)."""

    name: str
    queue: str
    machine: str
    pid: int
    incarnation: str
    device: str
    state: WorkerState
    drain: str | None
    reason: str | None
    segment_id: int | None
    host_pid: int | None
    host_restarts: int
    info: Mapping[str, Any]
    started_at: float
    beat_at: float


@dataclass(frozen=True, slots=True)
class Batch:
    """What one submit put in."""

    id: int
    key: str
    name: str
    source: str
    owner: str
    created_at: float
    jobs: Mapping[str, int]  # how many of its jobs are in each shown state
    budget: float | None = None  # in the money of the configured rates
    budget_spent_at: float | None = None  # when it was paused because the budget was spent


@dataclass(frozen=True, slots=True)
class LedgerEvent:
    """One line of the ledger's history."""

    id: int
    at: float
    event: str
    batch_id: int | None
    job_id: int | None
    segment_id: int | None
    attempt: int | None
    worker: str | None
    detail: str | None
