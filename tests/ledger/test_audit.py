"""The audit finds nothing in an honest ledger, and every broken promise that is planted."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from inspect import isfunction
from pathlib import Path

import pytest
from sqlalchemy import delete, event, insert, text, update

from farm.artifacts import JobFolder
from farm.config import Settings, load_settings
from farm.ledger import Ledger, control, crew, moves, read
from farm.ledger.audit import audit, jobs, leases, segments
from farm.ledger.repair import render_again
from farm.ledger.tables import (
    ArtifactRow,
    AttemptRow,
    BatchRow,
    EventRow,
    JobRow,
    LockRow,
    OutboxRow,
    OwnerRow,
    SegmentRow,
    Table,
    WorkerRow,
)
from farm.states import ArtifactKind, Continuity, JobState, SegmentKind, SegmentState
from farm.store import open_store, write_sealed

from .conftest import open_quick
from .scenes import (
    POLICY,
    change,
    claim,
    fail,
    finished,
    hello,
    interrupt,
    planned,
    publish,
    render_all,
    request,
    run_out,
    segment,
    submit,
)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("FARM_HOME", str(tmp_path / "home"))
    return load_settings()


def broken_rules(ledger: Ledger, settings: Settings, *, check_files: bool = False) -> set[str]:
    return {violation.rule for violation in audit(ledger, settings, check_files=check_files)}


class Busy:
    """A ledger in which much has happened: the ids of a job in each situation."""

    def __init__(self, ledger: Ledger) -> None:
        hello(ledger, "w1")
        hello(ledger, "w2")
        self.failed = planned(ledger, 2, Continuity.PARALLEL)
        fail(ledger, claim(ledger), for_good=True)
        self.cancelled = planned(ledger)
        claim(ledger)
        control.cancel(ledger, self.cancelled)
        self.done = finished(ledger)
        self.paused = planned(ledger)
        control.pause(ledger, self.paused)
        self.repaired = planned(ledger, 2)
        render_all(ledger)
        render_again(ledger, self.repaired, 0, "gone")
        interrupt(ledger, claim(ledger))
        lease = claim(ledger)
        run_out(ledger, lease)
        moves.expire_leases(ledger, POLICY)
        publish(ledger, claim(ledger))
        publish(ledger, claim(ledger, "cpu", "cpu"))
        self.running = planned(ledger, 3)
        publish(ledger, claim(ledger))
        claim(ledger, "w1")
        (self.new,) = submit(ledger, request())


_DUMPS: dict[str, tuple[Busy, dict[str, list[dict[str, object]]]]] = {}


@pytest.fixture
def busy(ledger: Ledger) -> Busy:
    """The busy ledger, made once of each kind and copied afterwards."""
    tables = Table.metadata.sorted_tables
    if ledger.url not in _DUMPS:
        made = Busy(ledger)
        with ledger.read() as session:
            rows = {table.name: [dict(row) for row in session.execute(table.select()).mappings()] for table in tables}
        _DUMPS[ledger.url] = made, rows
        return made
    made, rows = _DUMPS[ledger.url]
    with ledger.engine.connect().execution_options(farm_write=True) as connection, connection.begin():
        for table in tables:
            if rows[table.name]:
                connection.execute(table.insert(), rows[table.name])
    return made


def test_an_empty_ledger_breaks_no_promise(ledger: Ledger, settings: Settings) -> None:
    assert audit(ledger, settings, check_files=False) == []


def test_an_honest_ledger_breaks_no_promise(ledger: Ledger, settings: Settings, busy: Busy) -> None:
    assert {read.job(ledger, job_id).state for job_id in vars(busy).values()} == {
        JobState.FAILED,
        JobState.CANCELLED,
        JobState.SUCCEEDED,
        JobState.RENDERING,
        JobState.QUEUED,
    }
    assert [str(violation) for violation in audit(ledger, settings, check_files=False)] == []


def test_a_lost_file_that_is_being_rendered_again_breaks_no_promise(ledger: Ledger, settings: Settings) -> None:
    job_id = planned(ledger, 4)
    for _ in range(3):
        publish(ledger, claim(ledger))
    claim(ledger)
    render_again(ledger, job_id, 1, "gone")
    assert [str(violation) for violation in audit(ledger, settings, check_files=False)] == []


def seg(ledger: Ledger, job_id: int, number: int = 0, kind: SegmentKind = SegmentKind.RENDER) -> int:
    return segment(ledger, job_id, number, kind).id


def attempts_of(ledger: Ledger, segment_id: int, **values: object) -> None:
    ledger.write(
        lambda session: session.execute(update(AttemptRow).where(AttemptRow.segment_id == segment_id).values(**values))
    )


def reaper_leads(ledger: Ledger) -> None:
    assert crew.lead(ledger, crew.REAPER_LOCK, "w1", ttl_seconds=60)


Plant = Callable[[Ledger, Busy], None]
PLANTS: list[tuple[str, Plant]] = []


def breaks(rule: str) -> Callable[[Plant], Plant]:
    def note(plant: Plant) -> Plant:
        PLANTS.append((rule, plant))
        return plant

    return note


@breaks("one live token per segment")
def open_attempt_of_another_token(ledger: Ledger, busy: Busy) -> None:
    attempts_of(ledger, seg(ledger, busy.running, 1), token=99)


@breaks("one live token per segment")
def attempt_left_open(ledger: Ledger, busy: Busy) -> None:
    attempts_of(ledger, seg(ledger, busy.running, 0), ended_at=None, outcome=None)


@breaks("one live token per segment")
def lease_without_attempt(ledger: Ledger, busy: Busy) -> None:
    attempts_of(ledger, seg(ledger, busy.running, 1), ended_at=1e12, outcome="retry")


@breaks("no lease is long overdue")
def overdue_lease(ledger: Ledger, busy: Busy) -> None:
    reaper_leads(ledger)
    change(ledger, SegmentRow, seg(ledger, busy.running, 1), lease_until=ledger.now() - 120)


@breaks("workers and leases agree")
def worker_with_a_segment_it_does_not_hold(ledger: Ledger, busy: Busy) -> None:
    change(ledger, WorkerRow, "w2", segment_id=seg(ledger, busy.running, 1))


@breaks("attempts are numbered without holes")
def attempt_with_a_gap(ledger: Ledger, busy: Busy) -> None:
    attempts_of(ledger, seg(ledger, busy.running, 0), number=2)


@breaks("attempts are numbered without holes")
def attempt_that_nobody_counted(ledger: Ledger, busy: Busy) -> None:
    change(ledger, SegmentRow, seg(ledger, busy.running, 0), attempt=0)


@breaks("attempts are closed once and told")
def lease_without_history(ledger: Ledger, busy: Busy) -> None:
    where = EventRow.segment_id == seg(ledger, busy.running, 1)
    ledger.write(lambda session: session.execute(delete(EventRow).where(where)))


@breaks("attempts are closed once and told")
def end_told_twice(ledger: Ledger, busy: Busy) -> None:
    row = {"at": 1.0, "event": "succeed", "job_id": busy.running, "segment_id": seg(ledger, busy.running), "attempt": 1}
    ledger.write(lambda session: session.execute(insert(EventRow).values(row)))


@breaks("attempts are closed once and told")
def negative_device_seconds(ledger: Ledger, busy: Busy) -> None:
    attempts_of(ledger, seg(ledger, busy.running), device_seconds=-1.0)


@breaks("attempts stay within limits")
def too_many_errors(ledger: Ledger, busy: Busy) -> None:
    change(ledger, SegmentRow, seg(ledger, busy.running, 1), errors=4)


@breaks("attempts stay within limits")
def too_many_losses(ledger: Ledger, busy: Busy) -> None:
    change(ledger, SegmentRow, seg(ledger, busy.running, 1), losses=9)


@breaks("published once")
def published_by_two_attempts(ledger: Ledger, busy: Busy) -> None:
    attempts_of(ledger, seg(ledger, busy.repaired), outcome="succeed")


@breaks("published once")
def succeeded_attempt_of_an_open_segment(ledger: Ledger, busy: Busy) -> None:
    attempts_of(ledger, seg(ledger, busy.running, 1), outcome="succeed", ended_at=1e12)


@breaks("published once")
def published_by_nobody(ledger: Ledger, busy: Busy) -> None:
    attempts_of(ledger, seg(ledger, busy.running, 0), outcome="expire")


@breaks("segments own every frame once")
def frames_with_a_gap(ledger: Ledger, busy: Busy) -> None:
    change(ledger, SegmentRow, seg(ledger, busy.running, 1), first_frame=51)


@breaks("segments own every frame once")
def frames_that_nobody_owns(ledger: Ledger, busy: Busy) -> None:
    change(ledger, JobRow, busy.running, total_frames=151)


@breaks("segments own every frame once")
def planned_job_without_segments(ledger: Ledger, busy: Busy) -> None:
    change(ledger, JobRow, busy.new, total_frames=10)


@breaks("chains are rendered in order")
def lease_before_its_carry(ledger: Ledger, busy: Busy) -> None:
    change(ledger, SegmentRow, seg(ledger, busy.running, 0), carry=None)


@breaks("chains are rendered in order")
def segment_offered_too_early(ledger: Ledger, busy: Busy) -> None:
    change(ledger, SegmentRow, seg(ledger, busy.running, 2), state=SegmentState.QUEUED)


@breaks("films are assembled last")
def film_offered_too_early(ledger: Ledger, busy: Busy) -> None:
    change(ledger, SegmentRow, seg(ledger, busy.running, 0, SegmentKind.ASSEMBLE), state=SegmentState.QUEUED)


@breaks("ended segments have an end")
def succeeded_without_an_end(ledger: Ledger, busy: Busy) -> None:
    change(ledger, SegmentRow, seg(ledger, busy.running, 0), finished_at=None)


@breaks("held segments are of stopped jobs")
def held_for_no_reason(ledger: Ledger, busy: Busy) -> None:
    change(ledger, SegmentRow, seg(ledger, busy.running, 2), held=True)


@breaks("held segments are of stopped jobs")
def open_although_paused(ledger: Ledger, busy: Busy) -> None:
    change(ledger, SegmentRow, seg(ledger, busy.paused, 0), held=False)


@breaks("held segments are of stopped jobs")
def open_although_failed(ledger: Ledger, busy: Busy) -> None:
    change(ledger, SegmentRow, seg(ledger, busy.failed, 1), held=False)


@breaks("jobs are what their segments say")
def job_with_a_state_of_its_own(ledger: Ledger, busy: Busy) -> None:
    change(ledger, JobRow, busy.running, state=JobState.ASSEMBLING)


@breaks("jobs are what their segments say")
def job_that_miscounts(ledger: Ledger, busy: Busy) -> None:
    change(ledger, JobRow, busy.running, frames_done=49)


@breaks("ended jobs say when and why")
def failed_without_a_reason(ledger: Ledger, busy: Busy) -> None:
    change(ledger, JobRow, busy.failed, reason=None)


@breaks("ended jobs say when and why")
def running_with_a_reason(ledger: Ledger, busy: Busy) -> None:
    change(ledger, JobRow, busy.running, reason="old")


@breaks("no job is lost")
def nothing_of_it_moves(ledger: Ledger, busy: Busy) -> None:
    change(ledger, SegmentRow, seg(ledger, busy.new, 0, SegmentKind.PREPARE), state=SegmentState.WAITING)


@breaks("no job is lost")
def forgotten_although_its_carry_is_there(ledger: Ledger, busy: Busy) -> None:
    lease = next(s for s in read.running(ledger, [busy.running]))
    change(
        ledger,
        SegmentRow,
        lease.id,
        state=SegmentState.WAITING,
        leased_by=None,
        lease_until=None,
        attempt=lease.attempt,
    )


@breaks("films are of succeeded jobs")
def film_of_an_unfinished_job(ledger: Ledger, busy: Busy) -> None:
    with ledger.read() as session:
        film = session.query(ArtifactRow).filter_by(job_id=busy.done, kind=ArtifactKind.FILM).one()
    change(ledger, ArtifactRow, film.id, job_id=busy.running)


@breaks("published segments have their file")
def published_without_a_file(ledger: Ledger, busy: Busy) -> None:
    where = (ArtifactRow.job_id == busy.running, ArtifactRow.kind == ArtifactKind.SEGMENT)
    ledger.write(lambda session: session.execute(delete(ArtifactRow).where(*where)))


@breaks("published segments have their file")
def file_of_an_unpublished_segment(ledger: Ledger, busy: Busy) -> None:
    where = (ArtifactRow.job_id == busy.running, ArtifactRow.kind == ArtifactKind.SEGMENT)
    ledger.write(lambda session: session.execute(update(ArtifactRow).where(*where).values(segment_number=2)))


@breaks("owed doorbells are rung")
def doorbell_owed_for_long(ledger: Ledger, busy: Busy) -> None:
    reaper_leads(ledger)
    now = ledger.now()
    ledger.write(lambda session: session.execute(insert(OutboxRow).values(queue="q", created_at=now - 120)))


@breaks("spent budgets are told")
def budget_spent_in_silence(ledger: Ledger, busy: Busy) -> None:
    batch_id = read.job(ledger, busy.running).batch_id
    change(ledger, BatchRow, batch_id, budget=5.0, budget_spent_at=1.0)


@breaks("leases keep to quotas")
def a_lease_beyond_the_quota(ledger: Ledger, busy: Busy) -> None:
    owner = read.job(ledger, busy.running).owner
    ledger.write(lambda session: session.execute(update(OwnerRow).where(OwnerRow.name == owner).values(quota=0)))


@pytest.mark.parametrize(("rule", "plant"), PLANTS, ids=[plant.__name__ for _, plant in PLANTS])
def test_a_broken_promise_is_found(ledger: Ledger, settings: Settings, busy: Busy, rule: str, plant: Plant) -> None:
    plant(ledger, busy)
    found = audit(ledger, settings, check_files=False)
    assert rule in {violation.rule for violation in found}
    assert all(violation.sentence and violation.about for violation in found)


def test_every_rule_has_a_violation_planted_for_it() -> None:
    named = {
        name.replace("_", " ")
        for module in (jobs, leases, segments)
        for name, thing in vars(module).items()
        if isfunction(thing) and thing.__module__ == module.__name__
    }
    assert named - {rule for rule, _ in PLANTS} == {"lease columns agree"}  # below: the database refuses it


@pytest.fixture
def unchecked(sqlite_ledger: Ledger) -> Iterator[Ledger]:
    """The SQLite ledger without its CHECK constraints."""
    with closing(open_quick(sqlite_ledger.url)) as ledger:
        event.listen(ledger.engine, "connect", lambda c, _: c.execute("PRAGMA ignore_check_constraints = ON"))
        yield ledger


@pytest.mark.parametrize("ledger", ["sqlite"], indirect=True)
def test_a_lease_without_its_columns_is_found(
    ledger: Ledger, unchecked: Ledger, settings: Settings, busy: Busy
) -> None:
    change(unchecked, SegmentRow, seg(ledger, busy.running, 1), leased_by=None)
    change(unchecked, SegmentRow, seg(ledger, busy.running, 2), lease_until=1.0)
    about = [v.about for v in audit(ledger, settings, check_files=False) if v.rule == "lease columns agree"]
    assert about == [f"render segment {n} of job {busy.running}" for n in (1, 2)]


def test_a_farm_that_stands_still_owes_nothing(ledger: Ledger, settings: Settings, busy: Busy) -> None:
    overdue_lease(ledger, busy)
    doorbell_owed_for_long(ledger, busy)
    assert broken_rules(ledger, settings) == {"no lease is long overdue", "owed doorbells are rung"}
    change(ledger, LockRow, crew.REAPER_LOCK, until=ledger.now() - 1)
    assert broken_rules(ledger, settings) == set()


def test_the_audit_reads_one_snapshot(ledger: Ledger, another_ledger: Ledger, settings: Settings) -> None:
    """What is committed while it runs is not seen by half of the rules."""
    job_id = planned(ledger)
    lease = claim(ledger)
    published = []

    def publish_meanwhile(*_: object) -> None:
        if not published:
            published.append(1)
            publish(ledger, lease)

    event.listen(another_ledger.engine, "after_cursor_execute", publish_meanwhile)
    assert audit(another_ledger, settings, check_files=False) == []
    assert published
    assert segment(ledger, job_id).state is SegmentState.SUCCEEDED


# Files


@pytest.fixture
def film(ledger: Ledger, settings: Settings, tmp_path: Path) -> Path:
    """The film of a job whose segments' files exist too."""
    folder = JobFolder(settings.artifacts_dir, 1).make()
    path = tmp_path / "films" / "film.mp4"
    path.parent.mkdir()
    job_id = planned(ledger, 1, output=str(path))
    lease = claim(ledger)
    sealed = write_sealed(
        open_store(settings), folder.segment(0, lease.token, ".mp4"), b"segment", lease.token, ArtifactKind.SEGMENT
    )
    moves.publish(ledger, lease, artifacts=[sealed], carry=b"c", frames=50)
    for kind in (ArtifactKind.PORTRAIT, ArtifactKind.DRIVING):
        prepared = write_sealed(open_store(settings), folder.file(f"{kind}.x", 1), b"p", 1, kind)
        ledger.write(
            lambda session, p=prepared: session.execute(
                update(ArtifactRow)
                .where(ArtifactRow.job_id == job_id, ArtifactRow.kind == p.kind)
                .values(path=p.path, size_bytes=p.size_bytes, sha256=p.sha256)
            )
        )
    assert audit(ledger, settings, check_files=True) == []
    lease = claim(ledger, "cpu", "cpu")
    moves.publish(
        ledger, lease, artifacts=[write_sealed(open_store(settings), path, b"film", lease.token, ArtifactKind.FILM)]
    )
    assert audit(ledger, settings, check_files=True) == []
    return path


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.unlink(), "is gone"),
        (lambda path: path.write_bytes(b"longer film"), "11 bytes, 4"),
        (lambda path: path.write_bytes(b"FILM"), "was changed since it was published"),
    ],
    ids=["gone", "size", "content"],
)
def test_a_film_that_is_not_as_published_is_found(
    ledger: Ledger, settings: Settings, film: Path, damage: Callable[[Path], object], said: str
) -> None:
    damage(film)
    (violation,) = audit(ledger, settings, check_files=True)
    assert violation.rule == "files are as published"
    assert str(film) in violation.sentence and said in violation.sentence
    assert audit(ledger, settings, check_files=False) == []


