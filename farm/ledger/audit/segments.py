"""Rules of the audit: segments, their frames and their order."""

from __future__ import annotations

from sqlalchemy import and_, case, exists, func, or_, select
from sqlalchemy.orm import Session, aliased

from farm.ledger.audit.findings import Findings, about, broken_by, segments_where
from farm.ledger.repair import LOST_AGAIN
from farm.ledger.tables import (
    AttemptRow,
    JobRow,
    SegmentRow,
)
from farm.states import JobState, SegmentKind, SegmentState

OPEN = (SegmentState.WAITING, SegmentState.QUEUED, SegmentState.LEASED)
ENDED = (SegmentState.SUCCEEDED, SegmentState.FAILED, SegmentState.CANCELLED)


def segments_own_every_frame_once(session: Session) -> Findings:
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
        yield (
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
        yield (f"job {job_id}", f"its segments own {owned} frames of {total}")


def chains_are_rendered_in_order(session: Session) -> Findings:
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
    yield from broken_by(
        session,
        segments_where(SegmentRow.needs_carry, offered, ~ready),
        lambda row: f"it is {row.state} before the segment that it starts from is published",
    )


def films_are_assembled_last(session: Session) -> Findings:
    """A film is assembled only after all its segments, and nothing is rendered before it was prepared."""
    other = aliased(SegmentRow)
    offered = (SegmentState.QUEUED, SegmentState.LEASED, SegmentState.SUCCEEDED)
    needs = case((SegmentRow.kind == SegmentKind.ASSEMBLE, SegmentKind.RENDER), else_=SegmentKind.PREPARE)
    missing = exists().where(
        other.job_id == SegmentRow.job_id, other.kind == needs, other.state != SegmentState.SUCCEEDED
    )
    # Where a published file was lost and its segment is rendered again, the others stay as they are.
    early = and_(SegmentRow.kind != SegmentKind.PREPARE, SegmentRow.state.in_(offered), missing)
    yield from broken_by(
        session,
        segments_where(early),
        lambda row: f"it is {row.state} before what it is made of is published",
    )


def ended_segments_have_an_end(session: Session) -> Findings:
    """A segment has the time of its end if and only if it ended."""
    yield from broken_by(
        session,
        segments_where(SegmentRow.state.in_(ENDED) == SegmentRow.finished_at.is_(None)),
        lambda row: f"it is {row.state} with finished_at={row.finished_at!r}",
    )


def held_segments_are_of_stopped_jobs(session: Session) -> Findings:
    """Open segments are held if and only if their job is paused, failed or cancelled."""
    stopped = or_(JobRow.paused, JobRow.state.in_((JobState.FAILED, JobState.CANCELLED)))
    query = (
        select(SegmentRow, JobRow.state, JobRow.paused)
        .join(JobRow, JobRow.id == SegmentRow.job_id)
        .where(SegmentRow.state.in_(OPEN), SegmentRow.held != stopped)
    )
    for row, state, paused in session.execute(query):
        yield (
            about(row),
            f"held={row.held} in a job that is {'paused' if paused else state}",
        )
