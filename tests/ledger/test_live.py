"""A worker's warm host is leased to one live session at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import update

from farm.errors import LeaseLost
from farm.ledger import Ledger, control, crew, live, read
from farm.ledger.live import LiveLease
from farm.ledger.tables import LockRow
from farm.states import WorkerState

from .scenes import QUEUE, age_worker

TTL = 30.0


def hello(ledger: Ledger, name: str, state: WorkerState = WorkerState.IDLE, reason: str | None = None) -> None:
    """A worker that can be asked for its host."""
    info: dict[str, Any] = {live.ADDRESS: f"/run/{name}.sock"}
    crew.say_hello(ledger, name=name, queue=QUEUE, machine="box", pid=1, incarnation=name, device="cpu", info=info)
    crew.beat(ledger, name=name, incarnation=name, state=state, reason=reason, host_pid=1, host_restarts=0, info=info)


def lease(ledger: Ledger, **options: Any) -> LiveLease | None:
    return live.lease_host(ledger, QUEUE, owner="test", ttl_seconds=TTL, **options)


def test_an_idle_worker_is_asked_before_one_that_renders_and_each_serves_one_session(ledger: Ledger) -> None:
    hello(ledger, "a", WorkerState.RENDERING)
    hello(ledger, "b")
    first, second = lease(ledger), lease(ledger)
    assert first is not None and second is not None
    assert (first.worker, first.address, second.worker) == ("b", "/run/b.sock", "a")
    assert first.token != second.token
    assert lease(ledger) is None
    assert live.is_leased(ledger, "b", first.token)
    assert not live.is_leased(ledger, "b", second.token)


@pytest.mark.parametrize("why", ["drained", "reason", "silent", "loading", "refused", "other queue", "no door"])
def test_a_worker_that_cannot_be_asked_is_left_alone(ledger: Ledger, why: str) -> None:
    hello(
        ledger, "a", WorkerState.LOADING if why == "loading" else WorkerState.IDLE, "full" if why == "reason" else None
    )
    if why == "drained":
        control.drain_worker(ledger, "a")
    elif why == "silent":
        age_worker(ledger, "a", 60.0)
    elif why == "no door":
        crew.beat(
            ledger, name="a", incarnation="a", state=WorkerState.IDLE, reason=None, host_pid=1, host_restarts=0, info={}
        )
    if why == "other queue":
        assert live.lease_host(ledger, "elsewhere", owner="test", ttl_seconds=TTL) is None
    else:
        assert lease(ledger, refused=["a"] if why == "refused" else []) is None


def test_a_lease_is_renewed_and_given_back_and_the_history_tells(ledger: Ledger) -> None:
    hello(ledger, "a")
    held = lease(ledger)
    assert held is not None
    live.renew(ledger, "a", held.token, ttl_seconds=TTL)
    live.release(ledger, "a", held.token, "closed after 250 frames")
    live.release(ledger, "a", held.token, "again")
    told = [(line.event, line.worker, line.detail) for line in read.events(ledger, limit=100) if "live" in line.event]
    assert told == [("live_lease", "a", "for test"), ("live_release", "a", "closed after 250 frames")]
    assert not live.is_leased(ledger, "a", held.token)
    with pytest.raises(LeaseLost):
        live.renew(ledger, "a", held.token, ttl_seconds=TTL)
    assert lease(ledger) is not None


def test_a_lease_that_ran_out_goes_to_the_next_and_the_first_cannot_end_it(ledger: Ledger) -> None:
    hello(ledger, "a")
    first = lease(ledger)
    assert first is not None
    ended = ledger.now() - 1.0
    ledger.write(lambda session: session.execute(update(LockRow).values(until=ended)))
    assert not live.is_leased(ledger, "a", first.token)
    second = lease(ledger)
    assert second is not None
    with pytest.raises(LeaseLost):
        live.renew(ledger, "a", first.token, ttl_seconds=TTL)
    live.release(ledger, "a", first.token, "late")
    assert live.is_leased(ledger, "a", second.token)


def test_of_many_that_ask_at_once_one_gets_the_host(ledger: Ledger) -> None:
    hello(ledger, "a")
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda _: lease(ledger), range(16)))
    assert len([one for one in got if one is not None]) == 1
