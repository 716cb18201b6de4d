"""Machines that are not there: network namespaces, and a switch in this process that can lose, delay and cut.

A kernel's own netem is missing from many machines, so the wires are ours: each namespace has a TAP device whose other
end is a file descriptor here, and one thread carries Ethernet frames between them.  A cut is silent, as a pulled cable
behind a switch is: no device goes down, packets just do not arrive.  Nothing has a name outside of this process and
the processes in the namespaces die with their parent, so the kernel clears everything away, also after SIGKILL.

Needs root, iproute2, util-linux and /dev/net/tun; `why_not` says what is missing.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import os
import random
import selectors
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import START_SECONDS, reap_with_us, wait_for_postgres
from tests.system.stage import PostgresServer, RedisServer

TUN = Path("/dev/net/tun")
_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x0002, 0x1000  # linux/if_tun.h
_CLONE_NEWNET = 0x40000000
_FRAME_BYTES = 2048  # a device's MTU is 1500
_BROADCAST = b"\xff" * 6
_HOLD_ALL = 4096  # frames that may be under way on a slow wire; a real one drops what is more, too


def why_not() -> str | None:
    """A sentence when this machine cannot make others."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [tool for tool in ("ip", "unshare", "nsenter", "setpriv") if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} is missing; install iproute2 and util-linux"
    if not TUN.exists():
        return f"{TUN} is missing; this container may not make network devices"
    tried = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True, check=False)
    return f"no network namespace can be made: {tried.stderr.strip()}" if tried.returncode else None


@dataclass
class Machine:
    """One namespace with one device, `eth0`, on the switch."""

    name: str
    address: str
    holder: subprocess.Popen[bytes]  # lives in the namespace, which lives as long
    tap: int  # the other end of its eth0

    # The faults of its wire, in each direction
    cut_out: bool = False  # what it sends is lost
    cut_in: bool = False  # what is sent to it is lost
    loss: float = 0.0  # probability for each packet
    delay_seconds: float = 0.0  # one way

    # What its wire did
    carried: int = 0
    dropped: int = 0

    @property
    def inside(self) -> list[str]:
        """What a command begins with that runs on this machine."""
        return ["nsenter", f"--net=/proc/{self.holder.pid}/ns/net", "--"]

    def cut(self, *, outwards: bool = True, inwards: bool = True) -> None:
        self.cut_out, self.cut_in = outwards, inwards

    def heal(self) -> None:
        self.cut_out = self.cut_in = False
        self.loss = self.delay_seconds = 0.0


@dataclass
class Switch:
    """Carries frames between machines until it is closed.  Use `switch()`."""

    seed: int = 0
    prefix: str = "10.77.0"
    machines: dict[str, Machine] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._dice = random.Random(self.seed)
        self._lock = threading.Lock()
        self._ports: dict[bytes, Machine] = {}  # by Ethernet address, learnt from what was sent
        self._under_way: list[tuple[float, int, Machine, bytes]] = []
        self._number = 0
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe()
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="switch", daemon=True)
        self._thread.start()

    def add(self, name: str) -> Machine:
        """A new machine on the switch."""
        argv = [*reap_with_us("KILL"), "unshare", "--net", "--", "sleep", "infinity"]
        holder = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        mine = Path("/proc/self/ns/net").stat().st_ino
        deadline = time.monotonic() + START_SECONDS
        while Path(f"/proc/{holder.pid}/ns/net").stat().st_ino == mine:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{name}: no namespace of its own")
            time.sleep(0.005)
        machine = Machine(name, f"{self.prefix}.{len(self.machines) + 1}", holder, _open_tap(holder.pid))
        for words in (
            ["link", "set", "lo", "up"],
            ["addr", "add", f"{machine.address}/24", "dev", "eth0"],
            ["link", "set", "eth0", "up"],
        ):
            subprocess.run([*machine.inside, "ip", *words], check=True)
        with self._lock:
            self.machines[name] = machine
            self._selector.register(machine.tap, selectors.EVENT_READ, machine)
        os.write(self._wake_write, b".")
        return machine

    def close(self) -> None:
        self._closing = True
        os.write(self._wake_write, b".")
        self._thread.join()
        for machine in self.machines.values():
            os.close(machine.tap)
            machine.holder.kill()
            machine.holder.wait()
        self._selector.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _run(self) -> None:
        while not self._closing:
            wait = max(0.0, self._under_way[0][0] - time.monotonic()) if self._under_way else None
            for key, _ in self._selector.select(wait):
                if key.data is None:
                    os.read(self._wake_read, 64)
                    continue
                with contextlib.suppress(OSError):
                    while True:
                        self._take(key.data, os.read(key.fd, _FRAME_BYTES))
            now = time.monotonic()
            while self._under_way and self._under_way[0][0] <= now:
                _, _, machine, frame = heapq.heappop(self._under_way)
                self._deliver(machine, frame)

    def _take(self, source: Machine, frame: bytes) -> None:
        self._ports[frame[6:12]] = source
        target = self._ports.get(frame[:6])
        targets = [target] if target is not None and frame[:6] != _BROADCAST else list(self.machines.values())
        if self._is_lost(source, source.cut_out):
            return
        for machine in targets:
            if machine is source or self._is_lost(machine, machine.cut_in):
                continue
            delay = source.delay_seconds + machine.delay_seconds
            if not delay:
                self._deliver(machine, frame)
            elif len(self._under_way) < _HOLD_ALL:
                self._number += 1
                heapq.heappush(self._under_way, (time.monotonic() + delay, self._number, machine, frame))

    def _is_lost(self, machine: Machine, is_cut: bool) -> bool:
        lost = is_cut or (machine.loss > 0 and self._dice.random() < machine.loss)
        machine.dropped += lost
        return lost

    def _deliver(self, machine: Machine, frame: bytes) -> None:
        with contextlib.suppress(OSError):  # its queue is full, or it is gone
            os.write(machine.tap, frame)
            machine.carried += 1


