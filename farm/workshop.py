"""A child process for work on users' files: one that crashes its decoder takes the child, not its parent."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for
from concurrent.futures.process import BrokenProcessPool
from typing import Any, ParamSpec, TypeVar

from farm.errors import DeviceFault
from farm.processes import die_with_parent, kill_group

P = ParamSpec("P")
T = TypeVar("T")
_LOOK_SECONDS = 0.25


class Stopped(Exception):
    """The work was given up because `why_stop` said so; the word is its argument."""


class Workshop:
    """Runs functions one after the other in a warm child process that may be killed at any time."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    def do(
        self,
        function: Callable[P, T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Future[T]:
        """Start `function` in the child.  Arguments and result must be picklable; nothing of a user's is executed."""
        try:
            return self._start().submit(function, *args, **kwargs)
        except BrokenProcessPool:  # the child died while it had nothing to do
            self.kill()
            return self._start().submit(function, *args, **kwargs)

    def _start(self) -> ProcessPoolExecutor:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")  # a fork would copy this process's threads' locks
            self._pool = ProcessPoolExecutor(1, mp_context=context, initializer=_be_a_child, initargs=(os.getpid(),))
        return self._pool

    def wait(self, future: Future[T], *, timeout_seconds: float, why_stop: Callable[[], str | None]) -> T:
        """The function's result.

        Raises what it raised, Stopped when `why_stop` answers, and DeviceFault when the child died or ran out of time;
        in the last three cases the child is killed with everything that it started.
        """
        waited = 0.0
        while not wait_for([future], timeout=_LOOK_SECONDS).done:
            waited += _LOOK_SECONDS
            word = why_stop()
            if word is not None:
                self.kill()
                raise Stopped(word)
            if waited > timeout_seconds:
                self.kill()
                raise DeviceFault(f"the work took longer than {timeout_seconds:.0f} s and was killed")
        try:
            return future.result()
        except BrokenProcessPool:
            self.kill()
            raise DeviceFault("the process that reads users' files died; the file may crash its decoder") from None

    def kill(self) -> None:
        """End the child and what it started."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        processes: dict[int, Any] = dict(getattr(pool, "_processes", None) or {})
        for pid in processes:
            kill_group(pid)
        with contextlib.suppress(Exception):
            pool.shutdown(wait=True, cancel_futures=True)


def _be_a_child(parent: int) -> None:
    with contextlib.suppress(OSError):
        os.setsid()  # its own group, so that ffmpeg goes with it
    die_with_parent()
    if os.getppid() != parent:
        os._exit(1)  # the parent died before the kernel was asked to tell
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
