"""Processes are known by their birth, whatever becomes of numbers and clocks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from farm import processes


@pytest.fixture
def sleeper(tmp_path: Path):
    argv = [sys.executable, "-c", "import time; time.sleep(600)"]
    running, process = processes.start("one", argv, env={}, log_file=tmp_path / "log", run_dir=tmp_path)
    yield running, process
    process.kill()
    process.wait()


def test_a_clock_that_is_set_makes_no_process_a_stranger(
    sleeper: tuple[processes.Running, subprocess.Popen[bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, process = sleeper
    before = psutil.Process(process.pid).create_time()
    booted = psutil.boot_time()
    # What the kernel tells when its clock was set an hour ahead since the process began.
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: booted + 3600.0)
    assert psutil.Process(process.pid).create_time() - before > 3599.0
    assert processes.find("one", tmp_path) == running
    assert running.is_alive


def test_another_process_of_the_same_number_is_another(
    sleeper: tuple[processes.Running, subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    _, process = sleeper
    born = processes.birth(process.pid)
    assert born is not None
    assert processes.is_same(process.pid, born)
    boot, _, ticks = born.rpartition(":")
    assert not processes.is_same(process.pid, f"{boot}:{int(ticks) - 1}")
    assert not processes.is_same(process.pid, f"another boot:{ticks}")
    assert not processes.is_same(process.pid, None)


def test_who_ended_is_gone_although_nobody_collected_it(
    sleeper: tuple[processes.Running, subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    running, process = sleeper
    process.kill()
    assert running.wait_gone(60.0)
    assert processes.find("one", tmp_path) is None
    process.wait()
    assert processes.birth(process.pid) is None
    assert not processes.is_same(process.pid, None)
