"""Where published files are kept: a folder that all workers see, or an object store that each fetches from.

Whoever makes a file writes it under a staging name in its job's folder on this machine and seals it.  What the ledger
then holds is the file's place: a path, or `s3://bucket/key`.  Nobody but a store reads places, so nothing else knows
which kind it is.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from farm.artifacts import JobFolder, is_staging_name, seal, sha256_of, staging_name
from farm.config import Settings, StoreSettings
from farm.errors import ConfigError, FileLost, InputError, StoreError
from farm.ledger.values import Artifact, Job, NewArtifact
from farm.states import ArtifactKind

LEND_TOKEN = 1  # of the attempt that a segment used again gets
PROBE = b"farm doctor wrote this and deletes it\n"


@dataclass(frozen=True, slots=True)
class Stray:
    """A file in the store that may be nobody's; the ledger tells."""

    place: str
    size_bytes: int
    written_at: float  # seconds since 1970
    job_id: int | None = None  # whose folder it lies in
    input_sha256: str | None = None  # of a portrait or sound that a submit put there
    unfinished: bool = False  # what a publisher left that died on the way


class Store(Protocol):
    """What both kinds do.  Instances are picklable and may be used by several threads.

    Every method may raise StoreError: the store does not answer or refuses, and the sentence says which.
    """

    @property
    def where(self) -> str:
        """For people: what a backup must hold beside the ledger."""

    def folder(self, job_id: int) -> JobFolder:
        """Where this machine writes a job's files before they are sealed."""

    def film_path(self, job: Job, token: int) -> Path:
        """Under which path a film is sealed."""

    def seal(
        self, staged: Path, final: Path, kind: ArtifactKind, facts: Mapping[str, Any] | None = None
    ) -> NewArtifact:
        """Turn a staging file into the artifact `final`, whole or not at all; it is public once the ledger has it."""

    def fetch(self, file: Artifact | NewArtifact, *, verify: bool = False) -> Path:
        """A file of this machine with the published content.

        What travelled was verified; with `verify` what lies here already is hashed too.  Raises FileLost when it is
        gone or no longer what was published.
        """

    def fault(self, file: Artifact) -> str | None:
        """What is wrong with a published file, read to its last byte, as the end of a sentence; None if nothing is."""

    def lend(self, file: Artifact, final: Path) -> NewArtifact:
        """The same content as another job's artifact, with a name of its own.  Raises FileLost."""

    def keep_inputs(self, files: Collection[tuple[str, str]]) -> None:
        """Make portraits and sounds, by path and SHA-256, reachable for every worker.  Raises InputError."""

    def input(self, path: str, sha256: str, what: str) -> Path:
        """The portrait or sound that was submitted as `path`, on this machine.  Raises InputError."""

    def delete(self, place: str) -> None:
        """Delete what lies there, if it does."""

    def strays(self, before: float) -> Iterator[Stray]:
        """Everything that was written before this instant and is not known to be in use."""

    def probe(self) -> None:
        """Write, read back and delete something small."""


def write_sealed(store: Store, final: Path, data: bytes, token: int, kind: ArtifactKind) -> NewArtifact:
    """`Store.seal` for small content."""
    staged = staging_name(final, token)
    staged.write_bytes(data)
    return store.seal(staged, final, kind)


def deliver(store: Store, film: Artifact, target: Path, *, overwrite: bool) -> Path:
    """Put a film at `target`, unless it is there already.  Raises InputError, FileLost."""
    if film.path == str(target):
        return store.fetch(film)
    try:
        if target.exists():
            if target.stat().st_size == film.size_bytes and sha256_of(target) == film.sha256:
                return target
            if not overwrite:
                raise InputError(f"{target} exists and is another file; give another folder, or --overwrite")
        source = store.fetch(film)
        target.parent.mkdir(parents=True, exist_ok=True)
        staged = staging_name(target, 0)
        try:
            shutil.copyfile(source, staged)
            if sha256_of(staged) != film.sha256:
                raise InputError(f"the copy of the film at {target.parent} is not the film; is that disk well?")
            seal(staged, target, ArtifactKind.FILM)
        finally:
            staged.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"the film cannot be written to {target}: {error.strerror}") from None
    return target


def open_store(settings: Settings) -> Store:
    """The store that the settings name.  Asks nothing of it yet.  Raises ConfigError."""
    return _opened(settings.store, settings.home)


@lru_cache(maxsize=16)
def _opened(settings: StoreSettings, home: Path) -> Store:
    if not settings.url:
        return Folder(home / "artifacts")
    try:
        from farm.object_store import ObjectStore
    except ImportError:
        raise ConfigError("store.url names an object store, and the extra `s3` (boto3) is not installed here") from None
    return ObjectStore(settings, home)


