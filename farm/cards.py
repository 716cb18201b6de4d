"""The cards of this machine: what there is, and who holds which.

A card belongs to one host at a time, whichever farm or user started it.  A host's worker takes a lock on a file of the
card's name in a folder that the whole machine shares and hands the open file on to its host, so that the kernel gives
the card free when the last of them is gone, however they end.  Workers that were all told to share a card
(`share_card`) hold its lock together.  Cards are known by UUID where nvidia-smi tells it, so that `cuda:0` and
`cuda:GPU-…` are the same one; other cards are known by kind and index.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from farm.devices import DeviceSet
from farm.errors import DeviceFault

ASK_SECONDS = 60.0  # for a tool of the driver to answer
YIELD_SECONDS = 3.0  # for a host that is ending, or somebody who only looks, to let go of a card
_NVIDIA_FIELDS = ("index", "uuid", "name", "memory.used", "memory.total", "driver_version")
_NPU_HEAD = re.compile(r"\|\s*(\d+)\s+(\S+)\s*\|\s*(\S+)\s*\|")
_NPU_CHIP = re.compile(r"\|\s*(\d+)(?:\s+(\d+))?\s*\|\s*[0-9A-Fa-f]{4}:\S+\s*\|.*?(\d+)\s*/\s*(\d+)\s*\|\s*$")


@dataclass(frozen=True, slots=True)
class Card:
    """One card as its driver's tool describes it."""

    kind: str  # "cuda" or "npu"
    index: str
    uuid: str  # empty where the tool tells none
    name: str
    used_mb: int
    total_mb: int
    driver: str
    health: str = ""  # of an NPU

    @property
    def key(self) -> str:
        return self.uuid or f"{self.kind}-{self.index}"

    def answers_to(self, kind: str, id_: str) -> bool:
        """Whether a device set's `id_` names this card; a UUID may be shortened as CUDA allows it."""
        return kind == self.kind and (id_ == self.index or (not id_.isdigit() and self.uuid.startswith(id_)))


class CardToolFailed(DeviceFault):
    """nvidia-smi or npu-smi is there and cannot tell about its cards."""


def list_cards(kind: str) -> list[Card]:
    """Every card of `kind`; none where its tool is not installed.  Raises CardToolFailed."""
    tools = {"cuda": ("nvidia-smi", _read_nvidia), "npu": ("npu-smi", _read_npu)}
    if kind not in tools:
        return []
    name, read = tools[kind]
    program = shutil.which(name)
    return read(program) if program is not None else []


def _ask(argv: Sequence[str]) -> str:
    name = Path(argv[0]).name
    try:
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=ASK_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CardToolFailed(f"{name}: {error}") from None
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[:200] or f"exited with {done.returncode}"
        raise CardToolFailed(f"{name}: {said}")
    return done.stdout


def _read_nvidia(program: str) -> list[Card]:
    said = _ask([program, f"--query-gpu={','.join(_NVIDIA_FIELDS)}", "--format=csv,noheader,nounits"])
    cards = []
    for line in said.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == len(_NVIDIA_FIELDS):
            index, uuid, name, used, total, driver = cells
            cards.append(Card("cuda", index, uuid, name, _number(used), _number(total), driver))
    return cards


def _read_npu(program: str) -> list[Card]:
    """The table of `npu-smi info`: two lines a chip, the first with the card's name, the second with its memory."""
    said = _ask([program, "info"])
    version = re.search(r"npu-smi\s+(\S+)", said)
    driver, cards, head = version[1] if version else "", [], None
    for line in said.splitlines():
        chip = _NPU_CHIP.match(line)
        if chip and head is not None:
            index = chip[2] or head[1]  # where cards have two chips, the second number counts chips over the machine
            cards.append(Card("npu", index, "", head[2], int(chip[3]), int(chip[4]), driver, head[3]))
        elif found := _NPU_HEAD.match(line):
            head = found
    return cards


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0  # "[N/A]" on boards that share the system's memory


def name_cards(devices: DeviceSet, cards: Iterable[Card]) -> list[str]:
    """The key of each card of a device set; its own words where nobody lists it."""
    known = list(cards)
    return [
        next((card.key for card in known if card.answers_to(devices.kind, id_)), _key(devices.kind, id_))
        for id_ in devices.ids
    ]


def _key(kind: str, id_: str) -> str:
    return f"{kind}-{id_}" if id_.isdigit() else id_


