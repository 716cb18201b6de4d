"""The ledger's tables.  Everything that the farm knows is here; see docs/glossary.md for the words.

Instants are seconds since 1970-01-01 UTC as double precision, always taken from the database's own clock.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, cast

import sqlalchemy
from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Double,
    Enum,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    false,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from farm.states import ArtifactKind, Continuity, JobState, SegmentKind, SegmentState, WorkerState

# The condition of the claim's index.  The claim repeats it to the letter: a database takes a partial index only where
# it can prove the condition, and it cannot look into bound parameters.
CLAIMABLE = "segments.state = 'queued' AND NOT segments.held"
LEASED = "segments.state = 'leased'"  # of the index of leases, likewise
_QUEUED = text("state = 'queued' AND NOT held")
NO_DEADLINE = 1e15  # sorts after every real deadline, so that one index serves the claim


def _enum(kind: type[StrEnum]) -> Enum:
    """Stored as its value, with a CHECK, so that a person can read the table and a typo cannot enter it."""
    return Enum(
        kind,
        values_callable=lambda members: [m.value for m in members],
        native_enum=False,
        create_constraint=True,
        name=kind.__name__.lower(),
        length=16,
    )


BigId = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts up only an INTEGER PRIMARY KEY


class Table(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012  SQLAlchemy reads it as a class attribute
        int: BigInteger().with_variant(Integer, "sqlite"),
        float: Double(),
        str: Text(),
        bool: Boolean(),
        bytes: LargeBinary(),
        dict[str, Any]: JSON(),
        list[str]: JSON(),
        SegmentKind: _enum(SegmentKind),
        SegmentState: _enum(SegmentState),
        JobState: _enum(JobState),
        Continuity: _enum(Continuity),
        WorkerState: _enum(WorkerState),
        ArtifactKind: _enum(ArtifactKind),
    }


def plain(row: type[Table]) -> sqlalchemy.Table:
    """The table behind a mapped class.  What is written through it does not pass through the ORM, which pays where a
    statement runs thousands of times."""
    return cast(sqlalchemy.Table, row.__table__)


class OwnerRow(Table):
    """For whom jobs are rendered; carries the clock of fair queueing (see farm/ledger/intake.py)."""

    __tablename__ = "owners"

    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    share: Mapped[float] = mapped_column(default=1.0)
    finish_tag: Mapped[float] = mapped_column(default=0.0)  # virtual time at which its last job would end
    quota: Mapped[int | None]  # render segments that may be under lease for it at once; None: as many as there are


class BatchRow(Table):
    __tablename__ = "batches"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    key: Mapped[str] = mapped_column(String(64), unique=True)  # hash of its jobs' keys
    name: Mapped[str]
    source: Mapped[str]  # where the rows came from, for people
    owner: Mapped[str]
    created_at: Mapped[float]
    budget: Mapped[float | None]  # in the money of the configured rates; None: no limit
    budget_spent_at: Mapped[float | None]  # when its jobs were paused because the budget was spent


class JobRow(Table):
    __tablename__ = "jobs"
    __table_args__ = (
        Index("ix_jobs_state", "state", "id"),
        Index("ix_jobs_batch_id", "batch_id", "id"),
        Index("ix_jobs_output", "output"),
        Index("ix_jobs_owner", "owner", "id"),
        CheckConstraint("state IN ('succeeded','failed','cancelled') = (finished_at IS NOT NULL)", "finished"),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    batch_id: Mapped[int] = mapped_column(ForeignKey("batches.id"))
    row_number: Mapped[int]  # line of the batch file, for error messages
    key: Mapped[str] = mapped_column(String(64), unique=True)  # hash of inputs and settings
    name: Mapped[str]
    owner: Mapped[str]
    tags: Mapped[list[str]]

    portrait: Mapped[str]  # as given, absolute
    portrait_sha256: Mapped[str] = mapped_column(String(64))
    audio: Mapped[str]
    audio_sha256: Mapped[str] = mapped_column(String(64))
    output: Mapped[str]  # where the film goes

    model: Mapped[str]
    preset: Mapped[str]
    settings: Mapped[dict[str, Any]]  # everything that changes pixels, resolved at submit
    prompt: Mapped[str]
    seed: Mapped[int]
    width: Mapped[int]
    height: Mapped[int]
    fps_num: Mapped[int]
    fps_den: Mapped[int]
    continuity: Mapped[Continuity]

    priority: Mapped[int]
    due: Mapped[float] = mapped_column(default=NO_DEADLINE)  # deadline
    paused: Mapped[bool] = mapped_column(default=False)

    state: Mapped[JobState]
    reason: Mapped[str | None]  # one sentence, when failed or cancelled
    failure: Mapped[str | None] = mapped_column(String(32))  # class of the error that ended it
    notes: Mapped[list[str]]  # what was noticed and worked around
    fresh: Mapped[bool] = mapped_column(default=False, server_default=false())  # uses no segment of another film

    audio_seconds: Mapped[float]  # as probed; exact after prepare
    audio_rate: Mapped[int | None]
    audio_samples: Mapped[int | None]
    total_frames: Mapped[int | None]
    facts: Mapped[dict[str, Any]]  # measured once over the whole audio, for the engine
    profile: Mapped[dict[str, Any]]  # encoder profile, frozen at prepare
    engine_version: Mapped[str | None]

    segments_total: Mapped[int] = mapped_column(default=0)  # of kind render
    segments_done: Mapped[int] = mapped_column(default=0)
    frames_done: Mapped[int] = mapped_column(default=0)  # published

    created_at: Mapped[float]
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]


class SegmentRow(Table):
    __tablename__ = "segments"
    __table_args__ = (
        UniqueConstraint("job_id", "kind", "number"),
        # The claim reads the head of this index and nothing else, whatever the size of the ledger.
        Index(
            "ix_segments_claim",
            "queue",
            "unhaste",
            "due",
            "rank",
            "id",
            sqlite_where=_QUEUED,
            postgresql_where=_QUEUED,
        ),
        Index(
            "ix_segments_lease_until",
            "lease_until",
            sqlite_where=text("state = 'leased'"),
            postgresql_where=text("state = 'leased'"),
        ),
        Index("ix_segments_content_key", "content_key"),
        CheckConstraint("(state = 'leased') = (lease_until IS NOT NULL)", "lease"),
        CheckConstraint("(state = 'leased') = (leased_by IS NOT NULL)", "leased_by"),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"))
    kind: Mapped[SegmentKind]
    number: Mapped[int]  # counted from 0 within its kind
    first_frame: Mapped[int] = mapped_column(default=0)
    frames: Mapped[int] = mapped_column(default=0)
    needs_carry: Mapped[bool] = mapped_column(default=False)  # starts from the state that number - 1 left
    part: Mapped[dict[str, Any] | None]  # in a parallel film: a farm.planning.Part
    content_key: Mapped[str | None] = mapped_column(String(64))  # hash of what decides its pixels, the version excepted

    # Copies of the job's values, so that the claim needs one index of one table.
    queue: Mapped[str] = mapped_column(String(64))
    unhaste: Mapped[int]  # the priority, negated: the whole index ascends
    due: Mapped[float]
    rank: Mapped[float]  # start tag of fair queueing between owners
    held: Mapped[bool] = mapped_column(default=False)  # its job is paused, failed or cancelled

    state: Mapped[SegmentState]
    not_before: Mapped[float] = mapped_column(default=0.0)  # back-off
    token: Mapped[int] = mapped_column(default=0)  # fencing: raised by every claim
    attempt: Mapped[int] = mapped_column(default=0)
    errors: Mapped[int] = mapped_column(default=0)  # attempts that failed by this segment's or its device's fault
    losses: Mapped[int] = mapped_column(default=0)  # attempts whose worker vanished
    leased_by: Mapped[str | None] = mapped_column(String(200))
    lease_until: Mapped[float | None]
    smaller: Mapped[bool] = mapped_column(default=False)  # ran out of memory once; the next attempt saves memory
    frames_now: Mapped[int] = mapped_column(default=0)  # of the running attempt

    carry: Mapped[bytes | None]  # the engine's state at this segment's end
    reason: Mapped[str | None]
    failure: Mapped[str | None] = mapped_column(String(32))
    queued_at: Mapped[float | None]
    finished_at: Mapped[float | None]


class AttemptRow(Table):
    """One lease of one segment.  Open while leased, closed once by the event that ended it."""

    __tablename__ = "attempts"
    __table_args__ = (
        UniqueConstraint("segment_id", "number"),
        Index("ix_attempts_job_id_worker", "job_id", "worker"),
        Index("ix_attempts_worker_ended_at", "worker", "ended_at"),
        # Strikes are few however long the history is, and every claim asks for them.
        Index(
            "ix_attempts_strikes",
            "job_id",
            "worker",
            "segment_id",
            sqlite_where=text("strike = 1"),
            postgresql_where=text("strike"),
        ),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    segment_id: Mapped[int] = mapped_column(ForeignKey("segments.id"))
    job_id: Mapped[int]
    number: Mapped[int]
    token: Mapped[int]
    worker: Mapped[str] = mapped_column(String(200))
    device: Mapped[str]
    started_at: Mapped[float]
    ended_at: Mapped[float | None]
    outcome: Mapped[str | None] = mapped_column(String(16))  # an Event
    strike: Mapped[bool] = mapped_column(default=False)  # held against the worker
    failure: Mapped[str | None] = mapped_column(String(32))
    reason: Mapped[str | None]
    frames: Mapped[int] = mapped_column(default=0)
    device_seconds: Mapped[float] = mapped_column(default=0.0)  # spent rendering


class ArtifactRow(Table):
    __tablename__ = "artifacts"
    __table_args__ = (UniqueConstraint("job_id", "kind", "segment_number"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"))
    kind: Mapped[ArtifactKind]
    segment_number: Mapped[int] = mapped_column(default=-1)  # -1: of the whole job
    path: Mapped[str]
    size_bytes: Mapped[int]
    sha256: Mapped[str] = mapped_column(String(64))
    facts: Mapped[dict[str, Any]]
    created_at: Mapped[float]


class WorkerRow(Table):
    __tablename__ = "workers"

    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    queue: Mapped[str] = mapped_column(String(64))
    machine: Mapped[str]
    pid: Mapped[int]
    incarnation: Mapped[str] = mapped_column(String(32))  # a restarted worker is another one
    device: Mapped[str]
    state: Mapped[WorkerState]
    drain: Mapped[str | None] = mapped_column(String(8))  # "finish" or "now": a person asked for it; survives restarts
    reason: Mapped[str | None]  # why it is sick, draining or takes nothing
    segment_id: Mapped[int | None]
    host_pid: Mapped[int | None]
    host_restarts: Mapped[int] = mapped_column(default=0)
    info: Mapped[dict[str, Any]]
    started_at: Mapped[float]
    beat_at: Mapped[float]
    forgiven_at: Mapped[float] = mapped_column(default=0.0)  # strikes before this do not count


class EventRow(Table):
    """The ledger's history: one line for everything that happened, never changed."""

    __tablename__ = "events"
    __table_args__ = (Index("ix_events_job_id", "job_id", "id"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    at: Mapped[float]
    event: Mapped[str] = mapped_column(String(24))
    batch_id: Mapped[int | None]
    job_id: Mapped[int | None]
    segment_id: Mapped[int | None]
    attempt: Mapped[int | None]
    worker: Mapped[str | None] = mapped_column(String(200))
    detail: Mapped[str | None]


class OutboxRow(Table):
    """Doorbells owed since a commit; rung afterwards, by whoever comes first."""

    __tablename__ = "outbox"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    queue: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float]


class LockRow(Table):
    """Who leads: held until an instant of the database's clock, taken over by compare-and-set."""

    __tablename__ = "locks"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    holder: Mapped[str] = mapped_column(String(200))
    until: Mapped[float]


class FileRow(Table):
    """What was learnt of an input file, valid while its size and change time stand."""

    __tablename__ = "files"

    path: Mapped[str] = mapped_column(primary_key=True)
    size_bytes: Mapped[int]
    mtime_ns: Mapped[int]
    sha256: Mapped[str] = mapped_column(String(64))
    facts: Mapped[dict[str, Any]]


class ApiKeyRow(Table):
    """Who may speak to the HTTP API.  The key itself is shown once, when it is made; only its hash is kept."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)  # the part of the key that may be shown
    sha256: Mapped[str] = mapped_column(String(64))
    name: Mapped[str]
    owner: Mapped[str] = mapped_column(String(200))
    scope: Mapped[str] = mapped_column(String(8))
    created_at: Mapped[float]
    revoked_at: Mapped[float | None]


class IdempotencyRow(Table):
    """A request that its client marked with a key of its own, and what it was answered."""

    __tablename__ = "idempotency"
    __table_args__ = (Index("ix_idempotency_created_at", "created_at"),)

    key: Mapped[str] = mapped_column(String(64), primary_key=True)  # hash of owner and the client's key
    request_sha256: Mapped[str] = mapped_column(String(64))
    job_id: Mapped[int | None]  # None while the request is being worked on
    batch: Mapped[dict[str, Any] | None]  # the answer to a batch
    created_at: Mapped[float]
