"""Kill a submit at each of its steps, repeat it, and look at what the ledger holds.

    python -m tests.system.submit_steps BATCH FILMS EVERY         prints how many steps were tried, or what is wrong

A step is a line of the modules that a submission runs through.  Each try forks: the child submits into a fresh ledger
(or a fresh copy of the rows' own tables) and kills itself at its step; a second child submits the same rows again.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from sqlalchemy import create_engine, text

from farm import input_files, row_check
from farm.batch import read_batch
from farm.config import load_settings
from farm.doorbell import Doorbell
from farm.ledger import crew, files, intake, open_ledger, store
from farm.ledger.migrate import ensure_current
from farm.ledger.tables import Table
from farm.submission import submit as submit_rows

WATCHED = {
    submit_rows.__code__.co_filename,
    *(str(module.__file__) for module in (input_files, row_check, crew, files, intake, store)),
}
TABLES = ", ".join(table.name for table in Table.metadata.sorted_tables)


class Silent(Doorbell):
    """Rings nobody: Redis is no part of this."""

    def __init__(self) -> None:
        pass

    def ring(self, queues: Any) -> bool:
        return True


def submit(batch: Path, films: Path) -> None:
    settings = load_settings()
    ledger = open_ledger(settings.ledger)
    rows = read_batch(batch)
    submit_rows(ledger, settings, rows, base=batch.parent, source="b", output_dir=films, doorbell=Silent())


def at_step(step: int) -> Callable[[FrameType, str, Any], Any]:
    """A tracer that kills this process at its step; the steps of all threads count together."""
    seen = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal seen
        if frame.f_code.co_filename not in WATCHED:
            return None
        if event == "line":
            seen += 1
            if seen == step:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    return trace


def in_child(work: Callable[[], None]) -> int:
    """Run `work` in a fork.  Returns its exit code, negative for the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main() -> int:
    batch, films, every = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    url = load_settings().ledger
    count = len(read_batch(batch))
    if in_child(lambda: ensure_current(open_ledger(url))):
        return 1

    def look() -> dict[str, int]:
        engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
        with engine.begin() as connection:
            questions = {
                "jobs": "SELECT count(*) FROM jobs",
                "keys": "SELECT count(DISTINCT key) FROM jobs",
                "prepares": "SELECT count(*) FROM segments WHERE kind = 'prepare' AND state = 'queued'",
                "batches": "SELECT count(*) FROM batches",
                "submits": "SELECT count(*) FROM events WHERE event = 'submit'",
            }
            found = {name: int(connection.scalar(text(query)) or 0) for name, query in questions.items()}
            connection.execute(text(f"TRUNCATE {TABLES}" if "postgres" in url else "SELECT 1"))
            if "postgres" not in url:
                for table in reversed(Table.metadata.sorted_tables):
                    connection.execute(text(f"DELETE FROM {table.name}"))
        engine.dispose()
        return found

    step = tried = 0
    while True:
        step += every

        def killed(step: int = step) -> None:
            tracer = at_step(step)
            threading.settrace(tracer)
            sys.settrace(tracer)
            submit(batch, films)

        ended = in_child(killed)
        if ended not in (0, -signal.SIGKILL):
            return 1
        if in_child(lambda: submit(batch, films)):
            return 1
        found = look()
        wanted = {"jobs": count, "keys": count, "prepares": count, "batches": 1, "submits": count}
        if found != wanted:
            sys.stdout.write(f"after a kill at step {step}: {found}\n")
            return 1
        tried += 1
        if ended == 0:
            sys.stdout.write(f"{tried} steps\n")
            return 0


if __name__ == "__main__":
    sys.exit(main())
