"""What stands before every route: limits on bodies, and headers that keep a browser in this farm."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from farm.logs import add_log_ids

# Nothing is loaded from anywhere else; pictures and films come from here, waveforms are drawn.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:;"
    " connect-src 'self'; font-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'"
)
HEADERS: Mapping[str, str] = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
SMALL_BODY = 1 << 20
_JOB = re.compile(r"/v1/jobs/([0-9]{1,18})(?:/|$)")
DRAIN_BYTES = 16 << 20


class _TooLarge(HTTPException):
    """FastAPI lets this kind of error pass where it reads a body."""

    def __init__(self, limit: int) -> None:
        super().__init__(413, _words(limit))


class Guard:
    """ASGI middleware.  `limits` are bytes by path; other paths may take a megabyte."""

    def __init__(self, app: ASGIApp, limits: Mapping[str, int]) -> None:
        self._app = app
        self._limits = limits
        self._headers = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        named = _JOB.match(scope["path"])
        if named:
            add_log_ids(job=int(named[1]))  # a request is a task of its own, and its end is logged outside of this
        limit = self._limits.get(scope["path"], SMALL_BODY)
        begun = False
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > limit:
                raise _TooLarge(limit)
            return message

        async def told(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                message = {**message, "headers": [*message.get("headers", []), *self._headers]}
            await send(message)

        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if declared.isdigit() and int(declared) > limit:
            await _drain(receive)
            await _refuse(told, limit)
            return
        try:
            await self._app(scope, counted, told)
        except _TooLarge:
            if begun:
                raise
            await _drain(receive)
            await _refuse(told, limit)


def _words(limit: int) -> str:
    return f"The request is larger than {limit} bytes"


async def _drain(receive: Receive) -> None:
    """Read on for a while: a client that still sends would be cut off before it sees the answer."""
    left = DRAIN_BYTES
    while left > 0:
        message = await receive()
        left -= len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body"):
            return


async def _refuse(send: Send, limit: int) -> None:
    body = json.dumps({"detail": _words(limit)}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 413, "headers": [*headers, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})
