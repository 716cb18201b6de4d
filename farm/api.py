"""The Python API.

    import farm

    batch = farm.submit("lectures.csv")                 # or a list of {"portrait": …, "audio": …}
    for job in batch.wait(progress=True):
        print(job.film)

    farm.render("anna.jpg", "hello.wav", out="hello.mp4")   # one film here and now, without a running farm

The functions use the farm that the settings name (FARM_HOME, FARM_LEDGER_URL); `Farm(settings)` is another one.
"""

from __future__ import annotations

import asyncio
import html
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

from farm.batch import RowProblem, read_batch, rows_from
from farm.config import Settings, load_settings
from farm.doorbell import ring_owed
from farm.errors import SomeJobsFailed
from farm.ledger import Ledger, control, open_ledger, read
from farm.ledger.migrate import ensure_current
from farm.ledger.progress import JobProgress, job_progress
from farm.ledger.values import Artifact, LedgerEvent
from farm.ledger.values import Job as JobValue
from farm.notebook import ProgressShow, film_html
from farm.solo import OnProgress, render_one
from farm.states import FINISHED, ArtifactKind, JobState
from farm.store import Folder, Store, deliver, open_store
from farm.submission import submit as submit_rows

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
STUCK_SECONDS = 30.0  # how often `wait` says aloud that no worker can take the work

PathLike = str | os.PathLike[str]
Rows = PathLike | Sequence[Mapping[str, Any]]
OnBatchProgress = Callable[[Sequence[JobProgress]], None]


class Farm:
    """One farm: its settings and its ledger.  Thread-safe; close it, or use it as a context manager."""

    def __init__(self, settings: Settings | None = None) -> None:
        """Raises ConfigError, and LedgerError when the ledger does not answer."""
        self.settings = settings or load_settings()
        self.ledger: Ledger = open_ledger(self.settings.ledger)
        ensure_current(self.ledger)
        self.store = open_store(self.settings)

    def __enter__(self) -> Farm:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.ledger.close()

    def submit(
        self,
        rows: Rows,
        *,
        name: str | None = None,
        owner: str | None = None,
        output_dir: PathLike | None = None,
        skip_bad: bool = False,
        again: bool = False,
        overwrite: bool = False,
        **defaults: Any,
    ) -> Batch:
        """Submit a CSV or JSONL file, or rows given as mappings; `defaults` are cells for rows that lack them.

        The same rows again are the same jobs, unless `again`.  `skip_bad` leaves out rows that cannot be rendered;
        without it one such row means that nothing is submitted.  `overwrite` lets films replace files that the farm
        did not make.  Relative paths start at the file's folder, or at the current one.  Raises InputError.
        """
        if isinstance(rows, str | os.PathLike):
            path = Path(rows).expanduser().absolute()
            parsed, base, source = read_batch(path), path.parent, str(path)
        else:
            parsed, base, source = rows_from(rows), Path.cwd(), "python"
        done = submit_rows(
            self.ledger,
            self.settings,
            parsed,
            base=base,
            source=source,
            name=name,
            owner=owner,
            output_dir=Path(output_dir) if output_dir is not None else None,
            defaults={k: os.fspath(v) if isinstance(v, os.PathLike) else v for k, v in defaults.items()},
            skip_bad=skip_bad,
            again=again,
            overwrite=overwrite,
        )
        return Batch(self, done.intake.batch_id, done.intake.job_ids, done.problems)

    def job(self, job_id: int) -> Job:
        """Raises NotFound."""
        read.job(self.ledger, job_id)
        return Job(self, job_id)

    def batch(self, batch_id: int) -> Batch:
        """Raises NotFound."""
        read.batch(self.ledger, batch_id)
        return Batch(self, batch_id, tuple(control.job_ids_of_batch(self.ledger, batch_id)))

    def jobs(self, *, states: Sequence[JobState] = (), owner: str | None = None, limit: int | None = 100) -> list[Job]:
        """Jobs, newest first."""
        found = read.jobs(self.ledger, states=[JobState(s) for s in states], owner=owner, limit=limit)
        return [Job(self, value.id) for value in found]

    def ring(self) -> None:
        """Wake the workers for what was put back into a queue.  Without Redis they find it by themselves."""
        ring_owed(self.ledger, self.settings)


@dataclass(frozen=True)
class Film:
    """A published film.  It is a path for `open` and `shutil.copy`, and plays in a notebook's cell."""

    place: str  # a path, or where in the object store it lies
    frames: int
    seconds: float
    width: int
    height: int
    size_bytes: int
    sha256: str
    artifact: Artifact = field(repr=False, compare=False)
    store: Store = field(repr=False, compare=False)

    @cached_property
    def path(self) -> Path:
        """The film on this machine; one that lies in an object store is fetched when this is first asked for."""
        return self.store.fetch(self.artifact)

    def save(self, target: PathLike, *, overwrite: bool = False) -> Path:
        """Put the film at `target`, or into it if it is a folder.  Raises InputError when another file is there."""
        wanted = Path(target).expanduser().absolute()
        if wanted.is_dir():
            wanted = wanted / Path(self.place).name
        return deliver(self.store, self.artifact, wanted, overwrite=overwrite)

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def _repr_html_(self) -> str:
        return film_html(self.path)


