"""Does the ledger hold what the farm promises?  Every rule is one query whose rows are violations.

`farm db check --promises` asks on demand, and the chaos suite after every run.  All rules are judged on one snapshot,
so a farm that works meanwhile is not accused of what lies between two queries.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, ColumnExpressionArgument, Select, and_, case, exists, func, or_, select
from sqlalchemy.orm import Session, aliased

from farm.artifacts import is_staging_name
from farm.config import Settings
from farm.ledger.crew import REAPER_LOCK
from farm.ledger.read import artifact_value
from farm.ledger.repair import LOST_AGAIN
from farm.ledger.store import Ledger, db_now
from farm.ledger.tables import (
    ArtifactRow,
    AttemptRow,
    BatchRow,
    EventRow,
    JobRow,
    LockRow,
    OutboxRow,
    OwnerRow,
    SegmentRow,
    WorkerRow,
)
from farm.states import FINISHED, ArtifactKind, Event, JobState, SegmentKind, SegmentState, job_state
from farm.store import Store, open_store

OPEN = (SegmentState.WAITING, SegmentState.QUEUED, SegmentState.LEASED)
ENDED = (SegmentState.SUCCEEDED, SegmentState.FAILED, SegmentState.CANCELLED)
ORPHAN_SECONDS = 86_400.0  # as long as `farm gc` leaves a staging file alone
OWED_SECONDS = 60.0  # how long a doorbell may be owed while a reaper leads


@dataclass(frozen=True, slots=True)
class Violation:
    """One promise that one row breaks."""

    rule: str
    about: str  # which row: "job 3", "segment 7 of job 3", a path
    sentence: str

    def __str__(self) -> str:
        return f"{self.about}: {self.sentence} ({self.rule})"


Finding = Iterator[Violation]
Rule = Callable[[Session, Settings], Finding]


def audit(
    ledger: Ledger, settings: Settings, *, check_files: bool, orphan_seconds: float = ORPHAN_SECONDS
) -> list[Violation]:
    """Every broken promise.  With `check_files` every artifact that still counts is hashed, which reads it all."""
    with _snapshot(ledger) as session:
        found = [violation for rule in RULES for violation in rule(session, settings)]
        if check_files:
            found += _files_are_as_published(session, open_store(settings))
            found += _no_orphan_staging_files(session, settings, orphan_seconds)
    return found


@contextmanager
def _snapshot(ledger: Ledger) -> Iterator[Session]:
    with ledger.engine.connect() as connection:
        if not ledger.is_sqlite:  # there, a transaction that only reads is a snapshot anyway
            connection = connection.execution_options(isolation_level="REPEATABLE READ")
        with Session(connection) as session:
            yield session


def _segments(*where: ColumnExpressionArgument[bool]) -> Select[Any]:
    return select(SegmentRow).where(*where).order_by(SegmentRow.id)


def _about(row: SegmentRow) -> str:
    return f"{row.kind} segment {row.number} of job {row.job_id}"


def _each(session: Session, rule: str, query: Select[Any], say: Callable[[SegmentRow], str]) -> Finding:
    for row in session.scalars(query):
        yield Violation(rule, _about(row), say(row))


# Leases


def lease_columns_agree(session: Session, settings: Settings) -> Finding:
    """A leased segment names its worker and its end; no other segment does."""
    named = and_(SegmentRow.leased_by.is_not(None), SegmentRow.lease_until.is_not(None))
    bare = and_(SegmentRow.leased_by.is_(None), SegmentRow.lease_until.is_(None))
    leased = SegmentRow.state == SegmentState.LEASED
    yield from _each(
        session,
        "lease columns agree",
        _segments(or_(and_(leased, ~named), and_(~leased, ~bare))),
        lambda row: f"it is {row.state} with leased_by={row.leased_by!r} and lease_until={row.lease_until!r}",
    )


def one_live_token_per_segment(session: Session, settings: Settings) -> Finding:
    """A leased segment has one open attempt, of its own token and worker; no other segment has one."""
    mine = and_(AttemptRow.segment_id == SegmentRow.id, AttemptRow.ended_at.is_(None))
    counted = select(func.count()).where(mine).correlate(SegmentRow).scalar_subquery()
    right = exists().where(
        mine,
        AttemptRow.token == SegmentRow.token,
        AttemptRow.number == SegmentRow.attempt,
        AttemptRow.worker == SegmentRow.leased_by,
    )
    leased = SegmentRow.state == SegmentState.LEASED
    yield from _each(
        session,
        "one live token per segment",
        _segments(or_(and_(leased, or_(counted != 1, ~right)), and_(~leased, counted > 0))),
        lambda row: f"it is {row.state} with token {row.token}, and its open attempts say otherwise",
    )


def no_lease_is_long_overdue(session: Session, settings: Settings) -> Finding:
    """While a reaper leads, a lease that ran out is taken back within a lease's time and a sweep."""
    grace = settings.lease.ttl_seconds + settings.lease.sweep_seconds
    yield from _each(
        session,
        "no lease is long overdue",
        _segments(
            SegmentRow.state == SegmentState.LEASED, SegmentRow.lease_until < db_now() - grace, _a_reaper_leads()
        ),
        lambda row: f"the lease of {row.leased_by} ran out long ago and nobody took it back",
    )