def test_a_film_that_a_newer_job_replaced_is_the_newer_ones(ledger: Ledger, settings: Settings, film: Path) -> None:
    planned(ledger, 1, output=str(film))
    publish(ledger, claim(ledger))
    lease = claim(ledger, "cpu", "cpu")
    moves.publish(
        ledger,
        lease,
        artifacts=[write_sealed(open_store(settings), film, b"the newer film", lease.token, ArtifactKind.FILM)],
    )
    assert broken_rules(ledger, settings, check_files=True) == set()


def test_a_lost_segment_file_of_an_unfinished_job_is_found_and_of_a_finished_one_is_not_needed(
    ledger: Ledger, settings: Settings, film: Path
) -> None:
    for path in settings.artifacts_dir.rglob("*.t1.mp4"):
        path.unlink()
    assert audit(ledger, settings, check_files=True) == []
    planned(ledger, 2)
    publish(ledger, claim(ledger))
    about = {v.about.partition(" of ")[0] for v in audit(ledger, settings, check_files=True)}
    assert about == {"segment", "thumbnail", "portrait", "driving"}


def test_a_staging_file_that_an_old_attempt_left_is_found(ledger: Ledger, settings: Settings, film: Path) -> None:
    beside_the_film = film.with_name(".film.mp4.t1.part.mp4")
    among_artifacts = next(settings.artifacts_dir.rglob("segments")) / ".00000.t9.mp4.t9.part.mp4"
    for path in (beside_the_film, among_artifacts):
        path.write_bytes(b"x")
    assert audit(ledger, settings, check_files=True) == []
    for path in (beside_the_film, among_artifacts):
        os.utime(path, (1, 1))
    found = audit(ledger, settings, check_files=True)
    assert {v.about for v in found} == {str(beside_the_film), str(among_artifacts)}
    assert {v.rule for v in found} == {"no orphan staging files"}
    assert audit(ledger, settings, check_files=False) == []


def test_text_about_a_violation_names_the_row_and_the_rule(ledger: Ledger, settings: Settings) -> None:
    job_id = planned(ledger)
    with ledger.engine.connect().execution_options(farm_write=True) as connection, connection.begin():
        connection.execute(text("UPDATE jobs SET frames_done = 7"))
    (violation,) = audit(ledger, settings, check_files=False)
    assert str(violation) == (
        f"job {job_id}: it says rendering with 0/3 segments and 7 frames and is rendering with 0/3 segments"
        " and 0 frames (jobs are what their segments say)"
    )
