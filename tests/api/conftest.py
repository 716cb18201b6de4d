from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="session")
def speech(tmp_path_factory: pytest.TempPathFactory, ffmpeg: Path) -> Path:
    """Two seconds of a person speaking."""
    path = tmp_path_factory.mktemp("speech") / "two seconds.wav"
    source = EXAMPLES / "speech/reading_en.flac"
    subprocess.run([ffmpeg, "-v", "error", "-i", source, "-t", "2", "-ar", "48000", path], check=True)
    return path
