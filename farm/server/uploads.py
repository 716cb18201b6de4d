"""Portraits and sounds that come over the wire: bounded, looked at by content, kept once for each owner."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Query, Request
from pydantic import BaseModel

from farm import uploads
from farm.errors import InputError, NotEnoughRoom
from farm.server.access import Caller, Reader, Submitter
from farm.server.context import Context, Here, no_such, problems
from farm.uploads import Upload

router = APIRouter(tags=["uploads"])


class UploadView(BaseModel):
    id: str
    name: str
    kind: Literal["portrait", "audio"]
    size_bytes: int
    seconds: float | None = None
    width: int | None = None
    height: int | None = None


@router.post(
    "/v1/uploads",
    status_code=201,
    response_model=UploadView,
    responses=problems(400, 413, 415, 507),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def upload(
    request: Request,
    caller: Submitter,
    here: Here,
    name: Annotated[str, Query(min_length=1, max_length=200, description="The file's name, as rows call it")],
) -> dict[str, Any]:
    """Take one picture or sound as the request's body.  The same content again is the same upload."""
    if request.headers.get("content-type", "").startswith("multipart/"):
        raise HTTPException(415, "Send the file itself as the request's body, not a form (curl: --data-binary @FILE)")
    if not await asyncio.to_thread(has_room, here):
        raise NotEnoughRoom("this farm's disk is too full to take files")
    part = uploads.new_part(here.uploads_of(caller.owner))
    called = uploads.base_name(name)
    limit = int(here.settings.server.upload_gb * 1e9)
    digest, size = hashlib.sha256(), 0
    try:
        with part.open("wb") as file:
            async for block in request.stream():
                size += len(block)
                if size > limit:
                    raise HTTPException(413, f"The file is larger than {here.settings.server.upload_gb:g} GB")
                digest.update(block)
                await asyncio.to_thread(file.write, block)
        if not size:
            raise HTTPException(400, "The request's body is empty; send the file itself")
        seen = await here.probes.probe(part)
        taken = await asyncio.to_thread(uploads.keep, part, digest.hexdigest(), name, size, seen)
    except InputError as error:
        raise HTTPException(415, str(error).replace(str(part), called)) from None
    finally:
        part.unlink(missing_ok=True)
    return _view(taken)


@router.get("/v1/uploads/{upload_id}", response_model=UploadView, responses=problems(404))
def show_upload(upload_id: str, caller: Reader, here: Here) -> dict[str, Any]:
    """What was uploaded; 404 says that this content must still be sent."""
    found = uploads.by_id(here.uploads_of(caller.owner), upload_id)
    if found is None:
        raise no_such("Upload not found")
    return _view(found)


def has_room(here: Context) -> bool:
    free = shutil.disk_usage(here.settings.home if here.settings.home.exists() else Path.cwd()).free
    return free > here.settings.room.min_free_disk_gb * 1e9


def find(context: Context, caller: Caller, kind: str, word: str) -> tuple[Path, str] | None:
    """The file that `upload:<id>`, an id or an uploaded file's name stands for, and its name; None if there is none."""
    folder = context.uploads_of(caller.owner)
    upload_id = word.removeprefix("upload:")
    is_id = uploads.UPLOAD_ID.fullmatch(upload_id) is not None
    found = uploads.by_id(folder, upload_id) if is_id else uploads.by_name(folder, word)
    return (folder / found.file, found.name) if found is not None and found.kind == kind else None


def _view(taken: Upload) -> dict[str, Any]:
    return {key: value for key, value in asdict(taken).items() if key != "file"}
