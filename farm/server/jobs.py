"""Jobs: listed, shown, watched, steered; their films and pictures."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from farm import omnirt_records
from farm.errors import FileLost, InputError
from farm.ledger import control, overview, read
from farm.ledger.values import Artifact, Job
from farm.row_check import read_deadline
from farm.server import views
from farm.server.access import Caller, Reader, Submitter
from farm.server.context import Context, Here, no_such, problems
from farm.server.feed import Tick
from farm.server.intake import JobRecord, record
from farm.server.polls import records
from farm.server.stream import EventStream
from farm.states import ArtifactKind

router = APIRouter(tags=["jobs"])

_PEAKS = 600  # columns of a drawn waveform
ImageKind = Literal["portrait", "poster", "sheet", "last-frame"]


class JobSummary(BaseModel):
    """A job in a list.  Instants are seconds since 1970-01-01 UTC."""

    model_config = ConfigDict(extra="allow")

    id: str
    name: str
    state: Literal["queued", "preparing", "rendering", "assembling", "succeeded", "failed", "cancelled", "paused"]
    reason: str | None
    share: float = Field(description="Part of the film that exists, 0 to 1")
    seconds_left: float | None
    device_seconds: float


class JobList(BaseModel):
    object: Literal["list"] = "list"
    data: list[JobSummary]
    next_before: int | None = Field(description="Give this as `before` for the page after this one")


class Change(BaseModel):
    """What may be changed of a job that has not ended."""

    model_config = ConfigDict(extra="forbid")

    priority: int | None = Field(default=None, ge=-100, le=100)
    deadline: Annotated[float, Field(ge=0, le=4e9)] | str | None = Field(
        default=None, description="Seconds since 1970-01-01 UTC, or a date and time such as 2026-12-24T06:00:00+01:00"
    )


class SegmentView(BaseModel):
    model_config = ConfigDict(extra="allow")

    number: int
    kind: Literal["prepare", "render", "assemble"]
    state: str


class Waveform(BaseModel):
    seconds: float
    peaks: list[float] = Field(description="Loudest sample of each stretch, 0 to 1")


class Trace(BaseModel):
    model_config = ConfigDict(extra="allow")

    trace_id: str
    job_id: str


@router.get("/v1/jobs", response_model=JobList, responses=problems(422))
def list_jobs(
    caller: Reader,
    here: Here,
    state: Annotated[list[str] | None, Query(description="Only these; also paused and open; may be repeated")] = None,
    batch: Annotated[int | None, Query(ge=1, lt=2**53)] = None,
    owner: Annotated[str | None, Query(max_length=200, description="For admin keys: only this owner's")] = None,
    q: Annotated[str | None, Query(max_length=200, description="Part of the name")] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    before: Annotated[int | None, Query(ge=1, lt=2**53)] = None,
) -> JSONResponse:
    """Jobs, newest first."""
    unknown = [word for word in state or [] if word not in read.SHOWN_STATES]
    if unknown:
        raise InputError(f"there is no state {unknown[0]!r}; states are {', '.join(read.SHOWN_STATES)}")
    found = read.jobs(
        here.ledger,
        shown_as=state or [],
        batch_id=batch,
        owner=caller.sees or owner,
        name_contains=q,
        limit=limit,
        before_id=before,
    )
    return JSONResponse(
        {
            "object": "list",
            "data": views.summaries(here.ledger, [job.id for job in found]),
            "next_before": found[-1].id if len(found) == limit else None,
        }
    )


@router.get("/v1/jobs/{job_id}", response_model=JobRecord, responses=problems(404))
async def show_job(job_id: str, caller: Reader, here: Here) -> Response:
    """OmniRT's record of a job; `farm` holds progress, cost and what else this farm knows."""
    return Response((await records.get(here, caller, job_id)).body, media_type="application/json")


@router.delete("/v1/jobs/{job_id}", response_model=JobRecord, responses=problems(404))
def cancel_job(job_id: str, caller: Submitter, here: Here) -> JSONResponse:
    """Cancel a job, also one that runs: its render stops at the next chunk.  A finished job stays as it is."""
    return _steer(here, caller, job_id, lambda job: control.cancel(here.ledger, job.id))


@router.patch("/v1/jobs/{job_id}", response_model=JobRecord, responses=problems(400, 404, 422))
def change_job(job_id: str, change: Change, caller: Submitter, here: Here) -> JSONResponse:
    """Change a job's priority or deadline."""

    due = read_deadline(change.deadline) if isinstance(change.deadline, str) else change.deadline

    def story(job: Job) -> None:
        if change.priority is not None:
            control.set_priority(here.ledger, job.id, change.priority)
        if "deadline" in change.model_fields_set:
            control.set_deadline(here.ledger, job.id, due)

    return _steer(here, caller, job_id, story)


