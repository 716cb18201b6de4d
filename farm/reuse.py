"""Using frames again that were rendered for another film.

A segment's content key is the hash of everything that decides its pixels, but for the engine's version, which stands on
the job that published it.  A file with the right key becomes an artifact of the new job by a hard link, or a copy
within the object store: the two jobs own a name each, so `farm gc` may take either without asking who else needs the
content.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from farm.errors import FileLost
from farm.ledger import Ledger, read
from farm.ledger.reuse import KnownSegment, known_segments
from farm.ledger.values import Job, Reused
from farm.planning import PlannedSegment
from farm.store import LEND_TOKEN, Store

log = logging.getLogger(__name__)

KEY_FORMAT = 1  # raised when keys of before must not match


def key_of(job: Job, portrait_sha256: str, profile: Mapping[str, Any], **own: Any) -> str:
    """The content key of one segment.  `own` is what tells it from the job's others: its sound's hash, seed, facts …

    `portrait_sha256` is of the normalised portrait, `profile` the encoder's.
    """
    decides = {
        "format": KEY_FORMAT,
        "model": job.model,
        "preset": job.preset,  # decides with which settings the engine is loaded
        "settings": dict(job.settings),
        "prompt": job.prompt,
        "size": [job.width, job.height],
        "fps": list(job.fps),
        "continuity": job.continuity.value,
        "portrait": portrait_sha256,
        "profile": dict(profile),
        **own,
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def find_reusable(
    ledger: Ledger, store: Store, job: Job, plan: Sequence[PlannedSegment], queue: str
) -> dict[int, Reused]:
    """The segments of `plan`, by number, that need not be rendered; their files are the job's when this returns.

    All come from one version of the engine, because a film must: the one that the queue's workers run, or, while none
    is known, the one that most segments come from.  A file that is gone or was changed is passed over.
    """
    keys = {number: part.content_key for number, part in enumerate(plan) if part.content_key is not None}
    known = known_segments(ledger, sorted(set(keys.values())))
    version = _version_to_take(known, _versions_at_work(ledger, queue))
    by_key: dict[str, list[KnownSegment]] = {}
    for item in known:
        if item.engine_version == version:
            by_key.setdefault(item.content_key, []).append(item)
    folder = store.folder(job.id).make()
    found: dict[int, Reused] = {}
    for number, key in keys.items():
        if plan[number].needs_carry and number - 1 not in found:
            break  # a chain is rendered in order, so only its beginning can be taken over
        for item in by_key.get(key, ()):
            final = folder.segment(number, LEND_TOKEN, PurePosixPath(item.file.path).suffix)
            taken = _take(item, store, final)
            if taken is not None:
                found[number] = taken
                break
    return found


def _versions_at_work(ledger: Ledger, queue: str) -> set[str]:
    return {str(w.info["version"]) for w in read.workers_at_work(ledger, queue) if "version" in w.info}


def _version_to_take(known: Sequence[KnownSegment], at_work: Collection[str]) -> str | None:
    pairs = {(item.engine_version, item.content_key) for item in known}
    counted = Counter(version for version, _ in pairs if not at_work or version in at_work)
    return max(counted, key=lambda version: (counted[version], version)) if counted else None


def _take(item: KnownSegment, store: Store, final: Path) -> Reused | None:
    try:
        artifact = store.lend(item.file, final)
    except FileLost as error:
        log.warning("%s; it is not used again", error)
        return None
    where = f"segment {item.number + 1} of job {item.job_id}"
    return Reused(artifact, item.carry, item.engine_version, where)


def tell(plan: Sequence[PlannedSegment], reused: Mapping[int, Reused], fps: tuple[int, int]) -> Iterator[str]:
    """A sentence for the job's notes about what is used again."""
    if reused:
        left = [part for number, part in enumerate(plan) if number not in reused]
        seconds = sum(part.frames for part in left) * fps[1] / fps[0]
        yield (
            f"{len(reused)} of {len(plan)} segments are used again from earlier films;"
            f" {len(left)} are rendered, {seconds:.0f} s of the film"
        )
