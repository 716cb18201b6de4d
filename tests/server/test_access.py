"""Who may do what, against a real server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.farm_process import SERVE, FarmProcess, environment, served
from tests.server.conftest import generate_body, send_files

OPEN_ROUTES = {"/healthz", "/readyz", "/v1/session", "/v1/whoami"}


def test_every_route_but_health_and_sign_in_needs_a_key(idle_farm: FarmProcess) -> None:
    with idle_farm.client(key="") as nobody:
        paths = nobody.get("/openapi.json").json()["paths"]
        assert len(paths) > 25
        for path, methods in paths.items():
            for method in methods:
                answer = nobody.request(method, path.replace("{", "").replace("}", ""), json={})
                if path in OPEN_ROUTES:
                    assert answer.status_code != 401, path
                else:
                    assert answer.status_code in (401, 429), f"{method} {path}: {answer.status_code}"


def test_a_key_opens_as_header_as_bearer_and_as_cookie(idle_farm: FarmProcess) -> None:
    assert httpx.get(f"{idle_farm.url}/v1/me", headers={"x-api-key": idle_farm.key}).status_code == 200
    assert httpx.get(f"{idle_farm.url}/v1/me", headers={"Authorization": f"Bearer {idle_farm.key}"}).status_code == 200
    with idle_farm.client(key="") as browser:
        answer = browser.post("/v1/session", json={"key": idle_farm.key})
        assert answer.json() == {"owner": "alice", "scope": "admin", "open": False}
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=strict" in cookie
        assert browser.get("/v1/me").status_code == 200
        browser.delete("/v1/session")
        assert browser.get("/v1/me").status_code == 401


@pytest.mark.parametrize("key", ["", "x", "farm_0123456789ab_" + "A" * 43, "farm_" + "é" * 8])
def test_what_is_no_key_opens_nothing(idle_farm: FarmProcess, key: str) -> None:
    answer = httpx.get(f"{idle_farm.url}/v1/jobs", headers={"x-api-key": key.encode()})
    assert answer.status_code == 401
    assert answer.json() == {"detail": "Unauthorized"}


def test_the_ledger_holds_no_key_that_could_be_stolen(idle_farm: FarmProcess) -> None:
    secret = idle_farm.key.split("_", 2)[2].encode()
    for path in idle_farm.home.glob("ledger.db*"):
        assert secret not in path.read_bytes()
    assert secret not in (idle_farm.home / "serve.log").read_bytes()


def test_another_site_cannot_act_through_a_browsers_cookie(idle_farm: FarmProcess) -> None:
    with idle_farm.client(key="") as browser:
        browser.post("/v1/session", json={"key": idle_farm.key})
        for headers in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
            answer = browser.post("/v1/uploads", params={"name": "a"}, content=b"x", headers=headers)
            assert answer.status_code == 403


def test_an_owner_neither_sees_nor_steers_anothers_jobs(idle_farm: FarmProcess, speech: Path) -> None:
    bob, carol = (idle_farm.make_key(owner, "submit") for owner in ("bob", "carol"))
    with idle_farm.client(bob) as his, idle_farm.client(carol) as hers, idle_farm.client() as admin:
        body = generate_body(send_files(his, speech)) | {"async_run": True}
        job = his.post("/v1/generate", json=body).json()["id"]
        assert his.get(f"/v1/jobs/{job}").json()["farm"]["owner"] == "bob"
        assert [j["id"] for j in his.get("/v1/jobs").json()["data"]] == [job]
        assert hers.get("/v1/jobs").json()["data"] == []
        for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/pause"), ("GET", "/film"), ("GET", "/events")):
            answer = hers.request(method, f"/v1/jobs/{job}{path}")
            assert (answer.status_code, answer.json()) == (404, {"detail": "Job not found"})
        assert job in [j["id"] for j in admin.get("/v1/jobs").json()["data"]]
        # An upload's id is its content's hash: knowing it does not give another owner's file.
        assert hers.post("/v1/generate", json=body).status_code == 400


def test_a_reader_may_not_submit_and_only_an_admin_drains_workers(idle_farm: FarmProcess) -> None:
    with idle_farm.client(idle_farm.make_key("bob", "read")) as reader:
        assert reader.get("/v1/jobs").status_code == 200
        assert reader.post("/v1/uploads", params={"name": "a"}, content=b"x").status_code == 403
    with idle_farm.client(idle_farm.make_key("bob", "submit")) as submitter:
        assert submitter.post("/v1/workers/gpu0/drain").status_code == 403


def test_a_revoked_key_opens_nothing_any_more(idle_farm: FarmProcess) -> None:
    from farm.ledger import open_ledger
    from farm.ledger.keys import list_keys, revoke_key

    key = idle_farm.make_key("dave", "read")
    ledger = open_ledger(f"sqlite:///{idle_farm.home / 'ledger.db'}")
    revoke_key(ledger, next(k.id for k in list_keys(ledger) if k.owner == "dave"))
    ledger.close()
    assert httpx.get(f"{idle_farm.url}/v1/jobs", headers={"x-api-key": key}).status_code == 401


def test_a_server_that_others_can_reach_is_never_open(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", SERVE, "--host", "0.0.0.0", "--port", "0", "--open"]
    done = subprocess.run(argv, env=environment(tmp_path, {}), capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "needs keys" in done.stderr


def test_an_open_server_answers_this_machine_only_by_its_own_names(tmp_path: Path) -> None:
    with served(tmp_path / "home", "--open") as farm, farm.client(key="") as anybody:
        assert anybody.get("/v1/me").json()["open"] is True
        assert anybody.get("/v1/me", headers={"Host": "evil.example"}).status_code == 403
        assert anybody.delete("/v1/jobs/1", headers={"Origin": "https://evil.example"}).status_code == 403


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="Linux's")
def test_who_watches_stands_back_behind_renders(idle_farm: FarmProcess) -> None:
    pid = idle_farm.process.pid
    assert os.sched_getscheduler(pid) == os.SCHED_BATCH
    assert os.getpriority(os.PRIO_PROCESS, pid) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 10)


def test_too_many_requests_are_told_to_slow_down(tmp_path: Path) -> None:
    with served(tmp_path / "home", env={"FARM_SERVER__REQUESTS_PER_SECOND": "0.5"}) as farm, farm.client() as client:
        answers = [client.get("/v1/me") for _ in range(5)]
        while answers[-1].status_code == 200 and len(answers) < 100:  # a slow machine earns some more meanwhile
            answers.append(client.get("/v1/me"))
    assert [a.status_code for a in answers[:5]] == [200] * 5
    assert answers[-1].status_code == 429
    assert answers[-1].headers["retry-after"] == "1"


def test_every_answer_keeps_a_browser_in_this_farm(client: httpx.Client) -> None:
    for path in ("/", "/page/app.js", "/v1/jobs", "/nowhere"):
        headers = client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"], path
        assert "http" not in headers["content-security-policy"], path
        assert headers["x-content-type-options"] == "nosniff", path
