"""The story of one worker: claim, work, publish or release, again."""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from typing import Any

from farm import __version__, processes
from farm.config import Settings
from farm.doorbell import Doorbell, Ringer
from farm.errors import EngineChanged, LeaseLost, LedgerAway
from farm.ledger import Ledger, crew, moves
from farm.ledger.values import Lease
from farm.logs import log_ids
from farm.reaper import Reaper
from farm.roster import WorkerSpec, machine_name
from farm.states import SegmentKind, WorkerState
from farm.store import open_store
from farm.workshop import Stopped
from workers.announce import Announcer, Silence
from workers.assembling import BadSegment
from workers.endings import Endings
from workers.film_steps import FilmSteps
from workers.heart import Heart, LeaseWatch
from workers.live_turns import LiveTurns
from workers.rendering import RenderedSegment, Renderer
from workers.room import Room
from workers.sight import Sight
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
        self._endings = Endings(
            ledger,
            self.policy,
            self.announcer,
            self._room,
            name=self.name,
            queue=self.queue,
            host=self._renderer.host if self._renderer is not None else None,
        )
        self._reaper = Reaper(
            ledger, settings, holder=f"{self.name}/{incarnation}", ring=self._ring, kill=processes.kill_group
        )

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
                self._endings.leave_to_others(lease, unseen)
                return
            result = self._perform(lease, watch)
        except LeaseLost:
            self._endings.drop(lease, "the lease is lost; its new owner goes on")
        except Stopped as stopped:
            self._endings.give_back(lease, str(stopped), began)
        except BadSegment as error:
            self._endings.ask_for_segments_again(lease, error)
        except EngineChanged as error:
            self._endings.begin_again(lease, error)
        except Exception as error:
            if self._hurried:  # its host was killed under it
                self._endings.give_back(lease, "shutdown", began)
            else:
                self._endings.release(lease, error, began)
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
            info={"farm": __version__, "process_birth": processes.birth(os.getpid())},
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
