"""For whom the farm renders: shares, quotas, and what each owner has waiting and running."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    ScalarSelect,
    Select,
    String,
    TextClause,
    bindparam,
    func,
    literal_column,
    select,
    text,
)
from sqlalchemy.orm import Session, aliased

from farm.errors import InputError, NotFound
from farm.ledger.history import append
from farm.ledger.store import Ledger
from farm.ledger.tables import CLAIMABLE, LEASED, JobRow, OwnerRow, SegmentRow
from farm.states import SegmentKind

# Written into the statement and not bound: only then can PostgreSQL see that the index of leases serves it.
_LEASED: ColumnElement[str] = literal_column("'leased'")


@dataclass(frozen=True, slots=True)
class Owner:
    """One owner.  `share` weighs whose turn it is; `quota` limits its render segments under lease at once."""

    name: str
    share: float
    quota: int | None  # None: no limit
    running: int  # render segments under lease
    waiting: int  # render segments that could be leased


def owners(ledger: Ledger) -> list[Owner]:
    """Everybody for whom a job was ever submitted, by name."""
    with ledger.read() as session:
        running = _count_by_owner(session, text(LEASED))
        waiting = _count_by_owner(session, text(CLAIMABLE))
        rows: Sequence[OwnerRow] = session.scalars(select(OwnerRow).order_by(OwnerRow.name)).all()
        return [
            Owner(row.name, row.share, row.quota, running.get(row.name, 0), waiting.get(row.name, 0)) for row in rows
        ]


def _count_by_owner(session: Session, *where: TextClause) -> dict[str, int]:
    rows = session.execute(
        select(JobRow.owner, func.count())
        .select_from(SegmentRow)
        .join(JobRow, JobRow.id == SegmentRow.job_id)
        .where(SegmentRow.kind == SegmentKind.RENDER, *where)
        .group_by(JobRow.owner)
    ).all()
    return {owner: count for owner, count in rows}


def set_share(ledger: Ledger, name: str, share: float) -> None:
    """Weigh an owner's turns against those of others, from its next submission on.  Raises NotFound and InputError."""
    if not 0.01 <= share <= 1000:
        raise InputError(f"a share must be from 0.01 to 1000, not {share:g}")
    _change(ledger, name, "share", share)


def set_quota(ledger: Ledger, name: str, quota: int | None) -> None:
    """Limit how many render segments of an owner may be under lease at once; None lifts the limit.

    Nothing that runs is taken back.  Raises NotFound and InputError.
    """
    if quota is not None and quota < 1:
        raise InputError(f"a quota must be at least 1, not {quota}; pausing the jobs stops them all")
    _change(ledger, name, "quota", quota)


def _change(ledger: Ledger, name: str, column: str, value: float | None) -> None:
    def story(session: Session) -> None:
        row = session.get(OwnerRow, name, with_for_update=True)
        if row is None:
            raise NotFound(f"there is no owner {name!r}; `farm owners list` shows those there are")
        setattr(row, column, value)
        append(session, column, detail=f"{name}: {'none' if value is None else f'{value:g}'}")

    ledger.write(story)


# What the claim asks


def _owner_of(segment: type[SegmentRow]) -> ScalarSelect[str]:
    job = aliased(JobRow)
    return select(job.owner).where(job.id == segment.job_id).correlate(segment).scalar_subquery()


def _count_leases(owner: Any) -> Select[int]:
    """How many render segments are under lease for `owner`.

    The owner is asked for in a subquery and not in a join, and the lease's end is named, so that the database begins
    at the index of leases and not at the owner's hundred thousand jobs.
    """
    leased = aliased(SegmentRow)
    return select(func.count(leased.id)).where(
        leased.state == _LEASED,
        leased.lease_until > 0.0,
        leased.kind == SegmentKind.RENDER,
        _owner_of(leased) == owner,
    )


def within_quota() -> ColumnElement[bool]:
    """Whether the owner of the segment that is looked at may have one more under lease.

    The owners at their limit are found once a statement, over the index of leases: as many rows as there are busy
    workers, whatever waits.
    """
    owner = aliased(OwnerRow)
    running = _count_leases(owner.name).correlate(owner).scalar_subquery()
    full = select(owner.name).where(owner.quota.is_not(None), running >= owner.quota)
    return (SegmentRow.kind != SegmentKind.RENDER) | _owner_of(SegmentRow).not_in(full)


_QUOTA = select(OwnerRow.quota).where(OwnerRow.name == bindparam("of_owner"), OwnerRow.quota.is_not(None))
_RUNNING = _count_leases(bindparam("of_owner", type_=String))
_TAKE_TURNS = text("SELECT pg_advisory_xact_lock(hashtext('farm quota'), hashtext(:of_owner))")


def breaks_quota(session: Session, owner: str) -> bool:
    """Whether this owner has more under lease than its quota, the segment included that this story has just taken.

    Two claims at the same instant do not see each other's lease.  On PostgreSQL they take turns here, and the second
    one counts what the first has committed; SQLite has one writer anyway.
    """
    quota = session.scalar(_QUOTA, {"of_owner": owner})
    if quota is None:
        return False
    if session.get_bind().dialect.name == "postgresql":
        session.execute(_TAKE_TURNS, {"of_owner": owner})
    return (session.scalar(_RUNNING, {"of_owner": owner}) or 0) > quota
