"""The workers of `farm render`, without its end: they poll one ledger until they are killed.

python -m tests.system.night_crew MODEL PRESET
"""

from __future__ import annotations

import sys
import threading

from farm.config import load_settings
from farm.ledger import open_ledger
from farm.ledger.migrate import ensure_current
from workers.host.child import die_with_parent
from workers.runner import make_runner
from workers.solo import specs_for


def main() -> None:
    die_with_parent()
    settings = load_settings()
    ledger = open_ledger(settings.ledger)
    ensure_current(ledger)
    runners = [make_runner(ledger, settings, spec) for spec in specs_for(sys.argv[1], sys.argv[2])]
    threads = [threading.Thread(target=runner.run) for runner in runners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()  # an interpreter that shuts down starts no further process


if __name__ == "__main__":
    main()
