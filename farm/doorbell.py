"""Ringing workers through Celery.  A doorbell says "there is work for this queue" and nothing else.

It may be lost, doubled or late: workers look into the ledger by themselves too, and the ledger decides who does what.
This is the only place on this side that knows Celery; `workers/app.py` is the other.
"""

from __future__ import annotations

import contextvars
import logging
import socket
import threading
from collections.abc import Iterable

from celery import Celery
from kombu.exceptions import KombuError
from redis import Redis
from redis.exceptions import RedisError

from farm.config import Settings
from farm.ledger import Ledger
from farm.ledger.crew import take_owed_doorbells

log = logging.getLogger(__name__)

TASK = "farm.doorbell"
RING_SECONDS = 5.0  # how long one command of a ringing may take
EXPIRES_SECONDS = 60.0  # a doorbell that nobody heard for so long says nothing new


def celery_broker(redis_url: str) -> str:
    """redis-py's URL as Celery writes it: only the scheme of a Unix socket differs."""
    if redis_url.startswith("unix://"):
        path, _, query = redis_url.removeprefix("unix://").partition("?")
        database = next((part.removeprefix("db=") for part in query.split("&") if part.startswith("db=")), "0")
        return f"redis+socket://{path}?virtual_host={database}"
    return redis_url


def make_app(settings: Settings) -> Celery:
    """A Celery app that talks to this farm's Redis.  Every line is there for a reason told in ARCHITECTURE.md."""
    app = Celery("farm")
    app.conf.update(
        broker_url=celery_broker(settings.redis),
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "global_keyprefix": "farm:",
            **_notice_silence(settings.lease.ttl_seconds / 3),
            "visibility_timeout": 3600,
        },
        task_ignore_result=True,
        task_acks_late=False,
        task_serializer="json",
        accept_content=["json"],
        event_serializer="json",
        task_default_queue="farm.cpu",
        task_create_missing_queues=True,
        worker_send_task_events=True,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        timezone="UTC",
        enable_utc=True,
    )
    return app


def _notice_silence(seconds: float) -> dict[str, object]:
    """Options of kombu for a Redis whose network swallows everything; a Unix socket takes those that it knows.

    The kernel asks a connection that says nothing, and gives it up when what was sent is not answered for `seconds`.
    """
    probe = max(1, round(seconds / 3))
    milliseconds = round(seconds * 1000)
    return {
        "socket_timeout": max(3.0, seconds),  # longer than the second that one wait for a doorbell takes
        "socket_connect_timeout": 5,
        "socket_keepalive": True,
        "socket_keepalive_options": {
            socket.TCP_KEEPIDLE: probe,
            socket.TCP_KEEPINTVL: probe,
            socket.TCP_KEEPCNT: 2,
            socket.TCP_USER_TIMEOUT: milliseconds,
        },
        "health_check_interval": max(5, round(seconds)),
    }


def queue_name(queue: str) -> str:
    """How a ledger queue is called in Redis."""
    return f"farm.{queue}"


class Doorbell:
    """Rings the workers of one farm."""

    def __init__(self, settings: Settings) -> None:
        self.app = make_app(settings)
        self._settings = settings
        # Whoever rings has better things to do than to wait for a Redis that hangs.
        self.app.conf.broker_transport_options |= {"socket_timeout": RING_SECONDS, "socket_connect_timeout": 2}

    def ring(self, queues: Iterable[str]) -> bool:
        """Ring once for each queue.  False when Redis does not answer: nothing is lost, it is only found later."""
        if self._settings.redis_was_not_started:
            log.info("the farm's Redis does not run; workers that do will find the work by themselves")
            return False
        try:
            self._ping()
            with self.app.connection_for_write() as connection:
                connection.ensure_connection(max_retries=1, timeout=2)
                for queue in queues:
                    self.app.send_task(
                        TASK,
                        args=[queue],
                        queue=queue_name(queue),
                        connection=connection,
                        expires=EXPIRES_SECONDS,
                        retry=False,
                    )
        except (KombuError, RedisError, OSError) as error:
            log.warning("Redis does not answer (%s); idle workers will find the work by themselves", error)
            return False
        return True

    def _ping(self) -> None:
        """Fail at once where nobody listens; Celery would try again for seconds."""
        with Redis.from_url(self._settings.redis, socket_connect_timeout=2, socket_timeout=2) as client:
            client.ping()


def ring_owed(ledger: Ledger, settings: Settings, doorbell: Doorbell | None = None) -> bool:
    """Ring for every doorbell that the ledger owes.  False when Redis does not answer."""
    owed = take_owed_doorbells(ledger)
    return not owed or (doorbell or Doorbell(settings)).ring(owed)


class Ringer:
    """Rings from a thread of its own, so that a Redis that hangs never holds up a render or the reaper."""

    def __init__(self, doorbell: Doorbell) -> None:
        self._doorbell = doorbell
        self._owed: set[str] = set()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        here = contextvars.copy_context()  # so that its lines bear the worker's name
        threading.Thread(target=here.run, args=(self._run,), name="ringer", daemon=True).start()

    def ring(self, queues: Iterable[str]) -> None:
        """Ring soon, once for each queue however often it is asked for meanwhile."""
        with self._lock:
            self._owed.update(queues)
        self._wake.set()

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            with self._lock:
                owed, self._owed = sorted(self._owed), set()
            if owed:
                self._doorbell.ring(owed)
