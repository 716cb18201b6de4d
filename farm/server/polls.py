"""Answers to those who ask for one job again and again."""

from __future__ import annotations

import asyncio
import re
import time
from collections import OrderedDict
from dataclasses import dataclass

from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as RequestScope

from farm.errors import FarmError
from farm.ledger import overview
from farm.ledger.keys import Scope
from farm.server.access import Caller, Gate
from farm.server.context import Context
from farm.server.guard import HEADERS
from farm.server.intake import record
from farm.server.views import STALE_SECONDS

RECORD_SECONDS = 1.0  # how old an answer may be; hundreds of pollers cost the ledger no more than one
_RECORDS = 1024
_JOB = re.compile(r"/v1/jobs/([0-9]{1,18})")
_GUARDED = tuple((name.encode(), value.encode()) for name, value in HEADERS.items())


@dataclass(frozen=True, slots=True)
class Answer:
    """A job's record as the bytes that are sent."""

    headers: list[tuple[bytes, bytes]]
    body: bytes
    made_at: float
    pulse: tuple[int, int]  # of the ledger, read before the record


class Records:
    """The newest answers to `GET /v1/jobs/{id}`.  Asked on the server's event loop."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str | None, int], tuple[float, asyncio.Future[Answer]]] = OrderedDict()

    async def get(self, here: Context, caller: Caller, job_id: str) -> Answer:
        """Raises NotFound.  Who asks while an answer is being made waits for the same one."""
        key = (job_id, caller.sees, id(here))
        kept = self._kept.get(key)
        if kept is None or kept[0] < time.monotonic():
            before = kept[1].result() if kept is not None and _is_answered(kept[1]) else None
            making = asyncio.ensure_future(run_in_threadpool(_answer, here, caller, job_id, before))
            kept = (time.monotonic() + RECORD_SECONDS, making)
            self._kept.pop(key, None)
            self._kept[key] = kept
            if len(self._kept) > _RECORDS:
                self._kept.popitem(last=False)
        return await asyncio.shield(kept[1])

    def forget(self, job_id: int) -> None:
        """May be called from any thread."""
        for key in list(self._kept):
            if key[0] == str(job_id):
                self._kept.pop(key, None)


def _is_answered(making: asyncio.Future[Answer]) -> bool:
    return making.done() and not making.cancelled() and making.exception() is None


def _answer(here: Context, caller: Caller, job_id: str, before: Answer | None) -> Answer:
    """The job's record; the one from before where nothing has happened since that it would tell."""
    pulse = overview.pulse(here.ledger)
    if before is not None and before.pulse == pulse and time.monotonic() - before.made_at < STALE_SECONDS:
        return before
    made_at = time.monotonic()
    job = here.job(caller, job_id)
    told = record(here, job.id, here.feed.summaries.read([job.id], pulse))
    body = bytes(JSONResponse(told).body)
    headers = [(b"content-length", b"%d" % len(body)), (b"content-type", b"application/json"), *_GUARDED]
    return Answer(headers, body, made_at, pulse)


records = Records()


class Polls:
    """ASGI middleware before all others: answers callers with a key in a header, without the framework behind it.

    A route costs a third of a millisecond, which hundreds of pollers would take from the renders of a small machine.
    What goes wrong, and whoever shows no such key, goes on to the route, which answers the same.
    """

    def __init__(self, app: ASGIApp, gate: Gate, here: Context) -> None:
        self._app = app
        self._gate = gate
        self._here = here

    async def __call__(self, scope: RequestScope, receive: Receive, send: Send) -> None:
        poll = read_poll(scope)
        answer = await self.answer(*poll) if poll is not None else None
        if answer is None:
            await self._app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": answer.headers})
        await send({"type": "http.response.body", "body": answer.body})

    async def answer(self, job_id: str, key: str) -> Answer | None:
        """The answer to one poll, which is counted here if it is answered here."""
        if self._gate.open:
            return None
        try:
            caller = await self._gate.find(key)
            if caller is None or not caller.scope.allows(Scope.READ) or not self._gate.may_go_on(caller):
                return None
        except FarmError:
            return None
        try:
            return await records.get(self._here, caller, job_id)
        except FarmError:
            self._gate.take_back(caller)
            return None


def read_poll(scope: RequestScope) -> tuple[str, str] | None:
    """The job and the key of a request for a job's record; None if it is anything else."""
    if scope["type"] != "http" or scope["method"] != "GET":
        return None
    job = _JOB.fullmatch(scope["path"])
    if job is None:
        return None
    keys = []
    for name, value in scope["headers"]:
        if name in (b"content-length", b"transfer-encoding"):  # a body is for who measures it
            return None
        if name == b"x-api-key":
            keys.append(value)
    return (job[1], keys[0].decode("latin-1")) if len(keys) == 1 else None
