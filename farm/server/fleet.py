"""The farm as a whole: models, workers, the timeline, how busy it was; and who is asking."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from farm import omnirt
from farm.ledger import control, overview, read
from farm.ledger.presence import is_at_work
from farm.server import views
from farm.server.access import COOKIE, Admin, Gate, Reader
from farm.server.context import Here, problems
from farm.server.feed import Tick
from farm.server.stream import EventStream

router = APIRouter(tags=["farm"])
Hours = Annotated[float, Query(ge=0.01, le=24 * 31, description="How far back")]


class Health(BaseModel):
    ok: bool


class Readiness(BaseModel):
    model_config = ConfigDict(extra="allow")

    ok: bool


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[dict[str, Any]]


class AvatarModels(BaseModel):
    models: list[str]
    statuses: list[dict[str, Any]]


class FarmState(BaseModel):
    jobs: dict[str, int]
    queues: dict[str, int]
    stuck: list[dict[str, Any]]
    workers: list[dict[str, Any]]


class Timeline(BaseModel):
    since: float
    until: float
    spans: list[dict[str, Any]]
    busy: list[dict[str, float]]


class Me(BaseModel):
    owner: str
    scope: Literal["read", "submit", "admin"]
    open: bool = Field(description="Whether this server asks nobody for a key")


class Session(BaseModel):
    key: str = Field(min_length=1, max_length=200)


@router.get("/healthz", response_model=Health)
async def healthz() -> dict[str, Any]:
    """This process lives."""
    return {"ok": True}


@router.get("/readyz", response_model=Readiness, responses={503: {"model": Readiness}})
def readyz(here: Here) -> JSONResponse:
    """Whether work would be taken: the ledger answers, and some worker renders."""
    try:
        now = here.ledger.now()
        queues = [worker.queue for worker in read.workers(here.ledger) if is_at_work(worker, now)]
    except Exception as error:  # whatever it is, this farm is not ready
        return JSONResponse({"ok": False, "job_store_backend": "ledger", "reason": type(error).__name__}, 503)
    return JSONResponse(
        {
            "ok": True,
            "job_store_backend": "ledger",
            "remote_worker_count": len(queues),
            "allowed_model_tiers": [],
            "queues": sorted(set(queues)),
        }
    )


@router.get("/v1/models", response_model=ModelList, responses=problems(400))
def list_models(caller: Reader, tier: str | None = None, include_aliases: bool = False) -> dict[str, Any]:
    """The models, with their presets and settings."""
    if tier not in (None, "core", "adjacent", "experimental", "all"):
        raise HTTPException(400, f"Unknown tier {tier!r}")
    return {"object": "list", "data": omnirt.model_entries() if tier in (None, "core", "all") else []}


@router.get("/v1/audio2video/models", response_model=AvatarModels, responses=problems())
@router.get("/v1/avatar/models", response_model=AvatarModels, include_in_schema=False)
def avatar_models(caller: Reader, here: Here) -> dict[str, Any]:
    """Which models have a worker now."""
    entries = omnirt.model_entries()
    up = {e["id"] for e in entries if overview.queue_has_worker(here.ledger, e["queue"])}
    statuses = [
        {"id": e["id"], "connected": e["id"] in up, "reason": "worker" if e["id"] in up else "no worker"}
        for e in entries
    ]
    return {"models": sorted(up), "statuses": statuses}


@router.get("/v1/farm", response_model=FarmState, responses=problems())
def farm_state(caller: Reader, here: Here) -> dict[str, Any]:
    """Counts, queues, workers, and work that no worker can take with the reason."""
    return views.farm_state(here.ledger, caller.sees)


@router.get("/v1/timeline", response_model=Timeline, responses=problems(422))
def timeline(caller: Reader, here: Here, hours: Hours = 6.0) -> dict[str, Any]:
    """Who rendered which segment when, and how busy the farm was.  Names of others' jobs are left out."""
    until = here.ledger.now()
    since = until - hours * 3600.0
    spans = overview.timeline(here.ledger, since=since, until=until)
    mine = {span.job_id for span in spans}
    if caller.sees is not None:
        visible = overview.owned_by(here.ledger, caller.sees, sorted(mine))
        mine &= visible
    return {
        "since": since,
        "until": until,
        "spans": [
            {
                "worker": s.worker,
                "device": s.device,
                "job_id": str(s.job_id) if s.job_id in mine else None,
                "job_name": s.job_name if s.job_id in mine else None,
                "kind": s.kind.value,
                "number": s.number,
                "attempt": s.attempt,
                "started_at": s.started_at,
                "ended_at": s.ended_at,
                "outcome": s.outcome,
                "reason": s.reason if s.job_id in mine else None,
            }
            for s in spans
        ],
        "busy": [
            {"at": m.at, "open_jobs": m.open_jobs, "devices": round(m.busy, 3)}
            for m in overview.busyness(here.ledger, since=since, until=until)
        ],
    }


