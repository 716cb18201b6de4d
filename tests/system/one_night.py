"""One run of a nightly whose clock stands in a file, ended with its exit code; its summary goes to standard output.

python -m tests.system.one_night CONFIG CLOCK
"""

from __future__ import annotations

import sys
from pathlib import Path

from farm.config import load_settings
from farm.errors import FarmError
from farm.ledger import open_ledger
from farm.ledger.migrate import ensure_current
from farm.nightly import run_night
from farm.nightly_config import read_nightly
from farm.nightly_summary import as_text
from workers.host.child import die_with_parent


def main() -> int:
    die_with_parent()
    settings = load_settings()
    ledger = open_ledger(settings.ledger)
    ensure_current(ledger)
    clock = Path(sys.argv[2])
    try:
        outcome = run_night(
            read_nightly(Path(sys.argv[1])),
            settings,
            ledger,
            now=lambda: float(clock.read_text()),
            look_seconds=0.05,
        )
    except FarmError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    if outcome.is_news:
        sys.stdout.write(as_text(outcome.summary))
    return outcome.summary.exit_code


if __name__ == "__main__":
    sys.exit(main())
