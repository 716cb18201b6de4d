"""Jobs, workers and leases as tests need them, in one line each."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import select, update

from farm.ledger import Ledger, crew, moves, read
from farm.ledger.intake import take_in
from farm.ledger.store import db_now
from farm.ledger.tables import AttemptRow, SegmentRow, WorkerRow
from farm.ledger.values import JobRequest, Lease, NewArtifact, Segment
from farm.planning import PlannedSegment
from farm.retry import Decision, RetryPolicy
from farm.states import ArtifactKind, Continuity, Event, SegmentKind, SegmentState, WorkerState

TTL = 30.0
QUEUE = "render"
POLICY = RetryPolicy(max_errors=3, max_losses=4, base_delay_seconds=0.0, max_delay_seconds=0.0)
_numbers = itertools.count(1)

REQUEST = JobRequest(
    row_number=2,
    key="",
    name="film",
    owner="ann",
    tags=("t",),
    portrait="/in/a.png",
    portrait_sha256="1" * 64,
    audio="/in/b.wav",
    audio_sha256="2" * 64,
    audio_seconds=10.0,
    output="/out/film.mp4",
    model="preview",
    preset="natural",
    queue=QUEUE,
    settings={"mouth": 1.0},
    prompt="",
    seed=7,
    width=64,
    height=64,
    fps=(25, 1),
    continuity=Continuity.CARRY,
    priority=0,
    due=None,
)


def request(**changes: Any) -> JobRequest:
    """A job request with a key and an output of its own."""
    number = next(_numbers)
    return replace(REQUEST, **{"key": f"{number:064x}", "output": f"/out/{number}.mp4", **changes})


def submit(ledger: Ledger, *requests: JobRequest) -> tuple[int, ...]:
    """The ids of the jobs that these requests became, in their order."""
    return take_in(ledger, requests or (request(),), name="b", source="b.csv", owner="ann").new_job_ids


def hello(
    ledger: Ledger,
    name: str = "w1",
    *,
    queue: str = QUEUE,
    state: WorkerState = WorkerState.IDLE,
    reason: str | None = None,
) -> str:
    """A worker that said hello and beats in this state."""
    crew.say_hello(ledger, name=name, queue=queue, machine="box", pid=1, incarnation=name, device="cpu", info={})
    beat(ledger, name, state, reason)
    return name


def beat(ledger: Ledger, name: str, state: WorkerState = WorkerState.IDLE, reason: str | None = None) -> None:
    crew.beat(ledger, name=name, incarnation=name, state=state, reason=reason, host_pid=None, host_restarts=0, info={})


def claim(
    ledger: Ledger, worker: str = "w1", queue: str = QUEUE, *, ttl: float = TTL, warm: int | None = None
) -> Lease:
    """A lease that must be there."""
    lease = moves.claim(ledger, worker=worker, queue=queue, device="cpu", ttl_seconds=ttl, warm_job=warm)
    assert lease is not None, f"{worker} gets nothing from {queue}"
    return lease


def gets_nothing(ledger: Ledger, worker: str = "w1", queue: str = QUEUE) -> bool:
    return moves.claim(ledger, worker=worker, queue=queue, device="cpu", ttl_seconds=TTL) is None


def chain(segments: int = 3, frames: int = 50, continuity: Continuity = Continuity.CARRY) -> list[PlannedSegment]:
    carried = continuity is Continuity.CARRY
    return [PlannedSegment(n * frames, frames, needs_carry=carried and n > 0) for n in range(segments)]


def plan(ledger: Ledger, lease: Lease, parts: Sequence[PlannedSegment]) -> None:
    """Publish what `prepare` learnt."""
    moves.publish_plan(
        ledger,
        lease,
        artifacts=[artifact(ArtifactKind.PORTRAIT), artifact(ArtifactKind.DRIVING)],
        job={"audio_rate": 16_000, "audio_samples": 1, "total_frames": sum(p.frames for p in parts), "notes": ["n"]},
        plan=parts,
        queue=lease.job.model if lease.job.model != "preview" else QUEUE,
    )


def prepare(ledger: Ledger, job_id: int, segments: int = 3, continuity: Continuity = Continuity.CARRY) -> None:
    """Plan this job, which must be the next in the CPU queue."""
    lease = claim(ledger, "cpu", "cpu")
    assert lease.job.id == job_id
    plan(ledger, lease, chain(segments, continuity=continuity))


def planned(ledger: Ledger, segments: int = 3, continuity: Continuity = Continuity.CARRY, **changes: Any) -> int:
    """A job whose segments wait for workers."""
    (job_id,) = submit(ledger, request(continuity=continuity, **changes))
    prepare(ledger, job_id, segments, continuity)
    return job_id


def artifact(kind: ArtifactKind, path: str = "", **facts: Any) -> NewArtifact:
    return NewArtifact(kind, path or f"/artifacts/{kind}.{next(_numbers)}", 3, "9" * 64, facts)


def publish(ledger: Ledger, lease: Lease, carry: bytes = b"") -> None:
    """End a lease well, with the artifact that its kind makes."""
    if lease.segment.kind is SegmentKind.ASSEMBLE:
        moves.publish(ledger, lease, artifacts=[artifact(ArtifactKind.FILM)])
        return
    moves.publish(
        ledger,
        lease,
        artifacts=[artifact(ArtifactKind.SEGMENT), artifact(ArtifactKind.THUMBNAIL)],
        carry=carry or f"carry of {lease.segment.number}".encode(),
        frames=lease.segment.frames,
        device_seconds=2.0,
        engine_version="1",
    )


def render_all(ledger: Ledger, worker: str = "w1") -> None:
    """Render everything that a worker can take."""
    while (lease := moves.claim(ledger, worker=worker, queue=QUEUE, device="cpu", ttl_seconds=TTL)) is not None:
        publish(ledger, lease)


def finished(ledger: Ledger, segments: int = 3, **changes: Any) -> int:
    """A job whose film is published."""
    job_id = planned(ledger, segments, **changes)
    render_all(ledger)
    publish(ledger, claim(ledger, "cpu", "cpu"))
    return job_id


def fail(ledger: Ledger, lease: Lease, *, for_good: bool = False, strike: bool = True, delay: float = 0.0) -> None:
    event = Event.FAIL if for_good else Event.RETRY
    moves.release(ledger, lease, Decision(event, "boom", "engine", delay, strike=strike, counts=True))


def interrupt(ledger: Ledger, lease: Lease) -> None:
    moves.release(ledger, lease, Decision(Event.INTERRUPT, "stopped", "stop"))


def run_out(ledger: Ledger, lease: Lease) -> None:
    """Let the lease end now, by the ledger's clock."""
    change(ledger, SegmentRow, lease.segment.id, lease_until=ledger.now() - 1.0)


