"""Rules of the audit: leases and attempts."""

from __future__ import annotations

from sqlalchemy import and_, case, exists, func, or_, select
from sqlalchemy.orm import Session

from farm.config import LeaseSettings, RetrySettings
from farm.ledger.audit.findings import Findings, a_reaper_leads, about, broken_by, segments_where
from farm.ledger.repair import LOST_AGAIN
from farm.ledger.store import db_now
from farm.ledger.tables import (
    AttemptRow,
    EventRow,
    SegmentRow,
    WorkerRow,
)
from farm.states import Event, SegmentState


def lease_columns_agree(session: Session) -> Findings:
    """A leased segment names its worker and its end; no other segment does."""
    named = and_(SegmentRow.leased_by.is_not(None), SegmentRow.lease_until.is_not(None))
    bare = and_(SegmentRow.leased_by.is_(None), SegmentRow.lease_until.is_(None))
    leased = SegmentRow.state == SegmentState.LEASED
    yield from broken_by(
        session,
        segments_where(or_(and_(leased, ~named), and_(~leased, ~bare))),
        lambda row: f"it is {row.state} with leased_by={row.leased_by!r} and lease_until={row.lease_until!r}",
    )


def one_live_token_per_segment(session: Session) -> Findings:
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
    yield from broken_by(
        session,
        segments_where(or_(and_(leased, or_(counted != 1, ~right)), and_(~leased, counted > 0))),
        lambda row: f"it is {row.state} with token {row.token}, and its open attempts say otherwise",
    )


def no_lease_is_long_overdue(session: Session, lease: LeaseSettings) -> Findings:
    """While a reaper leads, a lease that ran out is taken back within a lease's time and a sweep."""
    grace = lease.ttl_seconds + lease.sweep_seconds
    yield from broken_by(
        session,
        segments_where(
            SegmentRow.state == SegmentState.LEASED, SegmentRow.lease_until < db_now() - grace, a_reaper_leads()
        ),
        lambda row: f"the lease of {row.leased_by} ran out long ago and nobody took it back",
    )


def workers_and_leases_agree(session: Session) -> Findings:
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
        yield (f"worker {name}", f"it does not hold segment {segment_id}")


def attempts_are_numbered_without_holes(session: Session) -> Findings:
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
        yield (about(row), f"it counts {row.attempt} attempts, {count} are there")


def attempts_are_closed_once_and_told(session: Session) -> Findings:
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
        yield (
            f"attempt {row.number} of segment {row.segment_id} of job {row.job_id}",
            f"outcome {row.outcome!r}, {row.frames} frames in {row.device_seconds} s, and its history do not agree",
        )


def attempts_stay_within_limits(session: Session, retry: RetrySettings) -> Findings:
    """No segment was tried again after it had failed, or lost its worker, as often as is allowed."""
    yield from broken_by(
        session,
        segments_where(or_(SegmentRow.errors > retry.max_errors, SegmentRow.losses > retry.max_losses)),
        lambda row: f"{row.errors} errors and {row.losses} losses are more than are allowed",
    )


def published_once(session: Session) -> Findings:
    """A succeeded segment has exactly one attempt that succeeded, its last; no other segment has one."""
    good = and_(AttemptRow.segment_id == SegmentRow.id, AttemptRow.outcome == Event.SUCCEED.value)
    counted = select(func.count()).where(good).correlate(SegmentRow).scalar_subquery()
    last = exists().where(good, AttemptRow.token == SegmentRow.token)
    done = SegmentRow.state == SegmentState.SUCCEEDED
    yield from broken_by(
        session,
        segments_where(or_(and_(done, or_(counted != 1, ~last)), and_(~done, counted > 0))),
        lambda row: f"it is {row.state}, and its attempts that succeeded are not the one that this needs",
    )
