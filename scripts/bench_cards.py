"""The farm itself on real cards: batches through `farm submit`, hosts killed on the way, films compared bit by bit.

    python scripts/bench_cards.py --cards 0                          one card: a calm batch, then films with kills
    python scripts/bench_cards.py --cards 0,1,2,3 --films 64         a worker a card, a host killed on the way
    python scripts/bench_cards.py --cards 0 --models flashtalk,flashtalk-lean   several models share one card
    python scripts/bench_cards.py --cards 0,1 --tiny                 the same on the CPU, which shows that it works

Weights are random at the true size, so films show noise, and every figure but the picture is a film's.  Ends with 0
when nothing was lost, rendered or published twice, and every compared film has the same frames.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import shutil
import subprocess
import sys
import time
import wave
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from card_farm import CardFarm, Gauge, Kill, wait_until
from card_ways import Way, model_texts, ways
from own_farm import ROOT, Failed, ended_by_sigterm, home_folder
from sounds import Samples, read_sound, write_sound
from verdict import say

from farm.cards import list_cards
from farm.errors import FarmError
from farm.ledger import read
from farm.ledger.audit import audit
from farm.media.verify import frame_hashes, verify_film
from farm.states import ArtifactKind, Event, JobState

RATE = 16_000  # Hz of the sounds that are cut
FPS = 25
PORTRAITS = [ROOT / "examples/portraits" / name for name in ("astronaut.jpg", "grace_hopper.jpg")]
RECORDINGS = [ROOT / "examples/speech" / name for name in ("reading_en.flac", "lecture_ja.opus", "greeting_ja.mp3")]
PROMPTS = ("", "A person talks calmly to the camera.", "A person gives a lecture and moves the head.")
IDLE_SECONDS = 1.0  # a longer pause between two segments of a worker means that there was nothing to take
RESERVE_SECONDS = 20.0  # of the bench's time, for stopping the farm and for what it prints
PRIVATE = {
    # The same rows are rendered twice here, and each must be.
    "FARM_SEGMENTS__REUSE": "false",
    # The ledger of a bench need not know of every second, but a person who watches it likes to.
    "FARM_LEASE__BEAT_SECONDS": "2",
    "FARM_LIVE__SESSIONS": "0",
}


# Material


def cut_sound(path: Path, recording: Samples, begin: float, seconds: float) -> None:
    """A WAV file of `seconds` out of a recording that goes round."""
    span = round(begin * RATE) + np.arange(round(seconds * RATE))
    write_sound(path, recording[span % len(recording)], RATE)


def make_rows(options: argparse.Namespace, folder: Path, chosen: Mapping[str, Way]) -> list[dict[str, Any]]:
    """Rows of mixed lengths, sizes, portraits, prompts, priorities and seeds; the same for the same options."""
    dice = random.Random(options.seed)
    recordings = [read_sound(path, RATE) for path in RECORDINGS]
    low, high = options.seconds
    rows = []
    for number in range(options.films):
        way = list(chosen.values())[number % len(chosen)]
        # Evenly on a logarithmic scale, as lengths of speech are; both ends are among them.
        place = number / max(1, options.films - 1)
        seconds = low * (high / low) ** place
        sound = folder / f"sound{number:02}.wav"
        cut_sound(sound, dice.choice(recordings), dice.uniform(0, 60), seconds)
        row = {
            "portrait": str(way.portrait or PORTRAITS[number % len(PORTRAITS)]),
            "audio": str(sound),
            "name": f"film{number:02}",
            "model": way.model,
            "preset": way.preset,
            "size": way.sizes[number // len(PORTRAITS) % len(way.sizes)] if options.mixed else way.sizes[0],
            "seed": dice.randrange(1_000_000),
            "prompt": way.prompt or (dice.choice(PROMPTS) if "flashtalk" in way.model else ""),
            "priority": dice.choice((-5, 0, 0, 5)) if options.mixed else 0,
            **way.columns,
        }
        if options.mixed and row["preset"] == "fast" and not options.tiny and number % 4 == 3:
            row["preset"], row["steps"] = "balanced", options.steps or ""  # the same engine, exact attention
        rows.append(row)
    dice.shuffle(rows)
    return rows


def make_workers(options: argparse.Namespace, chosen: Mapping[str, Way]) -> dict[str, dict[str, Any]]:
    """Tables of workers.toml: each way on each card, and workers that prepare and assemble."""
    tables: dict[str, dict[str, Any]] = {f"cpu{n}": {} for n in range(2 if len(options.cards) > 1 else 1)}
    for card in options.cards:
        for name, way in chosen.items():
            table: dict[str, Any] = {"model": way.model}
            if way.preset:
                table["preset"] = way.preset
            table["devices"] = "cpu" if options.tiny or way.model == "preview" else f"cuda:{card}"
            if table["devices"] != "cpu" and len(chosen) > 1:
                table["share_card"] = True
            if way.settings:
                table["settings"] = dict(way.settings)
            if options.python:
                table["python_executable"] = options.python
            environment = {**way.environment, **({"OMP_NUM_THREADS": "1"} if options.tiny else {})}
            if environment:
                table["environment"] = environment
            tables[f"{name}-{card}"] = table
    return tables


# Figures


@dataclass
class Spent:
    """Where one worker's time went between the first claim and the last publication of a batch, in seconds."""

    device: float = 0.0  # the engine rendered
    opening: float = 0.0  # a film's first segment: portrait and prompt, encoder's end, seal and publication
    ending: float = 0.0  # the same of its other segments
    between: float = 0.0  # from a publication to the next claim
    idle: float = 0.0  # nothing to take
    lost: float = 0.0  # attempts that were killed
    reload: float = 0.0  # from a killed attempt to the worker's next claim
    frames: int = 0
    segments: int = 0

    @property
    def wall(self) -> float:
        parts = (self.device, self.opening, self.ending, self.between, self.idle, self.lost, self.reload)
        return sum(parts)

    @property
    def share(self) -> float:
        return self.device / self.wall if self.wall else 0.0

    @property
    def calm_share(self) -> float:
        """Without what the kills cost."""
        calm = self.wall - self.lost - self.reload
        return self.device / calm if calm else 0.0

    def plus(self, other: Spent) -> Spent:
        return Spent(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))


