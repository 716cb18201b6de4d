"""One farm with real workers; each test takes something away from it and sees it go on."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from farm.artifacts import JobFolder
from farm.batch import rows_from
from farm.config import load_settings
from farm.ledger import Ledger, control, read
from farm.ledger.audit import audit
from farm.ledger.values import Segment, Worker
from farm.media.verify import frame_hashes
from farm.roster import load_roster
from farm.states import FINISHED, JobState, SegmentKind, SegmentState, WorkerState
from farm.submission import submit
from farm.trial import render_everywhere
from tests.conftest import do_without, private_folder, redis_program
from tests.system import material
from tests.system.stage import Stage, stage, wait_for

RENDERERS = ("r0", "r1")
PACE = 0.12  # seconds for a chunk of 5 frames
PATIENCE = 120.0
HELD_FRAME = 50  # in the middle of the second segment


@dataclass
class Theatre:
    farm: Stage
    ledger: Ledger

    def submit(self, name: str, seconds: float, **cells: str) -> int:
        folder = self.farm.folder / "in"
        folder.mkdir(exist_ok=True)
        portrait, sound = folder / "p.png", folder / f"{seconds}.wav"
        if not portrait.exists():  # a job that is being prepared must not find it half written
            material.portrait(portrait)
        if not sound.exists():
            material.sound(sound, seconds)
        row = {
            "portrait": str(portrait),
            "audio": str(sound),
            "model": "pattern",
            "size": "64x64",
            "name": name,
        }
        done = submit(self.ledger, load_settings(), rows_from([row | cells]), base=self.farm.folder, source="test")
        return done.intake.job_ids[0]

    def rendering(self, job_id: int, *, at_least: int = 0) -> Segment | None:
        """The job's leased render segment once it is being rendered, of this number or later."""
        for segment in read.running(self.ledger, [job_id]):
            if segment.kind is SegmentKind.RENDER and segment.frames_now and segment.number >= at_least:
                return segment
        return None

    def wait_rendering(self, job_id: int, *, at_least: int = 0) -> Segment:
        found: list[Segment] = []

        def is_rendered() -> bool:
            segment = self.rendering(job_id, at_least=at_least)
            found[:] = [segment] if segment is not None else []
            return bool(found)

        wait_for(is_rendered, PATIENCE, f"job {job_id} is rendered")
        return found[0]

    @contextlib.contextmanager
    def held(self, job_id: int) -> Iterator[Segment]:
        """The job's second segment, which stands still half-way until the end of this."""
        try:
            yield self.wait_rendering(job_id, at_least=1)
        finally:
            self.let_go()

    def hold(self) -> None:
        """Let every film stand still at HELD_FRAME."""
        staged = self.hold_file.with_name("hold.new")
        staged.write_text(str(HELD_FRAME))
        staged.replace(self.hold_file)

    def let_go(self) -> None:
        self.hold_file.unlink(missing_ok=True)

    @property
    def hold_file(self) -> Path:
        return Path(self.farm.environment["PATTERN_HOLD"])

    def wait_asked_to_end(self, name: str, before: int) -> None:
        """Until this worker has told its host to end at the next chunk once more than `before`."""
        wait_for(lambda: self.times_asked_to_end(name) > before, PATIENCE, "the host is asked to end")

    def times_asked_to_end(self, name: str) -> int:
        return self.farm.log_of(name).count("the host is asked to end at its next chunk")

    def wait_ended(self, *job_ids: int) -> list[JobState]:
        def ended() -> bool:
            return all(read.job(self.ledger, job_id).state in FINISHED for job_id in job_ids)

        wait_for(ended, 2 * PATIENCE, f"jobs {job_ids} end")
        return [read.job(self.ledger, job_id).state for job_id in job_ids]

    def worker(self, name: str) -> Worker:
        return next(w for w in read.workers(self.ledger) if w.name.partition("@")[0] == name)

    def holder(self, segment: Segment) -> str:
        assert segment.leased_by is not None
        return segment.leased_by.partition("@")[0]

    def film(self, job_id: int) -> list[str]:
        return frame_hashes(Path(read.films(self.ledger, [job_id])[job_id].path))

    def happened(self, job_id: int, event: str) -> int:
        return sum(e.event == event for e in read.events(self.ledger, job_id=job_id))


