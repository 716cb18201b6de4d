"""The heart beats whatever the render does, and tells a running attempt when it is not wanted."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from farm.config import load_settings
from farm.ledger import control, crew, read
from farm.ledger.store import Ledger
from farm.ledger.values import Worker
from farm.processes import birth
from farm.states import WorkerState
from workers.heart import CHECK_SECONDS, Heart, LeaseWatch
from workers.room import why_no_room

from .conftest import SmallFarm, wait_until


def hello(ledger: Ledger, incarnation: str = "one") -> None:
    crew.say_hello(ledger, name="w", queue="fake", machine="box", pid=1, incarnation=incarnation, device="cpu", info={})


@contextmanager
def beating(ledger: Ledger, on_name_taken: Callable[[], None] = lambda: None, beat: float = 0.05) -> Iterator[Heart]:
    heart = Heart(ledger, name="w", incarnation="one", beat_seconds=beat, ttl_seconds=20.0, on_name_taken=on_name_taken)
    heart.start()
    try:
        yield heart
    finally:
        heart.stop()


def row(ledger: Ledger) -> Worker:
    return read.workers(ledger)[0]


def test_a_new_state_is_told_at_once_and_an_old_one_again_and_again(farm: SmallFarm) -> None:
    hello(farm.ledger)
    with beating(farm.ledger, beat=600.0) as heart:
        wait_until(lambda: heart.seen, "the first beat")
        heart.say(WorkerState.SICK, "why")
        wait_until(lambda: (row(farm.ledger).state, row(farm.ledger).reason) == (WorkerState.SICK, "why"), "the news")
    hello(farm.ledger)
    with beating(farm.ledger):
        first = row(farm.ledger).beat_at
        wait_until(lambda: row(farm.ledger).beat_at > first, "another beat")


def test_the_row_tells_which_processes_they_are_so_that_a_number_given_again_is_not_mistaken(farm: SmallFarm) -> None:
    hello(farm.ledger)
    with beating(farm.ledger, beat=600.0) as heart:
        heart.note_host(os.getpid(), 3, {"engine": "fake"})
        wait_until(lambda: row(farm.ledger).host_pid, "the host")
    info = row(farm.ledger).info
    own = birth(os.getpid())
    assert info == {"engine": "fake", "process_birth": own, "host_birth": own}
    assert row(farm.ledger).host_restarts == 3


def test_a_held_lease_is_renewed_with_its_progress_until_it_is_let_go(farm: SmallFarm) -> None:
    farm.planned()
    hello(farm.ledger)
    lease = farm.claim("fake", "w")
    with beating(farm.ledger) as heart:
        watch = LeaseWatch(farm.ledger, lease, threading.Event())
        watch.frames = 4
        heart.hold(watch)

        def held() -> Any:
            return read.running(farm.ledger)[0]

        wait_until(lambda: held().frames_now == 4, "the progress")
        first = held().lease_until
        wait_until(lambda: held().lease_until > first, "a renewal")
        farm.run_out(lease.segment.id)
        wait_until(lambda: watch.why_stop() == "lost", "the loss to be noticed")
        heart.let_go()


def test_a_process_whose_name_was_taken_is_told_to_stop(farm: SmallFarm) -> None:
    hello(farm.ledger, "another one")
    stopped = threading.Event()
    with beating(farm.ledger, stopped.set):
        assert stopped.wait(60)


def test_a_ledger_that_is_away_does_not_end_the_heart(farm: SmallFarm, monkeypatch: pytest.MonkeyPatch) -> None:
    hello(farm.ledger)
    away = threading.Event()

    def refuse(*args: Any, **kwargs: Any) -> Any:
        away.set()
        raise ConnectionError("the ledger is away")

    with beating(farm.ledger) as heart:
        wait_until(lambda: heart.seen, "the first beat")
        with monkeypatch.context() as patch:
            patch.setattr(crew, "beat", refuse)
            assert away.wait(60)
        before = row(farm.ledger).beat_at
        wait_until(lambda: row(farm.ledger).beat_at > before, "another beat")


def test_a_running_attempt_asks_the_ledger_only_now_and_then(farm: SmallFarm, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = farm.planned()
    lease = farm.claim("fake", "w")
    clock = [1000.0]
    monkeypatch.setattr("workers.heart.time.monotonic", lambda: clock[0])
    stopping = threading.Event()
    watch = LeaseWatch(farm.ledger, lease, stopping)
    assert watch.why_stop() is None
    control.pause(farm.ledger, job_id)
    assert watch.why_stop() is None
    clock[0] += CHECK_SECONDS
    assert watch.why_stop() == "paused"
    stopping.set()
    assert watch.why_stop() == "shutdown"
    watch.lose()
    assert watch.why_stop() == "lost"


# Room


def test_room_is_judged_by_disk_and_memory(farm: SmallFarm) -> None:
    room = load_settings().room
    enough = room.model_copy(update={"min_free_disk_gb": 0.0, "min_free_memory_gb": 0.0})
    assert why_no_room(enough, farm.home) is None
    for key, words in [("min_free_disk_gb", "GB of disk are free at"), ("min_free_memory_gb", "GB of memory are free")]:
        reason = why_no_room(enough.model_copy(update={key: 1e6}), farm.home)
        assert reason is not None and words in reason and f"room.{key} = 1e+06" in reason