@router.post("/v1/jobs/{job_id}/pause", response_model=JobRecord, responses=problems(404))
def pause_job(job_id: str, caller: Submitter, here: Here) -> JSONResponse:
    """Take a job out of the queue; a segment that is being rendered goes back to it at its next chunk."""
    return _steer(here, caller, job_id, lambda job: control.pause(here.ledger, job.id))


@router.post("/v1/jobs/{job_id}/resume", response_model=JobRecord, responses=problems(404))
def resume_job(job_id: str, caller: Submitter, here: Here) -> JSONResponse:
    return _steer(here, caller, job_id, lambda job: control.resume(here.ledger, job.id))


@router.post("/v1/jobs/{job_id}/retry", response_model=JobRecord, responses=problems(404))
def retry_job(job_id: str, caller: Submitter, here: Here) -> JSONResponse:
    """Put what failed or was cancelled back into the queue; what was rendered is kept."""
    return _steer(here, caller, job_id, lambda job: control.retry(here.ledger, job.id))


def _steer(here: Context, caller: Caller, job_id: str, story: Callable[[Job], object]) -> JSONResponse:
    job = here.job(caller, job_id)
    story(job)
    here.ring()
    records.forget(job.id)
    return JSONResponse(record(here, job.id))


@router.get("/v1/jobs/{job_id}/segments", response_model=list[SegmentView], responses=problems(404))
def list_segments(job_id: str, caller: Reader, here: Here) -> JSONResponse:
    """The job's segments, each with its attempts."""
    job = here.job(caller, job_id)
    attempts: dict[int, list[dict[str, Any]]] = {}
    for a in read.attempts(here.ledger, job.id):
        attempts.setdefault(a.segment_id, []).append(
            {
                "number": a.number,
                "worker": a.worker,
                "device": a.device,
                "started_at": a.started_at,
                "ended_at": a.ended_at,
                "outcome": a.outcome,
                "failure": a.failure,
                "reason": a.reason,
                "frames": a.frames,
                "device_seconds": a.device_seconds,
            }
        )
    return JSONResponse(
        [
            {
                "number": s.number,
                "kind": s.kind.value,
                "state": s.state.value,
                "first_frame": s.first_frame,
                "frames": s.frames,
                "frames_now": s.frames_now,
                "attempt": s.attempt,
                "leased_by": s.leased_by,
                "reason": s.reason,
                "attempts": attempts.get(s.id, []),
            }
            for s in read.segments(here.ledger, job.id)
        ]
    )


@router.get("/v1/jobs/{job_id}/trace", response_model=Trace, responses=problems(404))
def show_trace(job_id: str, caller: Reader, here: Here) -> JSONResponse:
    """OmniRT's trace: one span for each attempt."""
    job = here.job(caller, job_id)
    whole = record(here, job.id)
    spans = [
        {
            "span_id": f"{job.id:08x}{index:08x}",
            "name": f"{span.kind} {span.number}",
            "stage": span.kind.value,
            "started_at_ms": round(span.started_at * 1000),
            "ended_at_ms": None if span.ended_at is None else round(span.ended_at * 1000),
            "status": {"succeed": "ok", None: "running"}.get(span.outcome, "error"),
            "attributes": {"worker": span.worker, "device": span.device, "attempt": span.attempt},
        }
        for index, span in enumerate(
            overview.timeline(here.ledger, since=0.0, until=here.ledger.now(), job_ids=[job.id])
        )
    ]
    return JSONResponse(
        {
            "trace_id": whole["trace_id"],
            "job_id": whole["id"],
            "task": omnirt_records.TASK,
            "model": job.model,
            "created_at_ms": whole["enqueued_at_ms"],
            "worker_id": whole["worker_id"],
            "state": whole["state"],
            "error": whole["error"],
            "events": whole["events"],
            "spans": spans,
        }
    )


_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "Events as they happen"}
}


@router.get("/v1/jobs/{job_id}/events", response_class=StreamingResponse, responses=problems(404) | _STREAM)
async def watch_job(job_id: str, caller: Reader, here: Here, request: Request) -> EventStream:
    """Server-sent events: the history, then what happens, with progress, until the job has ended.

    Last-Event-ID goes on where a broken stream stopped.
    """
    job = await here.job_with_others(caller, job_id)
    given = request.headers.get("last-event-id", "")
    after = int(given) if given.isascii() and given.isdigit() and len(given) < 19 else 0
    told = 0

    async def begin() -> tuple[bytes, bool]:
        nonlocal told
        so_far = await here.feed.history(job.id)
        told = so_far.last_event
        return b"".join(text for number, text in so_far.events if number > after) + so_far.progress, so_far.ended

    def tell(tick: Tick) -> tuple[bytes, bool]:
        return tick.keep_alive + tick.of_job(job.id, told), job.id in tick.ended

    return EventStream(here.feed, job.owner, begin, tell, job_id=job.id)


