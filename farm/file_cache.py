"""Files that a machine fetched once, known by the hash of their content, within a limit of size."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from farm.artifacts import sha256_of

SPARED_SECONDS = 3600.0  # what was used this lately may be read still, by a host or by ffmpeg
_KEPT_SHARE = 0.9  # of the limit after clearing, so that it is not done for every file


class FileCache:
    """`<folder>/<two digits>/<sha256><suffix>`.  Several processes and threads may share one folder."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder
        self._limit = limit_bytes
        self._room = 0  # bytes that may come before somebody looks again
        self._lock = threading.Lock()

    def find(self, sha256: str, suffix: str, size: int | None, *, verify: bool) -> Path | None:
        """The file, marked as just used; None if it is not here or, as far as was asked, not what it was."""
        path = self._path(sha256, suffix)
        try:
            if size not in (None, path.stat().st_size) or (verify and sha256_of(path) != sha256):
                path.unlink(missing_ok=True)
                return None
            os.utime(path)
        except FileNotFoundError:
            return None
        return path

    @contextlib.contextmanager
    def arriving(self) -> Iterator[Path]:
        """A name for what is being fetched; gone afterwards unless it was taken."""
        self._folder.mkdir(parents=True, exist_ok=True)
        part = self._folder / f".{secrets.token_hex(8)}.part"
        try:
            yield part
        finally:
            part.unlink(missing_ok=True)

    def take(self, path: Path, sha256: str, suffix: str) -> Path:
        """Give a file with this content its name here.  The file is moved."""
        kept = self._path(sha256, suffix)
        kept.parent.mkdir(parents=True, exist_ok=True)
        size = path.stat().st_size
        try:
            path.replace(kept)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            with self.arriving() as part:  # the cache has a disk of its own
                shutil.copyfile(path, part)
                part.replace(kept)
            path.unlink()
        with self._lock:
            self._room -= size
            if self._room < 0:
                self._clear()
        return kept

    def _path(self, sha256: str, suffix: str) -> Path:
        return self._folder / sha256[:2] / f"{sha256}{suffix}"

    def _clear(self) -> None:
        """Delete what was used least lately, and what never arrived."""
        found: list[tuple[float, int, Path]] = []
        for path in (*self._folder.glob("??/*"), *self._folder.glob(".*.part")):
            with contextlib.suppress(FileNotFoundError):
                stat = path.stat()
                found.append((stat.st_mtime, stat.st_size, path))
        total = sum(size for _, size, _ in found)
        oldest = time.time() - SPARED_SECONDS
        if total > self._limit:
            for used_at, size, path in sorted(found):
                if used_at > oldest or total <= self._limit * _KEPT_SHARE:
                    break
                path.unlink(missing_ok=True)
                total -= size
        self._room = max(self._limit - total, self._limit // 20)