@dataclass
class Stretch:
    """One batch as it went."""

    name: str
    jobs: list[int]
    rows: list[dict[str, Any]]
    kills: list[Kill]
    crew: list[str]  # the workers that rendered it
    submitted: float  # seconds since 1970
    spent: dict[str, Spent] = field(default_factory=dict)  # by worker
    began: float = 0.0  # the first claim of a render segment
    ended: float = 0.0  # the last publication of one
    full_until: float = 0.0  # the first instant at which a worker had nothing left to take
    full_share: float = 0.0  # how busy all were until then
    films_done: float = 0.0
    frames: int = 0
    nvidia_smi: dict[str, float | None] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return self.ended - self.began

    @property
    def together(self) -> Spent:
        total = Spent()
        for spent in self.spent.values():
            total = total.plus(spent)
        return total


def measure(farm: CardFarm, stretch: Stretch, gauge: Gauge, cards: Sequence[str]) -> None:
    """Fill in what the ledger knows of a batch that ended."""
    tried = [(s, a) for s, a in farm.attempts(stretch.jobs) if a.ended_at is not None]
    stretch.began = min(a.started_at for _, a in tried)
    stretch.ended = max(a.ended_at or 0.0 for _, a in tried)
    jobs = [read.job(farm.ledger, job_id) for job_id in stretch.jobs]
    stretch.films_done = max(job.finished_at or 0.0 for job in jobs)
    stretch.frames = sum(job.total_frames or 0 for job in jobs)
    lasts: list[float] = []
    for name in stretch.crew:
        mine = sorted((p for p in tried if p[1].worker.partition("@")[0] == name), key=lambda pair: pair[1].started_at)
        dead_at = next((k.at for k in stretch.kills if k.what == "worker" and k.worker == name), None)
        spent, clock, was_killed = Spent(), stretch.began, False
        for segment, attempt in mine:
            assert attempt.ended_at is not None
            gap, took = attempt.started_at - clock, attempt.ended_at - attempt.started_at
            if was_killed:
                spent.reload += gap
            elif gap > IDLE_SECONDS:
                spent.idle += gap
            else:
                spent.between += gap
            was_killed = attempt.outcome != Event.SUCCEED.value
            if was_killed:
                spent.lost += took
            else:
                spent.device += attempt.device_seconds
                rest = took - attempt.device_seconds
                if segment.number == 0:
                    spent.opening += rest
                else:
                    spent.ending += rest
                spent.frames += attempt.frames
                spent.segments += 1
            clock = attempt.ended_at
        if dead_at is None:
            spent.idle += stretch.ended - clock
            lasts.append(clock)
        stretch.spent[name] = spent
    stretch.full_until = min(lasts)
    busy = sum(a.device_seconds * _part_before(stretch.full_until, a.started_at, a.ended_at or 0.0) for _, a in tried)
    full = stretch.full_until - stretch.began
    stretch.full_share = busy / (len(lasts) * full) if full else 0.0
    for card in cards:
        stretch.nvidia_smi[card] = gauge.busy_share(card, stretch.began, stretch.ended)


