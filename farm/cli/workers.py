"""`farm workers`."""

from __future__ import annotations

import click

from farm.cli.farm_context import Farm
from farm.cli.show import echo_rows, json_option, moment, plain
from farm.doorbell import Doorbell
from farm.errors import NotFound
from farm.ledger import control, crew, read


@click.group()
def workers() -> None:
    """See and steer workers: Celery processes bound to one device set each.

    \b
    Example:
        farm workers list
    """


@workers.command("list")
@json_option
@click.pass_obj
def list_workers(farm: Farm, as_json: bool) -> None:
    """List every worker that ever said hello, with what it does now.

    \b
    Example:
        farm workers list --json | jq .state
    """
    now = farm.ledger.now()
    rows = []
    for w in read.workers(farm.ledger):
        if as_json:
            rows.append({**plain(w), "state": w.state.value, "beat_seconds_ago": now - w.beat_at})
        else:
            rows.append(
                {
                    "name": w.name,
                    "queue": w.queue,
                    "device": w.info.get("device") or w.device,
                    "state": w.state.value,
                    "segment": w.segment_id,
                    "beat": f"{max(0, now - w.beat_at):.0f} s ago",
                    "since": moment(w.started_at),
                    "note": w.reason,
                }
            )
    columns = ("name", "queue", "device", "state", "segment", "beat", "since", "note")
    echo_rows(rows, as_json=as_json, columns=columns, empty="no worker has said hello yet; `farm up` starts them")


@workers.command()
@click.argument("name")
@click.option("--now", is_flag=True, help="Give back the running segment at its next chunk instead of finishing it.")
@click.pass_obj
def drain(farm: Farm, name: str, now: bool) -> None:
    """Let a worker take nothing new, before an upgrade or a repair.

    \b
    Example:
        farm workers drain gpu0
    """
    full = _full_name(farm, name)
    control.drain_worker(farm.ledger, full, now=now)
    click.echo(f"{full} takes nothing new; `farm workers resume {name}` undoes this")


@workers.command()
@click.argument("name")
@click.pass_obj
def pause(farm: Farm, name: str) -> None:
    """Let a worker give back what it holds at its next chunk and take nothing: the same as drain --now.

    \b
    Example:
        farm workers pause gpu0
    """
    full = _full_name(farm, name)
    control.drain_worker(farm.ledger, full, now=True)
    click.echo(f"{full} stops at its next chunk; `farm workers resume {name}` lets it go on")


@workers.command()
@click.argument("name")
@click.pass_obj
def resume(farm: Farm, name: str) -> None:
    """Let a drained or sick worker take work again.

    \b
    Example:
        farm workers resume gpu0
    """
    control.resume_worker(farm.ledger, _full_name(farm, name))
    Doorbell(farm.settings).ring(crew.take_owed_doorbells(farm.ledger))


def _full_name(farm: Farm, name: str) -> str:
    """`gpu0` for `gpu0@box`, when only one machine has it.  Raises NotFound."""
    names = [w.name for w in read.workers(farm.ledger)]
    if name in names:
        return name
    found = [full for full in names if full.partition("@")[0] == name]
    if len(found) == 1:
        return found[0]
    if found:
        raise NotFound(f"several workers are called {name}: {', '.join(found)}; give the whole name")
    raise NotFound(f"there is no worker {name!r}; `farm workers list` shows those there are")
