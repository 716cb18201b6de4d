"""What Flower is told: every attempt begins once, ends once, and is named so that a person knows it again."""

from __future__ import annotations

import threading
import uuid
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from farm.ledger import control, read
from farm.ledger.values import Lease
from farm.states import JobState
from workers.announce import MOST_WAITING, EventStream

from .conftest import SmallFarm, running, wait_until


class Recorder:
    """An announcer that keeps what it was told, by attempt."""

    def __init__(self) -> None:
        self.told: dict[tuple[int, int], list[str]] = defaultdict(list)
        self.results: list[dict[str, Any]] = []
        self.reasons: list[str] = []

    def _note(self, lease: Lease, word: str) -> None:
        self.told[lease.segment.id, lease.attempt].append(word)

    def started(self, lease: Lease) -> None:
        self._note(lease, "started")

    def progressed(self, lease: Lease, frames: int) -> None:
        self._note(lease, f"{frames}")

    def succeeded(self, lease: Lease, result: dict[str, Any], seconds: float) -> None:
        self._note(lease, "succeeded")
        self.results.append(result)

    def failed(self, lease: Lease, reason: str, *, retried: bool) -> None:
        self._note(lease, "retried" if retried else "failed")
        self.reasons.append(reason)


def test_a_film_is_told_attempt_by_attempt(farm: SmallFarm, tmp_path: Path) -> None:
    recorder = Recorder()
    job_id = farm.submit(f"engine@10?{tmp_path}/once", seconds=1.0)
    with running(farm.cpu_runner(recorder), farm.runner(announcer=recorder)):
        farm.wait_for(job_id, JobState.SUCCEEDED, JobState.FAILED)
        wait_until(lambda: len(recorder.results) == 5, "the last result")
    assert list(recorder.told.values()) == [
        ["started", "succeeded"],  # prepare
        ["started", "5", "succeeded"],
        ["started", "5", "retried"],
        ["started", "5", "10", "succeeded"],
        ["started", "5", "10", "succeeded"],
        ["started", "succeeded"],  # assemble
    ]
    assert recorder.reasons == ["the model gave no picture"]
    assert recorder.results[0] == {"frames": 25, "segments": 3, "reused": 0, "device": "cpu"}
    assert [result["frames"] for result in recorder.results] == [25, 5, 10, 10, 25]
    assert recorder.results[-1]["file"] == read.job(farm.ledger, job_id).output


@pytest.mark.parametrize(
    ("ask", "reason"),
    [
        (lambda farm, job, segment: control.pause(farm.ledger, job), "the job was paused"),
        (lambda farm, job, segment: control.cancel(farm.ledger, job), "the render was stopped: cancelled"),
        (lambda farm, job, segment: farm.run_out(segment), "the render was stopped: lost"),
        (lambda farm, job, segment: None, "the worker was stopped"),
    ],
    ids=["paused", "cancelled", "lost", "stopped"],
)
def test_an_attempt_that_ends_early_is_told_with_the_reason(farm: SmallFarm, ask: Any, reason: str) -> None:
    recorder = Recorder()
    farm.change("segments", seconds=30.0, first_seconds=30.0)
    job_id = farm.planned(seconds=30.0)
    with running(farm.runner(announcer=recorder, pace=0.1)):
        segment = wait_until(lambda: next((s for s in read.running(farm.ledger) if s.frames_now), None), "a chunk")
        ask(farm, job_id, segment.id)
        if reason != "the worker was stopped":
            control.drain_worker(farm.ledger, "fake@box")  # so that it does not begin another
            wait_until(lambda: recorder.reasons, "the end of the attempt")
    told = recorder.told[segment.id, segment.attempt]
    assert told[0] == "started" and told[-1] == "retried" and told.count("started") == 1
    assert recorder.reasons[0] == reason


# On Celery's event stream


class Dispatcher:
    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []

    def send(self, kind: str, **fields: Any) -> None:
        self.sent.append((kind, fields))


def test_events_of_one_attempt_share_an_id_and_say_what_it_is(farm: SmallFarm) -> None:
    job_id = farm.planned(name="第一课")
    dispatcher = Dispatcher()
    stream = EventStream(lambda: dispatcher, "fake@box")
    lease = farm.claim("fake", "fake@box")
    stream.started(lease)
    stream.progressed(lease, 5)
    stream.succeeded(lease, {"frames": 5}, 1.5)
    assert stream.flush(60)
    assert [kind for kind, _ in dispatcher.sent] == [
        "task-received",
        "task-started",
        "task-progress",
        "task-succeeded",
    ]
    ids = {fields["uuid"] for _, fields in dispatcher.sent}
    assert len(ids) == 1 and uuid.UUID(ids.pop())
    received, progress, end = (dispatcher.sent[n][1] for n in (0, 2, 3))
    assert received["name"] == "farm.render"
    assert received["args"] == repr((f"job {job_id}", "segment 1/6", "frames 0-4", "portrait.png", "第一课"))
    assert (progress["current"], progress["total"]) == (5, 5)
    assert end["runtime"] == 1.5
    assert received["retries"] == 0


def test_another_attempt_has_another_id_and_a_failure_says_why(farm: SmallFarm) -> None:
    farm.planned()
    dispatcher = Dispatcher()
    stream = EventStream(lambda: dispatcher, "fake@box")
    first = farm.claim("fake", "fake@box")
    stream.failed(first, "boom", retried=True)
    farm.run_out(first.segment.id)
    second = farm.claim("fake", "fake@box")
    stream.failed(second, "boom again", retried=False)
    assert stream.flush(60)
    (one, fields), (other, more) = dispatcher.sent
    assert (one, other) == ("task-retried", "task-failed")
    assert fields["uuid"] != more["uuid"]
    assert (fields["exception"], more["exception"]) == ("boom", "boom again")


def test_flower_that_is_away_costs_nothing(farm: SmallFarm) -> None:
    class Broken:
        def send(self, kind: str, **fields: Any) -> None:
            raise ConnectionError("Redis is away")

    farm.planned()
    lease = farm.claim("fake", "fake@box")
    for stream in (EventStream(lambda: None, "x"), EventStream(Broken, "x")):
        stream.started(lease)
        assert stream.flush(60)


def test_a_redis_that_swallows_everything_holds_no_render_up(farm: SmallFarm) -> None:
    silent = threading.Event()

    class Silent:
        def send(self, kind: str, **fields: Any) -> None:
            silent.wait(60)

    farm.planned()
    lease = farm.claim("fake", "fake@box")
    stream = EventStream(Silent, "x")
    for frames in range(MOST_WAITING + 10):
        stream.progressed(lease, frames)
    assert not stream.flush(0.01)
    silent.set()
    assert stream.flush(60)