def workers_and_leases_agree(session: Session, settings: Settings) -> Finding:
    """A worker that names a segment holds its lease.

    The other way round need not hold: a claim whose answer was lost leaves a lease that its worker knows nothing of.
    """
    rows = session.execute(
        select(WorkerRow.name, WorkerRow.segment_id)
        .outerjoin(
            SegmentRow,
            and_(
                SegmentRow.id == WorkerRow.segment_id,
                SegmentRow.state == SegmentState.LEASED,
                SegmentRow.leased_by == WorkerRow.name,
            ),
        )
        .where(WorkerRow.segment_id.is_not(None), SegmentRow.id.is_(None))
    )
    for name, segment_id in rows:
        yield Violation("workers and leases agree", f"worker {name}", f"it does not hold segment {segment_id}")


# Attempts


def attempts_are_numbered_without_holes(session: Session, settings: Settings) -> Finding:
    """A segment's attempts are 1, 2, … up to its own count, each with a token of its own."""
    counted = (
        select(
            AttemptRow.segment_id.label("segment_id"),
            func.count().label("n"),
            func.min(AttemptRow.number).label("first"),
            func.max(AttemptRow.number).label("last"),
            func.count(AttemptRow.token.distinct()).label("tokens"),
            func.max(AttemptRow.token).label("newest"),
        )
        .group_by(AttemptRow.segment_id)
        .subquery()
    )
    n = func.coalesce(counted.c.n, 0)
    query = (
        select(SegmentRow, n)
        .outerjoin(counted, counted.c.segment_id == SegmentRow.id)
        .where(
            or_(
                n != SegmentRow.attempt,
                counted.c.first != 1,
                counted.c.last != n,
                counted.c.tokens != n,
                counted.c.newest != SegmentRow.token,
            )
        )
    )
    for row, count in session.execute(query):
        yield Violation(
            "attempts are numbered without holes", _about(row), f"it counts {row.attempt} attempts, {count} are there"
        )


def attempts_are_closed_once_and_told(session: Session, settings: Settings) -> Finding:
    """A closed attempt has an end, an outcome and both lines of history; an open one has the first line only."""
    told = (
        select(func.count())
        .where(
            EventRow.segment_id == AttemptRow.segment_id,
            EventRow.attempt == AttemptRow.number,
            EventRow.event == Event.LEASE.value,
        )
        .scalar_subquery()
    )
    first_outcome = case((AttemptRow.outcome == LOST_AGAIN, Event.SUCCEED.value), else_=AttemptRow.outcome)
    ends_told = (
        select(func.count())
        .where(
            EventRow.segment_id == AttemptRow.segment_id,
            EventRow.attempt == AttemptRow.number,
            EventRow.event == first_outcome,
        )
        .scalar_subquery()
    )
    half_closed = AttemptRow.ended_at.is_(None) != AttemptRow.outcome.is_(None)
    impossible = or_(AttemptRow.ended_at < AttemptRow.started_at, AttemptRow.device_seconds < 0, AttemptRow.frames < 0)
    untold = or_(told != 1, and_(AttemptRow.outcome.is_not(None), ends_told != 1))
    for row in session.scalars(select(AttemptRow).where(or_(half_closed, impossible, untold))):
        yield Violation(
            "attempts are closed once and told",
            f"attempt {row.number} of segment {row.segment_id} of job {row.job_id}",
            f"outcome {row.outcome!r}, {row.frames} frames in {row.device_seconds} s, and its history do not agree",
        )


