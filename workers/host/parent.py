"""The worker's side of a host: start it, talk to it, watch it, and kill its whole process group when it must go."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from farm.cards import Claim, claim_cards
from farm.devices import DeviceSet
from farm.errors import ConfigError, DeviceFault, EngineError, FarmError, InputError, OutOfMemory
from farm.processes import kill_group
from workers.host.group import log_of_rank
from workers.host.wire import HungUp, Wire

log = logging.getLogger(__name__)

SECRETS = (
    "FARM_LEDGER_URL",
    "FARM_REDIS_URL",
    "FARM_STORE__ACCESS_KEY",
    "FARM_STORE__SECRET_KEY",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
)  # hold passwords; a model's own code has no use for them
# What torchrun or a scheduler may have told the worker about a group that the host is no part of.
GROUPS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_SOURCES = Path(__file__).resolve().parents[2]
_LOG_LIMIT_BYTES = 16 << 20
_KILL_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class HostSpec:
    """How a host is launched.  Comes from configs/ alone, never from a job."""

    engine_module: str
    engine_settings: Mapping[str, Any]
    devices: DeviceSet
    log_file: Path
    python: str = sys.executable
    env_script: str = ""  # sourced before the interpreter starts, e.g. CANN's set_env.sh
    environment: Mapping[str, str] = field(default_factory=dict)
    load_timeout_seconds: float = 1800.0
    stuck_factor: float = 20.0
    stuck_floor_seconds: float = 60.0
    ranks: int = 1  # processes that render together, each on one device of the set
    silence_seconds: float = 20.0  # a rank that shows no life for so long is lost
    text_device: DeviceSet | None = None  # where rank 0 may keep what encodes prompts
    holder: str = ""  # who holds the cards, as others are told
    shares_cards: bool = False  # with others that were told the same

    def argv(self, fd: int) -> list[str]:
        child = [self.python, "-m", "workers.host.child", str(fd), self.engine_module]
        if self.ranks > 1:
            group = [str(self.ranks), str(self.log_file.absolute()), f"{self.silence_seconds:g}"]
            child = [self.python, "-m", "workers.host.group", str(fd), self.engine_module, *group]
        if not self.env_script:
            return child
        # The one place where a shell runs: vendors ship these scripts for a shell only.  Arguments stay arguments.
        return ["bash", "-c", 'source "$0" >&2 && exec "$@"', self.env_script, *child]

    @property
    def device_sets(self) -> list[DeviceSet]:
        return [self.devices, *([self.text_device] if self.text_device is not None else [])]

    def child_environment(self) -> dict[str, str]:
        text = self.text_device
        visible = self.devices.beside(text) if text is not None else self.devices
        env = visible.environment()
        for name in (*SECRETS, *GROUPS):
            env.pop(name, None)
        if text is not None:  # the last of the visible devices, counted among those as the host's libraries do
            env["TEXT_DEVICE"] = "cpu" if text.kind == "cpu" else f"{text.kind}:{len(self.devices.ids)}"
        env.update(self.environment)
        env["PYTHONPATH"] = os.pathsep.join([str(_SOURCES), *filter(None, [env.get("PYTHONPATH")])])
        env["PYTHONUNBUFFERED"] = "1"
        env.pop("PYTHONSTARTUP", None)
        return env


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the engine said after loading; see workers/engines/contract.py."""

    description: Mapping[str, Any]
    report: Mapping[str, Any]
    python: str


@dataclass(frozen=True, slots=True)
class Progress:
    frames: int  # of this segment, handed to the encoder so far
    seconds: float  # of the newest chunk


@dataclass(frozen=True, slots=True)
class Rendered:
    frames: int
    device_seconds: float
    carry: bytes | None  # None when the render was stopped before its end
    last_frame: bytes = b""  # in the engine's pixel format; empty when stopped


@dataclass(frozen=True, slots=True)
class LiveFrames:
    """What one message of sound made possible: `count` frames in the engine's pixel format, one after the other."""

    count: int
    pixels: bytes
    seconds: float


