"""Folders of weights: fetched whole, written down with size and hash, and looked at again when somebody asks.

A folder that was pulled holds `farm-weights.json`: where it came from, at which revision, and every file's size and
hash.  A folder that came otherwise is checked by what its files say of themselves.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import shutil
import struct
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from farm.artifacts import sync
from farm.errors import InputError, NotEnoughRoom, NotFetched
from farm.hub import PART, Hub, HubFile, Listing, Progress
from farm.models import ModelSpec, RepositorySpec

MANIFEST = "farm-weights.json"
_BLOCK_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Pulled:
    """One repository's folder, complete."""

    repository: RepositorySpec
    folder: Path
    revision: str
    fetched: int  # files that were not there before
    files: int


@dataclass(frozen=True, slots=True)
class Checked:
    """One file as it was found."""

    repository: str
    path: Path
    verdict: str  # "well", "mind" or "wrong"
    found: str


def pull(
    model: ModelSpec,
    hub: Hub,
    home: Path,
    *,
    revision: str = "",
    accepts_licence: bool = False,
    min_free_bytes: int = 0,
    progress: Progress = lambda *_: None,
) -> Iterator[Pulled]:
    """Fetch every repository of a model below `home`; what is there already and whole is left alone.

    Raises InputError for a model without weights or a licence that was not accepted, NotEnoughRoom before anything is
    fetched, NotFetched when a hub fails or gives a file whose size or hash is not what it listed.
    """
    repositories = model.source.repositories
    if not repositories:
        raise InputError(f"model {model.id} has no weights to fetch")
    if not accepts_licence:
        for repository in repositories:
            if repository.accept:
                raise InputError(
                    f"{repository.hub} is under {repository.licence}: read its terms on the hub and pull again with"
                    " --accept-licence"
                )
    plans = [(repository, *_plan(repository, hub, home, revision)) for repository in repositories]
    needed = sum(file.size - _have(home / r.folder, file) for r, _, missing in plans for file in missing)
    free = shutil.disk_usage(_existing(home)).free
    if needed + min_free_bytes > free:
        raise NotEnoughRoom(
            f"{needed / 1e9:.1f} GB are to be fetched into {home} and {min_free_bytes / 1e9:.1f} GB to stay free, but"
            f" only {free / 1e9:.1f} GB are: free some, or name another folder with --into"
        )
    for repository, listing, missing in plans:
        folder = home / repository.folder
        for file in missing:
            hub.fetch(listing, file, folder, progress)
            problem = why_wrong(folder / file.path, file)
            if problem:
                (folder / file.path).unlink(missing_ok=True)
                raise NotFetched(f"{folder / file.path}: {problem}; it was deleted, pull again")
        wanted = wanted_files(repository, listing)
        _write_manifest(folder, hub.name, listing, wanted)
        yield Pulled(repository, folder, listing.revision, len(missing), len(wanted))


def _plan(repository: RepositorySpec, hub: Hub, home: Path, revision: str) -> tuple[Listing, list[HubFile]]:
    """What the hub has, and what of it is missing here or is not what the hub lists."""
    listing = hub.list_files(repository.hub, revision)
    wanted = wanted_files(repository, listing)
    if not wanted:
        raise NotFetched(f"{repository.hub} at {listing.revision} has none of {', '.join(repository.files) or 'files'}")
    folder = home / repository.folder
    known = read_manifest(folder).get("files", {})
    missing = []
    for file in wanted:
        path = folder / file.path
        # A file that was checked when it was fetched is not read again unless its size changed.
        is_known = path.is_file() and path.stat().st_size == file.size and known.get(file.path) == _written(file)
        if not is_known and (not path.is_file() or why_wrong(path, file)):
            missing.append(file)
    return listing, missing


def wanted_files(repository: RepositorySpec, listing: Listing) -> list[HubFile]:
    if not repository.files:
        return [file for file in listing.files if not file.path.startswith(".git")]
    return [file for file in listing.files if any(fnmatch.fnmatchcase(file.path, p) for p in repository.files)]


def why_wrong(path: Path, file: HubFile) -> str:
    """What differs from what the hub listed; empty when nothing does."""
    size = path.stat().st_size if path.is_file() else -1
    if size != file.size:
        return f"it has {max(size, 0)} bytes and the hub lists {file.size}"
    if file.sha256:
        found = hash_file(path, hashlib.sha256())
        return "" if found == file.sha256.lower() else f"its SHA-256 is {found}, the hub lists {file.sha256}"
    if file.git_sha1:
        found = hash_file(path, hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False))
        return "" if found == file.git_sha1.lower() else f"its git hash is {found}, the hub lists {file.git_sha1}"
    return ""


