"""Everything that can go wrong, in one tree; the class decides what follows and how the CLI exits.

    FarmError
    ├── ConfigError       a setting is wrong: one line naming file and key               exit 2
    ├── InputError        what the user gave cannot be rendered; never retried           exit 2
    ├── SomeJobsFailed    a waited batch ended with failed jobs                          exit 3
    ├── MediaError        a media tool failed; its caller says what that means
    ├── EngineError       the model failed; tried again after a pause
    │   ├── OutOfMemory   tried again once, smaller
    │   ├── NoEncoder     this worker's ffmpeg cannot encode the job's frames; another worker may
    │   └── DeviceFault   the device or its host is unusable; the host is replaced
    ├── Interrupted       a stop that was asked for; costs no attempt
    ├── NotEnoughRoom     a worker's disk or memory is too full to take work, or a disk for a model
    ├── NotFetched        a hub did not give a model's files whole                       exit 1
    ├── StoreError        the store of files does not answer or refuses; held against no job
    ├── FileLost          a published file is gone or is no longer what was published
    └── LedgerError
        ├── LedgerAway    the database does not answer; tried again, held against nobody    exit 1
        ├── NotFound      no such batch, job, segment or worker                          exit 1
        ├── LeaseLost     the lease expired or was taken over; this result is void
        ├── EngineChanged the film was begun by another version of the engine; it begins again
        └── IllegalMove   our bug: a state was asked for a move that it does not have    exit 1

This module is read by the host's child process too, under the model's own interpreter: it imports only the standard
library and stays valid on Python 3.10.
"""

from __future__ import annotations

from collections.abc import Sequence


class FarmError(Exception):
    """Base of every error that the farm raises on purpose; `str(error)` is one sentence for a person."""

    exit_code = 1


class ConfigError(FarmError):
    """A setting is wrong; the message names the file and the key."""

    exit_code = 2


class InputError(FarmError):
    """What the user gave cannot be rendered; the sentence says what is wrong and what to do."""

    exit_code = 2


class SomeJobsFailed(FarmError):
    """Some jobs of a waited batch failed."""

    exit_code = 3


class MediaError(FarmError):
    """A media tool failed.  Keeps its argv, exit code and last lines; the caller translates."""

    def __init__(self, argv: Sequence[str], code: int | None, stderr: str) -> None:
        self.argv = list(argv)
        self.code = code
        self.stderr = stderr
        last = [line.strip() for line in stderr.splitlines() if line.strip()][-3:]
        tool = self.argv[0].rsplit("/", 1)[-1] if self.argv else "media tool"
        ended = "ran out of time" if code is None else f"ended with {code}"
        super().__init__(f"{tool} {ended}: {' | '.join(last) or 'it said nothing'}")

    def __reduce__(self) -> tuple[type[MediaError], tuple[list[str], int | None, str]]:
        """The workshop's child hands its errors over pickled, and the base class would forget the arguments."""
        return MediaError, (self.argv, self.code, self.stderr)


class EngineError(FarmError):
    """The model failed on this segment; it is tried again after a pause."""


class OutOfMemory(EngineError):
    """The device ran out of memory; tried again once, smaller."""


class NoEncoder(EngineError):
    """This worker cannot encode with the codec of the job; another worker may."""


class DeviceFault(EngineError):
    """The device or its host is unusable; the host is replaced."""


class Interrupted(FarmError):
    """A stop that was asked for: drain, pause, cancel, shutdown.  Costs no attempt."""


class NotEnoughRoom(FarmError):
    """This worker has too little free disk or memory to take work; or the disk has none for a model's files."""


class NotFetched(FarmError):
    """A hub did not give a model's files whole; asking again goes on where it stopped."""


class StoreError(FarmError):
    """The store of files does not answer or refuses; the sentence says which and names no key."""


class FileLost(FarmError):
    """A published file is gone or is no longer what was published."""


class LedgerError(FarmError):
    """The ledger refused."""


class LedgerAway(LedgerError):
    """The database does not answer; what was asked of it may be asked again."""


class NotFound(LedgerError):
    """No such batch, job, segment or worker."""


class LeaseLost(LedgerError):
    """The lease expired or was taken over; this worker's result is void."""


class EngineChanged(LedgerError):
    """The film was begun by another version of the engine, whose frames may not stand beside this one's."""

    @classmethod
    def between(cls, begun_by: str | None, version: str) -> EngineChanged:
        return cls(f"the film was begun by version {begun_by} of the engine and this is {version}")


class IllegalMove(LedgerError):
    """A state was asked for a move that it does not have.  This is a bug of the farm."""
