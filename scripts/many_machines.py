#!/usr/bin/env python3
"""A farm on several machines whose network and clocks go wrong: cut, lossy, slow, broker and database away.

    scripts/many_machines.py                     every fault, a few minutes; needs root and /dev/net/tun
    scripts/many_machines.py --faults cut clocks --films 3

The machines are network namespaces (tests/system/machines.py): one with PostgreSQL, one with Redis, three with workers
that share a folder.  After each fault every film is compared, frame by frame, with that of an undisturbed run, and the
ledger is asked what `farm db check --promises` asks.  Ends with 0 when nothing was lost, published twice or wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from verdict import conclude, say  # noqa: E402

from farm.config import load_settings  # noqa: E402
from farm.errors import FarmError  # noqa: E402
from farm.ledger import Ledger, read  # noqa: E402
from farm.ledger.audit import audit  # noqa: E402
from farm.ledger.values import Segment  # noqa: E402
from farm.media.verify import frame_hashes  # noqa: E402
from farm.states import JobState, SegmentKind, WorkerState  # noqa: E402
from tests.conftest import private_folder  # noqa: E402
from tests.system import material  # noqa: E402
from tests.system.machines import FarPostgres, FarRedis, Machine, Switch, switch, why_not  # noqa: E402
from tests.system.stage import QUICK, Stage, wait_for  # noqa: E402

LENGTHS = (5.0, 8.2, 11.7, 6.3, 14.0, 9.1)  # seconds of the sounds that films are made of
PATIENCE_SECONDS = 600.0
WORKERS = {"a": ("cpu-a", "r-a"), "b": ("cpu-b", "r-b"), "c": ("r-c",)}  # by machine
CLOCKS = {"a": 420.0, "b": -300.0, "c": 3600.0}  # seconds by which each machine's clock is wrong
SETTINGS = {
    "FARM_RETRY__MAX_ERRORS": "1000000",  # the faults come from outside
    "FARM_RETRY__MAX_LOSSES": "1000000",
}


class ManyMachines:
    """The farm on the stage, and what may be done to it."""

    def __init__(self, options: argparse.Namespace, wires: Switch, farm: Stage, postgres: FarPostgres) -> None:
        self.options = options
        self.wires = wires
        self.farm = farm
        self.postgres = postgres
        self.ledger: Ledger = farm.open()
        self.reference: dict[str, list[str]] = {}
        self.far_url = ""
        self.wrong_clock = make_wrong_clock(farm.folder)
        self.batches = 0
        self.lease = float(farm.environment["FARM_LEASE__TTL_SECONDS"])

    def machine(self, name: str) -> Machine:
        return self.wires.machines[name]

    # The cast

    def start_workers(self, clocks: dict[str, float] | None = None) -> None:
        for machine, names in WORKERS.items():
            for name in names:
                self.start_worker(machine, name, (clocks or {}).get(machine, 0.0))
        self.farm.wait_idle([name for names in WORKERS.values() for name in names], 120)

    def start_worker(self, machine: str, name: str, clock_seconds: float) -> None:
        environment = {
            "FARM_LEDGER_URL": self.far_url,
            "FARM_REDIS_URL": self.farm.redis.far_url,  # type: ignore[attr-defined]
            "FARM_MACHINE": machine,
        }
        faults: dict[str, Any] = {}
        if clock_seconds:
            if self.wrong_clock is None:
                faults["clock_seconds"] = clock_seconds  # Python's clock only
            else:
                environment |= {"LD_PRELOAD": str(self.wrong_clock), "CLOCK_OFF_SECONDS": f"{clock_seconds:.0f}"}
        self.farm.start_worker(name, environment=environment, prefix=self.machine(machine).inside, **faults)

    # Films

    def submit(self) -> list[int]:
        """A batch of every film; the ids of its jobs."""
        self.batches += 1
        rows = [
            {
                "portrait": self.farm.folder / f"in/p{number}.png",
                "audio": self.farm.folder / f"in/a{number}.wav",
                "name": f"pattern{number}-{self.batches}",
                "model": "pattern",
                "size": "64x64",
                "continuity": "parallel" if number % 2 else "carry",
            }
            for number in range(self.options.films)
        ]
        batch = material.batch(self.farm.folder / f"in/b{self.batches}.csv", rows)
        before = {job.id for job in read.jobs(self.ledger, limit=None)}
        self.farm.farm("submit", batch, "-o", self.farm.folder / "films")
        return sorted({job.id for job in read.jobs(self.ledger, limit=None)} - before)

    def wait(self, jobs: list[int]) -> None:
        def ended() -> bool:
            with contextlib.suppress(FarmError):
                return read.unfinished(self.ledger, jobs) == 0
            return False

        wait_for(ended, PATIENCE_SECONDS, f"the films of batch {self.batches}")

    def frames(self, jobs: list[int]) -> dict[str, list[str]]:
        films = read.films(self.ledger, jobs)
        names = {job.id: job.name.partition("-")[0] for job in read.jobs(self.ledger, ids=jobs, limit=None)}
        return {names[job]: frame_hashes(Path(film.path)) for job, film in films.items()}

    def rendered_by(self, worker: str) -> Segment | None:
        """What this worker holds and renders."""
        with contextlib.suppress(FarmError):
            for segment in read.running(self.ledger):
                if segment.leased_by == worker and segment.kind is SegmentKind.RENDER:
                    return segment
        return None

    def wait_until_rendered(self, worker: str) -> None:
        wait_for(lambda: self.rendered_by(worker) is not None, 60, f"{worker} with a segment")

    # Faults.  Each is called while films are rendered and returns what is to be told of it.

    def cut(self) -> dict[str, Any]:
        """No packet to or from one machine for three leases; then it is back, a zombie."""
        return self._cut_machine("a", outwards=True, inwards=True)

    def deaf(self) -> dict[str, Any]:
        """What one machine says still arrives; it hears nothing for three leases."""
        return self._cut_machine("b", outwards=False, inwards=True)

    def _cut_machine(self, name: str, *, outwards: bool, inwards: bool) -> dict[str, Any]:
        machine, worker = self.machine(name), f"r-{name}@{name}"
        log = self.farm.home / "logs" / f"worker-r-{name}.log"
        for _ in range(20):
            self.wait_until_rendered(worker)
            told = log.stat().st_size
            machine.cut(outwards=outwards, inwards=inwards)
            cut_at, on_ledger = time.time(), self.ledger.now()
            time.sleep(0.5)  # what was under way has arrived
            held = self.rendered_by(worker)
            if held is not None:
                break
            machine.heal()  # it had just published
        assert held is not None, f"{worker} never held anything when it was cut"

        def taken_over() -> bool:
            with contextlib.suppress(FarmError):
                mine = [a for a in read.attempts(self.ledger, held.job_id) if a.segment_id == held.id]
                return any(a.outcome == "expire" and a.worker == worker for a in mine) and mine[-1].worker != worker
            return False

        wait_for(taken_over, 60, f"another worker with segment {held.id}")
        after = time.time() - cut_at
        expired = [e.at for e in read.events(self.ledger, job_id=held.job_id, limit=10_000_000) if e.event == "expire"]
        time.sleep(max(0.0, cut_at + 3 * self.lease - time.time()))
        machine.heal()
        beats = self._beats(worker)
        wait_for(lambda: self._beats(worker) > beats, 60, f"{worker} back in the ledger")
        noticed = first_complaint(log, told)
        assert noticed is not None, f"{worker} never noticed that its network was cut"
        wait_for(lambda: "dropped" in log.read_text()[told:], 60, f"{worker} dropping what it held")
        return {
            "cut_seconds": round(3 * self.lease, 1),
            "noticed_after_seconds": round(noticed - cut_at, 1),
            "expired_after_seconds": round(min(at for at in expired if at > on_ledger) - on_ledger, 1),
            "taken_over_after_seconds": round(after, 1),  # by the first worker that was free
            "lease_seconds": self.lease,
            "wrong": [] if noticed - cut_at <= self.lease else [f"the cut was noticed after {noticed - cut_at:.1f} s"],
        }

    def _beats(self, worker: str) -> float:
        with contextlib.suppress(FarmError):
            return max(w.beat_at for w in read.workers(self.ledger) if w.name == worker)
        return 0.0

    def loss(self) -> dict[str, Any]:
        """Every tenth packet of every worker's machine is lost, each way, to the end."""
        for name in WORKERS:
            self.machine(name).loss = 0.1
        return {"loss": 0.1}

    def slow(self) -> dict[str, Any]:
        """A round trip from any worker's machine takes 200 ms, to the end."""
        for name in WORKERS:
            self.machine(name).delay_seconds = 0.1
        return {"round_trip_seconds": 0.2}

    def broker_restarts(self) -> dict[str, Any]:
        """Redis comes back empty, three times."""
        for _ in range(3):
            self.wait_until_rendered("r-c@c")
            self.farm.redis.restart()
            time.sleep(1.0)
        return {"restarts": 3}

    def broker_cut(self) -> dict[str, Any]:
        """No packet to or from Redis for two leases."""
        self.wait_until_rendered("r-c@c")
        self.machine("broker").cut()
        published = self._published()
        time.sleep(2 * self.lease)
        more = self._published() - published
        self.machine("broker").heal()
        return {"cut_seconds": 2 * self.lease, "published_meanwhile": more}

    def _published(self) -> int:
        return sum(e.event == "succeed" for e in read.events(self.ledger, limit=10_000_000))

    def database_away(self) -> dict[str, Any]:
        """PostgreSQL dies and is away for half a lease, and later for more than one."""
        for share in (0.5, 1.3):
            self.wait_until_rendered("r-c@c")
            self.postgres.stop()
            time.sleep(share * self.lease)
            self.postgres.start()
        return {"away_seconds": [0.5 * self.lease, 1.3 * self.lease]}

    def database_cut(self) -> dict[str, Any]:
        """No packet to or from PostgreSQL for half a lease, and later for more than one."""
        for share in (0.5, 1.3):
            self.wait_until_rendered("r-c@c")
            self.machine("ledger").cut()
            time.sleep(share * self.lease)
            self.machine("ledger").heal()
        return {"cut_seconds": [0.5 * self.lease, 1.3 * self.lease]}

    def clocks(self) -> dict[str, Any]:
        """Every worker's machine has another time, up to an hour off; only the ledger's clock may count."""
        began = self.ledger.now()
        wrong: list[str] = []
        seen: Counter[str] = Counter()
        watched = time.monotonic() + 3 * self.lease
        while time.monotonic() < watched:
            now = self.ledger.now()
            for segment in read.running(self.ledger):
                left = (segment.lease_until or 0.0) - now
                seen[str(segment.leased_by)] += 1
                if not -1.0 < left <= self.lease + 1.0:
                    wrong.append(f"{segment.leased_by} has a lease for {left:.1f} s")
            time.sleep(0.05)
        now = self.ledger.now()
        for job in read.jobs(self.ledger, limit=self.options.films):
            for attempt in read.attempts(self.ledger, job.id):
                if not began - PATIENCE_SECONDS < attempt.started_at <= now:
                    wrong.append(f"an attempt of job {job.id} began at {attempt.started_at - now:+.0f} s")
        said = {}
        for machine in WORKERS:
            log = self.farm.home / "logs" / f"worker-r-{machine}.log"
            said[machine] = round((moment_of(log.read_text().splitlines()[-1]) or 0.0) - log.stat().st_mtime)
            if abs(said[machine] - CLOCKS[machine]) > 5:
                wrong.append(f"the clock of {machine} is not wrong at all: {said[machine]:+d} s")
        how = "the C library" if self.wrong_clock is not None else "Python"
        return {"clocks_off_by_seconds": said, "through": how, "leases_seen": dict(seen), "wrong": wrong}

    def everything(self) -> dict[str, Any]:
        """Lossy and slow wires, one machine cut for two leases, Redis empty again and PostgreSQL gone for a while."""
        for name in WORKERS:
            self.machine(name).loss, self.machine(name).delay_seconds = 0.03, 0.05
        self.wait_until_rendered("r-b@b")
        self.machine("b").cut()
        self.farm.redis.restart()
        time.sleep(self.lease)
        self.postgres.restart()
        time.sleep(self.lease)
        self.machine("b").cut(outwards=False, inwards=False)
        return {}

    # The run

    def try_fault(self, name: str) -> dict[str, Any]:
        fault: Callable[[], dict[str, Any]] = getattr(self, name)
        say(f"{name}: {(fault.__doc__ or '').strip()}")
        with_clocks = name == "clocks"
        if with_clocks:
            self.farm.stop_workers()
            self.start_workers(CLOCKS)
        events = read.events(self.ledger, limit=10_000_000)
        last = events[-1].id if events else 0
        for machine in self.wires.machines.values():
            machine.carried = machine.dropped = 0
        began = time.monotonic()
        jobs = self.submit()
        told = fault()
        self.wait(jobs)
        took = time.monotonic() - began
        dropped = sum(machine.dropped for machine in self.wires.machines.values())
        carried = sum(machine.carried for machine in self.wires.machines.values())
        for machine in self.wires.machines.values():
            machine.heal()
        wrong = [*told.pop("wrong", []), *self.judge(jobs)]
        events = read.events(self.ledger, after_id=last, limit=10_000_000)
        outcomes = Counter(e.event for e in events if e.segment_id is not None)
        twice = [s for s, n in Counter(e.segment_id for e in events if e.event == "succeed").items() if n > 1]
        wrong += [f"segment {segment} was published twice" for segment in twice]
        # A worker that was away is there again.
        self.farm.wait_idle([worker for names in WORKERS.values() for worker in names], 120)
        if with_clocks:
            self.farm.stop_workers()
            self.start_workers()
        return told | {
            "films": len(jobs),
            "frames": sum(job.total_frames or 0 for job in read.jobs(self.ledger, ids=jobs, limit=None)),
            "published": outcomes["succeed"],
            "expired": outcomes["expire"],
            "repeated": outcomes["retry"],
            "packets": carried,
            "packets_lost": dropped,
            "seconds": round(took, 1),
            "wrong": wrong,
        }

    def judge(self, jobs: list[int]) -> list[str]:
        """What is wrong with these films, and with the whole ledger."""
        wrong = []
        for job in read.jobs(self.ledger, ids=jobs, limit=None):
            if job.state is not JobState.SUCCEEDED:
                wrong.append(f"job {job.id} is {job.state}: {job.reason}")
        frames = self.frames(jobs)
        wrong += [f"{name} is lost" for name in set(self.reference) - set(frames)]
        wrong += [f"{name} has other frames" for name in frames if frames[name] != self.reference[name]]
        os.environ.update({key: value for key, value in self.farm.env.items() if key.startswith("FARM_")})
        return wrong + [str(violation) for violation in audit(self.ledger, load_settings(), check_files=True)]


