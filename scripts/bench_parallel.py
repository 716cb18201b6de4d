"""One film over many workers: measured here with two, and simulated to 64 with the real planner and ledger.

    .venv/bin/python scripts/bench_parallel.py              both
    .venv/bin/python scripts/bench_parallel.py --only run   one and two workers of this machine, each with one thread
    .venv/bin/python scripts/bench_parallel.py --only simulate

The run renders with the preview engine, which needs a core of its own for each worker, and with an engine whose chunk
takes a fixed time and no processor, as on a GPU.  The simulation cuts an hour of speech, puts the segments into a
ledger and lets N workers claim and publish them through the farm's own moves.  Rendering is time on a simulated clock;
the ledger's answers take the time that they took, one after the other.
"""

from __future__ import annotations

import argparse
import heapq
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from show_edit import EXAMPLES, RATE, narrations  # noqa: E402
from sounds import write_sound  # noqa: E402

from farm.batch import rows_from  # noqa: E402
from farm.config import Settings, load_settings  # noqa: E402
from farm.ledger import Ledger, crew, moves, open_ledger, read  # noqa: E402
from farm.ledger.migrate import ensure_current  # noqa: E402
from farm.ledger.values import Lease, NewArtifact  # noqa: E402
from farm.media.pauses import find_pauses  # noqa: E402
from farm.media.verify import frame_hashes  # noqa: E402
from farm.planning import Part, PlannedSegment, choose_cuts, stretches  # noqa: E402
from farm.roster import WorkerSpec  # noqa: E402
from farm.states import ArtifactKind, SegmentKind  # noqa: E402
from farm.submission import submit  # noqa: E402
from tests.system import pattern_engine  # noqa: E402
from workers.runner import make_runner  # noqa: E402
from workers.solo import at_work  # noqa: E402

FPS = 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["run", "simulate"])
    parser.add_argument("--engine", choices=["preview", "paced"], nargs="+", default=["preview", "paced"])
    parser.add_argument("--minutes", type=float, default=3.0, help="of speech for the run")
    parser.add_argument("--pace", type=float, default=0.05, help="seconds of a chunk of 5 frames of the paced engine")
    parser.add_argument("--segment-seconds", type=float, nargs="+", default=[30.0, 10.0])
    parser.add_argument("--speed", type=float, default=1.0, help="seconds of film per second of one simulated worker")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(prefix="farm-parallel-") as scratch:
        if options.only in (None, "run"):
            speech, _ = narrations(options.minutes)
            write_sound(Path(scratch) / "speech.wav", speech, RATE)
            preview = {"model": "preview", "settings": {"threads": 1}}
            paced = {"model": "pattern", "settings": {"pace": options.pace}}
            for name, spec, size in (("preview", preview, "256x256"), ("paced", paced, "64x64")):
                if name in options.engine:
                    bench_run(Path(scratch) / name, name, spec, size, Path(scratch) / "speech.wav")
        if options.only in (None, "simulate"):
            for seconds in options.segment_seconds:
                simulate(Path(scratch), seconds, options.speed)


# Measured


def bench_run(folder: Path, name: str, spec: dict[str, object], size: str, speech: Path) -> None:
    took: dict[int, float] = {}
    hashes: list[list[str]] = []
    for workers in (1, 2):
        home = folder / str(workers)
        os.environ["FARM_HOME"] = str(home)
        os.environ["PYTHONPATH"] = str(ROOT)
        pattern_engine.install(home, segment_seconds=6.0)
        settings = load_settings(room={"min_free_disk_gb": 0.0, "min_free_memory_gb": 0.0})
        ledger = open_ledger(settings.ledger)
        ensure_current(ledger)
        took[workers], film = render(settings, ledger, spec, workers, size, speech, home)
        hashes.append(list(frame_hashes(film)))
        ledger.close()
    ratio = took[1] / took[2]
    print(
        f"{name}: {len(hashes[0])} frames; one worker {took[1]:.1f} s, two workers {took[2]:.1f} s: {ratio:.2f} times"
        f" as fast; the two films are equal frame by frame: {hashes[0] == hashes[1]}",
        flush=True,
    )


class _Silent:
    def ring(self, queues: object) -> bool:
        return True


def render(
    settings: Settings, ledger: Ledger, spec: dict[str, object], workers: int, size: str, speech: Path, home: Path
) -> tuple[float, Path]:
    """Seconds from the first frame's attempt to the last one's end, with warm workers, and the film."""
    specs = [WorkerSpec(name="cpu"), *(WorkerSpec(name=f"w{n}", **spec) for n in range(workers))]  # type: ignore[arg-type]
    runners = [make_runner(ledger, settings, one) for one in specs]
    with at_work(runners):
        while sum(w.host_pid is not None for w in read.workers(ledger)) < workers:
            time.sleep(0.05)
        row = {"portrait": str(EXAMPLES / "portraits" / "grace_hopper.jpg"), "audio": str(speech), "size": size}
        row |= {"continuity": "parallel", "model": str(spec["model"])}
        done = submit(
            ledger,
            settings,
            rows_from([row]),
            base=home,
            source="bench",
            output_dir=home,
            doorbell=_Silent(),  # type: ignore[arg-type]
        )
        (job_id,) = done.intake.new_job_ids
        while read.unfinished(ledger, [job_id]):
            time.sleep(0.1)
    kinds = {s.id: s.kind for s in read.segments(ledger, job_id)}
    tried = [a for a in read.attempts(ledger, job_id) if kinds[a.segment_id] is SegmentKind.RENDER]
    seconds = max(a.ended_at or 0.0 for a in tried) - min(a.started_at for a in tried)
    return seconds, Path(read.films(ledger, [job_id])[job_id].path)


