"""Writing a submission: batch, jobs, their first segments and the doorbells owed, in one transaction."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import func, insert, literal, select, text
from sqlalchemy.orm import Session

from farm.errors import InputError
from farm.ledger.ripple import owe
from farm.ledger.store import Ledger, db_now
from farm.ledger.tables import (
    CLAIMABLE,
    NO_DEADLINE,
    BatchRow,
    EventRow,
    JobRow,
    LockRow,
    OwnerRow,
    SegmentRow,
    plain,
)
from farm.ledger.values import JobRequest
from farm.states import FINISHED, JobState, SegmentKind, SegmentState

PREPARE_QUEUE = "cpu"
_IDS_PER_QUERY = 500
_JOBS, _SEGMENTS, _EVENTS = plain(JobRow), plain(SegmentRow), plain(EventRow)


@dataclass(frozen=True, slots=True)
class Intake:
    """What a submission became."""

    batch_id: int | None  # None when every row was known already
    new_job_ids: tuple[int, ...]
    known_job_ids: tuple[int, ...]  # rows whose job exists already, in row order

    @property
    def job_ids(self) -> tuple[int, ...]:
        return tuple(sorted({*self.new_job_ids, *self.known_job_ids}))


def take_in(
    ledger: Ledger, requests: Sequence[JobRequest], *, name: str, source: str, owner: str, budget: float | None = None
) -> Intake:
    """Write the rows that are new as one batch.  Repeating it with the same rows writes nothing.

    Raises InputError when an open job is about to write one of their films: one that came since the rows were checked.
    """

    def story(session: Session) -> Intake:
        _take_turns(ledger, session)
        known = _known(session, [r.key for r in requests])
        new = [r for r in requests if r.key not in known]
        known_ids = tuple(known[r.key] for r in requests if r.key in known)
        if not new:
            return Intake(None, (), known_ids)
        _refuse_taken_outputs(session, new)
        now = session.scalar(select(db_now()))
        assert now is not None
        batch_key = hashlib.sha256("\n".join(sorted(r.key for r in new)).encode()).hexdigest()
        batch_id = session.scalar(
            insert(BatchRow)
            .values(key=batch_key, name=name, source=source, owner=owner, created_at=now, budget=budget)
            .returning(BatchRow.id)
        )
        assert batch_id is not None
        ranks = _ranks(session, new)
        # No RETURNING: with it thousands of rows of forty columns become a few statements of a megabyte each, and to
        # take those apart was most of a submission's time.
        session.execute(insert(_JOBS), [_job_values(r, batch_id, now) for r in new])
        written = session.execute(select(_JOBS.c.key, _JOBS.c.id).where(_JOBS.c.batch_id == batch_id))
        ids = {key: job_id for key, job_id in written}
        job_ids = [ids[r.key] for r in new]
        session.execute(
            insert(_SEGMENTS),
            [
                {
                    "job_id": job_id,
                    "kind": SegmentKind.PREPARE,
                    "number": 0,
                    "queue": PREPARE_QUEUE,
                    "unhaste": -r.priority,
                    "due": NO_DEADLINE if r.due is None else r.due,
                    "rank": rank,
                    "state": SegmentState.QUEUED,
                    "queued_at": now,
                }
                for job_id, r, rank in zip(job_ids, new, ranks, strict=True)
            ],
        )
        history = select(literal(now), literal("submit"), _JOBS.c.batch_id, _JOBS.c.id).where(
            _JOBS.c.batch_id == batch_id
        )
        session.execute(
            insert(_EVENTS).from_select(["at", "event", "batch_id", "job_id"], history.order_by(_JOBS.c.id))
        )
        owe(session, PREPARE_QUEUE)
        return Intake(batch_id, tuple(job_ids), known_ids)

    return ledger.write(story)


def _take_turns(ledger: Ledger, session: Session) -> None:
    """Wait for every other submission to commit: two of the same rows must be one, and so must an owner's clock."""
    session.execute(
        ledger.insert(LockRow)
        .values(name="intake", holder="", until=0.0)
        .on_conflict_do_update(index_elements=[LockRow.name], set_={"holder": ""})
    )


