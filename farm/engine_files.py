"""Small files that an engine needs of the machine and that come from no hub: the preview engine's face models.

The engine's module says where they lie and fetches them, in a process of its own: the farm imports no engine.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from farm.errors import ConfigError
from farm.models import ModelSpec

LOOK_SECONDS = 60.0


def find_engine_files(model: ModelSpec) -> Path:
    """The folder that holds them, each checked.  Raises ConfigError with the module's sentence of what to run."""
    return _ask(model, timeout_seconds=LOOK_SECONDS)


def fetch_engine_files(model: ModelSpec, into: Path | None = None) -> Path:
    """Fetch what is not there yet, to where the engine looks first or into a folder.  Raises ConfigError."""
    return _ask(model, "--fetch", *(["--into", str(into)] if into else []))


def _ask(model: ModelSpec, *words: str, timeout_seconds: float | None = None) -> Path:
    command = [sys.executable, "-m", model.engine_files, *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_seconds, check=False)
    except subprocess.TimeoutExpired:
        raise ConfigError(f"{model.engine_files} did not answer within {timeout_seconds:g} seconds") from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"{model.engine_files} ended with {done.returncode}"]
        raise ConfigError(said[-1])
    return Path(done.stdout.strip())
