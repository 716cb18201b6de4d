"""`farm jobs show`: all that the ledger knows of one job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from farm.cli.farm_context import Farm
from farm.cli.show import console, echo_json, echo_rows, json_option, length, moment, plain, times
from farm.ledger import read
from farm.ledger.progress import JobProgress, job_progress
from farm.ledger.values import Artifact, Attempt, Job, LedgerEvent, Segment
from farm.states import ArtifactKind, Event, SegmentKind


def job_as_json(job: Job) -> dict[str, Any]:
    """A job for programs: the ledger's fields, with the state that people see."""
    return {**plain(job), "state": job.shown_state, "continuity": job.continuity.value}


@click.command("show")
@click.argument("job_id", metavar="JOB", type=int)
@click.option("--history", is_flag=True, help="Also every event, such as each attempt and its end.")
@json_option
@click.pass_obj
def show_job(farm: Farm, job_id: int, history: bool, as_json: bool) -> None:
    """Show one job: its inputs, progress, segments, files and notes.

    \b
    Example:
        farm jobs show 7 --history
    """
    job = read.job(farm.ledger, job_id)
    segments = read.segments(farm.ledger, job_id)
    attempts = read.attempts(farm.ledger, job_id)
    artifacts = read.artifacts(farm.ledger, job_id)
    events = read.events(farm.ledger, job_id=job_id, limit=10_000) if history or as_json else []
    if as_json:
        echo_json(
            {
                **job_as_json(job),
                "segments": [plain(s) for s in segments],
                "attempts": [plain(a) for a in attempts],
                "artifacts": [plain(a) for a in artifacts],
                "events": [plain(e) for e in events],
            }
        )
        return
    (progress,) = job_progress(farm.ledger, [job_id])
    _say_facts(progress)
    _say_segments(segments, attempts)
    _say_files(artifacts)
    if history:
        _say_events(events, {s.id: s for s in segments})


def _say_facts(progress: JobProgress) -> None:
    job = progress.job
    facts = {
        "job": f"{job.id} (row {job.row_number} of batch {job.batch_id})",
        "name": job.name,
        "state": job.shown_state + (f": {job.reason}" if job.reason else ""),
        "doing": progress.doing,
        "portrait": job.portrait,
        "audio": f"{job.audio} ({length(job.audio_seconds)})",
        "film": job.output,
        "model": f"{job.model}, preset {job.preset}, {job.width}x{job.height}, {job.fps[0] / job.fps[1]:g} fps,"
        f" seed {job.seed}",
        "settings": ", ".join(f"{k} {v}" for k, v in job.settings.items()),
        "owner": f"{job.owner}, priority {job.priority}" + (f", due {moment(job.due)}" if job.due else ""),
        "frames": f"{progress.frames} of {job.total_frames}" if job.total_frames else "",
        "speed": f"{progress.frames_per_second:.1f} fps, {times(progress.times_real_time)} real time"
        if progress.frames_per_second
        else "",
        "submitted": moment(job.created_at),
        "finished": moment(job.finished_at),
    }
    out = console()
    for key, value in [*facts.items(), *(("note", note) for note in job.notes)]:
        if value:
            out.print(f"[dim]{key:<10}[/dim] ", end="")
            out.print(value, markup=False)


def _say_segments(segments: Sequence[Segment], attempts: Sequence[Attempt]) -> None:
    last = {a.segment_id: a for a in attempts}  # attempts are in their order, so the last of each segment stays
    published_by = {a.segment_id: a.worker for a in attempts if a.outcome == Event.SUCCEED.value}
    rows = [
        {
            "segment": _segment_name(s),
            "frames": f"{s.first_frame}-{s.first_frame + s.frames - 1}" if s.frames else "",
            "state": s.state.value,
            "attempts": s.attempt,
            "worker": s.leased_by or published_by.get(s.id, ""),
            "seconds": last[s.id].device_seconds if s.id in last else None,
            "reason": s.reason,
        }
        for s in segments
    ]
    columns = ("segment", "frames", "state", "attempts", "worker", "seconds", "reason")
    echo_rows(rows, as_json=False, columns=columns, empty="")


def _say_files(artifacts: Sequence[Artifact]) -> None:
    """The job's own files, without those of each segment."""
    files = [
        {"artifact": a.kind.value, "bytes": a.size_bytes, "path": a.path}
        for a in artifacts
        if a.kind not in (ArtifactKind.SEGMENT, ArtifactKind.THUMBNAIL)
    ]
    if files:
        echo_rows(files, as_json=False, columns=("artifact", "bytes", "path"), empty="")


def _say_events(events: Sequence[LedgerEvent], segments: Mapping[int, Segment]) -> None:
    rows = [
        {
            "at": moment(e.at),
            "event": e.event,
            "segment": _segment_name(segments[e.segment_id])
            if e.segment_id is not None and e.segment_id in segments
            else "",
            "attempt": e.attempt,
            "worker": e.worker,
            "detail": e.detail,
        }
        for e in events
    ]
    echo_rows(rows, as_json=False, columns=("at", "event", "segment", "attempt", "worker", "detail"), empty="")


def _segment_name(segment: Segment) -> str:
    return str(segment.number + 1) if segment.kind is SegmentKind.RENDER else segment.kind.value
