"""Flower for this farm: read-only and on loopback unless told otherwise.

python -m farm.flower [FLOWER OPTIONS]
"""

from __future__ import annotations

import os
import sys

from farm.config import load_settings
from farm.doorbell import make_app
from farm.errors import FarmError

# A segment takes minutes; Flower's own buckets end at ten seconds.
RUNTIME_BUCKETS = "1,5,15,30,60,120,300,600,1800,3600,14400"
DEFAULTS = {
    "--address": "127.0.0.1",
    "--port": "5555",
    "--read_only": "true",
    "--task_runtime_metric_buckets": RUNTIME_BUCKETS,
    "--tasks_columns": "name,args,state,result,started,runtime,worker",
    "--max_tasks": "20000",
}


def main(argv: list[str]) -> int:
    try:
        settings = load_settings()
    except FarmError as error:
        sys.stderr.write(f"farm: {error}\n")
        return error.exit_code
    named = {word.split("=", 1)[0].replace("-", "_").replace("__", "--", 1) for word in argv}
    # Flower reads variables of its own, such as FLOWER_PORT, which an option would override.
    named |= {f"--{name.removeprefix('FLOWER_').lower()}" for name in os.environ if name.startswith("FLOWER_")}
    options = [f"{name}={value}" for name, value in DEFAULTS.items() if name not in named]
    # Read-only Flower on loopback shows its page without a login; anything wider needs one of Flower's logins.
    os.environ.setdefault("FLOWER_UNAUTHENTICATED_API", "true")
    make_app(settings).start(argv=["flower", *options, *argv])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
