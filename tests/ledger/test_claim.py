"""Which segment a worker gets."""

from __future__ import annotations

from contextlib import closing

import pytest
from sqlalchemy import event

from farm.errors import OutOfMemory
from farm.ledger import Ledger, control, moves, read
from farm.ledger.tables import JobRow, SegmentRow
from farm.retry import decide
from farm.states import Continuity, JobState, SegmentKind, SegmentState, WorkerState

from .conftest import empty, open_quick
from .scenes import (
    POLICY,
    QUEUE,
    TTL,
    beat,
    change,
    claim,
    fail,
    gets_nothing,
    hello,
    planned,
    prepare,
    publish,
    request,
    segment,
    submit,
    worker_row,
)


def test_a_claim_raises_token_and_attempt_and_opens_both_rows(ledger: Ledger) -> None:
    hello(ledger)
    job_id = planned(ledger)
    before = ledger.now()
    lease = claim(ledger, ttl=12.0)
    found = segment(ledger, job_id)
    assert (lease.token, lease.attempt, lease.worker) == (1, 1, "w1")
    assert (found.state, found.token, found.attempt, found.leased_by) == (SegmentState.LEASED, 1, 1, "w1")
    assert found.lease_until is not None
    assert before + 12.0 <= found.lease_until <= ledger.now() + 12.0
    assert worker_row(ledger, "w1").segment_id == found.id
    assert worker_row(ledger, "w1").state is WorkerState.RENDERING
    attempt = read.attempts(ledger, job_id)[-1]
    assert (attempt.number, attempt.worker, attempt.device, attempt.ended_at) == (1, "w1", "cpu", None)
    assert lease.label == f"job {job_id} segment 1/3"


def test_a_lease_carries_the_job_as_it_is_now(ledger: Ledger) -> None:
    job_id = planned(ledger)
    lease = claim(ledger)
    assert lease.job == read.job(ledger, job_id)
    assert lease.job.state is JobState.RENDERING
    assert lease.job.settings == {"mouth": 1.0}
    assert lease.job.notes == ("n",)


def test_claiming_the_prepare_segment_makes_the_job_prepare(ledger: Ledger) -> None:
    (job_id,) = submit(ledger)
    assert claim(ledger, "cpu", "cpu").label == f"job {job_id} prepare"
    job = read.job(ledger, job_id)
    assert job.state is JobState.PREPARING
    assert job.started_at is not None


def test_a_worker_gets_nothing_of_another_queue(ledger: Ledger) -> None:
    planned(ledger)
    assert gets_nothing(ledger, queue="cpu")
    assert gets_nothing(ledger, queue="other")
    assert not gets_nothing(ledger, queue=QUEUE)


def parallel(ledger: Ledger, **changes: object) -> int:
    return planned(ledger, 2, Continuity.PARALLEL, **changes)


def order(ledger: Ledger, warm: int | None = None) -> list[int]:
    """The job of each lease, until there is none."""
    taken = []
    while (
        lease := moves.claim(ledger, worker="w", queue=QUEUE, device="cpu", ttl_seconds=TTL, warm_job=warm)
    ) is not None:
        taken.append(lease.job.id)
    return taken


def test_higher_priority_comes_first_then_the_earlier_deadline_then_first_come(ledger: Ledger) -> None:
    late = parallel(ledger, due=2_000_000_000.0)
    never = parallel(ledger)
    soon = parallel(ledger, due=1_900_000_000.0)
    low = parallel(ledger, priority=-1, due=1.0)
    high = parallel(ledger, priority=5)
    assert order(ledger) == [high, high, soon, soon, late, late, never, never, low, low]


def test_the_warm_job_comes_first_among_equals_only(ledger: Ledger) -> None:
    first, second = parallel(ledger), parallel(ledger)
    assert claim(ledger, warm=second).job.id == second
    urgent = parallel(ledger, priority=1)
    due = parallel(ledger, due=1_900_000_000.0)
    assert order(ledger, warm=second) == [urgent, urgent, due, due, second, first, first]


def test_a_warm_job_that_has_nothing_claimable_does_not_stand_in_the_way(ledger: Ledger) -> None:
    first, second = parallel(ledger), parallel(ledger)
    control.pause(ledger, second)
    assert order(ledger, warm=second) == [first, first]
    assert order(ledger, warm=12345) == []


