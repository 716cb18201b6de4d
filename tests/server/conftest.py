from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.farm_process import ROOT, FarmProcess, served, workers

PORTRAIT = ROOT / "examples/portraits/astronaut.jpg"


@pytest.fixture(scope="session")
def speech(tmp_path_factory: pytest.TempPathFactory, ffmpeg: Path) -> Path:
    """Two seconds of a person speaking."""
    path = tmp_path_factory.mktemp("speech") / "hello.wav"
    source = ROOT / "examples/speech/reading_en.flac"
    subprocess.run([ffmpeg, "-v", "error", "-i", source, "-t", "2", path], check=True)
    return path


@pytest.fixture(scope="session")
def working_farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FarmProcess]:
    """A server with workers that render."""
    home = tmp_path_factory.mktemp("farm")
    with served(home) as farm, workers(home):
        yield farm


@pytest.fixture(scope="session")
def idle_farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FarmProcess]:
    """A server whose work nobody takes."""
    with served(tmp_path_factory.mktemp("idle"), env={"FARM_SERVER__REQUESTS_PER_SECOND": "100000"}) as farm:
        yield farm


@pytest.fixture
def client(idle_farm: FarmProcess) -> Iterator[httpx.Client]:
    with idle_farm.client() as made:
        yield made


def send_files(client: httpx.Client, speech: Path) -> dict[str, str]:
    """Uploads a portrait and a sound; their ids."""
    ids: dict[str, str] = {}
    for kind, path in (("image", PORTRAIT), ("audio", speech)):
        answer = client.post("/v1/uploads", params={"name": path.name}, content=path.read_bytes())
        assert answer.status_code == 201, answer.text
        ids[kind] = f"upload:{answer.json()['id']}"
    return ids


def generate_body(ids: dict[str, str], **config: object) -> dict[str, object]:
    return {"task": "audio2video", "model": "preview", "inputs": ids, "config": {"size": "256x256", **config}}


def wait_ended(client: httpx.Client, job_id: str, seconds: float = 120.0) -> dict[str, object]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        record: dict[str, object] = client.get(f"/v1/jobs/{job_id}").json()
        if record["state"] in ("succeeded", "failed", "cancelled"):
            return record
        time.sleep(0.2)
    raise AssertionError(f"job {job_id} did not end: {record}")