# Simulated


def simulate(folder: Path, segment_seconds: float, speed: float) -> None:
    speech, _ = narrations(60.0)
    cuts = choose_cuts(find_pauses(speech, RATE), len(speech), round(segment_seconds * RATE))
    parts = stretches(cuts, len(speech), RATE, (FPS, 1))
    lengths = np.array([part.frames / FPS for part in parts])
    print(
        f"an hour in {len(parts)} segments of {lengths.min():.0f} to {lengths.max():.0f} s, mean {lengths.mean():.0f};"
        f" a worker renders {speed:g} s of film a second"
    )
    alone = 0.0
    for workers in (1, 2, 4, 8, 16, 32, 64):
        plan = [
            PlannedSegment(p.first_frame, p.frames, False, Part(0, 1, p.rendered, 1, {"speech_gain": 1.0}))
            for p in parts
        ]
        seconds, ledger_seconds = play(folder / f"{segment_seconds:g}-{workers}.db", plan, workers, speed)
        alone = alone or seconds
        print(
            f"  {workers:3} workers: {seconds:7.1f} s, {alone / seconds:5.2f} times one worker,"
            f" {alone / seconds / workers:.2f} of ideal; the ledger answered for {ledger_seconds:.1f} s",
            flush=True,
        )


OVERHEAD_SECONDS = 0.5  # of one segment beside its frames: the encoder's start and end, the file's hash and sync


def play(database: Path, plan: Sequence[PlannedSegment], workers: int, speed: float) -> tuple[float, float]:
    """Seconds on the simulated clock until every segment is published, and those that the ledger took of them."""
    ledger = open_ledger(f"sqlite:///{database}")
    ensure_current(ledger)
    names = [f"w{n}@sim" for n in range(workers)]
    for name in ["cpu@sim", *names]:
        queue = "cpu" if name.startswith("cpu") else "preview"
        crew.say_hello(
            ledger, name=name, queue=queue, machine="sim", pid=1, incarnation=name, device="sim", info={"farm": "sim"}
        )
    job_id = _planned(ledger, plan)
    clock_of_ledger = spent = end = 0.0
    held: dict[str, Lease] = {}
    free = [(0.0, name) for name in names]
    heapq.heapify(free)
    while free:
        now, name = heapq.heappop(free)
        began = time.perf_counter()
        done = held.pop(name, None)
        if done is not None:
            moves.publish(
                ledger,
                done,
                artifacts=[NewArtifact(ArtifactKind.SEGMENT, f"/{done.segment.number}", 1, "0" * 64, {"frames": 1})],
                carry=b"",
                frames=done.segment.frames,
                device_seconds=1.0,
                engine_version="1",
            )
        lease = moves.claim(
            ledger, worker=name, queue="preview", device="sim", ttl_seconds=3600.0, warm_job=job_id if done else None
        )
        answer = time.perf_counter() - began
        spent += answer
        clock_of_ledger = max(clock_of_ledger, now) + answer  # writers wait for each other
        end = max(end, clock_of_ledger)
        if lease is not None:
            held[name] = lease
            assert lease.segment.part is not None
            seconds = lease.segment.part.frames / FPS / speed + OVERHEAD_SECONDS
            heapq.heappush(free, (clock_of_ledger + seconds, name))
    job = read.job(ledger, job_id)
    assert job.segments_done == len(plan), job
    ledger.close()
    return end, spent


def _planned(ledger: Ledger, plan: Sequence[PlannedSegment]) -> int:
    row = {"portrait": str(EXAMPLES / "portraits" / "grace_hopper.jpg"), "continuity": "parallel"}
    row |= {"audio": str(EXAMPLES / "speech" / "reading_en.flac"), "output": str(Path(ledger.url).name) + ".mp4"}
    done = submit(
        ledger,
        load_settings(),
        rows_from([row]),
        base=Path(tempfile.gettempdir()),
        source="simulation",
        doorbell=_Silent(),  # type: ignore[arg-type]
    )
    (job_id,) = done.intake.new_job_ids
    lease = moves.claim(ledger, worker="cpu@sim", queue="cpu", device="sim", ttl_seconds=600.0)
    assert lease is not None
    values = {"total_frames": sum(p.frames for p in plan), "audio_rate": RATE, "audio_samples": 1}
    made = [NewArtifact(kind, f"/{kind}", 1, "0" * 64) for kind in (ArtifactKind.PORTRAIT, ArtifactKind.DRIVING)]
    moves.publish_plan(ledger, lease, artifacts=made, job=values, plan=plan, queue="preview")
    return job_id


if __name__ == "__main__":
    main()
