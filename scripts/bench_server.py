#!/usr/bin/env python3
"""What people who watch cost a render: films of one farm in turn without and with clients of its server, one run.

    .venv/bin/python scripts/bench_server.py                      500 clients, two films without and two with them
    .venv/bin/python scripts/bench_server.py --clients 100 --films 1 --seconds 30
    .venv/bin/python scripts/bench_server.py --set FARM_SERVER__SCHEDULING=normal

Half of the clients ask for the job's record every two seconds, half listen to its events; each has a connection of its
own.  They run in one process, which stands for other machines: on Linux it gets a core only while nobody else wants it
(SCHED_IDLE).  What they answer for is therefore told apart: their CPU time is no part of the server's, and their times
contain their own waiting for a core.  What the network costs is the server's: on the loopback the kernel receives a
message in the time of who sent it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import uvloop

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from own_farm import farm_up  # noqa: E402

from farm import processes  # noqa: E402
from farm.batch import rows_from  # noqa: E402
from farm.config import Settings  # noqa: E402
from farm.ledger import Ledger, read  # noqa: E402
from farm.ledger.keys import Scope, add_key  # noqa: E402
from farm.media.binary import find_ffmpeg  # noqa: E402
from farm.states import FINISHED, JobState, SegmentKind  # noqa: E402
from farm.submission import submit  # noqa: E402

PORTRAIT = ROOT / "examples/portraits/astronaut.jpg"
SPEECH = ROOT / "examples/speech/reading_en.flac"
POLL_SECONDS = 2.0
KEYS = 20


@dataclass(frozen=True)
class Film:
    frames: int
    frames_per_second: float
    wall_seconds: float
    server_cpu: float  # seconds
    render_cpu: float  # of the workers, their hosts and encoders
    clients: dict[str, float]


def main() -> None:
    if sys.argv[1:2] == ["--be-clients"]:
        uvloop.run(Clients(json.loads(sys.argv[2])).run())
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--films", type=int, default=2, help="films without clients, and as many with them")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of each film")
    parser.add_argument("--size", default="512x512")
    parser.add_argument("--set", nargs="+", default=[], metavar="FARM_…=VALUE", help="settings of the farm to compare")
    options = parser.parse_args()
    more = dict(word.split("=", 1) for word in options.set)
    cores = os.cpu_count() or 1
    print(f"{platform.machine()}, {cores} cores, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}")
    with (
        tempfile.TemporaryDirectory(prefix="farm-bench-") as scratch,
        served_farm(Path(scratch), more) as (settings, ledger),
    ):
        speech = make_speech(Path(scratch), options.seconds)
        keys = [add_key(ledger, name=f"client {n}", owner=f"o{n}", scope=Scope.ADMIN)[0] for n in range(KEYS)]
        render(settings, ledger, speech, options.size, 0, [], 0)  # what is slow only once
        found: dict[int, list[Film]] = {0: [], options.clients: []}
        for number in range(options.films):
            for clients in found:
                film = render(settings, ledger, speech, options.size, 1 + 2 * number + bool(clients), keys, clients)
                found[clients].append(film)
                tell(film, clients, cores)
    alone, watched = (statistics.mean(f.frames_per_second for f in films) for films in found.values())
    print(f"\n{alone:.1f} fps without, {watched:.1f} fps with {options.clients} clients: {watched / alone:.3f}")
    films = found[options.clients]
    wall = sum(film.wall_seconds for film in films)
    server, theirs = sum(f.server_cpu for f in films) / wall, sum(f.clients["cpu"] for f in films) / wall
    messages = sum(f.clients["answers"] + f.clients["events"] for f in films)
    print(
        f"while they watched, the server took {server:.3f} of one core, {server / cores:.3f} of the machine"
        f" ({server * wall / messages * 1e6:.0f} µs for each answer and event), the clients {theirs / cores:.3f}"
    )


def tell(film: Film, clients: int, cores: int) -> None:
    wall = film.wall_seconds
    line = f"{clients:4d} clients: {film.frames_per_second:6.1f} fps, {film.render_cpu / film.frames * 1e3:.1f} ms of"
    line += f" CPU a frame; CPU in cores: render {film.render_cpu / wall:.2f},"
    line += f" server {film.server_cpu / wall:.3f}"
    if clients:
        told = film.clients
        line += f", clients {told['cpu'] / wall:.3f}; {told['answers'] / wall:.0f} answers/s,"
        line += f" p50 {told['p50'] * 1e3:.0f} ms, p99 {told['p99'] * 1e3:.0f} ms;"
        line += (
            f" {told['events'] / wall:.0f} events/s to {told['listening']:.0f} listeners; {told['errors']:.0f} errors"
        )
    print(line, flush=True)


# One film


def render(
    settings: Settings, ledger: Ledger, speech: Path, size: str, seed: int, keys: list[str], clients: int
) -> Film:
    """Render one film from submit to its end, watched by so many clients."""
    watching = start_clients(settings, keys, clients) if clients else None
    cells = {"portrait": str(PORTRAIT), "audio": str(speech), "seed": seed, "size": size, "output": f"{seed}.mp4"}
    done = submit(ledger, settings, rows_from([cells]), base=settings.home, source="bench", name="bench", owner="o0")
    job_id = done.intake.job_ids[0]
    if watching is not None:
        look(watching, job_id)
    before, began = cpu_seconds(settings), time.monotonic()
    while (job := read.job(ledger, job_id)).state not in FINISHED:
        time.sleep(0.2)
    wall, after = time.monotonic() - began, cpu_seconds(settings)
    told = stop_clients(watching) if watching is not None else {}
    if job.state is not JobState.SUCCEEDED or job.total_frames is None:
        raise SystemExit(f"the film failed: {job.reason}")
    kinds = {segment.id: segment.kind for segment in read.segments(ledger, job_id)}
    rendered = [a for a in read.attempts(ledger, job_id) if kinds[a.segment_id] is SegmentKind.RENDER]
    seconds = max(a.ended_at or 0.0 for a in rendered) - min(a.started_at for a in rendered)
    server = after["serve"] - before["serve"]
    workers = sum(after.values()) - sum(before.values()) - server
    return Film(job.total_frames, job.total_frames / seconds, wall, server, workers, told)


def cpu_seconds(settings: Settings) -> dict[str, float]:
    """CPU time that each of the farm's processes has used so far, with its children, those that ended included."""
    used: dict[str, float] = {}
    for running in processes.find_all(settings.run_dir):
        if running.name == "supervisor":
            continue
        root = psutil.Process(running.pid)
        used[running.name] = 0.0
        for process in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                used[running.name] += times.user + times.system + times.children_user + times.children_system
    return used


