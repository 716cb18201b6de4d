"""Does the ledger hold what the farm promises?  Every rule is one query whose rows are violations.

`farm db check --promises` asks on demand, and the chaos suite after every run.  All rules are judged on one snapshot,
so a farm that works meanwhile is not accused of what lies between two queries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ParamSpec

from sqlalchemy.orm import Session

from farm.config import Settings
from farm.ledger.audit.files import (
    files_are_as_published,
    no_orphan_staging_files,
)
from farm.ledger.audit.findings import Findings, Rule
from farm.ledger.audit.jobs import (
    ended_jobs_say_when_and_why,
    films_are_of_succeeded_jobs,
    jobs_are_what_their_segments_say,
    leases_keep_to_quotas,
    no_job_is_lost,
    owed_doorbells_are_rung,
    published_segments_have_their_file,
    spent_budgets_are_told,
)
from farm.ledger.audit.leases import (
    attempts_are_closed_once_and_told,
    attempts_are_numbered_without_holes,
    attempts_stay_within_limits,
    lease_columns_agree,
    no_lease_is_long_overdue,
    one_live_token_per_segment,
    published_once,
    workers_and_leases_agree,
)
from farm.ledger.audit.segments import (
    chains_are_rendered_in_order,
    ended_segments_have_an_end,
    films_are_assembled_last,
    held_segments_are_of_stopped_jobs,
    segments_own_every_frame_once,
)
from farm.ledger.store import Ledger
from farm.store import open_store

P = ParamSpec("P")

ORPHAN_SECONDS = 86_400.0  # as long as `farm gc` leaves a staging file alone

RULES: tuple[Rule, ...] = (
    lease_columns_agree,
    one_live_token_per_segment,
    workers_and_leases_agree,
    attempts_are_numbered_without_holes,
    attempts_are_closed_once_and_told,
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


@dataclass(frozen=True, slots=True)
class Violation:
    """One promise that one row breaks."""

    rule: str  # the name of its function, in words
    about: str  # which row: "job 3", "render segment 7 of job 3", a path
    sentence: str

    def __str__(self) -> str:
        return f"{self.about}: {self.sentence} ({self.rule})"


def audit(
    ledger: Ledger, settings: Settings, *, check_files: bool, orphan_seconds: float = ORPHAN_SECONDS
) -> list[Violation]:
    """Every broken promise.  With `check_files` every artifact that still counts is hashed, which reads it all."""
    with _snapshot(ledger) as session:
        found = [violation for rule in RULES for violation in _judged(rule, session)]
        found += _judged(no_lease_is_long_overdue, session, settings.lease)
        found += _judged(attempts_stay_within_limits, session, settings.retry)
        if check_files:
            found += _judged(files_are_as_published, session, open_store(settings))
            found += _judged(no_orphan_staging_files, session, settings, orphan_seconds)
    return found


def _judged(rule: Callable[P, Findings], *args: P.args, **kwargs: P.kwargs) -> list[Violation]:
    name = rule.__name__.replace("_", " ")
    return [Violation(name, about, sentence) for about, sentence in rule(*args, **kwargs)]


@contextmanager
def _snapshot(ledger: Ledger) -> Iterator[Session]:
    with ledger.engine.connect() as connection:
        if not ledger.is_sqlite:  # there, a transaction that only reads is a snapshot anyway
            connection = connection.execution_options(isolation_level="REPEATABLE READ")
        with Session(connection) as session:
            yield session
