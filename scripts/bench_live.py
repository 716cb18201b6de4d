#!/usr/bin/env python3
"""How quickly a live session begins and how many frames a second it sustains: WebSocket, server, worker, engine.

    python scripts/bench_live.py                                                    preview, at its own size
    python scripts/bench_live.py --model soulx-flashtalk-14b fast@448x768 fast:4@320x576           on a card
    python scripts/bench_live.py --model soulx-flashtalk-14b --tiny fast@32x32      the same on the CPU
    python scripts/bench_live.py --url ws://client:KEY@host:8000 @512x512           a farm that serves already

A session is named PRESET:STEPS@SIZE; what is left out is the model's own.  Without --url a farm is started for the
bench, with a worker for each way that the presets load the model; FlashTalk's weights are random, at the true size.

Each session is held twice on one connection.  First as fast as the worker can: the next message of sound is sent while
the one before it is still answered.  `frames_per_second` is over all pictures after the first answer.  Then paced, as
a person speaks: `late_ms` is how long after the last sound of a message was spoken its pictures were there, which is
what a player must hold back.  `init_ms` is the time from the first message to `init_ok`, `first_picture_ms` that from
the beginning of the sound.  `worker_ms` is what the worker says a message cost it: rendering, and packing pictures.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import platform
import re
import statistics
import struct
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from card_farm import CardFarm, change_model, toml_of, wait_until
from card_ways import Way, flashtalk_way, model_texts
from own_farm import ROOT, Failed, ended_by_sigterm, home_folder
from verdict import say
from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect

from farm.cards import list_cards
from farm.errors import FarmError
from farm.ledger.keys import Scope, add_key
from farm.media.binary import find_ffmpeg
from farm.models import load_model

FLASHTALK = "soulx-flashtalk-14b"
RATE = 16_000  # Hz of the sound that is sent
IN_FLIGHT = 2  # messages that wait for their answers when the worker is asked for all it can
STOP_SECONDS = 20.0  # of the bench's time, for stopping the farm
SERVES = re.compile(r"page is at (http://[^\s;/]+)")
CLOSED = re.compile(r"live session ended: closed after \d+ frames, ([0-9.]+) s of rendering and ([0-9.]+) s of packing")


@dataclass(frozen=True)
class Wish:
    """One session that is asked for."""

    preset: str  # empty: the model's own
    steps: int  # 0: the preset's
    size: str  # empty: the model's own

    @classmethod
    def read(cls, text: str) -> Wish:
        """PRESET:STEPS@SIZE."""
        found = re.fullmatch(r"([\w-]*)(?::(\d+))?(?:@(\d+x\d+))?", text)
        if found is None:
            raise argparse.ArgumentTypeError(f"{text!r} is not PRESET:STEPS@SIZE, such as fast:4@448x768")
        return cls(found[1], int(found[2] or 0), found[3] or "")

    @property
    def asked_preset(self) -> str:
        """What the address names: the bench's model file has a preset for every number of steps."""
        return f"{self.preset}-{self.steps}-steps" if self.steps else self.preset


# The farm


def models_file(text: str, wishes: Sequence[Wish], is_tiny: bool) -> str:
    """A model's file that also has the wished sizes, and a preset for each wished number of steps.  Raises Failed."""
    model = tomllib.loads(text)
    sizes = [[int(side) for side in wish.size.split("x")] for wish in wishes if wish.size]
    if choices := model["size"].get("choices"):
        text = change_model(text, choices=json.dumps([*choices, *(size for size in sizes if size not in choices)]))
    for wish in {wish.asked_preset: wish for wish in wishes if wish.steps}.values():
        if wish.preset not in model["presets"]:
            raise Failed(f"{wish.preset}:{wish.steps}: model {model['id']} has no such preset to take steps for")
        preset = model["presets"][wish.preset]
        preset["settings"] = {**preset["settings"], "steps": wish.steps}
        text += f"\n[presets.{wish.asked_preset}]\n"
        text += "".join(f"{key} = {toml_of(value)}\n" for key, value in preset.items())
    if is_tiny:  # no CPU multiplies in fp8
        text = text.replace('attention = "fp8"', 'attention = "exact"')
    return text


