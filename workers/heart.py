"""The thread that keeps a lease and a worker alive in the ledger, whatever the render does.

The engine lives in another process, so nothing that a device does can hold this thread up.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from farm import processes
from farm.errors import LeaseLost
from farm.ledger import Ledger, crew, live, moves
from farm.ledger.values import Lease, Worker
from farm.logs import log_ids
from farm.states import WorkerState

log = logging.getLogger(__name__)

CHECK_SECONDS = 0.5  # how often a running attempt asks whether it is still wanted


class LeaseWatch:
    """What a running attempt knows of its lease."""

    def __init__(self, ledger: Ledger, lease: Lease, stopping: threading.Event) -> None:
        self.lease = lease
        self.frames = 0
        self._ledger = ledger
        self._stopping = stopping
        self._lost = threading.Event()
        self._asked_at = 0.0
        self._standing = moves.Standing.KEEP

    def lose(self) -> None:
        self._lost.set()

    def why_stop(self) -> str | None:
        """A word of moves.Standing when the attempt must end, "shutdown" when the worker must; None to go on."""
        if self._lost.is_set():
            # A cancelled segment has no lease to renew either, and a person should read which of the two it was.
            cancelled = moves.standing(self._ledger, self.lease) == moves.Standing.CANCELLED
            return moves.Standing.CANCELLED if cancelled else moves.Standing.LOST
        if self._stopping.is_set():
            return "shutdown"
        now = time.monotonic()
        if now - self._asked_at >= CHECK_SECONDS:
            self._asked_at = now
            self._standing = moves.standing(self._ledger, self.lease)
        return None if self._standing == moves.Standing.KEEP else self._standing


class LiveWatch:
    """What a worker knows of the lease that a live session has of its host."""

    def __init__(self, token: str) -> None:
        self.token = token
        self._renewed_at = time.monotonic()
        self._lost = False

    def is_lost(self, ttl_seconds: float) -> bool:
        return self._lost or time.monotonic() - self._renewed_at > ttl_seconds

    def renewed(self) -> None:
        self._renewed_at = time.monotonic()

    def lose(self) -> None:
        self._lost = True


class Heart:
    """Beats for one worker: its row, and the lease that it holds."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        name: str,
        incarnation: str,
        beat_seconds: float,
        ttl_seconds: float,
        on_name_taken: Callable[[], None],
    ) -> None:
        self._ledger = ledger
        self._name = name
        self._incarnation = incarnation
        self._beat_seconds = beat_seconds
        self._ttl_seconds = ttl_seconds
        self._on_name_taken = on_name_taken
        self._lock = threading.Lock()
        self._watch: LeaseWatch | None = None
        self._live: LiveWatch | None = None
        self._state = WorkerState.LOADING
        self._reason: str | None = None
        self._host_pid: int | None = None
        self._host_restarts = 0
        self._info: dict[str, Any] = {}
        self._stop = threading.Event()
        self._now = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heart", daemon=True)
        self.seen: Worker | None = None  # the worker's row as of the last beat

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._now.set()
        if self._thread.is_alive():
            self._thread.join(10)

    def say(self, state: WorkerState, reason: str | None = None) -> None:
        """Change what the worker tells of itself; told at once when it is new."""
        with self._lock:
            changed = (state, reason) != (self._state, self._reason)
            self._state, self._reason = state, reason
        if changed:
            self._now.set()

    def note_host(self, pid: int | None, restarts: int, info: dict[str, Any]) -> None:
        with self._lock:
            self._host_pid, self._host_restarts, self._info = pid, restarts, info
        self._now.set()

    def hold(self, watch: LeaseWatch) -> None:
        """Renew this lease from now on."""
        with self._lock:
            self._watch = watch

    def let_go(self) -> None:
        with self._lock:
            self._watch = None

    def hold_live(self, watch: LiveWatch) -> None:
        """Renew this session's lease of the host from now on."""
        with self._lock:
            self._live = watch

    def let_go_live(self, watch: LiveWatch) -> None:
        with self._lock:
            if self._live is watch:
                self._live = None

    def _run(self) -> None:
        with log_ids(worker=self._name):
            while not self._stop.is_set():
                self._beat()
                self._now.wait(self._beat_seconds)
                self._now.clear()

    def _beat(self) -> None:
        with self._lock:
            watch, session, state, reason = self._watch, self._live, self._state, self._reason
            host_pid, restarts, info = self._host_pid, self._host_restarts, dict(self._info)
        if watch is not None:
            with log_ids(**watch.lease.ids):
                self._renew(watch)
        if session is not None:
            try:
                live.renew(self._ledger, self._name, session.token, ttl_seconds=self._ttl_seconds)
                session.renewed()
            except LeaseLost:
                session.lose()
            except Exception as error:
                log.warning("a live session's lease could not be renewed: %s", error)
        info["process_birth"] = processes.birth(os.getpid())
        if host_pid is not None:
            info["host_birth"] = processes.birth(host_pid)
        try:
            self.seen = crew.beat(
                self._ledger,
                name=self._name,
                incarnation=self._incarnation,
                state=state,
                reason=reason,
                host_pid=host_pid,
                host_restarts=restarts,
                info=info,
            )
        except LeaseLost:
            log.error("another process works as %s; this one stops", self._name)
            self._on_name_taken()
        except Exception as error:
            log.warning("the ledger did not take a beat: %s", error)

    def _renew(self, watch: LeaseWatch) -> None:
        try:
            moves.renew(self._ledger, watch.lease, ttl_seconds=self._ttl_seconds, frames_now=watch.frames)
        except LeaseLost:
            watch.lose()
        except Exception as error:
            log.warning("the lease could not be renewed: %s", error)
