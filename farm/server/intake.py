"""Work that comes in: OmniRT's `generate`, and batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, HTTPException, Query, Request
from fastapi import Path as PathParameter
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from farm import omnirt, omnirt_records
from farm.accounts import accounts
from farm.batch import BadRows, Row, RowProblem, read_batch, rows_from
from farm.errors import InputError, NotEnoughRoom, NotFound
from farm.ledger import read
from farm.ledger.keys import Conflict, Remembered, Scope, begin_request, end_request
from farm.logs import add_log_ids
from farm.server import views
from farm.server.access import Caller, Reader, Submitter
from farm.server.context import BadRowsProblem, Context, Here, no_such, problems
from farm.server.uploads import find, has_room
from farm.states import JobState
from farm.submission import Submission, submit

router = APIRouter(tags=["submitting"])

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        description="The client's own word: the same request under it is answered again, not done again",
    ),
]


class GenerateBody(BaseModel):
    """OmniRT's envelope.  `inputs` are `image` and `audio`, each an upload's id or name, and `prompt`."""

    task: str
    model: str
    backend: Literal["auto", "cuda", "ascend", "cpu-stub"] = "auto"
    inputs: dict[str, Any] = Field(default_factory=dict)
    config: dict[str, Any] = Field(default_factory=dict)
    adapters: list[Any] | None = None
    async_run: bool = False


class JobRecord(BaseModel):
    """OmniRT's record of a job; `farm` holds what only this farm knows."""

    id: str
    state: Literal["queued", "running", "succeeded", "failed", "cancelled"]
    backend: str
    request: dict[str, Any]
    error: str | None
    trace_id: str
    worker_id: str | None
    enqueued_at_ms: int
    started_at_ms: int | None
    finished_at_ms: int | None
    execution_mode: str
    events: list[dict[str, Any]]
    result: dict[str, Any] | None = None
    farm: dict[str, Any] = Field(default_factory=dict)


class GenerateAnswer(BaseModel):
    """The film's artifact and the run's report."""

    outputs: list[dict[str, Any]]
    metadata: dict[str, Any]


class BatchBody(BaseModel):
    """Rows with the columns of a batch file."""

    rows: list[dict[str, Any]] = Field(min_length=1, max_length=10_000)
    name: str | None = Field(default=None, max_length=200)
    skip_bad: bool = False


class BatchAnswer(BaseModel):
    batch_id: int | None
    job_ids: list[str]
    new: int
    known: int
    problems: list[dict[str, Any]]


class BatchView(BaseModel):
    id: int
    name: str
    source: str
    owner: str
    created_at: float
    jobs: dict[str, int]
    device_seconds: float = Field(description="Rendering so far, failed and running attempts included")
    cost: float = Field(description="What that is by the configured rates")
    currency: str
    budget: float | None = Field(description="When the cost reaches it, the batch is paused")
    budget_spent: bool
    seconds_left: float | None = Field(description="Until its last film, estimated from the ledger's history")
    estimate_error: float | None = Field(description="Median error of the last estimates, as a part of the time needed")
    estimate_films: int = Field(description="How many films that error is taken from")


class BatchList(BaseModel):
    object: Literal["list"] = "list"
    data: list[BatchView]


@router.post(
    "/v1/generate",
    response_model=GenerateAnswer | JobRecord,
    responses=problems(400, 409, 413, 422, 500, 507),
)
async def generate(
    body: GenerateBody, caller: Submitter, here: Here, request: Request, key: IdempotencyKey = None
) -> JSONResponse:
    """Render one film.  Without `async_run` the answer comes when the film is there; nothing else waits for it."""
    raw = await request.body()
    job_id = await run_in_threadpool(_begin_generate, here, caller, body, key, raw)
    add_log_ids(job=job_id)
    if body.async_run:
        return JSONResponse(await run_in_threadpool(record, here, job_id))
    await here.feed.wait_ended(job_id)
    return await run_in_threadpool(_sync_answer, here, job_id)


