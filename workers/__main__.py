"""Run a worker: python -m workers NAME.

What `multiprocessing` starts reads its parent's main module again, unless that is called `__main__`: with this one the
workshop's child does without Celery.
"""

from __future__ import annotations

import sys

from workers.app import main

sys.exit(main(sys.argv[1:]))