@dataclass(frozen=True)
class Job:
    """A job of the ledger.  It holds no state of its own: every question is asked anew."""

    farm: Farm = field(repr=False, compare=False)
    id: int

    @property
    def value(self) -> JobValue:
        """Everything that the ledger holds of it."""
        return read.job(self.farm.ledger, self.id)

    @property
    def state(self) -> str:
        """queued, preparing, rendering, assembling, succeeded, failed, cancelled or paused."""
        return self.value.shown_state

    @property
    def reason(self) -> str | None:
        """Why it failed or was cancelled, in one sentence."""
        return self.value.reason

    @property
    def film(self) -> Film | None:
        """None until it is published."""
        found = read.artifacts(self.farm.ledger, self.id, ArtifactKind.FILM)
        return film_of(found[-1], self.farm.store) if found else None

    def status(self) -> JobProgress:
        """Frames done, what it is doing, on which worker, how fast and how long still."""
        return job_progress(self.farm.ledger, [self.id])[0]

    def events(self) -> list[LedgerEvent]:
        """Its history, oldest first."""
        return read.events(self.farm.ledger, job_id=self.id, limit=100_000)

    def cancel(self) -> bool:
        """False if it had ended already.  A render stops at its next chunk."""
        return control.cancel(self.farm.ledger, self.id)

    def pause(self) -> bool:
        return control.pause(self.farm.ledger, self.id)

    def resume(self) -> bool:
        resumed = control.resume(self.farm.ledger, self.id)
        self.farm.ring()
        return resumed

    def retry(self) -> bool:
        """Put what failed or was cancelled back into the queue; what was rendered is kept.  False if there is none."""
        put_back = control.retry(self.farm.ledger, self.id)
        self.farm.ring()
        return put_back > 0

    def set_priority(self, priority: int) -> None:
        """-100 to 100; higher comes first."""
        control.set_priority(self.farm.ledger, self.id, priority)

    def wait(self, *, progress: bool | OnBatchProgress = False, timeout_seconds: float | None = None) -> Job:
        """Wait until it ended.  Raises SomeJobsFailed unless there is a film, and TimeoutError."""
        Batch(self.farm, None, (self.id,)).wait(progress=progress, timeout_seconds=timeout_seconds)
        return self

    async def wait_async(self, *, timeout_seconds: float | None = None) -> Job:
        """`wait` for asyncio; cancelling it leaves the job alone."""
        await Batch(self.farm, None, (self.id,)).wait_async(timeout_seconds=timeout_seconds)
        return self

    def _repr_html_(self) -> str:
        film = self.film
        return film._repr_html_() if film is not None else _table([self.status()])


@dataclass(frozen=True)
class Batch:
    """The jobs of one submit, in the order of their rows.  Iterating gives its jobs."""

    farm: Farm = field(repr=False, compare=False)
    id: int | None  # None when every row was known before
    job_ids: tuple[int, ...]
    problems: tuple[RowProblem, ...] = ()  # rows that were left out

    def __iter__(self) -> Iterator[Job]:
        return (Job(self.farm, job_id) for job_id in self.job_ids)

    def __len__(self) -> int:
        return len(self.job_ids)

    def status(self) -> list[JobProgress]:
        return job_progress(self.farm.ledger, self.job_ids)

    @property
    def films(self) -> dict[int, Film]:
        """The films that are there, by job id."""
        found = read.films(self.farm.ledger, self.job_ids)
        return {i: film_of(artifact, self.farm.store) for i, artifact in found.items()}

    def cancel(self) -> int:
        """Returns how many jobs were cancelled."""
        return sum(job.cancel() for job in self)

    def retry(self) -> int:
        """Returns how many jobs were put back."""
        return sum(job.retry() for job in self)

    def wait(
        self,
        *,
        progress: bool | OnBatchProgress = False,
        timeout_seconds: float | None = None,
        check: bool = True,
    ) -> list[Job]:
        """Wait until every job ended; returns the jobs.

        `progress` is True for a bar in the notebook or terminal, or a function that takes the jobs' progress.  Raises
        SomeJobsFailed naming the first reason unless `check` is False, and TimeoutError.  Ctrl-C ends the waiting and
        leaves the jobs alone.
        """
        watcher = _Watcher(self, progress, timeout_seconds)
        try:
            while not watcher.look():
                time.sleep(LOOK_SECONDS)
        finally:
            watcher.close()
        return self._ended(check)

    async def wait_async(
        self,
        *,
        progress: bool | OnBatchProgress = False,
        timeout_seconds: float | None = None,
        check: bool = True,
    ) -> list[Job]:
        """`wait` for asyncio; the ledger is read in a thread."""
        watcher = _Watcher(self, progress, timeout_seconds)
        try:
            while not await asyncio.to_thread(watcher.look):
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            watcher.close()
        return await asyncio.to_thread(self._ended, check)

    def _ended(self, check: bool) -> list[Job]:
        bad = [p for p in self.status() if p.job.state is not JobState.SUCCEEDED]
        if bad and check:
            first = bad[0].job
            raise SomeJobsFailed(
                f"{len(bad)} of {len(self)} jobs have no film; job {first.id} ({first.name}) {first.state}:"
                f" {first.reason or 'without a reason'}"
            )
        return list(self)

    def _repr_html_(self) -> str:
        return _table(self.status())


