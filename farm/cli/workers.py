"""`farm workers`."""

from __future__ import annotations

import click

from farm.cli.farm_context import Farm
from farm.cli.show import echo_rows, json_option, moment, plain
from farm.doorbell import ring_owed
from farm.errors import LedgerAway, NotFound
from farm.ledger import control, read
from farm.ledger.presence import READY, is_alive
from farm.ledger.values import Segment
from farm.roster import find_worker
from farm.states import SegmentKind

names_argument = click.argument("names", metavar="NAME...", nargs=-1, required=True)


@click.group()
def workers() -> None:
    """List workers; drain, pause and resume them.  A worker is a Celery process bound to one device set.

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
    held = {} if as_json else {segment.id: segment for segment in read.running(farm.ledger)}
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
                    "holds": _what(held.get(w.segment_id or 0)),
                    "beat": f"{max(0, now - w.beat_at):.0f} s ago",
                    "since": moment(w.started_at),
                    "note": w.reason,
                }
            )
    columns = ("name", "queue", "device", "state", "holds", "beat", "since", "note")
    echo_rows(rows, as_json=as_json, columns=columns, empty="no worker has said hello yet; `farm up` starts them")


def _what(segment: Segment | None) -> str:
    if segment is None:
        return ""
    if segment.kind is SegmentKind.RENDER:
        return f"job {segment.job_id} segment {segment.number + 1}"
    return f"job {segment.job_id} {segment.kind}"


@workers.command()
@click.argument("name")
@click.option("--ready", is_flag=True, help="Ask also whether it could take work: its model is loaded, it is not sick.")
@click.pass_context
def check(context: click.Context, name: str, ready: bool) -> None:
    """Tell whether a worker of this machine lives.  It exits with 0 or 1, for probes of containers.

    It lives unless the ledger has not heard of it for a minute.  When the ledger does not answer, every worker
    counts as alive, so that no warm model is lost for that, and none as ready.

    \b
    Example:
        farm workers check gpu0 --ready
    """
    farm: Farm = context.obj
    full = name if "@" in name else find_worker(name).full_name
    try:
        now = farm.ledger.now()
        found = next((w for w in read.workers(farm.ledger) if w.name == full), None)
    except LedgerAway as error:
        click.echo(str(error), err=True)
        context.exit(1 if ready else 0)
    if found is None:
        raise NotFound(f"{full} never said hello")
    click.echo(f"{full} is {found.state.value}, last heard of {max(0.0, now - found.beat_at):.0f} s ago")
    context.exit(0 if is_alive(found, now) and (found.state in READY or not ready) else 1)


@workers.command()
@names_argument
@click.option("--now", is_flag=True, help="Give back the running segment at its next chunk instead of finishing it.")
@click.pass_obj
def drain(farm: Farm, names: tuple[str, ...], now: bool) -> None:
    """Keep workers from taking new work, before an upgrade or a repair.

    \b
    Example:
        farm workers drain gpu0
    """
    for name, full in _full_names(farm, names):
        control.drain_worker(farm.ledger, full, now=now)
        click.echo(f"{full} takes nothing new; `farm workers resume {name}` undoes this")


@workers.command()
@names_argument
@click.pass_obj
def pause(farm: Farm, names: tuple[str, ...]) -> None:
    """Make workers give back their segments and take nothing new.  They stop at their next chunk, as with drain --now.

    \b
    Example:
        farm workers pause gpu0
    """
    for name, full in _full_names(farm, names):
        control.drain_worker(farm.ledger, full, now=True)
        click.echo(f"{full} stops at its next chunk; `farm workers resume {name}` lets it go on")


@workers.command()
@names_argument
@click.pass_obj
def resume(farm: Farm, names: tuple[str, ...]) -> None:
    """Let drained, paused or sick workers take work again.

    \b
    Example:
        farm workers resume gpu0 gpu1
    """
    for _, full in _full_names(farm, names):
        control.resume_worker(farm.ledger, full)
    ring_owed(farm.ledger, farm.settings)


def _full_names(farm: Farm, names: tuple[str, ...]) -> list[tuple[str, str]]:
    """Each name as it was given and in full, before anything is done to any.  Raises NotFound."""
    return [(name, _full_name(farm, name)) for name in names]


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