def _part_before(instant: float, begin: float, end: float) -> float:
    return max(0.0, min(1.0, (instant - begin) / (end - begin))) if end > begin else 0.0


def recoveries(farm: CardFarm, stretch: Stretch) -> list[dict[str, Any]]:
    """What came of each killed segment."""
    found = []
    for kill in stretch.kills:
        later = [a for s, a in farm.attempts([kill.job_id]) if s.id == kill.segment_id and a.number > kill.attempt]
        done = next((a for a in later if a.outcome == Event.SUCCEED.value and a.ended_at is not None), None)
        found.append(
            {
                "killed": f"{kill.what} of {kill.worker}",
                "segment": f"{kill.number + 1} of job {kill.job_id}",
                "went on after s": round(later[0].started_at - kill.at, 2) if later else None,
                "on": later[0].worker.partition("@")[0] if later else None,
                "published after s": round((done.ended_at or 0.0) - kill.at, 2) if done is not None else None,
            }
        )
    return found


def what_is_wrong(farm: CardFarm, stretch: Stretch) -> list[str]:
    """Sentences about films that are not what was asked for, and work that was done or published twice."""
    wrong = []
    hit = Counter(kill.segment_id for kill in stretch.kills if kill.segment_id)
    for job_id, row in zip(stretch.jobs, stretch.rows, strict=True):
        job = read.job(farm.ledger, job_id)
        if job.state is not JobState.SUCCEEDED:
            wrong.append(f"job {job_id} is {job.state}: {job.reason}")
            continue
        with wave.open(str(row["audio"])) as sound:
            seconds = sound.getnframes() / sound.getframerate()
        fps = job.fps[0] / job.fps[1]
        frames = math.ceil(round(seconds * fps, 6))
        if job.total_frames != frames:
            wrong.append(f"job {job_id} has {job.total_frames} frames where {seconds:.2f} s of sound make {frames}")
        film = read.artifact(farm.ledger, job_id, ArtifactKind.FILM)
        try:
            verify_film(Path(film.path), frames=frames, fps=job.fps, audio_seconds=seconds)
        except FarmError as error:
            wrong.append(f"the film of job {job_id}: {error}")
        segments = {segment.id: segment for segment, _ in farm.attempts([job_id])}
        published = Counter(s.id for s, a in farm.attempts([job_id]) if a.outcome == Event.SUCCEED.value)
        tried = Counter(s.id for s, _ in farm.attempts([job_id]))
        told = Counter(
            event.segment_id
            for event in read.events(farm.ledger, job_id=job_id, limit=100_000)
            if event.event == Event.SUCCEED.value
        )
        for segment in segments.values():
            where = f"segment {segment.number + 1} of job {job_id}"
            if published[segment.id] != 1 or told[segment.id] != 1:
                wrong.append(f"{where} was published {max(published[segment.id], told[segment.id])} times")
            if tried[segment.id] != 1 + hit[segment.id]:
                wrong.append(f"{where} was rendered {tried[segment.id]} times and killed {hit[segment.id]} times")
    return wrong


