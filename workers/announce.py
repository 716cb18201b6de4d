"""Telling Flower what a worker does.

Flower lives on Celery's task events.  Each attempt is announced as a task of its own, named after what it does, so that
Flower shows who renders which segment of which portrait whether a doorbell or a look into the ledger woke the worker.
Nothing reads these events back: the ledger is the truth.
"""

from __future__ import annotations

import contextvars
import logging
import queue
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from farm.ledger.values import Lease

log = logging.getLogger(__name__)

MOST_WAITING = 1000  # events for a Redis that takes none; Flower misses what is more


class Announcer(Protocol):
    """Where attempts are announced; `workers.app` gives one that speaks to Celery's event stream."""

    def started(self, lease: Lease) -> None: ...
    def progressed(self, lease: Lease, frames: int) -> None: ...
    def succeeded(self, lease: Lease, result: dict[str, Any], seconds: float) -> None: ...
    def failed(self, lease: Lease, reason: str, *, retried: bool) -> None: ...


class Silence:
    """Announces nothing: a worker without Celery."""

    def started(self, lease: Lease) -> None: ...
    def progressed(self, lease: Lease, frames: int) -> None: ...
    def succeeded(self, lease: Lease, result: dict[str, Any], seconds: float) -> None: ...
    def failed(self, lease: Lease, reason: str, *, retried: bool) -> None: ...


class EventStream:
    """Celery task events.  `send(type, **fields)` is the worker's event dispatcher, or None while it is away.

    A thread of its own sends them: a Redis that is cut off holds up whoever speaks to it for seconds, and a render must
    not wait for that.
    """

    def __init__(self, dispatcher: Callable[[], Any], hostname: str) -> None:
        self._dispatcher = dispatcher
        self._hostname = hostname
        self._waiting: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue(MOST_WAITING)
        here = contextvars.copy_context()  # so that its lines bear the worker's name
        threading.Thread(target=here.run, args=(self._run,), name="announcer", daemon=True).start()

    def flush(self, seconds: float) -> bool:
        """Wait until all that was announced is sent.  False when that took too long."""
        with self._waiting.all_tasks_done:
            return self._waiting.all_tasks_done.wait_for(lambda: not self._waiting.unfinished_tasks, seconds)

    def started(self, lease: Lease) -> None:
        self._send("task-received", lease, **_description(lease), retries=lease.attempt - 1, eta=None, expires=None)
        self._send("task-started", lease)

    def progressed(self, lease: Lease, frames: int) -> None:
        self._send("task-progress", lease, current=frames, total=lease.segment.frames)

    def succeeded(self, lease: Lease, result: dict[str, Any], seconds: float) -> None:
        self._send("task-succeeded", lease, result=repr(result), runtime=seconds)

    def failed(self, lease: Lease, reason: str, *, retried: bool) -> None:
        kind = "task-retried" if retried else "task-failed"
        self._send(kind, lease, exception=reason, traceback=reason)

    def _send(self, kind: str, lease: Lease, **fields: Any) -> None:
        try:
            self._waiting.put_nowait((kind, {"uuid": _uuid(lease), **fields}))
        except queue.Full:
            log.debug("Flower was not told: Redis takes nothing")

    def _run(self) -> None:
        while True:
            kind, fields = self._waiting.get()
            try:
                dispatcher = self._dispatcher()
                if dispatcher is not None:
                    dispatcher.send(kind, **fields)
            except Exception as error:  # an announcement must never cost a render
                log.debug("Flower was not told: %s", error)
            finally:
                self._waiting.task_done()


def _uuid(lease: Lease) -> str:
    """The same for every event of one attempt, another for every attempt."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{lease.job.key}:{lease.segment.id}:{lease.token}"))


def _description(lease: Lease) -> dict[str, str]:
    segment = lease.segment
    words: tuple[object, ...] = (f"job {lease.job.id}", Path(lease.job.portrait).name, lease.job.name)
    if segment.frames:
        span = f"frames {segment.first_frame}-{segment.first_frame + segment.frames - 1}"
        words = (words[0], f"segment {segment.number + 1}/{lease.job.segments_total}", span, *words[1:])
    return {"name": f"farm.{segment.kind}", "args": repr(words), "kwargs": "{}"}
