"""The command line, run in this process on a farm of its own."""

from __future__ import annotations

import shutil
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from PIL import Image

from farm.ledger import open_ledger
from farm.ledger.migrate import upgrade
from tests.command_line import run_farm


@pytest.fixture(scope="session")
def empty_ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated ledger without rows, copied for each test because migrating takes longer than most of them."""
    path = tmp_path_factory.mktemp("ledger") / "ledger.db"
    ledger = open_ledger(str(path))
    upgrade(ledger)
    with ledger.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    ledger.close()
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_ledger: Path) -> Path:
    """FARM_HOME of this test alone."""
    folder = tmp_path / "home"
    folder.mkdir()
    shutil.copy(empty_ledger, folder / "ledger.db")
    monkeypatch.setenv("FARM_HOME", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def farm(home: Path) -> Callable[..., Result]:
    """`farm("jobs", "list")` runs a command in `home` and returns what it printed and how it ended."""
    return run_farm


@pytest.fixture
def media(tmp_path: Path) -> Path:
    """A folder with a picture and one second of sound."""
    folder = tmp_path / "media"
    folder.mkdir()
    Image.new("RGB", (320, 320), (120, 90, 80)).save(folder / "anna.png")
    with wave.open(str(folder / "one.wav"), "wb") as sound:
        sound.setparams((1, 2, 16_000, 0, "NONE", ""))
        sound.writeframes((np.sin(np.arange(16_000) / 20) * 8000).astype("<i2").tobytes())
    return folder


@pytest.fixture
def batch(media: Path) -> Path:
    """Two rows that are fit to submit."""
    path = media / "batch.csv"
    path.write_text("portrait,audio,name\nanna.png,one.wav,first\nanna.png,one.wav,second\n", encoding="utf-8")
    return path