def test_owners_take_turns_by_seconds_of_audio(ledger: Ledger) -> None:
    lecture = [request(owner="ann", audio_seconds=100.0) for _ in range(3)]
    greeting = [request(owner="bob", audio_seconds=30.0) for _ in range(4)]
    anns = submit(ledger, *lecture)
    bobs = submit(ledger, *greeting)
    taken = []
    while (lease := moves.claim(ledger, worker="c", queue="cpu", device="cpu", ttl_seconds=TTL)) is not None:
        taken.append(lease.job.id)
    a, b = list(anns), list(bobs)
    assert taken == [a[0], b[0], b[1], b[2], b[3], a[1], a[2]]


def test_an_owner_with_one_job_is_not_kept_behind_two_hundred(ledger: Ledger) -> None:
    submit(ledger, *[request(owner="ann") for _ in range(200)])
    claim(ledger, "cpu", "cpu")
    (bobs,) = submit(ledger, request(owner="bob"))
    taken = [claim(ledger, "cpu", "cpu").job.id for _ in range(3)]
    assert bobs in taken


def test_work_is_not_offered_before_its_time(ledger: Ledger) -> None:
    job_id = planned(ledger)
    fail(ledger, claim(ledger), delay=1000.0, strike=False)
    assert gets_nothing(ledger)
    change(ledger, SegmentRow, segment(ledger, job_id).id, not_before=ledger.now() - 0.001)
    assert not gets_nothing(ledger)


@pytest.mark.parametrize("stop", [control.pause, control.cancel])
def test_paused_and_cancelled_jobs_are_not_offered(ledger: Ledger, stop: object) -> None:
    job_id = planned(ledger)
    assert stop(ledger, job_id)  # type: ignore[operator]
    assert gets_nothing(ledger)


def test_what_is_left_of_a_failed_job_is_not_offered(ledger: Ledger) -> None:
    parallel(ledger)
    fail(ledger, claim(ledger), for_good=True)
    assert gets_nothing(ledger)


def test_a_draining_worker_gets_nothing_from_the_moment_it_is_said(ledger: Ledger) -> None:
    hello(ledger, "w1")
    hello(ledger, "w2")
    planned(ledger)
    control.drain_worker(ledger, "w1")
    assert gets_nothing(ledger, "w1")
    assert not gets_nothing(ledger, "w2")


def test_only_the_head_of_a_chain_is_offered(ledger: Ledger) -> None:
    planned(ledger, 3)
    lease = claim(ledger)
    assert lease.segment.number == 0
    assert lease.carry is None
    assert gets_nothing(ledger)
    publish(ledger, lease, b"after 0")
    following = claim(ledger)
    assert (following.segment.number, following.carry) == (1, b"after 0")


def test_an_out_of_memory_is_remembered_for_the_next_attempt(ledger: Ledger) -> None:
    planned(ledger)
    first = claim(ledger)
    assert not first.smaller
    moves.release(ledger, first, decide(OutOfMemory("x"), errors_before=0, was_smaller=False, policy=POLICY))
    assert claim(ledger).smaller


def claim_plan(ledger: Ledger, warm: int, *before: str) -> list[str]:
    """How the database runs the statement of a claim, in its own words.  The ledger's engine is listened to."""
    ran: list[tuple[str, object]] = []
    event.listen(ledger.engine, "before_cursor_execute", lambda c, k, sql, given, *_: ran.append((sql, given)))
    moves.claim(ledger, worker="w", queue=QUEUE, device="cpu", ttl_seconds=TTL, warm_job=warm)
    sql, given = next((sql, given) for sql, given in ran if "UPDATE segments" in sql)
    with ledger.engine.connect() as connection:
        for statement in before:
            connection.exec_driver_sql(statement)
        explain = "EXPLAIN QUERY PLAN" if ledger.is_sqlite else "EXPLAIN"
        return [str(row[-1]).strip() for row in connection.exec_driver_sql(f"{explain} {sql}", given)]


