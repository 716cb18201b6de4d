"""A farm of a script's own, as `farm up` starts it, which goes down with the script."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from farm.config import Settings, load_settings  # noqa: E402
from farm.ledger import Ledger, open_ledger  # noqa: E402
from farm.ledger.migrate import ensure_current  # noqa: E402


@contextlib.contextmanager
def farm_up(home: Path, *words: str, **variables: str) -> Iterator[tuple[Settings, Ledger]]:
    """A warm farm in `home`; `words` are for `farm up`, and `variables` are set while it runs.

    SIGTERM ends the script as Ctrl-C does, through here, so that the farm's processes do not outlive it.
    """
    before = dict(os.environ)
    heard = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.environ.update({"FARM_HOME": str(home.absolute()), **variables})
    farm = [sys.executable, "-m", "farm.cli"]
    try:
        subprocess.run([*farm, "up", "--wait", *words], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        settings = load_settings()
        with contextlib.closing(open_ledger(settings.ledger)) as ledger:
            ensure_current(ledger)
            yield settings, ledger
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: the farm must go down now
        subprocess.run([*farm, "down"], check=False, cwd=ROOT, stdout=subprocess.DEVNULL)
        os.environ.clear()
        os.environ.update(before)
        signal.signal(signal.SIGTERM, heard)
