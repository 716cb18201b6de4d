"""What every engine promises the host, and what the host gives it.

An engine turns one model into something that is loaded once and renders many segments.  The host's child process owns
it; nothing else imports it.  This module and everything above an engine's own package use only the standard library
and numpy and stay valid on Python 3.10, because a model may need its own old interpreter.

Raise `farm.errors.InputError` for a portrait or an audio that this model cannot use (the engine stays warm),
`OutOfMemory` when the device is full, `DeviceFault` when the device is unusable, `EngineError` for anything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

PixelFormat = Literal["rgb24", "bgr24", "yuv420p"]
DRIVING_RATE = 16_000  # Hz; every model here listens at this rate


class DrivingAudio(Protocol):
    """The speech that drives a film: mono, 16 kHz, float32 in [-1, 1].

    A finished recording is read from its file, a window at a time; a live session grows while it is read.
    """

    def read(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Samples [start, stop) as float32 [stop - start]; zeros before the beginning and after the end."""
        ...

    def __len__(self) -> int:
        """Samples known so far."""
        ...


@dataclass(frozen=True)
class Description:
    """What planning must know of a loaded engine; compared with configs/models/<id>.toml at load."""

    id: str  # model id, e.g. "preview"
    version: str  # changes whenever pixels change
    fps: tuple[int, int]  # numerator, denominator
    chunk_frames: int  # new frames that one step() yields; the last step of a film may yield fewer
    lookahead_samples: int  # driving samples that a step reads beyond its last frame's end
    pixel_format: PixelFormat
    carry_limit_bytes: int  # upper bound of len(session.carry())
    device: str  # e.g. "cpu", "NVIDIA H200"
    limits: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LoadReport:
    """What loading cost."""

    seconds: float
    memory_bytes: int  # resident on the device after warm-up; of the process for CPU engines
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class FilmRequest:
    """Everything that decides the pixels of one film, the same for each of its segments."""

    portrait: Path  # 8-bit RGB PNG, upright, as `prepare` wrote it
    audio: DrivingAudio
    total_frames: int  # of the whole film
    width: int
    height: int
    fps: tuple[int, int]
    prompt: str
    seed: int
    settings: Mapping[str, Any]  # the preset's values with the job's own over them, all known to this model
    facts: Mapping[str, Any]  # measured once by `prepare` over the whole audio, e.g. {"speech_gain": 1.7}
    # Frames of one step of a live session, whose sound grows while it is read; 0 for a finished recording.  A live step
    # reads no sound later than lookahead_samples after its last frame, since there is none yet.
    live_frames: int = 0
    save_memory: bool = False  # the attempt before ran out of memory: use less of it, at any speed
    joined: bool = False  # one segment of a parallel film: it begins and ends at rest, where others are joined to it


class Session(Protocol):
    """One segment being rendered.  Steps forward only; holds all state of the render."""

    def step(self) -> npt.NDArray[np.uint8]:
        """The next chunk's frames, in order, trimmed to the film's end.

        uint8 [n, H, W, 3] for rgb24 and bgr24, [n, H * 3 // 2, W] for yuv420p; 1 <= n <= chunk_frames.
        C-contiguous, and the caller's from then on: a later step does not write into it.
        """
        ...

    def carry(self) -> bytes:
        """The state at this chunk boundary.  `begin` with it in another process continues with equal frames."""
        ...


class Engine(Protocol):
    """A model that is loaded once and renders many segments, one at a time.

    Deterministic for (version, device kind, world size, precision, seed).
    """

    def load(self) -> LoadReport:
        """Bring the weights onto the visible devices and warm up."""
        ...

    def describe(self) -> Description:
        """Known after `load`."""
        ...

    def begin(self, film: FilmRequest, first_frame: int, carry: bytes | None) -> Session:
        """Start at `first_frame`, a multiple of chunk_frames.

        With `carry` the film goes on exactly where that carry was taken; without it at first_frame > 0 the segment
        starts afresh from the portrait.  A segment of a parallel film is given as a film of its own, from frame 0 and
        with `film.joined`, so that its frames depend on its own sound and not on where it stands.  Raises InputError,
        and EngineError when the carry was made by another version of the engine.
        """
        ...
