"""What the next run of a nightly would render, how long that takes and on what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from farm.config import Settings
from farm.ledger import Ledger, read
from farm.ledger.values import Job
from farm.models import load_model
from farm.nightly_config import Left, Night, Nightly, find_rows
from farm.nightly_jobs import jobs_by_id, look, may_be_tried_again, own_jobs
from farm.roster import load_roster
from farm.states import FINISHED, OPEN_STATES


@dataclass(frozen=True, slots=True)
class NightForecast:
    """What the next run would do, as far as the ledger's history tells."""

    night: Night  # the open one, or the next
    is_open: bool
    new: int
    continued: int  # jobs of earlier nights that are not finished
    replaced: int
    settling: int  # recordings that were changed just now and wait for a later run
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
    ids = set(seen.known_ids) | {job.id for job in own_jobs(nightly, ledger, OPEN_STATES)}
    again = [
        job for job in jobs_by_id(ledger, ids) if job.state not in FINISHED or may_be_tried_again(nightly, job, night)
    ]
    again = [job for job in again if job.id not in replaced]
    work = [_Work(r.model, r.queue, r.audio_seconds * r.fps[0] / r.fps[1]) for r in seen.new]
    for job in again:
        total = job.total_frames or job.audio_seconds * job.fps[0] / job.fps[1]
        work.append(_Work(job.model, _queue_of(job), max(0.0, total - job.frames_done)))
    known = {model: read.render_speed(ledger, model) for model in {w.model for w in work}}
    speeds = {model: speed for model, speed in known.items() if speed is not None}
    unknown = sorted(known.keys() - speeds.keys())
    crew = _crew(ledger, {w.queue for w in work})
    device_seconds, wall_seconds = (None, None) if unknown else _time_of(work, speeds, crew)
    names = [(r.name, "new", r.audio_seconds) for r in seen.new]
    return NightForecast(
        night=night,
        is_open=is_open,
        new=len(seen.new),
        continued=len(again),
        replaced=len(replaced),
        settling=_count_rows(nightly, at + nightly.settings.settle_seconds) - sum(len(s.rows) for s in seen.sets),
        problems=seen.problems,
        film_seconds=sum(r.audio_seconds for r in seen.new) + sum(j.audio_seconds for j in again),
        device_seconds=device_seconds,
        wall_seconds=wall_seconds,
        workers=sum(crew.values()),
        unknown_models=unknown,
        rows=[*names, *((j.name, "goes on", j.audio_seconds) for j in again)],
    )


def _count_rows(nightly: Nightly, at: float) -> int:
    return sum(len(rows.rows) for rows in find_rows(nightly, at)[0])


@dataclass(frozen=True, slots=True)
class _Work:
    model: str
    queue: str
    frames: float


def _time_of(work: Sequence[_Work], speeds: Mapping[str, float], crew: Mapping[str, int]) -> tuple[float, float]:
    """Seconds of devices, and of the night."""
    taken = [(w.queue, w.frames / speeds[w.model]) for w in work]
    night = 0.0
    for queue in {w.queue for w in work}:
        mine = [seconds for q, seconds in taken if q == queue]
        # One film is rendered by one worker after the other, so the longest one bounds the night.
        night = max(night, max(mine), sum(mine) / crew[queue])
    return sum(seconds for _, seconds in taken), night


def _queue_of(job: Job) -> str:
    return load_model(job.model).queue_for(job.preset)


def _crew(ledger: Ledger, queues: set[str]) -> dict[str, int]:
    """How many workers each queue will have: those at work, else those of this machine's roster, at least one."""
    named = [spec.queue for spec in load_roster()]
    return {queue: len(read.workers_at_work(ledger, queue)) or named.count(queue) or 1 for queue in queues}
