"""Logging: one line a message, with the worker's and job's names in it, and no secrets."""

from __future__ import annotations

import logging
import re
import sys
import time

# Every repetition is bounded: an error text of megabytes must not take minutes, as it would if each of its characters
# could begin a scheme that is looked for to the end.
_SECRETS = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]{0,30}://[^\s:/@]{0,100}):(?P<password>[^\s@]{1,300})@", re.IGNORECASE
)
_KEYS = re.compile(
    r"(?P<name>(?:api[_-]?key|password|secret|token|authorization)[\"']?\s*[=:]\s*)"
    r"[\"']?(?:(?:bearer|basic)\s+)?[^\s\"',]{4,}",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """`text` without the passwords of URLs and the values of keys."""
    return _KEYS.sub(r"\g<name>***", _SECRETS.sub(r"\g<scheme>:***@", text))


class _Redacting(logging.Formatter):
    converter = staticmethod(time.gmtime)

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def log_to_stderr(level: int = logging.INFO) -> None:
    """Log to stderr, which `farm up` and systemd turn into files.  Replaces earlier handlers."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _Redacting("%(asctime)s.%(msecs)03dZ %(levelname)-7s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for chatty in ("alembic", "kombu", "amqp", "PIL"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
