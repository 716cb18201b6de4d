#!/usr/bin/env python3
"""How quickly a live session begins, and how many frames a second it sustains, through the whole path.

    python scripts/bench_live.py [--seconds 20] [--size 512x512] [--model preview] [--url ws://client:KEY@host:8000]

Without --url a server and a worker are started for the bench, in a home of their own.  A client of the FlashTalk
protocol sends speech as fast as it is answered and prints one JSON object: `init` is the time from the first message to
`init_ok`, `first_frame` that from the first sound to the first picture, both in milliseconds; `frames_per_second` is
over all messages that brought pictures.  `paced` is the same session at the speed of speech: how long after its sound
was sent each message was answered.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import platform
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from websockets.sync.client import ClientConnection, connect  # noqa: E402

from farm.media.binary import find_ffmpeg  # noqa: E402
from tests.farm_process import FarmProcess, served, workers  # noqa: E402

PATIENCE = 600.0


def decode_speech(source: Path, seconds: float) -> bytes:
    """16 bit mono at 16 kHz, repeated to the asked length."""
    argv = [str(find_ffmpeg()), "-v", "error", "-i", str(source), "-ac", "1", "-ar", "16000", "-f", "s16le", "-"]
    once = subprocess.run(argv, capture_output=True, check=True).stdout
    return (once * (int(seconds * 32000) // len(once) + 1))[: int(seconds * 32000)]


@contextlib.contextmanager
def a_farm() -> Iterator[str]:
    """A server and a preview worker; the address of its WebSocket with a key in it."""
    with tempfile.TemporaryDirectory(prefix="bench-live-") as folder:
        home = Path(folder)
        with served(home) as farm, workers(home):
            wait_for_worker(farm)
            yield farm.url.replace("http://", f"ws://bench:{farm.key}@")


def wait_for_worker(farm: FarmProcess) -> None:
    with farm.client() as client:
        while not any(
            worker["queue"] == "preview" and worker["state"] == "idle"
            for worker in client.get("/v1/farm").json()["workers"]
        ):
            time.sleep(0.2)


def begin(socket: ClientConnection, portrait: Path) -> tuple[dict[str, Any], float]:
    began = time.perf_counter()
    image = base64.b64encode(portrait.read_bytes()).decode()
    socket.send(json.dumps({"type": "init", "ref_image": image, "seed": 7}))
    told = json.loads(socket.recv(timeout=PATIENCE))
    if told["type"] != "init_ok":
        raise SystemExit(f"init: {told['message']}")
    return told, (time.perf_counter() - began) * 1000


def speak(socket: ClientConnection, told: dict[str, Any], sound: bytes, paced: bool) -> dict[str, Any]:
    """One session's figures."""
    size, fps = 2 * told["chunk_samples"], told["fps"]
    slice_seconds = told["chunk_samples"] / 16_000
    frames = total_bytes = 0
    first = None
    answers: list[float] = []
    start = time.perf_counter()
    for number, at in enumerate(range(0, len(sound) - size + 1, size)):
        if paced:  # a slice can be sent when it has been spoken
            time.sleep(max(0.0, start + (number + 1) * slice_seconds - time.perf_counter()))
        sent = time.perf_counter()
        socket.send(b"AUDI" + sound[at : at + size])
        answer = socket.recv(timeout=PATIENCE)
        if isinstance(answer, str):
            raise SystemExit(answer)
        (count,) = struct.unpack_from("<I", answer, 4)
        if count:
            first = first if first is not None else time.perf_counter() - start
            answers.append(time.perf_counter() - sent)
            frames += count
            total_bytes += len(answer)
    answers.sort()
    figures = {
        "first_frame_ms": round(1000 * (first or 0.0), 1),
        "answer_ms": {
            "median": round(1000 * statistics.median(answers), 1),
            "p95": round(1000 * answers[int(0.95 * (len(answers) - 1))], 1),
            "worst": round(1000 * answers[-1], 1),
        },
        "frames": frames,
        "kb_per_frame": round(total_bytes / frames / 1000, 1),
    }
    if not paced:
        figures["frames_per_second"] = round(frames / sum(answers), 1)
        figures["times_real_time"] = round(frames / sum(answers) / fps, 2)
    else:
        figures["late_answers"] = sum(answer > slice_seconds for answer in answers)
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="", help="of a farm that serves already")
    parser.add_argument("--model", default="preview")
    parser.add_argument("--size", default="512x512")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--portrait", type=Path, default=ROOT / "examples/portraits/astronaut.jpg")
    parser.add_argument("--speech", type=Path, default=ROOT / "examples/speech/reading_en.flac")
    given = parser.parse_args()
    sound = decode_speech(given.speech, given.seconds)
    with contextlib.nullcontext(given.url) if given.url else a_farm() as address:
        url = f"{address}/v1/avatar/flashtalk?model={given.model}&size={given.size}"
        with connect(url, max_size=50 << 20, open_timeout=30) as socket:
            told, cold = begin(socket, given.portrait)
            quick = speak(socket, told, sound, paced=False)
            _, warm = begin(socket, given.portrait)
            paced = speak(socket, told, sound, paced=True)
    report = {
        "model": given.model,
        "size": given.size,
        "slice_ms": round(told["chunk_samples"] / 16),
        "init_ms": {"first": round(cold, 1), "again": round(warm, 1)},
        "as_fast_as_answered": quick,
        "paced": paced,
        "machine": f"{platform.processor() or platform.machine()}, Python {platform.python_version()}",
    }
    print(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
