"""Uploads, generate and batches, against a real server whose work nobody takes."""

from __future__ import annotations

import hashlib
import unicodedata
import wave
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.farm_process import FarmProcess, served
from tests.server.conftest import PORTRAIT, generate_body, send_files


def submitter(farm: FarmProcess, owner: str) -> httpx.Client:
    return farm.client(farm.make_key(owner, "submit"))


def test_an_upload_is_known_by_its_content(client: httpx.Client) -> None:
    answer = client.post("/v1/uploads", params={"name": "../../etc/Anna.JPG"}, content=PORTRAIT.read_bytes())
    assert answer.status_code == 201
    taken = answer.json()
    assert taken["id"] == hashlib.sha256(PORTRAIT.read_bytes()).hexdigest()
    assert (taken["name"], taken["kind"], taken["width"]) == ("Anna.JPG", "portrait", 512)
    assert client.get(f"/v1/uploads/{taken['id']}").json() == taken
    assert client.get(f"/v1/uploads/{'0' * 64}").status_code == 404


def test_uploads_of_one_name_in_two_folders_are_told_apart(
    idle_farm: FarmProcess, speech: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.wav"
    with wave.open(str(other), "wb") as sound:
        sound.setparams((1, 2, 16_000, 0, "NONE", ""))
        sound.writeframes(bytes(16_000))
    with submitter(idle_farm, "two folders") as client:
        face = {"name": unicodedata.normalize("NFD", "Frau Müller.jpg")}  # as a Mac sends it
        client.post("/v1/uploads", params=face, content=PORTRAIT.read_bytes()).raise_for_status()
        for name, file in (("week1/intro.wav", speech), ("week2\\intro.wav", other)):
            client.post("/v1/uploads", params={"name": name}, content=file.read_bytes()).raise_for_status()
        words = ("week1/intro.wav", "week2/intro.wav", "week3/intro.wav")
        rows = [{"portrait": "Frau Müller.jpg", "audio": word, "name": word[:5]} for word in words]
        jobs = client.post("/v1/batches", json={"rows": rows}).raise_for_status().json()["job_ids"]
        heard = [client.get(f"/v1/jobs/{job}").json()["request"]["inputs"]["audio"] for job in jobs]
    first, second = (f"upload:{hashlib.sha256(file.read_bytes()).hexdigest()}" for file in (speech, other))
    assert heard == [first, second, second]  # what no folder was sent of is the newest of its name


def test_every_fault_of_a_batch_is_told_at_once(idle_farm: FarmProcess, speech: Path) -> None:
    with submitter(idle_farm, "faults") as client:
        send_files(client, speech)
        rows = [{"portrait": "nobody.jpg", "audio": "speech.wav"}, {"portrait": "face.jpg"}, {"priority": "high"}]
        answer = client.post("/v1/batches", json={"rows": rows})
        assert answer.status_code == 400
        assert [p["row"] for p in answer.json()["problems"]] == [1, 2, 3]
        assert "\nbatch:2: " in answer.json()["detail"]
        assert client.get("/v1/jobs").json()["data"] == []


def test_a_body_that_is_no_json_is_told_so(client: httpx.Client) -> None:
    cut = client.post("/v1/generate", content=b'{"task": 1', headers={"content-type": "application/json"})
    assert cut.status_code == 422
    assert cut.json()["detail"].startswith("the request's body is no JSON: ") and "character 10" in cut.text
    form = client.post("/v1/generate", data={"task": "audio2video"})
    assert (form.status_code, form.json()["detail"][:20]) == (422, "send one JSON object")


@pytest.mark.parametrize("content", [b"hello", b"\x89PNG\r\n\x1a\n" + b"\0" * 100, b"#EXTM3U\nhttp://10.0.0.1/a.ts\n"])
def test_what_is_neither_picture_nor_sound_is_refused_whatever_its_name_says(
    client: httpx.Client, idle_farm: FarmProcess, content: bytes
) -> None:
    answer = client.post("/v1/uploads", params={"name": "face.png"}, content=content)
    assert answer.status_code == 415
    assert answer.json()["detail"] == "face.png is neither a picture nor a sound that this farm can read"
    assert not list((idle_farm.home / "uploads").rglob("*.part"))


def test_bodies_are_bounded_whether_or_not_they_tell_their_length(tmp_path: Path) -> None:
    limits = {"FARM_SERVER__UPLOAD_GB": "0.0001", "FARM_SERVER__BATCH_FILE_MB": "0.01"}
    with served(tmp_path / "home", env=limits) as farm, farm.client() as client:
        for path, size in (("/v1/uploads?name=a.wav", 200_000), ("/v1/batches", 20_000), ("/v1/generate", 2_000_000)):
            told = client.post(path, content=b"x" * size, headers={"content-type": "text/csv"})
            untold = client.post(path, content=iter([b"x" * size]), headers={"content-type": "text/csv"})
            assert (told.status_code, untold.status_code) == (413, 413), path
        assert not list((farm.home / "uploads").rglob("*.part"))


def test_an_async_generate_is_a_job_record_in_omnirts_words(idle_farm: FarmProcess, speech: Path) -> None:
    with submitter(idle_farm, "eve") as client:
        sent = send_files(client, speech)
        record = client.post("/v1/generate", json=generate_body(sent, seed=7) | {"async_run": True}).json()
        assert record["state"] == "queued"
        assert record["request"]["inputs"] == sent  # what can be sent again, not places on this machine
        assert record["request"]["config"]["seed"] == 7
        assert [event["event"] for event in record["events"]] == ["job_enqueued"]
        assert len(record["trace_id"]) == 32
        again = client.get(f"/v1/jobs/{record['id']}").json()
        assert again["id"] == record["id"]
        assert "result" not in again
        gone = client.delete(f"/v1/jobs/{record['id']}").json()
        assert gone["state"] == "cancelled"
        assert gone["events"][-1]["event"] == "job_cancelled"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": "previev"}, "- Unknown model 'previev'. Nearby models: preview."),
        ({"task": "text2image"}, "- Model 'preview' supports tasks [audio2video], got 'text2image'."),
        ({"inputs": {}}, "- Missing required input 'image' for model 'preview'.\n- Missing required input 'audio'"),
        ({"config": {"preset": "opera"}}, "- Unknown preset 'opera'. Available presets: [natural"),
        (
            {"config": {"python_executable": "/bin/sh"}},
            "- Config keys ['python_executable'] belong to the inst",
        ),
        ({"config": {"wings": 2}}, "- Unsupported config keys for model 'preview': ['wings']. Supported: ['audio_enc"),
        ({"config": {"fps": 7}}, "- model preview cannot render 7 frames per second"),
        ({"config": {"seed": "x"}}, "- seed must be a whole number"),
        ({"backend": "cuda"}, "- Model 'preview' renders on cpu, not on cuda."),
        ({"adapters": [{"kind": "lora"}]}, "- Model 'preview' does not currently declare adapter support."),
    ],
)
def test_a_wrong_request_is_told_in_omnirts_words(
    idle_farm: FarmProcess, speech: Path, change: dict[str, Any], said: str
) -> None:
    with idle_farm.client() as client:
        answer = client.post("/v1/generate", json=generate_body(send_files(client, speech)) | change)
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith(said)


