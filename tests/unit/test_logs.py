"""Logs say what was worked on, as text or JSON, and hold no secrets."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest

from farm.logs import SPARED_SECONDS, log_ids, log_to_stderr, redact


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://farm:s3cret@db/farm is away", "postgresql://farm:***@db/farm is away"),
        ("redis://:s3cret@db:6379/0", "redis://:***@db:6379/0"),
        ("rediss://u:p%40ss@h and redis://u:two@h", "rediss://u:***@h and redis://u:***@h"),
        ("postgresql+psycopg://u:s3cret:with:colons@h/d", "postgresql+psycopg://u:***@h/d"),
        ("api_key=abcdef123", "api_key=***"),
        ("{'Authorization': 'Bearer abcdef'}", "{'Authorization': ***'}"),
        ("password: hunter22", "password: ***"),
        ("secret_key = abcdef123", "secret_key = ***"),
        ("AWS_SECRET_ACCESS_KEY=abc/def+123", "AWS_SECRET_ACCESS_KEY=***"),
        ("check store.secret_key", "check store.secret_key"),
        ("job 7 segment 3/9: begins, attempt 1", "job 7 segment 3/9: begins, attempt 1"),
        ("http://localhost:8000/jobs/7", "http://localhost:8000/jobs/7"),
        ("token 3", "token 3"),
    ],
)
def test_secrets_are_blotted_out_and_the_rest_is_kept(text: str, shown: str) -> None:
    assert redact(text) == shown


@pytest.mark.parametrize("text", ["x" * 300_000, "a://b:" * 20_000, "token=" * 20_000, "password" + " " * 100_000])
def test_an_endless_text_is_read_once_and_not_once_per_character(text: str) -> None:
    """Quadratic work on these would run into the suite's time limit, and on a worker into its lease's."""
    assert len(redact(text)) <= len(text)


@pytest.fixture
def said(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    root, stream = logging.getLogger(), io.StringIO()
    before, level = root.handlers[:], root.level
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr("sys.excepthook", sys.excepthook)  # put back afterwards, as the next one
    monkeypatch.setattr("threading.excepthook", threading.excepthook)
    try:
        log_to_stderr(getattr(request, "param", "text"))
        yield stream
    finally:
        logging.captureWarnings(False)
        root.handlers[:] = before
        root.setLevel(level)


def test_a_warning_is_said_once_a_minute_and_again_of_another_job(said: io.StringIO) -> None:
    log = logging.getLogger("farm.test")
    for problem in ("away", "away", "full", "away"):
        log.warning("the ledger is %s", problem)
    with log_ids(job=7):
        log.warning("the ledger is away")
    with log_ids(job=7):
        log.error("the ledger is away")
        log.error("the ledger is away")
    assert [line.split("the ledger is ")[1] for line in said.getvalue().splitlines()] == [
        "away",
        "full",
        "away [job=7]",
        "away [job=7]",
        "away [job=7]",
    ]
    later = logging.LogRecord("farm.test", logging.WARNING, "", 0, "the ledger is away", (), None)
    later.created += SPARED_SECONDS + 1
    logging.getLogger().handle(later)
    assert said.getvalue().endswith("the ledger is away\n")


def test_tracebacks_are_blotted_too_and_times_are_utc(said: io.StringIO) -> None:
    try:
        raise ConnectionError("redis://:s3cret@db does not answer")
    except ConnectionError:
        logging.getLogger("farm.x").exception("could not ring %s", "redis://:s3cret@db")
    text = said.getvalue()
    assert "s3cret" not in text
    assert text.count("redis://:***@db") == 3  # the message, the failing source line and the exception
    assert text[10] == "T" and text[23] == "Z"
    assert " ERROR   farm.x: could not ring" in text


as_json = pytest.mark.parametrize("said", ["json"], indirect=True)


def json_lines(said: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in said.getvalue().splitlines()]


def test_every_line_inside_bears_the_ids_and_the_next_one_does_not(said: io.StringIO) -> None:
    log = logging.getLogger("farm.x")
    with log_ids(worker="gpu0@box"):
        with log_ids(job=7, step="render", segment=3, attempt=1):
            log.info("begins")
        log.info("waits")
    log.info("ends")
    lines = [line.partition("farm.x: ")[2] for line in said.getvalue().splitlines()]
    assert lines == [
        "begins [worker=gpu0@box job=7 step=render segment=3 attempt=1]",
        "waits [worker=gpu0@box]",
        "ends",
    ]


@as_json
def test_ids_belong_to_a_thread_and_not_to_its_neighbours(said: io.StringIO) -> None:
    def work(job: int) -> None:
        with log_ids(job=job):
            both.wait(10)
            logging.getLogger("farm.x").info("works")

    both = threading.Barrier(2)
    threads = [threading.Thread(target=work, args=(job,)) for job in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(str(line["job"]) for line in json_lines(said)) == ["1", "2"]


@as_json
def test_a_json_line_holds_time_level_logger_message_and_ids(said: io.StringIO) -> None:
    with log_ids(worker="cpu@box", job=7):
        logging.getLogger("farm.x").warning('said "%s"\nand more', "第三课")
    (line,) = json_lines(said)
    assert datetime.fromisoformat(str(line.pop("time"))).utcoffset() == timedelta(0)
    assert line == {
        "level": "WARNING",
        "logger": "farm.x",
        "message": 'said "第三课"\nand more',
        "worker": "cpu@box",
        "job": 7,
    }


@as_json
def test_a_json_line_holds_no_secret_and_the_whole_traceback(said: io.StringIO) -> None:
    try:
        raise ConnectionError('redis://:s3cret@db does not answer, password="hunter22"\nnor later')
    except ConnectionError:
        logging.getLogger("farm.x").exception("could not ring %s", "redis://:s3cret@db")
    (line,) = json_lines(said)
    assert "s3cret" not in said.getvalue() and "hunter22" not in said.getvalue()
    assert line["message"] == "could not ring redis://:***@db"
    assert str(line["traceback"]).startswith("Traceback")
    assert str(line["traceback"]).endswith("nor later")


@pytest.mark.parametrize("where", ["main", "thread"])
def test_what_nobody_catches_is_one_line_without_its_secrets(where: str) -> None:
    code = (
        "import threading\nfrom farm.logs import log_to_stderr\nlog_to_stderr('json')\n"
        "def fail():\n    raise ValueError('of redis://:s3cret@db')\n"
    )
    code += "fail()" if where == "main" else "threading.Thread(target=fail).start()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    (line,) = done.stderr.splitlines()
    said = json.loads(line)
    assert (said["level"], said["message"]) == ("CRITICAL", "nobody caught ValueError")
    assert said["traceback"].endswith("ValueError: of redis://:***@db")
    assert "s3cret" not in line


def test_a_command_says_a_warning_that_lasts_once() -> None:
    code = (
        "import logging\nfrom farm.logs import warn_on_stderr\nwarn_on_stderr()\n"
        "for _ in range(3):\n    logging.getLogger('farm.x').warning('the disk is full')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == "the disk is full\n"
