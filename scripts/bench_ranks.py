"""FlashTalk on several cards: one group that renders one film against as many workers of one card with a film each.

`bench_flashtalk.py --world-size N` runs this.  Hosts are started as a worker starts them, so what is measured has gone
through the launcher, the group, the wire and the encoder's pipe.  Weights are random; the two chunks that follow the
first frame are not counted.  Without cards it runs at a tiny size on the CPU, which shows that it works and no speed.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from farm.cards import list_cards
from farm.devices import DeviceSet
from workers.engines.flashtalk.geometry import NEW_FRAMES
from workers.host.frames import read_frames
from workers.host.parent import Host, HostSpec

PUBLISHED = "published for 8 H800: 870 ms a chunk, 32 frames/s, 4.00 frames per card-second"
SAMPLE_SECONDS = 0.5
UNCOUNTED = 2


@dataclass(frozen=True)
class Figures:
    """One way to use `cards` cards."""

    way: str
    cards: int
    chunk_ms: float  # of one film
    frames_per_second: float  # of all films together
    frames_per_card_second: float
    first_frame_s: float  # from handing a film to a warm host
    load_s: float
    peak_gb: dict[str, float]  # of each card while it renders, or of each rank's process on the CPU
    kind: str


class Peak:
    """The largest memory that each card, or each rank, was seen to use."""

    def __init__(self, kind: str, hosts: list[Host]) -> None:
        self.kind = kind
        self.hosts = hosts
        self.seen: dict[str, float] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            for name, gigabytes in self._look().items():
                self.seen[name] = max(self.seen.get(name, 0.0), round(gigabytes, 3))
            if self._over.wait(SAMPLE_SECONDS):
                return

    def _look(self) -> dict[str, float]:
        if self.kind != "cpu":
            used = {id_ for host in self.hosts for id_ in host.spec.devices.ids}
            return {card.index: card.used_mb * 2**20 / 1e9 for card in list_cards(self.kind) if card.index in used}
        found = {}
        for number, host in enumerate(self.hosts):
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(host.pid)
                ranks = process.children() if host.spec.ranks > 1 else [process]
                for rank, one in enumerate(ranks):
                    found[f"host {number} rank {rank}"] = one.memory_info().rss / 1e9
        return found


def render(host: Host, film: dict[str, Any], chunks: int) -> tuple[float, list[float]]:
    """One film on a warm host: seconds to its first frame, and those between its later chunks."""
    began, marks = time.monotonic(), []
    read_frames(
        host,
        film,
        first_frame=0,
        frames=NEW_FRAMES * (chunks + UNCOUNTED),
        take=lambda block: None,
        on_progress=lambda progress: marks.append(time.monotonic()),
    )
    return marks[0] - began, [b - a for a, b in itertools.pairwise(marks[1:])]


def measure(way: str, hosts: list[Host], films: list[dict[str, Any]], chunks: int) -> Figures:
    """Load all hosts at once, then give each its film at once."""
    done: list[tuple[float, list[float]]] = []
    errors: list[BaseException] = []
    loaded = threading.Barrier(len(hosts) + 1)
    kind, cards = hosts[0].spec.devices.kind, sum(host.spec.ranks for host in hosts)

    def run(host: Host, film: dict[str, Any]) -> None:
        """A host dies with the thread that started it, so one thread sees it through."""
        try:
            host.start()
            loaded.wait()
            done.append(render(host, film, chunks))
        except BaseException as error:
            errors.append(error)
            loaded.abort()

    began = time.monotonic()
    threads = [threading.Thread(target=run, args=pair) for pair in zip(hosts, films, strict=True)]
    try:
        for thread in threads:
            thread.start()
        with contextlib.suppress(threading.BrokenBarrierError):
            loaded.wait()
        load_seconds = time.monotonic() - began
        with Peak(kind, hosts) as peak:
            for thread in threads:
                thread.join()
    finally:
        for host in hosts:
            host.close()
    if errors:
        raise next((error for error in errors if not isinstance(error, threading.BrokenBarrierError)), errors[0])
    chunk = [statistics.median(intervals) for _, intervals in done]
    speed = sum(NEW_FRAMES / seconds for seconds in chunk)
    first = max(first for first, _ in done)
    return Figures(way, cards, 1e3 * max(chunk), speed, speed / cards, first, load_seconds, peak.seen, kind)


def bench_ranks(
    size: int,
    *,
    kind: str,
    cards: list[str],
    pixels: tuple[int, int],
    load: dict[str, Any],
    job: dict[str, Any],
    chunks: int,
) -> list[Figures]:
    """A group of the first `size` of these cards, and as many workers of one card."""
    settings = {"weights": "random", "device": kind, "architecture": "tiny" if kind == "cpu" else "14b", **load}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        film = make_film(folder, pixels, job, chunks)

        def host(label: str, ids: tuple[str, ...], ranks: int) -> Host:
            return Host(
                HostSpec(
                    engine_module="workers.engines.flashtalk",
                    engine_settings={**settings, "cache": str(folder / "cache")},
                    devices=DeviceSet(kind, ids if kind != "cpu" else ()),
                    log_file=folder / f"{label}.log",
                    ranks=ranks,
                    holder="a benchmark",
                )
            )

        numbers = tuple(cards[:size])
        found = [measure("one group", [host("group", numbers, size)], [film], chunks)]
        if size > 1:
            single = [host(f"single{n}", (n,), 1) for n in numbers]
            films = [{**film, "seed": n} for n in range(size)]
            found.append(measure("single workers", single, films, chunks))
        return found


def make_film(folder: Path, pixels: tuple[int, int], job: dict[str, Any], chunks: int) -> dict[str, Any]:
    """A portrait of noise and speech of noise, as `prepare` leaves them."""
    from PIL import Image

    draw = np.random.Generator(np.random.Philox(key=3))
    small = Image.fromarray(draw.integers(0, 255, (24, 14, 3), dtype=np.uint8))
    small.resize(pixels, Image.Resampling.BICUBIC).save(folder / "portrait.png")
    frames = NEW_FRAMES * (chunks + UNCOUNTED)
    (0.1 * draw.standard_normal(frames * 640)).astype("<f4").tofile(folder / "speech.f32")
    return {
        "portrait": str(folder / "portrait.png"),
        "audio": str(folder / "speech.f32"),
        "total_frames": frames,
        "width": pixels[0],
        "height": pixels[1],
        "fps": [25, 1],
        "prompt": "",
        "seed": 9999,
        "settings": job,
        "facts": {},
    }


def show(found: list[Figures]) -> None:
    """A table, then the group against the workers and against what was published."""
    print("| way | cards | chunk ms | frames/s | per card-second | first frame s | load s | peak GB of each |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for f in found:
        peak = ", ".join(f"{gigabytes:.2f}" for gigabytes in f.peak_gb.values())
        print(
            f"| {f.way} | {f.cards} | {f.chunk_ms:.0f} | {f.frames_per_second:.2f} | {f.frames_per_card_second:.2f}"
            f" | {f.first_frame_s:.2f} | {f.load_s:.1f} | {peak} |"
        )
    for group, single in itertools.pairwise(found):
        if group.cards == single.cards and (group.way, single.way) == ("one group", "single workers"):
            sooner = single.chunk_ms / group.chunk_ms
            more = single.frames_per_second / group.frames_per_second
            print(
                f"{group.cards} cards: the group is {sooner:.2f} times as fast for one film; single workers make"
                f" {more:.2f} times the frames"
            )
    if any(f.kind == "cpu" for f in found):
        print("tiny weights on the CPU: these figures say nothing about cards")
    print(PUBLISHED, flush=True)


def as_json(found: list[Figures]) -> list[dict[str, Any]]:
    return [asdict(figures) for figures in found]
