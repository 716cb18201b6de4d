"""What a night came to: the summary as text, as a page and as JSON, and how it reaches people."""

from __future__ import annotations

import html
import json
import os
import smtplib
import ssl
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from farm.artifacts import staging_name
from farm.nightly_config import CostSettings, Left, MailSettings, Night, SummarySettings

PATIENCE_SECONDS = 20.0  # for a web hook or mail server
PASSWORD_VARIABLE = "FARM_NIGHTLY_MAIL_PASSWORD"
SHOWN = 200  # lines of each list in the text; the page and the JSON have them all


@dataclass(frozen=True, slots=True)
class FilmMade:
    job: int
    name: str
    film: str
    film_seconds: float
    device_seconds: float


@dataclass(frozen=True, slots=True)
class JobFailed:
    job: int
    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class JobLeft:
    job: int
    name: str
    state: str
    share: float  # 0 to 1: how much of it is rendered
    film_seconds: float


@dataclass(frozen=True, slots=True)
class Summary:
    """One night of one nightly file, read from the ledger."""

    name: str
    night: Night
    made: Sequence[FilmMade]
    failed: Sequence[JobFailed]
    left: Sequence[JobLeft]
    problems: Sequence[Left]  # lectures that did not become jobs
    stuck: Sequence[str]  # why no worker takes what is left
    cost: CostSettings

    @property
    def device_seconds(self) -> float:
        return sum(film.device_seconds for film in self.made)

    @property
    def is_empty(self) -> bool:
        return not (self.made or self.failed or self.left or self.problems)

    @property
    def exit_code(self) -> int:
        """0 all done or nothing to do, 3 some failed, 4 work is left."""
        if self.failed or self.problems:
            return 3
        return 4 if self.left else 0

    @property
    def digest(self) -> str:
        """Equal for two summaries that tell the same news."""
        told = {
            "night": self.night.begin,
            "made": sorted(film.job for film in self.made),
            "failed": sorted([job.job, job.reason] for job in self.failed),
            "left": sorted(job.job for job in self.left),
            "problems": sorted([p.what, p.sentence] for p in self.problems),
        }
        return json.dumps(told, sort_keys=True, ensure_ascii=False)

    def headline(self) -> str:
        parts = [_count(len(self.made), "film", "films") + " made"]
        if self.failed:
            parts.append(f"{len(self.failed)} failed")
        if self.problems:
            parts.append(f"{len(self.problems)} could not be taken")
        if self.left:
            parts.append(f"{len(self.left)} left")
        return ", ".join(parts)

    def as_json(self) -> dict[str, Any]:
        shown = asdict(self)
        shown["cost"] = price(self.device_seconds, self.cost)
        return {**shown, "headline": self.headline(), "exit_code": self.exit_code}


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def span(seconds: float) -> str:
    """`75` as `1:15`, `3675` as `1:01:15`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def price(device_seconds: float, cost: CostSettings) -> str:
    """What these device-seconds cost; empty when no price is set."""
    if not cost.per_device_hour:
        return ""
    return f"{device_seconds / 3600 * cost.per_device_hour:.2f} {cost.currency}".strip()


def moment(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M")


def as_text(summary: Summary) -> str:
    """The summary for a terminal or a mail."""
    lines = [f"{summary.name}, night of {moment(summary.night.begin)}: {summary.headline()}."]
    if summary.made:
        total = sum(film.film_seconds for film in summary.made)
        paid = price(summary.device_seconds, summary.cost)
        lines += ["", f"Films: {span(total)} in {span(summary.device_seconds)} of device time{paid and ', ' + paid}."]
        lines += _some([f"  {film.film}  {span(film.film_seconds)}" for film in summary.made])
    if summary.failed:
        lines += ["", "Failed; `farm jobs retry JOB` tries one again:"]
        lines += _some([f"  job {job.job}  {job.name}: {job.reason}" for job in summary.failed])
    if summary.problems:
        lines += ["", "Could not be taken:"]
        lines += _some([f"  {problem}" for problem in summary.problems])
    if summary.left:
        lines += ["", "Left; it goes on where it stopped when the window opens again:"]
        lines += _some([f"  job {job.job}  {job.name}: {job.state}, {job.share:.0%} rendered" for job in summary.left])
        lines += [f"  {sentence}" for sentence in summary.stuck]
    return "\n".join(lines) + "\n"


def _some(lines: list[str]) -> list[str]:
    more = len(lines) - SHOWN
    return [*lines[:SHOWN], f"  … and {more} more"] if more > 0 else lines


Rows = Sequence[Sequence[str | Path]]

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .35rem .75rem .35rem 0; border-bottom: 1px solid #8884; }
td { overflow-wrap: anywhere; }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
"""


def _place(film: str) -> str | Path:
    """A path of this machine becomes a link; a place in an object store is told as it is."""
    return film if "://" in film else Path(film)


