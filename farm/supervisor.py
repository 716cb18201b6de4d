"""`farm up` and `farm down`: a small process that starts what this machine runs and starts it again when it dies.

    python -m farm.supervisor [--flower] [--serve]

Each child has a session of its own, so it outlives a killed supervisor; the next supervisor finds it by its record in
FARM_HOME/run and goes on watching it.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field

from farm import processes, redis_server
from farm.config import Settings, load_settings
from farm.errors import ConfigError, FarmError
from farm.ledger import open_ledger
from farm.ledger.migrate import ensure_current
from farm.logs import log_to_stderr
from farm.processes import Running
from farm.roster import load_roster

log = logging.getLogger(__name__)

NAME = "supervisor"
REDIS = "redis"
LOOK_SECONDS = 0.5
RESTART_SECONDS = 1.0  # doubled after each quick death
RESTART_MAX_SECONDS = 60.0
LONG_LIFE_SECONDS = 60.0  # who lived this long starts again without delay
GOODBYE_SECONDS = 20.0  # on top of host.stop_seconds, before a child is killed


@dataclass
class Child:
    """One process to keep alive."""

    name: str
    argv: list[str]
    running: Running | None = None
    process: subprocess.Popen[bytes] | None = None
    deaths: int = 0
    not_before: float = 0.0
    began: float = field(default_factory=time.monotonic)


class Supervisor:
    """Keeps children alive until told to stop."""

    def __init__(self, settings: Settings, children: list[Child]) -> None:
        self.settings = settings
        self.children = children
        self.stopping = threading.Event()

    def run(self) -> None:
        for child in self.children:
            child.running = processes.find(child.name, self.settings.run_dir)
            if child.running is not None:
                log.info("%s runs already, pid %d", child.name, child.running.pid)
        while not self.stopping.is_set():
            for child in self.children:
                if not self.stopping.is_set():
                    self._look_after(child)
            self.stopping.wait(LOOK_SECONDS)
        self._stop_all()

    def _look_after(self, child: Child) -> None:
        if child.process is not None and child.process.poll() is not None:
            child.process = None  # collected, so that it is no zombie
        if child.running is not None and child.running.is_alive:
            return
        now = time.monotonic()
        if child.running is not None:
            lived = now - child.began
            child.deaths = 0 if lived > LONG_LIFE_SECONDS else child.deaths + 1
            pause = 0.0 if child.deaths == 0 else min(RESTART_SECONDS * 2.0 ** (child.deaths - 1), RESTART_MAX_SECONDS)
            log.warning("%s died after %.0f s; it starts again in %.0f s", child.name, lived, pause)
            child.running, child.not_before = None, now + pause
        if now < child.not_before:
            return
        if child.name == REDIS:
            redis_server.prepare_socket(self.settings)
        child.began = now
        child.running, child.process = processes.start(
            child.name,
            child.argv,
            env=child_environment(self.settings),
            log_file=self.settings.logs_dir / f"{child.name}.log",
            run_dir=self.settings.run_dir,
        )
        log.info("%s started, pid %d", child.name, child.running.pid)

    def _stop_all(self) -> None:
        """Workers first, together, so that they can still say goodbye; Redis last."""
        workers = [c for c in self.children if c.name != REDIS]
        for group in (workers, [c for c in self.children if c.name == REDIS]):
            stop_processes(
                [c.running for c in group if c.running is not None],
                patience_seconds=self.settings.host.stop_seconds + GOODBYE_SECONDS,
            )
            for child in group:
                if child.process is not None:
                    child.process.wait()
                processes.forget(child.name, self.settings.run_dir)


def stop_processes(running: list[Running], *, patience_seconds: float) -> None:
    """SIGTERM to all, then SIGKILL to who is left."""
    for one in running:
        one.signal(signal.SIGTERM)
    deadline = time.monotonic() + patience_seconds
    for one in running:
        if not one.wait_gone(max(0.0, deadline - time.monotonic())):
            log.warning("%s did not end in time; it is killed", one.name)
            one.signal(signal.SIGKILL)
            one.wait_gone(5.0)


def child_environment(settings: Settings) -> dict[str, str]:
    return {**os.environ, "FARM_HOME": str(settings.home), "PYTHONUNBUFFERED": "1"}


def plan_children(settings: Settings, *, flower: bool, serve: bool) -> list[Child]:
    """What this machine runs, in the order of starting.  Raises ConfigError."""
    children: list[Child] = []
    if settings.redis_is_private:
        children.append(Child(REDIS, redis_server.server_argv(settings)))
    for spec in load_roster():
        children.append(Child(f"worker-{spec.name}", [sys.executable, "-m", "workers", spec.name]))
    if flower:
        children.append(Child("flower", [sys.executable, "-m", "farm.flower"]))
    if serve:
        children.append(Child("serve", [sys.executable, "-m", "farm.cli", "serve"]))
    return children


def up(settings: Settings, *, flower: bool = False, serve: bool = False, wait_seconds: float = 60.0) -> Running:
    """Start the supervisor apart from this terminal, unless it runs.  Raises ConfigError.

    Returns when the private Redis answers; where there is a shared one, at once.
    """
    ledger = open_ledger(settings.ledger)
    ensure_current(ledger)
    ledger.close()
    plan_children(settings, flower=flower, serve=serve)  # a wrong file is told here and not in a log
    running = processes.find(NAME, settings.run_dir)
    if running is None:
        argv = [sys.executable, "-m", "farm.supervisor"]
        argv += ["--flower"] if flower else []
        argv += ["--serve"] if serve else []
        running, _ = processes.start(
            NAME,
            argv,
            env=child_environment(settings),
            log_file=settings.logs_dir / f"{NAME}.log",
            run_dir=settings.run_dir,
        )
    await_redis(settings, wait_seconds)
    return running


def await_redis(settings: Settings, wait_seconds: float) -> None:
    """Wait for the private Redis.  A shared one that does not answer is only told of: workers do without it.

    Raises ConfigError when the private one does not come.
    """
    shown = settings.redis.rsplit("@", 1)[-1]
    if not settings.redis_is_private:
        if (why := redis_server.why_silent(settings)) is not None:
            log.warning(
                "Redis at %s does not answer: %s; check FARM_REDIS_URL; until then workers find work a little later",
                shown,
                why,
            )
    elif not redis_server.wait_until_answers(settings, wait_seconds):
        raise ConfigError(
            f"Redis at {shown} does not answer: {redis_server.why_silent(settings)};"
            f" see {settings.logs_dir / 'redis.log'}"
        )


def down(settings: Settings) -> list[str]:
    """Stop everything that `up` started on this machine.  Returns the names of what ran."""
    names = [running.name for running in processes.find_all(settings.run_dir)]
    supervisor = processes.find(NAME, settings.run_dir)
    patience = settings.host.stop_seconds + 2 * GOODBYE_SECONDS
    if supervisor is not None:
        stop_processes([supervisor], patience_seconds=patience)
    left = [r for r in processes.find_all(settings.run_dir) if r.name != NAME]
    stop_processes([r for r in left if r.name != REDIS], patience_seconds=patience)
    stop_processes([r for r in left if r.name == REDIS], patience_seconds=patience)
    for name in names:
        processes.forget(name, settings.run_dir)
    return [name for name in names if name != NAME]


def main(argv: list[str]) -> int:
    log_to_stderr()
    parser = argparse.ArgumentParser(prog="farm.supervisor")
    parser.add_argument("--flower", action="store_true")
    parser.add_argument("--serve", action="store_true")
    options = parser.parse_args(argv)
    try:
        settings = load_settings()
        log_to_stderr(settings.log_format)
        supervisor = Supervisor(settings, plan_children(settings, flower=options.flower, serve=options.serve))
    except FarmError as error:
        log.error("%s", error)
        return error.exit_code
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: supervisor.stopping.set())
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    supervisor.run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
