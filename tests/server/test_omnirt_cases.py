"""Cases of OmniRT's tests over HTTP; the numbers are those of docs/compatibility.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import ROOT
from tests.server.conftest import generate_body, send_files

LAUNCHES: dict[str, dict[str, Any]] = {
    "1": {"launcher": "torchrun", "nproc_per_node": 8, "visible_devices": "0,1,2,3,4,5,6,7", "cpu_offload": True},
    "2": {"launcher": "python", "visible_devices": "0", "accelerator": "cuda"},
    "3": {"launcher": "accelerate", "num_processes": 2},
    "5": {"nproc_per_node": 4, "visible_devices": "2,3,4,5", "vae_2d_split": True, "npu_fusion_attention": True},
    "6": {"device": "cuda"},
    "7": {"visible_devices": "1,2,3,4", "rank0_t5_only": True, "condition_cache_dir": "/cache", "vae_path": "/vae"},
    "10": {"visible_devices": "1"},
    "13": {"repo_path": "/r", "resident_target": "127.0.0.1:50071", "resident_autostart": True, "t5_cpu": True},
    "16": {"t5_quant": "int8", "t5_quant_dir": "/q"},
}


@pytest.mark.parametrize("case", LAUNCHES)
def test_what_a_case_sets_of_its_launch_is_refused_by_name(client: httpx.Client, speech: Path, case: str) -> None:
    body = generate_body(send_files(client, speech), **LAUNCHES[case])
    answer = client.post("/v1/generate", json=body)
    assert answer.status_code == 400
    keys = sorted(LAUNCHES[case])
    assert f"Config keys {keys} belong to the installation; they stand in workers.toml" in answer.json()["detail"]


def test_case_22_tiers_are_known_or_refused_and_readiness_lists_them(client: httpx.Client) -> None:
    assert {model["tier"] for model in client.get("/v1/models?tier=core").json()["data"]} == {"core"}
    assert client.get("/v1/models?tier=unknown").status_code == 400
    assert client.get("/readyz").json()["allowed_model_tiers"] == []


def test_every_test_that_the_page_of_cases_names_is_there() -> None:
    page = (ROOT / "docs/compatibility.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page)
    assert len(named) > 20
    for path, name in named:
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), f"{path}::{name}"
