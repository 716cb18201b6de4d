"""The bench of live sessions, with FlashTalk's tiny weights on the CPU: server, worker and engine answer in time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import do_without, redis_program

pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[2]


def test_flashtalk_answers_live_sessions_of_two_presets_and_sizes(tmp_path: Path) -> None:
    if redis_program() is None:
        do_without("no private Redis for the bench")
    report = tmp_path / "report.json"
    argv = [
        sys.executable,
        ROOT / "scripts/bench_live.py",
        "--model",
        "soulx-flashtalk-14b",
        "--tiny",
        "--seconds",
        "4",
    ]
    argv += ["--seconds-in-all", "240", "--json", report, "fast@32x32", "balanced:3@48x32"]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(report.read_text())
    assert list(said["loads"]) == ["live-soulx-flashtalk-14b-fp8"]  # both presets load the model alike
    assert [(one["preset"], one["size"]) for one in said["sessions"]] == [
        ("fast", "32x32"),
        ("balanced-3-steps", "48x32"),
    ]
    for one in said["sessions"]:
        for way in (one["as_fast_as_it_can"], one["paced"]):
            assert (way["messages"], way["frames"]) == (3, 84)
            assert way["worker_ms"]["rendering"] > 0
