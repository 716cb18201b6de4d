"""Run a media tool: in a process group of its own, within limits, keeping only the end of what it says.

Limits are set with prlimit(2) right after the start.  `preexec_fn` is not safe in a process with threads, and a
wrapper program would be one more thing to find; the few milliseconds in between are spent in the dynamic loader,
before ffmpeg has read a byte of its input.
"""

from __future__ import annotations

import contextlib
import os
import resource
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

from farm.errors import MediaError, NotEnoughRoom

MIB = 1024 * 1024
TAIL_BYTES = 8 * 1024  # of stderr; a damaged file makes ffmpeg write a line per packet for hours
OUTPUT_LIMIT_BYTES = 64 * MIB
DISK_FULL = "No space left on device"


class Child:
    """A media tool that runs until it ends, is killed, or its deadline passes.

    stdin, stdout and `watched` are as in Popen: file descriptors of the caller, which stay the caller's to close.
    `watched` maps a descriptor that the child writes text to (such as -progress) to what is called with each line.
    `environment` is the caller's own unless given; an encoder on a card reads there which cards it may see.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        timeout_seconds: float | None,
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.DEVNULL,
        pass_fds: Sequence[int] = (),
        memory_limit_bytes: int | None = None,
        on_line: Mapping[int, Callable[[str], None]] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.argv = list(argv)
        self.timed_out = False
        self._tail = bytearray()
        self._deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        self._process = subprocess.Popen(
            self.argv,
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            pass_fds=pass_fds,
            process_group=0,
            env=_environment(environment),
        )
        self.pid = self._process.pid
        if memory_limit_bytes is not None:
            self._limit_memory(memory_limit_bytes)
        self._on_line = dict(on_line or {})
        self._wake_read, self._wake_write = os.pipe()
        self._watcher = threading.Thread(target=self._watch, name=f"media-{self.pid}", daemon=True)
        self._watcher.start()

    @property
    def stdout(self) -> IO[bytes]:
        """The read end, where stdout=PIPE was asked for."""
        assert self._process.stdout is not None
        return self._process.stdout

    @property
    def stdin(self) -> IO[bytes]:
        """The write end, where stdin=PIPE was asked for."""
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def stderr(self) -> str:
        """The last lines that the child wrote to stderr."""
        said = bytes(self._tail).decode(errors="replace")
        return said.partition("\n")[2] if len(self._tail) == TAIL_BYTES else said  # the first line may be half a line

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def set_timeout(self, seconds: float) -> None:
        """Let the deadline be `seconds` from now."""
        self._deadline = time.monotonic() + seconds
        with contextlib.suppress(OSError):
            os.write(self._wake_write, b".")

    def wait(self) -> int:
        """Wait for the end, which the deadline bounds, and return the exit code (negative: killed by a signal)."""
        code = self._process.wait()
        self._watcher.join()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):  # a broken pipe when buffered bytes meet a dead reader
                    stream.close()
        for fd in (self._wake_read, self._wake_write):
            with contextlib.suppress(OSError):
                os.close(fd)
        self._wake_read = self._wake_write = -1
        return code

    def finish(self) -> None:
        """Wait for the end; raise MediaError if it is not a good one, NotEnoughRoom if the disk was full."""
        # ffmpeg 5 ends with 0 when it was the last write that found the disk full.
        if self.wait() != 0 or self.timed_out or DISK_FULL in self.stderr:
            raise self.failure()

    def failure(self) -> MediaError | NotEnoughRoom:
        """What to raise about a child that did not end well."""
        if DISK_FULL in self.stderr:
            return NotEnoughRoom("The disk is full: a media tool could not write its output.")
        return MediaError(self.argv, None if self.timed_out else self._process.returncode, self.stderr)

    def kill(self) -> None:
        """Kill the whole process group and wait for it.  A stopped (SIGSTOP) process dies of this too."""
        self._kill_group()
        self.wait()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()  # does nothing to a child that has been waited for

    def _kill_group(self) -> None:
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def _limit_memory(self, limit: int) -> None:
        if hasattr(resource, "prlimit"):  # Linux only; elsewhere the deadline is the only limit
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(self.pid, resource.RLIMIT_AS, (limit, limit))

    def _watch(self) -> None:
        """Body of the thread that drains stderr and progress, and that kills at the deadline."""
        assert self._process.stderr is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stderr, selectors.EVENT_READ, self._keep_tail)
            selector.register(self._wake_read, selectors.EVENT_READ, None)
            for fd, on_line in self._on_line.items():
                selector.register(fd, selectors.EVENT_READ, _Lines(on_line))
            while len(selector.get_map()) > 1:
                if self._deadline is not None and time.monotonic() >= self._deadline and not self.timed_out:
                    self.timed_out = True
                    self._kill_group()
                pause = None if self._deadline is None or self.timed_out else self._deadline - time.monotonic()
                for key, _ in selector.select(None if pause is None else max(pause, 0)):
                    data = os.read(key.fd, 64 * 1024)
                    if key.data is None:
                        continue
                    if data:
                        key.data(data)
                    else:
                        selector.unregister(key.fileobj)

    def _keep_tail(self, data: bytes) -> None:
        self._tail += data
        del self._tail[:-TAIL_BYTES]


class _Lines:
    """Cut a byte stream into lines."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._rest = b""

    def __call__(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._on_line(line.decode(errors="replace"))


def run(
    argv: Sequence[str],
    *,
    timeout_seconds: float,
    memory_limit_bytes: int | None = None,
    output_limit_bytes: int = OUTPUT_LIMIT_BYTES,
    environment: Mapping[str, str] | None = None,
) -> bytes:
    """Run a media tool without input and return its stdout.

    Raises MediaError when it fails, runs out of time or says more than `output_limit_bytes`; NotEnoughRoom when the
    disk is full; OSError when the program cannot be started.
    """
    with Child(
        argv,
        timeout_seconds=timeout_seconds,
        stdout=subprocess.PIPE,
        memory_limit_bytes=memory_limit_bytes,
        environment=environment,
    ) as child:
        said = child.stdout.read(output_limit_bytes + 1)
        if len(said) > output_limit_bytes:
            child.kill()
            raise MediaError(argv, -signal.SIGKILL, f"it wrote more than {output_limit_bytes} bytes and was stopped")
        child.finish()
        return said


def enlarge_pipe(fd: int, size: int = MIB) -> None:
    """Let a pipe hold `size` bytes where the system allows it, so that writer and reader wait less for each other."""
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import fcntl

        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, size)


def _environment(base: Mapping[str, str] | None) -> dict[str, Any]:
    # FFREPORT would make ffmpeg write a log file wherever it runs.  Messages are parsed, so they stay in English.  On a
    # machine with many processors, glibc's arenas would use up the address space that a memory limit leaves.
    inherited = {key: value for key, value in (os.environ if base is None else base).items() if key != "FFREPORT"}
    return inherited | {"LC_ALL": "C.UTF-8", "MALLOC_ARENA_MAX": "2"}
