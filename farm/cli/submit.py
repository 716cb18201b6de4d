"""`farm submit`."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from farm.batch import COLUMNS, read_batch
from farm.cli.farm_context import Farm
from farm.cli.films import RENDER_ANEW, bring_films
from farm.cli.show import console, echo_json, json_option
from farm.cli.watch import follow, short
from farm.cli.watch import summarise as summarise_jobs
from farm.errors import FileLost, InputError, SomeJobsFailed
from farm.ledger import read
from farm.states import JobState
from farm.store import open_store
from farm.submission import Submission
from farm.submission import submit as submit_rows

SHOWN_LOST = 3

_COLUMNS = "\b\nColumns (portrait and audio are required; a model's settings may be more):\n" + "\n".join(
    textwrap.fill(text, 78, initial_indent=f"  {name:<11} ", subsequent_indent=" " * 14)  # fits a narrow terminal
    for name, text in COLUMNS.items()
)


@click.command(epilog=_COLUMNS)
@click.argument("batch", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    "--out",
    "out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the films; default: output_dir of farm.toml, or films beside BATCH.",
)
@click.option("--name", help="What the batch is called; default: the file's name.")
@click.option("--owner", help="For whom; default: your user name.")
@click.option("--set", "sets", multiple=True, metavar="COLUMN=VALUE", help="A cell for every row that lacks it.")
@click.option("--skip-bad", is_flag=True, help="Submit the good rows even if others are bad.")
@click.option("--again", is_flag=True, help="Make new jobs of rows that are jobs already.")
@click.option("--overwrite", is_flag=True, help="Let films replace files that this farm did not make.")
@click.option(
    "--budget", type=float, help="What it may cost, in the money of rates.per_device_hour; then it is paused."
)
@click.option("--wait", is_flag=True, help="Stay until the films are done; exits with 3 if some jobs failed.")
@click.option("--dry-run", is_flag=True, help="Check every row and write nothing.")
@json_option
@click.pass_obj
def submit(
    farm: Farm,
    batch: Path,
    out: Path | None,
    name: str | None,
    owner: str | None,
    sets: tuple[str, ...],
    skip_bad: bool,
    again: bool,
    overwrite: bool,
    budget: float | None,
    wait: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Make each row of a batch file a job, and queue it.  BATCH is CSV or JSON lines, in UTF-8.

    Every row is checked before anything is written.  The same rows again are the same jobs, so an interrupted submit
    is simply repeated.

    \b
    Example:
        farm submit lectures.csv
        farm submit lectures.csv --wait --set preset=calm -o /srv/films
    """
    rows = read_batch(batch)
    with Progress(
        TextColumn("looking at files"),
        BarColumn(),
        MofNCompleteColumn(),
        console=console(),
        transient=True,
        disable=not sys.stdout.isatty() or as_json,
    ) as bar:
        task = bar.add_task("", total=None)
        done = submit_rows(
            farm.ledger,
            farm.settings,
            rows,
            base=batch.resolve().parent,
            source=str(batch),
            name=name,
            owner=owner,
            output_dir=out,
            defaults=parse_sets(sets),
            skip_bad=skip_bad,
            again=again,
            overwrite=overwrite,
            dry_run=dry_run,
            budget=budget,
            on_progress=lambda seen, of: bar.update(task, completed=seen, total=of),
            look_ahead=True,
        )
    for problem in done.problems:
        click.echo(f"{batch}:{problem.row}: skipped: {problem.sentence}", err=True)
    if not as_json:
        for line in done.forecasts:
            click.echo(str(line))
    if done.replaced and not as_json:
        click.echo(_of_replaced(done.replaced))
    if dry_run:
        click.echo(f"{len(done.intake.known_job_ids)} rows are jobs already, {done.new_rows} would be new.")
        return
    if as_json:
        _echo_submission(done)
    else:
        _say_submission(farm, done)
    if wait:
        try:
            follow(farm, done.intake.job_ids, quiet=as_json)
        except KeyboardInterrupt:
            click.echo("the jobs go on without this terminal; `farm watch` shows them", err=True)
            raise
        films = bring_films(farm, done.intake.job_ids)
        summarise_jobs(farm, done.intake.job_ids, films, as_json=as_json)
        failed = read.jobs(
            farm.ledger, ids=done.intake.job_ids, states=[JobState.FAILED, JobState.CANCELLED], limit=None
        )
        if failed:
            count = len(failed)
            raise SomeJobsFailed(
                f"{count} of {len(done.intake.job_ids)} jobs did not become films;"
                f" `farm jobs show {failed[-1].id}` tells why"
            )


def parse_sets(sets: tuple[str, ...]) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    for word in sets:
        column, equals, value = word.partition("=")
        if not equals:
            raise InputError(f"--set {word}: write COLUMN=VALUE")
        cells[column.strip().lower()] = value.strip()
    return cells


def _echo_submission(done: Submission) -> None:
    echo_json(
        {
            "batch": done.intake.batch_id,
            "new": list(done.intake.new_job_ids),
            "known": list(done.intake.known_job_ids),
            "skipped": [{"row": p.row, "reason": p.sentence} for p in done.problems],
            "rang": done.rang,
            "replaced": [{"film": path, "job": job_id} for path, job_id in done.replaced.items()],
            "forecasts": [
                {
                    "name": f.request.name,
                    "reused": f.reused,
                    "rendered": f.rendered,
                    "rendered_seconds": f.rendered_seconds,
                    "takes_seconds": f.takes_seconds,
                }
                for f in done.forecasts
            ],
        }
    )


def _of_replaced(films: Mapping[str, int]) -> str:
    path, job_id = next(iter(films.items()))
    if len(films) == 1:
        return f"the film of job {job_id} will be replaced: {short(path)}"
    return f"{len(films)} films of earlier jobs will be replaced, such as that of job {job_id}: {short(path)}"


def _say_lost(farm: Farm, known: Sequence[int]) -> None:
    """Whoever submits again because a film was deleted would otherwise read that all is well."""
    store = open_store(farm.settings)
    lost: dict[int, str] = {}
    for job_id, film in read.films(farm.ledger, known).items():
        try:
            if "://" not in film.path:  # to ask an object store for each would take long
                store.fetch(film)
        except FileLost as error:
            lost[job_id] = str(error)
    for job_id, sentence in list(lost.items())[:SHOWN_LOST]:
        click.echo(f"the film of job {job_id} is lost: {sentence}; {RENDER_ANEW}")
    if len(lost) > SHOWN_LOST:
        click.echo(f"so are {len(lost) - SHOWN_LOST} others")


def _say_submission(farm: Farm, done: Submission) -> None:
    new, known = done.intake.new_job_ids, done.intake.known_job_ids
    if new:
        span = f"job {new[0]}" if len(new) == 1 else f"jobs {new[0]}-{new[-1]}"
        click.echo(f"batch {done.intake.batch_id}: {span} submitted")
    if known:
        what = "row is a job" if len(known) == 1 else "rows are jobs"
        ended = [j for j in read.jobs(farm.ledger, ids=known, limit=None) if j.state is JobState.FAILED]
        click.echo(f"{len(known)} {what} already; --again would render them anew")
        _say_lost(farm, known)
        if ended:
            click.echo(f"{len(ended)} of them failed; `farm jobs retry {ended[-1].id}` tries one again")
    if new and not done.rang and read.stuck(farm.ledger):
        click.echo("`farm up` starts the workers, which will find these jobs.", err=True)
