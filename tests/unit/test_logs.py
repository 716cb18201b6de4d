"""Logs hold no secrets."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest

from farm.logs import log_to_stderr, redact


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
def said(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    root, stream = logging.getLogger(), io.StringIO()
    before, level = root.handlers[:], root.level
    monkeypatch.setattr("sys.stderr", stream)
    try:
        log_to_stderr()
        yield stream
    finally:
        root.handlers[:] = before
        root.setLevel(level)


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