@contextlib.contextmanager
def a_farm(options: argparse.Namespace, deadline: float, found: dict[str, Any]) -> Iterator[tuple[CardFarm, str]]:
    """A farm with a server and warm workers, and the address of its WebSocket with a key in it.  Raises Failed."""
    model = load_model(options.model)
    with home_folder(options.keep) as home:
        tables: dict[str, dict[str, Any]] = {}
        chosen: list[Way] = []
        for wish in options.sessions:
            preset = wish.preset or model.default_preset
            name = f"live-{model.queue_for(preset)}"
            if name in tables:
                continue
            if model.id == FLASHTALK:
                way = flashtalk_way(preset, home / "cache", is_tiny=options.tiny)
            else:
                way = Way(model.id, preset)
            on_cpu = options.tiny or "cpu" in model.device_kinds
            tables[name] = {"model": model.id, "preset": preset, "devices": "cpu" if on_cpu else f"cuda:{options.card}"}
            if way.settings:
                tables[name]["settings"] = dict(way.settings)
            chosen.append(way)
        if len(tables) > 1:
            for table in tables.values():
                table["share_card"] = table["devices"] != "cpu"
        texts, found["portraits"] = model_texts(chosen, segment_seconds=30.0, is_tiny=options.tiny)
        texts = {name: models_file(text, options.sessions, options.tiny) for name, text in texts.items()}
        farm = CardFarm(home, tables, texts, {"FARM_SERVER__PORT": "0"}, "--serve")
        try:
            with farm:
                seconds = farm.await_warm(deadline)
                found["loads"] = farm.loads()
                say(f"all workers are warm after {seconds:.1f} s, their engines loaded in {found['loads']}")
                wait_until(lambda: bool(SERVES.search(farm.log("serve.log"))), deadline, "the server")
                key, _ = add_key(farm.ledger, name="bench", owner="bench", scope=Scope.SUBMIT)
                (url,) = SERVES.findall(farm.log("serve.log"))[-1:]
                yield farm, url.replace("http://", f"ws://bench:{key}@")
        except BaseException:
            print(farm.tails(), flush=True)
            raise


# The client


@dataclass(frozen=True)
class Answer:
    """To one message of sound."""

    spoken: float  # when the last of its sound was, as time.perf_counter counts
    at: float
    frames: int
    size: int  # bytes


class Client:
    """One connection; no answer is waited for longer than to the bench's end."""

    def __init__(self, socket: ClientConnection, deadline: float) -> None:
        self.socket = socket
        self._deadline = deadline

    def hear(self, seconds: float | None = None) -> str | bytes | None:
        """The next message; None when none came within `seconds`.  Raises Failed."""
        left = self._deadline - time.monotonic()
        try:
            return self.socket.recv(timeout=max(0.0, left if seconds is None else min(left, seconds)))
        except TimeoutError:
            if time.monotonic() < self._deadline:
                return None
            raise Failed("waited for an answer until the bench's time was over") from None

    def ask(self, **message: Any) -> dict[str, Any]:
        """Raises Failed for an answer that is an error."""
        self.socket.send(json.dumps(message))
        told: dict[str, Any] = json.loads(self.hear() or "")
        if told["type"] == "error":
            raise Failed(f"{message['type']}: {told['message']}")
        return told

    def begin(self, portrait: Path) -> tuple[dict[str, Any], float]:
        """`init_ok`, and the milliseconds until it came."""
        image = base64.b64encode(portrait.read_bytes()).decode()
        began = time.perf_counter()
        told = self.ask(type="init", ref_image=image, seed=7)
        return told, 1000 * (time.perf_counter() - began)

    def speak(self, sound: bytes, bytes_each: int, *, is_paced: bool) -> tuple[float, list[Answer]]:
        """Send all that fills whole messages; when it began, and the answers."""
        messages = [sound[at : at + bytes_each] for at in range(0, len(sound) - bytes_each + 1, bytes_each)]
        seconds_each = bytes_each / 2 / RATE
        began = time.perf_counter()
        spoken: list[float] = []
        answers: list[Answer] = []
        while len(answers) < len(messages):
            now = time.perf_counter()
            to_come = began + (len(spoken) + 1) * seconds_each - now  # until the next message has been spoken
            is_due = to_come <= 0 if is_paced else len(spoken) - len(answers) < IN_FLIGHT
            if len(spoken) < len(messages) and is_due:
                spoken.append(now + to_come if is_paced else now)
                self.socket.send(b"AUDI" + messages[len(spoken) - 1])
                continue
            heard = self.hear(to_come if is_paced and len(spoken) < len(messages) else None)
            if isinstance(heard, str):
                raise Failed(f"the session ended: {json.loads(heard)['message']}")
            if heard is not None:
                (count,) = struct.unpack_from("<I", heard, 4)
                answers.append(Answer(spoken[len(answers)], time.perf_counter(), count, len(heard)))
        return began, answers


