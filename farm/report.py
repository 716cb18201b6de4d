"""A batch told afterwards: one HTML page that needs nothing else, or the same as JSON or CSV."""

from __future__ import annotations

import base64
import csv
import html
import io
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from PIL import Image

from farm import __version__
from farm.config import RateSettings, Settings
from farm.errors import FileLost
from farm.ledger import Ledger, control, overview, read
from farm.ledger.overview import Span
from farm.ledger.progress import JobProgress, job_progress
from farm.ledger.values import Artifact, Batch
from farm.rates import price
from farm.states import ArtifactKind, Event, JobState, SegmentKind
from farm.store import Store, open_store

POSTER_WIDTH = 160
SHEET_WIDTH = 720
SHEETS_AT_MOST = 60  # a page with hundreds of contact sheets would not open
SPANS_AT_MOST = 3000


@dataclass(frozen=True, slots=True)
class JobLine:
    """One job of the report.  Instants are seconds since 1970-01-01 UTC."""

    job: int
    row: int
    name: str
    state: str
    reason: str | None
    film: str | None
    model: str
    preset: str
    seed: int
    width: int
    height: int
    fps: float
    frames: int | None
    film_seconds: float
    waited_seconds: float | None  # from submit to the first attempt
    took_seconds: float | None  # from the first attempt to the end
    device_seconds: float
    device_seconds_per_minute: float | None
    cost: float  # in the money of the configured rates
    times_real_time: float | None
    attempts: int
    failed_attempts: int
    notes: str
    portrait: str
    audio: str


@dataclass(frozen=True, slots=True)
class BatchReport:
    batch: Batch
    jobs: tuple[JobLine, ...]
    spans: tuple[Span, ...]
    pictures: dict[int, tuple[Artifact | None, Artifact | None]]  # by job: poster and contact sheet
    store: Store
    written_at: float
    currency: str = ""

    @property
    def film_seconds(self) -> float:
        return sum(line.film_seconds for line in self.jobs if line.state == JobState.SUCCEEDED)

    @property
    def cost(self) -> float:
        return sum(line.cost for line in self.jobs)

    @property
    def device_seconds(self) -> float:
        return sum(line.device_seconds for line in self.jobs)


def gather(ledger: Ledger, batch_id: int, settings: Settings) -> BatchReport:
    """Everything that the report says.  Raises NotFound."""
    rates = settings.rates
    batch = read.batch(ledger, batch_id)
    job_ids = control.job_ids_of_batch(ledger, batch_id)
    costs = overview.costs(ledger, job_ids)
    films = read.films(ledger, job_ids)
    lines = tuple(
        _line(p, costs.get(p.job.id), films[p.job.id].path if p.job.id in films else None, rates)
        for p in job_progress(ledger, job_ids)
    )
    now = ledger.now()
    spans = overview.timeline(ledger, since=batch.created_at, until=now, job_ids=job_ids, limit=SPANS_AT_MOST)
    pictures = {job_id: _pictures(ledger, job_id) for job_id in films}
    return BatchReport(batch, lines, tuple(spans), pictures, open_store(settings), now, rates.currency)


def _line(progress: JobProgress, cost: overview.Cost | None, film: str | None, rates: RateSettings) -> JobLine:
    job = progress.job
    seconds = job.total_frames * job.fps[1] / job.fps[0] if job.total_frames else job.audio_seconds
    spent = cost.device_seconds if cost is not None else 0.0
    return JobLine(
        job=job.id,
        row=job.row_number,
        name=job.name,
        state=job.shown_state,
        reason=job.reason,
        film=film,
        model=job.model,
        preset=job.preset,
        seed=job.seed,
        width=job.width,
        height=job.height,
        fps=job.fps[0] / job.fps[1],
        frames=job.total_frames,
        film_seconds=round(seconds, 3),
        waited_seconds=None if job.started_at is None else round(job.started_at - job.created_at, 3),
        took_seconds=(
            None if job.started_at is None or job.finished_at is None else round(job.finished_at - job.started_at, 3)
        ),
        device_seconds=round(spent, 3),
        device_seconds_per_minute=round(spent * 60.0 / seconds, 3) if spent and seconds else None,
        cost=round(price(cost.by_device, rates), 4) if cost is not None else 0.0,
        times_real_time=round(seconds / spent, 3) if spent and job.state is JobState.SUCCEEDED else None,
        attempts=cost.attempts if cost is not None else 0,
        failed_attempts=cost.failed_attempts if cost is not None else 0,
        notes=" ".join(job.notes),
        portrait=job.portrait,
        audio=job.audio,
    )


def _pictures(ledger: Ledger, job_id: int) -> tuple[Artifact | None, Artifact | None]:
    found = {artifact.kind: artifact for artifact in read.artifacts(ledger, job_id)}
    return found.get(ArtifactKind.POSTER), found.get(ArtifactKind.SHEET)


