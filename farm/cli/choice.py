"""Which jobs a command means, and a move that it makes with each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import click

from farm.cli.farm_context import Farm
from farm.doorbell import ring_owed
from farm.errors import FarmError, InputError, NotFound
from farm.ledger import Ledger, control, read

MOST_IDS = 100_000  # in one range; beyond it somebody mistyped

job_words_argument = click.argument("job_words", metavar="[JOB]...", nargs=-1)
batch_option = click.option("--batch", "batch_id", type=int, help="All jobs of this batch.")
batch_ids_argument = click.argument("batch_ids", metavar="BATCH...", nargs=-1, type=int, required=True)


@dataclass(frozen=True, slots=True)
class Move:
    """Something that people do to a job, and how the answer begins for jobs that it was done to, and for the others."""

    make: Callable[[Ledger, int], bool]
    done: str
    not_done: str


CANCEL = Move(control.cancel, "cancelled", "had ended already")
PAUSE = Move(control.pause, "paused", "had ended or were paused already")
RESUME = Move(control.resume, "resumed", "were not paused")


def parse_ids(words: Sequence[str]) -> list[int]:
    """Job ids as people type them: `7`, `3-9`, `3,5`.  Raises InputError."""
    ids: list[int] = []
    for word in ",".join(words).split(","):
        first, dash, last = word.strip().partition("-")
        try:
            low = int(first)
            high = int(last) if dash else low
        except ValueError:
            raise InputError(f"{word.strip()!r} is no job id; give numbers such as 7 or 3-9") from None
        if not low <= high < low + MOST_IDS:
            raise InputError(f"{word.strip()!r} is no range of at most {MOST_IDS:,} jobs; give one such as 3-9")
        ids.extend(range(low, high + 1))
    return ids


def chosen_jobs(farm: Farm, words: Sequence[str], batch_id: int | None) -> list[int]:
    """The jobs that a command means.  Raises InputError for none, NotFound for one that is not there."""
    ids: list[int] = []
    if batch_id is not None:
        ids += jobs_of_batches(farm, [batch_id])
    if words:
        ids += parse_ids(words)
    if not ids:
        raise InputError("say which jobs: ids such as 7 or 3-9, or --batch")
    there = {job.id for job in read.jobs(farm.ledger, ids=ids, limit=None)}
    missing = [job_id for job_id in ids if job_id not in there]
    if missing:
        raise NotFound(f"there is no job {missing[0]}; `farm jobs list` shows those there are")
    return list(dict.fromkeys(ids))


def jobs_of_batches(farm: Farm, batch_ids: Sequence[int]) -> list[int]:
    """The jobs of these batches.  Raises NotFound."""
    for batch_id in batch_ids:
        read.batch(farm.ledger, batch_id)
    return [job_id for batch_id in batch_ids for job_id in control.job_ids_of_batch(farm.ledger, batch_id)]


def move_jobs(farm: Farm, ids: Sequence[int], move: Move) -> None:
    """Make the move with each job, say what became of which, and ring for what can be rendered now.

    One job that refuses keeps no other from moving; its sentence is told, and raised at the end.
    """
    moved: list[int] = []
    left: list[int] = []
    refused: list[FarmError] = []
    for job_id in ids:
        try:
            (moved if move.make(farm.ledger, job_id) else left).append(job_id)
        except InputError as error:
            refused.append(error)
    if moved:
        click.echo(f"{move.done}: {', '.join(map(str, moved))}")
    if left:
        click.echo(f"{move.not_done}: {', '.join(map(str, left))}", err=True)
    ring_owed(farm.ledger, farm.settings)
    for sentence in refused[:-1]:
        click.echo(f"farm: {sentence}", err=True)
    if refused:
        raise refused[-1]
