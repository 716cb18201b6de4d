"""Examining one machine's part of the farm: each finding with what to do about it."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable

import psutil

from farm import processes, redis_server
from farm.cards import Card, CardToolFailed, holder_of, list_cards
from farm.checkup import Finding, examine_engine_files, examine_worker
from farm.config import Settings, settings_files
from farm.errors import FarmError
from farm.ledger import migrate, open_ledger, read
from farm.media.binary import find_ffmpeg, version
from farm.media.encode import why_not_encoding
from farm.media.profile import SOFTWARE
from farm.roster import WorkerSpec, load_roster, roster_file
from farm.sight import why_blind
from farm.store import open_store

PROBE_SECONDS = 60.0
STORE_SECONDS = 5.0  # how long an object store that does not answer is asked
TOOLS = {"cuda": "nvidia-smi", "npu": "npu-smi"}


def examine(settings: Settings) -> list[Finding]:
    """Every examination in turn; none raises for what it finds."""
    findings = [_python(), _settings(settings)]
    examinations: tuple[Callable[[Settings], list[Finding]], ...] = (
        _ffmpeg,
        _encoders,
        _redis,
        _ledger,
        _store,
        _disk,
        _roster,
    )
    for examination in examinations:
        try:
            findings += examination(settings)
        except (FarmError, OSError) as error:
            findings.append(Finding(examination.__name__.strip("_"), "wrong", str(error)))
    return findings


def _python() -> Finding:
    return Finding("python", "well", f"{sys.version.split()[0]} at {sys.executable}")


def _settings(settings: Settings) -> Finding:
    files = ", ".join(str(path) for path in settings_files() if path.is_file())
    return Finding("settings", "well", f"home {settings.home}; {files}")


def _ffmpeg(settings: Settings) -> list[Finding]:
    ffmpeg = find_ffmpeg()
    return [Finding("ffmpeg", "well", f"{version(ffmpeg)} at {ffmpeg}")]


def _encoders(settings: Settings) -> list[Finding]:
    """Each encoder is tried; one of a card also with what each worker sees, if jobs are prepared for it."""
    tried = {codec: why_not_encoding(codec) for codec in (SOFTWARE, "h264_nvenc")}
    told = [f"{codec} {'works' if why is None else f'does not work ({why})'}" for codec, why in tried.items()]
    codec = settings.film.codec
    found = [Finding("encoders", "wrong" if tried[SOFTWARE] else "well", f"{'; '.join(told)}; jobs use {codec}")]
    for spec in load_roster() if codec != SOFTWARE else []:
        why = why_not_encoding(codec, spec.device_set.environment()) if spec.renders else None
        if why is not None:
            problem = f"on {spec.device_set} {codec} does not work: {why}"
            advice = f'set film.codec = "{SOFTWARE}", or use a card with an encoder (H100 and H200 have none)'
            found.append(Finding(f"encoder of {spec.name}", "wrong", problem, advice))
    return found


def _redis(settings: Settings) -> list[Finding]:
    problem = redis_server.why_silent(settings)
    shown = settings.redis.rsplit("@", 1)[-1]
    if problem is None:
        return [Finding("redis", "well", f"answers at {shown}")]
    if settings.redis_is_private and processes.find("supervisor", settings.run_dir) is None:
        program = redis_server.server_program()
        return [Finding("redis", "mind", f"private, not started ({program})", "`farm up` starts it")]
    advice = f"see {settings.logs_dir / 'redis.log'}" if settings.redis_is_private else "check FARM_REDIS_URL"
    return [Finding("redis", "wrong", f"{shown}: {problem}", advice)]


def _ledger(settings: Settings) -> list[Finding]:
    ledger = open_ledger(settings.ledger)
    try:
        have, want = migrate.current_revision(ledger), migrate.newest_revision()
        kind = "SQLite" if ledger.is_sqlite else "PostgreSQL"
        if have is None:
            return [Finding("ledger", "mind", f"{kind}, empty", "`farm db upgrade`, or it is made at the first submit")]
        if have != want:
            advice = "a newer farm made it: upgrade this one" if migrate.is_newer(have) else "`farm db upgrade`"
            return [Finding("ledger", "wrong", f"{kind} at revision {have}, needed {want}", advice)]
        found = [Finding("ledger", "well", f"{kind} at revision {have}")]
        unseen = why_blind(ledger)
        if unseen is not None:
            found.append(Finding("shared folder", "wrong", unseen, "workers of this machine take nothing until then"))
        for item in read.stuck(ledger):
            found.append(Finding("queue " + item.queue, "wrong", f"{item.segments} segments wait", item.reason))
        return found
    finally:
        ledger.close()


def _store(settings: Settings) -> list[Finding]:
    """One small file is written, read back and deleted."""
    hasty = settings.store.model_copy(update={"patience_seconds": min(settings.store.patience_seconds, STORE_SECONDS)})
    store = open_store(settings.model_copy(update={"store": hasty}))
    began = time.monotonic()
    store.probe()
    took = (time.monotonic() - began) * 1000.0
    return [Finding("store", "well", f"{store.where}, written and read back in {took:.0f} ms")]


def _disk(settings: Settings) -> list[Finding]:
    folder = settings.home
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 1e9
    memory = psutil.virtual_memory().available / 1e9
    room = settings.room
    return [
        Finding(
            "disk",
            "well" if free >= room.min_free_disk_gb else "wrong",
            f"{free:.1f} GB free at {folder}",
            "" if free >= room.min_free_disk_gb else "free some or run `farm gc`; workers take nothing until then",
        ),
        Finding(
            "memory",
            "well" if memory >= room.min_free_memory_gb else "wrong",
            f"{memory:.1f} GB available",
            "" if memory >= room.min_free_memory_gb else "workers take nothing until more is free",
        ),
    ]


def _roster(settings: Settings) -> list[Finding]:
    specs = load_roster()
    found = [Finding("workers", "well", f"{', '.join(s.name for s in specs)} from {roster_file()}")]
    for spec in specs:
        running = processes.find(f"worker-{spec.name}", settings.run_dir)
        state = f"runs, pid {running.pid}" if running else "does not run"
        found.append(
            Finding(
                f"worker {spec.name}",
                "well" if running else "mind",
                f"{spec.model or 'prepares and assembles'} on {_places(spec)}; {state}",
                "" if running else "`farm up` starts it",
            )
        )
        found += examine_engine_files(spec)
        if spec.renders and (spec.python != sys.executable or spec.device_set.kind != "cpu"):
            found += examine_worker(spec)
    return found + [finding for kind in TOOLS for finding in _cards(kind, specs)]


def _places(spec: WorkerSpec) -> str:
    ranks = f" as {spec.world_size} ranks" if spec.world_size > 1 else ""
    shared = ", which it may share" if spec.share_card and spec.device_set.kind != "cpu" else ""
    return str(spec.device_set) + ranks + shared + (f", prompts on {spec.text_device}" if spec.text_device else "")


def _cards(kind: str, specs: list[WorkerSpec]) -> list[Finding]:
    """Every card of a kind with who holds it, and each configured one that is not there."""
    wanted = [(spec, id_) for spec in specs for one in spec.device_sets if one.kind == kind for id_ in one.ids]
    try:
        cards = list_cards(kind)
    except CardToolFailed as error:
        return [Finding(kind, "wrong" if wanted else "mind", str(error), "check the driver")]
    if not cards:
        advice = "install the NVIDIA driver" if kind == "cuda" else "install the Ascend driver"
        return [Finding(kind, "wrong", f"{TOOLS[kind]} is not there or lists no card", advice)] if wanted else []
    found = [_card(card) for card in cards]
    listed = ", ".join(f"{kind}:{card.index}" for card in cards)
    for spec, id_ in wanted:
        if not any(card.answers_to(kind, id_) for card in cards):
            problem = f"{kind}:{id_} is not there; {TOOLS[kind]} lists {listed}"
            found.append(Finding(f"worker {spec.name}", "wrong", problem, "mend devices in workers.toml"))
    return found


def _card(card: Card) -> Finding:
    holder = holder_of(card.key)
    shared = " and shared" if holder and holder.shares else ""
    held = f"held by {holder.who} (pid {holder.pid}){shared}" if holder else "held by no farm"
    uuid = f", {card.uuid}" if card.uuid else ""
    memory = f"{card.used_mb / 1024:.1f} of {card.total_mb / 1024:.1f} GiB in use"
    health = f", health {card.health}" if card.health else ""
    is_sick = card.health not in ("", "OK")
    return Finding(
        f"card {card.kind}:{card.index}",
        "wrong" if is_sick else "well",
        f"{card.name}{uuid}, driver {card.driver}{health}; {memory}; {held}",
        "npu-smi info tells more" if is_sick else "",
    )
