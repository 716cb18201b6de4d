"""The story of one worker: claim, work, publish or release, again."""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Mapping
from typing import Any

import psutil

from farm import __version__
from farm.config import Settings
from farm.doorbell import Doorbell, Ringer
from farm.errors import EngineChanged, Interrupted, LeaseLost, LedgerAway, NoEncoder
from farm.ledger import Ledger, crew, moves, read
from farm.ledger.repair import begin_again, render_again
from farm.ledger.values import Lease
from farm.logs import log_ids
from farm.processes import kill_group
from farm.reaper import Reaper
from farm.retry import Decision, backoff, decide
from farm.roster import WorkerSpec, machine_name
from farm.states import Event, SegmentKind, WorkerState
from farm.store import open_store
from farm.workshop import Stopped
from workers.announce import Announcer, Silence
from workers.assembling import BadSegment
from workers.film_steps import FilmSteps
from workers.heart import Heart, LeaseWatch
from workers.live_turns import LiveTurns
from workers.rendering import RenderedSegment, Renderer
from workers.room import Room
from workers.sight import SIGHT_SECONDS, Sight
from workers.warming import Loader, make_renderer

log = logging.getLogger(__name__)


class Runner:
    """One worker.  `run` returns after `stop`; `wake` is the doorbell."""

    def __init__(
        self,
        ledger: Ledger,
        settings: Settings,
        spec: WorkerSpec,
        *,
        doorbell: Doorbell | None,
        announcer: Announcer | None = None,
    ) -> None:
        self.ledger = ledger
        self.settings = settings
        self.spec = spec
        self.name = spec.full_name
        self.queue = spec.queue
        self.device = str(spec.device_set)
        self.policy = settings.retry.policy()
        self._store = open_store(settings)
        self._room = Room(settings, self._store)
        self._sight = Sight(settings, ledger, self.queue)
        self.announcer: Announcer = announcer or Silence()
        with log_ids(worker=self.name):
            self._ringer = Ringer(doorbell) if doorbell is not None else None
        self._stopping = threading.Event()
        self._rung = threading.Event()
        self._hurried = False
        self._warm_job: int | None = None
        self.finished = threading.Event()
        incarnation = secrets.token_hex(8)
        self.heart = Heart(
            ledger,
            name=self.name,
            incarnation=incarnation,
            beat_seconds=settings.lease.beat_seconds,
            ttl_seconds=settings.lease.ttl_seconds,
            on_name_taken=self.stop,
        )
        self._incarnation = incarnation
        self._renderer: Renderer | None = None
        self._loader: Loader | None = None
        self._live: LiveTurns | None = None
        self._film_steps: FilmSteps | None = None
        if spec.renders:
            self._renderer = make_renderer(ledger, settings, spec, self._store, self.announcer.progressed)
            self._loader = Loader(self.name, self._renderer, self.heart, settings)
            self._live = self._make_live(self._renderer)
        else:
            self._film_steps = FilmSteps(ledger, settings, self._store, self.device)
        self._reaper = Reaper(ledger, settings, holder=f"{self.name}/{incarnation}", ring=self._ring, kill=kill_group)

    def _make_live(self, renderer: Renderer) -> LiveTurns | None:
        model = self.spec.load_model()
        if model.live is None or not self.settings.live.sessions:
            return None
        return LiveTurns(
            self.ledger,
            self.settings,
            model,
            name=self.name,
            host=renderer.host,
            heart=self.heart,
            stopping=self._stopping,
            wake=self.wake,
        )

    # What may be called from other threads

    def wake(self) -> None:
        """There may be work: look into the ledger now."""
        self._rung.set()

    def stop(self) -> None:
        """End the running attempt at its next chunk, give its lease back, and return from `run`."""
        self._stopping.set()
        self._rung.set()

    def hurry(self) -> None:
        """Stop without waiting for the chunk that runs: the host is killed, and the lease given back."""
        self._hurried = True
        self.stop()
        if self._renderer is not None:
            log.warning("%s: told to stop again; its host is killed", self.name)
            threading.Thread(target=self._renderer.host.kill, name="hurry", daemon=True).start()

    # The story

    def run(self) -> None:
        with log_ids(worker=self.name):
            self._run()

    def _run(self) -> None:
        try:
            self._say_hello()
            if self._live is not None:
                self._live.open()
            self.heart.start()
            self._reaper.start()
            while not self._stopping.is_set():
                try:
                    if not self._work_once():
                        self._rung.wait(self.settings.lease.poll_seconds)
                        self._rung.clear()
                except LedgerAway as error:
                    log.warning("%s: %s", self.name, error)
                    self._stopping.wait(self.settings.lease.poll_seconds)
                except Exception:
                    log.exception("%s: the worker goes on after this", self.name)
                    self._stopping.wait(self.settings.lease.poll_seconds)
        finally:
            self._reaper.stop()
            if self._live is not None:
                self._live.close()
            if self._renderer is not None:
                self._renderer.host.close()
            if self._film_steps is not None:
                self._film_steps.close()
            self.heart.stop()
            try:
                crew.say_goodbye(self.ledger, name=self.name, incarnation=self._incarnation)
            except Exception as error:
                log.warning("the ledger did not take the goodbye: %s", error)
            self.finished.set()

    def _work_once(self) -> bool:
        """Do one segment or serve one live session.  False when there was none."""
        if not self._is_ready():
            if self._live is not None:
                self._live.turn_away("the worker takes nothing now; try again")
            return False
        if self._live is not None and self._live.serve_next():
            return True
        lease = moves.claim(
            self.ledger,
            worker=self.name,
            queue=self.queue,
            device=self.device,
            ttl_seconds=self.settings.lease.ttl_seconds,
            warm_job=self._warm_job,
        )
        if lease is None:
            self.heart.say(WorkerState.IDLE)
            return False
        with log_ids(**lease.ids):
            self._attempt(lease)
        self._ring_owed()
        return True

    def _is_ready(self) -> bool:
        """Whether this worker may take work now; otherwise its row says why not."""
        seen = self.heart.seen
        if seen is not None and seen.drain is not None:
            self.heart.say(WorkerState.DRAINING, "draining: it takes nothing new")
            return False
        sick = crew.sick_reason(self.ledger, self.name)
        if sick is not None:
            self.heart.say(WorkerState.SICK, sick)
            return False
        nothing = self._room.why_none() or self._sight.why_none()
        if nothing is not None:
            self.heart.say(WorkerState.IDLE, nothing)
            return False
        if self._renderer is None or self._loader is None or self._renderer.is_warm:
            return True
        return self._loader.warm_up(self._stopping, self._live.address if self._live is not None else None)

    def _attempt(self, lease: Lease) -> None:
        """One attempt, top to bottom."""
        watch = LeaseWatch(self.ledger, lease, self._stopping)
        self.heart.hold(watch)
        self.heart.say(WorkerState.RENDERING)
        self.announcer.started(lease)
        began = time.monotonic()
        log.info("%s: begins, attempt %d", lease.label, lease.attempt)
        try:
            unseen = self._sight.why_others(lease)
            if unseen is not None:
                self._leave_to_others(lease, unseen)
                return
            result = self._perform(lease, watch)
        except LeaseLost:
            self._drop(lease, "the lease is lost; its new owner goes on")
        except Stopped as stopped:
            self._give_back(lease, str(stopped))
        except BadSegment as error:
            self._ask_for_segments_again(lease, error)
        except EngineChanged as error:
            self._begin_again(lease, error)
        except Exception as error:
            if self._hurried:  # its host was killed under it
                self._give_back(lease, "shutdown")
            else:
                self._release(lease, error, began)
        else:
            self._warm_job = lease.job.id
            seconds = time.monotonic() - began
            log.info("%s: published after %.1f s", lease.label, seconds)
            self.announcer.succeeded(lease, result, seconds)
        finally:
            self.heart.let_go()
            self._sweep_up(lease)

    def _sweep_up(self, lease: Lease) -> None:
        """Delete what this attempt, and those before it whose workers died, left under staging names."""
        folder = self._store.folder(lease.job.id)
        number = lease.segment.number if lease.segment.kind is SegmentKind.RENDER else None
        try:
            for token in range(1, lease.token + 1):
                folder.discard(number, token)
        except OSError as error:
            log.warning("%s: staging files stay: %s", lease.label, error)

    def _perform(self, lease: Lease, watch: LeaseWatch) -> dict[str, Any]:
        """Do the work and publish it.  Returns what Flower shows as the result."""
        kind = lease.segment.kind
        if kind is SegmentKind.RENDER:
            return self._render(lease, watch)
        assert self._film_steps is not None
        step = self._film_steps.prepare if kind is SegmentKind.PREPARE else self._film_steps.assemble
        return step(lease, watch)

    def _render(self, lease: Lease, watch: LeaseWatch) -> dict[str, Any]:
        assert self._renderer is not None
        self._renderer.refuse_another_versions_film(lease.job)
        done: RenderedSegment = self._renderer.render(lease, watch)
        moves.publish(
            self.ledger,
            lease,
            artifacts=done.artifacts,
            carry=done.carry,
            frames=done.frames,
            device_seconds=done.device_seconds,
            engine_version=done.engine_version,
        )
        return {
            "frames": done.frames,
            "seconds": round(done.device_seconds, 2),
            "device": self.device,
            "file": done.artifacts[0].path,
        }

    # Ends without a result

    def _give_back(self, lease: Lease, word: str) -> None:
        sentences: Mapping[str, str] = {
            "shutdown": "the worker was stopped",
            moves.Standing.PAUSED: "the job was paused",
            moves.Standing.DRAIN: "the worker was drained",
        }
        if word in (moves.Standing.LOST, moves.Standing.CANCELLED):
            try:
                # A job that failed elsewhere still counts this lease as held.
                moves.release(self.ledger, lease, Decision(Event.INTERRUPT, "the job ended", "stop"))
            except LeaseLost:
                self._drop(lease, f"the render was stopped: {word}")
            else:
                self.announcer.failed(lease, "the job ended", retried=True)
            return
        self._release(lease, Interrupted(sentences.get(word, word)), time.monotonic())

    def _ask_for_segments_again(self, lease: Lease, error: BadSegment) -> None:
        """Nobody failed: what was published is gone, and the film is assembled once it is there again."""
        log.warning("%s: %s", lease.label, error)
        pause = self.policy.base_delay_seconds  # so that nobody takes it before the segments are queued
        try:
            moves.release(self.ledger, lease, Decision(Event.INTERRUPT, str(error), "stop", max(pause, 1.0)))
        except LeaseLost:
            self._drop(lease, "the lease was lost meanwhile")
            return
        self.announcer.failed(lease, str(error), retried=True)
        for number in error.paths:
            render_again(self.ledger, lease.job.id, number, str(error))

    def _leave_to_others(self, lease: Lease, why: str) -> None:
        """Another machine may see what this one does not; meanwhile this one takes what else there is."""
        log.error("%s: %s", lease.label, why)
        tried = sum(a.failure == "store" for a in read.attempts(self.ledger, lease.job.id))
        pause = backoff(tried + 1, self.policy.base_delay_seconds, min(self.policy.max_delay_seconds, SIGHT_SECONDS))
        moves.release(self.ledger, lease, Decision(Event.INTERRUPT, why, "store", pause))
        self.announcer.failed(lease, why, retried=True)

    def _begin_again(self, lease: Lease, error: EngineChanged) -> None:
        """A film's frames all come from one version of the engine: ours from now on."""
        log.warning("%s: %s; the film begins again", lease.label, error)
        try:
            begun = begin_again(self.ledger, lease, str(error))
            if not begun:
                sentence = f"{error}; workers of queue {self.queue} take turns with it: upgrade them all, then retry"
                moves.release(self.ledger, lease, Decision(Event.FAIL, sentence, "engine"))
        except LeaseLost:
            self._drop(lease, "the lease was lost meanwhile")
            return
        self.announcer.failed(lease, str(error), retried=begun)

    def _release(self, lease: Lease, error: Exception, began: float) -> None:
        """Tell the ledger how the attempt ended and do to the host what the error asks for."""
        decision = decide(
            error,
            errors_before=lease.segment.errors,
            was_smaller=lease.smaller,
            policy=self.policy,
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
        if decision.replace_host and self._renderer is not None:
            # Before the lease is given up: two renders of one segment on one device would slow each other.
            self._renderer.host.kill()
        try:
            moves.release(self.ledger, lease, decision)
        except LeaseLost:
            self._drop(lease, "the lease was lost meanwhile")
            return
        self.announcer.failed(lease, decision.reason, retried=decision.event is not Event.FAIL)
        self._room.learn(decision)

    def _others_may_encode(self, lease: Lease) -> bool:
        """Whether there is another worker, be it busy or loading, that did not refuse a segment of this job."""
        tried = read.attempts(self.ledger, lease.job.id)
        refused = {a.worker for a in tried if a.strike and a.failure == "encoder"} | {self.name}
        return any(w.name not in refused for w in read.workers_at_work(self.ledger, self.queue))

    def _drop(self, lease: Lease, why: str) -> None:
        log.warning("%s: dropped: %s", lease.label, why)
        self.announcer.failed(lease, why, retried=True)

    # Doorbells and the crew

    def _say_hello(self) -> None:
        before = crew.say_hello(
            self.ledger,
            name=self.name,
            queue=self.queue,
            machine=machine_name(),
            pid=os.getpid(),
            incarnation=self._incarnation,
            device=self.device,
            info={"farm": __version__, "process_started": psutil.Process().create_time()},
        )
        if before is not None and before.machine == machine_name() and self._reaper.bury(before):
            # The process that worked under this name before is known to be dead: nobody needs to wait for its lease.
            expired = moves.expire_leases(self.ledger, self.policy, worker=self.name)
            if expired:
                log.warning("%s: took back %d leases of the process before", self.name, len(expired))

    def _ring_owed(self) -> None:
        owed = crew.take_owed_doorbells(self.ledger)
        others = [queue for queue in owed if queue != self.queue]
        if self.queue in owed:
            self._rung.set()
        self._ring(others)

    def _ring(self, queues: list[str]) -> None:
        if self._ringer is not None and queues:
            self._ringer.ring(queues)


def make_runner(
    ledger: Ledger,
    settings: Settings,
    spec: WorkerSpec,
    *,
    doorbell: Doorbell | None = None,
    announcer: Announcer | None = None,
) -> Runner:
    """A runner and the folders that it needs."""
    settings.artifacts_dir.mkdir(parents=True, exist_ok=True)
    settings.logs_dir.mkdir(parents=True, exist_ok=True)
    return Runner(ledger, settings, spec, doorbell=doorbell, announcer=announcer)
