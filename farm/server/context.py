"""What every route is handed: the settings, the ledger, the feed; and how an error of the farm is answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from farm.batch import BadRows
from farm.config import Settings
from farm.doorbell import Doorbell, ring_owed
from farm.errors import FarmError, InputError, LedgerError, NotEnoughRoom, NotFound, StoreError
from farm.ledger import Ledger, read
from farm.ledger.values import Job
from farm.server.access import Caller
from farm.server.crowd import Crowd
from farm.server.feed import Feed
from farm.server.probes import Probes
from farm.store import Store, open_store
from farm.uploads import folder_of, owner_folder

if TYPE_CHECKING:
    from farm.server.metrics import Scrapes


@dataclass(frozen=True)
class Context:
    settings: Settings
    ledger: Ledger
    feed: Feed
    doorbell: Doorbell
    scrapes: Scrapes
    probes: Probes
    jobs: Crowd[Job] = field(default_factory=Crowd)

    @property
    def store(self) -> Store:
        return open_store(self.settings)

    def ring(self) -> None:
        ring_owed(self.ledger, self.settings, self.doorbell)

    def uploads_of(self, owner: str) -> Path:
        return folder_of(self.settings, owner)

    def films_of(self, owner: str, what: str) -> Path:
        return self.settings.home / "films" / owner_folder(owner) / what

    def job(self, caller: Caller, job_id: str) -> Job:
        """A job that the caller may see.  Raises NotFound, for somebody else's too."""
        return _shown_to(caller, _read_job(self.ledger, _number_of(job_id)))

    async def job_with_others(self, caller: Caller, job_id: str) -> Job:
        """As `job`, on the event loop; hundreds who ask at once share a few readings."""
        number = _number_of(job_id)
        recent = self.feed.recent_history(number)
        if recent is not None:
            return _shown_to(caller, recent.job)
        return _shown_to(caller, await self.jobs.ask(number, partial(_read_job, self.ledger, number)))


def _number_of(job_id: str) -> int:
    if not job_id.isascii() or not job_id.isdigit() or len(job_id) > 18:
        raise NotFound("Job not found")
    return int(job_id)


def _read_job(ledger: Ledger, number: int) -> Job:
    try:
        return read.job(ledger, number)
    except NotFound:
        raise NotFound("Job not found") from None


def _shown_to(caller: Caller, job: Job) -> Job:
    if caller.sees is not None and job.owner != caller.sees:
        raise NotFound("Job not found")
    return job


async def _context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


Here = Annotated[Context, Depends(_context)]


TOLD_AT_ONCE = 5  # of what is wrong with one request
AS_JSON = "send one JSON object as the request's body, with the header content-type: application/json"


class Problem(BaseModel):
    """Why a request was refused, in words."""

    detail: str


class RowProblemView(BaseModel):
    row: int
    sentence: str


class BadRowsProblem(Problem):
    problems: list[RowProblemView] = []


def problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    """The refusals of a route, for the OpenAPI document; every route can answer those that stand here."""
    return {code: {"model": Problem} for code in sorted({400, 401, 403, 413, 422, 429, *codes})}


def answer_errors(app: FastAPI) -> None:
    """Translate the farm's errors once, here."""

    @app.exception_handler(FarmError)
    def of_the_farm(request: Request, error: FarmError) -> JSONResponse:
        body: dict[str, Any] = {"detail": str(error)}
        if isinstance(error, BadRows):
            body["problems"] = [{"row": p.row, "sentence": p.sentence} for p in error.problems]
        return JSONResponse(body, status_of(error))

    @app.exception_handler(RequestValidationError)
    def of_the_request(request: Request, error: RequestValidationError) -> JSONResponse:
        """One sentence, as for every other refusal; the framework's own answer is a list."""
        kinds = {each["type"] for each in error.errors()}
        if "json_invalid" in kinds:
            return JSONResponse({"detail": _of_no_json(error)}, 422)
        if "model_attributes_type" in kinds:
            return JSONResponse({"detail": AS_JSON}, 422)
        wrong = [f"{_where(each['loc'])}: {each['msg'][:1].lower()}{each['msg'][1:]}" for each in error.errors()]
        more = f"; and {len(wrong) - TOLD_AT_ONCE} more" if len(wrong) > TOLD_AT_ONCE else ""
        return JSONResponse({"detail": "; ".join(wrong[:TOLD_AT_ONCE]) + more}, 422)


def _of_no_json(error: RequestValidationError) -> str:
    (first, *_) = (each for each in error.errors() if each["type"] == "json_invalid")
    said = first.get("ctx", {}).get("error", "it cannot be read")
    return f"the request's body is no JSON: {said}, at character {first['loc'][-1]}"


def _where(place: Sequence[int | str]) -> str:
    """`query.limit` is `limit` for people."""
    parts = [str(part) for part in place]
    return ".".join(parts[1:] or parts)


def status_of(error: FarmError) -> int:
    if isinstance(error, NotFound):
        return 404
    if isinstance(error, InputError):
        return 400
    if isinstance(error, NotEnoughRoom):
        return 507
    return 503 if isinstance(error, LedgerError | StoreError) else 500


def no_such(what: str) -> HTTPException:
    return HTTPException(404, what)