def _begin_generate(here: Context, caller: Caller, body: GenerateBody, key: str | None, raw: bytes) -> int:
    if key is not None:
        remembered = _begin(here, caller, key, b"generate" + raw)
        if remembered is not None and remembered.job_id is not None:
            return remembered.job_id
    job_id: int | None = None
    try:
        job_id = _submit_generate(here, caller, body, key)
    finally:
        if key is not None:
            end_request(here.ledger, caller.owner, key, job_id=job_id)
    return job_id


def _submit_generate(here: Context, caller: Caller, body: GenerateBody, key: str | None) -> int:
    inputs = dict(body.inputs)
    for name, kind in (("image", "portrait"), ("audio", "audio")):
        if isinstance(inputs.get(name), str) and inputs[name]:
            inputs[name] = str(_file_of(here, caller, kind, inputs[name], f"Input {name}")[0])
    asked = omnirt.GenerateRequest(body.task, body.model, body.backend, inputs, body.config, body.adapters)
    checked = omnirt.validate(asked)
    if not checked.ok:
        raise InputError("\n".join(f"- {message}" for message in checked.errors))
    name = omnirt.output_name(asked, checked)
    if key is not None:  # a request that is taken up again after a crash makes the same job
        name = f"{body.model}-{hashlib.sha256(f'{caller.owner} {key}'.encode()).hexdigest()[:16]}.mp4"
    folder = here.films_of(caller.owner, "generate")
    wanted = checked.resolved_config.get("output_dir")
    if wanted is not None and _may_use_paths(here, caller):
        folder = Path(str(wanted)).expanduser().absolute()
    cells = omnirt.to_cells(asked, checked, folder / name)
    try:
        done = _submit(here, caller, rows_from([cells]), folder=folder, name=Path(name).stem, source="http")
    except BadRows as error:
        raise InputError("- " + error.problems[0].sentence) from None
    return done.intake.job_ids[0]


def _sync_answer(here: Context, job_id: int) -> JSONResponse:
    job = read.job(here.ledger, job_id)
    if job.state is JobState.SUCCEEDED:
        answer = omnirt_records.result_of(here.ledger, job).to_dict()
        for output in answer["outputs"]:
            output["url"] = f"/v1/jobs/{job.id}/film"
        return JSONResponse(answer)
    status = 409 if job.state is JobState.CANCELLED else 400 if job.failure == "input" else 500
    return JSONResponse({"detail": views.told(job, job.reason) or f"job {job.id} {job.state}"}, status)


def record(here: Context, job_id: int, summaries: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """The job's record; its summary is read unless it was already."""
    job = read.job(here.ledger, job_id)
    answer = omnirt_records.job_record(here.ledger, job)
    answer["error"] = views.told(job, answer["error"])
    inputs = answer["request"]["inputs"]
    inputs |= {name: views.input_name(inputs[name]) for name in ("image", "audio")}
    answer["farm"] = (summaries or views.summaries(here.ledger, [job_id]))[0]
    if job.state is JobState.SUCCEEDED:
        for output in answer["result"]["outputs"]:
            output["url"] = f"/v1/jobs/{job.id}/film"
    return answer


@router.post(
    "/v1/batches",
    response_model=BatchAnswer,
    status_code=201,
    responses=problems(409, 413, 415, 422, 507) | {400: {"model": BadRowsProblem}},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": BatchBody.model_json_schema()},
                "text/csv": {"schema": {"type": "string"}},
            },
        }
    },
)
async def submit_batch(
    request: Request,
    caller: Submitter,
    here: Here,
    name: Annotated[str | None, Query(max_length=200, description="What the batch is called")] = None,
    skip_bad: Annotated[bool, Query(description="Leave out rows that cannot be rendered")] = False,
    key: IdempotencyKey = None,
) -> JSONResponse:
    """Submit a CSV file as the body (text/csv), or rows as JSON.

    `portrait` and `audio` name uploads: by the name that they were uploaded under, or as `upload:<id>`.  The same rows
    again are the same jobs.
    """
    raw = await request.body()
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    answer = await run_in_threadpool(_begin_batch, here, caller, raw, kind, name, skip_bad, key)
    return JSONResponse(answer, 201)


