"""What batches have cost so far, and the budgets that pause them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from sqlalchemy import and_, case, exists, func, select, update
from sqlalchemy.orm import Session

from farm.errors import InputError, NotFound
from farm.ledger import control
from farm.ledger.history import append
from farm.ledger.store import Ledger, db_now
from farm.ledger.tables import AttemptRow, BatchRow, JobRow, SegmentRow
from farm.states import FINISHED, SegmentKind

Price = Callable[[Mapping[str, float]], float]  # seconds by device to money


def device_seconds(ledger: Ledger, batch_ids: Sequence[int]) -> dict[int, dict[str, float]]:
    """Seconds of rendering by batch and device, failed attempts and those that run now included."""
    spent: dict[int, dict[str, float]] = {batch_id: {} for batch_id in batch_ids}
    seconds = case((AttemptRow.ended_at.is_(None), db_now() - AttemptRow.started_at), else_=AttemptRow.device_seconds)
    with ledger.read() as session:
        rows = session.execute(
            select(JobRow.batch_id, AttemptRow.device, func.sum(seconds))
            .join(JobRow, JobRow.id == AttemptRow.job_id)
            .join(SegmentRow, SegmentRow.id == AttemptRow.segment_id)
            .where(JobRow.batch_id.in_(batch_ids), SegmentRow.kind == SegmentKind.RENDER)
            .group_by(JobRow.batch_id, AttemptRow.device)
        )
        for batch_id, device, total in rows:
            spent[batch_id][device] = float(total or 0.0)
    return spent


def set_budget(ledger: Ledger, batch_id: int, budget: float | None) -> None:
    """Limit what a batch may cost, in the money of the rates; None lifts the limit.  Raises NotFound and InputError.

    Jobs that were paused because the budget was spent stay paused until somebody resumes them.
    """
    refuse_bad_budget(budget)

    def story(session: Session) -> None:
        won = session.scalar(
            update(BatchRow)
            .where(BatchRow.id == batch_id)
            .values(budget=budget, budget_spent_at=None)
            .returning(BatchRow.id)
        )
        if won is None:
            raise NotFound(f"there is no batch {batch_id}; `farm batches list` shows those there are")
        append(session, "budget", batch_id=batch_id, detail="none" if budget is None else f"{budget:g}")

    ledger.write(story)


def refuse_bad_budget(budget: float | None) -> None:
    """Raises InputError."""
    if budget is not None and not 0 < budget < 1e12:
        raise InputError(f"a budget must be more than 0, not {budget:g}")


def pause_what_is_spent(ledger: Ledger, price: Price) -> list[int]:
    """Pause every batch that still moves although its budget is spent.  Returns the batches' ids.

    The reaper asks for this in every round, so a batch whose jobs somebody resumed without more budget rests again.
    What its running segments cost until they stop at their next chunk comes on top.
    """
    moves = and_(JobRow.state.not_in(list(FINISHED)), ~JobRow.paused)
    with ledger.read() as session:
        limits = {
            batch_id: budget
            for batch_id, budget in session.execute(
                select(BatchRow.id, BatchRow.budget).where(
                    BatchRow.budget.is_not(None), exists().where(JobRow.batch_id == BatchRow.id, moves)
                )
            )
            if budget is not None
        }
    if not limits:
        return []
    spent = device_seconds(ledger, list(limits))
    over = [batch_id for batch_id, budget in limits.items() if price(spent[batch_id]) >= budget]
    for batch_id in over:
        with ledger.read() as session:
            open_jobs = session.scalars(select(JobRow.id).where(JobRow.batch_id == batch_id, moves)).all()
        for job_id in open_jobs:
            control.pause(ledger, job_id)
        _tell(ledger, batch_id, limits[batch_id])
    return over


def _tell(ledger: Ledger, batch_id: int, budget: float) -> None:
    """Note once that a budget is spent, unless it was changed meanwhile."""

    def story(session: Session) -> None:
        won = session.scalar(
            update(BatchRow)
            .where(BatchRow.id == batch_id, BatchRow.budget == budget, BatchRow.budget_spent_at.is_(None))
            .values(budget_spent_at=db_now())
            .returning(BatchRow.id)
        )
        if won is not None:
            append(session, "budget_spent", batch_id=batch_id, detail=f"{budget:g}")

    ledger.write(story)
