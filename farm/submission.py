"""The story of a submission: check every row, write the good ones as one batch, ring the workers.

Every row is checked before anything is written.  The same rows again are the same jobs, because a job's key is the hash
of its inputs' content and of everything that decides its film; so an interrupted submit is simply repeated.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from reprlib import repr as shorten
from typing import Any

from farm.artifacts import sha256_of
from farm.batch import COLUMNS, BadRows, Row, RowProblem
from farm.config import Settings
from farm.doorbell import Doorbell
from farm.errors import InputError
from farm.forecast import Forecast, forecast
from farm.ledger import Ledger
from farm.ledger.budget import refuse_bad_budget
from farm.ledger.crew import take_owed_doorbells
from farm.ledger.files import KnownFile, known_files, remember_files
from farm.ledger.intake import Intake, known_jobs, outputs_in_use, take_in
from farm.ledger.values import JobRequest
from farm.media.probe import probe_audio, probe_image
from farm.models import ModelSpec, load_model
from farm.states import FINISHED, Continuity
from farm.store import open_store

PROBES_AT_ONCE = 4
NAME_LIMIT = 120  # characters of a film's name
OWNER_LIMIT = 200
_UNFIT = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]+')  # not fit for a file name on some system


@dataclass(frozen=True, slots=True)
class Submission:
    """What became of a batch file."""

    intake: Intake
    problems: tuple[RowProblem, ...]  # rows that were skipped
    rang: bool  # False: Redis did not answer; idle workers find the work by themselves
    new_rows: int  # rows that became jobs, or would have in a dry run
    would_be: tuple[JobRequest, ...] = ()  # in a dry run, those that would
    forecasts: tuple[Forecast, ...] = ()  # of those of which something was rendered before


@dataclass(frozen=True, slots=True)
class InputFile:
    """A portrait or audio that can be read, and what its probe said."""

    sha256: str
    facts: Mapping[str, Any]


def submit(
    ledger: Ledger,
    settings: Settings,
    rows: Sequence[Row],
    *,
    base: Path,
    source: str,
    name: str | None = None,
    owner: str | None = None,
    output_dir: Path | None = None,
    defaults: Mapping[str, Any] | None = None,
    skip_bad: bool = False,
    again: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    budget: float | None = None,
    doorbell: Doorbell | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    look_ahead: bool = False,
) -> Submission:
    """Turn rows into jobs.

    `base` is what relative paths start from, `defaults` are cells for rows that lack them, `again` makes new jobs of
    known rows, `overwrite` lets films replace files that the farm did not make, `budget` is what the new batch may cost
    in the money of the configured rates.  `look_ahead` listens to the sound of parallel films to tell what of them is
    known already.  Raises BadRows listing every bad row, unless `skip_bad`, and StoreError when the inputs could not be
    made reachable for the workers; nothing is submitted then.
    """
    refuse_bad_budget(budget)
    user = owner or _user()
    rows = [Row(row.number, {**(defaults or {}), **row.cells}) for row in rows]
    films = output_dir or (Path(settings.output_dir) if settings.output_dir else base / "films")
    files, file_errors = _look_at_files(ledger, settings, rows, base, on_progress)
    checker = RowChecker(
        settings, base, films.absolute(), user, files, file_errors, secrets.token_hex(8) if again else ""
    )
    requests: list[JobRequest] = []
    problems: list[RowProblem] = []
    for row in rows:
        try:
            requests.append(checker.check(row))
        except InputError as error:
            problems.append(RowProblem(row.number, str(error)))
    requests, taken = _check_outputs(ledger, requests, overwrite=overwrite)
    problems = sorted([*problems, *taken], key=lambda p: p.row)
    if problems and (not skip_bad or not requests):
        raise BadRows(problems, source)
    foreseen: tuple[Forecast, ...] = ()
    if dry_run or look_ahead:
        known = known_jobs(ledger, [r.key for r in requests])
        new = tuple(r for r in requests if r.key not in known)
        if look_ahead:
            foreseen = tuple(forecast(ledger, new, settings.segments.seconds))
        if dry_run:
            ids = tuple(known[r.key] for r in requests if r.key in known)
            return Submission(Intake(None, (), ids), tuple(problems), True, len(new), new, foreseen)
    open_store(settings).keep_inputs(_inputs_of(requests))
    intake = take_in(ledger, requests, name=name or Path(source).stem, source=source, owner=user, budget=budget)
    rang = True
    if intake.new_job_ids:
        bell = doorbell or Doorbell(settings)
        rang = bell.ring(take_owed_doorbells(ledger))
    return Submission(intake, tuple(problems), rang, len(intake.new_job_ids), forecasts=foreseen)


def _inputs_of(requests: Sequence[JobRequest]) -> set[tuple[str, str]]:
    return {pair for r in requests for pair in ((r.portrait, r.portrait_sha256), (r.audio, r.audio_sha256))}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _look_at_files(
    ledger: Ledger,
    settings: Settings,
    rows: Sequence[Row],
    base: Path,
    on_progress: Callable[[int, int], None] | None,
) -> tuple[dict[tuple[str, str], InputFile], dict[tuple[str, str], str]]:
    """Hash and probe every input once, by (column, path).  Files known by size and change time are not opened."""
    wanted = {
        (c, _absolute_text(str(row.cells[c]), str(base)))
        for row in rows
        for c in ("portrait", "audio")
        if row.cells.get(c) and _is_text(row.cells[c])  # the checker says what is wrong with the others
    }
    remembered = known_files(ledger, sorted({path for _, path in wanted}))
    found: dict[tuple[str, str], InputFile] = {}
    errors: dict[tuple[str, str], str] = {}
    fresh: dict[str, KnownFile] = {}

    def look(item: tuple[str, str]) -> tuple[tuple[str, str], InputFile | str, KnownFile | None]:
        column, path_text = item
        try:
            path = _allowed(Path(path_text), settings.input_roots, column)
            stat = path.stat()
            known = remembered.get(path_text)
            if (
                known
                and known.size_bytes == stat.st_size
                and known.mtime_ns == stat.st_mtime_ns
                and column in known.facts
            ):
                return item, InputFile(known.sha256, known.facts[column]), None
            facts = _probe(column, path, settings)
            digest = sha256_of(path)
            merged = {**(known.facts if known and known.sha256 == digest else {}), column: facts}
            return item, InputFile(digest, facts), KnownFile(path_text, stat.st_size, stat.st_mtime_ns, digest, merged)
        except InputError as error:
            return item, str(error), None
        except FileNotFoundError:
            return item, f"{column} {path_text} does not exist", None
        except OSError as error:
            return item, f"{column} {path_text} cannot be read: {error.strerror}", None

    with ThreadPoolExecutor(PROBES_AT_ONCE) as pool:
        for done, (item, result, learnt) in enumerate(pool.map(look, sorted(wanted)), start=1):
            if isinstance(result, str):
                errors[item] = result
            else:
                found[item] = result
            if learnt is not None:
                fresh[learnt.path] = learnt
            if on_progress is not None:
                on_progress(done, len(wanted))
    remember_files(ledger, list(fresh.values()))
    return found, errors


def _probe(column: str, path: Path, settings: Settings) -> dict[str, Any]:
    limits = settings.limits
    size = path.stat().st_size
    if column == "portrait":
        if size > limits.portrait_file_mb * 1e6:
            raise InputError(f"portrait {path} is larger than {limits.portrait_file_mb:g} MB; save a smaller copy")
        image = probe_image(path)
        return {"width": image.width, "height": image.height}
    if size > limits.audio_file_gb * 1e9:
        raise InputError(f"audio {path} is larger than {limits.audio_file_gb:g} GB; cut it or compress it")
    audio = probe_audio(path)
    if audio.duration_seconds > limits.audio_hours * 3600:
        raise InputError(
            f"audio {path} claims to last {audio.duration_seconds / 3600:.0f} hours;"
            f" the limit is {limits.audio_hours:g}"
        )
    return {"seconds": audio.duration_seconds, "rate": audio.sample_rate}


def _absolute(cell: Any, base: Path) -> Path:
    # Not resolved: the link that a person named is what the ledger remembers; `_allowed` follows it.
    return Path(_absolute_text(str(cell), str(base)))


@lru_cache(maxsize=65_536)  # a long batch names few portraits
def _absolute_text(cell: str, base: str) -> str:
    return os.path.abspath(os.path.join(base, os.path.expanduser(cell)))  # noqa: PTH100, PTH111, PTH118  quicker


def _allowed(path: Path, roots: Sequence[Path], what: str) -> Path:
    """`path` with its links resolved, if it lies under one of the roots.  Raises InputError."""
    try:
        resolved = path.resolve()
    except (OSError, RuntimeError):
        raise InputError(f"{what} {path} cannot be reached: its symbolic links go round in a circle") from None
    if roots and not any(resolved.is_relative_to(root.expanduser().resolve()) for root in roots):
        shown = ", ".join(str(root) for root in roots)
        raise InputError(f"{what} {path} lies outside of what this farm may use ({shown})")
    return resolved


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
            due=_deadline(cells.pop("deadline", None)),
            fresh=bool(self.salt),
        )

    def _file(self, column: str, cells: dict[str, Any]) -> tuple[Path, InputFile]:
        cell = cells.pop(column, None)
        if not cell:
            raise InputError(f"no {column}")
        item = (column, _absolute_text(str(cell), str(self.base)))
        if item in self.file_errors:
            raise InputError(self.file_errors[item])
        return Path(item[1]), self.files[item]

    def _output(self, cell: Any, name: str) -> Path:
        output = _absolute(cell, self.base) if cell else self.films / f"{name}.mp4"
        if cell and str(cell).endswith(("/", os.sep)):
            output = output / f"{name}.mp4"
        if output.suffix.lower() != ".mp4":
            output = output.with_name(output.name + ".mp4")
        if len(os.fsencode(output.name)) > 240:
            raise InputError(
                f"the film's name {output.name[:40]}… is longer than a file system allows; give a shorter name"
            )
        if output.is_dir():
            raise InputError(f"output {output} is a folder")
        if self.settings.output_roots:
            return _allowed(output, self.settings.output_roots, "output")
        return output


def _check_outputs(
    ledger: Ledger, requests: Sequence[JobRequest], *, overwrite: bool
) -> tuple[list[JobRequest], list[RowProblem]]:
    """Give rows of one batch that would write the same default file numbers; refuse to overwrite what is not ours."""
    good: list[JobRequest] = []
    problems: list[RowProblem] = []
    taken: dict[str, JobRequest] = {}
    for request in requests:
        first = taken.get(request.output)
        if first is not None and first.key == request.key:
            problems.append(RowProblem(request.row_number, f"this is the same film as row {first.row_number}"))
            continue
        if first is not None:
            request = _renamed(request, taken)
        taken[request.output] = request
        good.append(request)
    used = outputs_in_use(ledger, list(taken))
    known = known_jobs(ledger, [r.key for r in good])
    fit: list[JobRequest] = []
    for request in good:
        if request.key in known:
            fit.append(request)
            continue
        holder = used.get(request.output)
        if holder is not None and holder[2] not in FINISHED:
            problems.append(
                RowProblem(
                    request.row_number,
                    f"job {holder[1]} is about to write {request.output}; give another output",
                    holder[1],
                )
            )
        elif holder is None and not overwrite and Path(request.output).exists():
            problems.append(
                RowProblem(
                    request.row_number,
                    f"{request.output} exists and was not made by this farm; give another output, or --overwrite",
                )
            )
        else:
            fit.append(request)
    return fit, problems


def _renamed(request: JobRequest, taken: Mapping[str, JobRequest]) -> JobRequest:
    """The request with a number behind its film's name; the same in every repetition of the same rows."""
    path = Path(request.output)
    number = 2
    while str(path.with_name(f"{path.stem}-{number}{path.suffix}")) in taken:
        number += 1
    output = str(path.with_name(f"{path.stem}-{number}{path.suffix}"))
    key = hashlib.sha256(f"{request.key}:{output}".encode()).hexdigest()
    return replace(request, output=output, name=f"{request.name}-{number}", key=key)


def _is_text(cell: Any) -> bool:
    """Whether a cell can be a file's name and a database's text; a JSON line can hold what is neither."""
    try:
        str(cell).encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in str(cell)


def _check_text(name: str, cell: Any) -> None:
    for part in cell if isinstance(cell, list) else [cell]:
        if not _is_text(part):
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
    if len(prompt) > 2000:
        raise InputError(f"the prompt has {len(prompt)} characters; the limit is 2000")
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


def _deadline(cell: Any) -> float | None:
    if cell is None:
        return None
    try:
        when = datetime.fromisoformat(str(cell))
        return when.astimezone().timestamp()  # without a zone it is meant in this machine's
    except (ValueError, OverflowError, OSError):
        raise InputError(
            f"deadline must be a date such as 2026-12-24 or 2026-12-24T06:00, not {shorten(cell)}"
        ) from None


def _tags(cell: Any) -> tuple[str, ...]:
    words = cell if isinstance(cell, list) else re.split(r"[\s,;]+", str(cell))
    return tuple(dict.fromkeys(str(word) for word in words if word))
