"""Whether this machine sees what other machines of the farm published: its shared folder may not be mounted."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from farm.config import Settings
from farm.ledger import Ledger, read
from farm.ledger.values import Lease
from farm.roster import machine_name
from farm.sight import why_blind, why_unseen
from farm.states import ArtifactKind, SegmentKind

log = logging.getLogger(__name__)

AGAIN_SECONDS = 10.0  # how often a worker that sees nothing looks again
SIGHT_SECONDS = 30.0  # how often one that does


class Sight:
    """What one worker knows of the others' files.  A ledger in SQLite is one machine's, and an object store is seen."""

    def __init__(self, settings: Settings, ledger: Ledger, queue: str) -> None:
        self._ledger = ledger
        self._queue = queue
        self._is_shared = not ledger.is_sqlite and not settings.store.url
        self._known: tuple[float, str | None] = (0.0, None)  # when to look again, and what was wrong

    def why_none(self) -> str | None:
        """A sentence when this worker should take nothing."""
        look_at, why = self._known
        if not self._is_shared or time.monotonic() < look_at:
            return why
        why = why_blind(self._ledger)
        if why is not None and why != self._known[1]:
            log.error("%s", why)
        self._known = (time.monotonic() + (AGAIN_SECONDS if why else SIGHT_SECONDS), why)
        return why

    def why_others(self, lease: Lease) -> str | None:
        """Why another machine should do this: it may see a folder that is not mounted here.

        None as well when the others have been asked: then what is missing here is gone.
        """
        if not self._is_shared:
            return None
        job, kind = lease.job, lease.segment.kind
        needed = [] if kind is SegmentKind.RENDER else [job.audio]
        if kind is SegmentKind.PREPARE:
            needed.append(job.portrait)
        else:
            made = ArtifactKind.PORTRAIT if kind is SegmentKind.RENDER else ArtifactKind.SEGMENT
            needed += [file.path for file in read.artifacts(self._ledger, job.id, made)]
        folders = {str(Path(path).parent): path for path in needed}
        why = next((why for path in folders.values() if (why := why_unseen([path], machine_name()))), None)
        return why if why is not None and self._others_may_see(lease) else None

    def _others_may_see(self, lease: Lease) -> bool:
        """Whether a worker of another machine could take this that did not leave it to others itself."""
        left = {tried.worker for tried in read.attempts(self._ledger, lease.job.id) if tried.failure == "store"}
        crew = read.workers_at_work(self._ledger, self._queue)
        return any(worker.machine != machine_name() and worker.name not in left for worker in crew)
