"""What runs on this machine for this farm: started apart from any terminal, known by pid and birth."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

LOG_LIMIT_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Running:
    """A process of this farm, told from a later one with the same number by its birth."""

    name: str
    pid: int
    birth: str
    argv: list[str]

    @property
    def is_alive(self) -> bool:
        return is_same(self.pid, self.birth)

    def signal(self, number: signal.Signals) -> None:
        if self.is_alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def wait_gone(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self.is_alive:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True


def birth(pid: int) -> str | None:
    """Which of all processes with this number this one is: its start in clock ticks since which boot (proc(5)).

    The time of day has no part in it, since a machine that slept, or whose clock is set, moves every time that is
    computed from it.  None when no process has the number, or one that ended and that nobody collected.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # from the third on; the name before them may hold spaces and brackets
    state, ticks = fields[0], fields[19]
    return None if state in "ZX" else f"{_boot()}:{ticks}"


@functools.cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # some sandboxes have none
        return "unknown boot"


def is_same(pid: int, born: object) -> bool:
    """Whether the process of that birth still runs under `pid`."""
    return born is not None and born == birth(pid)


def start(
    name: str, argv: Sequence[str], *, env: Mapping[str, str], log_file: Path, run_dir: Path
) -> tuple[Running, subprocess.Popen[bytes]]:
    """Start a process in a session of its own, its output in `log_file`, its number in `run_dir`.

    Raises OSError, and nothing runs then, when one of the two cannot be written.
    """
    log_file.parent.mkdir(parents=True, exist_ok=True)
    run_dir.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):
        if log_file.stat().st_size > LOG_LIMIT_BYTES:
            log_file.replace(log_file.with_name(log_file.name + ".1"))
    with log_file.open("ab") as output:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=dict(env), start_new_session=True
        )
    running = Running(name, process.pid, birth(process.pid) or "", list(argv))  # it may have died at once
    try:
        _write_record(running, run_dir)
    except OSError:
        process.kill()  # nobody would ever find it again
        process.wait()
        raise
    return running, process


def _write_record(running: Running, run_dir: Path) -> None:
    record = run_dir / f"{running.name}.json"
    staged = record.with_suffix(".part")
    staged.write_text(json.dumps(asdict(running)))
    staged.replace(record)


def find(name: str, run_dir: Path) -> Running | None:
    """The living process recorded under `name`."""
    try:
        running = Running(**json.loads((run_dir / f"{name}.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return running if running.is_alive else None


def find_all(run_dir: Path) -> list[Running]:
    """Every living process of this farm on this machine."""
    names = sorted(path.stem for path in run_dir.glob("*.json"))
    return [running for name in names if (running := find(name, run_dir)) is not None]


def forget(name: str, run_dir: Path) -> None:
    (run_dir / f"{name}.json").unlink(missing_ok=True)


def kill_group(pid: int, wait_seconds: float = 0.0) -> None:
    """SIGKILL to the process group that `pid` leads, and to every descendant that left it.

    Then wait at most so long until the descendants are gone; `pid` itself is its parent's to wait for.
    """
    stragglers: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        stragglers = psutil.Process(pid).children(recursive=True)
    for kill in (os.killpg, os.kill):  # the second for a child that leads no group yet
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)
    for straggler in stragglers:
        with contextlib.suppress(psutil.Error):
            straggler.kill()
    if wait_seconds:
        deadline = time.monotonic() + wait_seconds
        while any(_is_alive(straggler) for straggler in stragglers) and time.monotonic() < deadline:
            time.sleep(0.01)


def _is_alive(process: psutil.Process) -> bool:
    """Whether it still runs; one whose new parent does not collect it holds nothing any more."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def die_with_parent() -> None:
    """Ask the kernel to end this process when its parent dies, however it dies.

    A host's child has its own, because it may import nothing of the farm.
    """
    pr_set_pdeathsig = 1
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
