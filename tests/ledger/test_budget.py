"""A batch may cost so much; then its jobs rest until it gets more."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from farm.accounts import accounts
from farm.config import RateSettings
from farm.errors import InputError, NotFound
from farm.ledger import Ledger, control, moves, read
from farm.ledger.budget import device_seconds, pause_what_is_spent, set_budget
from farm.ledger.repair import begin_again
from farm.ledger.tables import AttemptRow
from farm.ledger.values import Lease
from farm.rates import price, shown
from farm.states import JobState

from .scenes import (
    POLICY,
    attempt_of,
    change,
    claim,
    fail,
    gets_nothing,
    hello,
    interrupt,
    planned,
    publish,
    run_out,
)

RATES = RateSettings(currency="EUR", per_device_hour={"cpu": 1800.0, "npu": 3600.0})


def price_of(seconds: Mapping[str, float]) -> float:
    return price(seconds, RATES)


def batch_of(ledger: Ledger, job_id: int) -> int:
    return read.job(ledger, job_id).batch_id


def began_ago(ledger: Ledger, lease: Lease, seconds: float) -> None:
    change(ledger, AttemptRow, attempt_of(ledger, lease), started_at=ledger.now() - seconds)


def test_each_device_of_a_set_is_paid_for_and_an_unknown_kind_is_free() -> None:
    assert price_of({"cpu": 10.0}) == 5.0
    assert price_of({"npu:2,3,4,5": 10.0, "cuda:0": 99.0}) == 40.0
    assert shown(5.0, RATES) == "5.00 EUR"


def test_a_spent_budget_pauses_the_batch_and_no_other(ledger: Ledger) -> None:
    hello(ledger)
    dear, other = planned(ledger, 4), planned(ledger, 4)
    set_budget(ledger, batch_of(ledger, dear), 2.0)
    publish(ledger, claim(ledger))  # two seconds, of one job; one money
    assert pause_what_is_spent(ledger, price_of) == []
    publish(ledger, claim(ledger, warm=dear))
    assert pause_what_is_spent(ledger, price_of) == [batch_of(ledger, dear)]
    assert read.job(ledger, dear).paused and not read.job(ledger, other).paused
    assert claim(ledger).job.id == other and gets_nothing(ledger)
    assert read.batch(ledger, batch_of(ledger, dear)).budget_spent_at is not None
    assert pause_what_is_spent(ledger, price_of) == []


def test_what_runs_now_counts(ledger: Ledger) -> None:
    hello(ledger)
    job = planned(ledger, 4)
    set_budget(ledger, batch_of(ledger, job), 5.0)
    began_ago(ledger, claim(ledger), 11.0)
    assert 11.0 <= device_seconds(ledger, [batch_of(ledger, job)])[batch_of(ledger, job)]["cpu"] < 100.0
    assert pause_what_is_spent(ledger, price_of) == [batch_of(ledger, job)]


END_WITHOUT_RESULT: Mapping[str, Callable[[Ledger, Lease], object]] = {
    "failed": fail,
    "given back": interrupt,
    "worker vanished": lambda ledger, lease: (run_out(ledger, lease), moves.expire_leases(ledger, POLICY)),
    "worker died and came back": lambda ledger, lease: moves.expire_leases(ledger, POLICY, worker=lease.worker),
    "cancelled": lambda ledger, lease: control.cancel(ledger, lease.job.id),
    "begun again": lambda ledger, lease: begin_again(ledger, lease, "another version"),
}


@pytest.mark.parametrize("end", END_WITHOUT_RESULT.values(), ids=END_WITHOUT_RESULT)
def test_an_attempt_that_came_to_nothing_is_paid_for(ledger: Ledger, end: Callable[[Ledger, Lease], object]) -> None:
    hello(ledger)
    job = planned(ledger, 4)
    lease = claim(ledger)
    began_ago(ledger, lease, 600.0)
    end(ledger, lease)
    assert read.attempts(ledger, job)[-1].ended_at is not None
    assert 595.0 < device_seconds(ledger, [batch_of(ledger, job)])[batch_of(ledger, job)]["cpu"] < 660.0


def test_a_resumed_batch_without_more_budget_rests_again_and_with_more_goes_on(ledger: Ledger) -> None:
    hello(ledger)
    job = planned(ledger, 4)
    batch = batch_of(ledger, job)
    set_budget(ledger, batch, 1.0)
    publish(ledger, claim(ledger))
    assert pause_what_is_spent(ledger, price_of) == [batch]
    control.resume(ledger, job)
    assert pause_what_is_spent(ledger, price_of) == [batch]
    set_budget(ledger, batch, 10.0)
    control.resume(ledger, job)
    assert pause_what_is_spent(ledger, price_of) == []
    assert read.batch(ledger, batch).budget_spent_at is None
    lines = [line.event for line in read.events(ledger) if line.batch_id == batch]
    assert lines.count("budget_spent") == 1
    assert claim(ledger).job.id == job


def test_a_finished_batch_is_not_paused(ledger: Ledger) -> None:
    hello(ledger)
    job = planned(ledger, 1)
    set_budget(ledger, batch_of(ledger, job), 0.5)
    publish(ledger, claim(ledger))
    publish(ledger, claim(ledger, "cpu", "cpu"))
    assert read.job(ledger, job).state is JobState.SUCCEEDED
    assert pause_what_is_spent(ledger, price_of) == []


def test_the_account_of_a_batch_tells_time_money_and_budget(ledger: Ledger) -> None:
    hello(ledger)
    job = planned(ledger, 4)
    set_budget(ledger, batch_of(ledger, job), 9.0)
    publish(ledger, claim(ledger))
    interrupt(ledger, claim(ledger))
    batch = read.batch(ledger, batch_of(ledger, job))
    told = accounts(ledger, [batch], RATES)[batch.id]
    assert 2.0 <= told.device_seconds < 60.0 and told.cost == pytest.approx(told.device_seconds / 2.0, abs=0.001)
    assert (told.currency, told.budget) == ("EUR", 9.0)
    assert not told.budget_spent


def test_what_is_no_budget_or_batch_is_refused(ledger: Ledger) -> None:
    with pytest.raises(NotFound, match="there is no batch 77"):
        set_budget(ledger, 77, 1.0)
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="more than 0"):
            set_budget(ledger, 1, wrong)
