"""Portraits and sounds that come over the wire: bounded, looked at by content, kept once for each owner."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
import secrets
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Query, Request
from pydantic import BaseModel

from farm.errors import InputError, NotEnoughRoom
from farm.media.probe import probe_audio, probe_image
from farm.server.access import Caller, Reader, Submitter
from farm.server.context import Context, Here, no_such, problems

router = APIRouter(tags=["uploads"])
_ID = re.compile(r"[0-9a-f]{64}")
_ABANDONED_SECONDS = 86400.0


@dataclass(frozen=True, slots=True)
class Upload:
    id: str  # SHA-256 of the content
    name: str  # as the client called it
    kind: Literal["portrait", "audio"]
    size_bytes: int
    seconds: float | None
    width: int | None
    height: int | None
    file: str  # within the owner's folder


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
    if not await asyncio.to_thread(has_room, here):
        raise NotEnoughRoom("this farm's disk is too full to take files")
    folder = here.uploads_of(caller.owner)
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{secrets.token_hex(8)}.part"
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
        taken = await asyncio.to_thread(_keep, part, folder, digest.hexdigest(), base_name(name), size)
    except InputError as error:
        raise HTTPException(415, str(error)) from None
    finally:
        part.unlink(missing_ok=True)
    return _view(taken)


@router.get("/v1/uploads/{upload_id}", response_model=UploadView, responses=problems(404))
def show_upload(upload_id: str, caller: Reader, here: Here) -> dict[str, Any]:
    """What was uploaded; 404 says that this content must still be sent."""
    if not _ID.fullmatch(upload_id):
        raise no_such("Upload not found")
    found = _read(here.uploads_of(caller.owner) / f"{upload_id}.json")
    if found is None:
        raise no_such("Upload not found")
    return _view(found)


def has_room(here: Context) -> bool:
    free = shutil.disk_usage(here.settings.home if here.settings.home.exists() else Path.cwd()).free
    return free > here.settings.room.min_free_disk_gb * 1e9


def _keep(part: Path, folder: Path, digest: str, name: str, size: int) -> Upload:
    """Look at the content and give it its place.  Raises InputError for what is neither picture nor sound."""
    kind: Literal["portrait", "audio"]
    seconds: float | None = None
    width = height = None
    try:
        image = probe_image(part)
        kind, suffix, width, height = "portrait", f".{image.format}", image.width, image.height
    except InputError:
        try:
            audio = probe_audio(part)
        except InputError:
            raise InputError(f"{name} is neither a picture nor a sound that this farm can read") from None
        kind, seconds = "audio", audio.duration_seconds
        suffix = PurePosixPath(name).suffix.lower()
        suffix = suffix if re.fullmatch(r"\.[a-z0-9]{1,5}", suffix) else ".audio"
    taken = Upload(digest, name, kind, size, seconds, width, height, f"{digest}{suffix}")
    before = _read(folder / f"{digest}.json")
    if before is not None and (folder / before.file).exists():
        taken = Upload(digest, name, kind, size, seconds, width, height, before.file)
    else:
        part.replace(folder / taken.file)
    _write(folder / f"{digest}.json", taken)
    _write(folder / f"{_name_key(name)}.name", taken)
    _clear_abandoned(folder)
    return taken


def find(context: Context, caller: Caller, kind: str, word: str) -> tuple[Path, str] | None:
    """The file that `upload:<id>`, an id or an uploaded file's name stands for, and its name; None if there is none."""
    folder = context.uploads_of(caller.owner)
    upload_id = word.removeprefix("upload:")
    if _ID.fullmatch(upload_id):
        found = _read(folder / f"{upload_id}.json")
    else:
        found = _read(folder / f"{_name_key(base_name(word))}.name")
    return (folder / found.file, found.name) if found is not None and found.kind == kind else None


def base_name(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).name or "file"


def _name_key(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def _read(path: Path) -> Upload | None:
    try:
        return Upload(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _write(path: Path, taken: Upload) -> None:
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    part.write_text(json.dumps(asdict(taken)), encoding="utf-8")
    part.replace(path)


def _clear_abandoned(folder: Path) -> None:
    """Parts whose upload was cut off with the server."""
    newest = max((path.stat().st_mtime for path in folder.iterdir()), default=0.0)
    for path in folder.glob(".*.part"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < newest - _ABANDONED_SECONDS:
                path.unlink()


def _view(taken: Upload) -> dict[str, Any]:
    return {key: value for key, value in asdict(taken).items() if key != "file"}