def test_a_claim_reads_an_index_and_not_the_table(another_ledger: Ledger) -> None:
    """The ledger of years must not make a claim slow."""
    before = [] if another_ledger.is_sqlite else ["SET enable_seqscan = off"]
    plan = claim_plan(another_ledger, 3, *before)
    assert any("ix_segments_claim" in line for line in plan), "\n".join(plan)
    assert not any(line.endswith("SCAN segments") or "Seq Scan on segments" in line for line in plan)


def test_behind_thousands_of_segments_the_warm_jobs_are_found_by_their_job(
    ledger: Ledger, another_ledger: Ledger
) -> None:
    planned(ledger, 5000, Continuity.PARALLEL)
    warm = planned(ledger, 5, Continuity.PARALLEL)
    before = [] if ledger.is_sqlite else ["ANALYZE segments"]  # what autovacuum does within a minute
    plan = claim_plan(another_ledger, warm, *before)
    by_job = "sqlite_autoindex_segments_1 (job_id=?)" if ledger.is_sqlite else "uq_segments_job_id_kind_number on segm"
    by_queue = "ix_segments_claim (queue=?)" if ledger.is_sqlite else "ix_segments_claim on segments"
    for index in (by_job, by_queue):
        assert sum(index in line for line in plan) == 1, "\n".join(plan)
    assert sum("ix_segments_claim" in line for line in plan) == 1, "\n".join(plan)
    assert not any(line.endswith("SCAN segments") or "Seq Scan on segments" in line for line in plan)


def test_a_claim_takes_no_more_steps_behind_thousands_of_segments(sqlite_ledger: Ledger) -> None:
    """SQLite tells how many instructions a statement took, whatever the machine."""
    empty(sqlite_ledger)
    steps: list[int] = []

    def claim_counted(warm: int) -> int:
        with closing(open_quick(sqlite_ledger.url)) as counted:
            event.listen(
                counted.engine, "connect", lambda c, _: c.set_progress_handler(lambda: steps.append(10) or 0, 10)
            )
            counted.now()
            steps.clear()
            assert claim(counted, warm=warm).job.id == warm
            return sum(steps)

    alone = claim_counted(planned(sqlite_ledger, 5, Continuity.PARALLEL))
    planned(sqlite_ledger, 5000, Continuity.PARALLEL)
    behind = claim_counted(planned(sqlite_ledger, 5, Continuity.PARALLEL))
    assert behind < 2 * alone


def test_two_ends_of_one_chain_never_run_at_once(ledger: Ledger) -> None:
    for worker in ("w1", "w2"):
        hello(ledger, worker)
    job_id = planned(ledger, 4)
    seen = []
    for _ in range(4):
        lease = claim(ledger, "w1")
        assert gets_nothing(ledger, "w2")
        seen.append(lease.segment.number)
        publish(ledger, lease)
    assert seen == [0, 1, 2, 3]
    assert read.job(ledger, job_id).state is JobState.ASSEMBLING
    assert claim(ledger, "cpu", "cpu").segment.kind is SegmentKind.ASSEMBLE


def test_jobs_of_one_batch_are_prepared_in_their_order(ledger: Ledger) -> None:
    ids = submit(ledger, request(), request(), request())
    for job_id in ids:
        prepare(ledger, job_id, 1)
    assert [claim(ledger).job.id for _ in ids] == list(ids)


def test_the_next_job_starts_while_the_first_waits_for_its_film(ledger: Ledger) -> None:
    first, second = planned(ledger, 1), planned(ledger, 1)
    publish(ledger, claim(ledger, warm=first))
    assert claim(ledger, warm=first).job.id == second


def test_a_beat_does_not_take_the_lease_away(ledger: Ledger) -> None:
    hello(ledger)
    job_id = planned(ledger)
    claim(ledger)
    beat(ledger, "w1", WorkerState.RENDERING)
    assert worker_row(ledger, "w1").segment_id == segment(ledger, job_id).id


def test_the_jobs_own_row_and_its_segments_agree_on_haste(ledger: Ledger) -> None:
    job_id = planned(ledger)
    control.set_priority(ledger, job_id, 9)
    control.set_deadline(ledger, job_id, 5.0)
    with ledger.read() as session:
        row = session.get_one(JobRow, job_id)
        copies = {(s.unhaste, s.due) for s in session.query(SegmentRow).filter_by(job_id=job_id)}
    assert copies == {(-row.priority, row.due)} == {(-9, 5.0)}
