"""A tiny FlashTalk on the CPU, its portrait and its speech."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest


class Speech:
    """Driving audio held in memory."""

    def __init__(self, samples: int, seed: int = 0) -> None:
        draw = np.random.Generator(np.random.Philox(key=seed))
        self.samples = (0.1 * draw.standard_normal(samples)).astype(np.float32)

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, start: int, stop: int) -> np.ndarray:
        out = np.zeros(stop - start, np.float32)
        low, high = max(start, 0), min(stop, len(self.samples))
        if high > low:
            out[low - start : high - start] = self.samples[low:high]
        return out


@pytest.fixture
def portrait(tmp_path: Path) -> Path:
    from PIL import Image

    pixels = np.random.Generator(np.random.Philox(key=3)).integers(0, 255, (50, 40, 3), dtype=np.uint8)
    path = tmp_path / "portrait.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def tiny(tmp_path: Path) -> Any:
    """A loaded engine with random tiny weights."""
    from workers.engines.flashtalk import make_engine

    engine = make_engine({"weights": "random", "architecture": "tiny", "device": "cpu", "cache": str(tmp_path / "c")})
    engine.load()
    return engine


@pytest.fixture
def film(portrait: Path) -> Any:
    """Makes requests for a film of 45 frames, 32x32."""
    from workers.engines.contract import FilmRequest

    def make(**changes: Any) -> FilmRequest:
        values: dict[str, Any] = {
            "portrait": portrait,
            "audio": Speech(45 * 640),
            "total_frames": 45,
            "width": 32,
            "height": 32,
            "fps": (25, 1),
            "prompt": "",
            "seed": 7,
            "settings": {"steps": 2},
            "facts": {},
        }
        return FilmRequest(**{**values, **changes})

    return make