def attempts_stay_within_limits(session: Session, settings: Settings) -> Finding:
    """No segment was tried again after it had failed, or lost its worker, as often as is allowed."""
    yield from _each(
        session,
        "attempts stay within limits",
        _segments(or_(SegmentRow.errors > settings.retry.max_errors, SegmentRow.losses > settings.retry.max_losses)),
        lambda row: f"{row.errors} errors and {row.losses} losses are more than are allowed",
    )


def published_once(session: Session, settings: Settings) -> Finding:
    """A succeeded segment has exactly one attempt that succeeded, its last; no other segment has one."""
    good = and_(AttemptRow.segment_id == SegmentRow.id, AttemptRow.outcome == Event.SUCCEED.value)
    counted = select(func.count()).where(good).correlate(SegmentRow).scalar_subquery()
    last = exists().where(good, AttemptRow.token == SegmentRow.token)
    done = SegmentRow.state == SegmentState.SUCCEEDED
    yield from _each(
        session,
        "published once",
        _segments(or_(and_(done, or_(counted != 1, ~last)), and_(~done, counted > 0))),
        lambda row: f"it is {row.state}, and its attempts that succeeded are not the one that this needs",
    )


# Segments and frames


def segments_own_every_frame_once(session: Session, settings: Settings) -> Finding:
    """The render segments of a planned job are numbered 0, 1, … and tile [0, total_frames)."""
    numbered = (
        select(
            SegmentRow.job_id.label("job_id"),
            SegmentRow.number.label("number"),
            SegmentRow.first_frame.label("first"),
            SegmentRow.frames.label("frames"),
            (func.row_number().over(partition_by=SegmentRow.job_id, order_by=SegmentRow.number) - 1).label("nth"),
            (
                func.sum(SegmentRow.frames).over(partition_by=SegmentRow.job_id, order_by=SegmentRow.number)
                - SegmentRow.frames
            ).label("before"),
        )
        .where(SegmentRow.kind == SegmentKind.RENDER)
        .subquery()
    )
    wrong = select(numbered.c.job_id, numbered.c.number).where(
        or_(
            numbered.c.first != numbered.c.before,
            numbered.c.frames <= 0,
            numbered.c.number != numbered.c.nth,
        )
    )
    for job_id, number in session.execute(wrong):
        yield Violation(
            "segments own every frame once",
            f"render segment {number} of job {job_id}",
            "its frames do not follow those of the segment before it",
        )
    sums = (
        select(SegmentRow.job_id.label("job_id"), func.sum(SegmentRow.frames).label("frames"))
        .where(SegmentRow.kind == SegmentKind.RENDER)
        .group_by(SegmentRow.job_id)
        .subquery()
    )
    planned = select(JobRow.id, JobRow.total_frames, sums.c.frames).outerjoin(sums, sums.c.job_id == JobRow.id)
    for job_id, total, owned in session.execute(planned.where(JobRow.total_frames.is_distinct_from(sums.c.frames))):
        yield Violation("segments own every frame once", f"job {job_id}", f"its segments own {owned} frames of {total}")


def chains_are_rendered_in_order(session: Session, settings: Settings) -> Finding:
    """A segment that starts from a carry is offered only after the one before it left that carry."""
    before = aliased(SegmentRow)
    lost_again = exists().where(AttemptRow.segment_id == before.id, AttemptRow.outcome == LOST_AGAIN)
    ready = exists().where(
        before.job_id == SegmentRow.job_id,
        before.kind == SegmentKind.RENDER,
        before.number == SegmentRow.number - 1,
        before.carry.is_not(None),
        or_(before.state == SegmentState.SUCCEEDED, lost_again),
    )
    offered = SegmentRow.state.in_((SegmentState.QUEUED, SegmentState.LEASED, SegmentState.SUCCEEDED))
    yield from _each(
        session,
        "chains are rendered in order",
        _segments(SegmentRow.needs_carry, offered, ~ready),
        lambda row: f"it is {row.state} before the segment that it starts from is published",
    )


