"""A worker that kills itself at chosen points of an attempt, or lives with a wrong clock.

    python -m tests.system.faulty_worker NAME          as python -m workers, with FAULTS (JSON) in the environment

FAULTS: `points` maps a point to the probability of dying there, `seed` feeds the dice, `log` is a file that gets one
line for each such death, `clock_seconds` is how far this process's clock is off.  The product has no such hooks: the
functions that the runner calls are wrapped here, from outside.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

POINTS = (
    "claimed",  # the lease is taken, nothing is done yet
    "written",  # the file is complete under its staging name
    "renamed",  # the file has its name or is in the object store, the ledger does not know
    "committed",  # the ledger knows, no doorbell was rung
    "giving back",  # the attempt failed or was stopped, the ledger does not know
)


class Dice:
    def __init__(self, faults: dict[str, Any]) -> None:
        self.points: dict[str, float] = faults.get("points", {})
        self.random = random.Random(f"{faults.get('seed', 0)} {os.getpid()}")
        self.log = faults.get("log")

    def perhaps_die(self, point: str) -> None:
        if self.random.random() >= self.points.get(point, 0.0):
            return
        if self.log:
            with Path(self.log).open("a") as file:
                file.write(f"{point}\n")
        os.kill(os.getpid(), signal.SIGKILL)


def dying(function: Callable[..., Any], dice: Dice, *, before: str = "", after: str = "") -> Callable[..., Any]:
    @wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if before:
            dice.perhaps_die(before)
        result = function(*args, **kwargs)
        if after and result is not None:
            dice.perhaps_die(after)
        return result

    return wrapped


def shift_clock(seconds: float) -> None:
    """Everything in this process that asks Python for the time hears a wrong one."""
    true_time = time.time
    time.time = lambda: true_time() + seconds


def main() -> int:
    faults = json.loads(os.environ.pop("FAULTS", "{}"))
    if faults.get("clock_seconds"):
        shift_clock(faults["clock_seconds"])
    from farm.config import load_settings
    from farm.ledger import moves
    from farm.store import open_store
    from workers import app

    dice = Dice(faults)
    moves.claim = dying(moves.claim, dice, after="claimed")
    kind: Any = type(open_store(load_settings()))
    kind.seal = dying(kind.seal, dice, before="written", after="renamed")
    moves.release = dying(moves.release, dice, before="giving back")
    for name in ("publish", "publish_plan"):
        function = getattr(moves, name)

        @wraps(function)
        def published(*args: Any, _function: Callable[..., Any] = function, **kwargs: Any) -> None:
            _function(*args, **kwargs)
            dice.perhaps_die("committed")

        setattr(moves, name, published)
    return app.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