def compare(farm: CardFarm, one: Stretch, other: Stretch) -> tuple[list[str], int, int]:
    """Films of the same rows of two batches, frame by frame as decoded: what differs, films and frames compared."""
    wrong, frames = [], 0
    first = {row["name"]: job_id for job_id, row in zip(one.jobs, one.rows, strict=True)}
    for job_id, row in zip(other.jobs, other.rows, strict=True):
        films = read.films(farm.ledger, [first[row["name"]], job_id])
        if len(films) != 2:
            wrong.append(f"{row['name']}: a film is missing")
            continue
        calm, hit = (frame_hashes(Path(film.path)) for film in films.values())
        frames += len(calm)
        differ = sum(a != b for a, b in zip(calm, hit, strict=False)) + abs(len(calm) - len(hit))
        if differ:
            at = next((n for n, (a, b) in enumerate(zip(calm, hit, strict=False)) if a != b), min(len(calm), len(hit)))
            wrong.append(f"{row['name']}: {differ} of {len(calm)} frames differ, the first is frame {at}")
    return wrong, len(other.jobs), frames


# The run


def run_batch(
    farm: CardFarm,
    name: str,
    rows: list[dict[str, Any]],
    deadline: float,
    *,
    kills: Sequence[str] = (),
    again: bool = False,
) -> Stretch:
    """Submit these rows, kill what `kills` names one after the other, and wait for the last film."""
    submitted = time.time()
    crew = [worker for worker in farm.renderers if worker not in farm.dead]
    stretch = Stretch(name, farm.submit(name, rows, again=again), rows, [], crew, submitted)
    seconds = sum(read.job(farm.ledger, job_id).audio_seconds for job_id in stretch.jobs)
    say(f"{name}: {len(rows)} films, {seconds:.0f} s of sound")
    for what in kills:
        kill = farm.kill_mid_segment(what, stretch.jobs, {k.job_id for k in stretch.kills}, deadline)
        if kill is None:
            raise Failed(f"{name}: no segment was in its middle for the kill of a {what}; ask for longer films")
        stretch.kills.append(kill)
        say(f"{name}: killed the {what} of {kill.worker} in segment {kill.number + 1} of job {kill.job_id}")
    shown = [time.monotonic()]

    def done() -> bool:
        left = read.unfinished(farm.ledger, stretch.jobs)
        if left and time.monotonic() - shown[0] > 20:
            shown[0] = time.monotonic()
            frames = sum(read.job(farm.ledger, job_id).frames_done for job_id in stretch.jobs)
            say(f"{name}: {left} films to go, {frames} frames published")
        return not left

    wait_until(done, deadline, f"the films of batch {name}", every=0.2)
    return stretch


def show(stretch: Stretch) -> None:
    """A batch as a table."""
    total = stretch.together
    print(f"\n## {stretch.name}: {len(stretch.jobs)} films, {stretch.frames} frames, {len(stretch.kills)} kills")
    per_second = stretch.frames / stretch.seconds
    print(
        f"first claim to last publication {stretch.seconds:.1f} s: {per_second:.2f} frames/s,"
        f" {per_second / len(stretch.spent):.2f} a worker, {per_second / FPS:.2f} x realtime;"
        f" first claim {stretch.began - stretch.submitted:.1f} s after the submit,"
        f" last film {stretch.films_done - stretch.ended:.1f} s after the last publication"
    )
    words = ("device", "opening", "ending", "between", "idle", "lost", "reload")
    print(f"| worker | frames | busy % | without kills % | {' | '.join(f'{w} s' for w in words)} |")
    print("| --- |" + " --- |" * (3 + len(words)))
    for name, spent in [*stretch.spent.items(), *([("together", total)] if len(stretch.spent) > 1 else [])]:
        cells = " | ".join(f"{getattr(spent, word):.2f}" for word in words)
        print(f"| {name} | {spent.frames} | {100 * spent.share:.1f} | {100 * spent.calm_share:.1f} | {cells} |")
    if len(stretch.spent) > 1:
        full = stretch.full_until - stretch.began
        print(
            f"for the first {full:.1f} s every worker had work: {100 * stretch.full_share:.1f} % busy, kills included"
        )
    for card, share in stretch.nvidia_smi.items():
        if share is not None:
            print(f"card {card}: {100 * share:.1f} % busy by nvidia-smi")
    sys.stdout.flush()


