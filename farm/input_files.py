"""The portraits and recordings of a batch: where they lie, whether they can be read, and what is known of them.

A file is hashed and probed once; the ledger remembers both by size and change time.
"""

from __future__ import annotations

import difflib
import itertools
import os
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from farm.artifacts import sha256_of
from farm.batch import Row
from farm.config import Settings
from farm.errors import InputError
from farm.ledger import Ledger
from farm.ledger.files import KnownFile, known_files, remember_files
from farm.media.probe import probe_audio, probe_image

PROBES_AT_ONCE = 4
NEAR = 0.8  # how like a name must be to be proposed, as difflib measures
MOST_NAMES = 10_000  # of a folder, among which a name is looked for
MOST_PROPOSED = 20  # of the missing files of a batch


@dataclass(frozen=True, slots=True)
class InputFile:
    """A portrait or audio that can be read, and what its probe said."""

    path: str  # as it lies on the disk, which may write a letter with an accent otherwise than the row
    sha256: str
    facts: Mapping[str, Any]


def look_at_files(
    ledger: Ledger,
    settings: Settings,
    rows: Sequence[Row],
    base: Path,
    on_progress: Callable[[int, int], None] | None,
) -> tuple[dict[tuple[str, str], InputFile], dict[tuple[str, str], str]]:
    """Hash and probe every input once.  Files known by size and change time are not opened.

    Returns those that can be read, and a sentence for each of the others, both by column and absolute path.
    `on_progress` hears how many files are done, of how many.
    """
    wanted = {
        (c, absolute_text(str(row.cells[c]), str(base)))
        for row in rows
        for c in ("portrait", "audio")
        if row.cells.get(c) and is_text(row.cells[c])  # the checker says what is wrong with the others
    }
    remembered = known_files(ledger, sorted({path for _, path in wanted}))
    found: dict[tuple[str, str], InputFile] = {}
    errors: dict[tuple[str, str], str] = {}
    fresh: dict[str, KnownFile] = {}
    folders = _Folders()

    def look(item: tuple[str, str]) -> tuple[tuple[str, str], InputFile | str, KnownFile | None]:
        column, path_text = item
        try:
            place = folders.as_it_lies(path_text)
            path = allowed_path(Path(place), settings.input_roots, column)
            stat = path.stat()
            known = remembered.get(path_text)
            if (
                known
                and known.size_bytes == stat.st_size
                and known.mtime_ns == stat.st_mtime_ns
                and column in known.facts
            ):
                return item, InputFile(place, known.sha256, known.facts[column]), None
            facts = _probe(column, path, settings)
            digest = sha256_of(path)
            merged = {**(known.facts if known and known.sha256 == digest else {}), column: facts}
            learnt = KnownFile(path_text, stat.st_size, stat.st_mtime_ns, digest, merged)
            return item, InputFile(place, digest, facts), learnt
        except InputError as error:
            return item, str(error), None
        except FileNotFoundError:
            # Where inputs are bounded, others may ask than those who may list their folders.
            meant = "" if settings.input_roots else folders.nearest(path_text)
            return item, f"{column} {path_text} does not exist{meant}", None
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


class _Folders:
    """What lies in the folders of a batch.  Each is listed once, and only if something was not found in it."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}
        self._proposed = itertools.count()

    def as_it_lies(self, path_text: str) -> str:
        """The path of a file whose name is the same text, if there is none of these very letters.

        Unicode has two ways of writing `ü`: a Mac packs file names the one way, and a spreadsheet writes the other.
        """
        if path_text.isascii() or os.path.lexists(path_text):
            return path_text
        folder, name = os.path.split(path_text)
        folder, wanted = self.as_it_lies(folder), unicodedata.normalize("NFC", name)
        same = (other for other in self._names_in(folder) if unicodedata.normalize("NFC", other) == wanted)
        return os.path.join(folder, next(same, name))  # noqa: PTH118  quicker

    def nearest(self, path_text: str) -> str:
        """The file that was perhaps meant, as the end of a sentence."""
        if next(self._proposed) >= MOST_PROPOSED:  # a batch of which everything is missing is not helped so
            return ""
        folder, name = os.path.split(path_text)
        near = difflib.get_close_matches(name, self._names_in(folder), n=1, cutoff=NEAR)
        return f"; perhaps {near[0]} is meant, which lies there" if near else ""

    def _names_in(self, folder: str) -> list[str]:
        if folder not in self._names:
            try:
                self._names[folder] = sorted(os.listdir(folder))[:MOST_NAMES]  # noqa: PTH208  names and no paths
            except OSError:
                self._names[folder] = []
        return self._names[folder]


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


@lru_cache(maxsize=65_536)  # a long batch names few portraits
def absolute_text(cell: str, base: str) -> str:
    """A path as it stands in a cell, made absolute.

    Its links are not followed: the one that a person named is what the ledger remembers, and `allowed_path` follows it.
    """
    return os.path.abspath(os.path.join(base, os.path.expanduser(cell)))  # noqa: PTH100, PTH111, PTH118  quicker


def allowed_path(path: Path, roots: Sequence[Path], what: str) -> Path:
    """`path` with its links resolved, if it lies under one of the roots.  Raises InputError."""
    try:
        resolved = path.resolve()
    except (OSError, RuntimeError):
        raise InputError(f"{what} {path} cannot be reached: its symbolic links go round in a circle") from None
    if roots and not any(resolved.is_relative_to(root.expanduser().resolve()) for root in roots):
        shown = ", ".join(str(root) for root in roots)
        raise InputError(f"{what} {path} lies outside of what this farm may use ({shown})")
    return resolved


def is_text(cell: Any) -> bool:
    """Whether a cell can be a file's name and a database's text; a JSON line can hold what is neither."""
    try:
        str(cell).encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in str(cell)