def films_are_assembled_last(session: Session, settings: Settings) -> Finding:
    """A film is assembled only after all its segments, and nothing is rendered before it was prepared."""
    other = aliased(SegmentRow)
    offered = (SegmentState.QUEUED, SegmentState.LEASED, SegmentState.SUCCEEDED)
    needs = case((SegmentRow.kind == SegmentKind.ASSEMBLE, SegmentKind.RENDER), else_=SegmentKind.PREPARE)
    missing = exists().where(
        other.job_id == SegmentRow.job_id, other.kind == needs, other.state != SegmentState.SUCCEEDED
    )
    # Where a published file was lost and its segment is rendered again, the others stay as they are.
    early = and_(SegmentRow.kind != SegmentKind.PREPARE, SegmentRow.state.in_(offered), missing)
    yield from _each(
        session,
        "films are assembled last",
        _segments(early),
        lambda row: f"it is {row.state} before what it is made of is published",
    )


def ended_segments_have_an_end(session: Session, settings: Settings) -> Finding:
    """A segment has the time of its end if and only if it ended."""
    yield from _each(
        session,
        "ended segments have an end",
        _segments(SegmentRow.state.in_(ENDED) == SegmentRow.finished_at.is_(None)),
        lambda row: f"it is {row.state} with finished_at={row.finished_at!r}",
    )


def held_segments_are_of_stopped_jobs(session: Session, settings: Settings) -> Finding:
    """Open segments are held if and only if their job is paused, failed or cancelled."""
    stopped = or_(JobRow.paused, JobRow.state.in_((JobState.FAILED, JobState.CANCELLED)))
    query = (
        select(SegmentRow, JobRow.state, JobRow.paused)
        .join(JobRow, JobRow.id == SegmentRow.job_id)
        .where(SegmentRow.state.in_(OPEN), SegmentRow.held != stopped)
    )
    for row, state, paused in session.execute(query):
        yield Violation(
            "held segments are of stopped jobs",
            _about(row),
            f"held={row.held} in a job that is {'paused' if paused else state}",
        )


# Jobs


def jobs_are_what_their_segments_say(session: Session, settings: Settings) -> Finding:
    """State, counts and frames of a job are those that follow from its segments."""
    counts: dict[int, dict[tuple[SegmentKind, SegmentState], int]] = defaultdict(dict)
    frames: dict[int, int] = defaultdict(int)
    for job_id, kind, state, count, owned in session.execute(
        select(
            SegmentRow.job_id, SegmentRow.kind, SegmentRow.state, func.count(), func.sum(SegmentRow.frames)
        ).group_by(SegmentRow.job_id, SegmentRow.kind, SegmentRow.state)
    ):
        counts[job_id][kind, state] = count
        if (kind, state) == (SegmentKind.RENDER, SegmentState.SUCCEEDED):
            frames[job_id] += int(owned)
    columns = (JobRow.id, JobRow.state, JobRow.segments_total, JobRow.segments_done, JobRow.frames_done)
    for job_id, said_state, total, done, published in session.execute(select(*columns)):
        mine = counts[job_id]
        wanted = (
            job_state(mine),
            sum(count for (kind, _), count in mine.items() if kind is SegmentKind.RENDER),
            mine.get((SegmentKind.RENDER, SegmentState.SUCCEEDED), 0),
            frames[job_id],
        )
        if (said_state, total, done, published) != wanted:
            said = f"{said_state} with {done}/{total} segments and {published} frames"
            right = f"{wanted[0]} with {wanted[2]}/{wanted[1]} segments and {wanted[3]} frames"
            yield Violation("jobs are what their segments say", f"job {job_id}", f"it says {said} and is {right}")


def ended_jobs_say_when_and_why(session: Session, settings: Settings) -> Finding:
    """A finished job has its end, a failed or cancelled one its reason, and no other job has either."""
    dead = JobRow.state.in_((JobState.FAILED, JobState.CANCELLED))
    wrong = or_(
        JobRow.state.in_(list(FINISHED)) == JobRow.finished_at.is_(None),
        dead == (func.coalesce(JobRow.reason, "") == ""),
    )
    for job_id, state, reason in session.execute(select(JobRow.id, JobRow.state, JobRow.reason).where(wrong)):
        yield Violation("ended jobs say when and why", f"job {job_id}", f"it is {state} with reason {reason!r}")


