"""Submissions: the same rows are the same jobs, whoever submits them and how often."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from farm.errors import InputError
from farm.ledger import Ledger, control, crew, read
from farm.ledger.files import KnownFile, known_files, remember_files
from farm.ledger.intake import Intake, known_jobs, outputs_in_use, take_in
from farm.ledger.tables import BatchRow, OwnerRow, SegmentRow
from farm.ledger.values import JobRequest
from farm.states import JobState, SegmentKind, SegmentState

from .scenes import finished, history, request, submit


def put(ledger: Ledger, rows: list[JobRequest]) -> Intake:
    return take_in(ledger, rows, name="batch", source="batch.csv", owner="ann")


def test_a_submission_writes_batch_jobs_segments_history_and_the_doorbell_it_owes(ledger: Ledger) -> None:
    rows = [request(row_number=2), request(row_number=4)]
    intake = put(ledger, rows)
    assert intake.batch_id is not None
    batch = read.batch(ledger, intake.batch_id)
    assert (batch.name, batch.source, batch.owner, batch.jobs) == ("batch", "batch.csv", "ann", {"queued": 2})
    for row, job_id in zip(rows, intake.new_job_ids, strict=True):
        job = read.job(ledger, job_id)
        assert (job.key, job.row_number, job.state) == (row.key, row.row_number, JobState.QUEUED)
        (segment,) = read.segments(ledger, job_id)
        assert (segment.kind, segment.state, segment.queue) == (SegmentKind.PREPARE, SegmentState.QUEUED, "cpu")
        assert history(ledger, job_id) == ["submit"]
    assert crew.take_owed_doorbells(ledger) == ["cpu"]


def test_everything_of_a_row_arrives_in_its_job(ledger: Ledger) -> None:
    row = request(
        tags=("a", "b"), settings={"mouth": 1.5, "flag": True}, prompt="你好", fps=(30_000, 1001), due=5.0, priority=-3
    )
    (job_id,) = submit(ledger, row)
    job = read.job(ledger, job_id)
    for name in JobRequest.__dataclass_fields__:
        if name not in ("queue", "notes"):
            assert getattr(job, name) == getattr(row, name), name


def test_submitting_again_writes_nothing(ledger: Ledger) -> None:
    rows = [request() for _ in range(3)]
    first = put(ledger, rows)
    crew.take_owed_doorbells(ledger)
    again = put(ledger, rows)
    assert again == Intake(None, (), first.new_job_ids)
    assert again.job_ids == first.job_ids
    assert crew.take_owed_doorbells(ledger) == []
    assert len(read.jobs(ledger)) == 3
    assert len(read.batches(ledger)) == 1


def test_a_longer_file_adds_only_its_new_rows(ledger: Ledger) -> None:
    rows = [request() for _ in range(3)]
    first = put(ledger, rows[:2])
    second = put(ledger, rows)
    assert second.known_job_ids == first.new_job_ids
    assert len(second.new_job_ids) == 1
    assert second.batch_id != first.batch_id
    assert second.job_ids == (*first.new_job_ids, *second.new_job_ids)


def test_the_same_file_from_many_places_at_once_is_one_batch(ledger: Ledger) -> None:
    rows = [request(owner=f"owner {n % 2}") for n in range(20)]
    together = threading.Barrier(4)

    def one_place(_: int) -> Intake:
        together.wait()
        return put(ledger, rows)

    with ThreadPoolExecutor(4) as pool:
        intakes = list(pool.map(one_place, range(4)))
    assert sorted(len(intake.new_job_ids) for intake in intakes) == [0, 0, 0, 20]
    assert len({intake.job_ids for intake in intakes}) == 1
    assert len(read.jobs(ledger)) == 20


def test_new_owners_who_submit_at_once_all_get_their_turn(ledger: Ledger) -> None:
    together = threading.Barrier(4)

    def one_row(number: int) -> Intake:
        together.wait()
        return put(ledger, [request(owner="the same new one", audio_seconds=10.0)])

    with ThreadPoolExecutor(4) as pool:
        assert all(intake.new_job_ids for intake in pool.map(one_row, range(4)))
    with ledger.read() as session:
        assert session.get_one(OwnerRow, "the same new one").finish_tag == 40.0


def test_a_thousand_rows_are_one_transaction_in_their_order(ledger: Ledger) -> None:
    rows = [request() for _ in range(1000)]
    intake = put(ledger, rows)
    assert list(intake.new_job_ids) == sorted(intake.new_job_ids)
    assert known_jobs(ledger, [row.key for row in rows]) == {
        row.key: job_id for row, job_id in zip(rows, intake.new_job_ids, strict=True)
    }
    with ledger.read() as session:
        assert session.query(BatchRow).count() == 1


def test_an_output_knows_the_newest_job_that_writes_it(ledger: Ledger) -> None:
    (first,) = submit(ledger, request(output="/out/same.mp4"))
    control.cancel(ledger, first)
    row = request(output="/out/same.mp4")
    (second,) = submit(ledger, row)
    assert first < second
    assert outputs_in_use(ledger, ["/out/same.mp4", "/out/other.mp4"]) == {
        "/out/same.mp4": (row.key, second, JobState.QUEUED)
    }


def test_of_two_submissions_that_were_checked_side_by_side_only_one_gets_the_film(ledger: Ledger) -> None:
    (first,) = submit(ledger, request(output="/out/same.mp4"))
    with pytest.raises(InputError, match=f"job {first} is about to write /out/same.mp4"):
        submit(ledger, request(), request(output="/out/same.mp4"))
    assert [job.id for job in read.jobs(ledger)] == [first]


def test_an_owners_debt_is_forgotten_when_nobody_waits(ledger: Ledger) -> None:
    finished(ledger, owner="ann", audio_seconds=1000.0)
    anns, bobs = submit(ledger, request(owner="ann"), request(owner="bob"))
    with ledger.read() as session:
        ranks = {row.job_id: row.rank for row in session.query(SegmentRow).filter(SegmentRow.job_id.in_([anns, bobs]))}
    assert ranks[anns] == ranks[bobs]


# What was learnt of files


def test_files_are_remembered_and_the_newest_look_stands(ledger: Ledger) -> None:
    old = KnownFile("/a", 1, 10, "1" * 64, {"audio": {"seconds": 1.0}})
    new = KnownFile("/a", 2, 20, "2" * 64, {"audio": {"seconds": 2.0}})
    other = KnownFile("/第一课", 3, 30, "3" * 64, {})
    remember_files(ledger, [old, other])
    remember_files(ledger, [new])
    remember_files(ledger, [])
    assert known_files(ledger, ["/a", "/第一课", "/none"]) == {"/a": new, "/第一课": other}


def test_many_files_are_remembered_at_once(ledger: Ledger) -> None:
    files = [KnownFile(f"/{n}", n, n, f"{n:064x}", {"n": n}) for n in range(1000)]
    remember_files(ledger, files)
    assert len(known_files(ledger, [file.path for file in files])) == 1000
