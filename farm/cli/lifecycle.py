"""`farm up`, `down`, `worker`, `flower`: what runs on this machine."""

from __future__ import annotations

import os
import sys
import time

import click

from farm import processes, supervisor
from farm.cli.farm_context import Farm
from farm.cli.show import echo_rows, json_option
from farm.ledger import read
from farm.ledger.presence import is_alive
from farm.roster import find_worker, load_roster
from farm.states import WorkerState


@click.command()
@click.option("--flower", is_flag=True, help="Start also Flower, read-only on http://127.0.0.1:5555.")
@click.option("--serve", is_flag=True, help="Start also the farm's page and HTTP API.")
@click.option("--wait", is_flag=True, help="Return only when every engine is loaded.")
@click.option("--foreground", is_flag=True, help="Stay in this terminal, for systemd and containers.")
@json_option
@click.pass_obj
def up(farm: Farm, flower: bool, serve: bool, wait: bool, foreground: bool, as_json: bool) -> None:
    """Start this machine's workers, and a Redis if none is named.

    The workers are those of workers.toml.  Everything goes on without this terminal; logs are in FARM_HOME/logs.
    Running it again starts what is missing.

    \b
    Example:
        farm up
        farm up --flower --wait
    """
    if foreground:
        sys.exit(supervisor.main([*(["--flower"] if flower else []), *(["--serve"] if serve else [])]))
    before = {process.name for process in processes.find_all(farm.settings.run_dir)}
    supervisor.up(farm.settings, flower=flower, serve=serve)
    names = {spec.full_name for spec in load_roster()}
    deadline = time.monotonic() + (farm.settings.host.load_timeout_seconds if wait else 15.0)
    while time.monotonic() < deadline:
        now = farm.ledger.now()
        settled = [
            w
            for w in read.workers(farm.ledger)
            if w.name in names and is_alive(w, now) and (not wait or w.state is not WorkerState.LOADING)
        ]
        if len(settled) == len(names):
            break
        time.sleep(0.1)
    workers = [w for w in read.workers(farm.ledger) if w.name in names]
    rows = [
        {"worker": w.name, "queue": w.queue, "device": w.device, "state": w.state.value, "note": w.reason}
        for w in workers
    ]
    echo_rows(
        rows, as_json=as_json, columns=("worker", "queue", "device", "state", "note"), empty="no worker answered yet"
    )
    for asked, name, where in (
        (flower, "flower", "Flower: http://127.0.0.1:5555"),
        (serve, "serve", f"The farm's page: http://{farm.settings.server.host}:{farm.settings.server.port}"),
    ):
        if asked and supervisor.NAME in before and name not in before:
            click.echo(f"the farm ran already, without it: use `farm {name}`, or `farm down` first", err=True)
        elif asked and not as_json:
            click.echo(where)
    missing = names - {w.name for w in workers}
    if missing:
        click.echo(f"not there yet: {', '.join(sorted(missing))}; see {farm.settings.logs_dir}", err=True)


@click.command()
@click.pass_obj
def down(farm: Farm) -> None:
    """Stop everything that `farm up` started on this machine.  Running segments are given back, not lost.

    \b
    Example:
        farm down
    """
    stopped = supervisor.down(farm.settings)
    click.echo(f"stopped {', '.join(stopped)}" if stopped else "nothing was running", err=not stopped)


@click.command()
@click.argument("name")
@click.pass_obj
def worker(farm: Farm, name: str) -> None:
    """Run one worker in this terminal, for containers and systemd.

    \b
    Example:
        farm worker preview
    """
    spec = find_worker(name)
    os.environ["FARM_HOME"] = str(farm.settings.home)
    os.execv(sys.executable, [sys.executable, "-m", "workers", spec.name])


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("options", metavar="[FLOWER OPTIONS]...", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def flower(farm: Farm, options: tuple[str, ...]) -> None:
    """Run Flower, the monitor of Celery, in this terminal.  It is read-only and on loopback.

    FLOWER OPTIONS are Flower's own and replace the farm's choices.

    \b
    Example:
        farm flower --port=5556
    """
    os.environ["FARM_HOME"] = str(farm.settings.home)
    os.execv(sys.executable, [sys.executable, "-m", "farm.flower", *options])
