"""Answers to those who ask for one job again and again."""

from __future__ import annotations

import asyncio
import re
import time
from collections import OrderedDict

from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from farm.errors import FarmError
from farm.server.access import Caller, Gate
from farm.server.context import Context
from farm.server.intake import record

RECORD_SECONDS = 1.0  # how old an answer may be; hundreds of pollers cost the ledger no more than one
_RECORDS = 1024
_JOB = re.compile(r"/v1/jobs/([0-9]{1,18})")


class Records:
    """The newest answers to `GET /v1/jobs/{id}`, as the bytes that are sent.  Asked on the server's event loop."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str | None, int], tuple[float, asyncio.Future[bytes]]] = OrderedDict()

    async def get(self, here: Context, caller: Caller, job_id: str) -> bytes:
        """Raises NotFound.  Who asks while an answer is being made waits for the same one."""
        key = (job_id, caller.sees, id(here))
        kept = self._kept.get(key)
        if kept is None or kept[0] < time.monotonic():
            making = asyncio.ensure_future(run_in_threadpool(_record_bytes, here, caller, job_id))
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


def _record_bytes(here: Context, caller: Caller, job_id: str) -> bytes:
    return bytes(JSONResponse(record(here, here.job(caller, job_id).id)).body)


records = Records()


class Polls:
    """ASGI middleware that answers callers with a key in a header, without the framework behind it.

    A route costs a millisecond of a core, which hundreds of pollers would take from the renders of a small machine.
    What goes wrong, and whoever shows no such key, goes on to the route, which answers the same.
    """

    def __init__(self, app: ASGIApp, gate: Gate, here: Context) -> None:
        self._app = app
        self._gate = gate
        self._here = here

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await self._answer(scope)
        if body is None:
            await self._app(scope, receive, send)
            return
        headers = [(b"content-length", b"%d" % len(body)), (b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: Scope) -> bytes | None:
        if scope["type"] != "http" or scope["method"] != "GET" or self._gate.open:
            return None
        job = _JOB.fullmatch(scope["path"])
        if job is None:
            return None
        key = next((value for name, value in scope["headers"] if name == b"x-api-key"), b"")
        try:
            caller = await self._gate.find(key.decode("latin-1"))
            if caller is None or not self._gate.may_go_on(caller):
                return None
            return await records.get(self._here, caller, job[1])
        except FarmError:
            return None  # the route says what is wrong
