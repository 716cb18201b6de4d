"""One reading for everybody who waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from fastapi.concurrency import run_in_threadpool

Answer = TypeVar("Answer")


class Crowd(Generic[Answer]):
    """Asks for the same thing that come while a reading is under way share the next one.

    An answer was therefore always read after it was asked for, and a thousand clients that come at once cost a few
    readings.  Lives on the server's event loop; readings run in threads, one at a time.
    """

    def __init__(self) -> None:
        self._waiting: dict[Hashable, asyncio.Future[Answer]] = {}
        self._turn = asyncio.Lock()

    async def ask(self, key: Hashable, reading: Callable[[], Answer]) -> Answer:
        """What `reading` returns.  Raises what it raises."""
        if key not in self._waiting:
            self._waiting[key] = asyncio.ensure_future(self._read(key, reading))
        return await asyncio.shield(self._waiting[key])

    async def _read(self, key: Hashable, reading: Callable[[], Answer]) -> Answer:
        async with self._turn:
            del self._waiting[key]  # who comes from now on needs a reading that begins later
            return await run_in_threadpool(reading)