def _begin_batch(
    here: Context, caller: Caller, raw: bytes, kind: str, name: str | None, skip_bad: bool, key: str | None
) -> dict[str, Any]:
    if key is not None:
        remembered = _begin(here, caller, key, f"batch {kind} {name} {skip_bad} ".encode() + raw)
        if remembered is not None and remembered.batch is not None:
            return remembered.batch
    answer: dict[str, Any] | None = None
    try:
        rows, name, skip_bad = _rows_of(here, raw, kind, name, skip_bad)
        answer = _submit_batch(here, caller, rows, name, skip_bad)
    finally:
        if key is not None:
            end_request(here.ledger, caller.owner, key, batch=answer)
    return answer


def _rows_of(
    here: Context, raw: bytes, kind: str, name: str | None, skip_bad: bool
) -> tuple[list[Row], str | None, bool]:
    if kind == "application/json":
        try:
            body = BatchBody.model_validate_json(raw)
        except ValueError as error:
            raise InputError(f"the request's JSON is no batch: {_first_fault(error)}") from None
        return rows_from(body.rows), body.name or name, body.skip_bad or skip_bad
    if kind not in ("text/csv", "application/csv", "application/x-ndjson", "text/plain"):
        raise HTTPException(
            415, "A batch is text/csv, application/x-ndjson or application/json: say which in the header content-type"
        )
    suffix = ".jsonl" if kind == "application/x-ndjson" else ".csv"
    folder = here.settings.home / "uploads"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".batch-{hashlib.sha256(raw).hexdigest()}{suffix}"
    path.write_bytes(raw)
    try:
        return read_batch(path), name, skip_bad
    except InputError as error:
        raise InputError(str(error).replace(str(path), "batch")) from None
    finally:
        path.unlink(missing_ok=True)


def _first_fault(error: ValueError) -> str:
    faults = getattr(error, "errors", None)
    if faults is None:
        return str(error)
    first = faults()[0]
    return f"{'.'.join(str(part) for part in first['loc']) or 'body'}: {first['msg']}"


def _submit_batch(
    here: Context, caller: Caller, rows: Sequence[Row], name: str | None, skip_bad: bool
) -> dict[str, Any]:
    placed: list[Row] = []
    faults: list[RowProblem] = []
    for row in rows:
        try:
            placed.append(Row(row.number, _place(here, caller, row.cells)))
        except InputError as error:
            faults.append(RowProblem(row.number, str(error)))
    if not placed:
        raise BadRows(faults, "batch")
    # The same rows go to the same folder, so that they are the same jobs.
    shape = json.dumps([dict(row.cells) for row in placed], sort_keys=True, default=str)
    folder = here.films_of(caller.owner, hashlib.sha256(shape.encode()).hexdigest()[:16])
    is_refused = bool(faults) and not skip_bad  # the other rows are looked at all the same, so that all faults are told
    try:
        done = _submit(
            here,
            caller,
            placed,
            folder=folder,
            name=name or "batch",
            source="http",
            skip_bad=skip_bad,
            dry_run=is_refused,
        )
    except BadRows as error:
        raise BadRows(sorted([*faults, *error.problems], key=lambda p: p.row), "batch") from None
    if is_refused:
        raise BadRows(faults, "batch")
    return {
        "batch_id": done.intake.batch_id,
        "job_ids": [str(job_id) for job_id in done.intake.job_ids],
        "new": len(done.intake.new_job_ids),
        "known": len(done.intake.known_job_ids),
        "problems": [{"row": p.row, "sentence": p.sentence} for p in [*faults, *done.problems]],
    }


