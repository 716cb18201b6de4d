"""Workers in the ledger, the leader's lock and the doorbells owed."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from sqlalchemy import insert, select

from farm.errors import LeaseLost
from farm.ledger import Ledger, control, crew, presence, read
from farm.ledger.presence import ALIVE_SECONDS
from farm.ledger.ripple import owe
from farm.ledger.tables import LockRow, OutboxRow, SegmentRow, WorkerRow
from farm.states import WorkerState

from .scenes import QUEUE, age_worker, beat, change, claim, hello, planned, segment, worker_row


def say_hello(ledger: Ledger, incarnation: str) -> object:
    return crew.say_hello(
        ledger,
        name="w1",
        queue="render",
        machine="box",
        pid=7,
        incarnation=incarnation,
        device="cuda:0",
        info={"farm": "1"},
    )


def test_a_new_worker_is_loading_and_an_old_name_gives_back_what_it_was(ledger: Ledger) -> None:
    assert say_hello(ledger, "one") is None
    (worker,) = read.workers(ledger)
    assert (worker.state, worker.pid, worker.device, worker.info) == (WorkerState.LOADING, 7, "cuda:0", {"farm": "1"})
    before = say_hello(ledger, "two")
    assert before == worker
    assert len(read.workers(ledger)) == 1


def test_a_beat_tells_state_host_and_what_people_want(ledger: Ledger) -> None:
    hello(ledger)
    age_worker(ledger, "w1", 1000.0)
    worker = crew.beat(
        ledger,
        name="w1",
        incarnation="w1",
        state=WorkerState.RENDERING,
        reason=None,
        host_pid=99,
        host_restarts=2,
        info={"engine": "fake"},
    )
    assert (worker.host_pid, worker.host_restarts, worker.info) == (99, 2, {"engine": "fake"})
    assert worker.beat_at > ledger.now() - 60
    assert worker.drain is None


def test_a_process_whose_name_was_taken_must_stop_and_cannot_say_goodbye_for_the_new_one(ledger: Ledger) -> None:
    say_hello(ledger, "old")
    say_hello(ledger, "new")
    with pytest.raises(LeaseLost, match="another process works as w1; this one stops"):
        crew.beat(
            ledger,
            name="w1",
            incarnation="old",
            state=WorkerState.IDLE,
            reason=None,
            host_pid=None,
            host_restarts=0,
            info={},
        )
    crew.say_goodbye(ledger, name="w1", incarnation="old")
    assert worker_row(ledger, "w1").state is WorkerState.LOADING


def test_a_goodbye_leaves_nothing_behind(ledger: Ledger) -> None:
    hello(ledger)
    planned(ledger)
    claim(ledger)
    crew.say_goodbye(ledger, name="w1", incarnation="w1")
    row = worker_row(ledger, "w1")
    assert (row.state, row.segment_id, row.host_pid) == (WorkerState.STOPPED, None, None)


def test_workers_that_fell_silent_are_marked_once(ledger: Ledger) -> None:
    for name in ("silent", "stopped", "alive"):
        hello(ledger, name)
    crew.say_goodbye(ledger, name="stopped", incarnation="stopped")
    for name in ("silent", "stopped"):
        age_worker(ledger, name, ALIVE_SECONDS + 1)
    assert crew.mark_lost(ledger) == ["silent"]
    assert crew.mark_lost(ledger) == []
    beat(ledger, "silent")
    assert worker_row(ledger, "silent").state is WorkerState.IDLE


@pytest.mark.parametrize("seconds_ago", [0.0, ALIVE_SECONDS + 1])
@pytest.mark.parametrize("drained", [False, True])
def test_queries_and_programs_agree_on_who_lives_and_who_takes_work(
    ledger: Ledger, seconds_ago: float, drained: bool
) -> None:
    for state in WorkerState:
        hello(ledger, state.value, state=state)
        if drained:
            control.drain_worker(ledger, state.value)
        age_worker(ledger, state.value, seconds_ago)
    now = ledger.now()
    for row_question, question in ((presence.alive, presence.is_alive), (presence.at_work, presence.is_at_work)):
        with ledger.read() as session:
            found = set(session.scalars(select(WorkerRow.name).where(row_question())))
        assert found == {worker.name for worker in read.workers(ledger) if question(worker, now)}


# Who leads


def test_one_holder_leads_until_its_time_is_over_or_it_gives_the_lock_back(ledger: Ledger) -> None:
    assert crew.lead(ledger, "reaper", "a", ttl_seconds=60)
    assert not crew.lead(ledger, "reaper", "b", ttl_seconds=60)
    assert crew.lead(ledger, "reaper", "a", ttl_seconds=60)
    assert crew.lead(ledger, "another lock", "b", ttl_seconds=60)
    crew.stop_leading(ledger, "reaper", "b")
    assert not crew.lead(ledger, "reaper", "b", ttl_seconds=60)
    crew.stop_leading(ledger, "reaper", "a")
    assert crew.lead(ledger, "reaper", "b", ttl_seconds=60)
    assert not crew.lead(ledger, "reaper", "a", ttl_seconds=60)


def test_a_dead_leader_is_followed_by_the_clock_of_the_ledger(ledger: Ledger) -> None:
    crew.lead(ledger, "reaper", "dead", ttl_seconds=60)
    change(ledger, LockRow, "reaper", until=ledger.now() - 0.001)
    assert crew.lead(ledger, "reaper", "b", ttl_seconds=60)


def test_of_many_that_want_a_free_lock_one_gets_it(ledger: Ledger) -> None:
    together = threading.Barrier(8)

    def want(number: int) -> bool:
        together.wait()
        return crew.lead(ledger, "reaper", f"w{number}", ttl_seconds=60)

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(want, range(8))) == 1


# Doorbells owed


def test_a_doorbell_is_owed_once_however_often_it_is_asked_for(ledger: Ledger) -> None:
    for queue in ("b", "a", "b"):
        ledger.write(partial(owe, queue=queue))
    assert crew.take_owed_doorbells(ledger) == ["a", "b"]
    assert crew.take_owed_doorbells(ledger) == []


def test_a_heap_of_doorbells_is_taken_in_parts_and_to_the_end(ledger: Ledger) -> None:
    rows = [{"queue": f"q{n % 3}", "created_at": 1.0} for n in range(2500)]
    ledger.write(lambda session: session.execute(insert(OutboxRow), rows))
    rounds = 0
    while crew.take_owed_doorbells(ledger):
        rounds += 1
    assert rounds == 3


def test_queues_whose_work_waits_too_long_are_rung_again(ledger: Ledger) -> None:
    job_id = planned(ledger)
    assert read.ringable_queues(ledger, 30.0) == []
    change(ledger, SegmentRow, segment(ledger, job_id).id, queued_at=ledger.now() - 31.0)
    assert read.ringable_queues(ledger, 30.0) == [QUEUE]
    control.pause(ledger, job_id)
    assert read.ringable_queues(ledger, 30.0) == []
    assert read.queue_depths(ledger) == {}
