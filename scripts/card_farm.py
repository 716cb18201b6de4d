"""The farm of bench_cards.py and bench_live.py: one of the script's own, with workers and models of its choosing.

It is fed as a person does it, by `farm submit`.  No wait is without an end: what does not come raises Failed, and
`tails` tells what the logs said last.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from own_farm import ROOT, Failed, farm_up, run_farm

from farm import processes, supervisor
from farm.ledger import read
from farm.ledger.values import Attempt, Segment, Worker
from farm.states import Event, SegmentKind, WorkerState

# What a bench may be told from outside; every other FARM_ variable belongs to somebody else's farm.
KEPT = ("FARM_FFMPEG", "FARM_FACE_MODELS", "FARM_CACHE", "FARM_CARD_LOCKS")
TAIL_LINES = 25
WARM = re.compile(r"is warm on .* after ([0-9.]+) s")


@dataclass(frozen=True)
class Kill:
    """A process that was killed while a segment was under its hands."""

    what: str  # "host" or "worker"
    worker: str
    job_id: int
    segment_id: int  # 0 where it had just been published
    number: int  # of the segment in its film
    attempt: int
    at: float  # seconds since 1970, by this machine's clock, which is also the ledger's


class CardFarm:
    """The farm in `home`; a context that starts and ends it."""

    def __init__(
        self,
        home: Path,
        workers: Mapping[str, Mapping[str, Any]],
        models: Mapping[str, str],
        settings: Mapping[str, str],
        *words: str,
    ) -> None:
        """`workers` are the tables of workers.toml, `models` the texts of model files by id, `settings` variables and
        `words` are for `farm up`."""
        self.home = home
        self.tables = workers
        self.renderers = [name for name, table in workers.items() if table.get("model")]
        self.dead: set[str] = set()  # workers that were killed for good
        home.mkdir(parents=True, exist_ok=True)
        (home / "models").mkdir(exist_ok=True)
        for model_id, text in models.items():
            (home / "models" / f"{model_id}.toml").write_text(text)
        (home / "workers.toml").write_text(_roster(workers))
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        own = {"FARM_MACHINE": "bench", "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
        self._up = farm_up(home, *words, is_warm=False, kept=KEPT, **own, **settings)

    def __enter__(self) -> CardFarm:
        """Raises Failed."""
        self.settings, self.ledger = self._up.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop everything, hosts of killed workers too."""
        try:
            workers = self.workers()
        finally:
            self._up.__exit__(None, None, None)
        for worker in workers:
            if worker.host_pid is not None and worker.pid and not psutil.pid_exists(worker.pid):
                processes.kill_group(worker.host_pid)

    # What a person does

    def submit(self, name: str, rows: Sequence[Mapping[str, Any]], *, again: bool = False) -> list[int]:
        """The ids of the jobs of these rows, in their order."""
        batch = self.home / f"{name}.csv"
        columns = list(dict.fromkeys(column for row in rows for column in row))
        with batch.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
        words = ["submit", str(batch), "-o", str(self.home / "films" / name), "--json", *(["--again"] if again else [])]
        ids: list[int] = json.loads(run_farm(*words))["new"]
        if len(ids) != len(rows):
            raise Failed(f"{len(rows)} rows were submitted and {len(ids)} jobs made of them")
        return ids

    # What is seen

    def workers(self) -> list[Worker]:
        return [worker for worker in read.workers(self.ledger) if worker.name.partition("@")[0] in self.tables]

    def worker(self, name: str) -> Worker:
        return next(worker for worker in self.workers() if worker.name.partition("@")[0] == name)

    def await_warm(self, deadline: float) -> float:
        """Until every engine is loaded; returns the seconds that it took from now.  Raises Failed."""
        began = time.monotonic()

        def warm() -> bool:
            seen = {worker.name.partition("@")[0]: worker for worker in self.workers()}
            for worker in seen.values():
                if worker.reason and "could not be loaded" in worker.reason:
                    raise Failed(f"worker {worker.name}: {worker.reason}")
            ready = (WorkerState.IDLE, WorkerState.RENDERING)
            return all(name in seen and seen[name].state in ready for name in self.tables)

        wait_until(warm, deadline, "warm workers")
        return time.monotonic() - began

    def attempts(self, jobs: Sequence[int]) -> list[tuple[Segment, Attempt]]:
        """Every attempt of a render segment of these jobs."""
        found = []
        for job_id in jobs:
            segments = {s.id: s for s in read.segments(self.ledger, job_id) if s.kind is SegmentKind.RENDER}
            found += [
                (segments[a.segment_id], a) for a in read.attempts(self.ledger, job_id) if a.segment_id in segments
            ]
        return found

    def loads(self) -> dict[str, list[float]]:
        """The seconds of each load of an engine, by worker, as its log tells them."""
        return {name: [float(s) for s in WARM.findall(self.log(f"worker-{name}.log"))] for name in self.renderers}

    def log(self, name: str) -> str:
        """What a process of the farm has said; empty where it said nothing yet."""
        try:
            return (self.home / "logs" / name).read_text(errors="replace")
        except OSError:
            return ""

    def tails(self) -> str:
        """The end of every log, also of a farm that did not start."""
        said = []
        for path in sorted((self.home / "logs").glob("*.log")):
            lines = self.log(path.name).splitlines()[-TAIL_LINES:]
            said.append("\n".join([f"--- {path.name}", *lines]))
        return "\n".join(said)

    # What is done to it

    def kill_mid_segment(self, what: str, jobs: Sequence[int], spared: set[int], deadline: float) -> Kill | None:
        """SIGKILL to the host, or to the worker, that is in the middle of a segment with a carry before it.

        `spared` are jobs that were hit before.  Waits for such a moment and for the attempt's end; None when the jobs
        ended before one came.  Raises Failed.
        """
        while True:
            found: list[tuple[Segment, Attempt]] = []

            def look(found: list[tuple[Segment, Attempt]] = found) -> bool:
                found[:] = [pair for pair in self._in_the_middle(jobs) if pair[0].job_id not in spared][:1]
                return bool(found) or not read.unfinished(self.ledger, jobs)

            wait_until(look, deadline, "a segment in its middle", every=0.02)
            if not found:
                return None
            segment, attempt = found[0]
            name = attempt.worker.partition("@")[0]
            kill = Kill(what, name, segment.job_id, segment.id, segment.number, attempt.number, time.time())
            if what == "worker":
                self._kill_worker(name)
            else:
                pid = self.worker(name).host_pid
                if pid is None:
                    continue
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            outcome = self._await_end(attempt, deadline)
            if outcome != Event.SUCCEED.value:
                return kill
            if what == "worker":  # a dead one is not killed again
                return dataclasses.replace(kill, segment_id=0)

    def _in_the_middle(self, jobs: Sequence[int]) -> Iterator[tuple[Segment, Attempt]]:
        """Running segments that by the speed of the one before them are between a third and two thirds."""
        for running in read.running(self.ledger, jobs):
            if running.kind is not SegmentKind.RENDER or running.number == 0:
                continue
            tried = self.attempts([running.job_id])
            now = next((a for s, a in tried if s.id == running.id and a.ended_at is None), None)
            before = [a for s, a in tried if s.number == running.number - 1 and a.outcome == Event.SUCCEED.value]
            if now is None or not before or not before[-1].frames:
                continue
            usual = before[-1].device_seconds / before[-1].frames * running.frames
            if usual / 3 < time.time() - now.started_at < usual * 2 / 3:
                yield running, now

    def _kill_worker(self, name: str) -> None:
        """The worker's process for good: the supervisor, which would start it again, goes first."""
        names = (supervisor.NAME, f"worker-{name}")
        running = [one for one in (processes.find(name, self.settings.run_dir) for name in names) if one is not None]
        if len(running) != len(names):
            raise Failed(f"not both of {' and '.join(names)} run")
        for one in running:
            one.signal(signal.SIGKILL)
        for one in running:
            if not one.wait_gone(30):
                raise Failed(f"{one.name} survived SIGKILL")
        self.dead.add(name)

    def _await_end(self, attempt: Attempt, deadline: float) -> str | None:
        found: list[Attempt] = []

        def over() -> bool:
            same = (a for a in read.attempts(self.ledger, attempt.job_id) if a.id == attempt.id)
            found[:] = [a for a in same if a.ended_at is not None]
            return bool(found)

        wait_until(over, deadline, "the end of the killed attempt")
        return found[0].outcome