# Clients


def start_clients(settings: Settings, keys: list[str], count: int) -> subprocess.Popen[str]:
    """Clients that are ready, so that their start costs no film; `look` tells them what to watch."""
    log = (settings.logs_dir / "serve.log").read_text()
    told = {"url": re.findall(r"page is at (http://\S+)", log)[-1], "keys": keys, "count": count}
    argv = [sys.executable, __file__, "--be-clients", json.dumps(told)]
    pipe = subprocess.PIPE
    watching = subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True, preexec_fn=be_elsewhere)
    assert watching.stdout is not None and watching.stdout.readline() == "ready\n"
    return watching


def look(watching: subprocess.Popen[str], job_id: int) -> None:
    assert watching.stdin is not None
    watching.stdin.write(f"{job_id}\n")
    watching.stdin.flush()


def be_elsewhere() -> None:
    """Clients stand for other machines: they interrupt nobody here, and go on when nobody else wants the core."""
    os.nice(19)
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def stop_clients(watching: subprocess.Popen[str]) -> dict[str, float]:
    watching.send_signal(signal.SIGTERM)
    said, _ = watching.communicate(timeout=60)
    told: dict[str, float] = json.loads(said)
    return told


class Clients:
    """Many clients in one process, over plain sockets: an HTTP library would cost more than the server."""

    def __init__(self, told: dict[str, object]) -> None:
        address = urlsplit(str(told["url"]).rstrip(";"))
        self.host, self.port = str(address.hostname), int(address.port or 80)
        self.job, self.count = 0, int(str(told["count"]))
        self.keys: list[str] = told["keys"]  # type: ignore[assignment]
        self.times: list[float] = []
        self.events = self.listening = self.errors = 0

    async def run(self) -> None:
        done = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, done.set)
        print("ready", flush=True)
        self.job = int(sys.stdin.readline())
        before = psutil.Process().cpu_times()
        tasks = [asyncio.create_task(self._live(number)) for number in range(self.count)]
        await done.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        times = sorted(self.times) or [0.0]
        used = psutil.Process().cpu_times()
        print(
            json.dumps(
                {
                    "cpu": used.user + used.system - before.user - before.system,
                    "answers": len(self.times),
                    "p50": times[len(times) // 2],
                    "p99": times[int(len(times) * 0.99)],
                    "events": self.events,
                    "listening": self.listening,
                    "errors": self.errors,
                }
            )
        )

    async def _live(self, number: int) -> None:
        await asyncio.sleep(POLL_SECONDS * number / self.count)  # people do not come all at once
        key = self.keys[number % len(self.keys)]
        try:
            reader, writer = await asyncio.open_connection(self.host, self.port)
            if number % 2:
                await self._listen(reader, writer, key)
            else:
                await self._poll(reader, writer, key)
        except (OSError, ValueError, asyncio.IncompleteReadError):
            self.errors += 1

    def _ask(self, writer: asyncio.StreamWriter, path: str, key: str) -> None:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {self.host}\r\nx-api-key: {key}\r\n\r\n".encode())

    async def _poll(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: str) -> None:
        while True:
            began = time.perf_counter()
            self._ask(writer, f"/v1/jobs/{self.job}", key)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(re.search(rb"content-length: (\d+)", head)[1])  # type: ignore[index]
            await reader.readexactly(length)
            self.times.append(time.perf_counter() - began)
            self.errors += not head.startswith(b"HTTP/1.1 200")
            await asyncio.sleep(POLL_SECONDS)

    async def _listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: str) -> None:
        self._ask(writer, f"/v1/jobs/{self.job}/events", key)
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise ValueError(head)
        self.listening += 1
        while block := await reader.read(65536):
            self.events += block.count(b"event: ")


# The farm


@contextlib.contextmanager
def served_farm(folder: Path, more: dict[str, str]) -> Iterator[tuple[Settings, Ledger]]:
    """A farm with the shipped workers and its server, as `farm up --serve` starts it; only `more` settings reach it."""
    for name in [name for name in os.environ if name.startswith("FARM_") and name != "FARM_FFMPEG"]:
        del os.environ[name]
    own = {
        "FARM_SERVER__PORT": "0",
        "FARM_SERVER__REQUESTS_PER_SECOND": "100000",
        "FARM_ROOM__MIN_FREE_MEMORY_GB": "0",
    }
    with farm_up(folder / "home", "--serve", **own, **more) as (settings, ledger):
        log = settings.logs_dir / "serve.log"
        while not log.exists() or "page is at" not in log.read_text():
            time.sleep(0.1)
        yield settings, ledger


def make_speech(folder: Path, seconds: float) -> Path:
    speech = folder / "speech.wav"
    argv = [find_ffmpeg(), "-v", "error", "-stream_loop", "-1", "-i", SPEECH, "-t", str(seconds), "-ac", "1", speech]
    subprocess.run(argv, check=True)
    return speech


if __name__ == "__main__":
    main()
