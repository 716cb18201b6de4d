"""The story of a night: take what is new, render while the window is open, pause at its end, tell people.

Nothing of it lives in this process.  Rows that were taken before are the same jobs, the jobs carry the nightly's tag,
and what a night came to is read from the ledger.  So cron may start it every few minutes: a run inside the window goes
on where a killed one was, a run outside of it sees to it that the nightly's jobs rest, and news is told once.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farm import supervisor
from farm.batch import BadRows, RowProblem
from farm.config import Settings
from farm.doorbell import ring_owed
from farm.errors import FarmError, InputError
from farm.ledger import Ledger, control, read
from farm.ledger.overview import costs
from farm.ledger.progress import job_progress
from farm.ledger.values import Job, JobRequest
from farm.models import load_model
from farm.nightly_config import Left, Night, Nightly, RowSet, find_rows
from farm.nightly_summary import FilmMade, JobFailed, JobLeft, Summary, tell
from farm.processes import find
from farm.roster import load_roster
from farm.states import FINISHED, JobState
from farm.submission import Submission, submit

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
STARTING_SECONDS = 30.0  # before it is said that no worker takes the work: they may just be starting
LOCK = "nightly.lock"
OPEN = [state for state in JobState if state not in FINISHED]
REPLACED = "replaced by its lecture's newer portrait, audio or settings"
_IDS_PER_QUERY = 5000

Clock = Callable[[], float]


class AnotherRuns(FarmError):
    """Another nightly runs on this farm."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again later


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run of `farm nightly` came to."""

    summary: Summary
    is_news: bool  # False: this was told before, or there is nothing to tell
    undelivered: Sequence[str] = ()


@contextlib.contextmanager
def only_one(home: Path) -> Iterator[None]:
    """The farm's one nightly lock; the system frees it when its holder dies.  Raises AnotherRuns."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise AnotherRuns(f"another nightly holds {home / LOCK}; it goes on alone") from None
        yield


def run_night(
    nightly: Nightly,
    settings: Settings,
    ledger: Ledger,
    *,
    now: Clock = time.time,
    look_seconds: float = LOOK_SECONDS,
    any_time: bool = False,
) -> Outcome:
    """One run: in the window until all is rendered or it closes, outside of it only to let the jobs rest.

    `now` is the clock that opens and closes the window, in seconds since 1970; `any_time` takes the window for open
    until all is rendered.  Whatever ends the run, an exception included, the nightly's jobs are paused by then; only a
    kill leaves that to the next run.  Raises AnotherRuns.
    """
    with only_one(settings.home):
        began = now()
        night = nightly.window.last(began)
        if not any_time and not night.is_open(began):
            _rest(nightly, ledger, look_seconds)
            _stop_workers(settings)
            return _conclude(nightly, settings, ledger, night, problems=None)
        try:
            _start_workers(nightly, settings)
            problems, watched = _take(nightly, settings, ledger, night, began)
            stuck = _wait(ledger, watched, lambda: not any_time and now() >= night.end, look_seconds)
        finally:
            _rest(nightly, ledger, look_seconds)
            _stop_workers(settings)
        return _conclude(nightly, settings, ledger, night, problems=problems, watched=watched, stuck=stuck)


def _start_workers(nightly: Nightly, settings: Settings) -> None:
    """This machine's workers, if the file says so; those that run already are somebody else's to stop."""
    if nightly.settings.up and find(supervisor.NAME, settings.run_dir) is None:
        started = supervisor.up(settings)
        mark = _started_mark(settings)
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.write_text(str(started.pid))


def _stop_workers(settings: Settings) -> None:
    """The workers that this run, or a killed one before it, has started."""
    mark = _started_mark(settings)
    if not mark.is_file():
        return
    running = find(supervisor.NAME, settings.run_dir)
    if running is not None and mark.read_text() == str(running.pid):
        supervisor.down(settings)
    mark.unlink(missing_ok=True)


def _started_mark(settings: Settings) -> Path:
    return settings.home / "nightly" / "started.pid"


# Taking


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
    own_open = {job.id for job in own_jobs(nightly, ledger, OPEN)}
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


