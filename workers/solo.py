"""Workers without Celery and Redis: render what one ledger holds, then end.  `farm render` runs this.

python -m workers.solo MODEL PRESET
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterator, Sequence

from farm.config import load_settings
from farm.errors import FarmError
from farm.ledger import open_ledger, read
from farm.ledger.migrate import ensure_current
from farm.logs import log_to_stderr
from farm.models import load_model
from farm.roster import WorkerSpec, load_roster
from workers.host.child import die_with_parent
from workers.runner import Runner, make_runner

log = logging.getLogger(__name__)


def specs_for(model: str, preset: str) -> list[WorkerSpec]:
    """A worker that prepares and assembles, and one that renders: the configured one, or the CPU.

    Where the model is configured for presets of another queue only, its worker is taken with this preset.
    """
    queue = load_model(model).queue_for(preset)
    mine = [spec for spec in load_roster() if spec.model == model]
    fit = [spec for spec in mine if spec.queue == queue]
    fit += [spec.model_copy(update={"preset": preset}) for spec in mine]
    return [WorkerSpec(name="cpu"), *(fit or [WorkerSpec(name="render", model=model, preset=preset)])[:1]]


@contextlib.contextmanager
def at_work(runners: Sequence[Runner], *, stop_seconds: float | None = None) -> Iterator[list[threading.Thread]]:
    """Workers that run beside the caller, in threads, and have stopped when the block ends.

    With `stop_seconds` the block ends also when a thread has not ended after so long.
    """
    threads = [threading.Thread(target=runner.run, name=runner.name) for runner in runners]
    for thread in threads:
        thread.start()
    try:
        yield threads
    finally:
        for runner in runners:
            runner.stop()
        for thread in threads:
            thread.join(stop_seconds)


def main(argv: list[str]) -> int:
    log_to_stderr()
    die_with_parent()
    try:
        settings = load_settings()
        log_to_stderr(settings.log_format)
        ledger = open_ledger(settings.ledger)
        ensure_current(ledger)
        runners = [make_runner(ledger, settings, spec) for spec in specs_for(argv[0], argv[1])]
    except FarmError as error:
        log.error("%s", error)
        return error.exit_code
    with at_work(runners):
        while read.has_open_work(ledger):
            time.sleep(0.1)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
