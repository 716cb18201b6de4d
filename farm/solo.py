"""One film without a farm: a private ledger, a child process with its own workers, and the film at its place.

What was rendered is kept until the film is there: the same call after a crash or Ctrl-C goes on at the segment that was
in flight.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from farm.batch import BadRows, rows_from
from farm.config import Settings, home_from_environment, load_settings
from farm.doorbell import Doorbell
from farm.errors import EngineError, FarmError, InputError, Interrupted
from farm.ledger import Ledger, control, open_ledger, read
from farm.ledger.migrate import ensure_current
from farm.ledger.progress import JobProgress, job_progress
from farm.media.binary import find_ffmpeg
from farm.models import load_model
from farm.states import FINISHED, JobState, WorkerState
from farm.submission import submit

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.2
STOP_SECONDS = 15.0  # for the child to give back what it holds
KEEP_SECONDS = 7 * 86400.0  # how long the remains of a broken render wait for their continuation
_SHARED = ("farm.toml", "workers.toml", "models")  # of the user's home: how this machine renders

OnProgress = Callable[[JobProgress], None]
OnFilm = Callable[[Ledger, int], None]


def render_one(
    portrait: str | os.PathLike[str],
    audio: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    model: str | None = None,
    preset: str | None = None,
    on_progress: OnProgress | None = None,
    on_film: OnFilm | None = None,
    **settings: Any,
) -> Path:
    """Render one film on this machine, without Redis and without a running farm.  Returns the film's path.

    `settings` are the other columns of a batch file (seed, size, fps, prompt, …) and the model's own settings.  An
    existing file at `output` is replaced when the film is ready.  `on_progress` is called a few times per second,
    `on_film` once with the private ledger and the job's id, before that ledger is removed.

    Raises InputError when this portrait, audio or setting cannot be rendered, ConfigError, EngineError when the model
    failed or could not be loaded, Interrupted when the worker process was ended from outside.
    """
    base = load_settings()
    find_ffmpeg()  # without one every attempt would fail, one after the other
    row = {"portrait": portrait, "audio": audio, "output": Path(output).absolute(), "model": model, "preset": preset}
    cells = {k: os.fspath(v) if isinstance(v, os.PathLike) else v for k, v in (row | settings).items() if v is not None}
    spec = load_model(str(cells.get("model", base.default_model)))
    chosen = str(cells.get("preset", spec.default_preset))
    spec.preset(chosen)
    home = base.home / "render" / _name_of(cells)
    with _alone(home):
        _clear_old(home.parent)
        _share_configuration(home_from_environment(), home)
        local = base.store.model_copy(update={"url": ""})  # nobody else needs these files
        own = base.model_copy(update={"home": home, "ledger_url": "", "store": local})
        ledger = open_ledger(own.ledger)
        try:
            ensure_current(ledger)
            job_id = _submit(ledger, own, cells)
            film = _render(ledger, job_id, home, [spec.id, chosen], on_progress)
            if on_film is not None:
                on_film(ledger, job_id)
        except InputError:
            _finish(home)  # nothing here can be gone on with
            raise
        finally:
            ledger.close()
        _finish(home)
    return film


def _name_of(cells: Mapping[str, Any]) -> str:
    """The same call gets the same home, as long as its files did not change."""
    seen: dict[str, Any] = dict(cells)
    for column in ("portrait", "audio"):
        path = Path(str(cells[column])).expanduser().absolute()
        with contextlib.suppress(OSError):  # a file that cannot be read is told by submit
            stat = path.stat()
            seen[column] = [str(path), stat.st_size, stat.st_mtime_ns]
    return hashlib.sha256(json.dumps(seen, sort_keys=True, default=str).encode()).hexdigest()[:16]


@contextlib.contextmanager
def _alone(home: Path) -> Iterator[None]:
    home.mkdir(parents=True, exist_ok=True)
    lock = home.with_suffix(".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise InputError("this film is being rendered by another process already; wait for it") from None
    try:
        home.mkdir(parents=True, exist_ok=True)  # whoever held the lock before may have finished it
        yield
    finally:
        lock.close()


def _clear_old(renders: Path) -> None:
    """Remove what was given up a week ago; a render that runs touches its home."""
    for path in renders.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > KEEP_SECONDS:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _share_configuration(user_home: Path, home: Path) -> None:
    for name in _SHARED:
        link = home / name
        link.unlink(missing_ok=True)
        if (user_home / name).exists():
            link.symlink_to(user_home / name)
    os.utime(home)


class _NoDoorbell(Doorbell):
    """Rings nobody: the only workers poll this ledger."""

    def __init__(self) -> None:
        pass

    def ring(self, queues: Iterable[str]) -> bool:
        return True


def _submit(ledger: Ledger, settings: Settings, cells: Mapping[str, Any]) -> int:
    try:
        done = submit(
            ledger,
            settings,
            rows_from([cells]),
            base=Path.cwd(),
            source="farm render",
            overwrite=True,
            doorbell=_NoDoorbell(),
        )
    except BadRows as error:
        raise InputError(error.problems[0].sentence) from None
    (job_id,) = done.intake.job_ids
    if read.job(ledger, job_id).state in (JobState.FAILED, JobState.CANCELLED):
        control.retry(ledger, job_id)
    return job_id


def _render(ledger: Ledger, job_id: int, home: Path, argv: list[str], on_progress: OnProgress | None) -> Path:
    printed = home / "render.log"
    waits = False
    with printed.open("wb") as output, _worker(home, argv, output) as child:
        while True:
            ended = child.poll() is not None  # asked before the ledger: what the child wrote last is seen
            (progress,) = job_progress(ledger, [job_id])
            job = progress.job
            if on_progress is not None:
                on_progress(progress)
            if job.state in FINISHED or ended:
                break
            why = None if progress.workers else _why_waiting(ledger, child.pid)
            if why is not None and not waits:
                log.warning("the render waits: %s", why)
            waits = why is not None
            time.sleep(LOOK_SECONDS)
    if job.state is JobState.SUCCEEDED:
        return Path(read.films(ledger, [job_id])[job_id].path)
    if job.state is JobState.FAILED:
        raise (InputError if job.failure == "input" else EngineError)(job.reason or "the render failed")
    if child.returncode and child.returncode > 0:
        raise FarmError(f"the worker process could not start: {_last_line(printed)}")
    raise Interrupted("the render was stopped before its end; the same command goes on where it stopped")


def _why_waiting(ledger: Ledger, pid: int) -> str | None:
    """What keeps the workers of the child `pid` from taking the film up, such as a full disk, which may pass.

    Raises EngineError when the model could not be loaded: a worker would try again for ever, and whoever waits for one
    film mends it rather.
    """
    for worker in read.workers(ledger):
        if worker.pid != pid:
            continue  # of a render that was stopped, which this one goes on with
        if worker.reason and worker.state in (WorkerState.LOADING, WorkerState.SICK):
            raise EngineError(worker.reason)
        if worker.reason and worker.state is WorkerState.IDLE:
            return worker.reason
    return None


@contextlib.contextmanager
def _worker(home: Path, argv: list[str], output: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """The child process that prepares, renders and assembles; ended in every case."""
    environment = os.environ | {"FARM_HOME": str(home), "FARM_LEDGER_URL": f"sqlite:///{home / 'ledger.db'}"}
    environment |= {"FARM_STORE__URL": ""}
    child = subprocess.Popen(
        [sys.executable, "-m", "workers.solo", *argv],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,  # Ctrl-C is for us; the child is told to stop below
    )
    try:
        yield child
        child.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:
        if child.poll() is None:
            child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(STOP_SECONDS)
        if child.poll() is None:
            child.kill()
            child.wait()


def _last_line(path: Path) -> str:
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def _finish(home: Path) -> None:
    shutil.rmtree(home, ignore_errors=True)  # the lock's file stays a week: others may have it open
