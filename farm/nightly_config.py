"""What a nightly run is told: which courses, when, in what order, whom to tell.

configs/nightly.toml explains each key.  Relative paths in the file start at the file's own folder.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any, Literal, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from farm.batch import Row, read_batch
from farm.config import NAME, first_problem, read_toml
from farm.errors import ConfigError, InputError

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = get_args(Day)
PICTURES = (".jpg", ".jpeg", ".png", ".webp")
COURSE_PORTRAIT = "portrait"  # portrait.jpg in a folder is the portrait of all lectures in and below it
_CLOCK = re.compile(r"\d\d?:\d\d")


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _clock_time(text: str) -> time:
    """`22:00` as a time of day.  Raises ValueError."""
    if not _CLOCK.fullmatch(text):
        raise ValueError(f"write a time of day such as 22:00, not {text!r}")
    hour, minute = map(int, text.split(":"))
    return time(hour, minute)


class CourseSettings(_Table):
    """One course: a folder of recordings, or batch files."""

    folder: str = ""
    batches: str = ""
    audio: list[str] = ["*.mp3", "*.m4a", "*.wav", "*.flac", "*.ogg", "*.opus", "*.aac"]
    portrait: str = ""
    portraits: str = ""
    films: str = ""
    set: dict[str, Any] = {}

    @model_validator(mode="after")
    def _is_one_of_two(self) -> CourseSettings:
        if bool(self.folder) == bool(self.batches):
            raise ValueError("name either a folder of recordings or batches, a pattern for batch files")
        if self.batches and (self.portrait or self.portraits):
            raise ValueError("batch files name their portraits themselves")
        return self


class WindowSettings(_Table):
    start: str
    end: str
    days: list[Day] = Field(default=["mon", "tue", "wed", "thu", "fri", "sat", "sun"], min_length=1)
    timezone: str = ""
    stop: Literal["chunk", "segment"] = "chunk"
    segment_minutes: float = Field(default=10.0, ge=0)

    @field_validator("start", "end")
    @classmethod
    def _is_a_time(cls, text: str) -> str:
        _clock_time(text)
        return text

    @field_validator("timezone")
    @classmethod
    def _is_a_zone(cls, name: str) -> str:
        try:
            if name:
                ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"there is no time zone {name!r}; write one such as Europe/Berlin") from None
        return name


class CostSettings(_Table):
    per_device_hour: float = Field(default=0.0, ge=0)
    currency: str = ""


class MailSettings(_Table):
    host: str
    port: int = Field(default=587, ge=1, le=65535)
    security: Literal["starttls", "tls", "none"] = "starttls"
    user: str = ""
    sender: str
    to: list[str] = Field(min_length=1)


class SummarySettings(_Table):
    folder: str = ""
    webhook: str = ""
    mail: MailSettings | None = None

    @field_validator("webhook")
    @classmethod
    def _is_http(cls, url: str) -> str:
        if url and not re.match(r"https?://[^/\s]+", url):
            raise ValueError("must begin with https:// or http://")
        return url


@dataclass(frozen=True, slots=True)
class Night:
    """One opening of the window, in seconds since 1970-01-01 UTC."""

    begin: float
    end: float

    def is_open(self, at: float) -> bool:
        return self.begin <= at < self.end


@dataclass(frozen=True, slots=True)
class Window:
    """When the farm may render: from `start` to `end` on the wall, on nights that begin on one of `days`."""

    start: time
    end: time
    days: frozenset[int]  # 0 is Monday
    zone: ZoneInfo | None  # None: the machine's

    def last(self, at: float) -> Night:
        """The newest night that has begun by `at`."""
        return next(n for n in self._nights(at, range(0, -9, -1)) if n.begin <= at)

    def next(self, at: float) -> Night:
        """The first night that begins after `at`."""
        return next(n for n in self._nights(at, range(0, 9)) if n.begin > at)

    def _nights(self, at: float, offsets: range) -> Iterator[Night]:
        today = datetime.fromtimestamp(at, self.zone).date()
        for offset in offsets:
            day = today + timedelta(days=offset)
            if day.weekday() in self.days:
                yield self._night(day)

    def _night(self, day: date) -> Night:
        ends_on = day if self.end > self.start else day + timedelta(days=1)
        # Each end is converted by itself: a night in which the clock is changed is an hour shorter or longer.
        begin, end = (datetime.combine(d, t, self.zone) for d, t in ((day, self.start), (ends_on, self.end)))
        return Night(begin.timestamp(), end.timestamp())

    def first_time_after(self, clock: time, at: float) -> datetime:
        """The first instant after `at` at which the wall clock shows `clock`."""
        today = datetime.fromtimestamp(at, self.zone).date()
        moments = (datetime.combine(today + timedelta(days=n), clock, self.zone) for n in (0, 1))
        return next(m for m in moments if m.timestamp() > at).astimezone(self.zone)


class NightlySettings(_Table):
    """A nightly file."""

    name: str = ""
    courses: list[CourseSettings] = Field(min_length=1)
    priority: int = Field(default=0, ge=-100, le=100)
    deadline: str = ""
    owner: str = ""
    settle_seconds: float = Field(default=60.0, ge=0)
    up: bool = False
    retry_failed: bool = True
    overwrite: bool = False
    window: WindowSettings | None = None
    cost: CostSettings = CostSettings()
    summary: SummarySettings = SummarySettings()

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if name and not NAME.fullmatch(name):
            raise ValueError("letters, digits, '.', '_' and '-' only")
        return name

    @field_validator("deadline")
    @classmethod
    def _is_a_deadline(cls, text: str) -> str:
        if text and not _CLOCK.fullmatch(text):
            datetime.fromisoformat(text)
        elif text:
            _clock_time(text)
        return text


@dataclass(frozen=True, slots=True)
class Nightly:
    """A nightly file that was read: its settings, and where its relative paths start."""

    path: Path
    settings: NightlySettings

    @property
    def name(self) -> str:
        return self.settings.name or re.sub(r"[^A-Za-z0-9._-]+", "-", self.path.stem).strip("-.") or "nightly"

    @property
    def tag(self) -> str:
        """What the jobs of this nightly are marked with, so that the next night knows them again."""
        return f"nightly:{self.name}"

    @property
    def window(self) -> Window:
        """Without a [window] table the window is open all day, every day."""
        given = self.settings.window or WindowSettings(start="00:00", end="00:00")
        zone = ZoneInfo(given.timezone) if given.timezone else None
        days = frozenset(DAYS.index(day) for day in given.days)
        return Window(_clock_time(given.start), _clock_time(given.end), days, zone)

    def place(self, path: str) -> Path:
        """A path of the file: `~` is the home folder, and a relative one starts beside the file."""
        return Path(os.path.abspath(self.path.parent / Path(path).expanduser()))  # noqa: PTH100  keeps links

    def defaults(self, course: CourseSettings, night: Night) -> dict[str, Any]:
        """Cells for rows that lack them."""
        cells = dict(course.set)
        if self.settings.priority:
            cells.setdefault("priority", self.settings.priority)
        if self.settings.owner:
            cells.setdefault("owner", self.settings.owner)
        deadline = self.settings.deadline
        if _CLOCK.fullmatch(deadline):
            deadline = self.window.first_time_after(_clock_time(deadline), night.begin).isoformat()
        if deadline:
            cells.setdefault("deadline", deadline)
        return cells


def read_nightly(path: Path) -> Nightly:
    """Raises ConfigError naming file and key."""
    if not path.is_file():
        raise ConfigError(f"{path} does not exist; configs/nightly.toml is an example to copy")
    try:
        nightly = Nightly(path.absolute(), NightlySettings(**read_toml(path)))
    except ValidationError as error:
        key, sentence = first_problem(error)
        raise ConfigError(f"{path}: {key or 'nightly'}: {sentence}") from None
    for number, course in enumerate(nightly.settings.courses):
        for word in course.set:
            if word in ("portrait", "audio", "name", "output", "tags"):
                raise ConfigError(f"{path}: courses.{number}.set.{word}: this column differs from lecture to lecture")
    return nightly


# Rows


@dataclass(frozen=True, slots=True)
class Left:
    """A lecture or a file of lectures that cannot be rendered tonight, and why."""

    what: str
    sentence: str

    def __str__(self) -> str:
        return self.sentence if self.sentence.startswith(self.what) else f"{self.what}: {self.sentence}"


@dataclass(frozen=True, slots=True)
class RowSet:
    """Rows that are submitted together."""

    source: str
    base: Path
    films: Path | None
    rows: Sequence[Row]
    course: CourseSettings


def find_rows(nightly: Nightly, at: float) -> tuple[list[RowSet], list[Left]]:
    """What the courses hold at `at`, seconds since 1970.  Files that were changed just now wait for the next look."""
    sets: list[RowSet] = []
    left: list[Left] = []
    for course in nightly.settings.courses:
        try:
            found = _folder_rows if course.folder else _batch_rows
            sets += found(nightly, course, at, left)
        except OSError as error:
            left.append(Left(course.folder or course.batches, f"cannot be read: {error.strerror}"))
    return sets, left


def _tagged(nightly: Nightly, cells: dict[str, Any]) -> dict[str, Any]:
    tags = cells.get("tags", "")
    words = [str(word) for word in tags] if isinstance(tags, list) else [str(tags)]
    return {**cells, "tags": " ".join([*words, nightly.tag]).strip()}


def _batch_rows(nightly: Nightly, course: CourseSettings, at: float, left: list[Left]) -> list[RowSet]:
    pattern = str(nightly.place(course.batches))
    files = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207  an absolute pattern
    if not files:
        left.append(Left(course.batches, "no batch file has such a name"))
    sets: list[RowSet] = []
    for file in files:
        if _is_fresh(nightly, file, at):
            continue
        try:
            rows = [Row(row.number, _tagged(nightly, dict(row.cells))) for row in read_batch(file)]
        except InputError as error:
            left.append(Left(str(file), str(error)))
            continue
        films = nightly.place(course.films) if course.films else None
        sets.append(RowSet(str(file), file.parent, films, rows, course))
    return sets


def _folder_rows(nightly: Nightly, course: CourseSettings, at: float, left: list[Left]) -> list[RowSet]:
    folder = nightly.place(course.folder)
    if not folder.is_dir():
        left.append(Left(str(folder), "there is no such folder"))
        return []
    films = nightly.place(course.films) if course.films else folder / "films"
    rows: list[Row] = []
    taken: dict[Path, Path] = {}
    for audio in _recordings(folder, films, course.audio):
        output = films / audio.relative_to(folder).with_suffix(".mp4")
        portrait = _portrait_of(nightly, course, folder, audio)
        if _is_fresh(nightly, audio, at) or (portrait and portrait.is_file() and _is_fresh(nightly, portrait, at)):
            continue
        if output in taken:
            left.append(Left(str(audio), f"{taken[output].name} beside it becomes the film of this name; rename one"))
        elif portrait is None:
            left.append(
                Left(
                    str(audio),
                    f"no portrait: put {audio.stem}.jpg beside it, or portrait.jpg into its folder,"
                    f" or name one in {nightly.path.name}",
                )
            )
        else:
            taken[output] = audio
            cells = {"portrait": str(portrait), "audio": str(audio), "output": str(output)}
            rows.append(Row(len(rows) + 1, _tagged(nightly, cells)))
    return [RowSet(str(folder), folder, films, rows, course)] if rows else []


def _recordings(folder: Path, films: Path, patterns: Sequence[str]) -> list[Path]:
    """The recordings in and below a folder, without hidden files and without the films."""
    found: list[Path] = []
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and Path(here, name) != films)
        for name in sorted(names):
            if not name.startswith(".") and any(fnmatch.fnmatchcase(name.lower(), p.lower()) for p in patterns):
                found.append(Path(here, name))
    return found


def _portrait_of(nightly: Nightly, course: CourseSettings, folder: Path, audio: Path) -> Path | None:
    """The lecture's own portrait, else the nearest folder's, else the course's; None if there is none."""
    own = _picture(audio.parent, audio.stem)
    if own is None and course.portraits:
        own = _picture(nightly.place(course.portraits), audio.stem)
    if own is not None:
        return own
    for place in (audio.parent, *audio.parent.parents):
        picture = _picture(place, COURSE_PORTRAIT)
        if picture is not None:
            return picture
        if place == folder:
            break
    return nightly.place(course.portrait) if course.portrait else None


def _picture(folder: Path, stem: str) -> Path | None:
    candidates = (folder / f"{stem}{suffix}" for ending in PICTURES for suffix in (ending, ending.upper()))
    return next((path for path in candidates if path.is_file()), None)


def _is_fresh(nightly: Nightly, path: Path, at: float) -> bool:
    """Whether a file may still be being copied.  One that comes from the future is taken as it is."""
    try:
        age = at - path.stat().st_mtime
    except OSError:
        return False
    return 0 <= age < nightly.settings.settle_seconds
