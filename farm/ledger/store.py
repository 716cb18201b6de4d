"""Opening the ledger: SQLite in WAL mode or PostgreSQL, one way to read and one way to write."""

from __future__ import annotations

import logging
import random
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Double, Engine, create_engine, event, make_url, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.sql.functions import FunctionElement

from farm.errors import ConfigError, LedgerAway

log = logging.getLogger(__name__)
T = TypeVar("T")

BUSY_SECONDS = 30.0  # how long one statement waits for another writer
READ_SECONDS = 5.0  # how long a query waits for a database that is away
SILENCE_SECONDS = 10.0  # a third of the lease as shipped
RETRY_SECONDS = 60.0  # how long a transaction is tried again while the database is away or in conflict


class db_now(FunctionElement[float]):
    """The database's clock, in seconds since 1970-01-01 UTC.

    Leases are judged by this clock alone, so machines of a farm may disagree about the time.  On PostgreSQL it is the
    clock at the moment of the statement, not of the transaction's begin.
    """

    type = Double()
    inherit_cache = True


@compiles(db_now, "sqlite")
def _sqlite_now(element: Any, compiler: Any, **kw: Any) -> str:
    # unixepoch('subsec') needs SQLite 3.42; the Julian day works everywhere and is exact to a millisecond.
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(db_now, "postgresql")
def _postgres_now(element: Any, compiler: Any, **kw: Any) -> str:
    return "extract(epoch from clock_timestamp())::double precision"


class Ledger:
    """A connection pool to the ledger.  Thread-safe; one per process."""

    def __init__(self, engine: Engine, url: str) -> None:
        self.engine = engine
        self.url = url
        self._writer = engine.execution_options(farm_write=True)

    @property
    def is_sqlite(self) -> bool:
        return self.engine.dialect.name == "sqlite"

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session for queries only.  Raises LedgerAway when the database does not answer or goes away meanwhile."""
        deadline = time.monotonic() + READ_SECONDS
        try:
            with Session(self.engine, expire_on_commit=False) as session:
                while True:
                    try:
                        session.connection()
                        break
                    except DBAPIError as error:
                        session.rollback()
                        if not _may_pass(error) or time.monotonic() > deadline:
                            raise
                        time.sleep(0.2)
                yield session
        except DBAPIError as error:
            if _may_pass(error):
                raise explain_unreachable(error, self.url) from error
            raise

    def write(self, story: Callable[[Session], T], *, patience_seconds: float = RETRY_SECONDS) -> T:
        """Run `story` in one transaction and commit.

        When the database is away, busy or found a deadlock, the whole story is run again until `patience_seconds` have
        passed, so a story must not have effects outside the session; then LedgerAway is raised.  A commit whose answer
        was lost may have happened: every story is guarded by state and token, so that its repetition changes nothing.
        """
        deadline = time.monotonic() + patience_seconds
        pause = 0.05
        while True:
            try:
                with Session(self._writer, expire_on_commit=False) as session, session.begin():
                    return story(session)
            except DBAPIError as error:
                if not _may_pass(error):
                    raise
                if time.monotonic() + pause > deadline:
                    raise explain_unreachable(error, self.url) from error
                log.warning("ledger: %s; trying again for up to %.0f s", _first_line(error), patience_seconds)
                time.sleep(pause * random.uniform(0.5, 1.5))  # writers in conflict must not march in step
                pause = min(pause * 2, 2.0)

    def insert(self, row: type[DeclarativeBase]) -> sqlite.Insert | postgresql.Insert:
        """An INSERT that can say what happens when the row is there already; each database has its own."""
        return sqlite.insert(row) if self.is_sqlite else postgresql.insert(row)

    def now(self) -> float:
        """The ledger's clock."""
        with self.read() as session:
            return float(session.scalar(select(db_now())) or 0.0)

    def close(self) -> None:
        self.engine.dispose()


def open_ledger(url: str, *, silence_seconds: float = SILENCE_SECONDS) -> Ledger:
    """Open the ledger at an SQLAlchemy URL or a plain path of an SQLite file.

    A PostgreSQL that says nothing for `silence_seconds`, or whose client says nothing for so long in the middle of a
    transaction, is given up.  A worker gives a third of its lease.  Raises ConfigError.
    """
    if "://" not in url:
        url = f"sqlite:///{Path(url).expanduser().resolve()}"
    try:
        parsed = make_url(re.sub("^postgres://", "postgresql://", url))  # as many services write it
    except Exception:
        raise ConfigError("FARM_LEDGER_URL is no database URL; use sqlite:////path or postgresql://…") from None
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        if parsed.database in (None, "", ":memory:"):
            raise ConfigError("FARM_LEDGER_URL: the ledger must outlive a process; use a file, not memory")
        assert parsed.database is not None
        _make_folder(Path(parsed.database).parent)
        engine = create_engine(
            parsed.set(drivername="sqlite+pysqlite"), connect_args={"timeout": BUSY_SECONDS}, pool_size=8
        )
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    elif backend == "postgresql":
        try:
            import psycopg  # noqa: F401
        except ImportError:
            raise ConfigError(
                "FARM_LEDGER_URL names PostgreSQL but its driver is not installed;"
                " pip install 'talking-head-farm[postgres]'"
            ) from None
        engine = create_engine(
            parsed.set(drivername="postgresql+psycopg"),
            pool_pre_ping=True,
            pool_size=8,
            connect_args=_postgres_options(silence_seconds),
        )
    else:
        raise ConfigError(f"FARM_LEDGER_URL: {backend} is not supported; use SQLite or PostgreSQL")
    return Ledger(engine, parsed.render_as_string(hide_password=False))


