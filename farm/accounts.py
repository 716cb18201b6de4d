"""What each batch has cost, may cost, and how long it still takes: the same figures for every place that shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from farm.config import RateSettings
from farm.ledger import Ledger
from farm.ledger.budget import device_seconds
from farm.ledger.estimate import Estimate, estimate
from farm.ledger.values import Batch
from farm.rates import price


@dataclass(frozen=True, slots=True)
class Account:
    """One batch at one instant."""

    device_seconds: float  # of rendering, failed and running attempts included
    cost: float  # by the configured rates
    currency: str
    budget: float | None
    budget_spent: bool  # it is paused until it gets more
    seconds_left: float | None  # until its last film; None without history, or when nothing moves
    estimate_error: float | None  # median error of the last estimates, as a part of what the films took
    estimate_films: int  # by how many films


def accounts(
    ledger: Ledger, batches: Sequence[Batch], rates: RateSettings, *, ahead: Estimate | None = None
) -> dict[int, Account]:
    """The account of each of these batches; `ahead` spares an estimate that the caller has made already."""
    spent = device_seconds(ledger, [batch.id for batch in batches])
    ahead = ahead or estimate(ledger)
    return {
        batch.id: Account(
            device_seconds=round(sum(spent[batch.id].values()), 3),
            cost=round(price(spent[batch.id], rates), 4),
            currency=rates.currency,
            budget=batch.budget,
            budget_spent=batch.budget_spent_at is not None,
            seconds_left=ahead.batches.get(batch.id),
            estimate_error=None if ahead.error is None else round(ahead.error, 4),
            estimate_films=ahead.films,
        )
        for batch in batches
    }
