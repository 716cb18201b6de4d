"""Logging: one line a message, with the ids of what was worked on, and no secrets.

Two formats.  As text a line ends with the ids, `[worker=gpu0@box job=7 step=render segment=3 attempt=1]`; as JSON each
line is an object with `time`, `level`, `logger`, `message`, the ids and, where there is one, the `traceback`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import Literal

LogFormat = Literal["text", "json"]

SPARED_SECONDS = 60.0
SPARED_LINES = 256  # how many different warnings are remembered

# Every repetition is bounded: an error text of megabytes must not take minutes, as it would if each of its characters
# could begin a scheme that is looked for to the end.
_SECRETS = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]{0,30}://[^\s:/@]{0,100}):(?P<password>[^\s@]{1,300})@", re.IGNORECASE
)
_KEYS = re.compile(
    r"(?P<name>(?:api[_-]?key|access[_-]?key|password|secret(?:[_-]?(?:access[_-]?)?key)?|token|authorization)[\"']?\s*[=:]\s*)"
    r"[\"']?(?:(?:bearer|basic)\s+)?[^\s\"',]{4,}",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """`text` without the passwords of URLs and the values of keys."""
    return _KEYS.sub(r"\g<name>***", _SECRETS.sub(r"\g<scheme>:***@", text))


_ids: ContextVar[Mapping[str, str | int]] = ContextVar("log_ids", default={})  # noqa: B039 - replaced, never changed


@contextlib.contextmanager
def log_ids(**ids: str | int) -> Iterator[None]:
    """Every line that this thread or task logs inside bears these ids, beside those that it bears already.

    A thread that is started inside begins without any.
    """
    before = _ids.set({**_ids.get(), **ids})
    try:
        yield
    finally:
        _ids.reset(before)


def add_log_ids(**ids: str | int) -> None:
    """As `log_ids`, until the thread or task ends."""
    _ids.set({**_ids.get(), **ids})


class StampIds(logging.Filter):
    """Notes the ids in the record, in the thread that logs it."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.ids = _ids.get()
        return True


class SpareRepetitions(logging.Filter):
    """Keeps back a warning that the log bears already since less than a minute, word for word and with the same ids.

    A ledger that is away for a night would otherwise be told every few seconds, by each thread.
    """

    def __init__(self) -> None:
        super().__init__()
        self._said_at: dict[tuple[str, str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno != logging.WARNING or record.exc_info:
            return True
        line = (record.name, record.getMessage(), str(getattr(record, "ids", "")))
        if record.created - self._said_at.get(line, -SPARED_SECONDS) < SPARED_SECONDS:
            return False
        if len(self._said_at) >= SPARED_LINES:
            self._said_at.clear()
        self._said_at[line] = record.created
        return True


class _Text(logging.Formatter):
    converter = staticmethod(time.gmtime)

    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03dZ %(levelname)-7s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        ids: Mapping[str, str | int] = getattr(record, "ids", {})
        shown = f" [{' '.join(f'{name}={value}' for name, value in ids.items())}]" if ids else ""
        return super().formatMessage(record) + shown

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


class _Json(logging.Formatter):
    converter = staticmethod(time.gmtime)

    def format(self, record: logging.LogRecord) -> str:
        said: dict[str, str | int] = {
            "time": f"{self.formatTime(record, '%Y-%m-%dT%H:%M:%S')}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "ids", {}),
        }
        if record.exc_info:
            said["traceback"] = self.formatException(record.exc_info)
        # Before they are quoted: a secret may end where JSON puts a backslash.
        return json.dumps({k: redact(v) if isinstance(v, str) else v for k, v in said.items()}, ensure_ascii=False)


def warn_on_stderr() -> None:
    """For commands that keep no log: warnings as logging's last resort puts them, each sentence once a minute."""
    assert logging.lastResort is not None
    logging.lastResort.addFilter(SpareRepetitions())


def log_to_stderr(log_format: LogFormat = "text", level: int = logging.INFO) -> None:
    """Log to stderr, which `farm up` and systemd turn into files.  Replaces earlier handlers.

    What nobody catches, and Python's own warnings, become lines of the log too.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if log_format == "json" else _Text())
    handler.addFilter(StampIds())
    handler.addFilter(SpareRepetitions())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread
    for chatty in (
        "alembic",
        "kombu",
        "amqp",
        "PIL",
        "boto3",
        "botocore",
        "urllib3",
        "celery.worker.strategy",  # two lines for each doorbell, with its id
        "celery.app.trace",
    ):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    logging.getLogger("farm").critical("nobody caught %s", kind.__name__, exc_info=(kind, error, trace))


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and not issubclass(args.exc_type, SystemExit):
        _log_uncaught(args.exc_type, args.exc_value, args.exc_traceback)
