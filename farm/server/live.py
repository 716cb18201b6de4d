"""A live session as the server sees it: a leased host of some worker, asked over the worker's Unix socket.

The messages are framed as in workers/host/wire.py; what they say stands in workers/live.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import struct
import time
from collections.abc import Mapping
from typing import Any

from farm.config import Settings
from farm.errors import EngineError, FarmError, InputError
from farm.ledger import Ledger, live
from farm.models import ModelSpec

log = logging.getLogger(__name__)

_HEAD = struct.Struct("!II")  # bytes of JSON, bytes beside it
_ANSWER_LIMIT = 1 << 28
_CONNECT_SECONDS = 5.0
_CLOSE_SECONDS = 10.0
_FREE_SECONDS = 3.0  # a worker whose session has just ended is free in a moment
_LOOK_SECONDS = 0.2


class NoHost(FarmError):
    """No worker gives its host to this session; the sentence says why."""


class LiveSession:
    """One worker's warm host, ours until `close`."""

    def __init__(self, ledger: Ledger, lease: live.LiveLease) -> None:
        self._ledger = ledger
        self._lease = lease
        self._writer: asyncio.StreamWriter | None = None
        self._answers: asyncio.Queue[tuple[dict[str, Any], bytes] | None] = asyncio.Queue()
        self._listener: asyncio.Task[None] | None = None
        self._begun = False
        self.ended = False  # the worker hung up

    @classmethod
    async def open(
        cls,
        ledger: Ledger,
        settings: Settings,
        model: ModelSpec,
        queue: str,
        film: Mapping[str, Any],
        portrait: bytes,
        owner: str,
    ) -> LiveSession:
        """Lease a host and begin.  Raises NoHost, and InputError for a portrait that the model cannot use."""
        refused: list[str] = []
        until = time.monotonic() + _FREE_SECONDS
        while True:
            lease = await asyncio.to_thread(
                live.lease_host, ledger, queue, owner=owner, ttl_seconds=settings.lease.ttl_seconds, refused=refused
            )
            if lease is None:
                if time.monotonic() < until:
                    await asyncio.sleep(_LOOK_SECONDS)
                    continue
                raise NoHost(
                    f"no worker can serve a live session of {model.id} now; `farm status` shows what each of them does"
                )
            session = cls(ledger, lease)
            try:
                await session._connect()
                wish = {"say": "open", "token": lease.token, "model": model.id, "film": dict(film)}
                await session._ask(wish, portrait, settings.live.wait_seconds)
                session._begun = True
            except (NoHost, OSError) as error:
                log.warning("%s does not give its host: %s", lease.worker, error)
                await session.close()
                refused.append(lease.worker)
            except TimeoutError:
                await session.close()
                raise NoHost(f"no worker was free within {settings.live.wait_seconds:g} s; try again") from None
            except BaseException:
                await session.close()
                raise
            else:
                return session

    async def speak(self, pcm: bytes) -> list[bytes]:
        """The pictures that these samples make possible, JPEG, in order; often none for the first ones.

        Raises EngineError when the session is over; the sentence says why.
        """
        try:
            answer, blob = await self._ask({"say": "speech"}, pcm, None)
        except (OSError, NoHost) as error:
            raise EngineError(f"the live session ended: {error}") from error
        pictures, at = [], 0
        for size in answer["sizes"]:
            pictures.append(blob[at : at + size])
            at += size
        return pictures

    async def close(self) -> None:
        """Give the host back."""
        if self._writer is not None:
            if self._begun and not self.ended:  # a worker that still renders its segment would not answer
                with contextlib.suppress(OSError, TimeoutError, FarmError):
                    await self._ask({"say": "close"}, b"", _CLOSE_SECONDS)
            self._writer.close()
        if self._listener is not None:
            self._listener.cancel()
        with contextlib.suppress(FarmError):
            how = "the server hung up"
            await asyncio.to_thread(live.release, self._ledger, self._lease.worker, self._lease.token, how)

    async def _connect(self) -> None:
        connecting = asyncio.open_unix_connection(self._lease.address)
        try:
            reader, self._writer = await asyncio.wait_for(connecting, _CONNECT_SECONDS)
        except TimeoutError:
            raise ConnectionError("it does not answer") from None
        self._listener = asyncio.create_task(self._listen(reader))

    async def _ask(
        self, message: Mapping[str, Any], blob: bytes, seconds: float | None
    ) -> tuple[dict[str, Any], bytes]:
        assert self._writer is not None
        if self._answers.empty():  # otherwise the worker has said already why the session is over
            with contextlib.suppress(OSError):
                self._writer.write(_framed(message, blob))
                await self._writer.drain()
        heard = await asyncio.wait_for(self._answers.get(), seconds)
        if heard is None:
            self._answers.put_nowait(None)
            raise ConnectionError("the worker is gone")
        answer, pixels = heard
        if answer["say"] != "error":
            return answer, pixels
        kinds: Mapping[str, type[FarmError]] = {"input": InputError, "busy": NoHost}
        raise kinds.get(answer["kind"], EngineError)(answer["message"])

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                said, beside = _HEAD.unpack(await reader.readexactly(_HEAD.size))
                if said + beside > _ANSWER_LIMIT:
                    return
                message: dict[str, Any] = json.loads(await reader.readexactly(said))
                self._answers.put_nowait((message, await reader.readexactly(beside)))
        except (OSError, asyncio.IncompleteReadError, ValueError):
            pass
        finally:
            self.ended = True
            self._answers.put_nowait(None)


def _framed(message: Mapping[str, Any], blob: bytes) -> bytes:
    body = json.dumps(message, separators=(",", ":")).encode()
    return _HEAD.pack(len(body), len(blob)) + body + blob
