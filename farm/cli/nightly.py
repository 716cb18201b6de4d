"""`farm nightly`."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

import click

from farm.cli.farm_context import Farm
from farm.cli.show import echo_json, json_option
from farm.logs import log_to_stderr
from farm.nightly import run_night
from farm.nightly_config import Nightly, read_nightly
from farm.nightly_forecast import NightForecast, foretell
from farm.nightly_summary import as_text, moment, price, span

SHOWN_ROWS = 50


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Tell what would be rendered, how long and at what cost; render nothing.")
@click.option("--any-time", is_flag=True, help="Take the window for open, and stay until all is rendered.")
@json_option
@click.pass_context
def nightly(ctx: click.Context, config: Path, dry_run: bool, any_time: bool, as_json: bool) -> None:
    """Render what is new or changed in CONFIG's courses, at night.  It works while CONFIG's window is open.

    Made for cron: start it every few minutes.  Inside the window it renders until all is done or the window closes;
    outside of it the courses' jobs rest.  It prints only news.

    Exits with 0 when all is done or there is nothing to do, 3 when some failed, 4 when the window closed with work
    left, 75 when another nightly runs.

    \b
    Example:
        farm nightly configs/nightly.toml --dry-run
        farm nightly configs/nightly.toml
    """
    farm: Farm = ctx.obj
    told = read_nightly(config)
    if dry_run:
        forecast = foretell(told, farm.settings, farm.ledger, time.time())
        if as_json:
            echo_json(forecast)
        else:
            _say_forecast(told, forecast)
        return
    log_to_stderr(farm.settings.log_format)
    signal.signal(signal.SIGTERM, _stop)  # systemd's stop: the jobs are paused on the way out
    outcome = run_night(told, farm.settings, farm.ledger, any_time=any_time)
    if as_json:
        echo_json({**outcome.summary.as_json(), "news": outcome.is_news})
    elif outcome.is_news or sys.stdout.isatty():
        click.echo(as_text(outcome.summary), nl=False)
    ctx.exit(outcome.summary.exit_code)


def _stop(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


def _say_forecast(told: Nightly, forecast: NightForecast) -> None:
    when = "is open" if forecast.is_open else f"opens {moment(forecast.night.begin)} and stays open"
    click.echo(f"{told.name}: the window {when} until {moment(forecast.night.end)}.")
    for name, what, seconds in forecast.rows[:SHOWN_ROWS]:
        click.echo(f"  {what:<8} {span(seconds):>8}  {name}")
    if len(forecast.rows) > SHOWN_ROWS:
        click.echo(f"  … and {len(forecast.rows) - SHOWN_ROWS} more")
    if forecast.settling:
        waits = "1 recording waits" if forecast.settling == 1 else f"{forecast.settling} recordings wait"
        click.echo(
            f"{waits} for a later run: changed, or with a portrait that was, less than"
            f" {told.settings.settle_seconds:g} s ago, and perhaps still being copied."
        )
    if not forecast.rows:
        click.echo("Nothing else is new or changed." if forecast.settling else "Nothing is new or changed.")
    else:
        films = f"{len(forecast.rows)} film{'s' if len(forecast.rows) > 1 else ''}"
        click.echo(f"Would render {films}, {span(forecast.film_seconds)} long: {forecast.new} new,", nl=False)
        click.echo(f" {forecast.continued} from earlier nights.")
        click.echo(_how_long(told, forecast))
    if forecast.replaced:
        click.echo(f"{forecast.replaced} unfinished would be begun anew: their lectures were changed.")
    for problem in forecast.problems:
        click.echo(f"cannot be taken: {problem}", err=True)


def _how_long(told: Nightly, forecast: NightForecast) -> str:
    if forecast.device_seconds is None or forecast.wall_seconds is None:
        models = ", ".join(forecast.unknown_models)
        return f"How long is not known: this farm has rendered nothing yet with {models}."
    cost = price(forecast.device_seconds, told.settings.cost)
    workers = f"{forecast.workers} worker{'s' if forecast.workers > 1 else ''}"
    said = f"About {span(forecast.wall_seconds)} on {workers}, {span(forecast.device_seconds)} of device time"
    said += f", {cost}." if cost else "."
    window = forecast.night.end - forecast.night.begin
    if forecast.wall_seconds > window:
        said += (
            f" That is more than one window of {span(window)}: about {-int(-forecast.wall_seconds // window)} nights."
        )
    return said
