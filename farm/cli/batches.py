"""`farm batches`."""

from __future__ import annotations

import click

from farm.accounts import Account, accounts
from farm.cli.choice import CANCEL, PAUSE, RESUME, batch_ids_argument, jobs_of_batches, move_jobs
from farm.cli.farm_context import Farm
from farm.cli.show import echo_rows, json_option, length, moment, plain
from farm.config import RateSettings
from farm.errors import InputError
from farm.ledger import budget as budgets
from farm.ledger import read
from farm.rates import shown


@click.group()
def batches() -> None:
    """List batches; cancel, pause and resume them, limit their cost.  A batch is what one submit put in.

    \b
    Example:
        farm batches list
    """


@batches.command("list")
@click.option("--limit", default=20, show_default=True, help="How many at most.")
@json_option
@click.pass_obj
def list_batches(farm: Farm, limit: int, as_json: bool) -> None:
    """List batches, newest first.

    \b
    Example:
        farm batches list --json | jq .jobs
    """
    found = read.batches(farm.ledger, limit=limit)
    told = accounts(farm.ledger, found, farm.settings.rates)
    rows = [
        {
            "batch": b.id,
            "name": b.name,
            "owner": b.owner,
            "submitted": b.created_at if as_json else moment(b.created_at),
            "jobs": b.jobs if as_json else ", ".join(f"{n} {state}" for state, n in sorted(b.jobs.items())),
            "source": b.source,
            **(plain(told[b.id]) if as_json else _account_cells(told[b.id], farm.settings.rates)),
        }
        for b in found
    ]
    columns = ("batch", "name", "owner", "submitted", "jobs", "left", "device", "cost")
    echo_rows(rows, as_json=as_json, columns=columns, empty="no batches yet")


def _account_cells(account: Account, rates: RateSettings) -> dict[str, str]:
    cost = shown(account.cost, rates) if account.cost or account.budget is not None else ""
    if account.budget is not None:
        cost += f" of {account.budget:g}" + (", spent" if account.budget_spent else "")
    return {"left": length(account.seconds_left), "device": length(account.device_seconds), "cost": cost}


@batches.command("budget")
@click.argument("amount", metavar="AMOUNT|none")
@batch_ids_argument
@click.pass_obj
def set_budget(farm: Farm, amount: str, batch_ids: tuple[int, ...]) -> None:
    """Limit what batches may cost, by the rates of farm.toml.

    AMOUNT is money as in rates.per_device_hour; `none` lifts the limit.  A batch whose budget is spent is paused; give
    it more, and `farm batches resume` lets it go on.

    \b
    Example:
        farm batches budget 20 3
    """
    try:
        budget = None if amount == "none" else float(amount)
    except ValueError:
        raise InputError(f"{amount!r} is no amount; give one such as 20, or none") from None
    if budget is not None and not any(farm.settings.rates.per_device_hour.values()):
        click.echo("no rate is set, so nothing is ever spent; set rates.per_device_hour in farm.toml", err=True)
    for batch_id in batch_ids:
        budgets.set_budget(farm.ledger, batch_id, budget)


@batches.command("cancel")
@batch_ids_argument
@click.pass_obj
def cancel_batches(farm: Farm, batch_ids: tuple[int, ...]) -> None:
    """Cancel all unfinished jobs of batches.

    \b
    Example:
        farm batches cancel 3
    """
    move_jobs(farm, jobs_of_batches(farm, batch_ids), CANCEL)


@batches.command("pause")
@batch_ids_argument
@click.pass_obj
def pause_batches(farm: Farm, batch_ids: tuple[int, ...]) -> None:
    """Pause the jobs of batches.  Running segments are given back at their next chunk.

    \b
    Example:
        farm batches pause 3
    """
    move_jobs(farm, jobs_of_batches(farm, batch_ids), PAUSE)


@batches.command("resume")
@batch_ids_argument
@click.pass_obj
def resume_batches(farm: Farm, batch_ids: tuple[int, ...]) -> None:
    """Let the paused jobs of batches go on.

    \b
    Example:
        farm batches resume 3
    """
    move_jobs(farm, jobs_of_batches(farm, batch_ids), RESUME)
