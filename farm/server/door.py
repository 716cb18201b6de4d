"""What reads first what a connection says: polls are answered here, everything else goes to uvicorn."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol
from uvicorn.server import ServerState

from farm.server.polls import Answer, Reception

# A whole request and nothing else, without a body, an upgrade or anything that is not plain; whatever looks otherwise
# is read by the HTTP library.
_POLL = re.compile(
    rb"GET /v1/jobs/([0-9]{1,18}) HTTP/1\.1\r\n"
    rb"((?:(?!content-length|transfer-encoding|upgrade|expect|connection:(?! ?keep-alive\r))"
    rb"[a-z0-9-]+:[ !-~]*\r\n)+)\r\n",
    re.IGNORECASE,
)
_KEY = re.compile(rb"^x-api-key:(.*)\r$", re.IGNORECASE | re.MULTILINE)
_LONGEST = 4096

log = logging.getLogger(__name__)


class Door(asyncio.Protocol):
    """One connection, until it says something else than a poll; then uvicorn's own protocol takes it for good.

    uvicorn makes a task, a scope and three wrappers for each request, and sends the answer in two pieces, checked
    letter by letter: six times the work.  Who polls sends the same bytes again and again, and gets bytes that lie
    ready.
    """

    def __init__(
        self,
        reception: Reception,
        *,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._reception = reception
        self._config = config
        self._state = server_state
        self._app_state = app_state
        self._loop = _loop or asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._said = b""
        self._poll = ("", "")  # what was said: a job, and the key that was shown
        self._making: asyncio.Task[None] | None = None
        self._patience: asyncio.TimerHandle | None = None
        self._closing = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by name
        self._state.connections.add(self)  # type: ignore[arg-type]  # as far as uvicorn asks, it is one of its own

    def connection_lost(self, exc: Exception | None) -> None:
        self._let_go()
        if self._making is not None:
            self._making.cancel()

    def data_received(self, data: bytes) -> None:
        if self._patience is not None:
            self._patience.cancel()
        if data != self._said:
            poll = read_poll(data)
            if poll is None:
                self._hand_over(data)
                return
            self._said, self._poll = data, poll
        answer = self._reception.ready(*self._poll)
        if answer is not None:
            self._send(answer)
            return
        self._transport.pause_reading()  # one answer after the other
        self._making = self._loop.create_task(self._make())

    def pause_writing(self) -> None:
        self._transport.pause_reading()  # who does not read its answers is not heard either

    def resume_writing(self) -> None:
        if self._making is None:
            self._transport.resume_reading()

    def shutdown(self) -> None:
        """uvicorn's word for: end with the answer that is under way."""
        self._closing = True
        if self._making is None:
            self._transport.close()

    async def _make(self) -> None:
        try:
            answer = await self._reception.answer(*self._poll)
        except Exception:
            log.exception("a poll could not be answered")
            answer = None
        self._making = None
        if self._transport.is_closing():
            return
        self._transport.resume_reading()
        if answer is None:
            self._hand_over(self._said)
        else:
            self._send(answer)

    def _send(self, answer: Answer) -> None:
        lines = [b"%b: %b\r\n" % header for header in self._state.default_headers]  # the date
        self._transport.write(b"".join((b"HTTP/1.1 200 OK\r\n", *lines, answer.plain)))
        self._state.total_requests += 1
        self._patience = self._loop.call_later(self._config.timeout_keep_alive, self._transport.close)
        if self._closing:
            self._transport.close()

    def _hand_over(self, data: bytes) -> None:
        self._let_go()
        uvicorns: Any = AutoHTTPProtocol
        taking = uvicorns(config=self._config, server_state=self._state, app_state=self._app_state, _loop=self._loop)
        taking.connection_made(self._transport)
        self._transport.set_protocol(taking)
        if self._closing:
            taking.shutdown()
        taking.data_received(data)

    def _let_go(self) -> None:
        self._state.connections.discard(self)
        if self._patience is not None:
            self._patience.cancel()


def read_poll(data: bytes) -> tuple[str, str] | None:
    """The job and the key of a request for a job's record; None if it is anything else."""
    found = _POLL.fullmatch(data) if len(data) <= _LONGEST else None
    keys = _KEY.findall(found[2]) if found is not None else []
    if found is None or len(keys) != 1:
        return None
    return found[1].decode(), keys[0].strip(b" ").decode("latin-1")