def no_job_is_lost(session: Session, settings: Settings) -> Finding:
    """Every unfinished job has a segment that is queued or leased, and none that waits for what is published."""
    moving = exists().where(
        SegmentRow.job_id == JobRow.id, SegmentRow.state.in_((SegmentState.QUEUED, SegmentState.LEASED))
    )
    for job_id, state in session.execute(
        select(JobRow.id, JobRow.state).where(JobRow.state.not_in(list(FINISHED)), ~moving)
    ):
        yield Violation("no job is lost", f"job {job_id}", f"it is {state} and nothing of it is queued or leased")
    before = aliased(SegmentRow)
    unpublished = and_(before.job_id == SegmentRow.job_id, before.state != SegmentState.SUCCEEDED)
    waits_for = case(
        (SegmentRow.kind == SegmentKind.ASSEMBLE, exists().where(unpublished, before.kind == SegmentKind.RENDER)),
        (
            SegmentRow.needs_carry,
            exists().where(unpublished, before.kind == SegmentKind.RENDER, before.number == SegmentRow.number - 1),
        ),
        else_=exists().where(unpublished, before.kind == SegmentKind.PREPARE),
    )
    yield from _each(
        session,
        "no job is lost",
        _segments(SegmentRow.state == SegmentState.WAITING, ~waits_for),
        lambda row: "it waits, and all that it waits for is published",
    )


def films_are_of_succeeded_jobs(session: Session, settings: Settings) -> Finding:
    """A succeeded job has one film; no other job has one."""
    films = (
        select(func.count())
        .where(ArtifactRow.job_id == JobRow.id, ArtifactRow.kind == ArtifactKind.FILM)
        .correlate(JobRow)
        .scalar_subquery()
    )
    wanted = case((JobRow.state == JobState.SUCCEEDED, 1), else_=0)
    for job_id, state, count in session.execute(select(JobRow.id, JobRow.state, films).where(films != wanted)):
        yield Violation("films are of succeeded jobs", f"job {job_id}", f"it is {state} and has {count} films")


def published_segments_have_their_file(session: Session, settings: Settings) -> Finding:
    """In a job that has not ended, a render segment has its artifact if and only if it succeeded."""
    files = (
        select(func.count())
        .where(
            ArtifactRow.job_id == SegmentRow.job_id,
            ArtifactRow.kind == ArtifactKind.SEGMENT,
            ArtifactRow.segment_number == SegmentRow.number,
        )
        .correlate(SegmentRow)
        .scalar_subquery()
    )
    wanted = case((SegmentRow.state == SegmentState.SUCCEEDED, 1), else_=0)
    query = (
        select(SegmentRow, files)
        .join(JobRow, JobRow.id == SegmentRow.job_id)
        .where(
            SegmentRow.kind == SegmentKind.RENDER,
            JobRow.state.not_in(list(FINISHED)),  # `farm gc` may have taken the files of an ended one
            files != wanted,
        )
    )
    for row, count in session.execute(query):
        yield Violation(
            "published segments have their file", _about(row), f"it is {row.state} and the ledger knows {count} files"
        )


# Doorbells


def owed_doorbells_are_rung(session: Session, settings: Settings) -> Finding:
    """While a reaper leads, no doorbell stays owed."""
    count, oldest = session.execute(
        select(func.count(), func.min(OutboxRow.created_at)).where(
            OutboxRow.created_at < db_now() - OWED_SECONDS, _a_reaper_leads()
        )
    ).one()
    if count:
        yield Violation("owed doorbells are rung", "outbox", f"{count} doorbells are owed since {oldest:.0f}")


def spent_budgets_are_told(session: Session, settings: Settings) -> Finding:
    """A batch whose budget was spent has one, the history says so, and a batch's budget is more than nothing."""
    told = exists().where(EventRow.batch_id == BatchRow.id, EventRow.event == "budget_spent")
    wrong = or_(
        BatchRow.budget <= 0, and_(BatchRow.budget_spent_at.is_not(None), or_(BatchRow.budget.is_(None), ~told))
    )
    for batch_id, budget in session.execute(select(BatchRow.id, BatchRow.budget).where(wrong)):
        yield Violation(
            "spent budgets are told", f"batch {batch_id}", f"its budget is {budget} and the history says nothing of it"
        )


