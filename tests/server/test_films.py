"""A film from upload to download over HTTP: real server, real workers, real engine."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.farm_process import FarmProcess
from tests.server.conftest import generate_body, send_files, wait_ended


@pytest.fixture(scope="module")
def film(working_farm: FarmProcess, speech: Path) -> dict[str, Any]:
    """A sync generate, and what else the server answered meanwhile."""
    with working_farm.client() as client:
        body = generate_body(send_files(client, speech), seed=3)
        answer: list[httpx.Response] = []
        sync = threading.Thread(target=lambda: answer.append(client.post("/v1/generate", json=body, timeout=200)))
        sync.start()
        healthy = 0
        while sync.is_alive():
            assert client.get("/healthz").json() == {"ok": True}
            healthy += sync.is_alive()
            sync.join(0.2)
        assert answer[0].status_code == 200, answer[0].text
        return {**answer[0].json(), "healthy": healthy}


def test_a_sync_generate_answers_with_the_film_and_holds_up_nobody(film: dict[str, Any]) -> None:
    assert film["healthy"] > 0  # answered while the film was still to come
    (output,) = film["outputs"]
    assert (output["kind"], output["mime"], output["transport"]) == ("video", "video/mp4", "path")
    assert (output["width"], output["height"], output["num_frames"]) == (256, 256, 50)
    report = film["metadata"]
    assert report["schema_version"] == "1.0.0"
    assert (report["task"], report["model"], report["execution_mode"]) == (
        "audio2video",
        "preview",
        "persistent_worker",
    )
    assert report["config_resolved"]["seed"] == 3
    assert report["timings"]["denoise_loop_ms"] > 0
    assert report["worker_id"] == "preview@desk"
    told = [event["event"] for event in report["stream_events"]]
    assert told[:3] == ["job_enqueued", "job_started", "stage_start"]
    assert "job_finished" not in told  # OmniRT appends it after the report


def test_the_film_is_fetched_whole_by_range_and_by_head(working_farm: FarmProcess, film: dict[str, Any]) -> None:
    with working_farm.client() as client:
        url = film["outputs"][0]["url"]
        whole = client.get(url)
        assert whole.headers["content-type"] == "video/mp4"
        assert len(whole.content) == Path(film["outputs"][0]["path"]).stat().st_size
        part = client.get(url, headers={"Range": "bytes=100-199"})
        assert (part.status_code, part.content) == (206, whole.content[100:200])
        assert part.headers["content-range"] == f"bytes 100-199/{len(whole.content)}"
        assert client.get(url, headers={"Range": "bytes=999999999-"}).status_code == 416
        assert client.head(url).headers["content-length"] == str(len(whole.content))


def test_pictures_waveform_segments_and_trace_are_there(working_farm: FarmProcess, film: dict[str, Any]) -> None:
    job = film["metadata"]["job_id"]
    with working_farm.client() as client:
        for name, kind in (("poster", "jpeg"), ("sheet", "jpeg"), ("last-frame", "jpeg"), ("portrait", "png")):
            answer = client.get(f"/v1/jobs/{job}/{name}")
            assert answer.headers["content-type"] == f"image/{kind}", name
        waveform = client.get(f"/v1/jobs/{job}/waveform").json()
        assert len(waveform["peaks"]) == 600 and 0.05 < max(waveform["peaks"]) <= 1.0
        assert waveform["seconds"] == 2.0
        kinds = [s["kind"] for s in client.get(f"/v1/jobs/{job}/segments").json()]
        assert kinds == ["prepare", "render", "assemble"]
        trace = client.get(f"/v1/jobs/{job}/trace").json()
        assert [span["stage"] for span in trace["spans"]] == ["prepare", "render", "assemble"]
        spans = client.get("/v1/timeline").json()["spans"]
        assert {s["worker"] for s in spans} >= {"cpu@desk", "preview@desk"}


def stream(client: httpx.Client, path: str, **headers: str) -> list[tuple[str, dict[str, Any], int | None]]:
    """Every event until the server ends the stream."""
    told: list[tuple[str, dict[str, Any], int | None]] = []
    name, number = "", None
    with client.stream("GET", path, headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("event: "):
                name = line[7:]
            elif line.startswith("id: "):
                number = int(line[4:])
            elif line.startswith("data: "):
                told.append((name, json.loads(line[6:]), number))
                number = None
    return told


def test_the_event_stream_tells_the_whole_story_and_ends(working_farm: FarmProcess, speech: Path) -> None:
    with working_farm.client() as client:
        body = generate_body(send_files(client, speech), seed=4) | {"async_run": True}
        job = client.post("/v1/generate", json=body).json()["id"]
        told = stream(client, f"/v1/jobs/{job}/events")
        names = [name for name, _, _ in told]
        story = [name for name in names if name != "progress"]
        assert story[:3] == ["job_enqueued", "job_started", "stage_start"]
        assert story[-1] == "job_finished"
        assert story.count("stage_start") == story.count("stage_end") == 3
        shares = [event["data"]["share"] for name, event, _ in told if name == "progress"]
        assert shares and shares == sorted(shares)
        # Opened on a finished job it tells the history and closes; with Last-Event-ID only what was missed.
        again = stream(client, f"/v1/jobs/{job}/events")
        assert [name for name, _, _ in again] == story
        last_but_one = str(again[-2][2])
        missed = stream(client, f"/v1/jobs/{job}/events", **{"Last-Event-ID": last_but_one})
        assert [name for name, _, _ in missed] == ["job_finished"]


def test_a_running_job_is_cancelled_and_can_be_retried(working_farm: FarmProcess, ffmpeg: Path) -> None:
    from tests.farm_process import ROOT

    with working_farm.client() as client:
        ids = send_files(client, ROOT / "examples/speech/lecture_ja.opus")
        job = client.post("/v1/generate", json=generate_body(ids) | {"async_run": True}).json()["id"]
        with client.stream("GET", f"/v1/jobs/{job}/events") as events:
            for line in events.iter_lines():
                if line.startswith("data: ") and '"stage": "render"' in line:
                    break
        assert client.delete(f"/v1/jobs/{job}").json()["state"] == "cancelled"
        record = wait_ended(client, job)
        assert record["state"] == "cancelled"
        assert client.delete(f"/v1/jobs/{job}").json()["state"] == "cancelled"  # a finished job stays as it is
        assert client.post(f"/v1/jobs/{job}/retry").json()["state"] in ("queued", "running")
        client.delete(f"/v1/jobs/{job}")


def test_a_portrait_without_a_face_fails_alone_in_words_without_server_paths(
    working_farm: FarmProcess, speech: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (400, 400), "seagreen").save(tmp_path / "wall.png")
    with working_farm.client() as client:
        ids = send_files(client, speech)
        wall = client.post("/v1/uploads", params={"name": "wall.png"}, content=(tmp_path / "wall.png").read_bytes())
        ids["image"] = wall.json()["id"]
        answer = client.post("/v1/generate", json=generate_body(ids), timeout=120)
        assert answer.status_code == 400
        assert "o face was found" in answer.json()["detail"]
        assert str(working_farm.home) not in answer.text
        workers = client.get("/v1/farm").json()["workers"]
        assert {w["name"]: w["host_restarts"] for w in workers} == {"cpu@desk": 0, "preview@desk": 0}


def test_the_metrics_count_what_was_rendered(working_farm: FarmProcess, film: dict[str, Any]) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    with working_farm.client() as client:
        text = client.get("/metrics").text
    samples = {
        (s.name, *sorted(s.labels.items())): s.value for f in text_string_to_metric_families(text) for s in f.samples
    }
    assert samples["farm_frames_total", ("model", "preview")] >= 50
    assert samples["farm_jobs", ("model", "preview"), ("state", "succeeded")] >= 1
    assert samples["farm_segment_seconds_count", ("model", "preview")] >= 1
    assert max(float(dict(k[1:])["le"]) for k in samples if k[0] == "farm_segment_seconds_bucket") == float("inf")
    up = [v for k, v in samples.items() if k[0] == "farm_worker_up"]
    assert up == [1.0, 1.0]
