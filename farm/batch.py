"""Reading batch files: CSV (comma, semicolon or tab) and JSON lines, into rows of plain words."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farm.errors import InputError

COLUMNS: Mapping[str, str] = {
    "portrait": "picture of the person; a path relative to the batch file",
    "audio": "the speech: any sound or video file; a path relative to the batch file",
    "name": "what the film is called; default: the audio file's name",
    "output": "where the film goes; default: films/<name>.mp4 beside the batch file",
    "model": "which model renders; default: default_model of farm.toml",
    "preset": "a named set of settings of the model; `farm models show MODEL` lists them",
    "prompt": "a sentence for models that read one",
    "seed": "whole number; the same seed gives the same film; default: made from portrait and audio",
    "fps": "frames per second, one of the model's",
    "size": "WIDTHxHEIGHT in pixels, such as 512x512",
    "priority": "-100 to 100; higher comes first; default 0",
    "deadline": "when the film is needed: 2026-12-24 or 2026-12-24T06:00; earlier comes first among equals",
    "continuity": "carry (one unbroken take) or parallel (many workers share one film)",
    "tags": "words to find the job by, separated by spaces",
    "owner": "for whom; owners take turns; default: your user name",
}
MAX_FILE_BYTES = 256 << 20
SHOWN_PROBLEMS = 50


@dataclass(frozen=True, slots=True)
class Row:
    """One row as written: its line in the file and its non-empty cells."""

    number: int
    cells: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RowProblem:
    row: int
    sentence: str
    in_the_way: int | None = None  # the open job that is about to write the same film


class BadRows(InputError):
    """Some rows cannot be rendered.  `problems` lists each with its line."""

    def __init__(self, problems: Sequence[RowProblem], source: str) -> None:
        self.problems = tuple(problems)
        shown = [f"{source}:{p.row}: {p.sentence}" for p in self.problems[:SHOWN_PROBLEMS]]
        if len(self.problems) > SHOWN_PROBLEMS:
            shown.append(f"… and {len(self.problems) - SHOWN_PROBLEMS} more")
        count = len(self.problems)
        what = "1 row cannot" if count == 1 else f"{count} rows cannot"
        super().__init__("\n".join([f"{what} be rendered; nothing was submitted.", *shown]))


def read_batch(path: Path) -> list[Row]:
    """The rows of a batch file.  Raises InputError when the file as a whole cannot be read."""
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder; give a CSV or JSONL file")
        if not path.is_file():
            raise InputError(f"{path} does not exist" if not path.exists() else f"{path} is not a regular file")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InputError(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB; split it")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(
            f"{path}:{line}: this is not UTF-8 text; save the file as UTF-8 (in Excel: CSV UTF-8)"
        ) from None
    if "\0" in text:
        raise InputError(f"{path} holds binary data; give a CSV or JSONL file in UTF-8")
    rows = _read_jsonl(text, path) if path.suffix.lower() in (".jsonl", ".ndjson") else _read_csv(text, path)
    if not rows:
        raise InputError(f"{path} has no rows")
    return rows


def _read_csv(text: str, path: Path) -> list[Row]:
    first_line = text.lstrip().split("\n", 1)[0]
    delimiter = max(",;\t", key=first_line.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[Row] = []
    header: list[str] | None = None
    line = 1
    try:
        for cells in reader:
            start, line = line, reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = _check_header([cell.strip().lower() for cell in cells], path)
                continue
            if len(cells) > len(header) and any(cell.strip() for cell in cells[len(header) :]):
                raise InputError(
                    f"{path}:{start}: {len(cells)} cells for {len(header)} columns; put quotes around a cell that holds"
                    f" {'a tab' if delimiter == chr(9) else repr(delimiter)}"
                )
            named = {name: cell.strip() for name, cell in zip(header, cells, strict=False) if cell.strip()}
            rows.append(Row(start, named))
    except csv.Error as error:
        raise InputError(f"{path}:{line}: {error}; is a quote missing?") from None
    if header is None:
        raise InputError(f"{path} is empty; its first line names the columns, at least portrait and audio")
    return rows


def _check_header(header: list[str], path: Path) -> list[str]:
    missing = [name for name in ("portrait", "audio") if name not in header]
    if missing:
        raise InputError(
            f"{path}:1: no column {' and no column '.join(missing)}; the first line names the columns"
            f" (found: {', '.join(header)})"
        )
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise InputError(f"{path}:1: column {twice[0]} stands twice")
    return header


def _read_jsonl(text: str, path: Path) -> list[Row]:
    rows: list[Row] = []
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines would cut at U+2028, which JSON may hold
        if not line.strip():
            continue
        try:
            cells = json.loads(line)
        except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
            said = getattr(error, "msg", "nested too deeply" if isinstance(error, RecursionError) else str(error))
            raise InputError(f"{path}:{number}: no JSON: {said}") from None
        if not isinstance(cells, dict):
            raise InputError(f"{path}:{number}: each line is one JSON object with portrait and audio")
        rows.append(Row(number, clean_cells(cells)))
    return rows


def clean_cells(cells: Mapping[str, Any]) -> dict[str, Any]:
    """Cells with names in lower case and without the empty ones; a table `settings` is spread out."""
    spread = dict(cells)
    nested = spread.pop("settings", None)
    if isinstance(nested, Mapping):
        spread = {**nested, **spread}
    return {str(k).strip().lower(): v for k, v in spread.items() if v is not None and v != ""}


def rows_from(items: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Rows given from Python, counted from 1."""
    return [Row(number, clean_cells(item)) for number, item in enumerate(items, start=1)]
