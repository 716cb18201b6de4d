"""What happens in the farm, told to everybody who listens: the ledger is read once for all of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from farm import omnirt_records
from farm.ledger import Ledger, overview, read
from farm.ledger.values import Job, LedgerEvent, Segment
from farm.server import views
from farm.server.crowd import Crowd
from farm.states import FINISHED

log = logging.getLogger(__name__)

_HISTORIES = 32
LOOK_SECONDS = 0.75
LISTENER_SECONDS = 0.005  # longer for each listener: telling hundreds must not slow the renders of a small machine
FLEET_SECONDS = 2.0  # how often workers and queues are told
HISTORY_SECONDS = 1.0  # how old the progress may be that a new listener is told first
KEEP_ALIVE_SECONDS = 15.0
BACKLOG = 256  # ticks that a slow listener may lag behind before it is dropped


@dataclass(frozen=True)
class Tick:
    """What one look found, as texts that are made once for all listeners."""

    events: dict[int, list[tuple[int, bytes]]]  # by job: event id and its SSE text
    progress: dict[int, bytes]  # by job: its SSE text, when it changed
    jobs: list[dict[str, Any]]  # summaries of jobs that changed
    ended: frozenset[int]
    fleet: dict[str | None, dict[str, Any]]  # by owner; empty in most ticks
    keep_alive: bytes = b""
    _of_owner: dict[str | None, bytes] = field(default_factory=dict)

    def of_owner(self, owner: str | None) -> bytes:
        """What changed for an owner, None for everybody's."""
        if owner not in self._of_owner:
            jobs = [job for job in self.jobs if owner is None or job["owner"] == owner]
            text = f"event: jobs\ndata: {json.dumps(jobs)}\n\n".encode() if jobs else b""
            if owner in self.fleet:
                text += event_text({"event": "farm", **self.fleet[owner]})
            self._of_owner[owner] = text
        return self._of_owner[owner]

    def of_job(self, job_id: int, after_event: int) -> bytes:
        """What happened to a job after an event of its history."""
        progress = b"" if job_id in self.ended else self.progress.get(job_id, b"")
        return progress + b"".join(text for number, text in self.events.get(job_id, ()) if number > after_event)

    def is_news_of(self, job_id: int) -> bool:
        """Whether who watches this job alone has something to hear."""
        return bool(self.keep_alive) or job_id in self.progress or job_id in self.events or job_id in self.ended


@dataclass(frozen=True, eq=False)
class Listener:
    owner: str | None
    job_id: int | None  # hears of this job alone, and nothing of the fleet
    hear: Callable[[Tick | None], None]  # must not wait; None says that there are no more


class Feed:
    """Looks into the ledger while somebody listens.  Lives on the server's event loop; looks in a thread."""

    def __init__(self, ledger: Ledger) -> None:
        self.summaries = views.Summaries(ledger)
        self._ledger = ledger
        self._listeners: set[Listener] = set()
        self._wanted = asyncio.Event()
        self._last_event = 0
        self._seen: dict[int, str] = {}
        self._histories: dict[int, History] = {}
        self._readings: Crowd[History] = Crowd()
        self._pulse = (-1, 0)
        self._looked_at = 0.0
        self._fleet_at = 0.0
        self._alive_at = 0.0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End every stream: a server that stops must not wait for its listeners."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        for listener in list(self._listeners):
            listener.hear(None)
        self._listeners.clear()

    @contextlib.asynccontextmanager
    async def telling(self, listener: Listener) -> AsyncIterator[None]:
        """Tell a listener every tick from now on, those that tell of its job alone if it has one."""
        if not self._listeners:
            newest = await asyncio.to_thread(overview.last_event_id, self._ledger)
            if not self._listeners:  # another may have come meanwhile, and is told everything from then on
                self._last_event = newest
        self._listeners.add(listener)
        if listener.job_id is None:
            self._fleet_at = 0.0  # the new one is told at once
        self._wanted.set()
        try:
            yield
        finally:
            self._listeners.discard(listener)

    @contextlib.asynccontextmanager
    async def listen(
        self, owner: str | None, *, job_id: int | None = None
    ) -> AsyncIterator[asyncio.Queue[Tick | None]]:
        """As `telling`, for who takes its ticks one by one; None says that there are no more."""
        ticks: asyncio.Queue[Tick | None] = asyncio.Queue()

        def hear(tick: Tick | None) -> None:
            if ticks.qsize() < BACKLOG:
                ticks.put_nowait(tick)
                return
            while not ticks.empty():
                ticks.get_nowait()
            ticks.put_nowait(None)

        async with self.telling(Listener(owner, job_id, hear)):
            yield ticks

    def recent_history(self, job_id: int) -> History | None:
        """A history that was read a moment ago, if who begins to listen now would be told everything after it."""
        kept = self._histories.get(job_id)
        if kept is None or kept.read_after < self._last_event or time.monotonic() - kept.read_at > HISTORY_SECONDS:
            return None
        return kept

    async def history(self, job_id: int) -> History:
        """For who listens already.  A crowd that comes at once shares a few readings.  Raises NotFound."""
        recent = self.recent_history(job_id)
        if recent is None:
            recent = await self._readings.ask(job_id, partial(history_of, self._ledger, job_id))
            if len(self._histories) >= _HISTORIES:
                self._histories.clear()
            self._histories[job_id] = recent
        return recent

    async def wait_ended(self, job_id: int) -> None:
        """Return when the job has ended."""
        async with self.listen(None, job_id=job_id) as ticks:
            job = await asyncio.to_thread(read.job, self._ledger, job_id)
            while job.state not in FINISHED:
                tick = await ticks.get()
                if tick is None:
                    raise asyncio.CancelledError
                if job_id in tick.ended:
                    return

    async def _run(self) -> None:
        while True:
            if not self._listeners:
                self._wanted.clear()
                await self._wanted.wait()
            owners = {listener.owner for listener in self._listeners if listener.job_id is None}
            try:
                tick = await asyncio.to_thread(self._look, owners)
            except Exception:
                log.exception("the feed could not read the ledger; it tries again")
                tick = None
            if tick is not None:
                for listener in list(self._listeners):
                    if listener.job_id is not None and not tick.is_news_of(listener.job_id):
                        continue  # it sleeps on
                    try:
                        listener.hear(tick)
                    except Exception:
                        log.exception("a listener could not be told")
                        self._listeners.discard(listener)
            await asyncio.sleep(LOOK_SECONDS + LISTENER_SECONDS * len(self._listeners))

    def _look(self, owners: set[str | None]) -> Tick | None:
        now = time.monotonic()
        events: dict[int, list[tuple[int, bytes]]] = {}
        ended: set[int] = set()
        changed: list[dict[str, Any]] = []
        pulse = overview.pulse(self._ledger)
        if pulse != self._pulse or now - self._looked_at > views.STALE_SECONDS:
            events, ended, changed = self._look_at_jobs(pulse)
            self._pulse, self._looked_at = (self._last_event, pulse[1]), now  # one look reads only so many events
        fleet: dict[str | None, dict[str, Any]] = {}
        if owners and now - self._fleet_at > FLEET_SECONDS:
            self._fleet_at = now
            fleet = {owner: views.farm_state(self._ledger, owner) for owner in owners}
        alive = b""
        if now - self._alive_at > KEEP_ALIVE_SECONDS:
            self._alive_at = now
            alive = b": keep-alive\n\n"
        if not (events or changed or fleet or alive):
            return None
        progress = {int(job["id"]): progress_text(job) for job in changed}
        return Tick(events, progress, changed, frozenset(ended), fleet, alive)

    def _look_at_jobs(
        self, pulse: tuple[int, int]
    ) -> tuple[dict[int, list[tuple[int, bytes]]], set[int], list[dict[str, Any]]]:
        """The events since the last look, the jobs that ended, and summaries of jobs that changed."""
        lines = read.events(self._ledger, after_id=self._last_event, limit=1000)
        touched = {line.job_id for line in lines if line.job_id is not None}
        jobs = self.summaries.read(sorted(touched | set(overview.active_job_ids(self._ledger))), pulse)
        segments = overview.segments_by_id(self._ledger, [line.segment_id for line in lines if line.segment_id])
        events, ended = tell(lines, segments)
        if lines:
            self._last_event = lines[-1].id
        changed: list[dict[str, Any]] = []
        for job in jobs:
            text = json.dumps(job, sort_keys=True)
            job_id = int(job["id"])
            if self._seen.get(job_id) != text:
                self._seen[job_id] = text
                changed.append(job)
        for job_id in ended:
            self._seen.pop(job_id, None)
        return events, ended, changed


