"""The story of a submission: check every row, write the good ones as one batch, ring the workers.

Every row is checked before anything is written.  The same rows again are the same jobs, because a job's key is the hash
of its inputs' content and of everything that decides its film; so an interrupted submit is simply repeated.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from farm.batch import BadRows, Row, RowProblem
from farm.config import Settings
from farm.doorbell import Doorbell, ring_owed
from farm.errors import InputError
from farm.forecast import Forecast, forecast
from farm.input_files import look_at_files
from farm.ledger import Ledger
from farm.ledger.budget import refuse_bad_budget
from farm.ledger.intake import Intake, known_jobs, outputs_in_use, take_in
from farm.ledger.values import JobRequest
from farm.roster import user_name
from farm.row_check import RowChecker
from farm.states import FINISHED
from farm.store import open_store


@dataclass(frozen=True, slots=True)
class Submission:
    """What became of a batch file."""

    intake: Intake
    problems: tuple[RowProblem, ...]  # rows that were skipped
    rang: bool  # False: Redis did not answer; idle workers find the work by themselves
    new_rows: int  # rows that became jobs, or would have in a dry run
    would_be: tuple[JobRequest, ...] = ()  # in a dry run, those that would
    forecasts: tuple[Forecast, ...] = ()  # of those of which something was rendered before
    replaced: Mapping[str, int] = field(default_factory=dict)  # films that new ones will take the place of: path, job


def submit(
    ledger: Ledger,
    settings: Settings,
    rows: Sequence[Row],
    *,
    base: Path,
    source: str,
    name: str | None = None,
    owner: str | None = None,
    output_dir: Path | None = None,
    defaults: Mapping[str, Any] | None = None,
    skip_bad: bool = False,
    again: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    budget: float | None = None,
    doorbell: Doorbell | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    look_ahead: bool = False,
) -> Submission:
    """Turn rows into jobs.

    `base` is what relative paths start from, `defaults` are cells for rows that lack them, `again` makes new jobs of
    known rows, `overwrite` lets films replace files that the farm did not make, `budget` is what the new batch may cost
    in the money of the configured rates.  `look_ahead` listens to the sound of parallel films to tell what of them is
    known already.  Raises BadRows listing every bad row, unless `skip_bad`, and StoreError when the inputs could not be
    made reachable for the workers; nothing is submitted then.
    """
    refuse_bad_budget(budget)
    user = owner or user_name()
    rows = [Row(row.number, {**(defaults or {}), **row.cells}) for row in rows]
    films = output_dir or (Path(settings.output_dir) if settings.output_dir else base / "films")
    files, file_errors = look_at_files(ledger, settings, rows, base, on_progress)
    checker = RowChecker(
        settings, base, films.absolute(), user, files, file_errors, secrets.token_hex(8) if again else ""
    )
    requests: list[JobRequest] = []
    problems: list[RowProblem] = []
    for row in rows:
        try:
            requests.append(checker.check(row))
        except InputError as error:
            problems.append(RowProblem(row.number, str(error)))
    requests, taken, replaced = _check_outputs(ledger, requests, overwrite=overwrite)
    problems = sorted([*problems, *taken], key=lambda p: p.row)
    if problems and (not skip_bad or not requests):
        raise BadRows(problems, source)
    foreseen: tuple[Forecast, ...] = ()
    if dry_run or look_ahead:
        known = known_jobs(ledger, [r.key for r in requests])
        new = tuple(r for r in requests if r.key not in known)
        if look_ahead:
            foreseen = tuple(forecast(ledger, new, settings.segments.seconds))
        if dry_run:
            ids = tuple(known[r.key] for r in requests if r.key in known)
            return Submission(Intake(None, (), ids), tuple(problems), True, len(new), new, foreseen, replaced)
    open_store(settings).keep_inputs(_inputs_of(requests))
    intake = take_in(ledger, requests, name=name or Path(source).stem, source=source, owner=user, budget=budget)
    rang = not intake.new_job_ids or ring_owed(ledger, settings, doorbell)
    return Submission(intake, tuple(problems), rang, len(intake.new_job_ids), forecasts=foreseen, replaced=replaced)


def _inputs_of(requests: Sequence[JobRequest]) -> set[tuple[str, str]]:
    return {pair for r in requests for pair in ((r.portrait, r.portrait_sha256), (r.audio, r.audio_sha256))}


def _check_outputs(
    ledger: Ledger, requests: Sequence[JobRequest], *, overwrite: bool
) -> tuple[list[JobRequest], list[RowProblem], dict[str, int]]:
    """Give rows of one batch that would write the same default file numbers; refuse to overwrite what is not ours.

    Returns the rows that fit, what is wrong with the others, and the farm's own films that would be replaced.
    """
    good: list[JobRequest] = []
    problems: list[RowProblem] = []
    taken: dict[str, JobRequest] = {}
    for request in requests:
        first = taken.get(request.output)
        if first is not None and first.key == request.key:
            problems.append(RowProblem(request.row_number, f"this is the same film as row {first.row_number}"))
            continue
        if first is not None:
            request = _renamed(request, taken)
        taken[request.output] = request
        good.append(request)
    used = outputs_in_use(ledger, list(taken))
    known = known_jobs(ledger, [r.key for r in good])
    fit: list[JobRequest] = []
    replaced: dict[str, int] = {}
    for request in good:
        if request.key in known:
            fit.append(request)
            continue
        holder = used.get(request.output)
        if holder is not None and holder[2] not in FINISHED:
            problems.append(
                RowProblem(
                    request.row_number,
                    f"job {holder[1]} is about to write {request.output}; give another output",
                    holder[1],
                )
            )
        elif holder is None and not overwrite and Path(request.output).exists():
            problems.append(
                RowProblem(
                    request.row_number,
                    f"{request.output} exists and was not made by this farm; give another output, or --overwrite",
                )
            )
        else:
            fit.append(request)
            if holder is not None and Path(request.output).exists():
                replaced[request.output] = holder[1]
    return fit, problems, replaced


def _renamed(request: JobRequest, taken: Mapping[str, JobRequest]) -> JobRequest:
    """The request with a number behind its film's name; the same in every repetition of the same rows."""
    path = Path(request.output)
    number = 2
    while str(path.with_name(f"{path.stem}-{number}{path.suffix}")) in taken:
        number += 1
    output = str(path.with_name(f"{path.stem}-{number}{path.suffix}"))
    key = hashlib.sha256(f"{request.key}:{output}".encode()).hexdigest()
    return replace(request, output=output, name=f"{request.name}-{number}", key=key)
