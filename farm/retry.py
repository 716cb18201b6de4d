"""What follows when an attempt ends without a result: a pure function of the error and of what happened before."""

from __future__ import annotations

import errno
from dataclasses import dataclass

from farm.errors import (
    DeviceFault,
    FarmError,
    InputError,
    Interrupted,
    LedgerAway,
    MediaError,
    NoEncoder,
    NotEnoughRoom,
    OutOfMemory,
    StoreError,
)
from farm.logs import redact
from farm.states import Event

STRIKES_PER_JOB = 3  # a worker that failed a job this often does not get it again
_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How patient the farm is with one segment."""

    max_errors: int = 3  # attempts that may fail before the segment is given up
    max_losses: int = 8  # attempts whose worker may vanish before the segment itself is suspected
    base_delay_seconds: float = 5.0
    max_delay_seconds: float = 300.0

    def delay_after(self, failures: int) -> float:
        """Seconds to wait after failure number `failures`, counted from 1: doubling, bounded."""
        return backoff(failures, self.base_delay_seconds, self.max_delay_seconds)


def backoff(failures: int, base_seconds: float, longest_seconds: float) -> float:
    """Seconds to wait after failure number `failures`, counted from 1: doubling, bounded."""
    doublings = min(max(failures - 1, 0), 60)  # what comes after would only overflow
    return min(base_seconds * 2.0**doublings, longest_seconds)


@dataclass(frozen=True, slots=True)
class Decision:
    """What the ledger is told."""

    event: Event
    reason: str
    failure: str  # class of the error, for reports and metrics
    delay_seconds: float = 0.0
    strike: bool = False  # held against the worker
    counts: bool = False  # counts towards max_errors
    smaller: bool = False  # the next attempt saves memory
    replace_host: bool = False


def classify(error: BaseException) -> str:
    """One word for reports: input, memory, encoder, device, engine, media, room, store, ledger, stop or bug."""
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        return "room"
    kinds: tuple[tuple[type[BaseException], str], ...] = (
        (InputError, "input"),
        (OutOfMemory, "memory"),
        (NoEncoder, "encoder"),
        (DeviceFault, "device"),
        (MediaError, "media"),
        (NotEnoughRoom, "room"),
        (StoreError, "store"),
        (LedgerAway, "ledger"),
        (Interrupted, "stop"),
    )
    for kind, word in kinds:
        if isinstance(error, kind):
            return word
    return "engine" if isinstance(error, FarmError) else "bug"


def decide(
    error: BaseException, *, errors_before: int, was_smaller: bool, policy: RetryPolicy, others_may: bool = False
) -> Decision:
    """What to do after `error` ended an attempt of a segment that had failed `errors_before` times already.

    `others_may`: there are workers that did not refuse its job for want of an encoder.
    """
    failure = classify(error)
    reason = redact(str(error)) or type(error).__name__  # it is kept in the ledger and shown to everybody
    if failure in ("stop", "room", "store", "ledger"):
        # The segment may go elsewhere at once; a worker without room or store claims nothing before it has them again.
        return Decision(Event.INTERRUPT, reason, failure)
    if failure == "input":
        return Decision(Event.FAIL, reason, failure)
    if failure == "encoder":
        # It cannot go on for ever: the strikes of one job are counted for each worker, and a refusal is one.
        return Decision(Event.INTERRUPT if others_may else Event.FAIL, reason, failure, strike=others_may)
    replace = failure == "device"
    if failure == "memory":
        if was_smaller:
            return Decision(Event.FAIL, f"{reason} (also with the memory-saving settings)", failure, counts=True)
        return Decision(Event.RETRY, reason, failure, counts=True, smaller=True, replace_host=True)
    if errors_before + 1 >= policy.max_errors:
        spent = f"given up after {errors_before + 1} attempts; the last one: {reason}"
        return Decision(Event.FAIL, spent, failure, strike=True, counts=True, replace_host=replace)
    delay = policy.delay_after(errors_before + 1)
    return Decision(Event.RETRY, reason, failure, delay, strike=True, counts=True, replace_host=replace)