class Gauge:
    """Memory, and on cards how busy they are, looked at twice a second: per card, or per host on the CPU."""

    def __init__(self, farm: CardFarm, cards: Sequence[str]) -> None:
        self.farm, self.cards = farm, cards
        self.peak_gb: dict[str, float] = {}
        self.busy: list[tuple[float, str, float]] = []  # when, which card, percent of the last half second
        self._over = threading.Event()
        self._tool: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._watch_cards if cards else self._watch_hosts, daemon=True)

    def __enter__(self) -> Gauge:
        if self.cards:
            fields = "--query-gpu=index,utilization.gpu,memory.used"
            argv = ["nvidia-smi", fields, "--format=csv,noheader,nounits", "-lms", "500"]
            with contextlib.suppress(OSError):
                self._tool = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._tool is not None:
            self._tool.kill()
            self._tool.wait()
        self._thread.join(10)

    def _watch_cards(self) -> None:
        if self._tool is None or self._tool.stdout is None:
            return
        for line in self._tool.stdout:
            index, busy, used = ([cell.strip() for cell in line.split(",")] + ["", "", ""])[:3]
            if index not in self.cards:
                continue
            if used.isdigit():
                self._note(f"card {index}", int(used) * 2**20)
            if busy.isdigit():
                self.busy.append((time.time(), index, float(busy)))

    def _watch_hosts(self) -> None:
        while not self._over.wait(0.5):
            for worker in self.farm.workers():
                with contextlib.suppress(psutil.Error):
                    if worker.host_pid is not None:
                        used = psutil.Process(worker.host_pid).memory_info().rss
                        self._note(worker.name.partition("@")[0], used)

    def _note(self, name: str, used: int) -> None:
        self.peak_gb[name] = max(self.peak_gb.get(name, 0.0), round(used / 1e9, 3))

    def busy_share(self, card: str, begin: float, end: float) -> float | None:
        """What nvidia-smi said between two instants, as a share; None where it said nothing."""
        said = [percent for at, index, percent in list(self.busy) if index == card and begin <= at <= end]
        return sum(said) / len(said) / 100 if said else None


def wait_until(claim: Callable[[], bool], deadline: float, what: str, every: float = 0.1) -> None:
    """Raises Failed at `deadline`, which counts as time.monotonic does."""
    while not claim():
        if time.monotonic() > deadline:
            raise Failed(f"waited for {what} until the bench's time was over")
        time.sleep(every)


def change_model(text: str, **values: str) -> str:
    """A model file's text with other values, written as TOML, of some keys.  Raises Failed for a key that it lacks."""
    for key, value in values.items():
        text, count = re.subn(rf"(?m)^{key} = .*$", lambda _, line=f"{key} = {value}": line, text, count=1)
        if not count:
            raise Failed(f"the model's file has no {key}")
    return text


def _roster(tables: Mapping[str, Mapping[str, Any]]) -> str:
    lines = []
    for name, table in tables.items():
        lines.append(f"[workers.{name}]")
        lines += [f"{key} = {toml_of(value)}" for key, value in table.items()]
    return "\n".join(lines) + "\n"


def toml_of(value: Any) -> str:
    """A value as a file of TOML holds it; tables are written inline."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {toml_of(item)}" for key, item in value.items()) + " }"
    return json.dumps(value)