# Figures


def spread(values: Sequence[float]) -> dict[str, float]:
    """Milliseconds of seconds."""
    ordered = sorted(values)
    return {
        "p50": round(1000 * statistics.median(ordered), 1),
        "p95": round(1000 * ordered[round(0.95 * (len(ordered) - 1))], 1),
        "max": round(1000 * ordered[-1], 1),
    }


def figures_of(began: float, answers: Sequence[Answer], told: dict[str, Any], *, is_paced: bool) -> dict[str, Any]:
    shown = [answer for answer in answers if answer.frames]  # who looks ahead has no picture for the first message
    if len(shown) < 2:
        raise Failed(f"only {len(shown)} answers had pictures; ask for more --seconds")
    frames = sum(answer.frames for answer in shown)
    made: dict[str, Any] = {
        "messages": len(answers),
        "frames": frames,
        "first_picture_ms": round(1000 * (shown[0].at - began), 1),
        "kb_per_frame": round(sum(answer.size for answer in shown) / frames / 1000, 1),
    }
    if is_paced:
        late = [answer.at - answer.spoken for answer in shown]
        made["late_ms"] = spread(late)
        made["later_than_a_message"] = sum(seconds > told["chunk_samples"] / RATE for seconds in late)
        return made
    per_second = (frames - shown[0].frames) / (shown[-1].at - shown[0].at)
    made["frames_per_second"] = round(per_second, 2)
    made["times_real_time"] = round(per_second / told["fps"], 3)
    made["message_ms"] = spread([b.at - a.at for a, b in pairwise(shown)])
    return made


def hold(wish: Wish, address: str, farm: CardFarm | None, options: argparse.Namespace, deadline: float) -> Any:
    """One session as fast as it can be and one at the speed of speech.  Raises Failed."""
    query = {"model": options.model, "preset": wish.asked_preset, "size": wish.size}
    url = f"{address}/v1/avatar/flashtalk?" + "&".join(f"{name}={value}" for name, value in query.items() if value)
    ended = len(costs(farm))
    with connect(url, max_size=None, open_timeout=30, compression=None, ping_interval=None, proxy=None) as socket:
        client = Client(socket, deadline)
        told, first = client.begin(options.portrait)
        each = 2 * told["chunk_samples"]
        sound = decode_speech(options.speech, options.seconds)
        fast = figures_of(*client.speak(sound, each, is_paced=False), told, is_paced=False)
        _, again = client.begin(options.portrait)
        paced = figures_of(*client.speak(sound, each, is_paced=True), told, is_paced=True)
        client.ask(type="close")
    if farm is not None:
        wait_until(lambda: len(costs(farm)) == ended + 2, deadline, "the worker to say what the sessions cost")
        for made, seconds in zip((fast, paced), costs(farm)[ended:], strict=True):
            shares = zip(("rendering", "packing"), seconds, strict=True)
            made["worker_ms"] = {name: round(1000 * s / made["messages"], 1) for name, s in shares}
    return {
        "preset": wish.asked_preset or "the model's",
        "size": f"{told['width']}x{told['height']}",
        "message_ms": round(1000 * each / 2 / RATE),
        "frames_a_message": told["slice_len"],
        "init_ms": {"first": round(first, 1), "again": round(again, 1)},
        "as_fast_as_it_can": fast,
        "paced": paced,
    }