def run(options: argparse.Namespace, home: Path, found: dict[str, Any]) -> None:
    """The bench; fills `found` as it goes, so that a failure leaves what was seen before it."""
    deadline = time.monotonic() + options.limit - RESERVE_SECONDS
    if (ready := options.ready_cache) and ready.is_dir():
        shutil.copytree(ready, home / "cache", dirs_exist_ok=True)
    chosen = ways(options, home)
    rows = make_rows(options, _folder(home / "in"), chosen)
    texts, said = model_texts(list(chosen.values()), segment_seconds=options.segment_seconds, is_tiny=options.tiny)
    say(said)
    found["portraits"] = said
    cards = [] if options.tiny else options.cards
    settings = {**PRIVATE, "FARM_SEGMENTS__FIRST_SECONDS": f"{options.first_seconds:g}"}
    if options.tiny:
        settings |= {"FARM_LEASE__TTL_SECONDS": "6", "FARM_RETRY__BASE_DELAY_SECONDS": "0.2"}
    farm = CardFarm(home, make_workers(options, chosen), texts, settings)
    try:
        with farm, Gauge(farm, cards) as gauge:
            run_on(farm, gauge, options, rows, deadline, found)
    except BaseException:
        print(farm.tails(), flush=True)
        raise


def run_on(
    farm: CardFarm,
    gauge: Gauge,
    options: argparse.Namespace,
    rows: list[dict[str, Any]],
    deadline: float,
    found: dict[str, Any],
) -> None:
    seconds = farm.await_warm(deadline)
    loaded = {name: [f"{s:.1f} s" for s in loads] for name, loads in farm.loads().items()}
    say(f"all workers are warm after {seconds:.1f} s: {loaded}")
    cards = [] if options.tiny else options.cards
    is_calm_first = len(options.cards) == 1
    kills = ["host"] * options.kills + (["worker"] if options.kill_worker else [])
    stretches: list[Stretch] = []
    wrong: list[str] = []
    found.update(warm_seconds=round(seconds, 2), wrong=wrong, batches=[])

    def end(stretch: Stretch) -> None:
        measure(farm, stretch, gauge, cards)
        show(stretch)
        stretches.append(stretch)
        wrong.extend(what_is_wrong(farm, stretch))
        found["batches"].append(_as_json(farm, stretch))

    end(run_batch(farm, "calm" if is_calm_first else "batch", rows, deadline, kills=[] if is_calm_first else kills))
    if is_calm_first and kills:
        end(run_batch(farm, "killed", rows[: options.killed_films], deadline, kills=kills, again=True))
    elif stretches[0].kills:
        hit = {kill.job_id for kill in stretches[0].kills}
        victims = [row for job_id, row in zip(stretches[0].jobs, rows, strict=True) if job_id in hit]
        end(run_batch(farm, "undisturbed", victims, deadline, again=True))
    if len(stretches) > 1:
        differ, films, frames = compare(farm, *stretches)
        wrong += differ
        found["compared"] = {"films": films, "frames": frames, "differ": len(differ)}
        say(f"{films} films were compared, {frames} frames: {len(differ)} differ")
    for stretch in stretches:
        for line in recoveries(farm, stretch):
            say(", ".join(f"{key} {value}" for key, value in line.items()))
    check_loads(farm, stretches, found, wrong)
    found["peak_gb"] = gauge.peak_gb
    say(f"peak memory in GB: {gauge.peak_gb}")
    violations = [str(violation) for violation in audit(farm.ledger, farm.settings, check_files=True)]
    wrong += violations
    say(f"the ledger's promises: {len(violations)} broken")


def check_loads(farm: CardFarm, stretches: list[Stretch], found: dict[str, Any], wrong: list[str]) -> None:
    """Each host was loaded once, and once more for each time that it was killed."""
    loads = farm.loads()
    found["loads"] = loads
    for name, seconds in loads.items():
        killed = sum(k.worker == name and k.what == "host" for stretch in stretches for k in stretch.kills)
        # A host killed when nothing was left for it may be loading still.
        if not 1 + killed - (len(farm.renderers) > 1 and killed) <= len(seconds) <= 1 + killed:
            wrong.append(f"{name} loaded its model {len(seconds)} times and its host was killed {killed} times")
        say(f"{name}: {len(seconds)} loads, {killed} kills of its host, seconds of each {seconds}")


