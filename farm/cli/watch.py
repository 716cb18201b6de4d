"""`farm watch`: live progress."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from farm.cli.farm_context import Farm
from farm.cli.show import STATE_STYLES, console, echo_json, echo_rows, json_option, length, times
from farm.ledger import control, read
from farm.ledger.estimate import Estimate, estimate
from farm.ledger.progress import JobProgress, job_progress
from farm.ledger.workload import FEW
from farm.states import FINISHED, OPEN_STATES, JobState

LOOK_SECONDS = 0.5
FORECAST_SECONDS = 5.0
SHOWN_JOBS = 30


@click.command()
@click.argument("batch_ids", metavar="[BATCH]...", nargs=-1, type=int)
@click.option("--once", is_flag=True, help="Show the present state and end.")
@json_option
@click.pass_obj
def watch(farm: Farm, batch_ids: tuple[int, ...], once: bool, as_json: bool) -> None:
    """Watch jobs being rendered.  It shows segments, frames per second, time left, device and last error.

    Without a BATCH it shows all unfinished jobs, and ends when they have ended.

    \b
    Example:
        farm watch
        farm watch 12 --once --json | jq .doing
    """
    ids: list[int] = []
    for batch_id in batch_ids:
        read.batch(farm.ledger, batch_id)
        ids += control.job_ids_of_batch(farm.ledger, batch_id)
    if not batch_ids:
        ids = sorted(job.id for job in read.jobs(farm.ledger, states=OPEN_STATES, limit=None))
    if not ids:
        click.echo("nothing is being rendered; `farm jobs list` shows what was", err=True)
        return
    if once or not sys.stdout.isatty():
        found = job_progress(farm.ledger, ids)
        ahead = _look_ahead(farm, found)
        if sys.stdout.isatty() and not as_json:
            _show_once(farm, found, ahead)
            return
        rows = [{**as_row(p), "left": ahead.jobs.get(p.job.id, p.seconds_left)} for p in found]
        echo_rows(rows, as_json=as_json, columns=_COLUMNS, empty="nothing")
        if once:
            return
    follow(farm, ids, quiet=as_json)


_COLUMNS = ("job", "name", "state", "frames", "of", "fps", "x", "left", "doing", "error")


def as_row(progress: JobProgress) -> dict[str, Any]:
    """One job's progress for a table or a program."""
    return {
        "job": progress.job.id,
        "name": progress.job.name,
        "state": progress.job.shown_state,
        "frames": progress.frames,
        "of": progress.total_frames,
        "segments_done": progress.job.segments_done,
        "segments": progress.job.segments_total,
        "fps": progress.frames_per_second,
        "x": progress.times_real_time,
        "left": progress.seconds_left,
        "doing": progress.doing,
        "workers": list(progress.workers),
        "error": progress.last_error,
    }


def follow(farm: Farm, job_ids: Sequence[int], *, quiet: bool) -> None:
    """Stay until these jobs have ended; on a terminal, show how they go."""
    if quiet or not sys.stdout.isatty():
        told: set[str] = set()
        while read.unfinished(farm.ledger, job_ids):
            _tell_stuck(farm, told)
            time.sleep(LOOK_SECONDS)
        return
    ahead: Estimate | None = None
    looked = 0.0
    with Live(console=console(), refresh_per_second=4, transient=True) as live:
        while True:
            found = job_progress(farm.ledger, job_ids)
            if ahead is None or time.monotonic() - looked > FORECAST_SECONDS:
                ahead, looked = _look_ahead(farm, found), time.monotonic()
            live.update(_picture(farm, found, ahead))
            if all(p.job.state in FINISHED for p in found):
                return
            time.sleep(LOOK_SECONDS)


def _look_ahead(farm: Farm, shown: Sequence[JobProgress]) -> Estimate:
    """With each job of its own, unless these are a crowd in which nobody looks for one."""
    going = [p.job.batch_id for p in shown if p.job.state not in FINISHED]
    return estimate(farm.ledger, batches=() if len(going) > FEW else set(going))


