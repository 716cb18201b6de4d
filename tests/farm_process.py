"""A farm in processes of its own: the server, and workers that find their work in the ledger."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 120.0

SERVE = """
import click
from farm.cli.farm_context import Farm
from farm.cli.serve import serve
serve(obj=Farm(), prog_name="serve")
"""

WORKERS = """
import signal, sys, threading
from farm.config import load_settings
from farm.ledger import open_ledger
from farm.ledger.migrate import ensure_current
from farm.logs import log_to_stderr
from farm.roster import WorkerSpec
from workers.runner import make_runner
from workers.solo import at_work

log_to_stderr()
settings = load_settings()
ledger = open_ledger(settings.ledger)
ensure_current(ledger)
specs = [WorkerSpec(name="cpu"), WorkerSpec(name="preview", model="preview")]
runners = [make_runner(ledger, settings, spec) for spec in specs]
done = threading.Event()
with at_work(runners):
    signal.signal(signal.SIGTERM, lambda *_: done.set())
    while not done.wait(0.2):
        pass
"""


@dataclass
class FarmProcess:
    """A running server and the farm behind it."""

    home: Path
    url: str
    key: str
    process: subprocess.Popen[bytes]

    def client(self, key: str | None = None, **options: Any) -> httpx.Client:
        shown = self.key if key is None else key
        headers = {"x-api-key": shown} if shown else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60.0, **options)

    def make_key(self, owner: str, scope: str) -> str:
        return make_key(self.home, owner, scope)


def environment(home: Path, more: Mapping[str, str]) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("FARM_") or k in ("FARM_FFMPEG", "FARM_CACHE")}
    return kept | {"FARM_HOME": str(home), "FARM_MACHINE": "desk", "FARM_LEASE__POLL_SECONDS": "0.3"} | dict(more)


def make_key(home: Path, owner: str, scope: str) -> str:
    from farm.ledger import open_ledger
    from farm.ledger.keys import Scope, add_key
    from farm.ledger.migrate import ensure_current

    ledger = open_ledger(f"sqlite:///{home / 'ledger.db'}")
    ensure_current(ledger)
    secret, _ = add_key(ledger, name="test", owner=owner, scope=Scope(scope))
    ledger.close()
    return secret


@contextlib.contextmanager
def process(code: str, argv: list[str], env: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as output:
        child = subprocess.Popen([sys.executable, "-c", code, *argv], env=dict(env), stdout=output, stderr=output)
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


@contextlib.contextmanager
def served(home: Path, *argv: str, env: Mapping[str, str] | None = None) -> Iterator[FarmProcess]:
    home.mkdir(parents=True, exist_ok=True)
    key = make_key(home, "alice", "admin")
    log = home / "serve.log"
    with process(SERVE, ["--port", "0", *argv], environment(home, env or {}), log) as child:
        url = address_in(log, child)
        yield FarmProcess(home, url, key, child)


def address_in(log: Path, child: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and child.poll() is None:
        found = re.findall(r"page is at (http://[^\s;/]+)", log.read_text(errors="replace"))
        if found:
            url = str(found[-1])
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/healthz", timeout=START_SECONDS).status_code == 200:
                    return url
        time.sleep(0.05)
    raise RuntimeError(f"the server did not start: {log.read_text(errors='replace')[-2000:]}")


@contextlib.contextmanager
def workers(home: Path, env: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    with process(WORKERS, [], environment(home, env or {}), home / "workers.log") as child:
        yield child