class Host:
    """One engine kept warm in a child process.  Used by one thread; `stop_render` and `kill` may come from any."""

    def __init__(self, spec: HostSpec) -> None:
        self.spec = spec
        self.loaded: Loaded | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._wire: Wire | None = None
        self._inbox: queue.Queue[tuple[dict[str, Any], bytes] | None] = queue.Queue()
        self._chunk_seconds: list[float] = []
        self._sizes_seen: set[tuple[int, int]] = set()
        self._claim: Claim | None = None
        self._log_start = 0  # where in the log this child's words begin

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, give_up: threading.Event | None = None) -> Loaded:
        """Start the child and load the engine.

        Raises ConfigError when the launch itself cannot work, DeviceFault when somebody else holds one of its cards,
        and what loading raised otherwise.
        """
        self._launch()
        self._say({"say": "load", "settings": dict(self.spec.engine_settings)})
        message, _ = self._hear(self.spec.load_timeout_seconds, "loading", give_up)
        if message["say"] != "ready":
            raise self._error_from(message)
        self.loaded = Loaded(message["description"], message["report"], message["python"])
        return self.loaded

    def _launch(self) -> None:
        self.kill()
        if shutil.which(self.spec.python) is None:
            raise ConfigError(f"python_executable {self.spec.python!r} does not exist")
        if self.spec.env_script and not Path(self.spec.env_script).is_file():
            raise ConfigError(f"env_script {self.spec.env_script!r} does not exist")
        if self._claim is None:
            who = self.spec.holder or f"pid {os.getpid()}"
            self._claim = claim_cards(self.spec.device_sets, who, shares=self.spec.shares_cards)
        ours, theirs = socket.socketpair()
        self.spec.log_file.parent.mkdir(parents=True, exist_ok=True)
        for rank in range(self.spec.ranks):
            _rotate(log_of_rank(self.spec.log_file, rank))
        self._log_start = self.spec.log_file.stat().st_size if self.spec.log_file.exists() else 0
        with self.spec.log_file.open("ab") as output:
            self._process = subprocess.Popen(
                self.spec.argv(theirs.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self.spec.child_environment(),
                # With the locks of its cards: they stay taken until the host is gone, should the worker go first.
                pass_fds=[theirs.fileno(), *self._claim.descriptors],
                start_new_session=True,  # its own process group, killed as a whole
            )
        theirs.close()
        self._wire = Wire(ours)
        self._inbox = queue.Queue()
        self._chunk_seconds = []
        self._sizes_seen = set()
        threading.Thread(
            target=_listen, args=(self._wire, self._inbox), name=f"host-{self._process.pid}", daemon=True
        ).start()

    def render(
        self, film: Mapping[str, Any], *, first_frame: int, frames: int, carry: bytes | None, write_fd: int
    ) -> Iterator[Progress | Rendered]:
        """Render frames [first_frame, first_frame + frames) into the pipe `write_fd`, which stays the caller's.

        Yields Progress after every chunk and Rendered at the end.  Raises InputError, EngineError, OutOfMemory, and
        DeviceFault after killing a host that died or shows no progress.
        """
        message = {
            "say": "render",
            "film": dict(film),
            "first_frame": first_frame,
            "frames": frames,
            "carry": carry is not None,
        }
        self._say(message, carry or b"", [write_fd])
        size = (film["width"], film["height"])
        while True:
            heard, blob = self._hear(self._patience(size), "rendering")
            word = heard["say"]
            if word == "chunk":
                self._note_chunk(size, heard["seconds"])
                yield Progress(heard["frames"], heard["seconds"])
            elif word in ("done", "stopped"):
                if word == "stopped":
                    yield Rendered(heard["frames"], heard["device_seconds"], None)
                else:
                    cut = heard["carry_bytes"]
                    yield Rendered(heard["frames"], heard["device_seconds"], blob[:cut], blob[cut:])
                return
            elif word == "error":
                raise self._error_from(heard)

    @contextlib.contextmanager
    def live(self, film: Mapping[str, Any]) -> Iterator[Callable[[bytes], LiveFrames]]:
        """A live session; what is yielded takes the next samples, 16 bit little endian at 16 kHz.

        Raises InputError, EngineError and OutOfMemory, after which the session is over and the engine stays warm, and
        DeviceFault after killing a host that died or shows no progress.
        """
        size = (film["width"], film["height"])
        self._say({"say": "live", "film": dict(film)})
        heard, _ = self._hear(self._patience(size), "beginning a live session")
        if heard["say"] != "begun":
            raise self._error_from(heard)
        is_over = False

        def hear(pcm: bytes) -> LiveFrames:
            nonlocal is_over
            is_over = True
            self._say({"say": "speech"}, pcm)
            answer, pixels = self._hear(self._patience(size), "in a live session")
            if answer["say"] != "frames":
                raise self._error_from(answer)
            is_over = False
            if answer["count"]:
                self._note_chunk(size, answer["seconds"])
            return LiveFrames(answer["count"], pixels, answer["seconds"])

        try:
            yield hear
        finally:
            if not is_over:
                self._say({"say": "end"})
                self._hear(self.spec.stuck_floor_seconds, "ending a live session")

    def stop_render(self) -> None:
        """Ask the running render to end at its next chunk."""
        if self._wire is not None:
            with contextlib.suppress(HungUp):
                self._wire.send({"say": "stop"})

    def kill(self) -> None:
        """End the child and everything that it started, and wait until that is so."""
        process, self._process = self._process, None
        wire, self._wire = self._wire, None
        self.loaded = None
        # The wire is closed last: a child that finds it closed ends by itself, and whoever left its group would then
        # have no parent to be found by.
        if process is not None:
            kill_group(process.pid, _KILL_SECONDS)
            process.wait(_KILL_SECONDS)
        if wire is not None:
            wire.close()

    def close(self) -> None:
        """Kill the child and give its cards free; until then they stay this worker's between two children."""
        self.kill()
        if self._claim is not None:
            self._claim.release()
            self._claim = None

    def last_words(self, lines: int = 6) -> str:
        """The end of what the child printed since it was started."""
        try:
            with self.spec.log_file.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(self._log_start, size - 8192))
                said = file.read().decode("utf-8", "replace")
        except OSError:
            return ""
        return _readable(" | ".join([line.strip() for line in said.splitlines() if line.strip()][-lines:]))

    def _note_chunk(self, size: tuple[int, int], seconds: float) -> None:
        self._sizes_seen.add(size)
        self._chunk_seconds = [*self._chunk_seconds[-99:], seconds]

    def _patience(self, size: tuple[int, int]) -> float:
        """Seconds without a chunk after which the render counts as stuck."""
        if size not in self._sizes_seen or not self._chunk_seconds:
            return self.spec.load_timeout_seconds  # the first chunk of a size may compile
        usual = statistics.median(self._chunk_seconds)
        return max(self.spec.stuck_floor_seconds, self.spec.stuck_factor * usual)

    def _say(self, message: dict[str, Any], blob: bytes = b"", fds: list[int] | None = None) -> None:
        if self._wire is None:
            raise DeviceFault("the host is not running")
        try:
            self._wire.send(message, blob, fds)
        except HungUp:
            raise self._death("before it could be asked") from None

    def _hear(
        self, patience_seconds: float, doing: str, give_up: threading.Event | None = None
    ) -> tuple[dict[str, Any], bytes]:
        deadline = time.monotonic() + patience_seconds
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                self.kill()
                raise DeviceFault(
                    f"the host showed no progress for {patience_seconds:.0f} s while {doing}; it was killed"
                )
            try:
                heard = self._inbox.get(timeout=min(left, 0.5))
            except queue.Empty:
                if give_up is not None and give_up.is_set():
                    self.kill()
                    raise DeviceFault(f"the host was told to end while {doing}") from None
                continue
            if heard is None:
                raise self._death(f"while {doing}")
            return heard

    def _death(self, when: str) -> DeviceFault:
        code = None
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self._process.wait(_KILL_SECONDS)  # a launcher ends its other ranks first
        words = self.last_words()
        self.kill()
        how = (
            "ended"
            if code is None
            else f"was killed by {signal.Signals(-code).name}"
            if code < 0
            else f"exited with {code}"
        )
        return DeviceFault(f"the host {how} {when}" + (f"; it said: {words}" if words else ""))

    def _error_from(self, message: Mapping[str, Any]) -> FarmError:
        kinds: Mapping[str, type[FarmError]] = {"input": InputError, "memory": OutOfMemory, "device": DeviceFault}
        said = _readable(message.get("message", "the host failed"))
        if message.get("kind") not in ("input",):
            log.warning("host %s: %s\n%s", self.pid, said, _readable(message.get("traceback", "")))
        return kinds.get(message.get("kind", ""), EngineError)(said)


def _readable(said: str) -> str:
    """What a model's code said, as text that every database and log takes: without zeros and halves of characters."""
    return said.replace("\0", "").encode("utf-8", "replace").decode()


def _listen(wire: Wire, inbox: queue.Queue[tuple[dict[str, Any], bytes] | None]) -> None:
    try:
        while True:
            message, blob, fds = wire.receive()
            for fd in fds:
                os.close(fd)
            inbox.put((message, blob))
    except (HungUp, ValueError):
        inbox.put(None)


def _rotate(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.stat().st_size > _LOG_LIMIT_BYTES:
            path.replace(path.with_name(path.name + ".1"))
