"""Which ffmpeg the farm uses."""

from __future__ import annotations

import os
import shutil
from functools import cache
from pathlib import Path

from farm.errors import ConfigError, MediaError
from farm.media.run import run


def find_ffmpeg() -> Path:
    """The ffmpeg of FARM_FFMPEG, else of PATH, else the one inside the imageio-ffmpeg package.

    Raises ConfigError when there is none, or when FARM_FFMPEG names a file that cannot be run.
    """
    chosen = os.environ.get("FARM_FFMPEG")
    if chosen:
        found = shutil.which(chosen)
        if found is None:
            raise ConfigError(f"FARM_FFMPEG is {chosen!r}, which is not a program that can be run.")
        return Path(found).absolute()
    found = shutil.which("ffmpeg")
    return Path(found).absolute() if found else _bundled()


@cache
def _bundled() -> Path:
    try:
        import imageio_ffmpeg

        return Path(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError):
        raise ConfigError(
            "No ffmpeg was found: set FARM_FFMPEG, put ffmpeg on PATH or install imageio-ffmpeg."
        ) from None


@cache
def version(ffmpeg: Path) -> str:
    """The version as the program says it, e.g. "n9.0.2" or "5.1.9-0+deb12u1".  Raises ConfigError."""
    try:
        said = run([str(ffmpeg), "-version"], timeout_seconds=60).decode(errors="replace")
    except (OSError, MediaError) as error:
        raise ConfigError(f"{ffmpeg} does not run as ffmpeg: {error}") from error
    words = said.split("\n", 1)[0].split()
    if words[:2] != ["ffmpeg", "version"]:
        raise ConfigError(f"{ffmpeg} is not ffmpeg: it says {' '.join(words[:6])!r}.")
    return words[2]
