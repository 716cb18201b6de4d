"""What an object store costs: the same small batch with a folder and with SeaweedFS on this machine, in turns.

    .venv/bin/python scripts/bench_store.py --rounds 3

Seconds are from submit to the last film with warm workers of the preview engine, fetching the films included, and what
of them the workers spent in the store (sealing, fetching).  The server shares the machine's cores with the workers.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from farm.batch import rows_from  # noqa: E402
from farm.config import Settings, StoreSettings, load_settings  # noqa: E402
from farm.ledger import open_ledger, read  # noqa: E402
from farm.ledger.migrate import ensure_current  # noqa: E402
from farm.roster import WorkerSpec  # noqa: E402
from farm.states import ArtifactKind  # noqa: E402
from farm.store import deliver, open_store  # noqa: E402
from farm.submission import submit  # noqa: E402
from tests.conftest import private_s3, s3_program  # noqa: E402
from workers.runner import make_runner  # noqa: E402
from workers.solo import at_work  # noqa: E402

FILMS = (("astronaut.jpg", "reading_en.flac"), ("grace_hopper.jpg", "greeting_ja.mp3"))


class _Silent:
    def ring(self, queues: object) -> bool:
        return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--size", default="512x512")
    options = parser.parse_args()
    program = s3_program()
    if program is None:
        sys.exit("no SeaweedFS; `scripts/setup --dev` installs it")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    found: dict[str, list[float]] = {"folder": [], "object store": []}
    with private_s3(program) as server, tempfile.TemporaryDirectory(prefix="farm-bench-store-") as scratch:
        for number in range(options.rounds):
            for kind in found:
                home = Path(scratch) / f"{number}-{kind}"
                os.environ["FARM_HOME"] = str(home)
                settings = load_settings()
                if kind == "object store":
                    keys = {"access_key": server.access_key, "secret_key": server.secret_key}
                    own = {"url": f"s3://{server.bucket}/{number}", "endpoint": server.endpoint, **keys}
                    store = StoreSettings(**settings.store.model_dump() | own)
                    settings = settings.model_copy(update={"store": store})
                found[kind].append(render(settings, kind, options.size, home))
    folder, bucket = (min(seconds) for seconds in found.values())
    print(f"object store / folder, best of {options.rounds}: {bucket / folder:.3f}")


def render(settings: Settings, kind: str, size: str, home: Path) -> float:
    home.mkdir()
    ledger = open_ledger(settings.ledger)
    ensure_current(ledger)
    store = open_store(settings)
    spent = watch(type(store))
    specs = [WorkerSpec(name="cpu"), WorkerSpec(name="render", model="preview")]
    runners = [make_runner(ledger, settings, spec) for spec in specs]
    with at_work(runners):
        while not any(worker.host_pid for worker in read.workers(ledger)):
            time.sleep(0.05)
        examples = ROOT / "examples"
        rows = [
            {"portrait": examples / "portraits" / portrait, "audio": examples / "speech" / sound, "size": size}
            for portrait, sound in FILMS
        ]
        began = time.monotonic()
        done = submit(
            ledger,
            settings,
            rows_from({key: str(value) for key, value in row.items()} for row in rows),
            base=home,
            source="bench",
            output_dir=home / "films",
            doorbell=_Silent(),  # type: ignore[arg-type]
        )
        while read.unfinished(ledger, done.intake.job_ids):
            time.sleep(0.05)
        for job in read.jobs(ledger):
            film = read.artifact(ledger, job.id, ArtifactKind.FILM)
            deliver(store, film, Path(job.output), overwrite=False)
        seconds = time.monotonic() - began
    files = [file for job in read.jobs(ledger) for file in read.artifacts(ledger, job.id)]
    megabytes = sum(file.size_bytes for file in files) / 1e6
    film_seconds = sum((job.total_frames or 0) * job.fps[1] / job.fps[0] for job in read.jobs(ledger))
    print(
        f"{kind:>12}: {seconds:6.2f} s for {film_seconds:.0f} s of film, {len(files)} files, {megabytes:.1f} MB;"
        f" {sum(spent):.2f} s in the store by the renderer and the last step; load {os.getloadavg()[0]:.1f}"
    )
    ledger.close()
    return seconds


def watch(kind: type) -> list[float]:
    """How long each seal and fetch of this process takes from now on."""
    spent: list[float] = []
    for name in ("seal", "fetch"):
        function = getattr(kind, name)
        setattr(kind, name, timed(getattr(function, "__wrapped__", function), spent))
    return spent


def timed(function: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    @wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        began = time.monotonic()
        try:
            return function(*args, **kwargs)
        finally:
            spent.append(time.monotonic() - began)

    return wrapped


if __name__ == "__main__":
    main()