def _make_folder(folder: Path) -> None:
    """Raises ConfigError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{folder}, where the ledger is to lie, cannot be made: {error.strerror}; FARM_HOME must be a folder that"
            " you may write to"
        ) from None


def _postgres_options(silence_seconds: float) -> dict[str, str | int]:
    """What libpq is told, so that a network that swallows everything is noticed within a lease on both ends.

    The kernel's own answer comes after a quarter of an hour where something was sent, and after two hours where not.
    """
    milliseconds, probe = round(silence_seconds * 1000), max(1, round(silence_seconds / 3))
    server = {
        "lock_timeout": round(BUSY_SECONDS * 1000),
        # A worker that is frozen or cut off in the middle of a story must not keep others from its rows for longer.
        "idle_in_transaction_session_timeout": milliseconds,
        # Otherwise each worker that is cut off leaves its connections behind, until there are no more to be had.
        "tcp_keepalives_idle": probe,
        "tcp_keepalives_interval": probe,
        "tcp_keepalives_count": 2,
        "tcp_user_timeout": milliseconds,
    }
    return {
        "connect_timeout": max(2, round(silence_seconds)),
        "options": " ".join(f"-c {name}={value}" for name, value in server.items()),
        "keepalives_idle": probe,
        "keepalives_interval": probe,
        "keepalives_count": 2,
        "tcp_user_timeout": milliseconds,
    }


def _prepare_sqlite(connection: Any, record: Any) -> None:
    connection.isolation_level = None  # the transaction's begin is ours, see _begin_sqlite
    cursor = connection.cursor()
    _use_wal(cursor)
    # A published segment must survive a power cut, so every commit is synced; see docs/scale.md for what that costs.
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute("PRAGMA temp_store = MEMORY")
    cursor.close()


def _use_wal(cursor: Any) -> None:
    """Switch a new file to write-ahead logging; a file stays switched.

    The switch needs the file alone, and SQLite refuses it at once, whatever the busy timeout, when another process
    is at the same switch.
    """
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            if cursor.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                cursor.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and writes later would fail at once instead of waiting for the other writer.
    write = connection.get_execution_options().get("farm_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


# PostgreSQL: serialization failure, deadlock, lock not available, admin shutdown, crash shutdown, cannot connect now,
# idle in transaction for too long.
_PASSING = {"40001", "40P01", "55P03", "57P01", "57P02", "57P03", "25P03"}


def _may_pass(error: DBAPIError) -> bool:
    if error.connection_invalidated:
        return True
    code = getattr(error.orig, "sqlstate", None)
    if code is not None:
        return code in _PASSING or code.startswith("08")
    said = str(error.orig).lower()
    return any(
        words in said
        for words in ("locked", "busy", "is full", "connection", "server closed", "timeout expired", "input failed")
    )


def _first_line(error: DBAPIError) -> str:
    return str(error.orig).strip().splitlines()[0] if error.orig else type(error).__name__


_WRITABLE = "; you must be able to write to that file and its folder"
_MEND_URL = "; check FARM_LEDGER_URL"
_ADVICE = {
    "disk is full": "; free some space where the ledger lies, or run `farm gc`",
    "unable to open database file": _WRITABLE,
    "attempt to write a readonly database": _WRITABLE,
    "disk I/O error": "; is its disk full?",
    "Connection refused": "; start PostgreSQL there, or check FARM_LEDGER_URL",
    "does not exist": _MEND_URL,
    "authentication failed": _MEND_URL,
    "resolve host": _MEND_URL,
    "translate host": _MEND_URL,
}


def explain_unreachable(error: DBAPIError, url: str) -> LedgerAway:
    """A sentence for a person whose ledger cannot be opened; never shows the password."""
    shown = make_url(url).render_as_string(hide_password=True)
    said = _first_line(error)
    advice = next((advice for words, advice in _ADVICE.items() if words in said), "")
    return LedgerAway(f"the ledger at {shown} does not answer: {said}{advice}")
