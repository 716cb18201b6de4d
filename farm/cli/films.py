"""`farm jobs fetch` and `farm jobs open`: films on this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click

from farm.cli.choice import batch_option, chosen_jobs, job_words_argument
from farm.cli.farm_context import Farm
from farm.errors import FileLost
from farm.ledger import read
from farm.states import ArtifactKind
from farm.store import deliver, open_store

RENDER_ANEW = "`farm submit --again` of a file with its row alone renders it anew"


def bring_films(
    farm: Farm, ids: Sequence[int], output: Path | None = None, *, overwrite: bool = True
) -> dict[int, Path]:
    """Films of these jobs at the paths of their rows, or in a folder, where they are not there yet.

    Says which are lost, and leaves them out.
    """
    store, films = open_store(farm.settings), read.films(farm.ledger, ids)
    brought: dict[int, Path] = {}
    for job in sorted(read.jobs(farm.ledger, ids=list(films), limit=None), key=lambda job: job.id):
        own = Path(job.output)
        target = own if output is None else output.absolute() / own.name
        try:
            brought[job.id] = deliver(store, films[job.id], target, overwrite=overwrite)
        except FileLost as error:
            click.echo(f"the film of job {job.id} is lost: {error}; {RENDER_ANEW}", err=True)
    return brought


@click.command()
@job_words_argument
@batch_option
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Into this folder; default: where each row said.",
)
@click.option("--overwrite", is_flag=True, help="Replace other files of the same name.")
@click.pass_context
def fetch(
    context: click.Context, job_words: tuple[str, ...], batch_id: int | None, output: Path | None, overwrite: bool
) -> None:
    """Bring films from the store to this machine.

    A film that is there already is left alone.  Prints each film's path; jobs without a film are passed over.  Exits
    with 1 if a film was deleted or replaced since.

    \b
    Example:
        farm jobs fetch --batch 3
        farm jobs fetch 7-9 -o films
    """
    farm: Farm = context.obj
    ids = chosen_jobs(farm, job_words, batch_id)
    films = read.films(farm.ledger, ids)
    missing = [job_id for job_id in ids if job_id not in films]
    brought = bring_films(farm, list(films), output, overwrite=overwrite or output is None)
    for path in brought.values():
        click.echo(str(path))
    if missing:
        click.echo(f"without a film: {', '.join(map(str, missing))}", err=True)
    if len(brought) < len(films):
        context.exit(1)


@click.command("open")
@click.argument("job_id", metavar="JOB", type=int)
@click.option("--sheet", is_flag=True, help="The contact sheet instead of the film.")
@click.pass_obj
def open_film(farm: Farm, job_id: int, sheet: bool) -> None:
    """Open a job's film in the desktop's player.  Without a desktop, print its path.

    \b
    Example:
        farm jobs open 7
    """
    read.job(farm.ledger, job_id)
    file = read.artifact(farm.ledger, job_id, ArtifactKind.SHEET if sheet else ArtifactKind.FILM)
    try:
        path = str(open_store(farm.settings).fetch(file))
    except FileLost as error:
        raise FileLost(f"{error}; {RENDER_ANEW}") from None
    opener = shutil.which("xdg-open")
    desktop = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if opener and desktop and sys.stdout.isatty():
        subprocess.Popen([opener, path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        time.sleep(0.2)
    click.echo(path)
