"""A stand-in checkout with its weights, and a real host over it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from farm.devices import DeviceSet
from workers.host.frames import render_to_bytes as render
from workers.host.parent import Host, HostSpec

from . import standin

SIZE = 64
FRAME_BYTES = SIZE * SIZE * 3
__all__ = ["FRAME_BYTES", "SIZE", "StartHost", "film", "flashhead_settings", "render"]


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkout, weights, a portrait and speech; nobody writes there afterwards."""
    folder = tmp_path_factory.mktemp("material")
    standin.flashhead_checkout(folder)
    standin.flashhead_checkpoint(folder / "weights")
    standin.write_speech(folder / "wav2vec")
    draw = np.random.default_rng(4)
    Image.fromarray(draw.integers(0, 255, (50, 40, 3), np.uint8)).save(folder / "a.photo 照片.png")
    draw.uniform(-0.3, 0.3, 640 * 400).astype("<f4").tofile(folder / "speech.f32")
    return folder


def flashhead_settings(material: Path, **changes: Any) -> dict[str, Any]:
    return {
        "repo_path": str(material / "SoulX FlashHead 检出"),
        "ckpt_dir": str(material / "weights"),
        "wav2vec_dir": str(material / "wav2vec"),
        "device": "cpu",
        **changes,
    }


def film(material: Path, frames: int, **changes: Any) -> dict[str, Any]:
    return {
        "portrait": str(material / "a.photo 照片.png"),
        "audio": str(material / "speech.f32"),
        "total_frames": frames,
        "width": SIZE,
        "height": SIZE,
        "fps": [25, 1],
        "prompt": "",
        "seed": 7,
        "settings": {},
        "facts": {},
        **changes,
    }


StartHost = Callable[..., Host]


@pytest.fixture(scope="module")
def start_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartHost]:
    """`start_host(module, settings)`: a loaded host with that engine."""
    started: list[Host] = []

    def start(module: str, settings: dict[str, Any], *, ranks: int = 1, **environment: str) -> Host:
        host = Host(
            HostSpec(
                engine_module=module,
                engine_settings=settings,
                devices=DeviceSet("cpu"),
                log_file=tmp_path_factory.mktemp("log") / "host.log",
                environment=environment,
                load_timeout_seconds=300.0,
                stuck_floor_seconds=300.0,
                ranks=ranks,
            )
        )
        started.append(host)
        host.start()
        return host

    yield start
    for host in started:
        host.kill()
