"""Whether this machine has room for work: a film that fills the disk at its last frame wastes all the others."""

from __future__ import annotations

import shutil
from pathlib import Path

import psutil

from farm.config import RoomSettings


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
