"""Rules of the audit: jobs and their films, batches, owners and doorbells."""

from __future__ import annotations

from collections import defaultdict

from sqlalchemy import and_, case, exists, func, or_, select
from sqlalchemy.orm import Session, aliased

from farm.ledger.audit.findings import Findings, a_reaper_leads, about, broken_by, segments_where
from farm.ledger.store import db_now
from farm.ledger.tables import (
    ArtifactRow,
    AttemptRow,
    BatchRow,
    EventRow,
    JobRow,
    OutboxRow,
    OwnerRow,
    SegmentRow,
)
from farm.states import FINISHED, ArtifactKind, JobState, SegmentKind, SegmentState, job_state

OWED_SECONDS = 60.0  # how long a doorbell may be owed while a reaper leads


def jobs_are_what_their_segments_say(session: Session) -> Findings:
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
            yield (f"job {job_id}", f"it says {said} and is {right}")


def ended_jobs_say_when_and_why(session: Session) -> Findings:
    """A finished job has its end, a failed or cancelled one its reason, and no other job has either."""
    dead = JobRow.state.in_((JobState.FAILED, JobState.CANCELLED))
    wrong = or_(
        JobRow.state.in_(list(FINISHED)) == JobRow.finished_at.is_(None),
        dead == (func.coalesce(JobRow.reason, "") == ""),
    )
    for job_id, state, reason in session.execute(select(JobRow.id, JobRow.state, JobRow.reason).where(wrong)):
        yield (f"job {job_id}", f"it is {state} with reason {reason!r}")


def no_job_is_lost(session: Session) -> Findings:
    """Every unfinished job has a segment that is queued or leased, and none that waits for what is published."""
    moving = exists().where(
        SegmentRow.job_id == JobRow.id, SegmentRow.state.in_((SegmentState.QUEUED, SegmentState.LEASED))
    )
    for job_id, state in session.execute(
        select(JobRow.id, JobRow.state).where(JobRow.state.not_in(list(FINISHED)), ~moving)
    ):
        yield (f"job {job_id}", f"it is {state} and nothing of it is queued or leased")
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
    yield from broken_by(
        session,
        segments_where(SegmentRow.state == SegmentState.WAITING, ~waits_for),
        lambda row: "it waits, and all that it waits for is published",
    )


def films_are_of_succeeded_jobs(session: Session) -> Findings:
    """A succeeded job has one film; no other job has one."""
    films = (
        select(func.count())
        .where(ArtifactRow.job_id == JobRow.id, ArtifactRow.kind == ArtifactKind.FILM)
        .correlate(JobRow)
        .scalar_subquery()
    )
    wanted = case((JobRow.state == JobState.SUCCEEDED, 1), else_=0)
    for job_id, state, count in session.execute(select(JobRow.id, JobRow.state, films).where(films != wanted)):
        yield (f"job {job_id}", f"it is {state} and has {count} films")


def published_segments_have_their_file(session: Session) -> Findings:
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
        yield (about(row), f"it is {row.state} and the ledger knows {count} files")


def owed_doorbells_are_rung(session: Session) -> Findings:
    """While a reaper leads, no doorbell stays owed."""
    count, oldest = session.execute(
        select(func.count(), func.min(OutboxRow.created_at)).where(
            OutboxRow.created_at < db_now() - OWED_SECONDS, a_reaper_leads()
        )
    ).one()
    if count:
        yield ("outbox", f"{count} doorbells are owed since {oldest:.0f}")


def spent_budgets_are_told(session: Session) -> Findings:
    """A batch whose budget was spent has one, the history says so, and a batch's budget is more than nothing."""
    told = exists().where(EventRow.batch_id == BatchRow.id, EventRow.event == "budget_spent")
    wrong = or_(
        BatchRow.budget <= 0, and_(BatchRow.budget_spent_at.is_not(None), or_(BatchRow.budget.is_(None), ~told))
    )
    for batch_id, budget in session.execute(select(BatchRow.id, BatchRow.budget).where(wrong)):
        yield (f"batch {batch_id}", f"its budget is {budget} and the history says nothing of it")


def leases_keep_to_quotas(session: Session) -> Findings:
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
            yield (f"owner {owner}", f"{count} leases and a quota of {quota}")
