"""What strangers, rows and logs must not be able to do or to tell."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
import redis

from farm.batch import BadRows, rows_from
from farm.config import load_settings
from farm.doorbell import Doorbell, queue_name
from farm.ledger import Ledger, open_ledger, read
from farm.ledger.migrate import ensure_current
from farm.states import FINISHED, JobState
from farm.submission import submit
from tests.conftest import do_without, redis_program
from tests.system import material, pattern_engine
from tests.system.stage import Stage, stage, wait_for

PASSWORD = "swordfish-2f9a"
LEDGER_PASSWORD = "marlin-77c1"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FARM_HOME", str(tmp_path / "home"))
    pattern_engine.install(tmp_path / "home")
    return tmp_path


@pytest.fixture
def ledger(home: Path) -> Iterator[Ledger]:
    ledger = open_ledger(load_settings().ledger)
    ensure_current(ledger)
    yield ledger
    ledger.close()


def row(home: Path, **cells: object) -> dict[str, object]:
    inside = home / "in"
    inside.mkdir(exist_ok=True)
    portrait, sound = material.portrait(inside / "p.png"), material.sound(inside / "a.wav", 0.2)
    return {"portrait": str(portrait), "audio": str(sound), "model": "pattern", **cells}


def refusal(ledger: Ledger, home: Path, cells: dict[str, object]) -> str:
    with pytest.raises(BadRows) as refused:
        submit(ledger, load_settings(), rows_from([cells]), base=home, source="test", dry_run=True)
    return refused.value.problems[0].sentence


# Roots


def test_inputs_must_lie_under_a_root_whatever_links_and_dots_say(
    home: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = row(home)
    outside = home / "private"
    outside.mkdir()
    secret = material.sound(outside / "secret.wav", 0.2)
    (home / "in/link.wav").symlink_to(secret)
    (home / "in/folder").symlink_to(outside)
    monkeypatch.setenv("FARM_INPUT_ROOTS", json.dumps([str(home / "in")]))
    submit(ledger, load_settings(), rows_from([good]), base=home, source="test", dry_run=True)
    for way in (secret, home / "in/link.wav", home / "in/folder/secret.wav", home / "in/../private/secret.wav"):
        assert "lies outside of what this farm may use" in refusal(ledger, home, good | {"audio": str(way)})


def test_a_root_that_is_itself_a_link_is_what_it_points_to(
    home: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = row(home)
    (home / "root").symlink_to(home / "in")
    monkeypatch.setenv("FARM_INPUT_ROOTS", json.dumps([str(home / "root")]))
    submit(ledger, load_settings(), rows_from([good]), base=home, source="test", dry_run=True)


def test_films_must_go_under_a_root_whatever_links_and_dots_say(
    home: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    films, outside = home / "films", home / "private"
    films.mkdir()
    outside.mkdir()
    (films / "away").symlink_to(outside)
    (films / "film.mp4").symlink_to(outside / "film.mp4")
    monkeypatch.setenv("FARM_OUTPUT_ROOTS", json.dumps([str(films)]))
    good = row(home, output=str(films / "new/film.mp4"))
    submit(ledger, load_settings(), rows_from([good]), base=home, source="test", dry_run=True)
    for way in (outside / "x.mp4", films / "away/x.mp4", films / "film.mp4", films / "../private/x.mp4"):
        assert "lies outside of what this farm may use" in refusal(ledger, home, good | {"output": str(way)})


# Rows


@pytest.mark.parametrize(
    "cells",
    [
        {"python_executable": "/tmp/evil"},
        {"env_script": "/tmp/evil.sh"},
        {"environment": {"LD_PRELOAD": "/tmp/evil.so"}},
        {"engine": "os"},
        {"queue": "cpu"},
        {"pace": "9"},  # a setting of this engine that only workers.toml may give
        {"settings": {"pace": 9}},
        {"settings": {"model_dir": "/tmp/evil"}},
    ],
    ids=str,
)
def test_a_row_cannot_reach_the_settings_of_a_deployment(home: Path, ledger: Ledger, cells: dict[str, object]) -> None:
    sentence = refusal(ledger, home, row(home) | cells)
    assert "there is no column" in sentence or "has no setting" in sentence


# The wire


def test_a_doorbell_carries_a_queue_and_nothing_else(
    home: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FARM_REDIS_URL", redis_url)
    assert Doorbell(load_settings()).ring(["cpu"])
    with contextlib.closing(redis.Redis.from_url(redis_url)) as client:
        (raw,) = client.lrange(f"farm:{queue_name('cpu')}", 0, -1)
    message = json.loads(raw)
    args, kwargs, embed = json.loads(base64.b64decode(message["body"]))
    assert (args, kwargs) == (["cpu"], {})
    assert not any(embed.values())
    assert message["content-type"] == "application/json"
    assert message["headers"]["task"] == "farm.doorbell"
    assert str(home) not in raw.decode()


# Secrets, over a TLS connection of an ACL user


@contextlib.contextmanager
def tls_in_front_of(unix_socket: Path, folder: Path) -> Iterator[tuple[int, Path]]:
    """A port on loopback that speaks TLS and passes on to a Unix socket; and the certificate to trust."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    argv: list[str | Path] = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    argv += ["-keyout", key, "-out", certificate, "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(argv, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    listener = socket.create_server(("127.0.0.1", 0))

    def pass_on(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):
            while data := source.recv(65_536):
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def converse(plain: socket.socket) -> None:
        with plain, socket.socket(socket.AF_UNIX) as server, contextlib.suppress(OSError):
            server.connect(str(unix_socket))
            with context.wrap_socket(plain, server_side=True) as secured:
                back = threading.Thread(target=pass_on, args=(server, secured), daemon=True)
                back.start()
                pass_on(secured, server)
                back.join()

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=converse, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield listener.getsockname()[1], certificate
    finally:
        listener.close()


@pytest.fixture
def guarded_farm(tmp_path: Path, postgres_url: str) -> Iterator[Stage]:
    """A farm whose Redis wants TLS, a user and a password, and whose ledger's URL holds a password too."""
    if redis_program() is None or shutil.which("openssl") is None:
        do_without("no private Redis, or no openssl to make a certificate")
    parts = urlsplit(postgres_url)
    user = (parts.username or "postgres") + f":{LEDGER_PASSWORD}@{parts.hostname or ''}"
    user += f":{parts.port}" if parts.port else ""
    with stage(ledger_url=urlunsplit(parts._replace(netloc=user))) as farm:
        with contextlib.closing(farm.redis.client()) as client:
            # What docs/security.md recommends.
            rules = ["~farm:*", "&*", "+@all", "-@admin", "-@dangerous"]
            client.execute_command("ACL", "SETUSER", "farm", "on", f">{PASSWORD}", *rules)
            client.execute_command("ACL", "SETUSER", "default", "off")
        with tls_in_front_of(farm.redis.socket, tmp_path) as (port, certificate):
            url = f"rediss://farm:{PASSWORD}@127.0.0.1:{port}/0?ssl_ca_certs={certificate}"
            farm.environment["FARM_REDIS_URL"] = url
            yield farm


def test_no_password_is_told_anywhere_in_a_whole_run_over_tls(guarded_farm: Stage) -> None:
    farm = guarded_farm
    farm.write_roster({"cpu0": {}, "r0": {"model": "pattern"}})
    with pytest.raises(redis.exceptions.AuthenticationError):
        redis.Redis.from_url(f"unix://{farm.redis.socket}").ping()
    for name in ("cpu0", "r0"):
        farm.start_worker(name)
    farm.wait_idle(["cpu0", "r0"])
    folder = farm.folder / "in"
    folder.mkdir()
    cells = {"portrait": material.portrait(folder / "p.png"), "audio": material.sound(folder / "a.wav", 1.5)}
    rows = [{**cells, "model": "pattern", "name": "good", "prompt": ""}]
    rows.append({**cells, "model": "pattern", "name": "bad", "prompt": "engine:5"})
    told: list[str] = []

    def tell(*words: str | Path, **env: str) -> None:
        done = farm.farm(*words, check=False, **env)
        told.extend((done.stdout, done.stderr))

    tell("submit", material.batch(folder / "b.csv", rows), "-o", farm.folder / "films")
    assert "does not answer" not in "".join(told), "the doorbell did not ring over TLS"
    with contextlib.closing(farm.open()) as ledger:

        def ended() -> bool:
            jobs = read.jobs(ledger)
            return len(jobs) == 2 and all(job.state in FINISHED for job in jobs)

        wait_for(ended, 120, "both jobs end")
        states = {job.name: job.state for job in read.jobs(ledger)}
    assert states == {"good": JobState.SUCCEEDED, "bad": JobState.FAILED}
    wait_for(lambda: "doorbells arrive" in farm.log_of("cpu0"), 120, "a worker hears a doorbell over TLS")
    # Both servers break off all connections, and a command line finds neither.
    with psycopg.connect(farm.ledger_url) as connection:
        mine = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = %s"
        connection.execute(mine, (urlsplit(farm.ledger_url).path.lstrip("/"),))
    farm.redis.stop()
    wait_for(lambda: "Connection" in farm.log_of("cpu0"), 120, "a worker notices")
    tell("status")
    tell("doctor")
    tell("jobs", "show", "2", "--history")
    nobody = urlunsplit(urlsplit(farm.ledger_url)._replace(path="/nobody", query="host=/nowhere"))
    tell("status", FARM_LEDGER_URL=nobody)
    tell("status", FARM_LEDGER_URL=nobody.replace("postgresql", "oracle"))
    farm.stop_workers()
    with psycopg.connect(farm.ledger_url) as connection:
        for table in ("events", "attempts", "segments", "jobs", "workers", "artifacts", "batches", "locks"):
            told.extend(map(str, connection.execute(f"SELECT * FROM {table}").fetchall()))  # type: ignore[arg-type]
    files = [path for path in farm.home.rglob("*") if path.is_file()]
    assert any(path.suffix == ".log" for path in files) and any("report" in path.name for path in files)
    for word in (PASSWORD, LEDGER_PASSWORD):
        assert not [path for path in files if word.encode() in path.read_bytes()]
        assert word not in "".join(told)


def test_a_host_does_not_inherit_the_urls_with_passwords(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from farm.devices import parse_devices
    from workers.host.parent import HostSpec

    monkeypatch.setenv("FARM_REDIS_URL", f"redis://:{PASSWORD}@host/0")
    monkeypatch.setenv("FARM_LEDGER_URL", f"postgresql://farm:{secrets.token_hex(4)}@host/farm")
    spec = HostSpec("engine", {}, parse_devices("cpu"), tmp_path / "log")
    inherited = spec.child_environment()
    assert "FARM_REDIS_URL" not in inherited and "FARM_LEDGER_URL" not in inherited
    assert os.environ["PATH"] == inherited["PATH"]
