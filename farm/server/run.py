"""Running the server until it is told to stop."""

from __future__ import annotations

import gc
import logging
import os
import socket

import uvicorn

from farm.config import Scheduling, Settings
from farm.errors import ConfigError
from farm.ledger import Ledger
from farm.server.app import make_server

log = logging.getLogger(__name__)

GOODBYE_SECONDS = 5  # for requests under way when the server is told to stop
KEEP_CONNECTION_SECONDS = 30  # longer than who polls waits between two requests: a connection costs more than one


class _Server(uvicorn.Server):
    """Ends the streams when it is told to stop; uvicorn itself would wait for their listeners."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        app = self.config.app
        await app.state.feed.stop()  # type: ignore[union-attr]
        await super().shutdown(sockets)


def bind(settings: Settings) -> socket.socket:
    """Take the port.  Raises ConfigError when another program has it."""
    host, port = settings.server.host, settings.server.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    taken = socket.socket(family)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((host.strip("[]"), port))
    except OSError as error:
        taken.close()
        raise ConfigError(f"server.port: cannot listen on {host}:{port}: {error.strerror}") from None
    return taken


def address_of(taken: socket.socket) -> str:
    host, port = taken.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def stand_back(niceness: int, scheduling: Scheduling) -> None:
    """On a machine that renders on all cores, who watches must not slow the films.

    A lower priority alone still lets a request wake the server in the middle of a render's work, whose caches it cools.
    Under Linux's policy `batch` it waits for a core that is free, or for its share of a busy one; `idle` gives it next
    to no share.  See sched(7).  Holds for this thread and for the threads and children that it starts.
    """
    os.nice(niceness)
    if scheduling == "normal" or not hasattr(os, "SCHED_BATCH"):  # Linux has it
        return
    try:
        os.sched_setscheduler(0, os.SCHED_BATCH if scheduling == "batch" else os.SCHED_IDLE, os.sched_param(0))
    except OSError as error:
        log.warning("server.scheduling: %s is not to be had here: %s", scheduling, error.strerror)


def serve(ledger: Ledger, settings: Settings, taken: socket.socket) -> None:
    """Serve on a bound socket until SIGTERM or SIGINT.  Raises ConfigError."""
    app = make_server(ledger, settings)
    stand_back(settings.server.niceness, settings.server.scheduling)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GOODBYE_SECONDS,
        limit_concurrency=2000,
        backlog=2048,
        timeout_keep_alive=KEEP_CONNECTION_SECONDS,
        ws="websockets-sansio",
        ws_max_size=int(settings.live.message_mb * 1e6),
        ws_per_message_deflate=False,  # pictures are packed already
    )
    config.load()
    # What was loaded stays; looking through it for garbage again and again took up to a tenth of the server's time.
    gc.collect()
    gc.freeze()
    _Server(config).run(sockets=[taken])