def test_a_client_names_uploads_and_no_files_of_the_server(idle_farm: FarmProcess, speech: Path) -> None:
    with submitter(idle_farm, "frank") as client:
        body = generate_body({"image": str(PORTRAIT), "audio": str(speech)})
        answer = client.post("/v1/generate", json=body)
        assert answer.status_code == 400
        assert "was not uploaded as a picture" in answer.json()["detail"]
        row = {"portrait": "/etc/passwd", "audio": "/etc/passwd", "output": "/tmp/x.mp4"}
        assert client.post("/v1/batches", json={"rows": [row]}).status_code == 400


def test_the_same_request_under_one_idempotency_key_is_one_job(idle_farm: FarmProcess, speech: Path) -> None:
    with submitter(idle_farm, "grace") as client:
        body = generate_body(send_files(client, speech)) | {"async_run": True}
        headers = {"Idempotency-Key": "lecture 7"}
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: client.post("/v1/generate", json=body, headers=headers), range(6)))
        assert {a.status_code for a in answers} <= {200, 409}
        after = client.post("/v1/generate", json=body, headers=headers)
        assert {a.json()["id"] for a in [*answers, after] if a.status_code == 200} == {after.json()["id"]}
        assert len(client.get("/v1/jobs").json()["data"]) == 1
        other = client.post("/v1/generate", json=body | {"model": "x"}, headers=headers)
        assert other.status_code == 409
        fresh = client.post("/v1/generate", json=body)
        assert fresh.json()["id"] != after.json()["id"]  # without a key each request is a job of its own


def test_a_refused_request_may_be_mended_under_the_same_key(idle_farm: FarmProcess, speech: Path) -> None:
    with submitter(idle_farm, "heidi") as client:
        body = generate_body(send_files(client, speech)) | {"async_run": True}
        headers = {"Idempotency-Key": "k"}
        assert client.post("/v1/generate", json=body | {"model": "x"}, headers=headers).status_code == 400
        assert client.post("/v1/generate", json=body, headers=headers).status_code == 200


def test_a_csv_names_files_as_they_were_uploaded_and_the_same_rows_are_the_same_jobs(
    idle_farm: FarmProcess, speech: Path
) -> None:
    with submitter(idle_farm, "ivan") as client:
        send_files(client, speech)
        csv = f"portrait,audio,name,owner\nfaces/{PORTRAIT.name},{speech.name},One,boss\n".encode()
        first = client.post("/v1/batches", params={"name": "week 1"}, content=csv, headers={"content-type": "text/csv"})
        assert first.status_code == 201
        assert (first.json()["new"], first.json()["known"]) == (1, 0)
        again = client.post("/v1/batches", content=csv, headers={"content-type": "text/csv"}).json()
        assert (again["new"], again["known"], again["job_ids"]) == (0, 1, first.json()["job_ids"])
        job = client.get(f"/v1/jobs/{again['job_ids'][0]}").json()["farm"]
        assert (job["name"], job["owner"]) == ("One", "ivan")  # a row cannot make work for another owner
        (batch,) = client.get("/v1/batches").json()["data"]
        assert (batch["name"], batch["jobs"]) == ("week 1", {"queued": 1})