@pytest.fixture(scope="module")
def theatre() -> Iterator[Theatre]:
    if redis_program() is None:
        do_without("no private Redis for a farm to recover")
    with (
        # Beats tell the frames, so that a test finds a segment while most of it is still to come.
        private_folder("farm-hold-") as folder,
        stage(
            FARM_SEGMENTS__SECONDS="2",
            FARM_SEGMENTS__FIRST_SECONDS="1",
            FARM_LEASE__BEAT_SECONDS="0.3",
            PATTERN_HOLD=str(folder / "hold"),
        ) as farm,
        pytest.MonkeyPatch.context() as env,
    ):
        settings = {"pace": PACE}
        tables = {name: {"model": "pattern", "settings": settings} for name in RENDERERS}
        farm.write_roster({"cpu0": {}, **tables, "full": {"model": "pattern", "preset": "apart"}}, segment_seconds=2)
        for key, value in farm.env.items():
            if key.startswith("FARM_"):
                env.setenv(key, value)
        for name in ("cpu0", *RENDERERS):
            farm.start_worker(name)
        farm.start_worker("full", environment={"FARM_ROOM__MIN_FREE_DISK_GB": "1e9"})
        with contextlib.closing(farm.open()) as ledger:
            farm.wait_idle(["cpu0", *RENDERERS])
            yield Theatre(farm, ledger)
            broken: Sequence[object] = audit(ledger, load_settings(), check_files=True)
            assert not broken, broken


@pytest.fixture(scope="module")
def undisturbed(theatre: Theatre) -> list[str]:
    """Frames of the film of six seconds that nothing happened to."""
    job_id = theatre.submit("undisturbed", 6.0)
    theatre.wait_ended(job_id)
    return theatre.film(job_id)


def test_a_zombie_is_fenced_its_host_is_dead_before_and_the_film_is_the_same(
    theatre: Theatre, undisturbed: list[str]
) -> None:
    theatre.hold()
    job_id = theatre.submit("zombie", 6.0)
    with theatre.held(job_id) as segment:
        name = theatre.holder(segment)
        host = theatre.worker(name).host_pid
        process = theatre.farm.workers[name]
        process.send_signal(signal.SIGSTOP)
    try:
        wait_for(
            lambda: any(
                s.id == segment.id and s.attempt > segment.attempt for s in read.segments(theatre.ledger, job_id)
            ),
            PATIENCE,
            "another worker takes it",
        )
        assert host is not None and not is_running(host)
        assert theatre.wait_ended(job_id) == [JobState.SUCCEEDED]
    finally:
        process.send_signal(signal.SIGCONT)
    theatre.farm.wait_idle([name])
    assert theatre.film(job_id) == undisturbed
    published = [e.segment_id for e in read.events(theatre.ledger, job_id=job_id) if e.event == "succeed"]
    assert len(published) == len(set(published))


def is_running(pid: int) -> bool:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def test_a_dead_workers_segment_is_rendered_elsewhere_and_none_of_its_processes_stays(
    theatre: Theatre, undisturbed: list[str]
) -> None:
    theatre.hold()
    job_id = theatre.submit("dead", 6.0)
    with theatre.held(job_id) as segment:
        name = theatre.holder(segment)
        family = [p.pid for p in psutil.Process(theatre.farm.workers[name].pid).children(recursive=True)]
        theatre.farm.workers[name].kill()
        theatre.farm.workers[name].wait()
    assert theatre.wait_ended(job_id) == [JobState.SUCCEEDED]
    wait_for(lambda: not any(is_running(pid) for pid in family), PATIENCE, "its host and encoder end")
    assert theatre.film(job_id) == undisturbed
    assert theatre.happened(job_id, "expire") == 1
    theatre.farm.start_worker(name)
    theatre.farm.wait_idle([name])


