"""How a script that runs a farm and judges it speaks and ends."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def conclude(report: dict[str, Any], path: Path | None) -> int:
    """Print the report, and write it if a path was given.  The exit code: 0 when nothing in it is wrong."""
    text = json.dumps(report, indent=2)
    if path is not None:
        path.write_text(text + "\n")
    print(text)
    return 1 if report["wrong"] else 0
