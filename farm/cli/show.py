"""How commands show things: tables for people, JSON lines for programs, progress only on a terminal."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any, TypeVar

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

_BREAKS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")  # what would end a row; two spaces may be part of a path

F = TypeVar("F", bound=Callable[..., Any])

STATE_STYLES: Mapping[str, str] = {
    "succeeded": "green",
    "failed": "bold red",
    "cancelled": "yellow",
    "paused": "yellow",
    "rendering": "cyan",
    "preparing": "cyan",
    "assembling": "cyan",
    "leased": "cyan",
    "idle": "green",
    "loading": "cyan",
    "sick": "bold red",
    "lost": "bold red",
    "draining": "yellow",
}


def console(*, stderr: bool = False) -> Console:
    """Standard output, or standard error.  Without a terminal there is no colour and no line is folded."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(highlight=False, soft_wrap=not stream.isatty(), stderr=stderr)


def json_option(command: F) -> F:
    """`--json`: one JSON object a line instead of a table."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for programs.")(command)


def echo_json(value: Any) -> None:
    click.echo(json.dumps(plain(value), ensure_ascii=False, default=str))


def plain(value: Any) -> Any:
    """Dataclasses as tables of their fields."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return value


def echo_rows(rows: Iterable[Mapping[str, Any]], *, as_json: bool, columns: Sequence[str], empty: str) -> None:
    """Rows as JSON lines with all their keys, or as a table of `columns`."""
    rows = list(rows)
    if as_json:
        for row in rows:
            echo_json(row)
        return
    if not rows:
        click.echo(empty, err=True)
        return
    out = console()
    if not out.is_terminal:
        click.echo("\t".join(columns))
        for row in rows:
            click.echo("\t".join(_one_line(row.get(column)) for column in columns))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        right = all(isinstance(row.get(column), int | float) or row.get(column) is None for row in rows)
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(cell(column, row.get(column)) for column in columns))
    out.print(table)


def cell(column: str, value: Any) -> Text:
    text = _one_line(value)
    return Text(text, style=STATE_STYLES.get(text, "") if column == "state" else "")


def _one_line(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return _BREAKS.sub(" ", str(value)).strip()


def length(seconds: float | None) -> str:
    """`75` as `1:15`, `3675` as `1:01:15`."""
    if seconds is None:
        return ""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, seconds_left = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{seconds_left:02d}" if hours else f"{minutes}:{seconds_left:02d}"


def moment(instant: float | None) -> str:
    """An instant of the ledger in local time."""
    return "" if instant is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(instant))


def times(factor: float | None) -> str:
    return "" if factor is None else f"{factor:.2f}x"