def costs(farm: CardFarm | None) -> list[tuple[float, ...]]:
    """Seconds of rendering and of packing of the sessions that were closed, as the workers' logs tell them."""
    names = farm.renderers if farm is not None else []
    return [tuple(map(float, pair)) for name in names for pair in CLOSED.findall(farm.log(f"worker-{name}.log"))]


def decode_speech(source: Path, seconds: float) -> bytes:
    """16 bit mono at 16 kHz, repeated to the asked length."""
    argv = [str(find_ffmpeg()), "-v", "error", "-i", str(source), "-ac", "1", "-ar", str(RATE), "-f", "s16le", "-"]
    once = subprocess.run(argv, capture_output=True, check=True).stdout
    return (once * (int(seconds * 2 * RATE) // len(once) + 1))[: int(seconds * 2 * RATE)]


def show(held: dict[str, Any]) -> None:
    fast, paced, init = held["as_fast_as_it_can"], held["paced"], held["init_ms"]
    say(
        f"{held['preset']} {held['size']}: init {init['first']:.0f} and {init['again']:.0f} ms, first picture after"
        f" {fast['first_picture_ms']:.0f} and {paced['first_picture_ms']:.0f} ms, {fast['frames_per_second']} frames/s,"
        f" {fast['times_real_time']} x real time, {held['frames_a_message']} frames in {fast['message_ms']} ms;"
        f" paced {held['message_ms']} ms each: there after {paced['late_ms']} ms,"
        f" {paced['later_than_a_message']} of {paced['messages']} later than a message is long;"
        f" {paced['kb_per_frame']} kB a picture; worker {fast.get('worker_ms')}, paced {paced.get('worker_ms')} ms"
    )


# The run


def run(options: argparse.Namespace, found: dict[str, Any]) -> None:
    """The bench; fills `found` as it goes, so that a failure leaves what was seen before it."""
    deadline = time.monotonic() + options.seconds_in_all - STOP_SECONDS
    there = contextlib.nullcontext((None, options.url)) if options.url else a_farm(options, deadline, found)
    with there as (farm, address):
        for wish in options.sessions:
            try:
                held = hold(wish, address, farm, options, deadline)
            except (Failed, WebSocketException) as error:
                found["failed"] = f"{wish.asked_preset}@{wish.size}: {error}"
                if time.monotonic() > deadline:
                    raise
                print(f"FAILED: {found['failed']}\n{farm.tails() if farm is not None else ''}", flush=True)
                continue  # the next may be served
            found["sessions"].append(held)
            show(held)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sessions", nargs="*", type=Wish.read, default=[Wish("", 0, "")], metavar="PRESET:STEPS@SIZE")
    parser.add_argument("--model", default="preview")
    parser.add_argument("--card", default="0", help="index of the card, for a model that needs one")
    parser.add_argument("--tiny", action="store_true", help="FlashTalk with tiny weights on the CPU")
    parser.add_argument("--seconds", type=float, default=15.0, help="of sound in each session")
    parser.add_argument("--portrait", type=Path, default=ROOT / "examples/portraits/astronaut.jpg")
    parser.add_argument("--speech", type=Path, default=ROOT / "examples/speech/reading_en.flac")
    parser.add_argument("--url", default="", help="of a farm that serves already")
    parser.add_argument("--seconds-in-all", type=float, default=560.0, help="after which the bench gives up")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--keep", type=Path, help="the farm's home, which stays")
    options = parser.parse_args()
    if options.url and any(wish.steps for wish in options.sessions):
        parser.error("a farm that serves already has its own steps in each preset: leave out :STEPS")
    return options


def main() -> int:
    options = read_options()
    cards = [card.name for card in list_cards("cuda")]
    where = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    found: dict[str, Any] = {"machine": where, "cards": cards, "model": options.model, "sessions": []}
    found["weights"] = "tiny" if options.tiny else "random" if options.model == FLASHTALK and not options.url else ""
    print(f"{where}, cards: {', '.join(cards) or 'none'}", flush=True)
    try:
        with ended_by_sigterm():
            run(options, found)
    except (Failed, FarmError, OSError, WebSocketException, subprocess.SubprocessError) as error:
        found.setdefault("failed", str(error))
        print(f"FAILED: {error}", flush=True)
    finally:
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 1 if "failed" in found else 0


if __name__ == "__main__":
    sys.exit(main())
