"""A worker's turns for live sessions: between two segments its warm host serves one of those that wait at its door."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from farm.config import Settings
from farm.ledger import Ledger, live
from farm.models import ModelSpec
from farm.retry import decide
from farm.states import WorkerState
from workers.heart import Heart, LiveWatch
from workers.host.parent import Host
from workers.live import LiveDoor, LiveStage

log = logging.getLogger(__name__)


class LiveTurns:
    """The door and the stage of one worker, and the rules of their turns."""

    def __init__(
        self,
        ledger: Ledger,
        settings: Settings,
        model: ModelSpec,
        *,
        name: str,
        host: Host,
        heart: Heart,
        stopping: threading.Event,
        wake: Callable[[], None],
    ) -> None:
        self._ledger = ledger
        self._settings = settings
        self._name = name
        self._host = host
        self._heart = heart
        self._stopping = stopping
        path = settings.live_socket(name)
        self._stage = LiveStage(settings.live, model, settings.home / "live" / path.stem, settings.host.stop_seconds)
        self._door: LiveDoor | None = LiveDoor(ledger, name, path, hold=heart.hold_live, wake=wake)

    @property
    def address(self) -> str | None:
        """The Unix socket where sessions knock; None when it could not be opened."""
        return None if self._door is None else str(self._door.path)

    def open(self) -> None:
        """Let sessions knock.  A worker that cannot be reached for them still renders batches."""
        assert self._door is not None
        try:
            self._stage.clear()
            self._door.open()
        except OSError as error:
            log.error("%s: no live sessions: %s: %s", self._name, self._door.path, error)
            self._door = None

    def close(self) -> None:
        """Turn away whom waits, and delete what sessions left."""
        if self._door is not None:
            self._door.close()
        self._stage.close()

    def turn_away(self, sentence: str) -> None:
        """Tell whoever waits that there is no turn."""
        if self._door is not None:
            self._door.turn_away(sentence)

    def serve_next(self) -> bool:
        """Serve the session that waits, to its end.  False when there is none."""
        guest = self._door.take() if self._door is not None else None
        if guest is None:
            return False
        self._heart.say(WorkerState.RENDERING, "serves a live session")
        log.info("%s: a live session begins", self._name)
        how = "the session failed"
        try:
            how = self._stage.serve(guest, self._host, lambda: self._why_stop(guest.watch))
            log.info("%s: the live session ended: %s", self._name, how)
        except Exception as error:
            decision = decide(error, errors_before=0, was_smaller=False, policy=self._settings.retry.policy())
            how = decision.reason
            log.warning("%s: the live session failed: %s", self._name, how, exc_info=decision.failure == "bug")
            if decision.replace_host or decision.failure == "bug":
                self._host.kill()
        finally:
            self._heart.let_go_live(guest.watch)
            live.release(self._ledger, self._name, guest.watch.token, how)
            self._heart.say(WorkerState.IDLE)  # now it can be asked again
        return True

    def _why_stop(self, watch: LiveWatch) -> str | None:
        """A sentence when the session that is served must end."""
        seen = self._heart.seen
        if self._stopping.is_set():
            return "the worker was stopped"
        if seen is not None and seen.drain is not None:
            return "the worker is drained"
        return "the session's lease is lost" if watch.is_lost(self._settings.lease.ttl_seconds) else None
