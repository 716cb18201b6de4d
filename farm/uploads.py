"""Where uploads lie: `uploads/<owner>/` in the farm's home, the content under its hash and notes beside it.

`<sha256>.<suffix>` is the content, `<sha256>.json` describes it, `<hash of a name>.name` is the same under the name
that the client gave it, and `.<random>.part` is what is still being sent.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import secrets
import time
import unicodedata
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from farm.config import Settings
from farm.media.probe import AudioInfo, ImageInfo

ABANDONED_SECONDS = 86400.0
UPLOAD_ID = re.compile(r"[0-9a-f]{64}")


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


@dataclass(frozen=True, slots=True)
class Kept:
    """Some content that lies in an owner's folder, and what speaks of it."""

    content: Path
    notes: tuple[Path, ...]
    size_bytes: int
    sent_at: float  # when it was sent last; seconds since 1970

    @property
    def name(self) -> str:
        """Owner's folder and file: what tells it from every other."""
        return f"{self.content.parent.name}/{self.content.name}"


def folder_of(settings: Settings, owner: str) -> Path:
    """Where an owner's files are; owners cannot name each other's."""
    return settings.home / "uploads" / owner_folder(owner)


def owner_folder(owner: str) -> str:
    return hashlib.sha256(owner.encode()).hexdigest()[:16]


def new_part(folder: Path) -> Path:
    """A file of its own for something that is being sent."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f".{secrets.token_hex(8)}.part"


def keep(part: Path, digest: str, sent_as: str, size: int, seen: ImageInfo | AudioInfo) -> Upload:
    """Give what was sent its place.  It is found by its name, and by the whole path that it was sent under."""
    folder, name = part.parent, base_name(sent_as)
    if isinstance(seen, ImageInfo):
        taken = Upload(digest, name, "portrait", size, None, seen.width, seen.height, f"{digest}.{seen.format}")
    else:
        suffix = PurePosixPath(name).suffix.lower()
        suffix = suffix if re.fullmatch(r"\.[a-z0-9]{1,5}", suffix) else ".audio"
        taken = Upload(digest, name, "audio", size, seen.duration_seconds, None, None, f"{digest}{suffix}")
    before = _read(folder / f"{digest}.json")
    if before is not None:
        taken = replace(taken, file=before.file)
    # Also where the same content lies already: it is young again then, and spared by `farm gc`.
    part.replace(folder / taken.file)
    _write(folder / f"{digest}.json", taken)
    for key in {_name_key(name), _name_key(_tidy(sent_as))}:
        _write(folder / f"{key}.name", taken)
    for abandoned in _abandoned_in(folder):
        abandoned.unlink(missing_ok=True)
    return taken


def by_id(folder: Path, upload_id: str) -> Upload | None:
    return _read(folder / f"{upload_id}.json") if UPLOAD_ID.fullmatch(upload_id) else None


def by_name(folder: Path, name: str) -> Upload | None:
    """What was sent under this path, else what was sent last under its last part."""
    whole = _read(folder / f"{_name_key(_tidy(name))}.name")
    return whole if whole is not None else _read(folder / f"{_name_key(base_name(name))}.name")


def base_name(name: str) -> str:
    """`intro.mp3` of `week1/intro.mp3`, also where backslashes part it."""
    return PurePosixPath(_tidy(name)).name or "file"


def _tidy(name: str) -> str:
    return str(PurePosixPath(name.replace("\\", "/")))


def all_kept(settings: Settings) -> Iterator[Kept]:
    """Every owner's uploads."""
    for folder in _folders(settings):
        notes: dict[str, list[Path]] = {}
        for note in (*folder.glob("*.json"), *folder.glob("*.name")):
            upload = _read(note)
            if upload is not None:
                notes.setdefault(upload.file, []).append(note)
        for content in folder.iterdir():
            if content.name.startswith(".") or content.suffix in (".json", ".name"):
                continue
            with contextlib.suppress(OSError):
                about = notes.get(content.name, [])
                sent_at = max(path.stat().st_mtime for path in (content, *about))
                yield Kept(content, tuple(about), content.stat().st_size, sent_at)


def abandoned_parts(settings: Settings) -> Iterator[Path]:
    """What was being sent when the connection or the server broke off, a day ago or longer."""
    for folder in _folders(settings):
        yield from _abandoned_in(folder)


def _abandoned_in(folder: Path) -> Iterator[Path]:
    oldest = time.time() - ABANDONED_SECONDS
    for path in folder.glob(".*.part"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < oldest:
                yield path


def _folders(settings: Settings) -> list[Path]:
    return sorted(path for path in (settings.home / "uploads").glob("*") if path.is_dir())


def _name_key(name: str) -> str:
    """The same for `ü` in one character or in two: a Mac sends the one, and a spreadsheet writes the other."""
    return hashlib.sha256(unicodedata.normalize("NFC", name).encode()).hexdigest()[:32]


def _read(path: Path) -> Upload | None:
    try:
        return Upload(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _write(path: Path, taken: Upload) -> None:
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    part.write_text(json.dumps(asdict(taken)), encoding="utf-8")
    part.replace(path)
