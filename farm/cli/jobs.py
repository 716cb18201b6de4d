"""`farm jobs`."""

from __future__ import annotations

from functools import partial

import click

from farm.cli.choice import CANCEL, PAUSE, RESUME, Move, batch_option, chosen_jobs, job_words_argument, move_jobs
from farm.cli.farm_context import Farm
from farm.cli.films import fetch, open_film
from farm.cli.one_job import job_as_json, show_job
from farm.cli.show import console, echo_rows, json_option, length
from farm.cli.watch import short
from farm.ledger import Ledger, control, read
from farm.row_check import read_deadline


@click.group()
def jobs() -> None:
    """List, show, cancel, pause, retry and fetch jobs.  A job is one portrait and one audio that become one film.

    \b
    Example:
        farm jobs list --state failed
    """


@jobs.command("list")
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice(read.SHOWN_STATES),
    help="Only those in this state; open: all that have not ended.  May be given again.",
)
@click.option("--batch", "batch_id", type=int, help="Only those of this batch.")
@click.option("--owner", help="Only those of this owner.")
@click.option("--name", help="Only those with this in their name.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="How many at most.")
@json_option
@click.pass_obj
def list_jobs(
    farm: Farm,
    states: tuple[str, ...],
    batch_id: int | None,
    owner: str | None,
    name: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """List jobs, newest first.

    \b
    Example:
        farm jobs list --state failed --json | jq .id
    """
    found = read.jobs(
        farm.ledger,
        shown_as=states,
        batch_id=batch_id,
        owner=owner,
        name_contains=name,
        limit=limit + 1,
    )
    more, found = len(found) > limit, found[:limit]
    films = read.films(farm.ledger, [job.id for job in found])
    shown_path = short if console().is_terminal else str
    rows = []
    for job in found:
        film = films.get(job.id)
        shown = {
            "id": job.id,
            "batch": job.batch_id,
            "name": job.name,
            "state": job.shown_state,
            "model": job.model,
            "length": length(job.audio_seconds),
            "segments": f"{job.segments_done}/{job.segments_total}" if job.segments_total else "",
            "film or reason": shown_path(film.path) if film else job.reason,
        }
        rows.append({**job_as_json(job), "film": film.path if film else None} if as_json else shown)
    columns = ("id", "batch", "name", "state", "model", "length", "segments", "film or reason")
    echo_rows(rows, as_json=as_json, columns=columns, empty="no such jobs")
    if more:
        click.echo(f"these are the newest {limit}; --limit shows more", err=True)


@jobs.command()
@job_words_argument
@batch_option
@click.pass_obj
def cancel(farm: Farm, job_words: tuple[str, ...], batch_id: int | None) -> None:
    """Cancel jobs.  A running render stops at its next chunk; published segments stay for a later retry.

    \b
    Example:
        farm jobs cancel 7 9-12
    """
    move_jobs(farm, chosen_jobs(farm, job_words, batch_id), CANCEL)


@jobs.command()
@job_words_argument
@batch_option
@click.pass_obj
def pause(farm: Farm, job_words: tuple[str, ...], batch_id: int | None) -> None:
    """Pause jobs.  A running segment is given back at its next chunk.

    \b
    Example:
        farm jobs pause --batch 3
    """
    move_jobs(farm, chosen_jobs(farm, job_words, batch_id), PAUSE)


@jobs.command()
@job_words_argument
@batch_option
@click.pass_obj
def resume(farm: Farm, job_words: tuple[str, ...], batch_id: int | None) -> None:
    """Let paused jobs go on.

    \b
    Example:
        farm jobs resume --batch 3
    """
    move_jobs(farm, chosen_jobs(farm, job_words, batch_id), RESUME)


def _retry(farm: Farm, job_words: tuple[str, ...], batch_id: int | None, segment: int | None) -> None:
    ids = chosen_jobs(farm, job_words, batch_id)
    number = None if segment is None else segment - 1
    move_jobs(farm, ids, Move(partial(_put_back, number), "back in the queue", "had nothing to retry"))


def _put_back(number: int | None, ledger: Ledger, job_id: int) -> bool:
    return control.retry(ledger, job_id, segment_number=number) > 0


_segment = click.option("--segment", type=click.IntRange(1), help="Only this segment, counted from 1.")


@jobs.command()
@job_words_argument
@batch_option
@_segment
@click.pass_obj
def retry(farm: Farm, job_words: tuple[str, ...], batch_id: int | None, segment: int | None) -> None:
    """Try failed or cancelled jobs again.  What was published is kept; workers are forgiven.

    \b
    Example:
        farm jobs retry 7
        farm jobs retry 7 --segment 12
    """
    _retry(farm, job_words, batch_id, segment)


@jobs.command()
@job_words_argument
@batch_option
@_segment
@click.pass_obj
def requeue(farm: Farm, job_words: tuple[str, ...], batch_id: int | None, segment: int | None) -> None:
    """Do the same as retry, by the name that other farms use.

    \b
    Example:
        farm jobs requeue 7
    """
    _retry(farm, job_words, batch_id, segment)


@jobs.command()
@click.argument("priority", type=click.IntRange(-100, 100))
@job_words_argument
@batch_option
@click.pass_obj
def priority(farm: Farm, priority: int, job_words: tuple[str, ...], batch_id: int | None) -> None:
    """Set the priority of jobs, -100 to 100.  Higher comes first, from the next segment on.

    \b
    Example:
        farm jobs priority 50 7
    """
    for job_id in chosen_jobs(farm, job_words, batch_id):
        control.set_priority(farm.ledger, job_id, priority)


@jobs.command()
@click.argument("when")
@job_words_argument
@batch_option
@click.pass_obj
def deadline(farm: Farm, when: str, job_words: tuple[str, ...], batch_id: int | None) -> None:
    """Set when the films of jobs are needed.  WHEN is a date, a date and time, or `none`.

    \b
    Example:
        farm jobs deadline 2026-12-24T06:00 7
    """
    due = None if when == "none" else read_deadline(when)
    for job_id in chosen_jobs(farm, job_words, batch_id):
        control.set_deadline(farm.ledger, job_id, due)


for command in (show_job, fetch, open_film):
    jobs.add_command(command)
