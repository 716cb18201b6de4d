"""An empty ledger for every test, on SQLite and on PostgreSQL.

Each kind is migrated once and emptied before every test; its engine is kept, because SQLAlchemy compiles every
statement once per engine.  Durability is off in both, as the tests end no power.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from sqlalchemy import event

from farm.ledger import Ledger, open_ledger
from farm.ledger.migrate import upgrade
from farm.ledger.tables import Table

settings.register_profile("farm", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("farm")

MakeDatabase = Callable[..., str]


def open_quick(url: str) -> Ledger:
    """A ledger that does not wait for the disk."""
    ledger = open_ledger(url)
    if ledger.is_sqlite:

        def without_sync(connection: Any, record: Any) -> None:
            connection.execute("PRAGMA synchronous = OFF")

        event.listen(ledger.engine, "connect", without_sync)
    return ledger


@contextmanager
def migrated(url: str) -> Iterator[Ledger]:
    with closing(open_quick(url)) as ledger:
        upgrade(ledger)
        yield ledger


@pytest.fixture(scope="session")
def sqlite_ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    with migrated(f"sqlite:///{tmp_path_factory.mktemp('ledger')}/ledger.db") as ledger:
        yield ledger


@pytest.fixture(scope="session")
def postgres_ledger(make_postgres_database: MakeDatabase) -> Iterator[Ledger]:
    with migrated(make_postgres_database()) as ledger:
        yield ledger


def empty(ledger: Ledger) -> None:
    with ledger.engine.connect().execution_options(farm_write=True) as connection, connection.begin():
        for table in reversed(Table.metadata.sorted_tables):
            connection.execute(table.delete())


@pytest.fixture(params=["sqlite", "postgres"])
def ledger(request: pytest.FixtureRequest) -> Ledger:
    """An empty ledger of the newest shape."""
    found: Ledger = request.getfixturevalue(f"{request.param}_ledger")
    empty(found)
    return found


@pytest.fixture
def another_ledger(ledger: Ledger) -> Iterator[Ledger]:
    """The same ledger as another process sees it."""
    with closing(open_quick(ledger.url)) as opened:
        yield opened


@pytest.fixture
def postgres(postgres_ledger: Ledger) -> Ledger:
    """An empty ledger on PostgreSQL, for what SQLite's one writer cannot show."""
    empty(postgres_ledger)
    return postgres_ledger


@pytest.fixture(params=["sqlite", "postgres"])
def new_url(request: pytest.FixtureRequest, tmp_path: Any) -> str:
    """Where a database is that nobody has used yet."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/new.db"
    url: str = request.getfixturevalue("postgres_url")
    return url
