"""The portraits and recordings of a batch: where they lie, whether they can be read, and what is known of them.

A file is hashed and probed once; the ledger remembers both by size and change time.
"""

from __future__ import annotations

import os
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


@dataclass(frozen=True, slots=True)
class InputFile:
    """A portrait or audio that can be read, and what its probe said."""

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

    def look(item: tuple[str, str]) -> tuple[tuple[str, str], InputFile | str, KnownFile | None]:
        column, path_text = item
        try:
            path = allowed_path(Path(path_text), settings.input_roots, column)
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
