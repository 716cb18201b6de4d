"""One rank of a host's group: rank 0 serves the worker as a single host's child does, the others follow it.

    python -m workers.host.rank BEATS ENGINE WIRE [WIRE …]

BEATS is a pipe for signs of life.  Rank 0's first wire leads to the worker and the others to the ranks after it; a
follower's only wire leads to rank 0.  Every call that rank 0 makes of its engine, the followers make of theirs:

Rank 0 says                                    A follower answers, when its own call has returned
  load  {settings}                               ready {version, seconds, memory_bytes}
  begin {film, first_frame} + carry              done {}
  step  {}                                       done {}
  carry {}                                       done {}
  each may be answered                           error {kind, message}

An engine sees to it that what one rank raises because of the film, all raise; then the group stays warm.  A rank that
raises alone leaves the others waiting in a collective, so if they do not return soon after its error, the group ends.
Runs under the model's own interpreter: standard library, numpy and the engine, Python 3.10 or newer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import queue
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from farm.errors import DeviceFault, EngineError, FarmError, InputError, OutOfMemory
from workers.engines.contract import Description, DrivingAudio, Engine, FilmRequest, LoadReport, Session
from workers.host.audio import DrivingFile
from workers.host.child import Child, die_with_parent, kind_of
from workers.host.group import BEAT_SECONDS, LOADING, SERVING
from workers.host.wire import HungUp, Wire

AGREE_SECONDS = 10.0  # after one rank's error, for the others to return from the same call
LOST_EXIT = 71
KINDS: Mapping[str, type[FarmError]] = {"input": InputError, "memory": OutOfMemory, "device": DeviceFault}

Result = TypeVar("Result")


class Unheard:
    """The sound of a live session on a follower: rank 0 hears it and tells what it encodes."""

    def __len__(self) -> int:
        return 0

    def read(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        raise EngineError("only rank 0 hears the sound of a live session")


class Fellows:
    """The other ranks, as rank 0 sees them."""

    def __init__(self, wires: list[Wire], give_up: Callable[[BaseException], None]) -> None:
        self._wires = wires
        self._give_up = give_up
        self._answers: queue.Queue[tuple[int, dict[str, Any]]] = queue.Queue()
        self._alarms: list[threading.Timer] = []
        self.answers: list[dict[str, Any]] = []  # of the last call that succeeded everywhere, rank 1's first
        for rank, wire in enumerate(wires, start=1):
            threading.Thread(target=self._listen, args=(rank, wire), name=f"rank-{rank}", daemon=True).start()

    def _listen(self, rank: int, wire: Wire) -> None:
        with contextlib.suppress(HungUp):  # the launcher sees to it
            while True:
                answer, _, _ = wire.receive()
                if answer["say"] == "error":
                    self._alarm(rank, answer)
                self._answers.put((rank, answer))

    def _alarm(self, rank: int, answer: dict[str, Any]) -> None:
        """Where not everybody comes back after one rank's error, some wait for it in a collective for ever."""
        alarm = threading.Timer(AGREE_SECONDS, self._give_up, [_error_of(rank, answer)])
        alarm.daemon = True
        self._alarms.append(alarm)
        alarm.start()

    def together(self, word: str, ours: Callable[[], Result], *, blob: bytes = b"", **said: Any) -> Result:
        """Make one call on every rank.  Raises what it raised here, else what it raised on another."""
        for rank, wire in enumerate(self._wires, start=1):
            try:
                wire.send({"say": word, **said}, blob)
            except HungUp:
                raise DeviceFault(f"rank {rank} is gone") from None
        try:
            result = ours()
        except Exception as error:
            answers = self._hear_all(error)
            if kind_of(error) == "device":  # a collective failed, perhaps since another rank had failed before
                cause = next(
                    (_error_of(n, a) for n, a in enumerate(answers, 1) if a.get("kind", "device") != "device"), error
                )
                self._give_up(cause if isinstance(cause, OutOfMemory) else DeviceFault(str(cause)))
            raise
        answers = self._hear_all(None)
        for rank, answer in enumerate(answers, start=1):
            if answer["say"] == "error":
                raise _error_of(rank, answer)
        self.answers = answers
        return result

    def _hear_all(self, error: Exception | None) -> list[dict[str, Any]]:
        """Every other rank's answer; after an `error` of our own they must come soon."""
        answers: dict[int, dict[str, Any]] = {}
        while len(answers) < len(self._wires):
            try:
                rank, answer = self._answers.get(timeout=None if error is None else AGREE_SECONDS)
            except queue.Empty:
                rank = min(set(range(1, len(self._wires) + 1)) - set(answers))
                lost = DeviceFault(f"rank {rank} did not return after rank 0 failed: {error}")
                self._give_up(error if isinstance(error, (OutOfMemory, DeviceFault)) else lost)
                raise lost from error
            answers[rank] = answer
        for alarm in self._alarms:
            alarm.cancel()
        self._alarms = []
        return [answer for _, answer in sorted(answers.items())]


def _error_of(rank: int, answer: Mapping[str, Any]) -> FarmError:
    return KINDS.get(answer["kind"], EngineError)(f"rank {rank}: {answer['message']}")