def test_a_worker_that_comes_back_takes_its_lease_back_without_waiting_for_its_end(theatre: Theatre) -> None:
    theatre.hold()
    job_id = theatre.submit("back", 5.0)
    with theatre.held(job_id) as segment:
        name = theatre.holder(segment)
        theatre.farm.workers[name].kill()
        theatre.farm.workers[name].wait()
    theatre.farm.start_worker(name)
    assert theatre.wait_ended(job_id) == [JobState.SUCCEEDED]
    theatre.farm.wait_idle([name])


def test_a_segment_that_kills_its_host_is_given_up_with_the_reason_and_its_neighbour_is_not(
    theatre: Theatre, undisturbed: list[str]
) -> None:
    poison = theatre.submit("poison", 5.0, prompt="die:30", priority="50")
    neighbour = theatre.submit("neighbour", 6.0)
    assert theatre.wait_ended(poison, neighbour) == [JobState.FAILED, JobState.SUCCEEDED]
    job = read.job(theatre.ledger, poison)
    assert job.reason is not None
    assert job.reason.startswith("given up after 3 attempts; the last one: the host was killed by SIGKILL")
    tried = [a for a in read.attempts(theatre.ledger, poison) if a.failure == "device"]
    assert len(tried) == 3, read.attempts(theatre.ledger, poison)
    assert len({a.worker for a in tried[:2]}) == 2, "the second attempt was not given to the other worker"
    assert theatre.film(neighbour) == undisturbed

    # By hand, one segment goes back into the queue; it is the same poison.
    theatre.farm.farm("jobs", "retry", poison, "--segment", "2")
    assert theatre.wait_ended(poison) == [JobState.FAILED]
    assert len([a for a in read.attempts(theatre.ledger, poison) if a.failure == "device"]) == 6
    for name in RENDERERS:
        control.resume_worker(theatre.ledger, f"{name}@stage")


def test_a_host_that_hangs_is_killed_and_told(theatre: Theatre) -> None:
    job_id = theatre.submit("hang", 5.0, prompt="hang:30")
    wait_for(lambda: theatre.happened(job_id, "retry") > 0, PATIENCE, "the stuck host is noticed")
    control.cancel(theatre.ledger, job_id)
    wait_for(lambda: not read.running(theatre.ledger, [job_id]), PATIENCE, "nobody tries it again")
    failed = next(a for a in read.attempts(theatre.ledger, job_id) if a.outcome == "retry")
    assert failed.reason is not None and "showed no progress for 8 s while rendering; it was killed" in failed.reason


def test_a_cancelled_render_stops_at_a_chunk_and_leaves_its_host_warm(theatre: Theatre) -> None:
    job_id = theatre.submit("cancelled", 30.0)
    segment = theatre.wait_rendering(job_id)
    name = theatre.holder(segment)
    host = theatre.worker(name).host_pid
    theatre.farm.farm("jobs", "cancel", job_id)
    wait_for(lambda: theatre.worker(name).state is WorkerState.IDLE, PATIENCE, "the worker is free")
    assert theatre.worker(name).host_pid == host
    assert read.job(theatre.ledger, job_id).state is JobState.CANCELLED
    folder = JobFolder(load_settings().artifacts_dir, job_id).path
    assert folder.is_dir() and not list(folder.rglob("*.part*"))


def test_a_paused_batch_gives_its_segment_back_and_goes_on_after_resume(
    theatre: Theatre, undisturbed: list[str]
) -> None:
    job_id = theatre.submit("paused", 6.0)
    theatre.wait_rendering(job_id, at_least=1)
    batch_id = read.job(theatre.ledger, job_id).batch_id
    theatre.farm.farm("batches", "pause", batch_id)
    wait_for(lambda: not read.running(theatre.ledger, [job_id]), PATIENCE, "the segment is given back")
    time.sleep(1.0)  # long enough for a worker to take it by mistake
    assert not read.running(theatre.ledger, [job_id])
    theatre.farm.farm("batches", "resume", batch_id)
    assert theatre.wait_ended(job_id) == [JobState.SUCCEEDED]
    assert theatre.film(job_id) == undisturbed
    assert all(not a.strike for a in read.attempts(theatre.ledger, job_id))


