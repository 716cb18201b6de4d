"""How a file becomes an artifact: written under a staging name, synced, hashed, renamed.

A staging name holds the lease's token, so two workers that render the same segment never write to the same file, and
the loser's file is garbage that nobody reads.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from farm.ledger.values import NewArtifact
from farm.states import ArtifactKind

_STAGED = re.compile(r"\..+\.t\d+\.part(\..*)?", re.DOTALL)
_NAME_LIMIT = 255  # bytes, on every file system in use
_BLOCK = 1 << 20


def staging_name(final: Path, token: int) -> Path:
    """Where a file that will be `final` is written first: in the same directory, hidden, with its suffix kept."""
    tail = f".t{token}.part{final.suffix}"
    stem, room = final.name, _NAME_LIMIT - 1 - len(tail.encode())
    if len(stem.encode()) > room:
        stem = hashlib.sha256(stem.encode()).hexdigest()[:32]  # cut names could be equal
    return final.with_name(f".{stem}{tail}")


def is_staging_name(path: Path) -> bool:
    return _STAGED.fullmatch(path.name) is not None


def sha256_of(path: Path) -> str:
    """Hash of a file's content, in constant memory."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Wait until a file's or directory's content is on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def seal(staged: Path, final: Path, kind: ArtifactKind, facts: Mapping[str, Any] | None = None) -> NewArtifact:
    """Turn a finished staging file into the artifact `final`.  It is public once the ledger has it."""
    sync(staged)
    digest = sha256_of(staged)
    size = staged.stat().st_size
    staged.replace(final)
    sync(final.parent)
    return NewArtifact(kind, str(final), size, digest, dict(facts or {}))


def discard_staged(final: Path, token: int) -> None:
    """Delete what attempts up to and with `token` left of `final` under their staging names."""
    for each in range(1, token + 1):
        staging_name(final, each).unlink(missing_ok=True)


class JobFolder:
    """Where a job's artifacts are: <artifacts>/<thousands>/<id>/…"""

    def __init__(self, root: Path, job_id: int) -> None:
        self.path = root / f"{job_id // 1000:04d}" / f"{job_id:07d}"

    def make(self) -> JobFolder:
        (self.path / "segments").mkdir(parents=True, exist_ok=True)
        return self

    def segment(self, number: int, token: int, suffix: str) -> Path:
        return self.path / "segments" / f"{number:05d}.t{token}{suffix}"

    def discard(self, number: int | None, token: int) -> None:
        """Delete the staging files of one attempt: of render segment `number`, or of the job itself for None.

        Another segment of the job may be leased with an equal token at the same time, and its files must stay.
        """
        where, stem = (self.path, ".*") if number is None else (self.path / "segments", f".{number:05d}")
        for path in where.glob(f"{stem}.t{token}.*part*"):
            path.unlink(missing_ok=True)

    def file(self, name: str, token: int) -> Path:
        """`portrait.png` becomes `portrait.t3.png`."""
        stem, dot, suffix = name.rpartition(".")
        return self.path / f"{stem}.t{token}{dot}{suffix}"