def change(ledger: Ledger, table: Any, row_id: Any, **values: Any) -> None:
    """Write into a row behind the farm's back."""
    key = table.__table__.primary_key.columns.values()[0]
    ledger.write(lambda session: session.execute(update(table).where(key == row_id).values(**values)))


def segment(ledger: Ledger, job_id: int, number: int = 0, kind: SegmentKind = SegmentKind.RENDER) -> Segment:
    return next(s for s in read.segments(ledger, job_id) if (s.kind, s.number) == (kind, number))


def states(ledger: Ledger, job_id: int) -> list[SegmentState]:
    """States of the job's segments: prepare, render 0…, assemble."""
    return [s.state for s in read.segments(ledger, job_id)]


def history(ledger: Ledger, job_id: int) -> list[str]:
    return [line.event for line in read.events(ledger, job_id=job_id)]


def worker_row(ledger: Ledger, name: str) -> WorkerRow:
    with ledger.read() as session:
        return session.get_one(WorkerRow, name)


def open_attempts(ledger: Ledger, job_id: int) -> int:
    with ledger.read() as session:
        return len(
            session.scalars(
                select(AttemptRow.id).where(AttemptRow.job_id == job_id, AttemptRow.ended_at.is_(None))
            ).all()
        )


def age_worker(ledger: Ledger, name: str, seconds: float) -> None:
    """Let a worker's last beat be this long ago."""
    ledger.write(
        lambda session: session.execute(
            update(WorkerRow).where(WorkerRow.name == name).values(beat_at=db_now() - seconds)
        )
    )


def attempt_of(ledger: Ledger, lease: Lease) -> int:
    """The id of a lease's attempt."""
    with ledger.read() as session:
        return session.scalars(
            select(AttemptRow.id).where(AttemptRow.segment_id == lease.segment.id, AttemptRow.token == lease.token)
        ).one()
