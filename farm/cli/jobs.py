"""`farm jobs` and `farm batches`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from farm.accounts import Account, accounts
from farm.cli.farm_context import Farm
from farm.cli.show import console, echo_json, echo_rows, json_option, length, moment, plain, times
from farm.config import RateSettings
from farm.doorbell import Doorbell
from farm.errors import InputError, NotFound
from farm.ledger import budget as budgets
from farm.ledger import control, crew, read
from farm.ledger.progress import job_progress
from farm.ledger.values import Job
from farm.rates import shown
from farm.states import ArtifactKind, JobState, SegmentKind
from farm.store import deliver, open_store


@click.group()
def jobs() -> None:
    """See and steer jobs.  A job is one portrait and one audio, on the way to one film.

    \b
    Example:
        farm jobs list --state failed
    """


@click.group()
def batches() -> None:
    """See and steer batches: what each submit put in.

    \b
    Example:
        farm batches list
    """


@batches.command("list")
@click.option("--limit", default=20, show_default=True, help="How many.")
@json_option
@click.pass_obj
def list_batches(farm: Farm, limit: int, as_json: bool) -> None:
    """List batches, newest first.

    \b
    Example:
        farm batches list --json | jq .jobs
    """
    found = read.batches(farm.ledger, limit=limit)
    told = accounts(farm.ledger, found, farm.settings.rates)
    rows = [
        {
            "batch": b.id,
            "name": b.name,
            "owner": b.owner,
            "submitted": b.created_at if as_json else moment(b.created_at),
            "jobs": b.jobs if as_json else ", ".join(f"{n} {state}" for state, n in sorted(b.jobs.items())),
            "source": b.source,
            **(plain(told[b.id]) if as_json else _account_cells(told[b.id], farm.settings.rates)),
        }
        for b in found
    ]
    columns = ("batch", "name", "owner", "submitted", "jobs", "left", "device", "cost")
    echo_rows(rows, as_json=as_json, columns=columns, empty="no batches yet")


def _account_cells(account: Account, rates: RateSettings) -> dict[str, str]:
    cost = shown(account.cost, rates) if account.cost or account.budget is not None else ""
    if account.budget is not None:
        cost += f" of {account.budget:g}" + (", spent" if account.budget_spent else "")
    return {"left": length(account.seconds_left), "device": length(account.device_seconds), "cost": cost}


@batches.command("budget")
@click.argument("amount", metavar="AMOUNT|none")
@click.argument("batch_ids", metavar="BATCH...", nargs=-1, type=int, required=True)
@click.pass_obj
def set_budget(farm: Farm, amount: str, batch_ids: tuple[int, ...]) -> None:
    """Limit what batches may cost, by the rates of farm.toml.  A batch whose budget is spent is paused.

    A batch that was paused so goes on with `farm batches resume` once it has more.

    \b
    Example:
        farm batches budget 20 3
    """
    try:
        budget = None if amount == "none" else float(amount)
    except ValueError:
        raise InputError(f"{amount!r} is no amount; give one such as 20, or none") from None
    if budget is not None and not any(farm.settings.rates.per_device_hour.values()):
        click.echo("no rate is set, so nothing is ever spent; set rates.per_device_hour in farm.toml", err=True)
    for batch_id in batch_ids:
        budgets.set_budget(farm.ledger, batch_id, budget)


@jobs.command("list")
@click.option("--state", "states", multiple=True, type=click.Choice([s.value for s in JobState]), help="In this state.")
@click.option("--batch", "batch_id", type=int, help="Of this batch.")
@click.option("--owner", help="Of this owner.")
@click.option("--name", help="With this in the name.")
@click.option("--limit", default=50, show_default=True, help="How many.")
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
        states=[JobState(s) for s in states],
        batch_id=batch_id,
        owner=owner,
        name_contains=name,
        limit=limit,
    )
    films = read.films(farm.ledger, [job.id for job in found])
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
            "film or reason": film.path if film else job.reason,
        }
        rows.append({**job_as_json(job), "film": film.path if film else None} if as_json else shown)
    columns = ("id", "batch", "name", "state", "model", "length", "segments", "film or reason")
    echo_rows(rows, as_json=as_json, columns=columns, empty="no such jobs")


def job_as_json(job: Job) -> dict[str, Any]:
    """A job for programs: the ledger's fields, with the state that people see."""
    return {**plain(job), "state": job.shown_state, "continuity": job.continuity.value}


