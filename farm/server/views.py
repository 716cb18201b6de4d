"""Jobs, workers and counts as JSON: what the page and the lists show."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from farm.accounts import Account
from farm.ledger import Ledger, overview, read
from farm.ledger.live import ADDRESS
from farm.ledger.progress import JobProgress, job_progress
from farm.ledger.values import Batch, Job, Worker
from farm.states import JobState
from farm.uploads import UPLOAD_ID

_SHOWABLE = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".webp": "image/webp"}


def summaries(ledger: Ledger, job_ids: Sequence[int]) -> list[dict[str, Any]]:
    """One table for each job, newest first."""
    costs = overview.costs(ledger, job_ids) if job_ids else {}
    return [summary(p, costs.get(p.job.id)) for p in reversed(job_progress(ledger, job_ids))]


STALE_SECONDS = 5.0  # how old figures may get that only the clock changes, such as frames per second


class Summaries:
    """Summaries that are read once for everybody who watches; used by several threads."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._kept: tuple[tuple[int, int], float, dict[int, dict[str, Any]]] = ((-1, 0), 0.0, {})

    def read(self, job_ids: Sequence[int], pulse: tuple[int, int]) -> list[dict[str, Any]]:
        """As `summaries`; those that were read at the same pulse of the ledger are not read again for a while."""
        now = time.monotonic()
        kept_pulse, kept_at, kept = self._kept
        if kept_pulse != pulse or now - kept_at > STALE_SECONDS:
            kept = {}
            self._kept = (pulse, now, kept)
        missing = [job_id for job_id in job_ids if job_id not in kept]
        kept.update((int(job["id"]), job) for job in summaries(self._ledger, missing))
        return [kept[job_id] for job_id in sorted(job_ids, reverse=True) if job_id in kept]


def summary(progress: JobProgress, cost: overview.Cost | None) -> dict[str, Any]:
    job = progress.job
    spent = cost.device_seconds if cost is not None else 0.0
    return {
        "id": str(job.id),
        "batch_id": job.batch_id,
        "name": job.name,
        "owner": job.owner,
        "tags": list(job.tags),
        "model": job.model,
        "preset": job.preset,
        "state": job.shown_state,
        "reason": told(job, job.reason),
        "failure": job.failure,
        "last_error": told(job, progress.last_error),
        "notes": list(job.notes),
        "priority": job.priority,
        "deadline": job.due,
        "width": job.width,
        "height": job.height,
        "fps": job.fps[0] / job.fps[1],
        "seed": job.seed,
        "seconds": film_seconds(job),
        "frames": progress.frames,
        "total_frames": progress.total_frames,
        "share": round(share(progress), 4),
        "doing": progress.doing,
        "workers": list(progress.workers),
        "frames_per_second": _round(progress.frames_per_second),
        "times_real_time": _round(progress.times_real_time),
        "seconds_left": _round(progress.seconds_left),
        "segments": job.segments_total,
        "segments_done": job.segments_done,
        "device_seconds": round(spent, 2),
        "device_seconds_per_minute": _round(spent * 60.0 / film_seconds(job)) if spent and film_seconds(job) else None,
        "attempts": cost.attempts if cost is not None else 0,
        "failed_attempts": cost.failed_attempts if cost is not None else 0,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "has_film": job.state is JobState.SUCCEEDED,
        "has_portrait": job.total_frames is not None or portrait_type(job.portrait) is not None,
    }


def told(job: Job, sentence: str | None) -> str | None:
    """A sentence without the places of files on this machine, which mean nothing to who looks from another."""
    if sentence is None:
        return None
    for what, path in (("portrait", job.portrait), ("audio", job.audio)):
        sentence = sentence.removeprefix(f"{what} {path}: ")
        sentence = sentence.replace(f"{what} {path}", f"the {what}").replace(path, f"the {what}")
    return sentence[:1].upper() + sentence[1:]


def input_name(path: str) -> str:
    """What a client may call an input that lies at `path`: `upload:ID` if it was sent, else the file's name."""
    file = Path(path)
    return f"upload:{file.stem}" if UPLOAD_ID.fullmatch(file.stem) else file.name


def portrait_type(path: str) -> str | None:
    """The media type of a portrait as it was given, if a browser can show it."""
    return _SHOWABLE.get(Path(path).suffix.lower())


def share(progress: JobProgress) -> float:
    """0 to 1; a film that is not published is never quite there."""
    return 1.0 if progress.job.state is JobState.SUCCEEDED else min(progress.share, 0.99)


def film_seconds(job: Job) -> float:
    if job.total_frames:
        return job.total_frames * job.fps[1] / job.fps[0]
    return job.audio_seconds


def _round(value: float | None, digits: int = 3) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, digits)


def worker_view(worker: Worker, now: float) -> dict[str, Any]:
    return {
        "name": worker.name,
        "queue": worker.queue,
        "machine": worker.machine,
        "device": worker.device,
        "state": worker.state.value,
        "drain": worker.drain,
        "reason": worker.reason,
        "segment_id": worker.segment_id,
        "host_restarts": worker.host_restarts,
        "info": {key: value for key, value in worker.info.items() if key != ADDRESS},
        "started_at": worker.started_at,
        "silent_seconds": round(max(0.0, now - worker.beat_at), 1),
    }


def fleet(ledger: Ledger) -> list[dict[str, Any]]:
    now = ledger.now()
    return [worker_view(worker, now) for worker in read.workers(ledger)]


def batch_view(batch: Batch, account: Account) -> dict[str, Any]:
    return {
        "id": batch.id,
        "name": batch.name,
        "source": batch.source,
        "owner": batch.owner,
        "created_at": batch.created_at,
        "jobs": dict(batch.jobs),
        **asdict(account),
    }


def farm_state(ledger: Ledger, owner: str | None) -> dict[str, Any]:
    """The farm at a glance; `owner` narrows the counted jobs."""
    return {
        "jobs": overview.counts_by_state(ledger, owner=owner),
        "queues": read.queue_depths(ledger),
        "stuck": [{"queue": s.queue, "segments": s.segments, "reason": s.reason} for s in read.stuck(ledger)],
        "workers": fleet(ledger),
    }
