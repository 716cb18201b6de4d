"""What may be deleted: working files of jobs that ended, uploads that no job needs, and what nobody writes any more."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from farm import uploads
from farm.config import Settings
from farm.ledger import Ledger, read
from farm.ledger.retention import (
    WorkingArtifact,
    forget_artifacts,
    input_uses,
    open_job_ids,
    upload_uses,
    working_artifacts,
)
from farm.store import Store, open_store
from farm.uploads import Kept

STAGING_HOURS = 24.0  # longer than any attempt lives without renewing its lease


@dataclass(frozen=True, slots=True)
class Garbage:
    path: str
    size_bytes: int
    why: str
    artifact_id: int | None  # None for a file that the ledger does not know
    upload: Kept | None = None
    input_sha256: str | None = None  # of a portrait or sound that lies in the store
    job_id: int | None = None  # in whose folder a whole file lies that the ledger does not know


def find_garbage(
    ledger: Ledger, settings: Settings, *, older_than_days: float, keep_gb: float | None = None
) -> list[Garbage]:
    """Files that no job needs, oldest first.

    Of finished jobs: segments, thumbnails, the decoded sound and the normalised portrait, once the job ended
    `older_than_days` ago, and the oldest beyond the setting segments.keep_gb; or with `keep_gb` only the oldest until
    the rest fits.  A failed or cancelled job keeps its files that long too, because a retry goes on from them.  A
    segment that was used again by a later film belongs to that film as well, and stays as long as that one's.

    Uploads, and inputs that were put into an object store, are kept while an open job names them and `older_than_days`
    from when they were last sent or their last job ended; `keep_gb` does not count them.
    """
    now = ledger.now()
    candidates = working_artifacts(ledger)
    found: list[Garbage] = []
    if keep_gb is None:
        why = f"its job ended more than {older_than_days:g} days ago"
        found = [_garbage(c, why) for c in candidates if c.ended_at < now - older_than_days * 86400.0]
        candidates, keep_gb = candidates[len(found) :], settings.segments.keep_gb
    found += [_garbage(c, f"to keep at most {keep_gb:g} GB") for c in _beyond(candidates, keep_gb * 1e9)]
    return found + _strays(ledger, open_store(settings), older_than_days) + _uploads(ledger, settings, older_than_days)


def _garbage(item: WorkingArtifact, why: str) -> Garbage:
    return Garbage(item.path, item.size_bytes, why, item.artifact_id)


def _beyond(candidates: Sequence[WorkingArtifact], limit_bytes: float) -> list[WorkingArtifact]:
    """The oldest files, until the rest fits.

    A content that several jobs link to takes its room once, and gives it back when the last of them goes.
    """
    holders = Counter(item.sha256 for item in candidates)
    excess = sum({item.sha256: item.size_bytes for item in candidates}.values()) - limit_bytes
    chosen: list[WorkingArtifact] = []
    for item in candidates:
        if excess <= 0:
            break
        chosen.append(item)
        holders[item.sha256] -= 1
        if not holders[item.sha256]:
            excess -= item.size_bytes
    return chosen


def _strays(ledger: Ledger, store: Store, older_than_days: float) -> list[Garbage]:
    """What attempts left that died or lost their lease, and inputs in the store that no job needs any more."""
    found: list[Garbage] = []
    oldest = ledger.now() - older_than_days * 86400.0
    busy = set(open_job_ids(ledger))
    uses: dict[str, float | None] | None = None
    known: tuple[int | None, set[str]] = (None, set())
    for stray in store.strays(time.time() - STAGING_HOURS * 3600.0):
        if stray.input_sha256 is not None:
            uses = input_uses(ledger) if uses is None else uses
            ended = uses.get(stray.input_sha256, 0.0)
            if ended is not None and max(ended, stray.written_at) < oldest:
                why = f"an input that no job needed for more than {older_than_days:g} days"
                found.append(Garbage(stray.place, stray.size_bytes, why, None, input_sha256=stray.input_sha256))
            continue
        if stray.job_id is not None and stray.job_id != known[0]:
            known = (stray.job_id, _published(ledger, stray.job_id))
        why = "left by an attempt that died"
        if stray.unfinished or stray.job_id is None:
            found.append(Garbage(stray.place, stray.size_bytes, why, None))
        elif stray.job_id not in busy and _in_folder_of(stray.job_id, stray.place) not in known[1]:
            found.append(Garbage(stray.place, stray.size_bytes, why, None, job_id=stray.job_id))
    return found


def _published(ledger: Ledger, job_id: int) -> set[str]:
    return {_in_folder_of(job_id, artifact.path) for artifact in read.artifacts(ledger, job_id)}


def _in_folder_of(job_id: int, place: str) -> str:
    """A file by its name in its job's folder: for who published it the farm's home may have had another path, through a
    link or another mount.  What lies in an object store has one name for all."""
    return place if "://" in place else place.rpartition(f"/{job_id:07d}/")[2]


def _uploads(ledger: Ledger, settings: Settings, older_than_days: float) -> list[Garbage]:
    """Uploads that no open job names, those that were not needed for longest in front, and unfinished ones."""
    oldest = ledger.now() - older_than_days * 86400.0
    uses = upload_uses(ledger)
    stale: list[tuple[float, Kept]] = []
    for kept in uploads.all_kept(settings):
        ended = uses.get(kept.name, 0.0)
        if ended is not None and max(ended, kept.sent_at) < oldest:
            stale.append((max(ended, kept.sent_at), kept))
    stale.sort(key=lambda item: item[0])
    why = f"an upload that no job needed for more than {older_than_days:g} days"
    found = [Garbage(str(kept.content), kept.size_bytes, why, None, kept) for _, kept in stale]
    for part in uploads.abandoned_parts(settings):
        with contextlib.suppress(OSError):
            found.append(Garbage(str(part), part.stat().st_size, "an upload that was cut off", None))
    return found


def remove(ledger: Ledger, settings: Settings, garbage: Sequence[Garbage]) -> list[Garbage]:
    """Delete the files and return what was deleted.

    The ledger forgets them first, so that it never promises a file that is gone.  What belongs to a job that a person
    retried since the garbage was found stays.
    """
    forgotten = forget_artifacts(ledger, [g.artifact_id for g in garbage if g.artifact_id is not None])
    deleted = [item for item in garbage if item.artifact_id is None or item.artifact_id in forgotten]
    kept = [item.upload for item in deleted if item.upload is not None]
    spared = _forget_uploads(ledger, kept)
    deleted = [item for item in deleted if item.upload is None or item.upload.content not in spared]
    deleted = _without_taken_over(ledger, _without_needed_inputs(ledger, deleted))
    store = open_store(settings)
    for item in deleted:
        store.delete(item.path)
    return deleted


def _without_needed_inputs(ledger: Ledger, garbage: Sequence[Garbage]) -> list[Garbage]:
    """A job may have come since the garbage was found."""
    if all(item.input_sha256 is None for item in garbage):
        return list(garbage)
    uses = input_uses(ledger)
    return [item for item in garbage if item.input_sha256 is None or uses.get(item.input_sha256, 0.0) is not None]


def _without_taken_over(ledger: Ledger, garbage: Sequence[Garbage]) -> list[Garbage]:
    """A job may have come since and taken over a segment, whose link is as old as the file of the film that lent it."""
    busy = set(open_job_ids(ledger))  # asked first: what such a job has published by its end is then known
    jobs = {item.job_id for item in garbage if item.job_id is not None} - busy
    published = {job_id: _published(ledger, job_id) for job_id in jobs}
    return [
        item
        for item in garbage
        if item.job_id is None
        or (item.job_id not in busy and _in_folder_of(item.job_id, item.path) not in published[item.job_id])
    ]


def _forget_uploads(ledger: Ledger, kept: Sequence[Kept]) -> set[Path]:
    """Take uploads out of reach, so that no row can name them any more.  Returns those that one named just before."""
    spared: set[Path] = set()
    for upload in kept:
        with contextlib.suppress(OSError):
            if max(path.stat().st_mtime for path in (upload.content, *upload.notes)) > upload.sent_at:
                spared.add(upload.content)  # it was sent again
                continue
        for note in upload.notes:
            note.unlink(missing_ok=True)
    if kept:
        uses = upload_uses(ledger)
        spared |= {upload.content for upload in kept if uses.get(upload.name, 0.0) is None}
    return spared
