"""Who asks for one job again and again is answered beside the framework, and as the framework answers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from sqlalchemy import event

from farm.config import ServerSettings
from farm.ledger import Ledger, open_ledger
from farm.ledger.keys import Scope, add_key, list_keys, revoke_key
from farm.ledger.migrate import upgrade
from farm.server import access
from farm.server.access import Caller, Gate
from farm.server.context import Context
from farm.server.feed import Feed
from farm.server.polls import Polls, read_poll
from tests.farm_process import FarmProcess
from tests.ledger.scenes import submit
from tests.server.conftest import generate_body, send_files

ANN = Caller("0123", "ann", Scope.READ)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with closing(open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}")) as opened:
        upgrade(opened)
        yield opened


@pytest.fixture
def job(client: httpx.Client, speech: Path) -> str:
    answer = client.post("/v1/generate", json=generate_body(send_files(client, speech)) | {"async_run": True})
    return str(answer.json()["id"])


def gate(ledger: Ledger, requests_per_second: float = 100.0) -> Gate:
    values: dict[str, Any] = {"host": "127.0.0.1", "port": 0, "open": False, "upload_gb": 1.0, "batch_file_mb": 1.0}
    values |= {"requests_per_second": requests_per_second, "niceness": 0, "scheduling": "normal"}
    return Gate(ledger, ServerSettings(**values), "ann")


def polls(gate: Gate, ledger: Ledger) -> Polls:
    nothing: Any = None
    return Polls(nothing, gate, Context(nothing, ledger, Feed(ledger), nothing, nothing, nothing))


# The same answers


class Wire:
    """A client that decides itself which bytes it sends."""

    def __init__(self, farm: FarmProcess) -> None:
        url = httpx.URL(farm.url)
        self.farm = farm
        self.socket = socket.create_connection((url.host, url.port or 80), timeout=60)
        self.file = self.socket.makefile("rb")

    def request(self, path: str, *lines: str, key: str | None = None) -> bytes:
        shown = self.farm.key if key is None else key
        return "\r\n".join([f"GET {path} HTTP/1.1", "Host: farm", f"x-api-key: {shown}", *lines, "", ""]).encode()

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        status = int(self.file.readline().split()[1])
        headers: dict[str, str] = {}
        while line := self.file.readline().strip():
            name, _, value = line.decode().partition(": ")
            headers[name.lower()] = value
        return status, headers, self.file.read(int(headers["content-length"]))


@pytest.fixture
def wire(idle_farm: FarmProcess) -> Iterator[Wire]:
    made = Wire(idle_farm)
    with made.socket, made.file:
        yield made


def test_a_poll_is_answered_as_the_route_answers(wire: Wire, job: str) -> None:
    wire.socket.sendall(wire.request(f"/v1/jobs/{job}"))
    status, headers, body = wire.answer()
    routed = httpx.get(f"{wire.farm.url}/v1/jobs/{job}", headers={"Authorization": f"Bearer {wire.farm.key}"})
    assert status == routed.status_code == 200
    assert headers.pop("date") and routed.headers.pop("date")
    assert sorted(headers.items()) == sorted(routed.headers.items())
    told, by_route = httpx.Response(200, content=body).json(), routed.json()
    assert told.keys() == by_route.keys() and told["id"] == by_route["id"] == job


def test_one_connection_may_poll_and_ask_for_other_things_in_any_order(wire: Wire, job: str) -> None:
    for path, status in ((f"/v1/jobs/{job}", 200),) * 3 + (("/v1/me", 200), (f"/v1/jobs/{job}", 200), ("/no", 404)):
        wire.socket.sendall(wire.request(path))
        assert wire.answer()[0] == status


def test_requests_may_come_in_pieces_and_several_at_once(wire: Wire, job: str) -> None:
    whole = wire.request(f"/v1/jobs/{job}")
    wire.socket.sendall(whole)
    assert wire.answer()[0] == 200
    wire.socket.sendall(whole + whole[:20])
    assert wire.answer()[0] == 200
    wire.socket.sendall(whole[20:])
    assert wire.answer()[0] == 200


@pytest.mark.parametrize("key", ["", "farm_000000000000_" + "x" * 43, "nothing"])
def test_who_polls_without_a_key_that_opens_is_refused(wire: Wire, job: str, key: str) -> None:
    wire.socket.sendall(wire.request(f"/v1/jobs/{job}", key=key))
    assert wire.answer()[0] == 401


def test_a_poll_for_a_job_that_is_not_there_is_refused_in_words(wire: Wire) -> None:
    wire.socket.sendall(wire.request("/v1/jobs/999999"))
    status, _, body = wire.answer()
    assert (status, body) == (404, b'{"detail":"Job not found"}')


@pytest.mark.parametrize(
    ("changes", "poll"),
    [
        ({}, ("12", "k")),
        ({"method": "POST"}, None),
        ({"type": "websocket"}, None),
        ({"path": "/v1/jobs/1x"}, None),
        ({"headers": []}, None),
        ({"headers": [(b"x-api-key", b"k"), (b"x-api-key", b"l")]}, None),
        ({"headers": [(b"x-api-key", b"k"), (b"content-length", b"3")]}, None),
        ({"headers": [(b"x-api-key", b"k"), (b"transfer-encoding", b"chunked")]}, None),
    ],
)
def test_only_a_plain_request_with_one_key_is_taken_for_a_poll(
    changes: dict[str, Any], poll: tuple[str, str] | None
) -> None:
    scope = {"type": "http", "method": "GET", "path": "/v1/jobs/12", "headers": [(b"x-api-key", b"k")]}
    assert read_poll(scope | changes) == poll


# Who may be answered


class _NoScope:
    def allows(self, wanted: Scope) -> bool:
        return False


def test_a_key_that_may_not_read_is_left_to_the_route(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    (job,) = submit(ledger)
    weak = Caller("0123", "ann", cast(Scope, _NoScope()))

    async def find(self: Gate, key: str | None) -> Caller:
        return weak

    monkeypatch.setattr(Gate, "find", find)
    assert asyncio.run(polls(gate(ledger), ledger).answer(str(job), "k")) is None


def test_a_poll_that_fails_is_counted_by_the_route_alone(ledger: Ledger) -> None:
    key, known = add_key(ledger, name="ann's", owner="ann", scope=Scope.READ)
    counting = gate(ledger, requests_per_second=0.3)  # three at once
    asked = polls(counting, ledger)
    caller = Caller(known.id, known.owner, known.scope)

    async def story() -> list[bool]:
        for _ in range(5):
            assert await asked.answer("999999", key) is None
        return [counting.may_go_on(caller) for _ in range(3)]

    assert asyncio.run(story()) == [True] * 3


def test_who_asks_too_often_is_left_to_the_route(ledger: Ledger) -> None:
    key, known = add_key(ledger, name="ann's", owner="ann", scope=Scope.READ)
    counting = gate(ledger, requests_per_second=0.0001)  # one in hours

    async def story() -> None:
        assert counting.may_go_on(Caller(known.id, known.owner, known.scope))
        assert await polls(counting, ledger).answer("1", key) is None

    asyncio.run(story())


def test_hundreds_of_keys_are_looked_up_again_in_one_reading(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [add_key(ledger, name=str(n), owner="ann", scope=Scope.READ)[0] for n in range(20)]
    revoked = list_keys(ledger)[0].name
    doors = gate(ledger)
    statements: list[str] = []

    async def story() -> list[Caller | None]:
        for key in keys:
            assert await doors.find(key) is not None
        monkeypatch.setattr(access, "REMEMBER_SECONDS", 1e9)
        revoke_key(ledger, list_keys(ledger)[0].id)
        event.listen(ledger.engine, "before_cursor_execute", lambda c, k, sql, *_: statements.append(sql))
        return [await doors.find(key) for key in keys]

    monkeypatch.setattr(access, "REMEMBER_SECONDS", 0.0)
    found = asyncio.run(story())
    assert [caller is None for caller in found] == [str(n) == revoked for n in range(20)]
    # All that are remembered in one, and once more the one that is not.
    assert sum("api_keys" in sql for sql in statements) == 2
