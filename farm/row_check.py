"""One row of a batch as a job request: every cell is read and checked here."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from reprlib import repr as shorten
from typing import Any

from farm.batch import COLUMNS, Row
from farm.config import Settings
from farm.errors import InputError
from farm.input_files import InputFile, absolute_text, allowed_path, is_text
from farm.ledger.values import JobRequest
from farm.models import ModelSpec, load_model
from farm.states import Continuity

NAME_LIMIT = 120  # characters of a film's name
FILE_NAME_LIMIT = 240  # bytes; file systems allow 255, and a name that comes twice gets a number
OWNER_LIMIT = 200  # characters
PROMPT_LIMIT = 2000  # characters
_UNFIT = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]+')  # not fit for a file name on some system

_SHEET_DATE = re.compile(
    r"(?:(?P<y>\d{4})/(?P<m>\d{1,2})/(?P<d>\d{1,2})|(?P<D>\d{1,2})\.(?P<M>\d{1,2})\.(?P<Y>\d{4}))"
    r"(?:[ T](?P<hour>\d{1,2}):(?P<rest>\d{2}(?::\d{2})?))?"
)


@dataclass(frozen=True)
class RowChecker:
    """Turns rows into job requests.  Opens no file: what was learnt of the inputs is given."""

    settings: Settings
    base: Path
    films: Path
    user: str
    files: Mapping[tuple[str, str], InputFile]
    file_errors: Mapping[tuple[str, str], str]
    salt: str  # not empty: make new jobs of known rows
    models: dict[str, ModelSpec] = field(default_factory=dict)  # those that were read for an earlier row

    def _model(self, model_id: str) -> ModelSpec:
        if model_id not in self.models:
            self.models[model_id] = load_model(model_id)
        return self.models[model_id]

    def check(self, row: Row) -> JobRequest:
        """One row as a job request.  Raises InputError."""
        cells = dict(row.cells)
        for name, cell in cells.items():
            _check_text(name, cell)
        portrait_path, portrait = self._file("portrait", cells)
        audio_path, audio = self._file("audio", cells)
        model = self._model(str(cells.pop("model", self.settings.default_model)))
        preset = str(cells.pop("preset", model.default_preset))
        given = {name: cells.pop(name) for name in list(cells) if name not in COLUMNS}
        unknown = [name for name in given if name not in model.settings]
        if unknown:
            raise InputError(
                f"there is no column {unknown[0]!r}; columns are {', '.join(COLUMNS)}"
                f" and the settings of model {model.id}: {', '.join(model.settings) or 'none'}"
            )
        resolved = model.resolve(preset, given)
        prompt = _prompt(cells.pop("prompt", None), model)
        width, height = model.read_size(cells.pop("size", None))
        fps = model.read_fps(cells.pop("fps", None))
        continuity = _continuity(cells.pop("continuity", Continuity.CARRY))
        # An edit of the sound must not give every segment of a parallel film another seed.
        heard = "" if continuity is Continuity.PARALLEL else audio.sha256
        seed = _seed(cells.pop("seed", None), portrait.sha256, heard)
        name = _film_name(cells.pop("name", None) or audio_path.stem)
        output = self._output(cells.pop("output", None), name)
        decides = {
            "portrait": portrait.sha256,
            "audio": audio.sha256,
            "model": model.id,
            "preset": preset,
            "settings": resolved,
            "prompt": prompt,
            "seed": seed,
            "size": [width, height],
            "fps": list(fps),
            "continuity": continuity.value,
            "output": str(output),
            "again": self.salt,
        }
        return JobRequest(
            row_number=row.number,
            key=hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest(),
            name=name,
            owner=_owner(cells.pop("owner", None) or self.user),
            tags=_tags(cells.pop("tags", "")),
            portrait=str(portrait_path),
            portrait_sha256=portrait.sha256,
            audio=str(audio_path),
            audio_sha256=audio.sha256,
            audio_seconds=float(audio.facts["seconds"]),
            output=str(output),
            model=model.id,
            preset=preset,
            queue=model.queue_for(preset),
            settings=resolved,
            prompt=prompt,
            seed=seed,
            width=width,
            height=height,
            fps=fps,
            continuity=continuity,
            priority=_whole(cells.pop("priority", 0), "priority", -100, 100),
            due=read_deadline(cells.pop("deadline", None)),
            fresh=bool(self.salt),
        )

    def _file(self, column: str, cells: dict[str, Any]) -> tuple[Path, InputFile]:
        cell = cells.pop(column, None)
        if not cell:
            raise InputError(f"no {column}")
        item = (column, absolute_text(str(cell), str(self.base)))
        if item in self.file_errors:
            raise InputError(self.file_errors[item])
        found = self.files[item]
        return Path(found.path), found

    def _output(self, cell: Any, name: str) -> Path:
        output = Path(absolute_text(str(cell), str(self.base))) if cell else self.films / f"{name}.mp4"
        if cell and str(cell).endswith(("/", os.sep)):
            output = output / f"{name}.mp4"
        if output.suffix.lower() != ".mp4":
            output = output.with_name(output.name + ".mp4")
        if len(os.fsencode(output.name)) > FILE_NAME_LIMIT:
            raise InputError(
                f"the film's name {output.name[:40]}… is longer than a file system allows; give a shorter name"
            )
        if output.is_dir():
            raise InputError(f"output {output} is a folder")
        if self.settings.output_roots:
            return allowed_path(output, self.settings.output_roots, "output")
        return output


def _check_text(name: str, cell: Any) -> None:
    for part in cell if isinstance(cell, list) else [cell]:
        if not is_text(part):
            raise InputError(f"{name} holds characters that no file name or text may have")


def _owner(cell: Any) -> str:
    owner = str(cell)
    if len(owner) > OWNER_LIMIT:
        raise InputError(f"owner has {len(owner)} characters; the limit is {OWNER_LIMIT}")
    return owner


def _film_name(cell: Any) -> str:
    name = _UNFIT.sub(" ", str(cell)).strip(" .")
    return name[:NAME_LIMIT].rstrip(" .") or "film"


def _prompt(cell: Any, model: ModelSpec) -> str:
    if cell is None:
        return model.default_prompt
    prompt = str(cell)
    if len(prompt) > PROMPT_LIMIT:
        raise InputError(f"the prompt has {len(prompt)} characters; the limit is {PROMPT_LIMIT}")
    return prompt


def _continuity(cell: Any) -> Continuity:
    try:
        return Continuity(str(cell).strip().lower())
    except ValueError:
        raise InputError(f"continuity must be carry or parallel, not {shorten(cell)}") from None


def _seed(cell: Any, portrait_sha256: str, audio_sha256: str) -> int:
    if cell is None:
        return int(hashlib.sha256(f"{portrait_sha256}{audio_sha256}".encode()).hexdigest()[:7], 16)
    return _whole(cell, "seed", 0, 2**31 - 1)


def _whole(cell: Any, what: str, low: int, high: int) -> int:
    try:
        number = int(str(cell))
    except ValueError:
        raise InputError(f"{what} must be a whole number, not {shorten(cell)}") from None
    if not low <= number <= high:
        raise InputError(f"{what} must be from {low} to {high}, not {number}")
    return number


def read_deadline(cell: Any) -> float | None:
    """A date, with a time or without, as seconds since 1970-01-01 UTC; None for None.  Raises InputError."""
    if cell is None:
        return None
    try:
        when = datetime.fromisoformat(_as_iso(str(cell)))
        return when.astimezone().timestamp()  # without a zone it is meant in this machine's
    except (ValueError, OverflowError, OSError):
        raise InputError(
            f"deadline must be a date such as 2026-12-24 or 2026-12-24T06:00, not {shorten(cell)}"
        ) from None


def _as_iso(text: str) -> str:
    """A date as a spreadsheet writes it, where only one can be meant: 24.12.2026 or 2026/12/24, also with 6:00."""
    found = _SHEET_DATE.fullmatch(text.strip())
    if found is None:
        return text
    year, month, day = (int(found[y] or found[d]) for y, d in (("y", "Y"), ("m", "M"), ("d", "D")))
    clock = f"T{int(found['hour']):02d}:{found['rest']}" if found["hour"] else ""
    return f"{year:04d}-{month:02d}-{day:02d}{clock}"


def _tags(cell: Any) -> tuple[str, ...]:
    words = cell if isinstance(cell, list) else re.split(r"[\s,;]+", str(cell))
    return tuple(dict.fromkeys(str(word) for word in words if word))
