"""The reaper takes back what the dead held, kills what they left behind, and leaves the living alone."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from sqlalchemy import update

from farm.ledger import crew, moves, read
from farm.ledger.tables import LockRow, SegmentRow, WorkerRow
from farm.ledger.values import Lease
from farm.processes import birth, kill_group
from farm.reaper import Reaper
from farm.states import SegmentState, WorkerState

from .conftest import SmallFarm, is_dead, wait_until


@pytest.fixture
def sleeper() -> Iterator[psutil.Process]:
    """A process that stands for a host."""
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as process:
        yield psutil.Process(process.pid)
        process.kill()


class Farm:
    def __init__(self, farm: SmallFarm) -> None:
        self.farm = farm
        self.rang: list[str] = []
        self.reaper = Reaper(farm.ledger, farm.settings, holder="test", ring=self.rang.extend, kill=kill_group)

    def worker(self, *, host: psutil.Process | None = None, machine: str = "box", **info: Any) -> None:
        born = {"process_birth": birth(os.getpid())}
        crew.say_hello(
            self.farm.ledger,
            name="w",
            queue="fake",
            machine=machine,
            pid=os.getpid(),
            incarnation="one",
            device="cpu",
            info={},
        )
        crew.beat(
            self.farm.ledger,
            name="w",
            incarnation="one",
            state=WorkerState.IDLE,
            reason=None,
            host_pid=host.pid if host else None,
            host_restarts=0,
            info={**born, **({"host_birth": birth(host.pid)} if host else {}), **info},
        )

    def overdue(self) -> Lease:
        """A lease of `w` that ran out."""
        lease = self.farm.claim("fake", "w")
        past = self.farm.ledger.now() - 1.0
        self.farm.ledger.write(
            lambda session: session.execute(
                update(SegmentRow).where(SegmentRow.id == lease.segment.id).values(lease_until=past)
            )
        )
        return lease

    def segment(self, lease: Lease) -> Any:
        return next(s for s in read.segments(self.farm.ledger, lease.job.id) if s.id == lease.segment.id)


@pytest.fixture
def scene(farm: SmallFarm) -> Farm:
    return Farm(farm)


def test_a_round_takes_back_dead_leases_and_rings_for_them(scene: Farm) -> None:
    scene.farm.planned()
    scene.worker()
    lease = scene.overdue()
    crew.take_owed_doorbells(scene.farm.ledger)
    scene.reaper.sweep(scene.farm.ledger.now())
    assert scene.segment(lease).state is SegmentState.QUEUED
    assert scene.rang == ["fake"]


def test_work_that_waits_too_long_is_rung_again(scene: Farm) -> None:
    job_id = scene.farm.planned()
    scene.reaper.sweep(scene.farm.ledger.now())
    scene.rang.clear()
    scene.reaper.sweep(scene.farm.ledger.now())
    assert scene.rang == []
    long_ago = scene.farm.ledger.now() - 10 * scene.farm.settings.lease.ring_again_seconds
    scene.farm.ledger.write(
        lambda session: session.execute(
            update(SegmentRow).where(SegmentRow.job_id == job_id).values(queued_at=long_ago)
        )
    )
    scene.reaper.sweep(scene.farm.ledger.now())
    assert scene.rang == ["fake"]


def test_silent_workers_are_marked(scene: Farm) -> None:
    scene.worker()
    past = scene.farm.ledger.now() - 1000.0
    scene.farm.ledger.write(lambda session: session.execute(update(WorkerRow).values(beat_at=past)))
    scene.reaper.sweep(scene.farm.ledger.now())
    assert read.workers(scene.farm.ledger)[0].state is WorkerState.LOST


def test_the_host_of_a_worker_that_is_out_of_time_is_killed_before_its_work_goes_on_elsewhere(
    scene: Farm, sleeper: psutil.Process
) -> None:
    scene.farm.planned()
    scene.worker(host=sleeper)
    scene.overdue()
    scene.reaper.kill_overdue_hosts_here(scene.farm.ledger.now())
    assert is_dead(sleeper.pid)


def test_a_lease_that_runs_out_during_a_round_is_left_to_the_next(scene: Farm, sleeper: psutil.Process) -> None:
    scene.farm.planned()
    scene.worker(host=sleeper)
    began = scene.farm.ledger.now() - 60.0
    scene.overdue()  # it ran out after the round began
    scene.reaper.kill_overdue_hosts_here(began)
    scene.reaper.sweep(began)
    assert not is_dead(sleeper.pid)
    assert [segment.state for segment in read.running(scene.farm.ledger)] == [SegmentState.LEASED]


@pytest.mark.parametrize("why", ["in time", "another machine", "another process with its number"])
def test_no_other_process_is_killed(scene: Farm, sleeper: psutil.Process, why: str) -> None:
    scene.farm.planned()
    scene.worker(
        host=sleeper,
        machine="elsewhere" if why == "another machine" else "box",
        **({"host_birth": "an earlier boot:1"} if why == "another process with its number" else {}),
    )
    if why == "in time":
        scene.farm.claim("fake", "w")
    else:
        scene.overdue()
    scene.reaper.kill_overdue_hosts_here(scene.farm.ledger.now())
    time.sleep(0.1)
    assert not is_dead(sleeper.pid)


def test_a_dead_workers_host_is_buried_with_it_and_a_living_worker_is_not(scene: Farm, sleeper: psutil.Process) -> None:
    scene.worker(host=sleeper)
    (alive,) = read.workers(scene.farm.ledger)
    assert not scene.reaper.bury(alive)
    assert not is_dead(sleeper.pid)
    scene.worker(host=sleeper, process_birth="an earlier boot:1")
    (dead,) = read.workers(scene.farm.ledger)
    assert scene.reaper.bury(dead)
    wait_until(lambda: is_dead(sleeper.pid), "the host's death")


def test_only_one_of_many_reapers_sweeps_and_another_follows_when_it_stops(scene: Farm) -> None:
    scene.farm.change("lease", sweep_seconds=0.05)
    names = ["a", "b", "c"]
    reapers = [
        Reaper(scene.farm.ledger, scene.farm.settings, holder=name, ring=lambda queues: None, kill=kill_group)
        for name in names
    ]
    for reaper in reapers:
        reaper.start()
    try:

        def leader() -> str | None:
            with scene.farm.ledger.read() as session:
                row = session.get(LockRow, crew.REAPER_LOCK)
                return row.holder if row and row.until > scene.farm.ledger.now() else None

        first = wait_until(leader, "a leader")
        reapers[names.index(first)].stop()
        assert wait_until(lambda: found if (found := leader()) != first else None, "the next leader") in names
        scene.farm.planned()
        lease = moves.claim(scene.farm.ledger, worker="gone", queue="fake", device="cpu", ttl_seconds=0.01)
        assert lease is not None
        wait_until(lambda: scene.segment(lease).state is SegmentState.QUEUED, "the lease to be taken back")
    finally:
        for reaper in reapers:
            reaper.stop()


def test_a_reaper_that_was_away_judges_nobody_in_its_first_round(scene: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr("farm.reaper.time.monotonic", lambda: clock[0])
    assert not scene.reaper._was_away(scene.farm.ledger.now())
    clock[0] += scene.farm.settings.lease.sweep_seconds
    assert not scene.reaper._was_away(scene.farm.ledger.now())
    clock[0] += 3 * scene.farm.settings.lease.ttl_seconds
    assert scene.reaper._was_away(scene.farm.ledger.now())
    clock[0] += scene.farm.settings.lease.sweep_seconds
    assert not scene.reaper._was_away(scene.farm.ledger.now())