@jobs.command("show")
@click.argument("job_id", metavar="JOB", type=int)
@click.option("--history", is_flag=True, help="Also every event.")
@json_option
@click.pass_obj
def show_job(farm: Farm, job_id: int, history: bool, as_json: bool) -> None:
    """Show one job.  That is what it was given, its segments, attempts, artifacts and what was noticed.

    \b
    Example:
        farm jobs show 7 --history
    """
    job = read.job(farm.ledger, job_id)
    segments = read.segments(farm.ledger, job_id)
    attempts = read.attempts(farm.ledger, job_id)
    artifacts = read.artifacts(farm.ledger, job_id)
    events = read.events(farm.ledger, job_id=job_id, limit=10_000) if history or as_json else []
    if as_json:
        echo_json(
            {
                **job_as_json(job),
                "segments": [plain(s) for s in segments],
                "attempts": [plain(a) for a in attempts],
                "artifacts": [plain(a) for a in artifacts],
                "events": [plain(e) for e in events],
            }
        )
        return
    (progress,) = job_progress(farm.ledger, [job_id])
    facts = {
        "job": f"{job.id} (row {job.row_number} of batch {job.batch_id})",
        "name": job.name,
        "state": job.shown_state + (f": {job.reason}" if job.reason else ""),
        "doing": progress.doing,
        "portrait": job.portrait,
        "audio": f"{job.audio} ({length(job.audio_seconds)})",
        "film": job.output,
        "model": f"{job.model}, preset {job.preset}, {job.width}x{job.height}, {job.fps[0] / job.fps[1]:g} fps,"
        f" seed {job.seed}",
        "settings": ", ".join(f"{k} {v}" for k, v in job.settings.items()),
        "owner": f"{job.owner}, priority {job.priority}" + (f", due {moment(job.due)}" if job.due else ""),
        "frames": f"{progress.frames} of {job.total_frames}" if job.total_frames else "",
        "speed": f"{progress.frames_per_second:.1f} fps, {times(progress.times_real_time)} real time"
        if progress.frames_per_second
        else "",
        "submitted": moment(job.created_at),
        "finished": moment(job.finished_at),
    }
    out = console()
    for key, value in facts.items():
        if value:
            out.print(f"[dim]{key:<10}[/dim] ", end="")
            out.print(value, markup=False)
    for note in job.notes:
        out.print("[dim]note      [/dim] ", end="")
        out.print(note, markup=False)
    numbers = {s.id: s for s in segments}
    rows = [
        {
            "segment": _segment_name(s.kind, s.number),
            "frames": f"{s.first_frame}-{s.first_frame + s.frames - 1}" if s.frames else "",
            "state": s.state.value,
            "attempts": s.attempt,
            "worker": s.leased_by
            or next((a.worker for a in reversed(attempts) if a.segment_id == s.id and a.outcome == "succeed"), ""),
            "seconds": next((a.device_seconds for a in reversed(attempts) if a.segment_id == s.id), None),
            "reason": s.reason,
        }
        for s in segments
    ]
    echo_rows(
        rows,
        as_json=False,
        columns=("segment", "frames", "state", "attempts", "worker", "seconds", "reason"),
        empty="",
    )
    files = [
        {"artifact": a.kind.value, "bytes": a.size_bytes, "path": a.path}
        for a in artifacts
        if a.kind not in (ArtifactKind.SEGMENT, ArtifactKind.THUMBNAIL)
    ]
    if files:
        echo_rows(files, as_json=False, columns=("artifact", "bytes", "path"), empty="")
    if history:
        lines = [
            {
                "at": moment(e.at),
                "event": e.event,
                "segment": _segment_name(numbers[e.segment_id].kind, numbers[e.segment_id].number)
                if e.segment_id in numbers
                else "",
                "attempt": e.attempt,
                "worker": e.worker,
                "detail": e.detail,
            }
            for e in events
        ]
        echo_rows(lines, as_json=False, columns=("at", "event", "segment", "attempt", "worker", "detail"), empty="")


def _segment_name(kind: SegmentKind, number: int) -> str:
    return str(number + 1) if kind is SegmentKind.RENDER else kind.value


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
        ids.extend(range(low, high + 1))
    return ids


