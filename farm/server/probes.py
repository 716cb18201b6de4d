"""Looking at what was uploaded, in children: a file that crashes or stalls its decoder costs that upload only."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from farm.errors import InputError
from farm.media.probe import AudioInfo, ImageInfo, probe_input
from farm.workshop import Workshop

log = logging.getLogger(__name__)

PROBE_SECONDS = 30.0  # headers are read in milliseconds, and every packet of a browser's long recording in seconds
AT_ONCE = 4


class Probes:
    """A few children that each look at one file at a time.  Lives on the server's event loop; no thread waits."""

    def __init__(
        self,
        look: Callable[[Path], ImageInfo | AudioInfo] = probe_input,
        *,
        at_once: int = AT_ONCE,
        seconds: float = PROBE_SECONDS,
    ) -> None:
        self._look = look
        self._seconds = seconds
        self._all = [Workshop() for _ in range(at_once)]
        self._free = list(self._all)  # the one that was used last is taken first, so that few are ever started
        self._turn = asyncio.Semaphore(at_once)

    async def probe(self, path: Path) -> ImageInfo | AudioInfo:
        """What the file is.  Raises InputError with a sentence, also when its decoder died of it or did not end."""
        async with self._turn:
            workshop = self._free.pop()
            try:
                work = await asyncio.to_thread(workshop.do, self._look, path)
                return await asyncio.wait_for(asyncio.wrap_future(work), self._seconds)
            except BrokenProcessPool:
                await asyncio.to_thread(workshop.kill)
                log.warning("the process that looked at the upload %s died", path.name)
                raise InputError(f"{path} crashes the program that reads it") from None
            except (TimeoutError, asyncio.CancelledError) as error:
                await asyncio.to_thread(workshop.kill)
                if isinstance(error, asyncio.CancelledError):
                    raise  # its client is gone
                log.warning("looking at the upload %s took longer than %g s", path.name, self._seconds)
                raise InputError(f"{path} cannot be read within {self._seconds:g} s") from None
            finally:
                self._free.append(workshop)

    async def close(self) -> None:
        for workshop in self._all:
            await asyncio.to_thread(workshop.kill)
