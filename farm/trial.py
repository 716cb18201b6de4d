"""`farm doctor --deep`: a tiny film through every worker of this machine, from row to verified MP4.

A queue decides who renders, not the one who submits.  So each round puts as many urgent films into a queue as it has
workers that were not seen yet; who took which is read from the attempts, and whoever got none is tried again.
"""

from __future__ import annotations

import contextlib
import shutil
import time
import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from farm.batch import rows_from
from farm.checkup import Finding
from farm.config import Settings
from farm.errors import FarmError
from farm.ledger import Ledger, control, read
from farm.ledger.presence import is_alive
from farm.ledger.values import Attempt
from farm.roster import WorkerSpec
from farm.states import Event
from farm.submission import submit

PORTRAIT = Path(__file__).with_name("trial_portrait.jpg")
OWNER = "doctor"
ROUNDS = 3
LOOK_SECONDS = 0.2
RATE = 16_000
SECONDS = 1.0


def render_everywhere(
    ledger: Ledger, settings: Settings, specs: Sequence[WorkerSpec], *, patience_seconds: float
) -> list[Finding]:
    """Render through each of `specs`, for `patience_seconds` at most; one finding for each.

    Films and jobs stay, in the folder `trials` of FARM_HOME and under the owner "doctor": the ledger promises what it
    published, and a film is worth a look when a device is new.
    """
    deadline = time.monotonic() + patience_seconds
    seen: dict[str, Attempt] = {}
    failed: dict[str, Attempt] = {}
    stuck: dict[str, str] = {}  # by queue
    folder = settings.home / "trials" / time.strftime("%Y%m%d-%H%M%S")
    folder.mkdir(parents=True, exist_ok=True)
    portrait = shutil.copy(PORTRAIT, folder / "portrait.jpg")
    sound = _say_something(folder / "sound.wav")
    for number in range(ROUNDS):
        missing = [spec for spec in specs if spec.full_name not in seen and spec.full_name not in failed]
        renderers = [spec for spec in missing if spec.renders]
        if not missing or time.monotonic() > deadline:
            break
        # A machine whose only missing worker assembles still needs a film for it to assemble.
        cells = [_cells(spec, portrait, sound, number) for spec in renderers or specs if spec.renders]
        _one_round(ledger, settings, cells, folder, deadline, seen, failed, stuck)
    return [
        _finding(ledger, spec, seen.get(spec.full_name), failed.get(spec.full_name), stuck.get(spec.queue))
        for spec in specs
    ]


def _cells(spec: WorkerSpec, portrait: str | Path, sound: Path, number: int) -> dict[str, object]:
    preset = {"preset": spec.preset} if spec.preset else {}
    return {
        "portrait": str(portrait),
        "audio": str(sound),
        "model": spec.model,
        "name": f"trial {number} {spec.name}",
        "priority": 100,
        "tags": "doctor",
        **preset,
    }


def _one_round(
    ledger: Ledger,
    settings: Settings,
    cells: Sequence[dict[str, object]],
    folder: Path,
    deadline: float,
    seen: dict[str, Attempt],
    failed: dict[str, Attempt],
    stuck: dict[str, str],
) -> None:
    everywhere = settings.model_copy(update={"input_roots": [], "output_roots": []})  # the files are our own
    done = submit(
        ledger, everywhere, rows_from(cells), base=folder, source="farm doctor --deep", owner=OWNER, again=True
    )
    ids = done.intake.new_job_ids
    try:
        while read.unfinished(ledger, ids) and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)
    finally:
        stuck |= {item.queue: item.reason for item in read.stuck(ledger)}
        for job_id in ids:
            with contextlib.suppress(FarmError):
                control.cancel(ledger, job_id, reason="the trial took too long")
    for job_id in ids:
        for attempt in read.attempts(ledger, job_id):
            if attempt.outcome == Event.SUCCEED.value:
                seen[attempt.worker] = attempt
            elif attempt.strike or attempt.failure in ("input", "encoder"):
                failed[attempt.worker] = attempt


def _finding(
    ledger: Ledger, spec: WorkerSpec, attempt: Attempt | None, failed: Attempt | None, stuck: str | None
) -> Finding:
    """What the trial of one worker came to: its attempt that succeeded, one that failed, why its queue is stuck."""
    what = f"film by {spec.name}"
    if failed is not None and attempt is None:
        reason = failed.reason or "it failed without a word"
        return Finding(what, "wrong", reason, f"`farm logs {failed.job_id} --raw` tells more")
    if stuck is not None and attempt is None:
        return Finding(what, "wrong", stuck)
    if attempt is not None and spec.renders:
        speed = attempt.frames / attempt.device_seconds if attempt.device_seconds else 0.0
        return Finding(what, "well", f"{attempt.frames} frames on {attempt.device}, {speed:.1f} a second")
    if attempt is not None:
        return Finding(what, "well", "prepared or assembled")
    worker = next((w for w in read.workers(ledger) if w.name == spec.full_name), None)
    if worker is None or not is_alive(worker, ledger.now()):
        return Finding(what, "wrong", "it does not run", "`farm up` starts it")
    told = f"; it says: {worker.reason}" if worker.reason else ""
    return Finding(
        what, "mind", f"it is {worker.state} and got no film: others of its queue took them, or time was over{told}"
    )


def _say_something(path: Path) -> Path:
    """A second of a voice-like hum with two syllables."""
    time_axis = np.arange(round(SECONDS * RATE)) / RATE
    hum = sum(np.sin(2 * np.pi * 140 * k * time_axis) / k for k in range(1, 12))
    loudness = np.clip(np.sin(2 * np.pi * 2 * time_axis), 0, 1)
    samples = (np.asarray(0.15 * hum * loudness) * 32767).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples.tobytes())
    return path