def _chosen(farm: Farm, words: Sequence[str], batch_id: int | None) -> list[int]:
    """The jobs that a command means.  Raises InputError for none, NotFound for one that is not there."""
    ids: list[int] = []
    if batch_id is not None:
        read.batch(farm.ledger, batch_id)
        ids += control.job_ids_of_batch(farm.ledger, batch_id)
    if words:
        ids += parse_ids(words)
    if not ids:
        raise InputError("say which jobs: ids such as 7 or 3-9, or --batch")
    there = {job.id for job in read.jobs(farm.ledger, ids=ids, limit=None)}
    missing = [job_id for job_id in ids if job_id not in there]
    if missing:
        raise NotFound(f"there is no job {missing[0]}; `farm jobs list` shows those there are")
    return list(dict.fromkeys(ids))


def _each(farm: Farm, ids: Sequence[int], move: Callable[[int], bool], done: str, not_done: str) -> None:
    moved = [job_id for job_id in ids if move(job_id)]
    left = [job_id for job_id in ids if job_id not in moved]
    if moved:
        click.echo(f"{done}: {', '.join(map(str, moved))}")
    if left:
        click.echo(f"{not_done}: {', '.join(map(str, left))}", err=True)
    queues = crew.take_owed_doorbells(farm.ledger)
    if queues:
        Doorbell(farm.settings).ring(queues)


_ids = click.argument("job_words", metavar="[JOB]...", nargs=-1)
_batch = click.option("--batch", "batch_id", type=int, help="All jobs of this batch.")


@jobs.command()
@_ids
@_batch
@click.pass_obj
def cancel(farm: Farm, job_words: tuple[str, ...], batch_id: int | None) -> None:
    """Cancel jobs.  A running render stops at its next chunk; published segments stay for a later retry.

    \b
    Example:
        farm jobs cancel 7 9-12
    """
    ids = _chosen(farm, job_words, batch_id)
    _each(farm, ids, lambda j: control.cancel(farm.ledger, j), "cancelled", "had ended already")


@jobs.command()
@_ids
@_batch
@click.pass_obj
def pause(farm: Farm, job_words: tuple[str, ...], batch_id: int | None) -> None:
    """Pause jobs.  A running segment is given back at its next chunk.

    \b
    Example:
        farm jobs pause --batch 3
    """
    ids = _chosen(farm, job_words, batch_id)
    _each(farm, ids, lambda j: control.pause(farm.ledger, j), "paused", "had ended or were paused already")


@jobs.command()
@_ids
@_batch
@click.pass_obj
def resume(farm: Farm, job_words: tuple[str, ...], batch_id: int | None) -> None:
    """Let paused jobs go on.

    \b
    Example:
        farm jobs resume --batch 3
    """
    ids = _chosen(farm, job_words, batch_id)
    _each(farm, ids, lambda j: control.resume(farm.ledger, j), "resumed", "were not paused")


_batch_ids = click.argument("batch_ids", metavar="BATCH...", nargs=-1, type=int, required=True)


def _jobs_of(farm: Farm, batch_ids: Sequence[int]) -> list[int]:
    """The jobs of these batches.  Raises NotFound."""
    for batch_id in batch_ids:
        read.batch(farm.ledger, batch_id)
    return [job_id for batch_id in batch_ids for job_id in control.job_ids_of_batch(farm.ledger, batch_id)]


@batches.command("cancel")
@_batch_ids
@click.pass_obj
def cancel_batches(farm: Farm, batch_ids: tuple[int, ...]) -> None:
    """Cancel what is not finished of batches.

    \b
    Example:
        farm batches cancel 3
    """
    ids = _jobs_of(farm, batch_ids)
    _each(farm, ids, lambda j: control.cancel(farm.ledger, j), "cancelled", "had ended already")


@batches.command("pause")
@_batch_ids
@click.pass_obj
def pause_batches(farm: Farm, batch_ids: tuple[int, ...]) -> None:
    """Pause batches.  Running segments are given back at their next chunk.

    \b
    Example:
        farm batches pause 3
    """
    ids = _jobs_of(farm, batch_ids)
    _each(farm, ids, lambda j: control.pause(farm.ledger, j), "paused", "had ended or were paused already")


@batches.command("resume")
@_batch_ids
@click.pass_obj
def resume_batches(farm: Farm, batch_ids: tuple[int, ...]) -> None:
    """Let paused batches go on.

    \b
    Example:
        farm batches resume 3
    """
    ids = _jobs_of(farm, batch_ids)
    _each(farm, ids, lambda j: control.resume(farm.ledger, j), "resumed", "were not paused")