def test_a_paused_worker_gives_back_at_its_next_chunk_and_the_other_goes_on(theatre: Theatre) -> None:
    theatre.hold()
    job_id = theatre.submit("drained", 6.0)
    with theatre.held(job_id) as segment:
        name = theatre.holder(segment)
        before = theatre.times_asked_to_end(name)
        control.drain_worker(theatre.ledger, f"{name}@stage", now=True)  # what `farm workers pause` does
        theatre.wait_asked_to_end(name, before)
    try:
        wait_for(lambda: theatre.worker(name).state is WorkerState.DRAINING, PATIENCE, "the worker drains")
        assert theatre.wait_ended(job_id) == [JobState.SUCCEEDED]
        events = read.events(theatre.ledger, limit=100_000)
        drained = max(e.id for e in events if e.event == "drain")
        assert not [e for e in events if e.id > drained and e.event == "lease" and e.worker == f"{name}@stage"]
        assert theatre.happened(job_id, "interrupt") == 1
    finally:
        theatre.farm.farm("workers", "resume", name)
    theatre.farm.wait_idle([name])


def test_work_that_no_worker_can_take_is_said_with_the_reason(theatre: Theatre) -> None:
    job_id = theatre.submit("apart", 1.0, preset="apart")

    def waits() -> bool:
        segments = read.segments(theatre.ledger, job_id)
        return len(segments) > 1 and segments[1].state is SegmentState.QUEUED

    wait_for(waits, PATIENCE, "the segment waits")
    wait_for(lambda: theatre.worker("full").reason is not None, PATIENCE, "the worker says why")
    said = theatre.farm.farm("status").stdout
    assert "1 waiting: no worker can take work of queue pattern-apart: full@stage takes nothing: only" in said
    assert "less than room.min_free_disk_gb" in said
    assert "less than room.min_free_disk_gb" in theatre.farm.farm("workers", "list").stdout
    theatre.farm.farm("jobs", "cancel", job_id)


def test_a_second_process_of_one_name_ends_the_first(theatre: Theatre) -> None:
    first = theatre.farm.workers["r1"]
    theatre.farm.start_worker("r1")
    wait_for(lambda: first.poll() is not None, PATIENCE, "the first process ends")
    theatre.farm.wait_idle(["r1"])
    assert theatre.worker("r1").pid == theatre.farm.workers["r1"].pid != first.pid


def test_sigterm_gives_the_segment_back_and_says_goodbye(theatre: Theatre, undisturbed: list[str]) -> None:
    theatre.hold()
    job_id = theatre.submit("sigterm", 6.0)
    with theatre.held(job_id) as segment:
        name = theatre.holder(segment)
        before = theatre.times_asked_to_end(name)
        os.kill(theatre.farm.workers[name].pid, signal.SIGTERM)
        theatre.wait_asked_to_end(name, before)
    assert theatre.farm.workers[name].wait(PATIENCE) == 0
    assert theatre.worker(name).state is WorkerState.STOPPED
    assert theatre.wait_ended(job_id) == [JobState.SUCCEEDED]
    assert theatre.happened(job_id, "interrupt") == 1 and theatre.happened(job_id, "expire") == 0
    assert theatre.film(job_id) == undisturbed


@pytest.mark.slow
def test_a_deep_examination_renders_through_every_worker_and_names_the_one_that_cannot(theatre: Theatre) -> None:
    for name in RENDERERS:
        if theatre.farm.workers[name].poll() is not None:
            theatre.farm.start_worker(name)
    theatre.farm.wait_idle(["cpu0", *RENDERERS])
    findings = {
        f.what: f for f in render_everywhere(theatre.ledger, load_settings(), load_roster(), patience_seconds=25)
    }
    assert {what: f.verdict for what, f in findings.items()} == {
        "film by cpu0": "well",
        "film by r0": "well",
        "film by r1": "well",
        "film by full": "wrong",
    }
    assert "25 frames on cpu" in findings["film by r0"].found
    assert "less than room.min_free_disk_gb" in findings["film by full"].found
    assert not read.queue_depths(theatre.ledger)