def unchanged(path: str, sha256: str, what: str) -> Path:
    """The film is named after what was submitted; a file that changed since is another job.  Raises InputError."""
    try:
        if sha256_of(Path(path)) == sha256:
            return Path(path)
    except FileNotFoundError:
        raise InputError(f"{what} {path} is gone; it was there at submit") from None
    except OSError as error:
        raise InputError(f"{what} {path} cannot be read: {error.strerror}") from None
    raise InputError(f"{what} {path} was changed after it was submitted; submit the row again")


def fault_of(path: Path, size_bytes: int, sha256: str) -> str | None:
    """`Store.fault` for a file of this machine."""
    try:
        if not path.is_file():
            return "is gone"
        size = path.stat().st_size
        if size != size_bytes:
            return f"has {size} bytes, {size_bytes} were published"
        return None if sha256_of(path) == sha256 else "was changed since it was published"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _fault_at_a_glance(path: Path, size_bytes: int) -> str | None:
    """`fault_of` without reading the file."""
    try:
        return None if path.stat().st_size == size_bytes else "is another file now"
    except OSError:
        return "is gone"


def local_strays(root: Path, before: float) -> Iterator[Stray]:
    """What lies in the jobs' folders of this machine."""
    for folder in root.glob("*/*"):
        if not folder.name.isdigit():
            continue
        for path in folder.rglob("*"):
            try:
                stat = path.stat()
                if path.is_file() and stat.st_mtime <= before:
                    yield Stray(
                        str(path), stat.st_size, stat.st_mtime, int(folder.name), unfinished=is_staging_name(path)
                    )
            except OSError:
                continue  # renamed or deleted meanwhile


def refuse_foreign(place: str) -> None:
    """A folder has nothing of an object store.  Raises StoreError."""
    if "://" in place:
        raise StoreError(f"{place} lies in an object store, and store.url names none; set it as it was")


class Folder:
    """Files lie below one folder, each at its final path; films lie where their rows said."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def where(self) -> str:
        return str(self._root)

    def folder(self, job_id: int) -> JobFolder:
        return JobFolder(self._root, job_id)

    def film_path(self, job: Job, token: int) -> Path:
        return Path(job.output)

    def seal(
        self, staged: Path, final: Path, kind: ArtifactKind, facts: Mapping[str, Any] | None = None
    ) -> NewArtifact:
        return seal(staged, final, kind, facts)

    def fetch(self, file: Artifact | NewArtifact, *, verify: bool = False) -> Path:
        refuse_foreign(file.path)
        path = Path(file.path)
        problem = fault_of(path, file.size_bytes, file.sha256) if verify else _fault_at_a_glance(path, file.size_bytes)
        if problem:
            raise FileLost(f"{path} {problem}")
        return path

    def fault(self, file: Artifact) -> str | None:
        refuse_foreign(file.path)
        return fault_of(Path(file.path), file.size_bytes, file.sha256)

    def lend(self, file: Artifact, final: Path) -> NewArtifact:
        refuse_foreign(file.path)
        staged = staging_name(final, LEND_TOKEN)
        staged.unlink(missing_ok=True)
        try:
            _link(Path(file.path), staged)
            problem = fault_of(staged, file.size_bytes, file.sha256)
            if problem:
                raise FileLost(f"{file.path} {problem}")
            return seal(staged, final, file.kind, file.facts)
        except OSError as error:  # `farm gc` may have been here since we asked
            raise FileLost(f"{file.path}: {error.strerror}") from None
        finally:
            staged.unlink(missing_ok=True)

    def keep_inputs(self, files: Collection[tuple[str, str]]) -> None:
        """Inputs stay where they are: every worker sees the same folders."""

    def input(self, path: str, sha256: str, what: str) -> Path:
        return unchanged(path, sha256, what)

    def delete(self, place: str) -> None:
        refuse_foreign(place)
        Path(place).unlink(missing_ok=True)

    def strays(self, before: float) -> Iterator[Stray]:
        return local_strays(self._root, before)

    def probe(self) -> None:
        folder = self._root
        while not folder.exists():  # the first worker makes it, as the user that it runs as
            folder = folder.parent
        path = folder / f".probe-{secrets.token_hex(8)}"
        try:
            path.write_bytes(PROBE)
            if path.read_bytes() != PROBE:
                raise StoreError(f"{folder} gives back other bytes than were written; is that disk well?")
        except OSError as error:
            raise StoreError(f"{folder} cannot be written: {error.strerror}") from None
        finally:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
