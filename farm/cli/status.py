"""`farm status`."""

from __future__ import annotations

import click

from farm.cli.farm_context import Farm
from farm.cli.show import echo_json, echo_rows, json_option, plain
from farm.ledger import read
from farm.redis_server import why_silent


@click.command()
@json_option
@click.pass_obj
def status(farm: Farm, as_json: bool) -> None:
    """Tell how the farm is: workers, queues, and work that no worker can take.

    \b
    Example:
        farm status
    """
    depths = read.queue_depths(farm.ledger)
    stuck = read.stuck(farm.ledger)
    running = read.running(farm.ledger)
    redis_problem = why_silent(farm.settings)
    workers = read.workers(farm.ledger)
    if as_json:
        echo_json(
            {
                "queues": depths,
                "running": len(running),
                "workers": {w.name: w.state.value for w in workers},
                "stuck": [plain(item) for item in stuck],
                "redis": redis_problem or "ok",
            }
        )
        return
    rows = [{"worker": w.name, "queue": w.queue, "state": w.state.value, "note": w.reason} for w in workers]
    echo_rows(rows, as_json=False, columns=("worker", "queue", "state", "note"), empty="no worker has said hello yet")
    waiting = ", ".join(f"{count} in {queue}" for queue, count in sorted(depths.items())) or "none"
    click.echo(f"segments: {len(running)} being worked on; waiting: {waiting}")
    if redis_problem:
        click.echo(f"Redis does not answer ({redis_problem}); workers find work by themselves, a little later")
    for item in stuck:
        click.echo(f"{item.segments} waiting: {item.reason}")
