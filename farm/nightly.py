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
from farm.config import Settings
from farm.errors import FarmError
from farm.ledger import Ledger, control, read
from farm.ledger.overview import costs
from farm.ledger.progress import job_progress
from farm.nightly_config import Left, Night, Nightly
from farm.nightly_jobs import IDS_PER_QUERY, jobs_by_id, own_jobs, take
from farm.nightly_summary import FilmMade, JobFailed, JobLeft, Summary, tell
from farm.processes import find
from farm.states import FINISHED, OPEN_STATES, JobState

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
STARTING_SECONDS = 30.0  # before it is said that no worker takes the work: they may just be starting
LOCK = "nightly.lock"

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
            problems, watched = take(nightly, settings, ledger, night, began)
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


# Waiting and resting


def _wait(ledger: Ledger, watched: set[int], is_over: Callable[[], bool], look_seconds: float) -> Sequence[str]:
    """Until the jobs ended or the window closes; a job that a person paused is not waited for.

    Returns why no worker takes what is left, if that is so.
    """
    told: set[str] = set()
    left, began = watched, time.monotonic()
    while left := {job.id for job in jobs_by_id(ledger, left, OPEN_STATES) if not job.paused}:
        stuck = [item.reason for item in read.stuck(ledger, sample=IDS_PER_QUERY) if left & set(item.job_ids)]
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
    going = {job.id for job in own_jobs(nightly, ledger, OPEN_STATES) if not job.paused}
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
    jobs = {job.id: job for job in [*own_jobs(nightly, ledger, ()), *jobs_by_id(ledger, watched)]}
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
