"""`farm owners` and the budgets of batches: who gets how much, and what it may cost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

Farm = Callable[..., Result]


def test_owners_have_shares_and_quotas(farm: Farm, batch: Path) -> None:
    farm("submit", str(batch), "--owner", "physics")
    assert farm("owners", "share", "physics", "2").exit_code == 0
    assert farm("owners", "quota", "physics", "4").exit_code == 0
    (owner,) = [json.loads(line) for line in farm("owners", "list", "--json").stdout.splitlines()]
    assert owner == {"name": "physics", "share": 2.0, "quota": 4, "running": 0, "waiting": 0}
    farm("owners", "quota", "physics", "none")
    assert "none" in farm("owners", "list").stdout


@pytest.mark.parametrize("words", [("quota", "nobody", "4"), ("share", "nobody", "2")])
def test_an_unknown_owner_is_said(farm: Farm, words: tuple[str, ...]) -> None:
    done = farm("owners", *words)
    assert done.exit_code == 1 and "there is no owner 'nobody'" in done.stderr


def test_what_is_no_quota_is_refused_in_a_sentence(farm: Farm, batch: Path) -> None:
    farm("submit", str(batch), "--owner", "physics")
    for word in ("many", "0"):
        done = farm("owners", "quota", "physics", word)
        assert done.exit_code == 2 and len(done.stderr.splitlines()) == 1


def test_a_budget_is_given_at_submit_changed_and_lifted(
    farm: Farm, batch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FARM_RATES__CURRENCY", "EUR")
    monkeypatch.setenv("FARM_RATES__PER_DEVICE_HOUR", '{"cpu": 3.5}')
    farm("submit", str(batch), "--budget", "20")
    (told,) = [json.loads(line) for line in farm("batches", "list", "--json").stdout.splitlines()]
    assert (told["budget"], told["cost"], told["currency"], told["budget_spent"]) == (20.0, 0.0, "EUR", False)
    farm("batches", "budget", "35", "1")
    (told,) = json.loads(farm("status", "--json").stdout)["batches"]
    assert (told["batch"], told["budget"]) == (1, 35.0)
    assert "of 35" in farm("status").stdout
    farm("batches", "budget", "none", "1")
    assert json.loads(farm("batches", "list", "--json").stdout)["budget"] is None


def test_a_budget_without_rates_is_warned_of(farm: Farm, batch: Path) -> None:
    farm("submit", str(batch))
    assert "no rate is set" in farm("batches", "budget", "5", "1").stderr


def test_what_is_no_budget_is_refused(farm: Farm, batch: Path) -> None:
    assert farm("submit", str(batch), "--budget", "-1").exit_code == 2
    assert farm("batches", "budget", "much", "1").exit_code == 2
    assert farm("batches", "budget", "5", "77").exit_code == 1
