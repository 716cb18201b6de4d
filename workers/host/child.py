"""The child side of a host: loads one engine and renders segments until the parent hangs up.

Runs under the model's own interpreter with only its devices visible: standard library, numpy and the engine, Python
3.10 or newer.  Started as `python -m workers.host.child FD ENGINE`, where FD is a Unix socket to the parent and ENGINE
a module with `make_engine(settings)`.

Parent says                                   Child answers
  load   {settings}                             ready {description, report}     or  error {kind, message}
  render {film, first_frame, frames} + carry    chunk {frames, seconds} ...     then  done {…} + carry and last frame,
         and the encoder's pipe as a descriptor                                 or  stopped, or  error {kind, message}
  live   {film}                                 begun {}                        or  error
    speech + samples                              frames {count, seconds} + frames  or  error, which ends the session
    end                                           ended {}
  stop                                          (the render ends at its next chunk boundary)
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import importlib
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from farm.errors import DeviceFault, EngineError, InputError, OutOfMemory
from workers.engines.contract import DRIVING_RATE, DrivingAudio, Engine, FilmRequest
from workers.host.wire import HungUp, Wire

CHUNKS_AHEAD = 2  # rendered chunks that may wait for the encoder: one being written, one behind it


def die_with_parent() -> None:
    """Ask the kernel to end this process when its parent dies, however it dies."""
    pr_set_pdeathsig = 1
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)


def kind_of(error: BaseException) -> str:
    """How the parent is told what went wrong."""
    if isinstance(error, InputError):
        return "input"
    if isinstance(error, OutOfMemory) or type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        return "memory"
    if isinstance(error, DeviceFault) or type(error).__name__ == "AcceleratorError":
        return "device"
    if isinstance(error, EngineError):
        return "engine"
    words = str(error)
    if isinstance(error, RuntimeError) and any(
        w in words for w in ("CUDA error", "NPU error", "HCCL", "NCCL error", "gloo")
    ):
        return "device"
    return "bug"


class FrameWriter:
    """Writes chunks into the encoder's pipe from a thread of its own, so that encoding overlaps rendering."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._chunks: queue.Queue[Any] = queue.Queue(maxsize=CHUNKS_AHEAD - 1)
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="frame-writer", daemon=True)
        self._thread.start()

    def put(self, frames: Any) -> None:
        """Queue one chunk; waits while the encoder is behind.  Raises EngineError when the encoder went away."""
        self._check()
        self._chunks.put(frames)

    def finish(self) -> None:
        """Wait until everything is written, then close the pipe.  Raises EngineError."""
        self._chunks.put(None)
        self._thread.join()
        self._check()

    def _check(self) -> None:
        if isinstance(self._error, OSError):
            raise EngineError(f"the encoder stopped taking frames: {self._error.strerror}")
        if self._error is not None:
            raise EngineError(f"the engine's frames cannot be written: {self._error}")

    def _run(self) -> None:
        try:
            while (frames := self._chunks.get()) is not None:
                if self._error is None:
                    try:
                        view = memoryview(frames).cast("B")
                        while view:
                            view = view[os.write(self._fd, view) :]
                    except Exception as error:  # kept for `put` and `finish`, which would wait for ever otherwise
                        self._error = error
        finally:
            os.close(self._fd)


