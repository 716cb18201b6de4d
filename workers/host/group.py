"""The launcher of a host of several ranks: starts them, watches each, and ends all when one dies or shows no life.

    python -m workers.host.group FD ENGINE RANKS LOG SILENCE

It stands where the single child of an ordinary host stands: the worker starts it, and kills its process group.  FD, the
worker's wire, is rank 0's; the launcher neither reads nor keeps it.  Each other rank is joined to rank 0 by a wire of
its own (workers/host/rank.py).  Rank 0 prints where the launcher does; LOG is the host's log, beside which the others
have theirs.  SILENCE is how many seconds a loaded rank may give no sign of life: one that is stopped or stuck in its
driver gives none.  A rank that lives and yet does not come to a collective is found by that collective's time-out.

Standard library only, Python 3.10 or newer, no model's code.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from workers.host.child import die_with_parent

START_SECONDS = 600.0  # until the first sign of life and while weights are loaded, when an import may hold everything
LOOK_SECONDS = 0.2
BEAT_SECONDS = 1.0
LOADING, SERVING = b"l", b"."
LOST_EXIT = 70  # of the launcher, when a rank was lost
COLLECTIVE_SECONDS = 25  # a rank that lives and yet does not come to a collective is lost after so long
LOCAL = "127.0.0.1"


def log_of_rank(log: Path, rank: int) -> Path:
    """Where a rank prints: rank 0 into the host's log, the others beside it."""
    return log if rank == 0 else log.with_name(f"{log.stem}.rank{rank}{log.suffix}")


def free_port() -> int:
    """A port of this machine that the kernel gives to nobody else for a minute.

    A connection that the listener closed first leaves the port in TIME_WAIT: it is taken from those that the kernel
    chooses from, and who binds it by name with SO_REUSEADDR, as torch's store does, still gets it.
    """
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((LOCAL, 0))
        listener.listen(1)
        port = int(listener.getsockname()[1])
        with socket.create_connection((LOCAL, port)):
            accepted, _ = listener.accept()
            accepted.close()
    return port


def rank_environment(base: Mapping[str, str], rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun tells a rank, and time-outs of the device libraries unless the worker's table has its own."""
    threads = max(1, (os.cpu_count() or 1) // size)
    unless_said = {
        "OMP_NUM_THREADS": str(threads),
        "COLLECTIVE_SECONDS": str(COLLECTIVE_SECONDS),
        "GLOO_SOCKET_IFNAME": "lo",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",  # a collective that timed out ends its process
        "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC": "60",
        "HCCL_CONNECT_TIMEOUT": "120",
        "HCCL_EXEC_TIMEOUT": "25",
    }
    return {
        **unless_said,
        **base,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "GROUP_RANK": "0",
        "GROUP_WORLD_SIZE": "1",
        "MASTER_ADDR": LOCAL,
        "MASTER_PORT": str(port),
    }


@dataclass
class Rank:
    """One process of the group."""

    number: int
    process: subprocess.Popen[bytes]
    beats: int  # where its signs of life are read
    log: Path
    last: float
    is_loading: bool = True

    def listen(self) -> None:
        """Take what has come of its signs of life."""
        with contextlib.suppress(BlockingIOError):
            heard = os.read(self.beats, 4096)
            if heard:
                self.last = time.monotonic()
                self.is_loading = heard[-1:] == LOADING


class Group:
    """All ranks of one host."""

    def __init__(self, wire_fd: int, engine_module: str, size: int, log: Path, silence_seconds: float) -> None:
        self.silence_seconds = silence_seconds
        self.ranks: list[Rank] = []
        pairs = [socket.socketpair() for _ in range(size - 1)]
        port = free_port()
        for number in range(size):
            wires = [pairs[number - 1][1].fileno()] if number else [wire_fd, *(ours.fileno() for ours, _ in pairs)]
            self.ranks.append(self._start(number, size, port, engine_module, wires, log_of_rank(log, number)))
        for pair in pairs:
            for end in pair:
                end.close()
        os.close(wire_fd)  # so that the worker hears at once when rank 0 is gone

    def _start(self, number: int, size: int, port: int, engine_module: str, wires: list[int], log: Path) -> Rank:
        reads, writes = os.pipe()
        os.set_blocking(reads, False)
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, writes)
            output = None if number == 0 else stack.enter_context(log.open("ab"))
            process = subprocess.Popen(
                [sys.executable, "-m", "workers.host.rank", str(writes), engine_module, *map(str, wires)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=rank_environment(os.environ, number, size, port),
                pass_fds=[writes, *wires],
            )
        return Rank(number, process, reads, log, time.monotonic())

    def watch(self) -> int:
        """Until the first rank is gone or silent; then all are.  The launcher's exit code."""
        while True:
            select.select([rank.beats for rank in self.ranks if rank.process.returncode is None], [], [], LOOK_SECONDS)
            for rank in self.ranks:
                rank.listen()
            for rank in self.ranks:
                code = rank.process.poll()
                if code is not None:
                    if rank.number == 0 and code == 0:
                        reason = ""  # the worker hung up
                    elif code < 0:
                        reason = f"was killed by {signal.Signals(-code).name}"
                    else:
                        reason = f"exited with {code}"
                    return self._end(rank, reason)
            for rank in self.ranks:
                silent = time.monotonic() - rank.last
                if silent > (START_SECONDS if rank.is_loading else self.silence_seconds):
                    return self._end(rank, f"gave no sign of life for {silent:.0f} s")
            time.sleep(LOOK_SECONDS / 10)

    def _end(self, lost: Rank, reason: str) -> int:
        for rank in self.ranks:
            rank.process.kill()
        for rank in self.ranks:
            rank.process.wait()
        if not reason:
            return 0
        said = "" if lost.number == 0 else last_line(lost.log)
        print(  # noqa: T201
            f"rank {lost.number} of {len(self.ranks)} {reason}, so all were ended"
            + (f"; it said: {said}" * bool(said)),
            file=sys.stderr,
            flush=True,
        )
        return LOST_EXIT


def last_line(log: Path) -> str:
    """What a rank printed last; empty if nothing."""
    with contextlib.suppress(OSError), log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 4096))
        lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
        return lines[-1] if lines else ""
    return ""


def main(argv: list[str]) -> int:
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the worker's to hear
    wire_fd, engine_module, size, log, silence = argv
    return Group(int(wire_fd), engine_module, int(size), Path(log), float(silence)).watch()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
