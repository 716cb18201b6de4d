#!/usr/bin/env python3
"""Measure how long a dead worker's segment waits until another worker has it, with the farm's own lease settings.

    scripts/bench_recovery.py --kills 40 --ledger sqlite

In each round half of the workers render a film each and the others are idle.  Those that render are killed with their
hosts, at a random moment and without a word, and stay dead until every segment they held is leased again.  The farm is
real but for its engine, which only waits.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from farm.config import load_settings  # noqa: E402
from farm.ledger import Ledger, control, read  # noqa: E402
from farm.ledger.values import Segment  # noqa: E402
from tests.conftest import private_folder  # noqa: E402
from tests.system import material  # noqa: E402
from tests.system.stage import PostgresServer, Stage, kill_tree, stage, wait_for  # noqa: E402

FILM_SECONDS = 30.0  # one segment each
PACE = 0.5  # seconds that a chunk of five frames takes: a film is under way for more than a minute


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--ledger", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    lease = load_settings().lease
    as_shipped = {f"FARM_LEASE__{name.upper()}": str(value) for name, value in lease.model_dump().items()}
    with ledger_of(options.ledger) as url, stage(ledger_url=url, **as_shipped) as farm:
        names = [f"r{n}" for n in range(options.workers)]
        roster = {name: {"model": "pattern", "settings": {"pace": PACE}} for name in names}
        farm.write_roster({"cpu0": {}, **roster}, segment_seconds=FILM_SECONDS)
        for name in ("cpu0", *names):
            farm.start_worker(name)
        make_inputs(farm)
        with contextlib.closing(farm.open()) as ledger:
            farm.wait_idle(names, 300)
            times: list[float] = []
            while len(times) < options.kills:
                farm.wait_idle(names, 120)
                times += one_round(farm, ledger, rng, min(len(names) // 2, options.kills - len(times)))
                print(f"{len(times)} of {options.kills}", file=sys.stderr, flush=True)
    times.sort()
    report = {
        "ledger": options.ledger,
        "workers": options.workers,
        "kills": len(times),
        "recovery seconds": {
            "p50": round(statistics.median(times), 1),
            "p99": round(times[min(len(times) - 1, int(0.99 * len(times)))], 1),
            "min": round(times[0], 1),
            "max": round(times[-1], 1),
        },
        "settings": lease.model_dump(),
        "goal seconds": lease.ttl_seconds + 2 * lease.sweep_seconds,
    }
    print(json.dumps(report, indent=2))
    return 0 if times[-1] <= report["goal seconds"] else 1


def make_inputs(farm: Stage) -> None:
    folder = farm.folder / "in"
    folder.mkdir()
    material.portrait(folder / "p.png")
    material.sound(folder / "a.wav", FILM_SECONDS)


def submit(farm: Stage, films: int) -> None:
    cells = {"portrait": "p.png", "audio": "a.wav", "model": "pattern", "size": "32x32"}
    rows = [{**cells, "name": f"film{n}"} for n in range(films)]
    batch = material.batch(farm.folder / "in" / "b.csv", rows)
    farm.farm("submit", batch, "-o", farm.folder / "films", "--again", "--overwrite")


def one_round(farm: Stage, ledger: Ledger, rng: random.Random, films: int) -> list[float]:
    """Kill those who render; seconds until each of their segments was leased again."""
    submit(farm, films)
    wait_for(lambda: len(rendering(ledger)) == films, 120, "workers to render")
    time.sleep(rng.uniform(0.0, 5.0))
    held: list[tuple[Segment, int, float]] = []
    for segment in rendering(ledger):
        name = str(segment.leased_by).partition("@")[0]
        kill_tree(farm.workers[name].pid)
        farm.workers[name].wait()
        held.append((segment, segment.attempt, ledger.now()))

    def taken_at(segment: Segment, attempt: int) -> float | None:
        """When the segment was leased after this attempt."""
        for event in read.events(ledger, job_id=segment.job_id):
            if event.segment_id == segment.id and event.event == "lease" and (event.attempt or 0) > attempt:
                return event.at
        return None

    def all_taken() -> bool:
        return all(taken_at(segment, attempt) for segment, attempt, _ in held)

    wait_for(all_taken, 300, "every segment to be leased again")
    times = [(taken_at(segment, attempt) or 0.0) - killed_at for segment, attempt, killed_at in held]
    for segment, _, _ in held:
        control.cancel(ledger, segment.job_id)
        farm.start_worker(str(segment.leased_by).partition("@")[0])
    return times


def rendering(ledger: Ledger) -> list[Segment]:
    return [s for s in read.running(ledger) if s.frames_now]


@contextlib.contextmanager
def ledger_of(kind: str) -> Iterator[str]:
    if kind == "sqlite":
        yield ""
        return
    with private_folder("bench-recovery-") as folder:
        server = PostgresServer(folder)
        server.start()
        try:
            yield server.make_database("farm")
        finally:
            server.stop()


if __name__ == "__main__":
    raise SystemExit(main())
