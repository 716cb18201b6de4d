"""What the machine refuses is told in one sentence, and nothing is left behind."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import psutil
import pytest

from farm import processes, supervisor
from farm.cli import _translate
from farm.config import load_settings
from farm.errors import ConfigError, InputError, NotEnoughRoom
from tests.command_line import run_farm

NOWHERE = "/sys/farm-home"  # where nobody can make a folder, root included


@pytest.mark.parametrize("words", ["jobs list", "status", "up", "gc"])
def test_a_home_that_cannot_be_made_is_told_in_one_sentence(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_HOME", NOWHERE)
    done = run_farm(*words.split())
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith(f"farm: {NOWHERE}") and done.stderr.count("\n") == 1
    assert "FARM_HOME must be a folder that you may write to" in done.stderr


def test_doctor_names_a_home_that_cannot_be_made_among_its_findings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_HOME", NOWHERE)
    done = run_farm("doctor")
    assert done.exit_code == 1 and "FARM_HOME must be a folder that you may write to" in done.stdout


@pytest.mark.parametrize(
    ("number", "place", "kind", "words"),
    [
        (errno.ENOSPC, "home/artifacts/1", NotEnoughRoom, "free some space"),
        (errno.EACCES, "home/logs", ConfigError, "FARM_HOME must be"),
        (errno.EROFS, "elsewhere/film.mp4", InputError, "film.mp4"),
        (errno.ENOENT, "home/run", type(None), ""),
    ],
)
def test_only_what_the_machine_refuses_is_a_sentence(
    number: int, place: str, kind: type, words: str, home: Path
) -> None:
    told = _translate(OSError(number, os.strerror(number), str(home.parent / place)))
    assert isinstance(told, kind) and words in str(told)


def test_a_process_whose_record_cannot_be_written_does_not_run(tmp_path: Path) -> None:
    (tmp_path / "run/sleeper.part").mkdir(parents=True)
    mark = str(tmp_path)
    argv = ["sh", "-c", 'sleep 600; echo "$0"', mark]
    with pytest.raises(IsADirectoryError):
        processes.start("sleeper", argv, env=os.environ, log_file=tmp_path / "sleeper.log", run_dir=tmp_path / "run")
    mine = [p for p in psutil.Process().children() if p.status() != psutil.STATUS_ZOMBIE and mark in p.cmdline()]
    assert not mine


def test_a_shared_redis_that_is_away_keeps_no_farm_from_starting(
    monkeypatch: pytest.MonkeyPatch, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ConfigError, match=r"redis\.log"):
        supervisor.await_redis(load_settings(), wait_seconds=0.0)
    monkeypatch.setenv("FARM_REDIS_URL", "redis://:hunter2@127.0.0.1:1")
    supervisor.await_redis(load_settings(), wait_seconds=60.0)
    assert "Redis at 127.0.0.1:1 does not answer" in caplog.text and "hunter2" not in caplog.text
