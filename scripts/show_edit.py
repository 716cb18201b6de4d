"""One sentence of a narration is changed: what the film of it costs, before and after.  `scripts/demo_edit` runs this.

The narration is made of the sentences of the example recordings in a shuffled order, at 44.1 kHz.  The edit replaces a
sentence in the middle by another one, so everything behind it begins earlier or later by no round number of anything.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from bench_farm import wait_for  # noqa: E402
from own_farm import farm_up  # noqa: E402
from sounds import Samples, read_sound, write_sound  # noqa: E402

from farm.batch import rows_from  # noqa: E402
from farm.config import Settings  # noqa: E402
from farm.ledger import Ledger, moves, read  # noqa: E402
from farm.ledger.audit import audit  # noqa: E402
from farm.media.pauses import find_pauses  # noqa: E402
from farm.media.verify import frame_hashes  # noqa: E402
from farm.states import SegmentKind  # noqa: E402
from farm.submission import submit  # noqa: E402

RATE = 44_100
EXAMPLES = ROOT / "examples"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--size", default="256x256")
    parser.add_argument("--films", type=Path, default=Path("films/demo-edit"))
    parser.add_argument("--home", type=Path, help="keep the farm there; the same words go on where a stop came between")
    parser.add_argument("--check", action="store_true", help="render the edited film anew, too, and compare its frames")
    options = parser.parse_args()
    options.films.mkdir(parents=True, exist_ok=True)
    before, after = narrations(options.minutes)
    write_sound(options.films / "before.wav", before, RATE)
    write_sound(options.films / "after.wav", after, RATE)
    print(
        f"a narration of {len(before) / RATE:.1f} s; in the middle a sentence is replaced,"
        f" and what follows moves by {(len(after) - len(before)) / RATE:+.3f} s"
    )
    with tempfile.TemporaryDirectory(prefix="farm-edit-") as scratch:
        with farm_up(options.home or Path(scratch) / "home") as (settings, ledger):
            for name in ("before", "after", "after again, renamed"):
                show(settings, ledger, options, name)
            broken = audit(ledger, settings, check_files=True)
            print(f"the ledger keeps its promises: {not broken}")
        if options.check:
            with farm_up(Path(scratch) / "anew") as (settings, ledger):
                show(settings, ledger, options, "after", film="anew")
            films = [options.films / f"{name}.mp4" for name in ("after", "anew")]
            same = list(frame_hashes(films[0])) == list(frame_hashes(films[1]))
            print(f"frames equal those of a film that was rendered as a whole: {same}")


def show(settings: Settings, ledger: Ledger, options: argparse.Namespace, name: str, film: str | None = None) -> None:
    """Submit one film, wait for it, and print a line about what it cost."""
    row = {
        "portrait": str(EXAMPLES / "portraits" / "grace_hopper.jpg"),
        "audio": str((options.films / f"{name.split()[0]}.wav").absolute()),
        "size": options.size,
        "continuity": "parallel",
        "name": film or name,
    }
    began = time.time()
    done = submit(
        ledger,
        settings,
        rows_from([row]),
        base=ROOT,
        source="demo_edit",
        output_dir=options.films.absolute(),
        overwrite=True,
        look_ahead=True,
    )
    for line in done.forecasts:
        print(f"  submit says: {line}", flush=True)
    (job_id,) = done.intake.job_ids
    wait_for(ledger, job_id)
    seconds = (read.job(ledger, job_id).finished_at or 0.0) - (
        began if done.intake.new_job_ids else _start(ledger, job_id)
    )
    numbers = {s.id: s for s in read.segments(ledger, job_id) if s.kind is SegmentKind.RENDER}
    tried = [a for a in read.attempts(ledger, job_id) if a.segment_id in numbers]
    rendered = [a for a in tried if a.device != moves.REUSED]
    print(
        f"  {film or name:<21} {seconds:6.1f} s from submit to film; {len(numbers)} segments,"
        f" {len(numbers) - len(rendered)} used again, {len(rendered)} rendered in"
        f" {sum(a.device_seconds for a in rendered):.1f} s of the engine",
        flush=True,
    )


def _start(ledger: Ledger, job_id: int) -> float:
    return read.job(ledger, job_id).created_at


def narrations(minutes: float) -> tuple[Samples, Samples]:
    """The narration, and the same with another sentence in its middle."""
    sentences = [s for path in sorted((EXAMPLES / "speech").iterdir()) for s in split(read_sound(path, RATE))]
    dice = random.Random(7)
    order: list[Samples] = []
    while sum(map(len, order)) < minutes * 60 * RATE:
        order += dice.sample(sentences, len(sentences))
    while sum(map(len, order[:-1])) > minutes * 60 * RATE:
        order.pop()
    middle = len(order) // 2
    other = next(s for s in sentences if s is not order[middle] and len(s) != len(order[middle]))
    return np.concatenate(order), np.concatenate([*order[:middle], other, *order[middle + 1 :]])


def split(sound: Samples) -> list[Samples]:
    cuts = [pause.at for pause in find_pauses(sound, RATE) if pause.length > 0.45 * RATE]
    return [part for part in np.split(sound, cuts) if len(part) > RATE]


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