def _place(here: Context, caller: Caller, cells: Mapping[str, Any]) -> dict[str, Any]:
    """A row with its files found.  Raises InputError."""
    placed = dict(cells)
    for column in ("portrait", "audio"):
        if placed.get(column):
            path, given = _file_of(here, caller, column, str(placed[column]), column)
            placed[column] = str(path)
            if column == "audio":
                placed.setdefault("name", Path(given).stem)
    if placed.get("output") and not _may_use_paths(here, caller):
        raise InputError("a film is fetched from /v1/jobs/{id}/film; leave out the column output")
    if caller.scope is not Scope.ADMIN:
        placed["owner"] = caller.owner
    return placed


def _file_of(here: Context, caller: Caller, kind: str, word: str, what: str) -> tuple[Path, str]:
    """An upload, or a path of this machine where the caller may name those; and its name.  Raises InputError."""
    if len(word) > 4096 or "\0" in word:
        raise InputError(f"{what} is no file name")
    found = find(here, caller, kind, word)
    if found is not None:
        return found
    path = Path(word)
    if path.is_absolute() and _may_use_paths(here, caller):
        return path, path.name
    raise InputError(f"{what} {word} was not uploaded as {'a picture' if kind == 'portrait' else 'a sound'}")


def _may_use_paths(here: Context, caller: Caller) -> bool:
    """Whether a request may name files of this machine: an operator may, others where input_roots bounds them."""
    return caller.scope is Scope.ADMIN or bool(here.settings.input_roots and here.settings.output_roots)


def _submit(
    here: Context,
    caller: Caller,
    rows: Sequence[Row],
    *,
    folder: Path,
    name: str,
    source: str,
    skip_bad: bool = False,
    dry_run: bool = False,
) -> Submission:
    if not has_room(here):
        raise NotEnoughRoom("this farm's disk is too full to take work")
    settings = here.settings
    if settings.input_roots:  # uploads are the farm's own files
        roots = [*settings.input_roots, here.uploads_of(caller.owner)]
        settings = settings.model_copy(update={"input_roots": roots})
    if settings.output_roots:
        roots = [*settings.output_roots, settings.home / "films"]
        settings = settings.model_copy(update={"output_roots": roots})
    return submit(
        here.ledger,
        settings,
        rows,
        base=here.uploads_of(caller.owner),
        source=source,
        name=name,
        owner=caller.owner,
        output_dir=folder,
        skip_bad=skip_bad,
        dry_run=dry_run,
        doorbell=here.doorbell,
    )


def _begin(here: Context, caller: Caller, key: str, raw: bytes) -> Remembered | None:
    try:
        return begin_request(here.ledger, caller.owner, key, raw)
    except Conflict as error:
        raise HTTPException(409, str(error)) from None


@router.get("/v1/batches", response_model=BatchList, responses=problems(422))
def list_batches(caller: Reader, here: Here, limit: Annotated[int, Query(ge=1, le=500)] = 50) -> dict[str, Any]:
    """Batches, newest first."""
    found = read.batches(here.ledger, owner=caller.sees, limit=limit)
    told = accounts(here.ledger, found, here.settings.rates)
    return {"object": "list", "data": [views.batch_view(b, told[b.id]) for b in found]}


@router.get("/v1/batches/{batch_id}", response_model=BatchView, responses=problems(404, 422))
def show_batch(batch_id: Annotated[int, PathParameter(ge=1, lt=2**53)], caller: Reader, here: Here) -> dict[str, Any]:
    try:
        found = read.batch(here.ledger, batch_id)
    except NotFound:
        raise no_such("Batch not found") from None
    if caller.sees is not None and found.owner != caller.sees:
        raise no_such("Batch not found")
    return views.batch_view(found, accounts(here.ledger, [found], here.settings.rates)[found.id])