class LedSession:
    """Rank 0's session; each call of it is made on every rank."""

    def __init__(self, session: Session, fellows: Fellows) -> None:
        self._session = session
        self._fellows = fellows

    def step(self) -> npt.NDArray[np.uint8]:
        return self._fellows.together("step", self._session.step)

    def carry(self) -> bytes:
        return self._fellows.together("carry", self._session.carry)


class LedEngine:
    """Rank 0's engine; each call of it is made on every rank."""

    def __init__(self, engine: Engine, settings: Mapping[str, Any], fellows: Fellows) -> None:
        self._engine = engine
        self._settings = settings
        self._fellows = fellows

    def load(self) -> LoadReport:
        """Raises EngineError, besides what loading raises, when the ranks hold different versions."""
        report = self._fellows.together("load", self._engine.load, settings=dict(self._settings))
        others = self._fellows.answers
        version = self._engine.describe().version
        for rank, answer in enumerate(others, start=1):
            if answer["version"] != version:
                raise EngineError(f"rank {rank} loaded {answer['version']}, rank 0 {version}")
        return dataclasses.replace(
            report, memory_bytes=max(report.memory_bytes, *(answer["memory_bytes"] for answer in others))
        )

    def describe(self) -> Description:
        return self._engine.describe()

    def begin(self, film: FilmRequest, first_frame: int, carry: bytes | None) -> LedSession:
        told = {field.name: getattr(film, field.name) for field in dataclasses.fields(film)}
        told["portrait"] = str(film.portrait)
        told["audio"] = film.audio.origin if isinstance(film.audio, DrivingFile) else None
        session = self._fellows.together(
            "begin",
            lambda: self._engine.begin(film, first_frame, carry),
            blob=carry or b"",
            film=told,
            first_frame=first_frame,
            carry=carry is not None,
        )
        return LedSession(session, self._fellows)


class Follower:
    """The story of a rank that is not rank 0."""

    def __init__(self, wire: Wire, engine_module: str, beat: Beat) -> None:
        self._wire = wire
        self._engine_module = engine_module
        self._beat = beat
        self._engine: Engine | None = None
        self._session: Session | None = None

    def serve(self) -> None:
        while True:
            message, blob, _ = self._wire.receive()
            try:
                answer = self._follow(message, blob)
            except Exception as error:
                traceback.print_exc()
                said = str(error).strip() or type(error).__name__
                answer = {"say": "error", "kind": kind_of(error), "message": said[:4000]}
            self._wire.send(answer)

    def _follow(self, message: dict[str, Any], blob: bytes) -> dict[str, Any]:
        word = message["say"]
        if word == "load":
            engine: Engine = importlib.import_module(self._engine_module).make_engine(message["settings"])
            report = engine.load()
            self._engine = engine
            self._beat.say(SERVING)
            return {
                "say": "ready",
                "version": engine.describe().version,
                "seconds": report.seconds,
                "memory_bytes": report.memory_bytes,
            }
        if word == "begin":
            assert self._engine is not None
            self._session = None
            film = message["film"]
            audio: DrivingAudio = Unheard()
            if film["audio"] is not None:
                path, window = film["audio"]
                audio = DrivingFile(Path(path), tuple(window) if window else None)
            changed = {"portrait": Path(film["portrait"]), "fps": tuple(film["fps"]), "audio": audio}
            request = FilmRequest(**{**film, **changed})
            self._session = self._engine.begin(request, message["first_frame"], blob if message["carry"] else None)
        elif word == "step":
            assert self._session is not None
            self._session.step()
        elif word == "carry":
            assert self._session is not None
            self._session.carry()
        return {"say": "done"}


class Beat:
    """Signs of life, from a thread that a render does not block."""

    def __init__(self, fd: int) -> None:
        self._says = LOADING
        self._fd = fd
        threading.Thread(target=self._run, name="beat", daemon=True).start()

    def say(self, word: bytes) -> None:
        """What it says from now on, and at once: nobody may stand still unseen between two beats."""
        self._says = word
        with contextlib.suppress(OSError):
            os.write(self._fd, word)

    def _run(self) -> None:
        waiting = threading.Event()
        with contextlib.suppress(OSError):  # the launcher is gone, and so will this process be
            while True:
                os.write(self._fd, self._says)
                waiting.wait(BEAT_SECONDS)


class Leader(Child):
    """Rank 0: the host's child, whose engine is led."""

    def __init__(self, wire: Wire, engine_module: str, others: list[Wire], beat: Beat) -> None:
        super().__init__(wire, engine_module)
        self._fellows = Fellows(others, self._give_up)
        self._beat = beat

    def make_engine(self, settings: Mapping[str, Any]) -> Engine:
        return LedEngine(super().make_engine(settings), settings, self._fellows)

    def _load(self, message: dict[str, Any]) -> None:
        super()._load(message)
        self._beat.say(SERVING)

    def _give_up(self, error: BaseException) -> None:
        """The ranks are out of step for good: tell the worker why and end, which ends them all."""
        traceback.print_exception(error)
        self._tell_error(error)
        os._exit(LOST_EXIT)


def main(argv: list[str]) -> int:
    beat_fd, engine_module, *wire_fds = argv
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    beat = Beat(int(beat_fd))
    wire, *others = (Wire(socket.socket(fileno=int(fd))) for fd in wire_fds)
    if int(os.environ["RANK"]) == 0:
        Leader(wire, engine_module, others, beat).serve()
    else:
        with contextlib.suppress(HungUp):
            Follower(wire, engine_module, beat).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