def test_bad_rows_are_told_one_by_one_and_can_be_left_out(idle_farm: FarmProcess, speech: Path) -> None:
    with submitter(idle_farm, "judy") as client:
        ids = send_files(client, speech)
        good = {"portrait": ids["image"], "audio": ids["audio"]}
        rows = [good, {"portrait": "nobody.jpg", "audio": ids["audio"]}]
        refused = client.post("/v1/batches", json={"rows": rows})
        assert refused.status_code == 400
        assert refused.json()["problems"] == [
            {"row": 2, "sentence": "portrait nobody.jpg was not uploaded as a picture"}
        ]
        assert client.get("/v1/jobs").json()["data"] == []
        taken = client.post("/v1/batches", json={"rows": rows, "skip_bad": True}).json()
        assert (taken["new"], [p["row"] for p in taken["problems"]]) == (1, [2])


def test_jobs_are_paged_filtered_paused_and_given_priority(idle_farm: FarmProcess, speech: Path) -> None:
    with submitter(idle_farm, "ken") as client:
        ids = send_files(client, speech)
        rows = [{"portrait": ids["image"], "audio": ids["audio"], "seed": n, "name": f"film {n}"} for n in range(5)]
        client.post("/v1/batches", json={"rows": rows})
        page = client.get("/v1/jobs", params={"limit": 3}).json()
        rest = client.get("/v1/jobs", params={"limit": 3, "before": page["next_before"]}).json()
        names = [j["name"] for j in page["data"] + rest["data"]]
        assert names == [f"film {n}" for n in (4, 3, 2, 1, 0)]
        assert rest["next_before"] is None
        last = page["data"][0]["id"]
        assert client.post(f"/v1/jobs/{last}/pause").json()["farm"]["state"] == "paused"
        assert [j["id"] for j in client.get("/v1/jobs", params={"state": "paused"}).json()["data"]] == [last]
        assert client.post(f"/v1/jobs/{last}/resume").json()["farm"]["state"] == "queued"
        assert client.patch(f"/v1/jobs/{last}", json={"priority": 9}).json()["farm"]["priority"] == 9
        refused = client.patch(f"/v1/jobs/{last}", json={"priority": 999})
        assert (refused.status_code, refused.json()) == (
            422,
            {"detail": "priority: input should be less than or equal to 100"},
        )
        due = client.patch(f"/v1/jobs/{last}", json={"deadline": "2026-12-24T06:00:00+01:00"}).json()["farm"][
            "deadline"
        ]
        assert due == datetime(2026, 12, 24, 5, tzinfo=UTC).timestamp()
        assert client.patch(f"/v1/jobs/{last}", json={"deadline": "soon"}).status_code == 400
        form = client.post("/v1/uploads", params={"name": "a.wav"}, files={"file": speech.read_bytes()})
        assert (form.status_code, "not a form" in form.json()["detail"]) == (415, True)
        assert [j["name"] for j in client.get("/v1/jobs", params={"q": "film 3"}).json()["data"]] == ["film 3"]
        assert client.get("/v1/jobs", params={"state": "bored"}).status_code == 400


def test_work_that_nobody_can_take_is_said_aloud(idle_farm: FarmProcess, speech: Path) -> None:
    with idle_farm.client() as client:
        client.post("/v1/generate", json=generate_body(send_files(client, speech)) | {"async_run": True})
        stuck = client.get("/v1/farm").json()["stuck"]
    assert stuck and stuck[0]["reason"].startswith("no worker serves queue cpu")


def test_a_ready_answer_is_the_routes_answer_and_only_for_those_who_may_see_the_job(
    idle_farm: FarmProcess, speech: Path
) -> None:
    with submitter(idle_farm, "rob") as client, submitter(idle_farm, "sue") as other:
        job_id = client.post(
            "/v1/generate", json=generate_body(send_files(client, speech)) | {"async_run": True}
        ).json()["id"]
        answers = [client.get(f"/v1/jobs/{job_id}") for _ in range(20)]
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.headers["content-security-policy"] for answer in answers}) == 1
        assert {tuple(sorted(answer.json())) for answer in answers} == {tuple(sorted(answers[0].json()))}
        assert [other.get(f"/v1/jobs/{job_id}").status_code for _ in range(3)] == [404] * 3
        assert client.get(f"/v1/jobs/{job_id}", headers={"x-api-key": "farm_0"}).status_code == 401
        client.delete(f"/v1/jobs/{job_id}")
        assert client.get(f"/v1/jobs/{job_id}").json()["state"] == "cancelled"
