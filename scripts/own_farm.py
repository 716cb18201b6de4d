"""A farm of a script's own, as `farm up` starts it, which goes down with the script.

It is run as a person runs it, as `python -m farm.cli` out of this checkout, so that nothing needs to be installed but
what the farm imports.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from farm.config import Settings, load_settings  # noqa: E402
from farm.ledger import Ledger, open_ledger  # noqa: E402
from farm.ledger.migrate import ensure_current  # noqa: E402

COMMAND_SECONDS = 120.0


class Failed(Exception):
    """The script cannot go on; one sentence for people."""


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the script as Ctrl-C does, so that what it started is ended too."""
    heard = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, heard)


@contextlib.contextmanager
def home_folder(keep: Path | None = None) -> Iterator[Path]:
    """A folder with a short name, since a socket's path may have 107 bytes; kept where `keep` names one."""
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="farm-bench-", dir="/tmp", ignore_cleanup_errors=True) as name:
        yield Path(name)


@contextlib.contextmanager
def farm_up(
    home: Path, *words: str, is_warm: bool = True, kept: Collection[str] | None = None, **variables: str
) -> Iterator[tuple[Settings, Ledger]]:
    """A farm in `home`; `words` are for `farm up`, and `variables` are set while it runs.

    It is yielded when every engine is loaded, or with `is_warm` False at once.  Of the FARM_ variables that are set
    already all hold, or those that `kept` names.  Raises Failed when it does not start.
    """
    before = dict(os.environ)
    with ended_by_sigterm():
        try:
            if kept is not None:
                for name in [name for name in os.environ if name.startswith("FARM_") and name not in kept]:
                    del os.environ[name]
            os.environ.update({"FARM_HOME": str(home.absolute()), **variables})
            run_farm("up", *(["--wait"] if is_warm else []), *words, seconds=None if is_warm else COMMAND_SECONDS)
            settings = load_settings()
            with contextlib.closing(open_ledger(settings.ledger)) as ledger:
                ensure_current(ledger)
                yield settings, ledger
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: the farm must go down now
            with contextlib.suppress(Failed):
                run_farm("down")
            os.environ.clear()
            os.environ.update(before)


def run_farm(*words: str, seconds: float | None = COMMAND_SECONDS) -> str:
    """`farm WORDS`; what it printed.  Raises Failed with what it complained of, or when it takes longer."""
    return output_of(f"farm {' '.join(words)}", [sys.executable, "-m", "farm.cli", *words], seconds, cwd=ROOT)


def output_of(name: str, argv: list[str], seconds: float | None, **how: Any) -> str:
    """What a program printed.  Raises Failed with what it complained of, or when it takes longer."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=seconds, **how)
    except subprocess.TimeoutExpired:
        raise Failed(f"{name} did not end within {seconds:.0f} s") from None
    if done.returncode:
        raise Failed(f"{name} ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    return done.stdout