def _retry(farm: Farm, job_words: tuple[str, ...], batch_id: int | None, segment: int | None) -> None:
    ids = _chosen(farm, job_words, batch_id)
    number = None if segment is None else segment - 1
    _each(
        farm,
        ids,
        lambda j: control.retry(farm.ledger, j, segment_number=number) > 0,
        "back in the queue",
        "had nothing to retry",
    )


_segment = click.option("--segment", type=click.IntRange(1), help="Only this segment, counted from 1.")


@jobs.command()
@_ids
@_batch
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
@_ids
@_batch
@_segment
@click.pass_obj
def requeue(farm: Farm, job_words: tuple[str, ...], batch_id: int | None, segment: int | None) -> None:
    """The same as retry, by the name that other render farms use.

    \b
    Example:
        farm jobs requeue 7
    """
    _retry(farm, job_words, batch_id, segment)


@jobs.command()
@click.argument("priority", type=click.IntRange(-100, 100))
@_ids
@_batch
@click.pass_obj
def priority(farm: Farm, priority: int, job_words: tuple[str, ...], batch_id: int | None) -> None:
    """Change the priority, -100 to 100.  Higher comes first, from the next segment on.

    \b
    Example:
        farm jobs priority 50 7
    """
    for job_id in _chosen(farm, job_words, batch_id):
        control.set_priority(farm.ledger, job_id, priority)


@jobs.command()
@click.argument("when")
@_ids
@_batch
@click.pass_obj
def deadline(farm: Farm, when: str, job_words: tuple[str, ...], batch_id: int | None) -> None:
    """Change when the films are needed.  WHEN is a date, a date and time, or `none`.

    \b
    Example:
        farm jobs deadline 2026-12-24T06:00 7
    """
    due: float | None = None
    if when != "none":
        try:
            due = datetime.fromisoformat(when).astimezone().timestamp()
        except ValueError:
            raise InputError(f"{when!r} is no date such as 2026-12-24 or 2026-12-24T06:00") from None
    for job_id in _chosen(farm, job_words, batch_id):
        control.set_deadline(farm.ledger, job_id, due)


def bring_films(
    farm: Farm, ids: Sequence[int], output: Path | None = None, *, overwrite: bool = True
) -> dict[int, Path]:
    """Films of these jobs at the paths of their rows, or in a folder, where they are not there yet."""
    store, films = open_store(farm.settings), read.films(farm.ledger, ids)
    brought: dict[int, Path] = {}
    for job in sorted(read.jobs(farm.ledger, ids=list(films), limit=None), key=lambda job: job.id):
        own = Path(job.output)
        target = own if output is None else output.absolute() / own.name
        brought[job.id] = deliver(store, films[job.id], target, overwrite=overwrite)
    return brought


@jobs.command()
@_ids
@_batch
@click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), help="Into this folder.")
@click.option("--overwrite", is_flag=True, help="Replace other files of the same name.")
@click.pass_obj
def fetch(farm: Farm, job_words: tuple[str, ...], batch_id: int | None, output: Path | None, overwrite: bool) -> None:
    """Bring films from the store to this machine.  They go to where their rows said, or into a folder.

    A film that is there already is left alone.  Prints each film's path; jobs without a film are passed over.

    \b
    Example:
        farm jobs fetch --batch 3
        farm jobs fetch 7-9 -o films
    """
    ids = _chosen(farm, job_words, batch_id)
    films = read.films(farm.ledger, ids)
    missing = [job_id for job_id in ids if job_id not in films]
    for path in bring_films(farm, list(films), output, overwrite=overwrite or output is None).values():
        click.echo(str(path))
    if missing:
        click.echo(f"without a film: {', '.join(map(str, missing))}", err=True)


@jobs.command("open")
@click.argument("job_id", metavar="JOB", type=int)
@click.option("--sheet", is_flag=True, help="The contact sheet instead of the film.")
@click.pass_obj
def open_job(farm: Farm, job_id: int, sheet: bool) -> None:
    """Open a job's film in the desktop's player.  Without a desktop, print its path.

    \b
    Example:
        farm jobs open 7
    """
    read.job(farm.ledger, job_id)
    file = read.artifact(farm.ledger, job_id, ArtifactKind.SHEET if sheet else ArtifactKind.FILM)
    path = str(open_store(farm.settings).fetch(file))
    opener = shutil.which("xdg-open")
    desktop = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if opener and desktop and sys.stdout.isatty():
        subprocess.Popen([opener, path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        time.sleep(0.2)
    click.echo(path)
