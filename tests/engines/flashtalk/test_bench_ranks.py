"""The benchmark of several cards runs where there is none, so that it runs on the day when there are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[3]


def test_a_group_and_as_many_single_workers_are_measured(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    argv = ["--device", "cpu", "--world-size", "2", "--size", "32x32", "--steps", "2", "--chunks", "1", "--json", out]
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/bench_flashtalk.py", *argv],
        capture_output=True,
        text=True,
        timeout=280,
        env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    group, single = json.loads(out.read_text())
    assert (group["way"], group["cards"], single["way"], single["cards"]) == ("one group", 2, "single workers", 2)
    for figures in (group, single):
        assert figures["chunk_ms"] > 0 and figures["first_frame_s"] > 0
        assert len(figures["peak_gb"]) == 2
        assert figures["frames_per_card_second"] == pytest.approx(figures["frames_per_second"] / 2)
    assert "2 cards: the group is" in done.stdout
    assert "these figures say nothing about cards" in done.stdout
    assert "published for 8 H800: 870 ms a chunk, 32 frames/s" in done.stdout
