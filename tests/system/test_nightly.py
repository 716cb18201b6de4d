"""Three nights of a course: one that is too short, one that is killed, and one that finishes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from farm.config import Settings, load_settings
from farm.ledger import Ledger, open_ledger, read
from farm.ledger.migrate import ensure_current
from farm.nightly_config import Nightly, read_nightly
from farm.nightly_forecast import foretell
from farm.nightly_jobs import REPLACED, own_jobs
from farm.states import ArtifactKind, JobState, SegmentKind, SegmentState
from tests.system import material, pattern_engine
from tests.system.stage import QUICK, ROOT, kill_tree, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
PATIENCE_SECONDS = 240.0  # a machine may be busy; nothing here waits for time to pass

NIGHTLY = """
name = "physics"
settle_seconds = 0
[[courses]]
folder = "course"
set = { model = "pattern" }
[window]
start = "22:00"
end = "06:00"
timezone = "UTC"
stop = "STOP"
[summary]
folder = "told"
"""


@dataclass
class Course:
    """A farm without Redis, a course of a few lectures, and a clock that the test sets."""

    root: Path
    settings: Settings
    ledger: Ledger
    started: list[subprocess.Popen[str]]

    @property
    def nightly(self) -> Nightly:
        return read_nightly(self.root / "physics.toml")

    def record(self, name: str, *, seconds: float = 4.0, seed: int = 0) -> None:
        material.sound(self.root / "course" / f"{name}.wav", seconds, seed)

    def set_clock(self, day: int, clock: str) -> float:
        """A time of November 2026, whose second day is a Monday; the nightly reads it at its next look."""
        now = datetime.fromisoformat(f"2026-11-{day:02d}T{clock}").replace(tzinfo=UTC).timestamp()
        staged = self.root / "clock.new"
        staged.write_text(str(now))
        staged.replace(self.root / "clock")
        return now

    def start(self, *words: str | Path) -> subprocess.Popen[str]:
        with (self.root / "log").open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *map(str, words)],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.started.append(process)
        return process

    def crew(self) -> subprocess.Popen[str]:
        return self.start("tests.system.night_crew", "pattern", "plain")

    def begin_night(self) -> subprocess.Popen[str]:
        return self.start("tests.system.one_night", self.root / "physics.toml", self.root / "clock")

    def run_night(self) -> tuple[int, str]:
        """Its exit code and what it told."""
        return end_of(self.begin_night())

    def jobs(self, state: JobState | None = None) -> list[str]:
        states = [state] if state is not None else []
        return [job.name for job in own_jobs(self.nightly, self.ledger, states)]

    def published(self) -> int:
        done = read.jobs(self.ledger, limit=None)
        return sum(job.segments_done for job in done)

    def wait_until(self, what: str, *, segments: int = 0, films: int = 0) -> None:
        def reached() -> bool:
            return self.published() >= segments and len(self.jobs(JobState.SUCCEEDED)) >= films

        wait_for(reached, PATIENCE_SECONDS, what)


def end_of(night: subprocess.Popen[str]) -> tuple[int, str]:
    told, _ = night.communicate(timeout=PATIENCE_SECONDS)
    return night.returncode, told


@pytest.fixture
def course(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Course]:
    for name in [name for name in os.environ if name.startswith("FARM_")]:
        if name not in ("FARM_FFMPEG", "FARM_FACE_MODELS"):
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    for name, value in {
        **QUICK,
        "FARM_HOME": str(home),
        "FARM_MACHINE": "box",
        "TZ": "UTC",
        "PYTHONPATH": str(ROOT),
    }.items():
        monkeypatch.setenv(name, value)
    pattern_engine.install(home)
    (home / "workers.toml").write_text(
        '[workers.cpu]\n[workers.pattern]\nmodel = "pattern"\nsettings = { pace = 0.1 }\n'
    )
    (tmp_path / "course").mkdir()
    material.portrait(tmp_path / "course" / "portrait.png")
    (tmp_path / "physics.toml").write_text(NIGHTLY.replace("STOP", "chunk"))
    settings = load_settings()
    with contextlib.closing(open_ledger(settings.ledger)) as ledger:
        ensure_current(ledger)
        one = Course(tmp_path, settings, ledger, [])
        yield one
        for process in one.started:
            if process.poll() is None:
                kill_tree(process.pid)
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def test_three_nights_with_a_kill_in_between_render_every_lecture_once(course: Course) -> None:
    for seed, name in enumerate("abc"):
        course.record(name, seed=seed)

    # Monday: the window closes when one film is made and others are begun.
    course.set_clock(2, "23:00")
    crew, night = course.crew(), course.begin_night()
    course.wait_until("the first film", films=1, segments=5)
    course.set_clock(3, "06:00")
    code, told = end_of(night)
    assert code == 4, (course.root / "log").read_text()
    made_on_monday = course.jobs(JobState.SUCCEEDED)
    assert f"night of 2026-11-02 22:00: {len(made_on_monday)} film" in told or "left" in told
    left = [job for job in own_jobs(course.nightly, course.ledger, []) if job.name not in made_on_monday]
    assert left and all(job.paused for job in left)

    # By day nothing goes on, the same is not told twice, and people work on their lectures.
    course.set_clock(3, "12:00")
    assert course.run_night() == (4, "")
    wait_for(lambda: not read.running(course.ledger), PATIENCE_SECONDS, "the segment that was given back")
    by_day = course.published()
    changed = left[-1].name
    course.record(changed, seconds=3.0, seed=7)
    course.record("d", seconds=2.0, seed=8)

    # Tuesday: nightly and workers are killed in the middle.
    course.set_clock(3, "22:30")
    night = course.begin_night()
    course.wait_until("work of the second night", segments=by_day + 1)
    kill_tree(night.pid)
    kill_tree(crew.pid)
    night.communicate()
    crew.communicate()
    assert not all(job.paused for job in own_jobs(course.nightly, course.ledger, []) if job.finished_at is None)
    (replaced,) = [job for job in own_jobs(course.nightly, course.ledger, []) if job.state is JobState.CANCELLED]
    assert (replaced.name, replaced.reason) == (changed, REPLACED)

    # The run after the window's end finds the jobs of the killed one, and lets them rest.
    course.set_clock(4, "06:10")
    code, _ = course.run_night()
    assert code == 4
    unfinished = [job for job in own_jobs(course.nightly, course.ledger, []) if job.finished_at is None]
    assert unfinished and all(job.paused for job in unfinished)

    # Wednesday: all is done before the window closes, and a second run has nothing to add.
    course.set_clock(4, "22:10")
    course.crew()
    code, told = course.run_night()
    assert code == 0, (course.root / "log").read_text()
    assert " made." in told
    assert course.run_night() == (0, "")

    jobs = [job for job in own_jobs(course.nightly, course.ledger, []) if job.id != replaced.id]
    assert sorted(job.name for job in jobs) == ["a", "b", "c", "d"]
    assert {job.state for job in jobs} == {JobState.SUCCEEDED}
    for job in jobs:
        film = read.artifact(course.ledger, job.id, ArtifactKind.FILM)
        assert Path(film.path) == course.root / "course" / "films" / f"{job.name}.mp4"
        assert film.facts["frames"] == {changed: 75, "d": 50}.get(job.name, 100)
        published = [a.segment_id for a in read.attempts(course.ledger, job.id) if a.outcome == "succeed"]
        assert len(published) == len(set(published))
    pages = sorted(path.name for path in (course.root / "told").glob("*.html"))
    assert pages == [f"physics-2026-11-0{day}.html" for day in (2, 3, 4)]

    # What the next night would cost is known from these.
    course.record("e", seconds=10.0, seed=9)
    before = len(course.jobs())
    forecast = foretell(course.nightly, course.settings, course.ledger, course.set_clock(5, "12:00"))
    assert (forecast.new, forecast.continued, forecast.is_open) == (1, 0, False)
    assert forecast.device_seconds and forecast.wall_seconds == forecast.device_seconds
    assert len(course.jobs()) == before


def test_a_window_that_closes_at_segments_lets_each_running_segment_end(course: Course) -> None:
    (course.root / "physics.toml").write_text(NIGHTLY.replace("STOP", "segment"))
    course.record("long", seconds=8.0)
    course.set_clock(2, "23:00")
    course.crew()
    night = course.begin_night()
    course.wait_until("a running segment", segments=1)
    (job,) = own_jobs(course.nightly, course.ledger, [])
    wait_for(
        lambda: any(s.kind is SegmentKind.RENDER for s in read.running(course.ledger)),
        PATIENCE_SECONDS,
        "the next segment",
    )
    (running, *_) = [s for s in read.running(course.ledger) if s.kind is SegmentKind.RENDER]
    course.set_clock(3, "06:00")
    assert end_of(night)[0] == 4
    segments = {s.id: s for s in read.segments(course.ledger, job.id)}
    assert segments[running.id].state is SegmentState.SUCCEEDED
    assert read.job(course.ledger, job.id).paused


def test_a_second_nightly_ends_with_75_and_leaves_the_first_alone(course: Course) -> None:
    course.record("a")
    course.set_clock(2, "23:00")
    first = course.begin_night()
    wait_for(lambda: course.jobs() != [], PATIENCE_SECONDS, "the first nightly's job")
    assert course.run_night()[0] == 75
    assert first.poll() is None
    course.set_clock(3, "06:00")
    assert end_of(first)[0] == 4


def test_a_lecture_that_cannot_be_read_is_told_once_and_the_others_are_rendered(course: Course) -> None:
    course.record("a", seconds=1.0)
    (course.root / "course" / "broken.wav").write_bytes(b"not sound")
    course.set_clock(2, "23:00")
    course.crew()
    code, told = course.run_night()
    assert code == 3
    assert "1 film made, 1 could not be taken." in told and "broken.wav" in told
    assert course.run_night() == (3, "")
    course.set_clock(3, "12:00")
    assert course.run_night() == (3, "")