def _as_json(farm: CardFarm, stretch: Stretch) -> dict[str, Any]:
    total = stretch.together
    return {
        "name": stretch.name,
        "films": len(stretch.jobs),
        "frames": stretch.frames,
        "seconds": round(stretch.seconds, 2),
        "frames_per_second": round(stretch.frames / stretch.seconds, 3),
        "frames_per_worker_second": round(stretch.frames / stretch.seconds / len(stretch.spent), 3),
        "times_realtime": round(stretch.frames / stretch.seconds / FPS, 3),
        "busy_share": round(total.share, 4),
        "busy_share_without_kills": round(total.calm_share, 4),
        "busy_share_while_all_had_work": round(stretch.full_share, 4),
        "all_had_work_s": round(stretch.full_until - stretch.began, 2),
        "nvidia_smi": stretch.nvidia_smi,
        "first_claim_after_submit_s": round(stretch.began - stretch.submitted, 2),
        "last_film_after_last_publication_s": round(stretch.films_done - stretch.ended, 2),
        "workers": {
            name: {**{k: round(v, 3) for k, v in asdict(spent).items()}, "share": round(spent.share, 4)}
            for name, spent in stretch.spent.items()
        },
        "kills": recoveries(farm, stretch),
    }


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cards", default="0", help="indices of the cards, such as 0,1,2,3")
    parser.add_argument("--models", default="flashtalk", help="flashtalk,flashtalk-lean,preview,flashhead,liveact")
    parser.add_argument("--preset", default="fast", help="of FlashTalk; its attention and products are the preset's")
    parser.add_argument("--steps", type=int, default=0, help="denoising steps instead of the preset's")
    parser.add_argument("--films", type=int, default=6)
    parser.add_argument("--seconds", default="15:30", help="shortest and longest film, LOW:HIGH")
    parser.add_argument("--segment-seconds", type=float, default=9.0)
    parser.add_argument("--first-seconds", type=float, default=4.5, help="of each film's first segment")
    parser.add_argument(
        "--mixed", action=argparse.BooleanOptionalAction, help="sizes and priorities; with several cards"
    )
    parser.add_argument(
        "--kills", type=int, help="hosts to kill; default: 2 on one card, 1 on several, 0 with several models"
    )
    parser.add_argument("--kill-worker", action="store_true", help="also kill a worker for good, on several cards")
    parser.add_argument("--killed-films", type=int, default=3, help="on one card: films rendered again, with kills")
    parser.add_argument("--tiny", action="store_true", help="tiny weights on the CPU; the cards are workers")
    parser.add_argument("--flashhead-repo", type=Path, help="a checkout of SoulX-FlashHead; its weights are made here")
    parser.add_argument("--liveact-repo", type=Path, help="a checkout of SoulX-LiveAct; its weights are made here")
    parser.add_argument("--lightx2v", type=Path, help="folder to import LightX2V's autoencoder from, for LiveAct")
    parser.add_argument("--compile", action="store_true", help="compile those two, as upstream does; it takes minutes")
    parser.add_argument("--python", help="interpreter of the hosts, where the engines' libraries are in another one")
    parser.add_argument("--ready-cache", type=Path, help="a cache folder of an earlier run, to begin with")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit", type=float, default=560.0, help="seconds after which the bench gives up")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--keep", type=Path, help="the farm's home, which stays")
    options = parser.parse_args()
    options.cards = options.cards.split(",")
    options.models = options.models.split(",")
    low, _, high = options.seconds.partition(":")
    options.seconds = (float(low), float(high or low))
    several = len(options.cards) > 1
    if options.mixed is None:
        options.mixed = several
    if options.kills is None:
        options.kills = 0 if len(options.models) > 1 else 1 if several else 2
    if options.kill_worker and not several:
        parser.error("--kill-worker needs another worker that goes on: name several cards")
    return options


def main() -> int:
    options = read_options()
    where = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    cards = [card.name for card in list_cards("cuda")] if not options.tiny else ["tiny weights on the CPU"]
    print(f"{where}, {len(cards)} x {', '.join(sorted(set(cards))) or 'no card'}", flush=True)
    found: dict[str, Any] = {"machine": where, "cards": cards, "options": {k: str(v) for k, v in vars(options).items()}}
    code = 1
    try:
        with ended_by_sigterm(), home_folder(options.keep) as home:
            run(options, home, found)
        for sentence in found["wrong"]:
            print(f"WRONG: {sentence}")
        say("everything is as it should be" if not found["wrong"] else f"{len(found['wrong'])} things are wrong")
        code = 1 if found["wrong"] else 0
    except (Failed, FarmError, subprocess.SubprocessError) as error:
        found["failed"] = str(error)
        print(f"FAILED: {error}", flush=True)
    finally:
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