def _refuse_taken_outputs(session: Session, requests: Sequence[JobRequest]) -> None:
    outputs = sorted({r.output for r in requests})
    for start in range(0, len(outputs), _IDS_PER_QUERY):
        other = open_writer(session, outputs[start : start + _IDS_PER_QUERY])
        if other is not None:
            job_id, output = other
            raise InputError(f"job {job_id} is about to write {output}; let it end or give another output")


def open_writer(session: Session, outputs: Sequence[str], *, other_than: int | None = None) -> tuple[int, str] | None:
    """A job that has not ended and is about to write one of these films: its id, and which."""
    query = select(JobRow.id, JobRow.output).where(JobRow.output.in_(outputs), JobRow.state.not_in(list(FINISHED)))
    if other_than is not None:
        query = query.where(JobRow.id != other_than)
    found = session.execute(query.limit(1)).first()
    return (found.id, found.output) if found is not None else None


def _known(session: Session, keys: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for start in range(0, len(keys), _IDS_PER_QUERY):
        part = keys[start : start + _IDS_PER_QUERY]
        rows = session.execute(select(JobRow.key, JobRow.id).where(JobRow.key.in_(part)))
        found.update({key: job_id for key, job_id in rows})
    return found


def known_jobs(ledger: Ledger, keys: Sequence[str]) -> dict[str, int]:
    """Which of these keys are jobs already."""
    with ledger.read() as session:
        return _known(session, keys)


def outputs_in_use(ledger: Ledger, outputs: Sequence[str]) -> dict[str, tuple[str, int, JobState]]:
    """The newest job of each output path: its key, id and state."""
    used: dict[str, tuple[str, int, JobState]] = {}
    with ledger.read() as session:
        for start in range(0, len(outputs), _IDS_PER_QUERY):
            part = outputs[start : start + _IDS_PER_QUERY]
            rows = session.execute(
                select(JobRow.output, JobRow.key, JobRow.id, JobRow.state)
                .where(JobRow.output.in_(part))
                .order_by(JobRow.id)
            )
            for output, key, job_id, state in rows:
                used[output] = (key, job_id, state)
    return used


def _ranks(session: Session, requests: Sequence[JobRequest]) -> list[float]:
    """Start tags of start-time fair queueing (Goyal, Vin, Cheng 1996), one per request.

    Each owner's jobs are tagged one after another on a virtual clock that runs at the owner's share, so an owner with
    one job is not kept behind another one's two hundred.  The cost of a job is its seconds of audio.
    """
    now = session.scalar(select(func.min(SegmentRow.rank)).where(text(CLAIMABLE)))
    if now is None:  # nobody waits: the clock stands where the last work was tagged to end
        now = session.scalar(select(func.max(OwnerRow.finish_tag))) or 0.0
    names = sorted({r.owner for r in requests})
    owners = {row.name: row for row in session.scalars(select(OwnerRow).where(OwnerRow.name.in_(names)))}
    for name in names:
        if name not in owners:
            owners[name] = OwnerRow(name=name, share=1.0, finish_tag=0.0)
            session.add(owners[name])
    ranks: list[float] = []
    for request in requests:
        owner = owners[request.owner]
        start = max(now, owner.finish_tag)
        owner.finish_tag = start + request.audio_seconds / owner.share
        ranks.append(start)
    session.flush()
    return ranks


def _job_values(request: JobRequest, batch_id: int, now: float) -> Mapping[str, object]:
    return {
        "batch_id": batch_id,
        "row_number": request.row_number,
        "key": request.key,
        "name": request.name,
        "owner": request.owner,
        "tags": list(request.tags),
        "portrait": request.portrait,
        "portrait_sha256": request.portrait_sha256,
        "audio": request.audio,
        "audio_sha256": request.audio_sha256,
        "output": request.output,
        "model": request.model,
        "preset": request.preset,
        "settings": dict(request.settings),
        "prompt": request.prompt,
        "seed": request.seed,
        "width": request.width,
        "height": request.height,
        "fps_num": request.fps[0],
        "fps_den": request.fps[1],
        "continuity": request.continuity,
        "priority": request.priority,
        "due": NO_DEADLINE if request.due is None else request.due,
        "state": JobState.QUEUED,
        "notes": list(request.notes),
        "fresh": request.fresh,
        "audio_seconds": request.audio_seconds,
        "facts": {},
        "profile": {},
        "created_at": now,
    }