def same_cards(one: DeviceSet, other: DeviceSet) -> list[str]:
    """Keys of the cards that two device sets share; the driver's tool is asked only where one names a UUID."""
    if one.kind != other.kind or one.kind == "cpu":
        return []
    cards: list[Card] = []
    if any(not id_.isdigit() for id_ in (*one.ids, *other.ids)):
        with contextlib.suppress(CardToolFailed):
            cards = list_cards(one.kind)
    return sorted(set(name_cards(one, cards)) & set(name_cards(other, cards)))


# Who holds a card


@dataclass(frozen=True, slots=True)
class Holder:
    """Who took a card."""

    who: str
    pid: int
    shares: bool = False  # others may hold it too


class Claim:
    """Cards held until `release`, or until every process that has the descriptors is gone."""

    def __init__(self, descriptors: list[int]) -> None:
        self.descriptors = descriptors

    def release(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors = []


def lock_folder() -> Path:
    """Where the machine's cards are locked; containers that share cards must share this folder."""
    return Path(os.environ.get("FARM_CARD_LOCKS") or "/tmp/farm-cards")


def claim_cards(devices: Sequence[DeviceSet], who: str, *, shares: bool = False) -> Claim:
    """Take every card of these device sets, or none.  Raises DeviceFault naming who holds one.

    With `shares` a card may be held by others too, if each of them shares it.  The folder is locked as well, shared:
    that keeps cleaners of temporary files (tmpfiles.d) out of it.
    """
    claim = Claim([])
    wanted: dict[str, str] = {}  # key: the card in the words of its device set
    for one in devices:
        if one.ids:
            with_names = _cards_or_none(one.kind)
            wanted |= {key: f"{one.kind}:{id_}" for key, id_ in zip(name_cards(one, with_names), one.ids, strict=True)}
    if not wanted:
        return claim
    deadline = time.monotonic() + YIELD_SECONDS
    try:
        folder = _open_folder()
        claim.descriptors.append(folder)
        fcntl.flock(folder, fcntl.LOCK_SH)
        for key in sorted(wanted):
            claim.descriptors.append(_take(folder, key, wanted[key], who, deadline, shares=shares))
    except BaseException as error:
        claim.release()
        if isinstance(error, OSError):
            raise DeviceFault(f"the folder of card locks {lock_folder()} cannot be used: {error}") from error
        raise
    return claim


def _cards_or_none(kind: str) -> list[Card]:
    try:
        return list_cards(kind)
    except CardToolFailed:
        return []  # indices and UUIDs are then compared as they are written


def _open_folder() -> int:
    path = lock_folder()
    with contextlib.suppress(FileExistsError):
        path.mkdir(parents=True)
        path.chmod(0o1777)  # every user's farm takes its cards here
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _take(folder: int, key: str, shown: str, who: str, deadline: float, *, shares: bool) -> int:
    descriptor = _open_lock(folder, key)
    try:
        while True:
            try:
                fcntl.flock(descriptor, (fcntl.LOCK_SH if shares else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    holder = _read_holder(descriptor)
                    by = f"by {holder.who} (pid {holder.pid})" if holder else "by another process"
                    also = "" if shown == key.replace("-", ":") else f" ({key})"
                    rule = "a card belongs to one worker, or to several that all have share_card"
                    raise DeviceFault(f"card {shown}{also} is held {by}; {rule}") from None
                time.sleep(0.1)
        said = json.dumps({"who": who, "pid": os.getpid(), "shares": shares}).encode()
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, said, 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _open_lock(folder: int, key: str) -> int:
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    name = re.sub(r"[^A-Za-z0-9._-]", "_", key)
    while True:
        # Another user's file in a folder like /tmp may not be opened with O_CREAT (fs.protected_regular).
        with contextlib.suppress(FileNotFoundError):
            return os.open(name, flags, dir_fd=folder)
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(name, flags | os.O_CREAT | os.O_EXCL, 0o666, dir_fd=folder)
            os.fchmod(descriptor, 0o666)
            return descriptor


def _read_holder(descriptor: int) -> Holder | None:
    try:
        said = json.loads(os.pread(descriptor, 4096, 0))
        return Holder(str(said["who"]), int(said["pid"]), bool(said.get("shares", False)))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def holder_of(key: str) -> Holder | None:
    """Who holds the card now, of several the one that came last; None when nobody does, or this user may not look."""
    try:
        descriptor = os.open(lock_folder() / re.sub(r"[^A-Za-z0-9._-]", "_", key), os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        # Let go at once; a claimer waits longer than that.  Whoever shares the card does not stand in the way of this
        # look, so another is taken where the last holder shared; two who only look could find each other by it.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        last = _read_holder(descriptor)
        if last is not None and last.shares:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return _read_holder(descriptor) or Holder("an unknown process", 0)
    finally:
        os.close(descriptor)
