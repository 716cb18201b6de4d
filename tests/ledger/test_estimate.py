"""How long films still take, from what the ledger has seen, and how wrong that was."""

from __future__ import annotations

import random

import pytest
from sqlalchemy import func, select

from farm.ledger import Ledger, control, read, workload
from farm.ledger.estimate import estimate, queue_work
from farm.ledger.tables import AttemptRow
from farm.ledger.values import Lease
from farm.states import Continuity

from .scenes import attempt_of, change, claim, hello, planned, publish, request, submit

LONG_AGO = 1e9


def film(ledger: Ledger, seconds_each: list[float]) -> int:
    """A film whose segments took these many seconds of the clock."""
    job_id = planned(ledger, len(seconds_each))
    for seconds in seconds_each:
        lease = claim(ledger)
        took(ledger, lease, seconds)
    took(ledger, claim(ledger, "cpu", "cpu"), 1.0)
    return job_id


def took(ledger: Ledger, lease: Lease, seconds: float) -> None:
    """Publish a lease as if it had taken so long, after everything that was published before."""
    publish(ledger, lease)
    with ledger.read() as session:
        began = session.scalar(select(func.max(AttemptRow.ended_at)).where(AttemptRow.ended_at < LONG_AGO + 1e6))
    began = began or LONG_AGO
    change(ledger, AttemptRow, attempt_of(ledger, lease), started_at=began + 1.0, ended_at=began + 1.0 + seconds)


def test_without_history_there_is_no_estimate(ledger: Ledger) -> None:
    hello(ledger)
    job = planned(ledger, 2)
    ahead = estimate(ledger)
    assert (ahead.jobs, ahead.batches, ahead.error, ahead.films) == ({}, {}, None, 0)
    assert read.job(ledger, job).finished_at is None


def test_a_film_takes_as_long_as_its_frames_did_before_and_its_assembling(ledger: Ledger) -> None:
    hello(ledger)
    film(ledger, [10.0, 10.0, 10.0])
    job = planned(ledger, 4)
    assert estimate(ledger).jobs[job] == pytest.approx(4 * 10.0 + 1.0, rel=0.01)
    publish(ledger, claim(ledger))
    assert estimate(ledger).jobs[job] < 32.0


def test_a_batch_waits_for_the_films_before_it_and_more_workers_are_quicker(ledger: Ledger) -> None:
    hello(ledger)
    film(ledger, [10.0, 10.0])
    first, second = planned(ledger, 2), planned(ledger, 2)
    ahead = estimate(ledger)
    assert ahead.jobs[second] - ahead.jobs[first] == pytest.approx(20.0, rel=0.01)
    assert ahead.batches[read.job(ledger, second).batch_id] == ahead.jobs[second]
    hello(ledger, "w2", queue="preview")
    hello(ledger, "w3", queue="preview")
    ahead = estimate(ledger)
    assert ahead.jobs[second] == pytest.approx(ahead.jobs[first], rel=0.01)


def test_a_parallel_film_is_spread_over_the_workers(ledger: Ledger) -> None:
    hello(ledger)
    film(ledger, [10.0, 10.0])
    job = planned(ledger, 4, Continuity.PARALLEL)
    for name in ("w2", "w3"):
        hello(ledger, name, queue="preview")
    assert estimate(ledger).jobs[job] == pytest.approx(20.0 + 1.0, rel=0.01)


def test_a_paused_film_has_no_estimate_and_takes_no_turn(ledger: Ledger) -> None:
    hello(ledger)
    film(ledger, [10.0])
    first, second = planned(ledger, 2), planned(ledger, 2)
    control.pause(ledger, first)
    ahead = estimate(ledger)
    assert first not in ahead.jobs
    assert ahead.jobs[second] == pytest.approx(21.0, rel=0.01)


def test_after_ten_films_of_an_uneven_worker_the_median_error_is_within_fifteen_percent(ledger: Ledger) -> None:
    hello(ledger)
    chance = random.Random(10)
    for _ in range(11):
        film(ledger, [10.0 * chance.uniform(0.75, 1.25) for _ in range(3)])
    ahead = estimate(ledger)
    assert ahead.films == 10
    assert ahead.error is not None and 0.0 < ahead.error <= 0.15


def test_a_worker_that_became_four_times_slower_shows_in_the_error(ledger: Ledger) -> None:
    hello(ledger)
    for _ in range(2):
        film(ledger, [10.0, 10.0])
    film(ledger, [40.0, 40.0])
    ahead = estimate(ledger)
    assert ahead.films == 2
    assert ahead.error is not None and ahead.error == pytest.approx((0.0 + 0.75) / 2, abs=0.02)


@pytest.mark.parametrize("workers", [1, 3])
def test_of_many_open_jobs_each_batch_is_told_as_if_they_were_looked_at_one_by_one(
    ledger: Ledger, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("w1", "w2", "w3")[:workers]:
        hello(ledger, name, queue="preview")
    hello(ledger)
    film(ledger, [10.0, 10.0])
    under_way = planned(ledger, 4)
    publish(ledger, claim(ledger))
    claim(ledger)  # renders the second segment
    asked = submit(ledger, *[request(due=1e9 + n) for n in range(12)])
    submit(ledger, request(priority=5), request(preset="calm"), request(continuity=Continuity.PARALLEL))
    submit(ledger, *[request() for _ in range(9)])
    closely = estimate(ledger)
    monkeypatch.setattr(workload, "FEW", 0)
    roughly = estimate(ledger)
    assert roughly.jobs == {}
    one_film = 20.0  # seconds: what is told together may end that much sooner or later on several workers
    assert roughly.batches == pytest.approx(closely.batches, abs=0.01 if workers == 1 else one_film)
    assert [(w.queue, w.model, w.jobs) for w in roughly.work] == [("preview", "preview", 25)]
    for now, before in zip(roughly.work, closely.work, strict=True):
        assert (now.film_seconds, now.seconds) == pytest.approx((before.film_seconds, before.seconds))
    batch = read.job(ledger, asked[0]).batch_id
    told = estimate(ledger, batches=[batch]).jobs
    assert sorted(told) == sorted(asked)
    assert told == pytest.approx({job: closely.jobs[job] for job in asked}, abs=0.01 if workers == 1 else one_film)
    assert under_way not in told


def test_the_work_of_a_queue_is_known_in_film_before_it_is_in_time(ledger: Ledger) -> None:
    hello(ledger)
    planned(ledger, 3)
    submit(ledger, request(audio_seconds=10.0))
    (work,) = queue_work(ledger)
    assert (work.queue, work.model, work.jobs, work.seconds) == ("preview", "preview", 2, None)
    assert work.film_seconds == pytest.approx(6.0 + 10.0)
