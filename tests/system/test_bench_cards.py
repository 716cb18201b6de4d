"""The bench of the farm on cards, with tiny weights on the CPU: hosts and a worker are killed, and no frame differs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import do_without, redis_program

pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(700)]

ROOT = Path(__file__).resolve().parents[2]
SEGMENTS = ("--segment-seconds", "3", "--first-seconds", "1.2")  # so that some segment is always in its middle


def bench(report: Path, *options: str) -> dict[str, Any]:
    if redis_program() is None:
        do_without("no private Redis for the bench")
    argv = [
        sys.executable,
        ROOT / "scripts/bench_cards.py",
        "--tiny",
        "--json",
        report,
        "--limit",
        "640",
        *SEGMENTS,
        *options,
    ]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    said: dict[str, Any] = json.loads(report.read_text())
    return said


def test_a_card_whose_host_is_killed_twice_gives_the_films_of_a_calm_one(tmp_path: Path) -> None:
    said = bench(tmp_path / "report.json", "--films", "2", "--killed-films", "2", "--seconds", "8:9")
    calm, killed = said["batches"]
    assert (len(calm["kills"]), len(killed["kills"])) == (0, 2)
    assert (said["compared"]["films"], said["compared"]["differ"]) == (2, 0)
    assert said["compared"]["frames"] == calm["frames"] == killed["frames"]
    assert [len(seconds) for seconds in said["loads"].values()] == [3]


def test_a_batch_outlives_a_host_and_a_worker_of_its_cards(tmp_path: Path) -> None:
    options = ("--cards", "0,1,2", "--films", "5", "--seconds", "8:10", "--kill-worker")
    said = bench(tmp_path / "report.json", *options)
    batch, undisturbed = said["batches"]
    assert [kill["killed"].partition(" ")[0] for kill in batch["kills"]] == ["host", "worker"]
    assert (said["compared"]["films"], said["compared"]["differ"]) == (undisturbed["films"], 0)
