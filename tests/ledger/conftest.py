"""A fresh ledger for every test, on SQLite and on PostgreSQL.

SQLite copies a migrated file; PostgreSQL empties the tables of one migrated database.  Durability is off in both, as
the tests end no power.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from sqlalchemy import event, text

from farm.ledger import Ledger, open_ledger
from farm.ledger.migrate import upgrade
from farm.ledger.tables import Table

settings.register_profile("farm", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("farm")

MakeDatabase = Callable[..., str]


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ledger") / "migrated.db"
    with closing(open_ledger(str(path))) as ledger:
        upgrade(ledger)
    return path


@pytest.fixture(scope="session")
def migrated_database(make_postgres_database: MakeDatabase) -> str:
    url = make_postgres_database()
    with closing(open_ledger(url)) as ledger:
        upgrade(ledger)
    return url


@pytest.fixture(params=["sqlite", "postgres"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a migrated, empty ledger is."""
    if request.param == "postgres":
        url: str = request.getfixturevalue("migrated_database")
        with closing(open_ledger(url)) as ledger, ledger.engine.begin() as connection:
            names = ", ".join(table.name for table in Table.metadata.sorted_tables)
            connection.execute(text(f"TRUNCATE {names} RESTART IDENTITY CASCADE"))
        return url
    path = tmp_path / "ledger.db"
    shutil.copyfile(request.getfixturevalue("migrated_file"), path)
    return f"sqlite:///{path}"


def open_quick(url: str) -> Ledger:
    """A ledger that does not wait for the disk."""
    ledger = open_ledger(url)
    if ledger.is_sqlite:

        def without_sync(connection: Any, record: Any) -> None:
            connection.execute("PRAGMA synchronous = OFF")

        event.listen(ledger.engine, "connect", without_sync)
    return ledger


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    """An empty ledger of the newest shape."""
    with closing(open_quick(ledger_url)) as opened:
        yield opened


@pytest.fixture
def another_ledger(ledger_url: str, ledger: Ledger) -> Iterator[Ledger]:
    """The same ledger as another process sees it."""
    with closing(open_quick(ledger_url)) as opened:
        yield opened
