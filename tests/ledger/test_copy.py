"""A farm that grows moves its ledger from SQLite into PostgreSQL, and back if it must."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select, update

from farm.errors import InputError
from farm.ledger import Ledger, crew, read
from farm.ledger.copying import copy_into
from farm.ledger.tables import IdempotencyRow, Table, WorkerRow
from farm.states import JobState

from . import scenes
from .conftest import empty


@pytest.fixture(params=["to postgres", "to sqlite"])
def ledgers(request: pytest.FixtureRequest, sqlite_ledger: Ledger, postgres_ledger: Ledger) -> tuple[Ledger, Ledger]:
    """One to copy from and one to copy into, both empty."""
    for each in (sqlite_ledger, postgres_ledger):
        empty(each)
    return (sqlite_ledger, postgres_ledger) if request.param == "to postgres" else (postgres_ledger, sqlite_ledger)


def content(ledger: Ledger) -> dict[str, list[Any]]:
    with ledger.read() as session:
        return {
            table.name: sorted((tuple(row) for row in session.execute(select(table))), key=repr)
            for table in Table.metadata.sorted_tables
        }


def test_every_row_is_copied_and_the_farm_goes_on_there(ledgers: tuple[Ledger, Ledger]) -> None:
    source, target = ledgers
    done = scenes.finished(source)
    scenes.hello(source)
    under_way = scenes.planned(source)
    scenes.publish(source, scenes.claim(source))
    pending = IdempotencyRow(key="k", request_sha256="r", job_id=None, batch=None, created_at=source.now())
    source.write(lambda session: session.add(pending))
    crew.say_goodbye(source, name="w1", incarnation="w1")

    assert copy_into(source, target) == 2

    assert content(target) == content(source)
    with target.read() as session:
        assert session.scalar(select(IdempotencyRow.key).where(IdempotencyRow.batch.is_(None))) == "k"
    (new,) = scenes.submit(target)
    assert new > under_way > done
    scenes.hello(target)
    scenes.render_all(target)
    assert read.job(target, under_way).state is JobState.ASSEMBLING


def test_a_ledger_whose_workers_are_at_work_is_not_copied(ledgers: tuple[Ledger, Ledger]) -> None:
    source, target = ledgers
    scenes.planned(source)
    scenes.hello(source)
    with pytest.raises(InputError, match="at work: w1; stop all workers"):
        copy_into(source, target)
    long_ago = update(WorkerRow).values(beat_at=source.now() - 3600.0)
    source.write(lambda session: session.execute(long_ago))  # it was killed, and nobody is left to say so
    assert copy_into(source, target) == 1


def test_nothing_is_copied_into_a_ledger_that_holds_something(ledgers: tuple[Ledger, Ledger]) -> None:
    source, target = ledgers
    scenes.planned(source)
    scenes.planned(target)
    before = content(target)
    with pytest.raises(InputError, match="give an empty database"):
        copy_into(source, target)
    assert content(target) == before
