"""The two steps of a film that need no engine: `prepare` before it is rendered and `assemble` afterwards.

Both read users' files and therefore run in the workshop's child process; what they made is published from here.
"""

from __future__ import annotations

import time
from concurrent.futures import Future
from typing import Any

from farm.artifacts import discard_staged, sync
from farm.config import Settings
from farm.ledger import Ledger, moves, read
from farm.ledger.values import Lease, Reused
from farm.reuse import find_reusable, tell
from farm.states import ArtifactKind, Event, SegmentKind
from farm.store import Store
from farm.workshop import Workshop
from workers.assembling import Assembled, assemble_film
from workers.heart import LeaseWatch
from workers.preparing import Prepared, prepare


class FilmSteps:
    """Prepares and assembles films for a worker without an engine.

    Each step returns what Flower shows as its result.  Each raises what the step itself raised in the child, Stopped
    when the lease or the worker must end, LeaseLost, and DeviceFault when the child died or took too long.
    """

    def __init__(self, ledger: Ledger, settings: Settings, store: Store, device: str) -> None:
        self._ledger = ledger
        self._settings = settings
        self._store = store
        self._device = device
        self._workshop = Workshop()

    def close(self) -> None:
        """End the child."""
        self._workshop.kill()

    def prepare(self, lease: Lease, watch: LeaseWatch) -> dict[str, Any]:
        """Look at the portrait and the sound, and publish the plan, with the segments that another film lends."""
        job = lease.job
        work: Future[Prepared] = self._workshop.do(
            prepare, job, lease.token, self._store, self._settings.segments, self._settings.film
        )
        began = time.monotonic()
        done = self._workshop.wait(
            work, timeout_seconds=self._settings.limits.step_timeout(job.audio_seconds), why_stop=watch.why_stop
        )
        reused: dict[int, Reused] = {}
        if self._settings.segments.reuse and not job.fresh:
            reused = find_reusable(self._ledger, self._store, job, done.plan, done.queue)
        moves.publish_plan(
            self._ledger,
            lease,
            artifacts=done.artifacts,
            job=done.job | {"notes": [*done.job["notes"], *tell(done.plan, reused, job.fps)]},
            plan=done.plan,
            queue=done.queue,
            device_seconds=time.monotonic() - began,
            reused=reused,
        )
        counts = {"segments": len(done.plan), "reused": len(reused)}
        return {"frames": done.job["total_frames"], **counts, "device": self._device}

    def assemble(self, lease: Lease, watch: LeaseWatch) -> dict[str, Any]:
        """Join the segments into the film, put it in its place and publish it.  Raises BadSegment."""
        job = lease.job
        artifacts = read.artifacts(self._ledger, job.id, ArtifactKind.SEGMENT)
        cuts = [s.first_frame for s in read.segments(self._ledger, job.id) if s.kind is SegmentKind.RENDER]
        timeout = self._settings.limits.step_timeout(job.audio_seconds)
        work: Future[Assembled] = self._workshop.do(
            assemble_film,
            job,
            lease.token,
            self._store,
            artifacts,
            cuts,
            _history(self._ledger, lease),
            self._settings.film.audio_bitrate,
            timeout,
        )
        began = time.monotonic()
        try:
            done = self._workshop.wait(work, timeout_seconds=timeout, why_stop=watch.why_stop)
            sync(done.staged)  # now, because a slow disk may take longer for it than a lease lasts
            # The film's path may be the user's, without a token, so the lease is asked once more before it is taken.
            moves.renew(self._ledger, lease, ttl_seconds=self._settings.lease.ttl_seconds, frames_now=0)
            film = self._store.seal(done.staged, done.output, ArtifactKind.FILM, done.facts)
        except BaseException:
            discard_staged(self._store.film_path(job, lease.token), lease.token)
            raise
        moves.publish(self._ledger, lease, artifacts=[film, *done.companions], device_seconds=time.monotonic() - began)
        return {"frames": done.facts["frames"], "seconds": round(time.monotonic() - began, 2), "file": film.path}


def _history(ledger: Ledger, lease: Lease) -> dict[str, Any]:
    """What the report tells of how the film came about."""
    tried = read.attempts(ledger, lease.job.id)
    kinds = {s.id: s for s in read.segments(ledger, lease.job.id)}
    rendered = [a for a in tried if kinds[a.segment_id].kind is SegmentKind.RENDER]
    good = [a for a in rendered if a.outcome == Event.SUCCEED.value]
    published = [a for a in good if a.device != moves.REUSED]
    seconds = sum(a.device_seconds for a in published)
    frames = sum(a.frames for a in published)
    return {
        "render": {
            "segments": len(good),
            "reused": len(good) - len(published),
            "attempts": len(rendered),
            "workers": sorted({a.worker for a in published}),
            "devices": sorted({a.device for a in published}),
            "device_seconds": round(seconds, 3),
            "frames_per_device_second": round(frames / seconds, 2) if seconds else None,
        },
    }