@contextlib.contextmanager
def switch(seed: int = 0) -> Iterator[Switch]:
    made = Switch(seed)
    try:
        yield made
    finally:
        made.close()


def _open_tap(pid: int) -> int:
    """The outer end of a new `eth0` in the namespace of `pid`.  It goes when the descriptor is closed."""
    result: list[int | OSError] = []

    def enter_and_open() -> None:  # only this thread changes its namespace, and then it ends
        libc = ctypes.CDLL(None, use_errno=True)
        namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
        try:
            if libc.setns(namespace, _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
            tap = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", b"eth0", _IFF_TAP | _IFF_NO_PI))
            result.append(tap)
        except OSError as error:
            result.append(error)
        finally:
            os.close(namespace)

    thread = threading.Thread(target=enter_and_open)
    thread.start()
    thread.join()
    (found,) = result
    if isinstance(found, OSError):
        raise found
    return found


class FarRedis(RedisServer):
    """A Redis on a machine of its own; this process reaches it through its Unix socket."""

    def __init__(self, folder: Path, machine: Machine) -> None:
        super().__init__(folder)
        self.prefix = machine.inside
        self.options = {"port": 6379, "bind": machine.address, "protected-mode": "no"}
        self.far_url = f"redis://{machine.address}:6379/0"


class FarPostgres(PostgresServer):
    """A PostgreSQL on a machine of its own, which dies with us; this process reaches it through its Unix socket."""

    def __init__(self, folder: Path, machine: Machine) -> None:
        super().__init__(folder)
        self.machine = machine
        self._process: subprocess.Popen[bytes] | None = None

    def far_url(self, database: str) -> str:
        return f"postgresql://postgres@{self.machine.address}:5432/{database}"

    def start(self) -> None:
        if not (self.data / "PG_VERSION").exists():
            self.run("initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
            with (self.data / "pg_hba.conf").open("a") as file:
                file.write("host all all 10.77.0.0/24 trust\n")
        argv = [*self.machine.inside, *self._drop, *reap_with_us("QUIT"), str(self.programs / "postgres")]
        argv += ["-D", str(self.data), "-k", str(self.data), "-h", self.machine.address, "-c", "max_connections=200"]
        log = self.folder / "server.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(argv, stdout=output, stderr=output, cwd="/")
        wait_for_postgres(self.admin_url, self._process, log)

    def stop(self) -> None:
        """As after a crash: every connection breaks and what was not committed is gone."""
        if self._process is not None:
            self._process.send_signal(3)  # SIGQUIT, immediate shutdown
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        self.stop()
        self.start()
