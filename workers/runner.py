"""The story of one worker: claim, work, publish or release, again."""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import psutil

from farm import __version__
from farm.artifacts import discard_staged
from farm.config import Settings
from farm.devices import parse_devices
from farm.doorbell import Doorbell, Ringer
from farm.errors import ConfigError, EngineChanged, FarmError, Interrupted, LeaseLost, LedgerAway, NoEncoder, StoreError
from farm.ledger import Ledger, crew, live, moves, read
from farm.ledger.repair import begin_again, render_again
from farm.ledger.values import Lease, Reused
from farm.logs import log_ids
from farm.processes import kill_group
from farm.reaper import Reaper
from farm.retry import Decision, backoff, decide
from farm.reuse import find_reusable, tell
from farm.roster import WorkerSpec, machine_name
from farm.states import ArtifactKind, Event, SegmentKind, WorkerState
from farm.store import open_store
from farm.workshop import Stopped, Workshop
from workers.announce import Announcer, Silence
from workers.assembling import Assembled, BadSegment, assemble_film
from workers.heart import Heart, LeaseWatch
from workers.host.parent import HostSpec
from workers.live import LiveDoor, LiveStage
from workers.preparing import Prepared, prepare
from workers.rendering import RenderedSegment, Renderer
from workers.room import why_no_room

log = logging.getLogger(__name__)