class Child:
    """The story of one host process."""

    def __init__(self, wire: Wire, engine_module: str) -> None:
        self.wire = wire
        self.engine_module = engine_module
        self.engine: Engine | None = None
        self.stopping = threading.Event()
        self.commands: queue.Queue[tuple[dict[str, Any], bytes, list[int]]] = queue.Queue()

    def serve(self) -> None:
        threading.Thread(target=self._listen, name="listener", daemon=True).start()
        while True:
            message, blob, fds = self.commands.get()
            word = message["say"]
            try:
                if word == "load":
                    self._load(message)
                elif word == "render":
                    self._render(message, blob, fds)
                elif word == "live":
                    self._live(message["film"])
            except HungUp:
                return
            except BaseException as error:
                self._tell_error(error)
            else:
                continue
            gc.collect()  # the error's frames may hold the film's sound and the device's memory in a cycle

    def _listen(self) -> None:
        """Hear the parent at once, also while the engine renders; when it hangs up, end."""
        try:
            while True:
                message, blob, fds = self.wire.receive()
                word = message["say"]
                if word == "stop":
                    self.stopping.set()
                else:
                    if word == "render":
                        self.stopping.clear()
                    self.commands.put((message, blob, fds))
        except HungUp:
            os._exit(0)  # the engine's threads and destructors must not delay the end

    def make_engine(self, settings: Mapping[str, Any]) -> Engine:
        """The engine, not loaded yet."""
        engine: Engine = importlib.import_module(self.engine_module).make_engine(settings)
        return engine

    def _load(self, message: dict[str, Any]) -> None:
        engine = self.make_engine(message["settings"])
        report = engine.load()
        self.engine = engine
        self.wire.send(
            {
                "say": "ready",
                "description": dataclasses.asdict(engine.describe()),
                "report": dataclasses.asdict(report),
                "python": sys.version.split()[0],
            }
        )

    def _render(self, message: dict[str, Any], carry: bytes, fds: list[int]) -> None:
        from workers.host.audio import DrivingFile

        if self.engine is None:
            raise EngineError("asked to render before loading")
        film, todo = message["film"], int(message["frames"])
        writer = FrameWriter(fds[0])
        try:
            window = film.get("window")
            request = _request(film, DrivingFile(Path(film["audio"]), tuple(window) if window else None))
            session = self.engine.begin(request, int(message["first_frame"]), carry if message["carry"] else None)
            done = 0
            device_seconds = 0.0
            while done < todo and not self.stopping.is_set():
                began = time.perf_counter()
                frames = session.step()
                if not len(frames):
                    raise EngineError(f"the engine yielded no frames after {done} of {todo}")
                if done + len(frames) > todo:
                    raise EngineError(f"the engine yielded {done + len(frames)} frames where {todo} were planned")
                seconds = time.perf_counter() - began
                device_seconds += seconds
                writer.put(frames)
                done += len(frames)
                self.wire.send({"say": "chunk", "frames": done, "seconds": seconds})
        except BaseException:
            with contextlib.suppress(EngineError):
                writer.finish()
            raise
        writer.finish()
        if done < todo:
            self.wire.send({"say": "stopped", "frames": done, "device_seconds": device_seconds})
            return
        state, picture = session.carry(), frames[-1].tobytes()
        said = {"say": "done", "frames": done, "device_seconds": device_seconds, "carry_bytes": len(state)}
        self.wire.send(said, state + picture)

    def _live(self, film: dict[str, Any]) -> None:
        """Serve one live session: each message of sound is answered with the frames that it makes possible."""
        from workers.host.audio import GrowingSound

        if self.engine is None:
            raise EngineError("asked for a live session before loading")
        sound, step, done = GrowingSound(), int(film["live_frames"]), 0
        numerator, denominator = film["fps"]
        lookahead = self.engine.describe().lookahead_samples
        session = self.engine.begin(_request(film, sound), 0, None)
        self.wire.send({"say": "begun"})
        while True:
            message, pcm, _ = self.commands.get()
            if message["say"] == "end":
                self.wire.send({"say": "ended"})
                return
            began = time.perf_counter()
            sound.append(pcm)
            made = []
            while -(-(done + step) * DRIVING_RATE * denominator // numerator) + lookahead <= len(sound):
                frames = session.step()
                if len(frames) != step:
                    raise EngineError(f"the engine yielded {len(frames)} frames where a live step has {step}")
                made.append(frames.tobytes())
                done += step
            seconds = time.perf_counter() - began
            self.wire.send({"say": "frames", "count": step * len(made), "seconds": seconds}, b"".join(made))

    def _tell_error(self, error: BaseException) -> None:
        message = str(error).strip() or type(error).__name__
        with contextlib.suppress(HungUp):
            self.wire.send(
                {
                    "say": "error",
                    "kind": kind_of(error),
                    "message": message[:4000],
                    "traceback": traceback.format_exc()[-16000:],
                }
            )


def _request(film: dict[str, Any], audio: DrivingAudio) -> FilmRequest:
    return FilmRequest(
        portrait=Path(film["portrait"]),
        audio=audio,
        total_frames=film["total_frames"],
        width=film["width"],
        height=film["height"],
        fps=tuple(film["fps"]),
        prompt=film["prompt"],
        seed=film["seed"],
        settings=film["settings"],
        facts=film["facts"],
        live_frames=film.get("live_frames", 0),
        save_memory=film.get("save_memory", False),
        joined=film.get("joined", False),
    )


def main(argv: list[str]) -> int:
    fd, engine_module = int(argv[0]), argv[1]
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to hear
    Child(Wire(socket.socket(fileno=fd)), engine_module).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
