"""The application: routes, page and errors joined."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

from farm import __version__
from farm.config import Settings
from farm.doorbell import Doorbell
from farm.ledger import Ledger
from farm.roster import user_name
from farm.server import flashtalk, fleet, intake, jobs, metrics, uploads
from farm.server.access import Gate
from farm.server.context import Context, answer_errors
from farm.server.feed import Feed
from farm.server.guard import Guard
from farm.server.polls import Polls
from farm.server.probes import Probes

PAGE = Path(__file__).resolve().parent / "page"


def make_server(ledger: Ledger, settings: Settings) -> FastAPI:
    """The ASGI application of one farm.  Raises ConfigError for a server that would be open to other machines."""
    gate = Gate(ledger, settings.server, user_name())
    feed = Feed(ledger)
    probes = Probes()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        feed.start()
        yield
        await feed.stop()
        await probes.close()

    app = FastAPI(
        title="farm",
        version=__version__,
        summary="Batch rendering of talking-head video",
        docs_url=None,  # its page would load scripts from another host
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.gate = gate
    app.state.context = Context(settings, ledger, feed, Doorbell(settings), metrics.Scrapes(ledger, settings), probes)
    app.state.feed = feed
    app.state.live_sessions = set()
    answer_errors(app)
    for router in (intake.router, jobs.router, uploads.router, fleet.router, metrics.router, flashtalk.router):
        app.include_router(router)

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers={"Cache-Control": "no-cache"})

    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    text = int(settings.server.batch_file_mb * 1e6)
    limits = {"/v1/uploads": int(settings.server.upload_gb * 1e9), "/v1/batches": text}
    app.add_middleware(Guard, limits=limits)
    app.add_middleware(Polls, gate=gate, here=app.state.context)
    return app
