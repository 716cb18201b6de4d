"""An engine that misbehaves on order: grey frames whose level is their number, and faults named in the job's settings.

Runs inside a real host; standard library and numpy only.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from farm.errors import DeviceFault, EngineError, InputError, OutOfMemory
from workers.engines.contract import Description, FilmRequest, LoadReport

CHUNK = 5
FAULTS = {"input": InputError, "memory": OutOfMemory, "device": DeviceFault, "engine": EngineError, "bug": ValueError}


class FakeEngine:
    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings

    def load(self) -> LoadReport:
        if self.settings.get("load_seconds"):
            time.sleep(self.settings["load_seconds"])
        if self.settings.get("load_fails"):
            raise EngineError("the weights are not there")
        if self.settings.get("grandchild"):
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        return LoadReport(0.0, 1)

    def describe(self) -> Description:
        return Description("fake", "1", (25, 1), CHUNK, 0, "rgb24", 64, os.environ.get("CUDA_VISIBLE_DEVICES", "none"))

    def begin(self, film: FilmRequest, first_frame: int, carry: bytes | None) -> FakeSession:
        if carry is not None and int(carry) != first_frame:
            raise EngineError(f"the carry is of frame {int(carry)}, not {first_frame}")
        return FakeSession(film, first_frame)


class FakeSession:
    def __init__(self, film: FilmRequest, frame: int) -> None:
        self.film, self.frame = film, frame

    def step(self) -> npt.NDArray[np.uint8]:
        settings = self.film.settings
        fault = settings.get("fault", "")
        if fault and self.frame >= settings.get("at_frame", 0):
            self._misbehave(fault)
        time.sleep(settings.get("step_seconds", 0.0))
        count = min(CHUNK, self.film.total_frames - self.frame)
        levels = np.arange(self.frame, self.frame + count, dtype=np.uint8).reshape(-1, 1, 1, 1)
        self.frame += count
        return np.broadcast_to(levels, (count, self.film.height, self.film.width, 3)).copy()

    def _misbehave(self, fault: str) -> None:
        if fault == "memory" and self.film.save_memory:
            return
        if fault in FAULTS:
            raise FAULTS[fault](f"{fault} on order")
        if fault == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "exit":
            sys.stderr.write("the last words\n")
            sys.stderr.flush()
            os._exit(7)
        if fault == "hang":
            time.sleep(600)

    def carry(self) -> bytes:
        return str(self.frame).encode()


def make_engine(settings: Mapping[str, Any]) -> FakeEngine:
    return FakeEngine(settings)