def _take(
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
    for job in _jobs(ledger, watched):
        if _may_be_tried_again(nightly, job, night):
            try:
                control.retry(ledger, job.id)
            except InputError as error:  # its working files were deleted since
                problems.append(Left(job.audio, str(error)))
    for job in own_jobs(nightly, ledger, OPEN):
        watched.add(job.id)
        control.resume(ledger, job.id)
    ring_owed(ledger, settings)
    return problems, watched


def _may_be_tried_again(nightly: Nightly, job: Job, night: Night) -> bool:
    if nightly.tag not in job.tags:
        return False
    if job.state is JobState.CANCELLED:
        return job.reason == REPLACED  # its lecture was changed back
    before_tonight = job.finished_at is not None and job.finished_at < night.begin
    return nightly.settings.retry_failed and job.state is JobState.FAILED and job.failure != "input" and before_tonight


def _jobs(ledger: Ledger, job_ids: Collection[int], states: Sequence[JobState] = ()) -> list[Job]:
    """Jobs by their ids, in portions that a statement takes; oldest first."""
    ids = sorted(job_ids)
    found: list[Job] = []
    for start in range(0, len(ids), _IDS_PER_QUERY):
        found += read.jobs(ledger, ids=ids[start : start + _IDS_PER_QUERY], states=states, limit=None)
    return sorted(found, key=lambda job: job.id)


# Waiting and resting


def _wait(ledger: Ledger, watched: set[int], is_over: Callable[[], bool], look_seconds: float) -> Sequence[str]:
    """Until the jobs ended or the window closes; a job that a person paused is not waited for.

    Returns why no worker takes what is left, if that is so.
    """
    told: set[str] = set()
    left, began = watched, time.monotonic()
    while left := {job.id for job in _jobs(ledger, left, OPEN) if not job.paused}:
        stuck = [item.reason for item in read.stuck(ledger, sample=_IDS_PER_QUERY) if left & set(item.job_ids)]
        for sentence in stuck:
            if sentence not in told and time.monotonic() - began > STARTING_SECONDS:
                told.add(sentence)
                log.warning("%s", sentence)
        if is_over():
            return stuck
        time.sleep(look_seconds)
    return ()


def _rest(nightly: Nightly, ledger: Ledger, look_seconds: float) -> None:
    """Pause the nightly's open jobs: at once, or each when the segment that it is in has ended."""
    window = nightly.settings.window
    going = {job.id for job in own_jobs(nightly, ledger, OPEN) if not job.paused}
    if window is not None and window.stop == "segment":
        deadline = time.monotonic() + window.segment_minutes * 60
        at_first: dict[int, set[tuple[int, int]]] | None = None
        while going and time.monotonic() < deadline:
            leased: dict[int, set[tuple[int, int]]] = {}
            for segment in read.running(ledger, sorted(going)):
                leased.setdefault(segment.job_id, set()).add((segment.id, segment.token))
            at_first = leased if at_first is None else at_first
            # A segment that began after the end is none of this night: pausing gives it back at its next chunk.
            for job_id in [j for j in going if not at_first.get(j, set()) & leased.get(j, set())]:
                control.pause(ledger, job_id)
                going.discard(job_id)
            if going:
                time.sleep(min(look_seconds, 0.25))
    for job_id in sorted(going):
        control.pause(ledger, job_id)


# Telling


def _conclude(
    nightly: Nightly,
    settings: Settings,
    ledger: Ledger,
    night: Night,
    *,
    problems: Sequence[Left] | None,
    watched: Collection[int] = (),
    stuck: Sequence[str] = (),
) -> Outcome:
    """The night's summary, told if it is news.  `problems` is None where nobody looked at the courses."""
    memory = settings.home / "nightly" / f"{nightly.name}.json"
    remembered = _recall(memory)
    same_night = remembered.get("begin") == night.begin
    if problems is None:
        problems = [Left(what, why) for what, why in remembered.get("problems", [])] if same_night else []
    summary = summarise(nightly, ledger, night, problems, watched, stuck)
    is_news = not summary.is_empty and remembered.get("digest") != summary.digest
    undelivered: Sequence[str] = ()
    if is_news:
        undelivered = tell(summary, nightly.settings.summary, place=nightly.place)
        for sentence in undelivered:
            log.warning("%s", sentence)
    if is_news or not same_night:
        told = {
            "begin": night.begin,
            "digest": summary.digest,
            "problems": [[p.what, p.sentence] for p in summary.problems],
        }
        _remember(memory, told)
    return Outcome(summary, is_news, undelivered)


def _recall(path: Path) -> dict[str, Any]:
    """What was told last; nothing if that is not known, and then it is told once more."""
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return loaded if isinstance(loaded, dict) else {}


def _remember(path: Path, told: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_suffix(".part")
    staged.write_text(json.dumps(told, ensure_ascii=False), encoding="utf-8")
    staged.replace(path)


def summarise(
    nightly: Nightly,
    ledger: Ledger,
    night: Night,
    problems: Sequence[Left] = (),
    watched: Collection[int] = (),
    stuck: Sequence[str] = (),
) -> Summary:
    """What a night came to, read from the ledger: the nightly's jobs, and those that its rows were already."""
    jobs = {job.id: job for job in [*own_jobs(nightly, ledger, ()), *_jobs(ledger, watched)]}
    tonight = [j for _, j in sorted(jobs.items()) if j.finished_at is not None and j.finished_at >= night.begin]
    made = [j for j in tonight if j.state is JobState.SUCCEEDED]
    films = read.films(ledger, [j.id for j in made])
    spent = costs(ledger, [j.id for j in made])
    left = job_progress(ledger, [j.id for j in jobs.values() if j.state not in FINISHED])
    return Summary(
        name=nightly.name,
        night=night,
        made=[
            FilmMade(
                j.id,
                j.name,
                films[j.id].path,
                j.audio_seconds,
                spent[j.id].device_seconds if j.id in spent else 0.0,
            )
            for j in made
            if j.id in films
        ],
        failed=[JobFailed(j.id, j.name, j.reason or "") for j in tonight if j.state is JobState.FAILED],
        left=[JobLeft(p.job.id, p.job.name, p.job.shown_state, p.share, p.job.audio_seconds) for p in left],
        problems=list(problems),
        stuck=list(stuck),
        cost=nightly.settings.cost,
    )


# Foretelling


@dataclass(frozen=True, slots=True)
class NightForecast:
    """What the next run would do, as far as the ledger's history tells."""

    night: Night  # the open one, or the next
    is_open: bool
    new: int
    continued: int  # jobs of earlier nights that are not finished
    replaced: int
    problems: Sequence[Left]
    film_seconds: float
    device_seconds: float | None  # None: some model has no history here
    wall_seconds: float | None
    workers: int
    unknown_models: Sequence[str]
    rows: Sequence[tuple[str, str, float]]  # name, "new" or "goes on", seconds of film


def foretell(nightly: Nightly, settings: Settings, ledger: Ledger, at: float) -> NightForecast:
    """What `run_night` would render at `at` or in the next night, how long and on what; writes no job."""
    night = nightly.window.last(at)
    is_open = night.is_open(at)
    if not is_open:
        night = nightly.window.next(at)
    seen = look(nightly, settings, ledger, night, at)
    replaced = set(seen.in_the_way)
    ids = set(seen.known_ids) | {job.id for job in own_jobs(nightly, ledger, OPEN)}
    again = [job for job in _jobs(ledger, ids) if job.state not in FINISHED or _may_be_tried_again(nightly, job, night)]
    again = [job for job in again if job.id not in replaced]
    work = [_Work(r.model, r.queue, r.audio_seconds * r.fps[0] / r.fps[1]) for r in seen.new]
    for job in again:
        total = job.total_frames or job.audio_seconds * job.fps[0] / job.fps[1]
        queue = _queue_of(job)
        work.append(_Work(job.model, queue, max(0.0, total - job.frames_done)))
    speeds = {model: read.render_speed(ledger, model) for model in {w.model for w in work}}
    unknown = sorted(model for model, speed in speeds.items() if speed is None)
    device_seconds = wall_seconds = None
    crew = _crew(ledger, {w.queue for w in work})
    if not unknown:
        taken = [(w.queue, w.frames / (speeds[w.model] or 1.0)) for w in work]
        device_seconds = sum(seconds for _, seconds in taken)
        wall_seconds = 0.0
        for queue in {w.queue for w in work}:
            mine = [seconds for q, seconds in taken if q == queue]
            # One film is rendered by one worker after the other, so the longest one bounds the night.
            wall_seconds = max(wall_seconds, max(mine), sum(mine) / crew[queue])
    names = [(r.name, "new", r.audio_seconds) for r in seen.new]
    return NightForecast(
        night=night,
        is_open=is_open,
        new=len(seen.new),
        continued=len(again),
        replaced=len(replaced),
        problems=seen.problems,
        film_seconds=sum(r.audio_seconds for r in seen.new) + sum(j.audio_seconds for j in again),
        device_seconds=device_seconds,
        wall_seconds=wall_seconds,
        workers=sum(crew.values()),
        unknown_models=unknown,
        rows=[*names, *((j.name, "goes on", j.audio_seconds) for j in again)],
    )


@dataclass(frozen=True, slots=True)
class _Work:
    model: str
    queue: str
    frames: float


def _queue_of(job: Job) -> str:
    return load_model(job.model).queue_for(job.preset)


def _crew(ledger: Ledger, queues: set[str]) -> dict[str, int]:
    """How many workers each queue will have: those at work, else those of this machine's roster, at least one."""
    named = [spec.queue for spec in load_roster()]
    return {queue: len(read.workers_at_work(ledger, queue)) or named.count(queue) or 1 for queue in queues}