# Files

_FILM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"video/mp4": {}}, "description": "The film"},
    206: {"content": {"video/mp4": {}}, "description": "A part of it"},
    416: {"description": "There is no such part"},
}
_JPEG: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/jpeg": {}, "image/png": {}, "image/webp": {}}, "description": "The picture"},
    206: {"description": "A part of it"},
    416: {"description": "There is no such part"},
}


@router.get("/v1/jobs/{job_id}/film", response_class=FileResponse, responses=problems(400, 404) | _FILM)
@router.head("/v1/jobs/{job_id}/film", response_class=FileResponse, include_in_schema=False)
def film(
    job_id: str,
    caller: Reader,
    here: Here,
    download: Annotated[bool, Query(description="Ask the browser to save it")] = False,
) -> Response:
    """The film, whole or by Range."""
    job = here.job(caller, job_id)
    found = read.artifacts(here.ledger, job.id, ArtifactKind.FILM)
    if not found:
        raise no_such(f"job {job.id} has no film; it is {job.shown_state}")
    return _file(
        _fetched(here, found[-1]),
        "video/mp4",
        filename=f"{job.name}.mp4",
        disposition="attachment" if download else "inline",
    )


@router.get("/v1/jobs/{job_id}/poster", response_class=FileResponse, responses=problems(400, 404) | _JPEG)
def poster(job_id: str, caller: Reader, here: Here) -> Response:
    """A full-size frame of the film."""
    return _picture(here.job(caller, job_id), here, ArtifactKind.POSTER)


@router.get("/v1/jobs/{job_id}/sheet", response_class=FileResponse, responses=problems(400, 404) | _JPEG)
def sheet(job_id: str, caller: Reader, here: Here) -> Response:
    """The film's contact sheet."""
    return _picture(here.job(caller, job_id), here, ArtifactKind.SHEET)


@router.get("/v1/jobs/{job_id}/last-frame", response_class=FileResponse, responses=problems(400, 404) | _JPEG)
def last_frame(job_id: str, caller: Reader, here: Here) -> Response:
    """A frame of the newest segment that is ready."""
    return _picture(here.job(caller, job_id), here, ArtifactKind.THUMBNAIL)


@router.get("/v1/jobs/{job_id}/portrait", response_class=FileResponse, responses=problems(400, 404) | _JPEG)
def portrait(job_id: str, caller: Reader, here: Here) -> Response:
    """The portrait as the engine gets it; as it was given until it was prepared."""
    job = here.job(caller, job_id)
    given = views.portrait_type(job.portrait)
    if given is not None and not read.artifacts(here.ledger, job.id, ArtifactKind.PORTRAIT):
        return _file(here.store.input(job.portrait, job.portrait_sha256, "portrait"), given)
    return _picture(job, here, ArtifactKind.PORTRAIT)


def _picture(job: Job, here: Context, kind: ArtifactKind) -> Response:
    found = read.artifacts(here.ledger, job.id, kind)
    if not found:
        raise no_such(f"job {job.id} has no {kind} yet")
    path = _fetched(here, found[-1])
    return _file(path, "image/png" if path.suffix == ".png" else "image/jpeg")


def _fetched(here: Context, file: Artifact) -> Path:
    """The file on this machine; a large film from an object store arrives whole before its first byte is sent."""
    try:
        return here.store.fetch(file)
    except FileLost:
        raise no_such(f"{PurePosixPath(file.path).name} was removed from this farm's disk, or replaced") from None


def _file(path: Path, media_type: str, *, filename: str | None = None, disposition: str = "inline") -> Response:
    return FileResponse(
        path,
        media_type=media_type,
        filename=filename,
        content_disposition_type=disposition,
        headers={"Cache-Control": "private, max-age=60"},
    )


@router.get("/v1/jobs/{job_id}/waveform", response_model=Waveform, responses=problems(404))
def waveform(job_id: str, caller: Reader, here: Here) -> JSONResponse:
    """The sound's shape, for drawing."""
    job = here.job(caller, job_id)
    found = read.artifacts(here.ledger, job.id, ArtifactKind.DRIVING)
    if not found:
        raise no_such(f"job {job.id} has no decoded sound")
    peaks = _peaks(str(_fetched(here, found[-1])), found[-1].sha256)
    return JSONResponse({"seconds": views.film_seconds(job), "peaks": peaks})


@lru_cache(maxsize=256)
def _peaks(path: str, sha256: str) -> list[float]:
    samples = Path(path).stat().st_size // 4
    edges = np.linspace(0, samples, min(_PEAKS, samples) + 1).astype(int)
    pieces = (np.fromfile(path, "<f4", b - a, offset=4 * a) for a, b in pairwise(edges.tolist()))
    return [round(min(float(np.abs(piece).max()), 1.0), 3) for piece in pieces]
