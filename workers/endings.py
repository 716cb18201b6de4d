"""How an attempt ends without a result: what the ledger is told, and what the worker learns of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from farm.errors import EngineChanged, Interrupted, LeaseLost, NoEncoder
from farm.ledger import Ledger, moves, read, repair
from farm.ledger.values import Lease
from farm.retry import Decision, RetryPolicy, backoff, decide
from farm.states import Event
from workers.announce import Announcer
from workers.assembling import BadSegment
from workers.host.parent import Host
from workers.room import Room
from workers.sight import SIGHT_SECONDS

log = logging.getLogger(__name__)


class Endings:
    """Each of them gives the lease back or finds that it is lost, and announces it.  For one worker."""

    def __init__(
        self,
        ledger: Ledger,
        policy: RetryPolicy,
        announcer: Announcer,
        room: Room,
        *,
        name: str,
        queue: str,
        host: Host | None,
    ) -> None:
        self._ledger = ledger
        self._policy = policy
        self._announcer = announcer
        self._room = room
        self._name = name
        self._queue = queue
        self._host = host

    def give_back(self, lease: Lease, word: str, began: float) -> None:
        """Somebody stopped the attempt; `word` is "shutdown" or what `LeaseWatch.why_stop` said."""
        sentences: Mapping[str, str] = {
            "shutdown": "the worker was stopped",
            moves.Standing.PAUSED: "the job was paused",
            moves.Standing.DRAIN: "the worker was drained",
        }
        if word in (moves.Standing.LOST, moves.Standing.CANCELLED):
            try:
                # A job that failed elsewhere still counts this lease as held.
                moves.release(self._ledger, lease, Decision(Event.INTERRUPT, "the job ended", "stop"))
            except LeaseLost:
                self.drop(lease, f"the render was stopped: {word}")
            else:
                self._announcer.failed(lease, "the job ended", retried=True)
            return
        self.release(lease, Interrupted(sentences.get(word, word)), began)

    def ask_for_segments_again(self, lease: Lease, error: BadSegment) -> None:
        """Nobody failed: what was published is gone, and the film is assembled once it is there again."""
        log.warning("%s: %s", lease.label, error)
        pause = self._policy.base_delay_seconds  # so that nobody takes it before the segments are queued
        try:
            moves.release(self._ledger, lease, Decision(Event.INTERRUPT, str(error), "stop", max(pause, 1.0)))
        except LeaseLost:
            self.drop(lease, "the lease was lost meanwhile")
            return
        self._announcer.failed(lease, str(error), retried=True)
        for number in error.paths:
            repair.render_again(self._ledger, lease.job.id, number, str(error))

    def leave_to_others(self, lease: Lease, why: str) -> None:
        """Another machine may see what this one does not; meanwhile this one takes what else there is."""
        log.error("%s: %s", lease.label, why)
        tried = sum(a.failure == "store" for a in read.attempts(self._ledger, lease.job.id))
        pause = backoff(tried + 1, self._policy.base_delay_seconds, min(self._policy.max_delay_seconds, SIGHT_SECONDS))
        moves.release(self._ledger, lease, Decision(Event.INTERRUPT, why, "store", pause))
        self._announcer.failed(lease, why, retried=True)

    def begin_again(self, lease: Lease, error: EngineChanged) -> None:
        """A film's frames all come from one version of the engine: ours from now on."""
        log.warning("%s: %s; the film begins again", lease.label, error)
        try:
            begun = repair.begin_again(self._ledger, lease, str(error))
            if not begun:
                sentence = f"{error}; workers of queue {self._queue} take turns with it: upgrade them all, then retry"
                moves.release(self._ledger, lease, Decision(Event.FAIL, sentence, "engine"))
        except LeaseLost:
            self.drop(lease, "the lease was lost meanwhile")
            return
        self._announcer.failed(lease, str(error), retried=begun)

    def release(self, lease: Lease, error: Exception, began: float) -> None:
        """Tell the ledger how the attempt ended and do to the host what the error asks for."""
        decision = decide(
            error,
            errors_before=lease.segment.errors,
            was_smaller=lease.smaller,
            policy=self._policy,
            others_may=isinstance(error, NoEncoder) and self._others_may_encode(lease),
        )
        if decision.failure == "bug":
            log.exception("%s: an error that the farm does not know", lease.label, exc_info=error)
        else:
            log.log(
                logging.INFO if decision.event is Event.INTERRUPT else logging.WARNING,
                "%s: %s after %.1f s: %s",
                lease.label,
                decision.event,
                time.monotonic() - began,
                decision.reason,
            )
        if decision.replace_host and self._host is not None:
            # Before the lease is given up: two renders of one segment on one device would slow each other.
            self._host.kill()
        try:
            moves.release(self._ledger, lease, decision)
        except LeaseLost:
            self.drop(lease, "the lease was lost meanwhile")
            return
        self._announcer.failed(lease, decision.reason, retried=decision.event is not Event.FAIL)
        self._room.learn(decision)

    def _others_may_encode(self, lease: Lease) -> bool:
        """Whether there is another worker, be it busy or loading, that did not refuse a segment of this job."""
        tried = read.attempts(self._ledger, lease.job.id)
        refused = {a.worker for a in tried if a.strike and a.failure == "encoder"} | {self._name}
        return any(w.name not in refused for w in read.workers_at_work(self._ledger, self._queue))

    def drop(self, lease: Lease, why: str) -> None:
        """There is no lease any more, so the ledger is told nothing."""
        log.warning("%s: dropped: %s", lease.label, why)
        self._announcer.failed(lease, why, retried=True)
