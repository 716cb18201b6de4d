"""Running the server until it is told to stop."""

from __future__ import annotations

import logging
import os
import socket

import uvicorn

from farm.config import Settings
from farm.errors import ConfigError
from farm.ledger import Ledger
from farm.server.app import make_server

log = logging.getLogger(__name__)

GOODBYE_SECONDS = 5  # for requests under way when the server is told to stop


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


def serve(ledger: Ledger, settings: Settings, taken: socket.socket) -> None:
    """Serve on a bound socket until SIGTERM or SIGINT.  Raises ConfigError."""
    app = make_server(ledger, settings)
    os.nice(settings.server.niceness)  # on a machine that renders on all cores, who watches must not slow the films
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GOODBYE_SECONDS,
        limit_concurrency=2000,
        backlog=2048,
        ws="websockets-sansio",
        ws_max_size=int(settings.live.message_mb * 1e6),
        ws_per_message_deflate=False,  # pictures are packed already
    )
    _Server(config).run(sockets=[taken])