STORE_SECONDS = 10.0  # how often a worker whose store failed an attempt tries it again before it takes work
FULL_SECONDS = 10.0  # how long a worker that met a full disk takes nothing, if room.min_free_disk_gb did not see it


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
        self._store_fails = (0.0, "")  # when to try the store again, and why it failed
        self.announcer: Announcer = announcer or Silence()
        with log_ids(worker=self.name):
            self._ringer = Ringer(doorbell) if doorbell is not None else None
        self._stopping = threading.Event()
        self._rung = threading.Event()
        self._hurried = False
        self._warm_job: int | None = None
        self._load_failures = 0
        self._load_again_at = 0.0
        self._full = (0.0, "")  # until when an attempt's full disk keeps this worker from the next, and what it said
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
        self._renderer = self._make_renderer() if spec.renders else None
        self._workshop = None if spec.renders else Workshop()
        self._stage, self._door = self._make_live() if spec.renders else (None, None)
        self._reaper = Reaper(ledger, settings, holder=f"{self.name}/{incarnation}", ring=self._ring, kill=kill_group)

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
            self._open_door()
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
            if self._door is not None:
                self._door.close()
            if self._stage is not None:
                self._stage.close()
            if self._renderer is not None:
                self._renderer.host.close()
            if self._workshop is not None:
                self._workshop.kill()
            self.heart.stop()
            try:
                crew.say_goodbye(self.ledger, name=self.name, incarnation=self._incarnation)
            except Exception as error:
                log.warning("the ledger did not take the goodbye: %s", error)
            self.finished.set()

    def _work_once(self) -> bool:
        """Do one segment or serve one live session.  False when there was none."""
        if not self._is_ready():
            if self._door is not None:
                self._door.turn_away("the worker takes nothing now; try again")
            return False
        if self._serve_live():
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
        room = why_no_room(self.settings.room, self._artifacts_dir())
        if time.monotonic() < self._full[0]:
            room = room or self._full[1]
        room = room or self._why_no_store()
        if room is not None:
            self.heart.say(WorkerState.IDLE, room)
            return False
        return self._renderer is None or self._renderer.is_warm or self._warm_up()

    def _why_no_store(self) -> str | None:
        """After the store failed an attempt, nothing is taken until something could be written and read there."""
        try_at, why = self._store_fails
        if not why:
            return None
        if time.monotonic() >= try_at:
            try:
                self._store.probe()
                why = ""
            except StoreError as error:
                why = str(error)
            self._store_fails = (time.monotonic() + STORE_SECONDS, why)
        return why or None

    def _artifacts_dir(self) -> Path:
        path = self.settings.artifacts_dir
        path.mkdir(parents=True, exist_ok=True)
        return path

    def _attempt(self, lease: Lease) -> None:
        """One attempt, top to bottom."""
        watch = LeaseWatch(self.ledger, lease, self._stopping)
        self.heart.hold(watch)
        self.heart.say(WorkerState.RENDERING)
        self.announcer.started(lease)
        began = time.monotonic()
        log.info("%s: begins, attempt %d", lease.label, lease.attempt)
        try:
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
        if kind is SegmentKind.PREPARE:
            return self._prepare(lease, watch)
        if kind is SegmentKind.ASSEMBLE:
            return self._assemble(lease, watch)
        return self._render(lease, watch)

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

    def _prepare(self, lease: Lease, watch: LeaseWatch) -> dict[str, Any]:
        assert self._workshop is not None
        job = lease.job
        work: Future[Prepared] = self._workshop.do(
            prepare, job, lease.token, self._store, self.settings.segments, self.settings.film
        )
        began = time.monotonic()
        done = self._workshop.wait(
            work, timeout_seconds=self.settings.limits.step_timeout(job.audio_seconds), why_stop=watch.why_stop
        )
        reused: dict[int, Reused] = {}
        if self.settings.segments.reuse and not job.fresh:
            reused = find_reusable(self.ledger, self._store, job, done.plan, done.queue)
        moves.publish_plan(
            self.ledger,
            lease,
            artifacts=done.artifacts,
            job=done.job | {"notes": [*done.job["notes"], *tell(done.plan, reused, job.fps)]},
            plan=done.plan,
            queue=done.queue,
            device_seconds=time.monotonic() - began,
            reused=reused,
        )
        counts = {"segments": len(done.plan), "reused": len(reused)}
        return {"frames": done.job["total_frames"], **counts, "device": self.device}

    def _assemble(self, lease: Lease, watch: LeaseWatch) -> dict[str, Any]:
        assert self._workshop is not None
        job = lease.job
        artifacts = read.artifacts(self.ledger, job.id, ArtifactKind.SEGMENT)
        cuts = [s.first_frame for s in read.segments(self.ledger, job.id) if s.kind is SegmentKind.RENDER]
        timeout = self.settings.limits.step_timeout(job.audio_seconds)
        work: Future[Assembled] = self._workshop.do(
            assemble_film,
            job,
            lease.token,
            self._store,
            artifacts,
            cuts,
            self._history(lease),
            self.settings.film.audio_bitrate,
            timeout,
        )
        began = time.monotonic()
        try:
            done = self._workshop.wait(work, timeout_seconds=timeout, why_stop=watch.why_stop)
            # The film's path may be the user's, without a token, so the lease is asked once more before it is taken.
            moves.renew(self.ledger, lease, ttl_seconds=self.settings.lease.ttl_seconds, frames_now=0)
            film = self._store.seal(done.staged, done.output, ArtifactKind.FILM, done.facts)
        except BaseException:
            discard_staged(self._store.film_path(job, lease.token), lease.token)
            raise
        moves.publish(self.ledger, lease, artifacts=[film, *done.companions], device_seconds=time.monotonic() - began)
        return {"frames": done.facts["frames"], "seconds": round(time.monotonic() - began, 2), "file": film.path}

    def _history(self, lease: Lease) -> dict[str, Any]:
        """What the report tells of how the film came about."""
        tried = read.attempts(self.ledger, lease.job.id)
        kinds = {s.id: s for s in read.segments(self.ledger, lease.job.id)}
        rendered = [a for a in tried if kinds[a.segment_id].kind is SegmentKind.RENDER]
        good = [a for a in rendered if a.outcome == Event.SUCCEED.value]
        published = [a for a in good if a.device != moves.REUSED]
        seconds = sum(a.device_seconds for a in published)
        frames = sum(a.frames for a in published)
        return {
            "render": {
                "segments": len(good),
                "reused": len(good) - len(published),
                "attempts": len(rendered),
                "workers": sorted({a.worker for a in published}),
                "devices": sorted({a.device for a in published}),
                "device_seconds": round(seconds, 3),
                "frames_per_device_second": round(frames / seconds, 2) if seconds else None,
            },
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

    def _begin_again(self, lease: Lease, error: EngineChanged) -> None:
        """A film's frames all come from one version of the engine: ours from now on."""
        log.warning("%s: %s; the film begins again", lease.label, error)
        try:
            if not begin_again(self.ledger, lease, str(error)):
                sentence = f"{error}; workers of queue {self.queue} take turns with it: upgrade them all, then retry"
                moves.release(self.ledger, lease, Decision(Event.FAIL, sentence, "engine"))
        except LeaseLost:
            self._drop(lease, "the lease was lost meanwhile")
            return
        self.announcer.failed(lease, str(error), retried=True)

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
        if decision.failure == "store":
            self._store_fails = (time.monotonic() + STORE_SECONDS, decision.reason)
        if decision.failure == "room":
            self._full = (time.monotonic() + FULL_SECONDS, decision.reason)

    def _others_may_encode(self, lease: Lease) -> bool:
        """Whether there is another worker, be it busy or loading, that did not refuse a segment of this job."""
        tried = read.attempts(self.ledger, lease.job.id)
        refused = {a.worker for a in tried if a.strike and a.failure == "encoder"} | {self.name}
        at_work = (WorkerState.LOADING, WorkerState.IDLE, WorkerState.RENDERING)
        crew_now = [w for w in read.workers(self.ledger) if w.queue == self.queue and w.drain is None]
        return any(w.state in at_work and w.name not in refused for w in crew_now)

    def _drop(self, lease: Lease, why: str) -> None:
        log.warning("%s: dropped: %s", lease.label, why)
        self.announcer.failed(lease, why, retried=True)

    # Live sessions

    def _make_live(self) -> tuple[LiveStage | None, LiveDoor | None]:
        model = self.spec.load_model()
        if model.live is None or not self.settings.live.sessions:
            return None, None
        path = self.settings.live_socket(self.name)
        stage = LiveStage(
            self.settings.live, model, self.settings.home / "live" / path.stem, self.settings.host.stop_seconds
        )
        return stage, LiveDoor(self.ledger, self.name, path, hold=self.heart.hold_live, wake=self.wake)

    def _open_door(self) -> None:
        """A worker that cannot be reached for live sessions still renders batches."""
        if self._door is None or self._stage is None:
            return
        try:
            self._stage.clear()
            self._door.open()
        except OSError as error:
            log.error("%s: no live sessions: %s: %s", self.name, self._door.path, error)
            self._door = None

    def _serve_live(self) -> bool:
        """Serve the live session that waits, between two segments.  False when there is none."""
        guest = self._door.take() if self._door is not None else None
        if guest is None or self._stage is None or self._renderer is None:
            return False

        def why_stop() -> str | None:
            seen = self.heart.seen
            if self._stopping.is_set():
                return "the worker was stopped"
            if seen is not None and seen.drain is not None:
                return "the worker is drained"
            return "the session's lease is lost" if guest.watch.is_lost(self.settings.lease.ttl_seconds) else None

        self.heart.say(WorkerState.RENDERING, "serves a live session")
        log.info("%s: a live session begins", self.name)
        how = "the session failed"
        try:
            how = self._stage.serve(guest, self._renderer.host, why_stop)
            log.info("%s: the live session ended: %s", self.name, how)
        except Exception as error:
            decision = decide(error, errors_before=0, was_smaller=False, policy=self.policy)
            how = decision.reason
            log.warning("%s: the live session failed: %s", self.name, how, exc_info=decision.failure == "bug")
            if decision.replace_host or decision.failure == "bug":
                self._renderer.host.kill()
        finally:
            self.heart.let_go_live(guest.watch)
            live.release(self.ledger, self.name, guest.watch.token, how)
            self.heart.say(WorkerState.IDLE)  # now it can be asked again
        return True

    # The host

    def _make_renderer(self) -> Renderer:
        spec, model = self.spec, self.spec.load_model()
        preset = model.preset(spec.preset or model.default_preset)
        host = self.settings.host
        return Renderer(
            self.ledger,
            self._store,
            HostSpec(
                engine_module=model.engine,
                engine_settings={**preset.load, **spec.settings},
                devices=spec.device_set,
                log_file=self.settings.logs_dir / f"{spec.name}.host.log",
                python=spec.python,
                env_script=spec.env_script,
                environment=spec.environment,
                load_timeout_seconds=host.load_timeout_seconds,
                stuck_factor=host.stuck_factor,
                stuck_floor_seconds=host.stuck_floor_seconds,
                ranks=spec.world_size,
                silence_seconds=host.rank_silence_seconds,
                text_device=parse_devices(spec.text_device) if spec.text_device else None,
                holder=f"worker {spec.name} of the farm in {self.settings.home}",
                shares_cards=spec.share_card,
            ),
            model,
            host.stop_seconds,
            self.announcer.progressed,
            spec.preset,
        )

    def _warm_up(self) -> bool:
        """Load the engine.  After a failure the next try waits, longer each time; the worker's row says why."""
        assert self._renderer is not None
        if time.monotonic() < self._load_again_at:
            return False
        self.heart.say(WorkerState.LOADING)
        try:
            loaded = self._renderer.warm_up(self._stopping)
        except FarmError as error:
            self._load_failures += 1
            host = self.settings.host
            pause = backoff(self._load_failures, host.restart_delay_seconds, host.restart_delay_max_seconds)
            if isinstance(error, ConfigError):
                pause = host.restart_delay_max_seconds
            self._load_again_at = time.monotonic() + pause
            log.error("%s: the engine could not be loaded: %s", self.name, error)
            state = WorkerState.SICK if self._load_failures >= 3 else WorkerState.LOADING
            self.heart.say(state, f"the engine could not be loaded: {error}")
            return False
        self._load_failures = 0
        report = loaded.report
        log.info(
            "%s: %s %s is warm on %s after %.1f s, %.2f GB",
            self.name,
            loaded.description["id"],
            loaded.description["version"],
            loaded.description["device"],
            report["seconds"],
            report["memory_bytes"] / 1e9,
        )
        self.heart.note_host(
            self._renderer.host.pid,
            self._renderer.restarts,
            {
                "engine": loaded.description["id"],
                "version": loaded.description["version"],
                "device": loaded.description["device"],
                "memory_bytes": report["memory_bytes"],
                "load_seconds": report["seconds"],
                "python": loaded.python,
                **({live.ADDRESS: str(self._door.path)} if self._door is not None else {}),
            },
        )
        self.heart.say(WorkerState.IDLE)
        return True

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
