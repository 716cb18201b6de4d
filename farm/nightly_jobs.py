"""What a nightly's courses hold, compared with the ledger, and how it becomes jobs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from farm.batch import BadRows, RowProblem
from farm.config import Settings
from farm.doorbell import ring_owed
from farm.errors import InputError
from farm.ledger import Ledger, control, read
from farm.ledger.values import Job, JobRequest
from farm.nightly_config import Left, Night, Nightly, RowSet, find_rows
from farm.states import OPEN_STATES, JobState
from farm.submission import Submission, submit

REPLACED = "replaced by its lecture's newer portrait, audio or settings"
IDS_PER_QUERY = 5000


def own_jobs(nightly: Nightly, ledger: Ledger, states: Sequence[JobState]) -> list[Job]:
    """The nightly's jobs in these states, oldest first."""
    return [j for j in reversed(read.jobs(ledger, states=states, limit=None)) if nightly.tag in j.tags]


@dataclass(frozen=True, slots=True)
class Look:
    """What the courses hold, compared with the ledger."""

    sets: Sequence[RowSet]
    new: Sequence[JobRequest]
    known_ids: Sequence[int]
    in_the_way: Sequence[int]  # open jobs of this nightly whose lecture was changed since
    unreadable: Sequence[Left]  # files and folders
    bad_rows: Sequence[Left]

    @property
    def problems(self) -> list[Left]:
        return [*self.unreadable, *self.bad_rows]


def look(nightly: Nightly, settings: Settings, ledger: Ledger, night: Night, at: float) -> Look:
    """Compare the courses with the ledger; writes nothing but what was learnt of the files."""
    sets, unreadable = find_rows(nightly, at)
    own_open = {job.id for job in own_jobs(nightly, ledger, OPEN_STATES)}
    new: list[JobRequest] = []
    known: list[int] = []
    replaced: list[int] = []
    bad_rows: list[Left] = []
    for rows in sets:
        done, bad = _submit(nightly, settings, ledger, night, rows, dry_run=True)
        if done is not None:
            new += done.would_be
            known += done.intake.known_job_ids
        replaced += [p.in_the_way for p in bad if p.in_the_way in own_open]
        bad_rows += [_left(rows, p) for p in bad if p.in_the_way not in own_open]
    return Look(sets, new, known, replaced, unreadable, bad_rows)


def _left(rows: RowSet, problem: RowProblem) -> Left:
    if not rows.course.folder:
        return Left(f"{rows.source}:{problem.row}", problem.sentence)
    return Left(str(rows.rows[problem.row - 1].cells["audio"]), problem.sentence)


def _submit(
    nightly: Nightly, settings: Settings, ledger: Ledger, night: Night, rows: RowSet, *, dry_run: bool
) -> tuple[Submission | None, Sequence[RowProblem]]:
    try:
        done = submit(
            ledger,
            settings,
            rows.rows,
            base=rows.base,
            source=rows.source,
            name=nightly.name,
            output_dir=rows.films,
            defaults=nightly.defaults(rows.course, night),
            skip_bad=True,
            overwrite=nightly.settings.overwrite,
            dry_run=dry_run,
        )
    except BadRows as error:  # not one row is good
        return None, error.problems
    return done, done.problems


def take(
    nightly: Nightly, settings: Settings, ledger: Ledger, night: Night, at: float
) -> tuple[Sequence[Left], set[int]]:
    """Submit what is new, put back what may go on.  Returns what cannot be rendered, and the jobs to wait for."""
    seen = look(nightly, settings, ledger, night, at)
    for job_id in seen.in_the_way:
        control.cancel(ledger, job_id, reason=REPLACED)
    problems = seen.problems
    watched = set(seen.known_ids)
    if seen.new or seen.in_the_way:
        problems = list(seen.unreadable)
        for rows in seen.sets:
            done, bad = _submit(nightly, settings, ledger, night, rows, dry_run=False)
            problems += [_left(rows, p) for p in bad]
            watched |= set(done.intake.job_ids) if done is not None else set()
    for job in jobs_by_id(ledger, watched):
        if may_be_tried_again(nightly, job, night):
            try:
                control.retry(ledger, job.id)
            except InputError as error:  # its working files were deleted since
                problems.append(Left(job.audio, str(error)))
    for job in own_jobs(nightly, ledger, OPEN_STATES):
        watched.add(job.id)
        control.resume(ledger, job.id)
    ring_owed(ledger, settings)
    return problems, watched


def may_be_tried_again(nightly: Nightly, job: Job, night: Night) -> bool:
    if nightly.tag not in job.tags:
        return False
    if job.state is JobState.CANCELLED:
        return job.reason == REPLACED  # its lecture was changed back
    before_tonight = job.finished_at is not None and job.finished_at < night.begin
    return nightly.settings.retry_failed and job.state is JobState.FAILED and job.failure != "input" and before_tonight


def jobs_by_id(ledger: Ledger, job_ids: Collection[int], states: Sequence[JobState] = ()) -> list[Job]:
    """Jobs by their ids, in portions that a statement takes; oldest first."""
    ids = sorted(job_ids)
    found: list[Job] = []
    for start in range(0, len(ids), IDS_PER_QUERY):
        found += read.jobs(ledger, ids=ids[start : start + IDS_PER_QUERY], states=states, limit=None)
    return sorted(found, key=lambda job: job.id)