def hash_file(path: Path, digest: Any) -> str:
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return str(digest.hexdigest())


def verify(model: ModelSpec, home: Path, *, reads_everything: bool = True) -> Iterator[Checked]:
    """Every file of a model's folders: there, of its size, with its hash, and readable as what it is.

    Without `reads_everything` hashes are left out.  Raises InputError for a model without weights.
    """
    if not model.source.repositories:
        raise InputError(f"model {model.id} has no weights to verify")
    for repository in model.source.repositories:
        yield from verify_folder(repository, home / repository.folder, reads_everything=reads_everything)


def verify_folder(repository: RepositorySpec, folder: Path, *, reads_everything: bool) -> Iterator[Checked]:
    """The files of one repository's folder, wherever it lies."""
    name = repository.hub
    if not folder.is_dir():
        yield Checked(name, folder, "wrong", "the folder is missing: farm models pull fetches it")
        return
    listed = {path: HubFile(path, **said) for path, said in read_manifest(folder).get("files", {}).items()}
    if not listed:
        yield Checked(name, folder, "mind", "not fetched by this farm: sizes and hashes are not known")
        present = [p for p in sorted(folder.rglob("*")) if p.is_file() and not _is_bookkeeping(p, folder)]
        listed = {p.relative_to(folder).as_posix(): HubFile("", p.stat().st_size) for p in present}
        for shard in _shards_of(folder):
            listed.setdefault(shard, HubFile(shard, -1))
    for relative, file in sorted(listed.items()):
        path = folder / relative
        if not path.is_file():
            yield Checked(name, path, "wrong", "it is missing: farm models pull fetches it again")
            continue
        plain = file if reads_everything else HubFile(file.path, file.size)
        problem = why_wrong(path, plain) or why_unreadable(path)
        if problem:
            yield Checked(name, path, "wrong", f"{problem}: delete it and farm models pull fetches it again")
        else:
            hashed = "hash as listed" if plain.sha256 or plain.git_sha1 else "hash not checked"
            yield Checked(name, path, "well", f"{path.stat().st_size} bytes, {hashed}")


def _shards_of(folder: Path) -> list[str]:
    """Files that an index of shards names."""
    found: list[str] = []
    for index in folder.rglob("*.safetensors.index.json"):
        try:
            named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError):
            continue
        found += [(index.parent / name).relative_to(folder).as_posix() for name in named]
    return found


def why_unreadable(path: Path) -> str:
    """What is wrong with a file of weights by its own header; empty when nothing is."""
    if path.suffix == ".safetensors":
        return _why_no_safetensors(path)
    if path.suffix in (".pth", ".bin", ".pt"):
        with path.open("rb") as file:
            start = file.read(2)
        if start == b"PK" and not zipfile.is_zipfile(path):
            return "it is cut off"
        if start[:2] != b"PK" and start[:1] != b"\x80":
            return "it is no file of weights"
    if path.suffix == ".json":
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError):
            return "it is no readable JSON"
    return ""


def _why_no_safetensors(path: Path) -> str:
    """8 bytes of header length, a JSON header, and as many bytes as the header says."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= size - 8:
            return "it is cut off or no safetensors file"
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, IndexError):
            return "its header is unreadable"
    whole = 8 + length + max(ends, default=0)
    return "" if size == whole else f"it has {size} bytes and its header says {whole}"


def _have(folder: Path, file: HubFile) -> int:
    """Bytes of a file that an earlier try left."""
    part = folder / (file.path + PART)
    return min(part.stat().st_size, file.size) if part.is_file() else 0


def _is_bookkeeping(path: Path, folder: Path) -> bool:
    first = path.relative_to(folder).parts[0]
    return first in (".cache", ".git", MANIFEST) or path.name.endswith(PART)


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def read_manifest(folder: Path) -> dict[str, Any]:
    try:
        said = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def _written(file: HubFile) -> dict[str, Any]:
    said = asdict(file)
    del said["path"]
    return said


def _write_manifest(folder: Path, hub: str, listing: Listing, files: Sequence[HubFile]) -> None:
    said = {
        "hub": hub,
        "repository": listing.repository,
        "revision": listing.revision,
        "licence": listing.licence,
        "files": {file.path: _written(file) for file in files},
    }
    staging = folder / (MANIFEST + PART)
    staging.write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    sync(staging)
    staging.replace(folder / MANIFEST)
    sync(folder)
