"""A quick engine for fault tests: its frames depend on everything that a resumed film could get wrong.

Each chunk is drawn from a digest of the request, the chunk's sound and the digest before it.  The carry is that digest,
so a segment that starts from a wrong carry, hears the wrong sound or skips a chunk shows other frames from there on.

Settings at load: `pace` (seconds that a chunk takes), `load_seconds`.  Words in a job's prompt are faults:
`hang:N` and `die:N` at frame N, each attempt; `input:N` raises InputError there, `engine:N` EngineError.

The variable PATTERN_HOLD names a file: while it is there, no chunk is made from the frame on that stands in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from farm.errors import EngineError, InputError
from workers.engines.contract import DRIVING_RATE, Description, FilmRequest, LoadReport

CHUNK_FRAMES = 5
FPS = 25

MODEL = """
id = "pattern"
name = "Pattern"
summary = "Deterministic pictures for fault tests"
licence = "Apache-2.0"
engine = "tests.system.pattern_engine"
queue = "pattern"
device_kinds = ["cpu"]
memory_gb = 0.1
default_preset = "plain"
prompt = true
segment_seconds = @SECONDS@
[frames]
fps = [25]
default_fps = 25
chunk_frames = 5
lookahead_samples = 0
carry_limit_bytes = 32
[size]
min = 16
max = 256
step = 2
default = [64, 64]
[portrait]
needs_face = false
[settings.pace]
type = "float"
default = 0.0
min = 0.0
max = 60.0
help = "Seconds that a chunk takes"
job = false
[settings.load_seconds]
type = "float"
default = 0.0
min = 0.0
max = 600.0
help = "Seconds that loading takes"
job = false
[presets.plain]
help = "Whatever worker there is"
[presets.apart]
help = "A worker of its own"
queue = "pattern-apart"
"""


class PatternSession:
    def __init__(self, film: FilmRequest, first_frame: int, carry: bytes | None, pace: float) -> None:
        self.film = film
        self.frame = first_frame
        self.pace = pace
        seed = f"{film.seed} {film.width}x{film.height} {film.total_frames} {film.prompt}".encode()
        start = hashlib.sha256(seed + film.portrait.read_bytes() + str(first_frame).encode())
        self.state = carry if carry is not None else start.digest()

    def step(self) -> npt.NDArray[np.uint8]:
        film = self.film
        count = min(CHUNK_FRAMES, film.total_frames - self.frame)
        per_frame = DRIVING_RATE // FPS
        sound = film.audio.read(self.frame * per_frame, (self.frame + count) * per_frame)
        self._wait_while_held()
        self._fault()
        self.state = hashlib.sha256(self.state + sound.tobytes()).digest()
        dice = np.random.default_rng(np.frombuffer(self.state, np.uint64))
        # Large squares, so that the encoder keeps what tells the frames apart.
        coarse = dice.integers(16, 235, (count, film.height // 8 + 1, film.width // 8 + 1, 3), np.uint8)
        frames = coarse.repeat(8, axis=1).repeat(8, axis=2)[:, : film.height, : film.width]
        time.sleep(self.pace)
        self.frame += count
        return np.ascontiguousarray(frames)

    def carry(self) -> bytes:
        return self.state

    def _wait_while_held(self) -> None:
        hold = Path(os.environ.get("PATTERN_HOLD", "/dev/null/none"))
        with contextlib.suppress(OSError, ValueError):
            while self.frame >= int(hold.read_text()):
                time.sleep(0.02)

    def _fault(self) -> None:
        for word in self.film.prompt.split():
            what, _, where = word.partition(":")
            if not where.isdigit() or not self.frame <= int(where) < self.frame + CHUNK_FRAMES:
                continue
            if what == "hang":
                time.sleep(3600)
            elif what == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            elif what == "input":
                raise InputError(f"frame {where} cannot be drawn")
            elif what == "engine":
                raise EngineError(f"frame {where} failed")


class PatternEngine:
    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.pace = float(settings.get("pace", 0.0))
        self.load_seconds = float(settings.get("load_seconds", 0.0))

    def load(self) -> LoadReport:
        time.sleep(self.load_seconds)
        return LoadReport(self.load_seconds, 0)

    def describe(self) -> Description:
        return Description("pattern", "1", (FPS, 1), CHUNK_FRAMES, 0, "rgb24", 32, "cpu")

    def begin(self, film: FilmRequest, first_frame: int, carry: bytes | None) -> PatternSession:
        return PatternSession(film, first_frame, carry, self.pace)


def make_engine(settings: Mapping[str, Any]) -> PatternEngine:
    return PatternEngine(settings)


def install(home: Path, *, segment_seconds: float = 1.0) -> None:
    """Make the model known to the farm whose home this is."""
    folder = home / "models"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pattern.toml").write_text(MODEL.replace("@SECONDS@", str(segment_seconds)))
