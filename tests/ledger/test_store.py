"""Opening the ledger, its clock, and a database that is busy or away."""

from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import event, select, text
from sqlalchemy.exc import OperationalError, ProgrammingError
from sqlalchemy.orm import Session

from farm.errors import ConfigError, LedgerAway
from farm.ledger import Ledger, open_ledger, read
from farm.ledger.migrate import upgrade
from farm.ledger.store import db_now

from .conftest import open_quick
from .scenes import planned, submit


def test_the_clock_is_the_databases_in_seconds_since_1970(ledger: Ledger) -> None:
    before, now, after = time.time(), ledger.now(), time.time()
    assert before - 1.0 < now < after + 1.0
    first, second = ledger.now(), ledger.now()
    assert second - first >= 0


def test_the_clock_moves_within_a_transaction_on_postgres(postgres: Ledger) -> None:
    """A long transaction must not judge a lease by the time it began."""
    with postgres.read() as session:
        before = session.scalar(select(db_now()))
        time.sleep(0.01)
        after = session.scalar(select(db_now()))
    assert before is not None and after is not None and after > before


def test_a_private_ledger_is_safe_against_a_power_cut(tmp_path: Path) -> None:
    with closing(open_ledger(str(tmp_path / "deep" / "ledger.db"))) as ledger, ledger.engine.connect() as connection:
        assert connection.scalar(text("PRAGMA journal_mode")) == "wal"
        assert connection.scalar(text("PRAGMA synchronous")) == 2
        assert connection.scalar(text("PRAGMA foreign_keys")) == 1


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqlite://", "the ledger must outlive a process; use a file, not memory"),
        ("sqlite:///:memory:", "the ledger must outlive a process"),
        ("mysql://u@h/d", "mysql is not supported; use SQLite or PostgreSQL"),
        ("://", "is no database URL"),
    ],
)
def test_a_url_that_is_no_ledger_is_refused_with_the_variables_name(url: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_ledger(url)
    assert str(caught.value).startswith("FARM_LEDGER_URL")
    assert said in str(caught.value)


def test_a_path_is_a_ledger_too(tmp_path: Path) -> None:
    with closing(open_ledger(str(tmp_path / "第一 ledger.db"))) as ledger:
        upgrade(ledger)
        submit(ledger)
    assert (tmp_path / "第一 ledger.db").is_file()


def test_a_story_that_fails_leaves_nothing(ledger: Ledger) -> None:
    def story(session: Session) -> None:
        session.execute(text("INSERT INTO outbox (queue, created_at) VALUES ('q', 1.0)"))
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        ledger.write(story)
    with ledger.read() as session:
        assert session.scalar(text("SELECT count(*) FROM outbox")) == 0


def test_a_wrong_statement_is_not_tried_again(ledger: Ledger) -> None:
    tries = []

    def story(session: Session) -> None:
        tries.append(1)
        session.execute(text("SELECT * FROM no_such_table"))

    with pytest.raises((OperationalError, ProgrammingError)):
        ledger.write(story)
    assert len(tries) == 1


def test_a_writer_waits_for_another_writer(ledger: Ledger, another_ledger: Ledger) -> None:
    planned(ledger, 1)
    inside, leave = threading.Event(), threading.Event()

    def slow(session: Session) -> None:
        session.execute(text("UPDATE jobs SET notes = notes"))
        inside.set()
        assert leave.wait(60)

    thread = threading.Thread(target=ledger.write, args=(slow,))
    thread.start()
    assert inside.wait(60)
    threading.Timer(0.1, leave.set).start()
    another_ledger.write(lambda session: session.execute(text("UPDATE jobs SET name = 'second'")))
    thread.join(60)
    assert [job.name for job in read.jobs(ledger)] == ["second"]


def test_readers_do_not_wait_for_a_writer(ledger: Ledger, another_ledger: Ledger) -> None:
    def story(session: Session) -> int:
        session.execute(text("UPDATE owners SET share = 2.0"))
        return len(read.jobs(another_ledger))

    planned(ledger, 1)
    assert ledger.write(story) == 1


def test_a_locked_ledger_is_tried_again_until_patience_ends_and_then_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "ledger.db"
    with closing(open_ledger(str(path))) as ledger:
        upgrade(ledger)

    def ask(session: Session) -> int:
        return int(session.scalar(text("SELECT 7")) or 0)

    greedy = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    with closing(greedy), closing(open_ledger(str(path))) as impatient:
        event.listen(impatient.engine, "connect", lambda connection, _: connection.execute("PRAGMA busy_timeout = 0"))
        greedy.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerAway, match="does not answer: database is locked"):
            impatient.write(ask, patience_seconds=1.0)
        threading.Timer(0.2, greedy.execute, ("COMMIT",)).start()
        assert impatient.write(ask, patience_seconds=120) == 7
    assert "ledger: database is locked; trying again for up to 1 s" in caplog.messages


def test_a_postgres_that_is_not_there_is_told_without_its_password() -> None:
    with closing(open_ledger("postgres://farm:s3cret@127.0.0.1:1/farm")) as ledger:  # as many services write it
        with pytest.raises(LedgerAway) as caught:
            ledger.write(lambda session: session.execute(text("SELECT 1")), patience_seconds=0.1)
        assert "s3cret" not in str(caught.value)
        assert "farm:***@127.0.0.1:1" in str(caught.value)
        assert str(caught.value).endswith("; start PostgreSQL there, or check FARM_LEDGER_URL")


def test_connections_that_died_are_replaced(postgres: Ledger) -> None:
    with closing(open_quick(postgres.url)) as ledger:
        assert ledger.now()
        others = "pid <> pg_backend_pid() AND datname = current_database()"
        kill = text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}")
        with postgres.engine.connect() as connection:
            connection.execute(kill)
        assert ledger.write(lambda session: session.scalar(text("SELECT 1"))) == 1
        assert ledger.now()


def test_a_connection_that_dies_inside_a_story_runs_the_story_again(postgres: Ledger) -> None:
    tries: list[int] = []

    def story(session: Session) -> int:
        pid = session.scalar(text("SELECT pg_backend_pid()"))
        session.execute(text("INSERT INTO outbox (queue, created_at) VALUES ('q', 1.0)"))
        if not tries:
            tries.append(1)
            with postgres.engine.connect() as connection:
                connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
        return int(session.scalar(text("SELECT count(*) FROM outbox")))

    assert postgres.write(story) == 1


def wait_until_gone(postgres: Ledger, pid: int) -> None:
    """Until PostgreSQL has ended this session."""
    deadline = time.monotonic() + 60
    query = text("SELECT count(*) FROM pg_stat_activity WHERE pid = :pid")
    with postgres.engine.connect() as connection:
        while connection.scalar(query, {"pid": pid}):
            connection.rollback()
            assert time.monotonic() < deadline, "the frozen writer was not put out"
            time.sleep(0.01)


def test_a_writer_that_freezes_inside_a_story_is_put_out_and_runs_it_again(postgres: Ledger) -> None:
    tries: list[int] = []

    def story(session: Session) -> int:
        if not tries:
            tries.append(1)
            session.execute(text("SET LOCAL idle_in_transaction_session_timeout = '100ms'"))
            session.execute(text("INSERT INTO outbox (queue, created_at) VALUES ('q', 1.0)"))
            pid = session.scalar(text("SELECT pg_backend_pid()"))
            wait_until_gone(postgres, pid)  # frozen
        session.execute(text("INSERT INTO outbox (queue, created_at) VALUES ('q', 2.0)"))
        return int(session.scalar(text("SELECT count(*) FROM outbox")))

    assert postgres.write(story) == 1
