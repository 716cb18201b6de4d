"""Real hosts with the fake engine, and small real farms around them."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import wave
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from farm.devices import DeviceSet
from workers.host.parent import Host, HostSpec, Progress, Rendered

HERE = Path(__file__).resolve().parent
CHUNK = 5
SIZE = 64
FRAME_BYTES = SIZE * SIZE * 3
PATIENCE = 60.0  # seconds that a test waits for something that takes a moment on an idle machine


def wait_until(true: Callable[[], Any], what: str) -> Any:
    """Wait for a true answer and return it."""
    deadline = time.monotonic() + PATIENCE
    while not (answer := true()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.01)
    return answer


def is_dead(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture(scope="session")
def portrait(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("portrait") / "portrait.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (96, 96, 3), np.uint8)).save(path)
    return path


@pytest.fixture(scope="session")
def driving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten seconds of sound as `prepare` decodes it."""
    path = tmp_path_factory.mktemp("driving") / "driving.f32"
    np.random.default_rng(2).uniform(-1, 1, 160_000).astype("<f4").tofile(path)
    return path


def write_speech(path: Path, seconds: float, seed: int = 3) -> Path:
    """A 16-bit WAV of noise."""
    sound = np.random.default_rng(seed).uniform(-0.3, 0.3, round(seconds * 16_000))
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((sound * 32767).astype("<i2").tobytes())
    return path


# Hosts


def fake_spec(log: Path, *, spec: dict[str, Any] | None = None, **settings: Any) -> HostSpec:
    values: dict[str, Any] = {
        "engine_module": "fake_engine",
        "engine_settings": settings,
        "devices": DeviceSet("cpu"),
        "log_file": log,
        "environment": {"PYTHONPATH": str(HERE)},
        "load_timeout_seconds": PATIENCE,
    }
    return HostSpec(**(values | (spec or {})))


StartHost = Callable[..., Host]


@pytest.fixture
def start_host(tmp_path: Path) -> Iterator[StartHost]:
    """`start_host(**settings)`: a loaded host; `spec={...}` changes how it is launched."""
    started: list[Host] = []

    def start(**settings: Any) -> Host:
        host = Host(fake_spec(tmp_path / "host.log", **settings))
        started.append(host)
        host.start()
        return host

    yield start
    for host in started:
        host.kill()


@pytest.fixture(scope="session")
def shared_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    host = Host(fake_spec(tmp_path_factory.mktemp("host") / "host.log"))
    yield host
    host.kill()


@pytest.fixture
def host(shared_host: Host) -> Host:
    """A warm host that tests share as long as it lives."""
    if not shared_host.is_alive:
        shared_host.start()
    return shared_host


@dataclass
class Heard:
    """What came out of one render."""

    events: list[Progress | Rendered] = field(default_factory=list)
    frames: bytes = b""
    error: Exception | None = None

    @property
    def end(self) -> Rendered:
        assert self.error is None, self.error
        assert isinstance(self.events[-1], Rendered)
        return self.events[-1]

    def frame(self, number: int) -> bytes:
        return self.frames[number * FRAME_BYTES : (number + 1) * FRAME_BYTES]


Render = Callable[..., Heard]


@pytest.fixture
def render(portrait: Path, driving: Path) -> Render:
    """`render(host, frames, first=…, carry=…, prompt=…)`, with a reader in the encoder's place."""

    def run(
        host: Host,
        frames: int,
        *,
        first: int = 0,
        total: int = 250,
        carry: bytes | None = None,
        prompt: str = "",
        on_progress: Callable[[Progress], None] = lambda progress: None,
        read: bool = True,
        **film: Any,
    ) -> Heard:
        heard, parts = Heard(), []
        read_end, write_end = os.pipe()
        request = {
            "portrait": str(portrait),
            "audio": str(driving),
            "total_frames": total,
            "width": SIZE,
            "height": SIZE,
            "fps": [25, 1],
            "prompt": prompt,
            "seed": 7,
            "settings": {},
            "facts": {},
            "save_memory": False,
        } | film

        def take() -> None:
            while part := os.read(read_end, 1 << 16):
                parts.append(part)

        reader = threading.Thread(target=take)
        if read:
            reader.start()
        else:
            os.close(read_end)
        try:
            for event in host.render(request, first_frame=first, frames=frames, carry=carry, write_fd=write_end):
                heard.events.append(event)
                if isinstance(event, Progress):
                    on_progress(event)
        except Exception as error:
            heard.error = error
        finally:
            os.close(write_end)
            if read:
                reader.join(PATIENCE)
                os.close(read_end)
        heard.frames = b"".join(parts)
        return heard

    return run


def descriptors(pid: int | None = None) -> int:
    return len(list(Path(f"/proc/{pid or 'self'}/fd").iterdir()))


@contextlib.contextmanager
def end_with(pids: list[int]) -> Iterator[None]:
    """Leave none of these processes behind, whatever the test finds."""
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(psutil.Error):
                psutil.Process(pid).kill()