def make_wrong_clock(folder: Path) -> Path | None:
    """A library that gives whole processes another time; None without a C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    library = folder / "wrong_clock.so"
    source = ROOT / "tests/system/wrong_clock.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
    return library


def first_complaint(log: Path, offset: int) -> float | None:
    """When a worker first wrote that the ledger does not answer."""
    for line in log.read_text()[offset:].splitlines():
        if "WARNING" in line and "ledger" in line and "Redis" not in line:
            return moment_of(line)
    return None


def moment_of(line: str) -> float | None:
    with contextlib.suppress(ValueError):
        return datetime.strptime(line.split(" ")[0], "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC).timestamp()
    return None


FAULTS = (
    "cut",
    "deaf",
    "loss",
    "slow",
    "broker_restarts",
    "broker_cut",
    "database_away",
    "database_cut",
    "clocks",
    "everything",
)


def run(options: argparse.Namespace) -> dict[str, Any]:
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(private_folder("farm-machines-"))
        wires = stack.enter_context(switch(options.seed))
        redis = FarRedis(stack.enter_context(private_folder("farm-machines-redis-")), wires.add("broker"))
        stack.callback(redis.stop)
        redis.start()
        database = stack.enter_context(private_folder("farm-machines-postgres-"))
        postgres = FarPostgres(database, wires.add("ledger"))
        stack.callback(postgres.stop)
        postgres.start()
        farm = Stage(folder, redis, postgres.make_database("farm"), {**QUICK, **SETTINGS})
        farm.home.mkdir(parents=True)
        stack.callback(farm.stop_workers)
        for name in WORKERS:
            wires.add(name)
        stage = ManyMachines(options, wires, farm, postgres)
        stack.callback(stage.ledger.close)
        stage.far_url = postgres.far_url("farm")
        pattern = {"model": "pattern", "settings": {"pace": options.pace}}
        names = [name for names in WORKERS.values() for name in names]
        farm.write_roster({name: pattern if name.startswith("r-") else {} for name in names})
        (folder / "in").mkdir()
        for number in range(options.films):
            material.portrait(folder / f"in/p{number}.png", number)
            material.sound(folder / f"in/a{number}.wav", LENGTHS[number % len(LENGTHS)], number)
        stage.start_workers()
        say("rendering the undisturbed films")
        began = time.monotonic()
        calm = stage.submit()
        stage.wait(calm)
        stage.reference = stage.frames(calm)
        report: dict[str, Any] = {"seed": options.seed, "undisturbed_seconds": round(time.monotonic() - began, 1)}
        report["faults"] = {}
        for name in options.faults:
            try:
                report["faults"][name] = stage.try_fault(name)
            except AssertionError as error:
                report["faults"][name] = {"wrong": [str(error)]}
                for machine in wires.machines.values():
                    machine.heal()
            say(json.dumps(report["faults"][name]))
            if report["faults"][name]["wrong"] and options.keep:
                subprocess.run(["cp", "-a", folder, options.keep], check=False)
        lost = [w.name for w in read.workers(stage.ledger) if w.state is WorkerState.SICK]
        report["wrong"] = [f"{n}: {w}" for n, told in report["faults"].items() for w in told["wrong"]]
        report["wrong"] += [f"{name} is sick" for name in lost]
        return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1, help="decides which packets are lost")
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=FAULTS)
    parser.add_argument("--films", type=int, default=len(LENGTHS), choices=range(1, len(LENGTHS) + 1))
    parser.add_argument("--pace", type=float, default=0.15, help="seconds that a chunk of 5 frames takes")
    parser.add_argument("--report", type=Path, help="where the report goes, as JSON")
    parser.add_argument("--keep", type=Path, help="copy the farm's folder here if something is wrong")
    options = parser.parse_args()
    reason = why_not()
    if reason is not None:
        print(f"many_machines: {reason}", file=sys.stderr)
        return 2
    return conclude(run(options), options.report)


if __name__ == "__main__":
    sys.exit(main())
