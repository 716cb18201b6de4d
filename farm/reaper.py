"""The reaper: one worker at a time expires dead leases, rings again for what waits too long, and sweeps up.

Any worker may be it; a lock in the ledger, judged by the ledger's clock, says who.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from farm.config import Settings
from farm.ledger import Ledger, crew, moves, read
from farm.ledger.budget import pause_what_is_spent
from farm.ledger.values import Worker
from farm.logs import add_log_ids
from farm.processes import is_same
from farm.rates import price
from farm.roster import machine_name

log = logging.getLogger(__name__)

DEATH_SECONDS = 5.0  # how long a killed host may take to be gone


class Reaper:
    """Sweeps in a thread of its own until stopped."""

    def __init__(
        self,
        ledger: Ledger,
        settings: Settings,
        *,
        holder: str,
        ring: Callable[[list[str]], None],
        kill: Callable[[int], None],
    ) -> None:
        self._ledger = ledger
        self._settings = settings
        self._holder = holder
        self._ring = ring
        self._kill = kill
        self._looked_at: tuple[float, float] | None = None  # our clock and the ledger's, when we last looked
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reaper", daemon=True)
        self._worker = holder.partition("/")[0]

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(10)
            try:
                crew.stop_leading(self._ledger, crew.REAPER_LOCK, self._holder)
            except Exception as error:
                log.debug("the reaper's lock was not given back: %s", error)

    def _run(self) -> None:
        add_log_ids(worker=self._worker)
        while not self._stop.wait(self._settings.lease.sweep_seconds):
            try:
                now = self._ledger.now()
                if self._was_away(now):
                    continue
                # One instant for both steps: a lease that runs out between them waits for the next round, so that
                # none is released on this machine whose host was not killed first.
                self.kill_overdue_hosts_here(now)
                if crew.lead(
                    self._ledger, crew.REAPER_LOCK, self._holder, ttl_seconds=3 * self._settings.lease.sweep_seconds
                ):
                    self.sweep(now)
            except Exception as error:
                log.warning("the reaper will try again: %s", error)

    def _was_away(self, theirs: float) -> bool:
        """Whether nobody could renew a lease for a while, so that this look must not judge anyone.

        A ledger that did not answer, a machine that slept or a clock that jumped makes every lease look dead at once;
        whoever lives renews within a beat, before the next look.
        """
        ours = time.monotonic()
        before, self._looked_at = self._looked_at, (ours, theirs)
        if before is None:
            return False
        longest = self._settings.lease.sweep_seconds + self._settings.lease.ttl_seconds / 2
        return max(ours - before[0], theirs - before[1]) > longest

    def sweep(self, now: float) -> None:
        """One round of the leader, with what the ledger's clock said when it began."""
        expired = moves.expire_leases(self._ledger, self._settings.retry.policy(), before=now)
        if expired:
            log.warning("took back %d leases whose workers vanished", len(expired))
        for name in crew.mark_lost(self._ledger):
            log.warning("worker %s stopped beating without a goodbye", name)
        for batch_id in pause_what_is_spent(self._ledger, lambda seconds: price(seconds, self._settings.rates)):
            log.warning("batch %d is paused: its budget is spent", batch_id)
        owed = set(crew.take_owed_doorbells(self._ledger))
        owed.update(read.ringable_queues(self._ledger, self._settings.lease.ring_again_seconds))
        self._ring(sorted(owed))

    def kill_overdue_hosts_here(self, now: float) -> None:
        """Kill hosts on this machine whose worker is dead or out of time, before their lease goes to another.

        A worker that is only suspended would otherwise find its host still rendering on a device that someone else
        was given.
        """
        for worker in read.overdue_workers(self._ledger, machine_name(), before=now):
            if self._kill_host(worker):
                log.warning("%s is out of time; its host %d was killed", worker.name, worker.host_pid)

    def bury(self, worker: Worker) -> bool:
        """Whether the process behind a worker's row of this machine is dead, its host killed if it was left behind."""
        if is_same(worker.pid, worker.info.get("process_birth")):
            return False
        self._kill_host(worker)
        return True

    def _kill_host(self, worker: Worker) -> bool:
        """Kill a worker's host if it lives, and wait until it is gone.  Whether it lived."""
        pid, born = worker.host_pid, worker.info.get("host_birth")
        if pid is None or not is_same(pid, born):
            return False
        self._kill(pid)
        deadline = time.monotonic() + DEATH_SECONDS
        while is_same(pid, born):
            if time.monotonic() > deadline:
                log.warning("host %d of %s does not die; its driver holds it", pid, worker.name)
                break
            time.sleep(0.01)
        return True
