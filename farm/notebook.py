"""Progress and films where people see them: a bar in a notebook or a terminal, a film that plays in the cell."""

from __future__ import annotations

import base64
import html
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from farm.ledger.progress import JobProgress
from farm.states import FINISHED, JobState

INLINE_LIMIT_BYTES = 32 << 20  # a larger film would swell the notebook's file


class ProgressShow:
    """Shows how far some jobs are: call it with their progress, then `close`.

    In a notebook it is one bar that is drawn anew, in a terminal one line on stderr, elsewhere nothing.
    """

    def __init__(self) -> None:
        self._display: Any = None
        self._cell = _in_notebook()
        self._line = not self._cell and sys.stderr.isatty()

    def __call__(self, progress: Sequence[JobProgress]) -> None:
        if self._cell:
            self._draw(_bar_html(progress))
        elif self._line:
            sys.stderr.write("\r\x1b[K" + describe(progress))
            sys.stderr.flush()

    def close(self) -> None:
        if self._line:
            sys.stderr.write("\n")

    def _draw(self, text: str) -> None:
        shown: Any = importlib.import_module("IPython.display")  # a notebook has it; the farm does not need it
        if self._display is None:
            self._display = shown.display(shown.HTML(text), display_id=True)
        else:
            self._display.update(shown.HTML(text))


def share_of(progress: Sequence[JobProgress]) -> float:
    """Part of all frames that exist, 0 to 1; jobs that ended without a film count as done."""
    total = sum(p.job.audio_seconds for p in progress)
    done = sum(p.job.audio_seconds * (1.0 if p.job.state in FINISHED else p.share) for p in progress)
    return done / total if total else 1.0


def describe(progress: Sequence[JobProgress]) -> str:
    """One line: `1 of 3 films, 42 %, 0:12 left; a talk: segment 2/5 on gpu0@box`."""
    films = sum(p.job.state is JobState.SUCCEEDED for p in progress)
    failed = sum(p.job.state is JobState.FAILED for p in progress)
    text = f"{films} of {len(progress)} films, {share_of(progress):.0%}"
    left = [p.seconds_left for p in progress if p.seconds_left is not None]
    if left:
        minutes, seconds = divmod(round(max(left)), 60)
        text += f", {minutes}:{seconds:02d} left"
    if failed:
        text += f", {failed} failed"
    busy = [p for p in progress if p.workers] or [p for p in progress if p.job.state not in FINISHED]
    return f"{text}; {busy[0].job.name}: {busy[0].doing}" if busy else text


def _bar_html(progress: Sequence[JobProgress]) -> str:
    return (
        f'<progress value="{share_of(progress):.4f}" max="1" style="width:24em"></progress>'
        f"<div>{html.escape(describe(progress))}</div>"
    )


def film_html(film: Path) -> str:
    """A player for a notebook's cell, with the film in it unless that is too large."""
    if film.stat().st_size > INLINE_LIMIT_BYTES:
        return f"<div>{html.escape(str(film))} is too large to be shown here</div>"
    data = base64.b64encode(film.read_bytes()).decode("ascii")
    return f'<video controls style="max-width:100%;max-height:30em" src="data:video/mp4;base64,{data}"></video>'


def _in_notebook() -> bool:
    shell = sys.modules.get("IPython")
    found = shell.get_ipython() if shell is not None else None
    return found is not None and type(found).__name__ == "ZMQInteractiveShell"