def _tell_stuck(farm: Farm, told: set[str]) -> None:
    for item in read.stuck(farm.ledger):
        if item.reason not in told:
            told.add(item.reason)
            click.echo(f"farm: {item.reason}", err=True)


def _show_once(farm: Farm, found: Sequence[JobProgress], ahead: Estimate) -> None:
    """As on a terminal that stays, with every job and each error in full."""
    out = console()
    out.print(_picture(farm, found, ahead, limit=len(found)))
    jobs_by_error: dict[str, list[str]] = {}
    for p in found:
        if p.last_error:
            jobs_by_error.setdefault(p.last_error, []).append(str(p.job.id))
    for error, ids in jobs_by_error.items():
        more = f" and {len(ids) - 1} more" if len(ids) > 1 else ""
        out.print(f"job {ids[0]}{more}: {error}", markup=False, style="red")


def _picture(farm: Farm, found: Sequence[JobProgress], ahead: Estimate, limit: int = SHOWN_JOBS) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=True)
    for column in ("job", "name", "state", "progress", "fps", "x", "left", "doing"):
        table.add_column(
            column,
            justify="right" if column in ("job", "fps", "x", "left") else "left",
            no_wrap=True,
            ratio=2 if column in ("name", "doing") else None,
            overflow="ellipsis",
        )
    going = [p for p in found if p.job.state not in FINISHED]
    ended = [p for p in found if p.job.state in FINISHED]
    going.sort(key=lambda p: (not p.workers, p.job.id))
    for p in [*going, *reversed(ended)][:limit]:
        table.add_row(
            str(p.job.id),
            p.job.name,
            Text(p.job.shown_state, style=STATE_STYLES.get(p.job.shown_state, "")),
            ProgressBar(total=1.0, completed=p.share, width=24),
            f"{p.frames_per_second:.1f}" if p.frames_per_second else "",
            times(p.times_real_time),
            length(ahead.jobs.get(p.job.id, p.seconds_left)),
            Text(p.last_error or p.doing, style="red" if p.last_error else ""),
        )
    done = sum(1 for p in found if p.job.state is JobState.SUCCEEDED)
    failed = sum(1 for p in found if p.job.state in (JobState.FAILED, JobState.CANCELLED))
    seconds = sum(p.job.audio_seconds for p in going)
    line = f"{done} of {len(found)} films done"
    line += f", {failed} failed" if failed else ""
    line += f", {length(seconds)} of film to go" if going else ""
    line += _to_go(going, ahead)
    stuck = [Text(item.reason, style="yellow") for item in read.stuck(farm.ledger)] if going else []
    return Group(table, Text(line), *stuck)


def _to_go(going: Sequence[JobProgress], ahead: Estimate) -> str:
    """When the last of these films will be there, and how far off such estimates were."""
    until = [ahead.jobs.get(p.job.id, ahead.batches.get(p.job.batch_id)) for p in going]
    known = [seconds for seconds in until if seconds is not None]
    if not known:
        return ""
    wrong = f" (the last {ahead.films} films: {ahead.error:.0%} off)" if ahead.error is not None else ""
    return f", the last one in about {length(max(known))}{wrong}"


def summarise(farm: Farm, job_ids: Iterable[int], films: Mapping[int, Path], *, as_json: bool) -> None:
    """The table at the end: each film, its length, its render speed and its path on this machine."""
    found = job_progress(farm.ledger, list(job_ids))
    if as_json:
        for p in found:
            film = films.get(p.job.id)
            echo_json({**as_row(p), "film": str(film) if film else None, "reason": p.job.reason})
        return
    rows: list[dict[str, Any]] = []
    for p in found:
        film = films.get(p.job.id)
        rows.append(
            {
                "row": p.job.row_number,
                "name": p.job.name,
                "state": p.job.shown_state,
                "length": length(p.job.audio_seconds),
                "speed": times(p.times_real_time),
                "film": short(str(film)) if film else p.job.reason,
            }
        )
    echo_rows(rows, as_json=False, columns=("row", "name", "state", "length", "speed", "film"), empty="no jobs")


def short(path: str) -> str:
    """Relative to where the user stands, when that is shorter."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return path
