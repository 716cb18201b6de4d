#!/usr/bin/env python3
"""Break a farm on purpose for a while, then audit its ledger and compare every film with an undisturbed one.

    scripts/chaos.py --seed 1 --kills 500 --drops 1000 --flushes 20 --minutes 25 --ledger postgresql

Everything is real: a Redis, an SQLite or PostgreSQL ledger, workers with host processes, ffmpeg, the command line.  The
engine is tests/system/pattern_engine.py, whose frames tell a wrong carry at once, and the preview engine beside it.
Ends with 0 when nothing was lost, nothing was published twice and every film is right.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from redis.exceptions import RedisError

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from verdict import conclude, say  # noqa: E402

from farm.config import load_settings  # noqa: E402
from farm.errors import FarmError  # noqa: E402
from farm.ledger import Ledger, control, read  # noqa: E402
from farm.ledger.audit import audit  # noqa: E402
from farm.media.verify import frame_hashes  # noqa: E402
from farm.states import ArtifactKind, JobState, SegmentKind, WorkerState  # noqa: E402
from tests.conftest import private_folder  # noqa: E402
from tests.system import material  # noqa: E402
from tests.system.stage import PostgresServer, Stage, kill_tree, stage  # noqa: E402

LENGTHS = (3.3, 5.0, 8.2, 11.7, 16.0, 21.4)  # seconds of the sounds that films are made of
DISK = "size=900m"
PATIENCE_SECONDS = 90.0  # without any fault that could be done, when the minutes are over
PORTRAIT = ROOT / "examples/portraits/astronaut.jpg"
KILL_WEIGHTS = {"host": 40, "worker": 30, "assembler": 12, "reaper": 8, "cli": 10}
POINTS = {"claimed": 0.004, "written": 0.004, "renamed": 0.008, "committed": 0.008, "giving back": 0.02}
SETTINGS = {
    # Faults come from outside here, thousands of them; no segment is to be given up because of them.
    "FARM_RETRY__MAX_ERRORS": "1000000",
    "FARM_RETRY__MAX_LOSSES": "1000000",
    "FARM_RETRY__MAX_DELAY_SECONDS": "0.5",
}


@dataclass
class Kill:
    kind: str
    at: float  # by the ledger's clock
    segment_id: int | None  # what the victim held
    attempt: int | None


@dataclass
class Story:
    """What was done to the farm and what came of it."""

    done: Counter[str] = field(default_factory=Counter)
    kills: list[Kill] = field(default_factory=list)
    forgiven: int = 0
    not_possible: list[str] = field(default_factory=list)


class Chaos:
    def __init__(self, options: argparse.Namespace, farm: Stage, ledger: Ledger, story: Story) -> None:
        self.options = options
        self.farm = farm
        self.ledger = ledger
        self.story = story
        self.dice = random.Random(options.seed)
        self.postgres: PostgresServer | None = None
        self.disk: Path | None = None
        self.renderers = [f"r{i}" for i in range(max(2, options.workers - 2))]
        self.cpu = ["cpu0", "cpu1"]
        self.previews = ["pv"] if options.preview else []
        self.started: Counter[str] = Counter()
        self.restart_at: dict[str, float] = {}
        self.lock = threading.Lock()
        self.later: list[tuple[float, Callable[[], object]]] = []
        self.submitting: subprocess.Popen[bytes] | None = None
        self.to_submit: list[Path] = []
        self.batches = 0
        self.faults_on = True

    # The cast

    @property
    def names(self) -> list[str]:
        return [*self.cpu, *self.renderers, *self.previews]

    def write_roster(self) -> None:
        tables: dict[str, dict[str, Any]] = {name: {} for name in self.cpu}
        for number, name in enumerate(self.renderers):
            slow = 7.0 if number == len(self.renderers) - 1 else 0.0  # longer than a lease
            tables[name] = {"model": "pattern", "settings": {"pace": self.options.pace, "load_seconds": slow}}
        for name in self.previews:
            tables[name] = {"model": "preview"}
        self.farm.write_roster(tables)

    def start(self, name: str) -> None:
        self.started[name] += 1
        faults: dict[str, Any] = {"seed": f"{self.options.seed} {name} {self.started[name]}"}
        if self.faults_on:
            faults |= {"points": POINTS, "log": str(self.farm.folder / "points.log")}
        if name == "r1":
            faults["clock_seconds"] = 3600 * (-1) ** self.started[name]
        self.farm.start_worker(name, **faults)

    def keep_workers(self) -> None:
        """Start dead workers again, most soon, some only after their leases ran out."""
        for name in self.names:
            process = self.farm.workers.get(name)
            if process is not None and process.poll() is None:
                continue
            if process is not None and name not in self.restart_at:
                away = 9.0 if self.dice.random() < 0.15 else self.dice.uniform(0.1, 2.0)
                self.restart_at[name] = time.monotonic() + away
            if time.monotonic() >= self.restart_at.get(name, 0.0):
                self.restart_at.pop(name, None)
                self.start(name)

    # What people do

    def rows(self, names: str) -> list[dict[str, Any]]:
        made: list[dict[str, Any]] = []
        for number in range(min(self.options.films, len(LENGTHS))):
            made.append(
                {
                    "portrait": self.farm.folder / f"in/p{number}.png",
                    "audio": self.farm.folder / f"in/a{number}.wav",
                    "name": f"pattern{number}-{names}",
                    "model": "pattern",
                    "size": "64x64",
                    "continuity": "parallel" if number % 2 else "carry",
                }
            )
        if self.options.preview:
            speech = self.farm.folder / "in/speech.wav"
            common = {"model": "preview", "size": "256x256", "continuity": "carry"}
            made.append({"portrait": PORTRAIT, "audio": speech, "name": f"preview0-{names}"} | common)
        return made

    def submit(self) -> None:
        """Keep enough jobs open; a submit that was killed is repeated until it ends well."""
        if self.submitting is not None:
            if self.submitting.poll() is None:
                return
            if self.submitting.returncode == 0:
                self.to_submit.pop(0)
            elif self.submitting.returncode > 0:
                self.story.done["submits refused"] += 1
            self.submitting = None
        if not self.to_submit and self.faults_on:
            with contextlib.suppress(FarmError):
                if read.unfinished(self.ledger, self.job_ids()) < 2 * len(self.renderers):
                    self.batches += 1
                    rows = self.rows(str(self.batches))
                    rows = self.dice.sample(rows, min(3, len(rows)))
                    self.to_submit.append(material.batch(self.farm.folder / f"in/b{self.batches}.csv", rows))
        if self.to_submit:
            films = self.farm.folder / "films"
            wait = ["--wait"] if self.dice.random() < 0.3 and self.faults_on else []
            with (self.farm.home / "logs" / "submit.log").open("ab") as output:
                self.submitting = subprocess.Popen(
                    [sys.executable, "-m", "farm.cli", "submit", self.to_submit[0], "-o", films, *wait],
                    cwd=self.farm.folder,
                    env=self.farm.env,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                )

    def job_ids(self) -> list[int]:
        return [job.id for job in read.jobs(self.ledger, limit=None)]

    def forgive(self) -> None:
        """What a person does in the morning: sick workers are resumed, blocked jobs are forgiven their workers."""
        for worker in read.workers(self.ledger):
            if worker.state is WorkerState.SICK:
                control.resume_worker(self.ledger, worker.name)
                self.story.forgiven += 1
        for item in read.stuck(self.ledger):
            for job_id in item.job_ids:
                if "too often" in item.reason:
                    control.retry(self.ledger, job_id)
                    self.story.forgiven += 1

    # Faults

    def kill(self) -> None:
        kinds = list(KILL_WEIGHTS)
        kind = self.dice.choices(kinds, [KILL_WEIGHTS[k] for k in kinds])[0]
        victim = getattr(self, f"_find_{kind}")()
        if victim is None:
            return
        process, worker = victim
        held = self._held_by(worker)
        now = self.ledger.now()
        try:
            process.kill()
        except psutil.Error:
            return
        self.story.done[f"kill {kind}"] += 1
        self.story.kills.append(Kill(kind, now, held[0] if held else None, held[1] if held else None))

    def _held_by(self, worker: str | None) -> tuple[int, int] | None:
        if worker is None:
            return None
        for segment in read.running(self.ledger):
            if segment.leased_by == f"{worker}@stage":
                return segment.id, segment.attempt
        return None

    def _process(self, name: str) -> psutil.Process | None:
        process = self.farm.workers.get(name)
        if process is None or process.poll() is not None:
            return None
        with contextlib.suppress(psutil.Error):
            return psutil.Process(process.pid)
        return None

    def _child(self, name: str, sign: str) -> psutil.Process | None:
        parent = self._process(name)
        with contextlib.suppress(psutil.Error):
            for child in parent.children() if parent is not None else []:
                if any(sign in word for word in child.cmdline()):
                    return child
        return None

    def _find_host(self) -> tuple[psutil.Process, str] | None:
        names = [*self.renderers, *self.previews]
        self.dice.shuffle(names)
        for name in names:
            child = self._child(name, "workers.host.child")
            if child is not None:
                return child, name
        return None

    def _find_worker(self) -> tuple[psutil.Process, str] | None:
        name = self.dice.choice(self.names)
        process = self._process(name)
        return (process, name) if process is not None else None

    def _find_assembler(self) -> tuple[psutil.Process, str] | None:
        busy = [s.leased_by.partition("@")[0] for s in read.running(self.ledger) if s.leased_by]
        for name in sorted(self.cpu, key=lambda name: name not in busy):
            child = self._child(name, "multiprocessing.spawn")
            if child is not None:
                return child, name
        return None

    def _find_reaper(self) -> tuple[psutil.Process, str] | None:
        from sqlalchemy import text

        with self.ledger.read() as session:
            holder = session.scalar(text("SELECT holder FROM locks WHERE name = 'reaper'"))
        name = str(holder or "").partition("@")[0]
        process = self._process(name)
        return (process, name) if process is not None else None

    def _find_cli(self) -> tuple[psutil.Process, None] | None:
        if self.submitting is None or self.submitting.poll() is not None:
            return None
        with contextlib.suppress(psutil.Error):
            return psutil.Process(self.submitting.pid), None
        return None

    def drop(self) -> None:
        self.story.done["connections dropped"] += self.farm.redis.drop_connections()

    def flush(self) -> None:
        self.farm.redis.flush()
        self.story.done["redis flushed"] += 1

    def restart_redis(self) -> None:
        self.farm.redis.restart()
        self.story.done["redis restarted empty"] += 1

    def stop_redis(self) -> None:
        self.farm.redis.signal(signal.SIGSTOP)
        self.story.done["redis stopped (SIGSTOP)"] += 1
        self.after(self.dice.uniform(3, 12), lambda: self.farm.redis.signal(signal.SIGCONT))

    def restart_postgres(self) -> None:
        if self.postgres is not None:
            self.postgres.restart()
            self.story.done["postgresql restarted (immediate)"] += 1

    def occupy_ledger(self) -> None:
        seconds = self.dice.uniform(1, 6)
        self.story.done["ledger busy"] += 1
        if self.postgres is None:
            other = sqlite3.connect(
                self.farm.home / "ledger.db", isolation_level=None, timeout=10, check_same_thread=False
            )
            with contextlib.suppress(sqlite3.OperationalError):
                other.execute("BEGIN IMMEDIATE")
            self.after(seconds, other.close)
            return
        import psycopg

        with contextlib.suppress(psycopg.OperationalError):
            holder = psycopg.connect(self.farm.ledger_url)
            holder.execute("LOCK TABLE segments IN EXCLUSIVE MODE")
            self.after(seconds, holder.close)

    def fill_disk(self) -> None:
        if self.disk is None:
            return
        balloon = self.disk / "balloon"
        with contextlib.suppress(OSError), balloon.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 20))
        self.story.done["disk full"] += 1
        self.after(self.dice.uniform(1, 5), lambda: balloon.unlink(missing_ok=True))

    def freeze_worker(self) -> None:
        """A zombie: stopped for three leases, then let go on."""
        found = self._find_worker()
        if found is None:
            return
        process, name = found
        held = self._held_by(name)
        now = self.ledger.now()
        process.suspend()
        self.story.done["worker frozen for three leases"] += 1
        self.story.kills.append(Kill("freeze", now, *(held or (None, None))))

        def thaw() -> None:
            with contextlib.suppress(psutil.Error):
                process.resume()

        self.after(3 * float(self.farm.environment["FARM_LEASE__TTL_SECONDS"]), thaw)

    def pause_job(self) -> None:
        running = [job for job in read.jobs(self.ledger, states=[JobState.RENDERING], limit=None) if not job.paused]
        if running:
            job = self.dice.choice(running)
            control.pause(self.ledger, job.id)
            self.story.done["job paused"] += 1
            self.after(self.dice.uniform(0.5, 3), lambda: control.resume(self.ledger, job.id))

    def drain_worker(self) -> None:
        name = f"{self.dice.choice(self.names)}@stage"
        with contextlib.suppress(FarmError):
            control.drain_worker(self.ledger, name, now=self.dice.random() < 0.5)
            self.story.done["worker drained"] += 1
            self.after(self.dice.uniform(0.5, 3), lambda: control.resume_worker(self.ledger, name))

    def after(self, seconds: float, what: Callable[[], object]) -> None:
        """Do `what` later, from another thread: this one may be waiting for just that."""
        with self.lock:
            self.later.append((time.monotonic() + seconds, what))

    def do_later(self, *, all_of_it: bool = False) -> None:
        with self.lock:
            due = [item for item in self.later if all_of_it or item[0] <= time.monotonic()]
            self.later = [item for item in self.later if item not in due]
        for _, what in due:
            try:
                what()
            except (FarmError, OSError, RedisError, sqlite3.Error):
                self.after(1, what)

    def keep_doing_later(self) -> None:
        while True:
            self.do_later()
            time.sleep(0.05)

    # The run

    def quotas(self) -> dict[str, tuple[Callable[[], None], Callable[[], int], int]]:
        """Each fault: what does it, how often it was done, how often it is wanted."""
        count, wanted = self.story.done, self.options
        few = max(1, wanted.kills // 40)
        quotas: dict[str, tuple[Callable[[], None], Callable[[], int], int]] = {
            "kill": (self.kill, lambda: sum(k.kind != "freeze" for k in self.story.kills), wanted.kills),
            "drop": (self.drop, lambda: count["connections dropped"], wanted.drops),
            "flush": (self.flush, lambda: count["redis flushed"], wanted.flushes),
            "redis restart": (
                self.restart_redis,
                lambda: count["redis restarted empty"],
                max(1, wanted.flushes // 3),
            ),
            "redis stop": (self.stop_redis, lambda: count["redis stopped (SIGSTOP)"], max(1, few // 3)),
            "busy": (self.occupy_ledger, lambda: count["ledger busy"], few),
            "freeze": (self.freeze_worker, lambda: count["worker frozen for three leases"], max(1, few // 2)),
            "pause": (self.pause_job, lambda: count["job paused"], few),
            "drain": (self.drain_worker, lambda: count["worker drained"], few),
        }
        if self.disk is not None:
            quotas["disk"] = (self.fill_disk, lambda: count["disk full"], max(1, few // 2))
        if self.postgres is not None:
            quotas["postgres"] = (
                self.restart_postgres,
                lambda: count["postgresql restarted (immediate)"],
                max(1, few // 2),
            )
        return quotas

    def rage(self) -> None:
        """Faults until every quota is met, spread over the minutes."""
        threading.Thread(target=self.keep_doing_later, daemon=True).start()
        began, quotas, looked = time.monotonic(), self.quotas(), 0.0
        progress = (began, -1)  # when a fault was last done, and how many there were then
        seconds = self.options.minutes * 60
        while True:
            past = (time.monotonic() - began) / seconds
            self.keep_workers()
            try:
                self.submit()
                if time.monotonic() - looked > 2:
                    self.forgive()
                    looked = time.monotonic()
                behind = [name for name, (_, done, wanted) in quotas.items() if done() < wanted * min(past, 1.0)]
                if behind:
                    quotas[self.dice.choice(behind)][0]()
                elif past >= 1:
                    return
            except (FarmError, OSError, RedisError) as error:
                say(f"the ledger or Redis was away for us too: {str(error)[:120]}")
            done = self.story.done.total()
            if done != progress[1] or past < 1:
                progress = (time.monotonic(), done)
            elif time.monotonic() - progress[0] > PATIENCE_SECONDS:
                say("gave up waiting for the quotas")
                return
            time.sleep(0.05)

    def calm(self, seconds: float) -> bool:
        """No more faults; True when every job ended within `seconds`."""
        self.faults_on = False
        self.do_later(all_of_it=True)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.keep_workers()
            with contextlib.suppress(FarmError):
                self.submit()
                self.forgive()
                if not self.to_submit and not read.unfinished(self.ledger, self.job_ids()):
                    return True
            time.sleep(0.2)
        return False


def make_inputs(folder: Path, preview: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, seconds in enumerate(LENGTHS):
        material.portrait(folder / f"p{number}.png", number)
        material.sound(folder / f"a{number}.wav", seconds, number)
    if preview:
        material.sound(folder / "speech.wav", 2.4, 9)


def undisturbed(chaos: Chaos) -> dict[str, list[str]]:
    """Every film once, before anything happens to the farm: its frames by the first word of its name."""
    chaos.faults_on = False
    chaos.keep_workers()
    batch = material.batch(chaos.farm.folder / "in/calm.csv", chaos.rows("calm"))
    chaos.farm.farm("submit", batch, "-o", chaos.farm.folder / "films", "--wait")
    chaos.faults_on = True
    films = (chaos.farm.folder / "films").glob("*-calm.mp4")
    return {film.stem.partition("-")[0]: frame_hashes(film) for film in films}


def recovery_times(ledger: Ledger, kills: list[Kill]) -> list[float]:
    """Seconds from each fault to the next attempt of what its victim held; what it had published does not count."""
    found: list[float] = []
    events = read.events(ledger, limit=10_000_000)
    for kill in kills:
        if kill.segment_id is None or kill.kind == "cli":
            continue
        mine = [e for e in events if e.segment_id == kill.segment_id]
        if any(e.event == "succeed" and e.attempt == kill.attempt for e in mine):
            continue
        again = [e.at for e in mine if e.event == "lease" and (e.attempt or 0) > (kill.attempt or 0)]
        if again:
            found.append(max(0.0, min(again) - kill.at))
    return sorted(found)


def judge(chaos: Chaos, reference: dict[str, list[str]], ended: bool) -> dict[str, Any]:
    """The report: what was done, what was wasted, how fast it went on, and what is wrong."""
    ledger, story = chaos.ledger, chaos.story
    points = chaos.farm.folder / "points.log"
    if points.exists():
        for line in points.read_text().splitlines():
            story.done[f"died: {line}"] += 1
    jobs = read.jobs(ledger, limit=None)
    films = read.films(ledger, [job.id for job in jobs])
    wrong = [] if ended else [f"{read.unfinished(ledger, chaos.job_ids())} jobs never ended"]
    wrong += [f"job {job.id} is {job.state}: {job.reason}" for job in jobs if job.state is not JobState.SUCCEEDED]
    for job in jobs:
        film = films.get(job.id)
        if film is None or not Path(film.path).is_file():
            wrong.append(f"job {job.id} has no film")
        elif frame_hashes(Path(film.path)) != reference[job.name.partition("-")[0]]:
            wrong.append(f"the film of job {job.id} ({job.name}) has other frames")
    os.environ.update({key: value for key, value in chaos.farm.env.items() if key.startswith("FARM_")})
    violations = [str(violation) for violation in audit(ledger, load_settings(), check_files=True)]
    attempts: Counter[str] = Counter()
    wasted = 0
    publications: Counter[int] = Counter()
    for job in jobs:
        kinds = {s.id: s.kind for s in read.segments(ledger, job.id)}
        for attempt in read.attempts(ledger, job.id):
            attempts[f"{attempt.outcome} {attempt.failure or ''}".strip()] += 1
            wasted += kinds[attempt.segment_id] is SegmentKind.RENDER and attempt.outcome != "succeed"
    for event in read.events(ledger, limit=10_000_000):
        if event.event == "succeed" and event.segment_id is not None:
            publications[event.segment_id] += 1
    twice = [segment for segment, count in publications.items() if count > 1]
    kills = sum(k.kind != "freeze" for k in story.kills) + sum(n for k, n in story.done.items() if k.startswith("died"))
    times = recovery_times(ledger, story.kills)
    return {
        "seed": chaos.options.seed,
        "ledger": chaos.options.ledger,
        "minutes": chaos.options.minutes,
        "workers": len(chaos.names),
        "kills": kills,
        "faults": dict(sorted(story.done.items())),
        "jobs": len(jobs),
        "segments published": len(publications),
        "published twice": len(twice),
        "lost": len(wrong),
        "films compared frame by frame": len(films),
        "frames compared": sum(job.total_frames or 0 for job in jobs),
        "render attempts without a result": wasted,
        "render attempts without a result per kill": round(wasted / max(1, kills), 3),
        "attempts by outcome": dict(sorted(attempts.items())),
        "recovery seconds": {
            "measured": len(times),
            "p50": round(statistics.median(times), 2) if times else None,
            "p99": round(times[min(len(times) - 1, int(0.99 * len(times)))], 2) if times else None,
            "max": round(times[-1], 2) if times else None,
            "lease": float(chaos.farm.environment["FARM_LEASE__TTL_SECONDS"]),
            "sweep": float(chaos.farm.environment["FARM_LEASE__SWEEP_SECONDS"]),
        },
        "workers and jobs forgiven": story.forgiven,
        "not possible here": story.not_possible,
        "wrong": wrong + violations + [f"segment {segment} was published twice" for segment in twice],
        "artifacts": {kind.value: sum(len(read.artifacts(ledger, j.id, kind)) for j in jobs) for kind in ArtifactKind},
    }


@contextlib.contextmanager
def small_disk(folder: Path, story: Story) -> Iterator[Path | None]:
    """A file system of its own at `folder`, small enough to be filled; None where that needs rights we lack."""
    folder.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", DISK, "tmpfs", folder], capture_output=True, check=False)
    if mounted.returncode:
        story.not_possible.append("disk full: this user may not mount a small file system")
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=False)


def run(options: argparse.Namespace) -> dict[str, Any]:
    story = Story()
    with contextlib.ExitStack() as stack:
        root = stack.enter_context(private_folder("farm-chaos-"))
        disk = stack.enter_context(small_disk(root / "disk", story))
        postgres, url = None, ""
        if options.ledger == "postgresql":
            postgres = PostgresServer(stack.enter_context(private_folder("farm-postgres-")))
            stack.callback(postgres.stop)
            postgres.start()
            url = postgres.make_database("farm")
        farm = stack.enter_context(stage(root / "disk", url, **SETTINGS))
        ledger = farm.open()
        chaos = Chaos(options, farm, ledger, story)
        chaos.postgres, chaos.disk = postgres, disk
        chaos.write_roster()
        make_inputs(farm.folder / "in", options.preview)
        (farm.home / "logs").mkdir(parents=True, exist_ok=True)
        say("rendering the undisturbed films")
        reference = undisturbed(chaos)
        say(f"{len(reference)} films are known; now for {options.minutes:g} minutes of faults, seed {options.seed}")
        try:
            chaos.rage()
            say(f"no more faults; waiting for {read.unfinished(ledger, chaos.job_ids())} jobs")
            ended = chaos.calm(options.patience)
        finally:
            chaos.do_later(all_of_it=True)
            if chaos.submitting is not None:
                kill_tree(chaos.submitting.pid)
                chaos.submitting.wait()
        farm.stop_workers()
        say("auditing, and comparing every film")
        report = judge(chaos, reference, ended)
        if report["wrong"] and options.keep:
            subprocess.run(["cp", "-a", farm.folder, options.keep], check=False)
        return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--drops", type=int, default=1000, help="connections to Redis")
    parser.add_argument("--flushes", type=int, default=20)
    parser.add_argument("--ledger", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--workers", type=int, default=5, help="two of them prepare and assemble")
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--pace", type=float, default=0.05, help="seconds that a chunk of 5 frames takes")
    parser.add_argument("--patience", type=float, default=300.0, help="seconds for the last jobs, without faults")
    parser.add_argument("--films", type=int, default=len(LENGTHS), help="different films of the pattern engine")
    parser.add_argument("--preview", action=argparse.BooleanOptionalAction, default=True, help="preview films too")
    parser.add_argument("--report", type=Path, help="where the report goes, as JSON")
    parser.add_argument("--keep", type=Path, help="copy the farm's home here if something is wrong")
    options = parser.parse_args()
    return conclude(run(options), options.report)


if __name__ == "__main__":
    sys.exit(main())
