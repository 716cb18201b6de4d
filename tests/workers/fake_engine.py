"""An engine that is loaded in no time, draws colours, and misbehaves on demand.

Every chunk's colours come from a digest of the request, the chunk's sound and the digest before it; the carry is that
digest and the frame it stands at.  So a segment that starts from a wrong carry or hears the wrong sound shows.

A job's prompt holds faults, such as `engine@10; kill@20?/tmp/once`: a kind, the frame from which on it happens, perhaps
`#1` for rank 1 alone, and perhaps a file that says that it has happened.  The same at load: the setting `on_load`.

The settings `gate` and `load_gate` name files: a chunk, or loading, waits until its file is there.

Runs in the host's child: standard library and numpy, valid on Python 3.10.
"""

from __future__ import annotations

import hashlib
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from farm.errors import DeviceFault, EngineError, InputError, OutOfMemory
from workers.engines.contract import Description, FilmRequest, LoadReport

FPS = 25
CHUNK = 5
RATE = 16_000
SEEN = ("CUDA_VISIBLE_DEVICES", "ASCEND_RT_VISIBLE_DEVICES", "FARM_LEDGER_URL", "FARM_REDIS_URL", "FROM_SCRIPT")
GROUP = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TEXT_DEVICE")
_STATE = struct.Struct("!I32s")


class OutOfMemoryError(RuntimeError):
    """Named like torch's."""


def misbehave(kind: str) -> None:
    errors: Mapping[str, Exception] = {
        "input": InputError("the mouth is covered by a hand"),
        "engine": EngineError("the model gave no picture"),
        "memory": OutOfMemory("the device is full"),
        "torch memory": OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        "device": DeviceFault("the device fell off the bus"),
        "cuda": RuntimeError("CUDA error: an illegal memory access was encountered"),
        "bug": KeyError("frame"),
        "bytes": EngineError("no picture of a\0b\udcff"),
    }
    if kind in errors:
        raise errors[kind]
    if kind == "exit":
        print("last words\0 before the exit", file=sys.stderr, flush=True)  # noqa: T201
        os._exit(7)
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "hang":
        time.sleep(600)
    if kind == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if kind == "print":
        print("a library that talks", "x" * 100_000, flush=True)  # noqa: T201
    if kind == "children":
        print("child", subprocess.Popen(["sleep", "600"]).pid, flush=True)  # noqa: T201
        print("child", subprocess.Popen(["sleep", "600"], start_new_session=True).pid, flush=True)  # noqa: T201


def faults(text: str, frame: int, done: set[str]) -> list[str]:
    """The kinds that are due at `frame` and have not happened yet."""
    due = []
    for part in filter(None, (part.strip() for part in text.split(";"))):
        kind, _, rest = part.partition("@")
        when, _, marker = rest.partition("?")
        at, _, rank = when.partition("#")
        if rank and rank != os.environ.get("RANK", "0"):
            continue
        if part in done or frame < int(at or 0) or (marker and Path(marker).exists()):
            continue
        done.add(part)
        if marker:
            Path(marker).touch()
        due.append(kind)
    return due


def wait_at(gate: Any) -> None:
    while gate and not Path(str(gate)).exists():
        time.sleep(0.01)


class FakeSession:
    def __init__(self, film: FilmRequest, first_frame: int, carry: bytes | None, pace: float, gate: str = "") -> None:
        self.film = film
        self.frame = first_frame
        self.pace = pace
        self.gate = gate
        self.done: set[str] = set()
        if carry is None:
            start = f"{film.seed} {film.width}x{film.height} {first_frame} {sorted(film.settings.items())}"
            self.state = hashlib.sha256(start.encode() + film.portrait.read_bytes()).digest()
        else:
            frame, self.state = _STATE.unpack(carry[: _STATE.size])
            if frame != first_frame:
                raise EngineError(f"the carry stands at frame {frame}, not {first_frame}")

    def step(self) -> Any:
        film = self.film
        count = min(CHUNK, film.total_frames - self.frame)
        wait_at(self.gate)
        time.sleep(self.pace)
        for kind in faults(film.prompt, self.frame, self.done):
            if kind == "none":
                return np.empty((0, film.height, film.width, 3), np.uint8)
            if kind == "many":
                count = film.total_frames
            if kind == "strided":
                return np.zeros((count, film.width, film.height, 3), np.uint8).transpose(0, 2, 1, 3)[:, :, ::2]
            if kind != "hungry" or not film.save_memory:
                misbehave("memory" if kind == "hungry" else kind)
        sound = film.audio.read(self.frame * RATE // FPS, (self.frame + count) * RATE // FPS)
        self.state = hashlib.sha256(self.state + sound.tobytes()).digest()
        frames = np.empty((count, film.height, film.width, 3), np.uint8)
        for number in range(count):
            colours = np.frombuffer(self.state, np.uint8)[:12].reshape(2, 2, 3)
            block = np.roll(colours, number, axis=0)
            frames[number] = np.kron(block, np.ones((film.height // 2, film.width // 2, 1), np.uint8))
        self.frame += count
        return frames

    def carry(self) -> bytes:
        return _STATE.pack(self.frame, self.state)


class FakeEngine:
    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings
        self.stuffing = bytes(int(settings.get("carry_bytes", 0)))

    def load(self) -> LoadReport:
        wait_at(self.settings.get("load_gate"))
        time.sleep(float(self.settings.get("load_seconds", 0)))
        for kind in faults(str(self.settings.get("on_load", "")), 0, set()):
            misbehave(kind)
        return LoadReport(0.25, 123_456_789)

    def describe(self) -> Description:
        return Description(
            id="fake",
            version="1",
            fps=(FPS, 1),
            chunk_frames=int(self.settings.get("chunk_frames", CHUNK)),
            lookahead_samples=0,
            pixel_format="rgb24",
            carry_limit_bytes=64,
            device="cpu",
            limits={
                "group": {name: os.environ.get(name) for name in GROUP},
                "seen": {name: os.environ.get(name) for name in SEEN},
                "settings": dict(self.settings),
            },
        )

    def begin(self, film: FilmRequest, first_frame: int, carry: bytes | None) -> Any:
        pace, gate = float(self.settings.get("pace", 0)), str(self.settings.get("gate", ""))
        session = FakeSession(film, first_frame, carry, pace, gate)
        if self.stuffing:
            short = session.carry
            session.carry = lambda: short() + self.stuffing  # type: ignore[method-assign]
        return session


def make_engine(settings: Mapping[str, Any]) -> FakeEngine:
    return FakeEngine(settings)