def leases_keep_to_quotas(session: Session, settings: Settings) -> Finding:
    """An owner has no more render segments under lease than its quota, but for leases older than the quota."""
    counted = (
        select(JobRow.owner, func.count(), func.max(AttemptRow.started_at), OwnerRow.quota)
        .select_from(SegmentRow)
        .join(JobRow, JobRow.id == SegmentRow.job_id)
        .join(OwnerRow, OwnerRow.name == JobRow.owner)
        .join(AttemptRow, and_(AttemptRow.segment_id == SegmentRow.id, AttemptRow.ended_at.is_(None)))
        .where(SegmentRow.state == SegmentState.LEASED, SegmentRow.kind == SegmentKind.RENDER)
        .group_by(JobRow.owner, OwnerRow.quota)
        .having(func.count() > OwnerRow.quota)
    )
    for owner, count, newest, quota in session.execute(counted):
        since = session.scalar(
            select(func.max(EventRow.at)).where(
                EventRow.event == "quota", EventRow.detail.startswith(f"{owner}: ", autoescape=True)
            )
        )
        if since is None or newest > since:
            yield Violation("leases keep to quotas", f"owner {owner}", f"{count} leases and a quota of {quota}")


def _a_reaper_leads() -> ColumnElement[bool]:
    return exists().where(LockRow.name == REAPER_LOCK, LockRow.until > db_now()).correlate(None)


RULES: tuple[Rule, ...] = (
    lease_columns_agree,
    one_live_token_per_segment,
    no_lease_is_long_overdue,
    workers_and_leases_agree,
    attempts_are_numbered_without_holes,
    attempts_are_closed_once_and_told,
    attempts_stay_within_limits,
    published_once,
    segments_own_every_frame_once,
    chains_are_rendered_in_order,
    films_are_assembled_last,
    ended_segments_have_an_end,
    held_segments_are_of_stopped_jobs,
    jobs_are_what_their_segments_say,
    ended_jobs_say_when_and_why,
    no_job_is_lost,
    films_are_of_succeeded_jobs,
    published_segments_have_their_file,
    owed_doorbells_are_rung,
    spent_budgets_are_told,
    leases_keep_to_quotas,
)


# Files


def _files_are_as_published(session: Session, store: Store) -> Finding:
    """The files that still count exist with their size and hash: films, and all files of jobs that have not ended.

    A film whose path a newer film was written to is the newer one's.
    """
    newest = select(func.max(ArtifactRow.id)).group_by(ArtifactRow.path)
    query = (
        select(ArtifactRow)
        .join(JobRow, JobRow.id == ArtifactRow.job_id)
        .where(
            ArtifactRow.id.in_(newest),
            or_(ArtifactRow.kind == ArtifactKind.FILM, JobRow.state.not_in(list(FINISHED))),
        )
        .order_by(ArtifactRow.id)
    )
    for row in session.scalars(query):
        problem = store.fault(artifact_value(row))
        if problem:
            yield Violation("files are as published", f"{row.kind} of job {row.job_id}", f"{row.path} {problem}")


def _no_orphan_staging_files(session: Session, settings: Settings, older_than_seconds: float) -> Finding:
    """No staging file is left of an attempt that ended long ago."""
    oldest = time.time() - older_than_seconds
    for path in _staging_files(session, settings):
        try:
            old = path.stat().st_mtime < oldest
        except FileNotFoundError:
            continue  # renamed or deleted meanwhile
        if old:
            yield Violation("no orphan staging files", str(path), "an attempt that ended long ago left it")


def _staging_files(session: Session, settings: Settings) -> Iterable[Path]:
    """Below the artifacts, and beside the films."""
    for folder, _, names in os.walk(settings.artifacts_dir):
        yield from (Path(folder, name) for name in names if is_staging_name(Path(name)))
    for folder in sorted({os.path.dirname(output) for output in session.scalars(select(JobRow.output))}):  # noqa: PTH120
        with_names = Path(folder)
        if with_names.is_dir():
            yield from (path for path in with_names.iterdir() if is_staging_name(path))
