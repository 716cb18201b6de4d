"""The Celery side of a worker: it hears doorbells, answers pings and shows Flower what the runner does.

    python -m workers NAME        NAME is a table of configs/workers.toml

Celery delivers and knows nothing else.  The runner works in a thread of its own, so the pool is always free: a worker
that renders answers pings at once and stays online in Flower, and a doorbell returns in a millisecond.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from types import FrameType
from typing import Any

from celery import Celery, bootsteps
from celery.worker import WorkController
from kombu.entity import Queue

from farm.config import Settings, load_settings
from farm.doorbell import TASK, Doorbell, make_app, queue_name
from farm.errors import FarmError
from farm.ledger import open_ledger
from farm.ledger.migrate import ensure_current
from farm.logs import log_to_stderr
from farm.roster import WorkerSpec, find_worker
from workers.announce import EventStream
from workers.runner import Runner, make_runner

log = logging.getLogger(__name__)

FLUSH_SECONDS = 1.0  # for Flower to hear how the last attempt ended


class RunnerStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Starts the runner with the Celery worker, and stops it before the worker goes."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, parent: WorkController, **_: Any) -> None:
        self.thread: threading.Thread | None = None
        self.stopping = False

    def start(self, parent: WorkController) -> None:
        runner: Runner = parent.app.farm_runner
        parent.app.farm_controller = parent
        self.thread = threading.Thread(target=self._live, args=(runner,), name="runner", daemon=True)
        self.thread.start()
        hear_a_second_stop(runner)

    def _live(self, runner: Runner) -> None:
        """A worker whose runner ended would answer pings and do nothing, so its process ends too."""
        try:
            runner.run()
        except Exception:
            log.exception("%s: the runner died", runner.name)
        if not self.stopping:
            log.error("%s: the runner ended by itself; so does this process", runner.name)
            os.kill(os.getpid(), signal.SIGTERM)

    def stop(self, parent: WorkController) -> None:
        runner: Runner = parent.app.farm_runner
        self.stopping = True
        runner.stop()
        # The attempt ends at its next chunk or its host is killed, so this returns; then the lease is given back.
        runner.finished.wait(runner.settings.host.stop_seconds + 15.0)
        if isinstance(runner.announcer, EventStream):
            runner.announcer.flush(FLUSH_SECONDS)

    terminate = stop


def hear_a_second_stop(runner: Runner) -> None:
    """The first SIGTERM is Celery's and lets the running chunk end; a second one does not wait for it."""
    first = signal.getsignal(signal.SIGTERM)
    heard: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        heard.append(number)
        if len(heard) > 1:
            runner.hurry()
        elif callable(first):
            first(number, frame)

    signal.signal(signal.SIGTERM, stop)


def build(settings: Settings, spec: WorkerSpec) -> Celery:
    """The Celery app of one worker, with its runner in it."""
    app = make_app(settings)
    app.conf.task_queues = [Queue(queue_name(spec.queue), routing_key=queue_name(spec.queue))]  # type: ignore[no-untyped-call]
    app.conf.task_default_queue = queue_name(spec.queue)
    ledger = open_ledger(settings.ledger, silence_seconds=settings.lease.ttl_seconds / 3)
    ensure_current(ledger)

    def dispatcher() -> Any:
        controller = getattr(app, "farm_controller", None)
        consumer = getattr(controller, "consumer", None)
        return getattr(consumer, "event_dispatcher", None)

    app.farm_runner = make_runner(
        ledger, settings, spec, doorbell=Doorbell(settings), announcer=EventStream(dispatcher, spec.full_name)
    )
    app.steps["worker"].add(RunnerStep)

    heard = threading.Event()

    @app.task(name=TASK)  # type: ignore[untyped-decorator]
    def doorbell(queue: str) -> None:
        """There is work for this queue; the ledger knows which."""
        if not heard.is_set():
            heard.set()
            log.info("%s: doorbells arrive", spec.full_name)
        app.farm_runner.wake()

    return app


def main(argv: list[str]) -> int:
    log_to_stderr()
    try:
        settings = load_settings()
        log_to_stderr(settings.log_format)
        spec = find_worker(argv[0])
        app = build(settings, spec)
    except FarmError as error:
        log.error("%s", error)
        return error.exit_code
    worker = app.Worker(
        hostname=spec.full_name,
        pool="threads",
        concurrency=1,
        task_events=True,
        without_mingle=True,  # workers have nothing to tell each other at start
        without_gossip=True,  # and nothing later: the ledger does that
        loglevel="INFO",
        quiet=True,
    )
    worker.start()
    return int(worker.exitcode or 0)
