"""Migrations make exactly the tables that the code describes, and can be undone with every state in them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from sqlalchemy import event, inspect, text
from sqlalchemy.exc import IntegrityError

from farm.errors import LedgerError
from farm.ledger import Ledger, control, read
from farm.ledger.migrate import (
    all_revisions,
    current_revision,
    differences,
    downgrade,
    ensure_current,
    newest_revision,
    upgrade,
)
from farm.ledger.tables import JobRow, SegmentRow, Table
from farm.states import Continuity, JobState, SegmentState

from .conftest import open_quick
from .scenes import change, claim, fail, finished, hello, planned, publish, request, segment, submit

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def new(new_url: str) -> Iterator[Ledger]:
    with closing(open_quick(new_url)) as ledger:
        yield ledger


def job_in_every_state(ledger: Ledger) -> set[JobState]:
    hello(ledger)
    failed = planned(ledger, 2, Continuity.PARALLEL)
    fail(ledger, claim(ledger), for_good=True)
    cancelled = planned(ledger)
    control.cancel(ledger, cancelled)
    ids = [failed, cancelled, finished(ledger)]
    rendering, assembling = planned(ledger, 3), planned(ledger, 1)
    claim(ledger)
    publish(ledger, claim(ledger))
    preparing, queued = submit(ledger, request(), request())
    control.set_priority(ledger, preparing, 9)
    claim(ledger, "c2", "cpu")
    return {read.job(ledger, job_id).state for job_id in (*ids, assembling, rendering, preparing, queued)}


def test_migrating_gives_exactly_the_tables_of_the_code(new: Ledger) -> None:
    assert current_revision(new) is None
    upgrade(new)
    assert current_revision(new) == newest_revision()
    assert differences(new) == []


def test_the_whole_way_down_and_up_again_with_jobs_and_segments_in_every_state(new: Ledger) -> None:
    upgrade(new)
    assert job_in_every_state(new) == set(JobState)
    with new.read() as session:
        assert set(session.scalars(text("SELECT DISTINCT state FROM segments"))) == set(SegmentState)
    downgrade(new, "base")
    assert not set(inspect(new.engine).get_table_names()) & set(Table.metadata.tables)
    upgrade(new)
    assert differences(new) == []
    assert read.jobs(new) == []


def test_every_step_down_can_be_gone_up_again_with_rows_in_the_tables(new: Ledger) -> None:
    upgrade(new)
    job_in_every_state(new)
    jobs = read.jobs(new, limit=None)
    for revision in all_revisions()[1:]:
        downgrade(new, revision)
        assert current_revision(new) == revision
    upgrade(new)
    assert differences(new) == []
    assert [job.id for job in read.jobs(new, limit=None)] == [job.id for job in jobs]


def test_a_new_ledger_is_made_and_a_current_one_left_alone(new: Ledger) -> None:
    ensure_current(new)
    submit(new)
    ensure_current(new)
    assert len(read.jobs(new)) == 1


def test_processes_that_start_at_once_on_a_new_ledger_all_find_it_made(new_url: str) -> None:
    start = (
        "import sys; from farm.ledger import open_ledger; from farm.ledger.migrate import ensure_current\n"
        "ledger = open_ledger(sys.argv[1]); print('here', flush=True); sys.stdin.read(); ensure_current(ledger)"
    )
    argv = [sys.executable, "-c", start, new_url]
    with ExitStack() as until_the_end:
        processes = [
            until_the_end.enter_context(subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT))
            for _ in range(4)
        ]
        for process in processes:
            assert process.stdout and process.stdout.readline() == b"here\n"
        for process in processes:
            assert process.stdin
            process.stdin.close()
        assert [process.wait(120) for process in processes] == [0] * 4
    with closing(open_quick(new_url)) as ledger:
        assert current_revision(ledger) == newest_revision()


def test_a_ledger_that_another_process_makes_while_one_looks_for_it_is_taken_as_it_is(new: Ledger) -> None:
    def make_it(*_: object) -> None:
        with closing(open_quick(new.url)) as another:
            upgrade(another)

    event.listen(new.engine, "checkin", make_it, once=True)  # after the first question, which found nothing
    ensure_current(new)
    assert current_revision(new) == newest_revision()


def test_nobody_sees_a_ledger_that_is_half_made(new: Ledger) -> None:
    seen: set[str | None] = set()

    def look(*_: object) -> None:
        with closing(open_quick(new.url)) as another:
            seen.add(current_revision(another))

    event.listen(new.engine, "begin", look)
    upgrade(new)
    assert seen <= {None, newest_revision()}


@pytest.mark.skipif(len(all_revisions()) < 2, reason="there is no older revision yet")
def test_an_older_shared_ledger_is_refused_with_the_command_and_a_private_one_brought_up_to_date(new: Ledger) -> None:
    older = all_revisions()[1]
    upgrade(new, older)
    if new.is_sqlite:
        ensure_current(new)
        assert current_revision(new) == newest_revision()
    else:
        wanted = rf"the ledger is at revision {older}, this farm needs {newest_revision()}; .* run `farm db upgrade`"
        with pytest.raises(LedgerError, match=wanted):
            ensure_current(new)


def test_the_ledger_of_a_newer_farm_is_refused(new: Ledger) -> None:
    upgrade(new)
    with new.engine.connect().execution_options(farm_write=True) as connection, connection.begin():
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    for touch in (ensure_current, upgrade, lambda ledger: downgrade(ledger, "base")):
        with pytest.raises(LedgerError, match="at revision 9999, which this farm does not know; a newer farm made it"):
            touch(new)


def test_tables_of_somebody_else_are_not_touched(new: Ledger) -> None:
    with new.engine.connect().execution_options(farm_write=True) as connection, connection.begin():
        connection.execute(text("CREATE TABLE jobs (id INTEGER)"))
    with pytest.raises(LedgerError, match="tables named like the farm's that the farm did not make; use another"):
        ensure_current(new)


# What the database itself refuses


@pytest.mark.parametrize(
    "break_it",
    [
        lambda ledger, job: change(ledger, SegmentRow, segment(ledger, job).id, state="leased"),
        lambda ledger, job: change(ledger, SegmentRow, segment(ledger, job).id, lease_until=1.0),
        lambda ledger, job: change(ledger, SegmentRow, segment(ledger, job).id, leased_by="w"),
        lambda ledger, job: change(ledger, SegmentRow, segment(ledger, job).id, job_id=99_999),
        lambda ledger, job: change(ledger, SegmentRow, segment(ledger, job).id, number=1),
        lambda ledger, job: change(ledger, JobRow, job, finished_at=1.0),
        lambda ledger, job: change(ledger, JobRow, job, state=JobState.FAILED),
        lambda ledger, job: ledger.write(
            lambda session: session.execute(text(f"UPDATE segments SET state = 'rendring' WHERE job_id = {job}"))
        ),
    ],
    ids=["leased-without-lease", "lease-time", "leased-by", "no-such-job", "number-twice", "ended", "failed", "typo"],
)
def test_the_database_refuses_rows_that_contradict_themselves(
    ledger: Ledger, break_it: Callable[[Ledger, int], None]
) -> None:
    job_id = planned(ledger)
    with pytest.raises(IntegrityError):
        break_it(ledger, job_id)