class _Watcher:
    """Asks until all jobs ended."""

    def __init__(self, batch: Batch, progress: bool | OnBatchProgress, timeout_seconds: float | None) -> None:
        self._batch = batch
        self._show = ProgressShow() if progress is True else None
        self._tell: OnBatchProgress | None = self._show or (progress if callable(progress) else None)
        self._deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        self._speak_at = time.monotonic() + STUCK_SECONDS

    def look(self) -> bool:
        progress = self._batch.status()
        if self._tell is not None:
            self._tell(progress)
        if all(p.job.state in FINISHED for p in progress):
            return True
        now = time.monotonic()
        if self._deadline is not None and now > self._deadline:
            raise TimeoutError("the jobs have not ended in time; they go on")
        if now > self._speak_at:
            self._speak_at = now + STUCK_SECONDS
            for stuck in read.stuck(self._batch.farm.ledger):
                log.warning("%s", stuck.reason)
        return False

    def close(self) -> None:
        if self._show is not None:
            self._show.close()


def film_of(artifact: Artifact, store: Store) -> Film:
    facts = artifact.facts
    return Film(
        place=artifact.path,
        frames=int(facts.get("frames", 0)),
        seconds=float(facts.get("video_seconds", 0.0)),
        width=int(facts.get("width", 0)),
        height=int(facts.get("height", 0)),
        size_bytes=artifact.size_bytes,
        sha256=artifact.sha256,
        artifact=artifact,
        store=store,
    )


def _table(progress: Sequence[JobProgress]) -> str:
    rows = "".join(
        f"<tr><td>{p.job.id}</td><td>{html.escape(p.job.name)}</td><td>{p.job.shown_state}</td><td>{p.share:.0%}</td>"
        f"<td>{html.escape(p.last_error or p.doing)}</td></tr>"
        for p in progress
    )
    return f"<table><tr><th>job</th><th>name</th><th>state</th><th>done</th><th></th></tr>{rows}</table>"


# The farm that the settings name


@cache
def default_farm() -> Farm:
    return Farm()


def submit(rows: Rows, **options: Any) -> Batch:
    """`Farm.submit` on the farm that the settings name."""
    return default_farm().submit(rows, **options)


async def submit_async(rows: Rows, **options: Any) -> Batch:
    """`submit` for asyncio; files are looked at in threads."""
    return await asyncio.to_thread(lambda: submit(rows, **options))


def jobs(**filters: Any) -> list[Job]:
    """`Farm.jobs` on the farm that the settings name."""
    return default_farm().jobs(**filters)


def render(
    portrait: PathLike,
    audio: PathLike,
    out: PathLike | None = None,
    *,
    model: str | None = None,
    preset: str | None = None,
    progress: Literal[True] | OnProgress | None = None,
    **settings: Any,
) -> Film:
    """Render one film here and now, without Redis and without a running farm.

    `out` is by default the audio's name with .mp4 in the current folder.  `progress` is True for a bar, or a function.
    The same call after a crash goes on where it was.  `settings` are the columns of a batch file and the model's own.
    Raises InputError, ConfigError, EngineError.
    """
    output = Path(out) if out is not None else Path.cwd() / f"{Path(audio).stem}.mp4"
    show = ProgressShow() if progress is True else None
    last: list[JobProgress] = []

    def tell(one: JobProgress) -> None:
        last[:] = [one]
        if show is not None:
            show([one])
        elif callable(progress):
            progress(one)

    films: list[Artifact] = []
    try:
        path = render_one(
            portrait,
            audio,
            output,
            model=model,
            preset=preset,
            on_progress=tell,
            on_film=lambda ledger, job_id: films.append(read.artifact(ledger, job_id, ArtifactKind.FILM)),
            **settings,
        )
    finally:
        if show is not None:
            show.close()
    assert films[0].path == str(path)
    return film_of(films[0], Folder(path.parent))


async def render_async(portrait: PathLike, audio: PathLike, out: PathLike | None = None, **options: Any) -> Film:
    """`render` for asyncio."""
    return await asyncio.to_thread(lambda: render(portrait, audio, out, **options))