@router.post("/v1/workers/{name}/drain", response_model=FarmState, responses=problems(404))
def drain_worker(name: str, caller: Admin, here: Here, now: bool = False) -> dict[str, Any]:
    """Let a worker take nothing new; with `now` it also gives back what it holds."""
    control.drain_worker(here.ledger, name, now=now)
    return views.farm_state(here.ledger, None)


@router.post("/v1/workers/{name}/resume", response_model=FarmState, responses=problems(404))
def resume_worker(name: str, caller: Admin, here: Here) -> dict[str, Any]:
    """Undo `drain`, and forgive a sick worker."""
    control.resume_worker(here.ledger, name)
    here.ring()
    return views.farm_state(here.ledger, None)


@router.get("/v1/me", response_model=Me, responses=problems())
def me(caller: Reader, request: Request) -> dict[str, Any]:
    gate: Gate = request.app.state.gate
    return {"owner": caller.owner, "scope": caller.scope.value, "open": gate.open}


@router.get("/v1/whoami", response_model=Me, responses={204: {"description": "Nobody: this browser has no key"}})
async def whoami(request: Request) -> Response:
    """Who this browser is, without the refusal that a page without a key would write into its console."""
    gate: Gate = request.app.state.gate
    try:
        caller = await gate.admit(request, request.cookies.get(COOKIE), by_cookie=True)
    except HTTPException as refused:
        if refused.status_code != 401:
            raise
        return Response(status_code=204)
    return JSONResponse({"owner": caller.owner, "scope": caller.scope.value, "open": gate.open})


@router.post("/v1/session", response_model=Me, responses=problems(422))
async def begin_session(body: Session, request: Request, response: Response) -> dict[str, Any]:
    """Let a browser in: the key becomes a cookie that its scripts cannot read and other sites cannot use."""
    gate: Gate = request.app.state.gate
    caller = await gate.admit(request, body.key, by_cookie=True)
    secure = request.url.scheme == "https"
    response.set_cookie(COOKIE, body.key, httponly=True, samesite="strict", secure=secure, path="/", max_age=30 * 86400)
    return {"owner": caller.owner, "scope": caller.scope.value, "open": gate.open}


@router.delete("/v1/session", status_code=204)
def end_session(response: Response) -> None:
    response.delete_cookie(COOKIE, path="/")


@router.get(
    "/v1/feed",
    response_class=StreamingResponse,
    responses=problems()
    | {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "Events as they happen"}},
)
async def feed(caller: Reader, here: Here) -> EventStream:
    """Server-sent events of the whole farm: `jobs` with those that changed, `farm` with counts, queues and workers."""

    async def begin() -> tuple[bytes, bool]:
        return b"retry: 2000\n\n", False

    def tell(tick: Tick) -> tuple[bytes, bool]:
        return tick.keep_alive + tick.of_owner(caller.sees), False

    return EventStream(here.feed, caller.sees, begin, tell)
