"""A submit may die anywhere: the same command again makes what is missing and nothing twice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.system import material, pattern_engine

ROOT = Path(__file__).resolve().parents[2]


def run_steps(tmp_path: Path, ledger_url: str, every: int) -> int:
    pattern_engine.install(tmp_path / "home")
    material.portrait(tmp_path / "p.png")
    rows = [
        {"portrait": "p.png", "audio": material.sound(tmp_path / f"{i}.wav", 0.1, i).name, "model": "pattern"}
        for i in range(3)
    ]
    batch = material.batch(tmp_path / "b.csv", rows)
    env = os.environ | {"FARM_HOME": str(tmp_path / "home"), "FARM_LEDGER_URL": ledger_url, "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-m", "tests.system.submit_steps", batch, tmp_path / "films", str(every)]
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return int(done.stdout.split()[0])


def test_a_submit_killed_at_any_step_and_repeated_makes_every_job_once_on_sqlite(tmp_path: Path) -> None:
    assert run_steps(tmp_path, "", every=61) > 5


def test_a_submit_killed_at_any_step_and_repeated_makes_every_job_once_on_postgresql(
    tmp_path: Path, postgres_url: str
) -> None:
    assert run_steps(tmp_path, postgres_url, every=127) > 3