@dataclass(frozen=True, slots=True)
class History:
    """What has happened to a job until now, as texts that are made once for all who begin to listen."""

    job: Job
    events: list[tuple[int, bytes]]
    last_event: int
    ended: bool
    progress: bytes
    read_after: int  # the ledger's newest event, of any job, when the reading began
    read_at: float


def history_of(ledger: Ledger, job_id: int) -> History:
    """Raises NotFound."""
    read_at, read_after = time.monotonic(), overview.last_event_id(ledger)
    lines = read.events(ledger, job_id=job_id, limit=10_000)
    job = read.job(ledger, job_id)
    state = job.state
    told = omnirt_records.stream_events(lines, read.segments(ledger, job_id))
    # The job may end between the two readings; then its end is not told yet and will come as an event.
    ended = state in FINISHED and any(line.event == f"job_{state}" for line in lines)
    progress = b"" if ended else progress_text(views.summaries(ledger, [job_id])[0])
    events = [(event["id"], event_text(event)) for event in told]
    return History(job, events, lines[-1].id if lines else 0, ended, progress, read_after, read_at)


def tell(lines: list[LedgerEvent], segments: dict[int, Segment]) -> tuple[dict[int, list[tuple[int, bytes]]], set[int]]:
    """Lines of the history as SSE texts by job, and the jobs that ended."""
    events: dict[int, list[tuple[int, bytes]]] = {}
    ended: set[int] = set()
    for line in lines:
        for event in omnirt_records.told_of(line, segments) if line.job_id is not None else ():
            assert line.job_id is not None
            events.setdefault(line.job_id, []).append((line.id, event_text(event)))
            if event["event"] in omnirt_records.ENDS:
                ended.add(line.job_id)
            elif event["event"] == "requeue":
                ended.discard(line.job_id)
    return events, ended


def event_text(event: dict[str, Any]) -> bytes:
    body = {k: v for k, v in event.items() if k != "id"}
    number = f"id: {event['id']}\n" if event.get("id") else ""
    return f"{number}event: {event['event']}\ndata: {json.dumps(body)}\n\n".encode()


def progress_text(job: dict[str, Any]) -> bytes:
    keys = ("frames", "total_frames", "share", "doing", "frames_per_second", "times_real_time", "seconds_left")
    data = {key: job[key] for key in keys} | {"state": job["state"], "segments_done": job["segments_done"]}
    if job["segments_done"]:
        data["last_frame"] = f"/v1/jobs/{job['id']}/last-frame?v={job['segments_done']}"
    event = {"event": "progress", "stage": "job", "timestamp_ms": round(time.time() * 1000), "data": data}
    return event_text(event)