def as_json(report: BatchReport) -> dict[str, Any]:
    return {
        "schema": "farm.batch-report/1",
        "farm": __version__,
        "batch": asdict(report.batch),
        "film_seconds": round(report.film_seconds, 3),
        "device_seconds": round(report.device_seconds, 3),
        "cost": round(report.cost, 4),
        "currency": report.currency,
        "jobs": [asdict(line) for line in report.jobs],
        "attempts": [asdict(span) for span in report.spans],
    }


def as_csv(report: BatchReport) -> str:
    """One line for each job, with the columns of JobLine."""
    out = io.StringIO()
    names = [each.name for each in fields(JobLine)]
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    for line in report.jobs:
        writer.writerow({name: _harmless(value) for name, value in asdict(line).items()})
    return out.getvalue()


def _harmless(value: Any) -> Any:
    """A text that a spreadsheet would run as a formula gets a quote before it."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


# The page


_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def as_html(report: BatchReport) -> str:
    """One page with its pictures in it; it opens without a network and prints."""
    title = html.escape(report.batch.name)
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(report.written_at))
    done = [line for line in report.jobs if line.state == JobState.SUCCEEDED]
    bad = [line for line in report.jobs if line.state in (JobState.FAILED, JobState.CANCELLED)]
    parts = [
        f"<h1>{title}</h1><p class=soft>Batch {report.batch.id} of {html.escape(report.batch.owner)},"
        f" from {html.escape(report.batch.source)}; told on {when} by farm {__version__}</p>",
        _figures(report, len(done), len(bad)),
        _failures(bad),
        _section("Films", _table(report)),
        _section("Who rendered what", _timeline(report.spans)),
        _section("Speed, times real time", _bars([(line.name, line.times_real_time) for line in done], "×")),
        _section(
            "Cost, device-seconds per minute of film",
            _bars([(line.name, line.device_seconds_per_minute) for line in done], " s"),
        ),
        _section("Contact sheets", _sheets(report, done)),
    ]
    body = "".join(part for part in parts if part)
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f'<meta http-equiv=Content-Security-Policy content="{_POLICY}">'
        f"<title>{title}</title><style>{_STYLE}</style><main>{body}</main></html>\n"
    )


_STYLE = Path(__file__).with_name("report.css").read_text(encoding="utf-8")


def _section(title: str, content: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>{content}</section>" if content else ""


def _figures(report: BatchReport, done: int, bad: int) -> str:
    ended = [s.ended_at for s in report.spans if s.ended_at is not None]
    wall = max(ended) - report.batch.created_at if ended else None
    minutes = report.film_seconds / 60.0
    shown = [
        (f"{done} of {len(report.jobs)}", "films are ready"),
        (str(bad), "failed or were cancelled"),
        (clock(report.film_seconds), "of film"),
        (clock(wall), "from submit to the last frame"),
        (clock(report.device_seconds), "of device time"),
        (_money(report.cost, report) if report.cost else "", "by the configured rates" + _of_budget(report)),
        (f"{report.device_seconds / minutes:.0f} s" if minutes else "", "of device per minute of film"),
    ]
    return "<div class=figures>" + "".join(f"<div><b>{a}</b>{b}</div>" for a, b in shown if a) + "</div>"


def _money(amount: float, report: BatchReport) -> str:
    return html.escape(f"{amount:.2f} {report.currency}".strip())


def _of_budget(report: BatchReport) -> str:
    return f", of a budget of {_money(report.batch.budget, report)}" if report.batch.budget is not None else ""


def _failures(bad: Sequence[JobLine]) -> str:
    said = "".join(
        f"<div class=alarm><b>{html.escape(line.name)}</b> (row {line.row}):"
        f" {html.escape(line.reason or line.state)}</div>"
        for line in bad
    )
    return _section("What went wrong", said)


def _table(report: BatchReport) -> str:
    numbers = ("Length", "Frames", "Device", "Cost", "Speed", "Waited", "Attempts")
    head = "<th></th><th>Film</th><th>State</th>" + "".join(f"<th class=n>{word}</th>" for word in numbers)
    rows = "".join(
        f"<tr><td>{_picture(report, line.job, 0, POSTER_WIDTH, '')}</td>"
        f"<td>{html.escape(line.name)}<div class=soft>{html.escape(f'{line.model}, {line.preset}')}</div></td>"
        f"<td class={line.state}>{line.state}</td><td class=n>{clock(line.film_seconds)}</td>"
        f"<td class=n>{line.frames or ''}</td><td class=n>{clock(line.device_seconds)}</td>"
        f"<td class=n>{_money(line.cost, report) if line.cost else ''}</td>"
        f"<td class=n>{f'{line.times_real_time:.2f}×' if line.times_real_time else ''}</td>"
        f"<td class=n>{clock(line.waited_seconds)}</td>"
        f"<td class=n>{line.attempts}{f' ({line.failed_attempts} failed)' if line.failed_attempts else ''}</td></tr>"
        for line in report.jobs
    )
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"


def _timeline(spans: Sequence[Span]) -> str:
    if not spans:
        return ""
    begin = min(span.started_at for span in spans)
    end = max(max(span.ended_at or span.started_at for span in spans), begin + 1.0)
    workers = sorted({span.worker for span in spans})
    width, left, row = 1060, 150, 26
    height = len(workers) * row + 22

    def x(at: float) -> float:
        return left + (at - begin) / (end - begin) * (width - left - 6)

    marks = [
        f"<line class=grid x1={x(at):.1f} x2={x(at):.1f} y1=0 y2={height - 18} />"
        f"<text x={x(at):.1f} y={height - 4} text-anchor={'end' if i == 5 else 'middle'}>{clock(at - begin)}</text>"
        for i in range(6)
        for at in [begin + (end - begin) * i / 5]
    ]
    names = [f"<text x=0 y={i * row + 17}>{html.escape(name[:24])}</text>" for i, name in enumerate(workers)]
    bars = [
        f"<rect class={_kind(span)} x={x(span.started_at):.1f} y={workers.index(span.worker) * row + 4}"
        f" width={max(1.5, x(span.ended_at or end) - x(span.started_at) - 0.5):.1f} height={row - 8} rx=3>"
        f"<title>{html.escape(_label(span))}</title></rect>"
        for span in spans
    ]
    return (
        f"<div class=scroll><svg viewBox='0 0 {width} {height}' role=img aria-label='Attempts by worker'>"
        f"{''.join([*marks, *names, *bars])}</svg></div>"
        "<p class=soft>grey prepare, blue render, green assemble, red failed or given back</p>"
    )


def _kind(span: Span) -> str:
    return span.kind.value if span.outcome in (None, Event.SUCCEED.value) else "gone"


def _label(span: Span) -> str:
    what = f"segment {span.number + 1}" if span.kind is SegmentKind.RENDER else span.kind.value
    took = clock(span.ended_at - span.started_at) if span.ended_at is not None else "runs"
    return f"{span.job_name}, {what}, {took}" + (f": {span.reason}" if span.reason else "")


def _bars(values: Iterable[tuple[str, float | None]], unit: str) -> str:
    known = [(name, value) for name, value in values if value]
    if not known:
        return ""
    row, left, width = 22, 240, 1060
    scale = (width - left - 80) / max(value for _, value in known)
    bars = "".join(
        f"<text x=0 y={i * row + 15}>{html.escape(name[:36])}</text>"
        f"<rect class=render x={left} y={i * row + 3} width={value * scale:.1f} height={row - 7} rx=3 />"
        f"<text x={left + value * scale + 6:.1f} y={i * row + 15}>{value:.1f}{unit}</text>"
        for i, (name, value) in enumerate(known)
    )
    return f"<div class=scroll><svg viewBox='0 0 {width} {len(known) * row + 4}' role=img>{bars}</svg></div>"


def _sheets(report: BatchReport, done: Sequence[JobLine]) -> str:
    shown = [
        f"<figure><figcaption>{html.escape(line.name)}</figcaption>{picture}</figure>"
        for line in done[:SHEETS_AT_MOST]
        if (picture := _picture(report, line.job, 1, SHEET_WIDTH, f"Twelve frames of {line.name}"))
    ]
    left_out = f"<p class=soft>… and {len(done) - SHEETS_AT_MOST} more</p>" if len(done) > SHEETS_AT_MOST else ""
    return "".join(shown) + left_out


def _picture(report: BatchReport, job_id: int, which: int, width: int, text: str) -> str:
    """An <img> with the picture in it; nothing where the file is gone."""
    picture = report.pictures.get(job_id, (None, None))[which]
    if picture is None:
        return ""
    try:
        path = report.store.fetch(picture)
    except FileLost:
        return ""
    with Image.open(path) as image:
        image.thumbnail((width, 4 * width))
        out = io.BytesIO()
        image.convert("RGB").save(out, "JPEG", quality=72)
    data = base64.b64encode(out.getvalue()).decode("ascii")
    return f'<img src="data:image/jpeg;base64,{data}" alt="{html.escape(text)}">'


def clock(seconds: float | None) -> str:
    """`75` as `1:15`, `3675` as `1:01:15`."""
    if seconds is None:
        return ""
    hours, rest = divmod(round(seconds), 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes}:{left:02d}"
