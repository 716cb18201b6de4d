"""Whether a worker has room for work: a film that fills the disk at its last frame wastes all the others."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import psutil

from farm.config import RoomSettings, Settings
from farm.errors import StoreError
from farm.retry import Decision
from farm.store import Store

STORE_SECONDS = 10.0  # how often a worker whose store failed an attempt tries it again before it takes work
FULL_SECONDS = 10.0  # how long a worker that met a full disk takes nothing, if room.min_free_disk_gb did not see it


class Room:
    """What one worker knows of its disk, memory and store; attempts that failed for want of them teach it."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings.room
        self._folder = settings.artifacts_dir
        self._store = store
        self._full = (0.0, "")  # until when an attempt's full disk keeps this worker from the next, and what it said
        self._store_fails = (0.0, "")  # when to try the store again, and why it failed

    def learn(self, decision: Decision) -> None:
        """Remember that an attempt ended for want of store or room."""
        if decision.failure == "store":
            self._store_fails = (time.monotonic() + STORE_SECONDS, decision.reason)
        if decision.failure == "room":
            self._full = (time.monotonic() + FULL_SECONDS, decision.reason)

    def why_none(self) -> str | None:
        """A sentence when this worker should take no work for want of disk, memory or store."""
        self._folder.mkdir(parents=True, exist_ok=True)
        room = why_no_room(self._settings, self._folder)
        if time.monotonic() < self._full[0]:
            room = room or self._full[1]
        return room or self._why_no_store()

    def _why_no_store(self) -> str | None:
        """After the store failed an attempt, nothing is taken until something could be written and read there."""
        try_at, why = self._store_fails
        if not why:
            return None
        if time.monotonic() >= try_at:
            try:
                self._store.probe()
                why = ""
            except StoreError as error:
                why = str(error)
            self._store_fails = (time.monotonic() + STORE_SECONDS, why)
        return why or None


def why_no_room(settings: RoomSettings, folder: Path) -> str | None:
    """A sentence when too little disk or memory is free to take work."""
    free_disk = shutil.disk_usage(folder).free / 1e9
    if free_disk < settings.min_free_disk_gb:
        return (
            f"only {free_disk:.1f} GB of disk are free at {folder}, less than room.min_free_disk_gb ="
            f" {settings.min_free_disk_gb:g}; free some, or run `farm gc`"
        )
    free_memory = psutil.virtual_memory().available / 1e9
    if free_memory < settings.min_free_memory_gb:
        return (
            f"only {free_memory:.1f} GB of memory are free, less than room.min_free_memory_gb ="
            f" {settings.min_free_memory_gb:g}"
        )
    return None