def as_page(summary: Summary) -> str:
    """The summary as one HTML file that loads nothing."""
    title = f"{summary.name}, night of {moment(summary.night.begin)}"
    parts = [f"<h1>{html.escape(title)}</h1>", f"<p>{html.escape(summary.headline())}.</p>"]
    if summary.made:
        total = sum(film.film_seconds for film in summary.made)
        paid = price(summary.device_seconds, summary.cost)
        films: Rows = [
            (f"{f.job}", f.name, _place(f.film), span(f.film_seconds), span(f.device_seconds)) for f in summary.made
        ]
        parts.append(_table("Films", ("job", "name", "film", "length", "device time"), films))
        said = f"Together {span(total)} of film in {span(summary.device_seconds)} of device time"
        parts.append(f"<p>{html.escape(said + (paid and ', ' + paid))}.</p>")
    if summary.failed:
        rows: Rows = [(f"{j.job}", j.name, j.reason) for j in summary.failed]
        parts.append(_table("Failed", ("job", "name", "reason"), rows))
    if summary.problems:
        parts.append(_table("Could not be taken", ("what", "reason"), [(p.what, p.sentence) for p in summary.problems]))
    if summary.left:
        rows = [(f"{j.job}", j.name, j.state, f"{j.share:.0%}", span(j.film_seconds)) for j in summary.left]
        parts.append(_table("Left for the next night", ("job", "name", "state", "rendered", "length"), rows))
        parts += [f"<p>{html.escape(sentence)}</p>" for sentence in summary.stuck]
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


_NUMBERS = ("job", "length", "device time", "rendered")


def _table(title: str, heads: Sequence[str], rows: Rows) -> str:
    kinds = [' class="number"' if head in _NUMBERS else "" for head in heads]
    head = "".join(f"<th{kind}>{html.escape(text)}</th>" for text, kind in zip(heads, kinds, strict=True))
    lines = [
        "<tr>" + "".join(f"<td{kind}>{_cell(cell)}</td>" for cell, kind in zip(row, kinds, strict=True)) + "</tr>"
        for row in rows
    ]
    return (
        f"<h2>{html.escape(title)}</h2>\n<table><thead><tr>{head}</tr></thead>\n<tbody>{''.join(lines)}</tbody></table>"
    )


def _cell(cell: str | Path) -> str:
    if isinstance(cell, Path):
        return f'<a href="{html.escape(cell.as_uri())}">{html.escape(str(cell))}</a>'
    return html.escape(cell)


# Telling


def tell(summary: Summary, settings: SummarySettings, *, place: Callable[[str], Path]) -> list[str]:
    """Write and send the summary where the settings say.  Returns a sentence for each way that failed.

    A summary that cannot be delivered changes no exit code: the films are there, and the ledger knows.
    """
    ways: dict[str, Callable[[], None]] = {}
    if settings.folder:
        ways["folder"] = lambda: write_files(summary, place(settings.folder))
    if settings.webhook:
        ways["web hook"] = lambda: post(summary, settings.webhook)
    if settings.mail is not None:
        mail = settings.mail
        ways["mail"] = lambda: send_mail(summary, mail)
    failed: list[str] = []
    for what, way in ways.items():
        try:
            way()
        except (OSError, smtplib.SMTPException, ValueError) as error:
            failed.append(f"the summary did not reach the {what}: {error}")
    return failed


def write_files(summary: Summary, folder: Path) -> None:
    """NAME-DATE.txt and NAME-DATE.html.  Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{summary.name}-{moment(summary.night.begin)[:10]}"
    for name, text in ((f"{stem}.txt", as_text(summary)), (f"{stem}.html", as_page(summary))):
        staged = staging_name(folder / name, 0)
        staged.write_text(text, encoding="utf-8")
        staged.replace(folder / name)


def post(summary: Summary, url: str) -> None:
    """POST {"text", "summary"} as JSON; `text` is what chat programs show.  Raises OSError."""
    body = json.dumps({"text": as_text(summary), "summary": summary.as_json()}, ensure_ascii=False).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json; charset=utf-8"})
    with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS):
        pass


def send_mail(summary: Summary, settings: MailSettings) -> None:
    """Text and page in one mail.  Raises OSError, SMTPException."""
    mail = EmailMessage()
    mail["Subject"] = f"{summary.name}: {summary.headline()}"
    mail["From"], mail["To"] = settings.sender, ", ".join(settings.to)
    # Quoted, because not every mail server passes eight bits.
    mail.set_content(as_text(summary), cte="quoted-printable")
    mail.add_alternative(as_page(summary), subtype="html", cte="quoted-printable")
    trust = ssl.create_default_context()
    if settings.security == "tls":
        server: smtplib.SMTP = smtplib.SMTP_SSL(settings.host, settings.port, timeout=PATIENCE_SECONDS, context=trust)
    else:
        server = smtplib.SMTP(settings.host, settings.port, timeout=PATIENCE_SECONDS)
    with server:
        if settings.security == "starttls":
            server.starttls(context=trust)
        if settings.user:
            server.login(settings.user, os.environ.get(PASSWORD_VARIABLE, ""))
        server.send_message(mail)
