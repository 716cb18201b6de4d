"""`farm status`."""

from __future__ import annotations

import click

from farm.accounts import Account, accounts
from farm.cli.farm_context import Farm
from farm.cli.show import echo_json, echo_rows, json_option, length, plain
from farm.config import RateSettings
from farm.ledger import read
from farm.ledger.estimate import Work, estimate
from farm.rates import shown
from farm.redis_server import why_silent


@click.command()
@json_option
@click.pass_obj
def status(farm: Farm, as_json: bool) -> None:
    """Show workers, queues, open batches and what nobody can render.

    \b
    Example:
        farm status
    """
    depths = read.queue_depths(farm.ledger)
    stuck = read.stuck(farm.ledger)
    running = read.running(farm.ledger)
    redis_problem = why_silent(farm.settings)
    workers = read.workers(farm.ledger)
    ahead = estimate(farm.ledger)
    open_batches = read.batches(farm.ledger, unfinished=True, limit=None)
    told = accounts(farm.ledger, open_batches, farm.settings.rates, ahead=ahead)
    if as_json:
        echo_json(
            {
                "queues": depths,
                "work": [plain(work) for work in ahead.work],
                "running": len(running),
                "workers": {w.name: w.state.value for w in workers},
                "stuck": [plain(item) for item in stuck],
                "redis": redis_problem or "ok",
                "batches": [
                    {"batch": b.id, "name": b.name, "owner": b.owner, "jobs": dict(b.jobs), **plain(told[b.id])}
                    for b in open_batches
                ],
                "estimate": {"error": ahead.error, "films": ahead.films},
            }
        )
        return
    rows = [{"worker": w.name, "queue": w.queue, "state": w.state.value, "note": w.reason} for w in workers]
    echo_rows(rows, as_json=False, columns=("worker", "queue", "state", "note"), empty="no worker has said hello yet")
    waiting = ", ".join(f"{count} in {queue}" for queue, count in sorted(depths.items())) or "none"
    click.echo(f"segments: {len(running)} being worked on; waiting: {waiting}")
    for work in ahead.work:
        click.echo(_of_work(work))
    if farm.settings.redis_was_not_started:
        click.echo("the farm's Redis does not run; `farm up` starts it")
    elif redis_problem:
        click.echo(f"Redis does not answer ({redis_problem}); workers find work by themselves, a little later")
    for batch in open_batches:
        click.echo(_of_batch(batch.id, batch.name, told[batch.id], farm.settings.rates))
    for item in stuck:
        click.echo(f"{item.segments} waiting: {item.reason}")


def _of_work(work: Work) -> str:
    films = f"{work.jobs} film{'s' if work.jobs > 1 else ''}"
    line = f"to render in {work.queue}: {films} of {work.model}, {length(work.film_seconds)}"
    return line if work.seconds is None else f"{line}, about {length(work.seconds)} of one worker"


def _of_batch(batch_id: int, name: str, account: Account, rates: RateSettings) -> str:
    parts = [f"batch {batch_id} {name}:"]
    if account.seconds_left is not None:
        parts.append(f"about {length(account.seconds_left)} to go;")
    parts.append(f"{length(account.device_seconds)} of device time")
    if account.cost or account.budget is not None:
        parts.append(f"for {shown(account.cost, rates)}")
    if account.budget is not None:
        parts.append(f"of {account.budget:g}" + ("; paused, its budget is spent" if account.budget_spent else ""))
    return " ".join(parts)
