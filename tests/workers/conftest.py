"""Real hosts with the fake engine, and small real farms around them."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
import wave
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image
from sqlalchemy import event, update

from farm.artifacts import is_staging_name
from farm.batch import rows_from
from farm.config import Settings, load_settings
from farm.devices import DeviceSet
from farm.ledger import Ledger, moves, open_ledger, read
from farm.ledger.audit import audit
from farm.ledger.migrate import upgrade
from farm.ledger.tables import SegmentRow
from farm.ledger.values import Job, Lease
from farm.media.verify import frame_hashes
from farm.roster import WorkerSpec
from farm.states import ArtifactKind, JobState, SegmentKind
from farm.store import open_store
from farm.submission import submit
from workers.announce import Announcer
from workers.host.parent import Host, HostSpec, Progress, Rendered
from workers.preparing import prepare
from workers.runner import Runner, make_runner
from workers.solo import at_work

HERE = Path(__file__).resolve().parent
CHUNK = 5
SIZE = 64
FRAME_BYTES = SIZE * SIZE * 3
PATIENCE = 120.0  # seconds that a test waits for something that takes a moment on an idle machine


def wait_until(true: Callable[[], Any], what: str) -> Any:
    """Wait for a true answer and return it."""
    deadline = time.monotonic() + PATIENCE
    while not (answer := true()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.01)
    return answer


def is_dead(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture(autouse=True)
def own_cards(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cards that no test beside this one holds: they are locked machine-wide otherwise."""
    monkeypatch.setenv("FARM_CARD_LOCKS", str(tmp_path_factory.mktemp("cards")))


@pytest.fixture(scope="session")
def portrait(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("portrait") / "portrait.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (96, 96, 3), np.uint8)).save(path)
    return path


@pytest.fixture(scope="session")
def driving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten seconds of sound as `prepare` decodes it."""
    path = tmp_path_factory.mktemp("driving") / "driving.f32"
    np.random.default_rng(2).uniform(-1, 1, 160_000).astype("<f4").tofile(path)
    return path


def write_speech(path: Path, seconds: float, seed: int = 3) -> Path:
    """A 16-bit WAV of noise."""
    sound = np.random.default_rng(seed).uniform(-0.3, 0.3, round(seconds * 16_000))
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((sound * 32767).astype("<i2").tobytes())
    return path


# Hosts


def fake_spec(log: Path, *, spec: dict[str, Any] | None = None, **settings: Any) -> HostSpec:
    values: dict[str, Any] = {
        "engine_module": "fake_engine",
        "engine_settings": settings,
        "devices": DeviceSet("cpu"),
        "log_file": log,
        "environment": {"PYTHONPATH": str(HERE)},
        "load_timeout_seconds": PATIENCE,
    }
    return HostSpec(**(values | (spec or {})))


StartHost = Callable[..., Host]


@pytest.fixture
def start_host(tmp_path: Path) -> Iterator[StartHost]:
    """`start_host(**settings)`: a loaded host; `spec={...}` changes how it is launched."""
    started: list[Host] = []

    def start(**settings: Any) -> Host:
        host = Host(fake_spec(tmp_path / "host.log", **settings))
        started.append(host)
        host.start()
        return host

    yield start
    for host in started:
        host.close()


@pytest.fixture(scope="session")
def shared_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    host = Host(fake_spec(tmp_path_factory.mktemp("host") / "host.log"))
    yield host
    host.kill()


@pytest.fixture
def host(shared_host: Host) -> Host:
    """A warm host that tests share as long as it lives."""
    if not shared_host.is_alive:
        shared_host.start()
    return shared_host


@dataclass
class Heard:
    """What came out of one render."""

    events: list[Progress | Rendered] = field(default_factory=list)
    frames: bytes = b""
    error: Exception | None = None

    @property
    def end(self) -> Rendered:
        assert self.error is None, self.error
        assert isinstance(self.events[-1], Rendered)
        return self.events[-1]

    def frame(self, number: int) -> bytes:
        return self.frames[number * FRAME_BYTES : (number + 1) * FRAME_BYTES]


Render = Callable[..., Heard]


@pytest.fixture
def render(portrait: Path, driving: Path) -> Render:
    """`render(host, frames, first=…, carry=…, prompt=…)`, with a reader in the encoder's place."""

    def run(
        host: Host,
        frames: int,
        *,
        first: int = 0,
        total: int = 250,
        carry: bytes | None = None,
        prompt: str = "",
        on_progress: Callable[[Progress], None] = lambda progress: None,
        read: bool = True,
        **film: Any,
    ) -> Heard:
        heard, parts = Heard(), []
        read_end, write_end = os.pipe()
        request = {
            "portrait": str(portrait),
            "audio": str(driving),
            "total_frames": total,
            "width": SIZE,
            "height": SIZE,
            "fps": [25, 1],
            "prompt": prompt,
            "seed": 7,
            "settings": {},
            "facts": {},
            "save_memory": False,
        } | film

        def take() -> None:
            while part := os.read(read_end, 1 << 16):
                parts.append(part)

        reader = threading.Thread(target=take)
        if read:
            reader.start()
        else:
            os.close(read_end)
        try:
            for event in host.render(request, first_frame=first, frames=frames, carry=carry, write_fd=write_end):
                heard.events.append(event)
                if isinstance(event, Progress):
                    on_progress(event)
        except Exception as error:
            heard.error = error
        finally:
            os.close(write_end)
            if read:
                reader.join(PATIENCE)
                os.close(read_end)
        heard.frames = b"".join(parts)
        return heard

    return run


def descriptors(pid: int | None = None) -> int:
    return len(list(Path(f"/proc/{pid or 'self'}/fd").iterdir()))


@contextlib.contextmanager
def end_with(pids: list[int]) -> Iterator[None]:
    """Leave none of these processes behind, whatever the test finds."""
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(psutil.Error):
                psutil.Process(pid).kill()


# Farms


class Quiet:
    """A doorbell that nobody hears: idle workers find their work by themselves."""

    def ring(self, queues: object) -> bool:
        return True


class SmallFarm:
    """A home, a ledger and a model that costs nothing; workers are runners in threads of the test."""

    def __init__(self, home: Path, portrait: Path) -> None:
        self.home = home
        self.portrait = portrait
        (home / "models").mkdir(parents=True)
        shutil.copyfile(HERE / "fake.toml", home / "models" / "fake.toml")
        self.settings: Settings = load_settings(
            lease={"ttl_seconds": 20.0, "beat_seconds": 0.2, "poll_seconds": 0.05, "sweep_seconds": 0.5},
            retry={"base_delay_seconds": 0.01, "max_delay_seconds": 0.05},
            segments={"seconds": 0.4, "first_seconds": 0.2},
            host={"load_timeout_seconds": PATIENCE, "stop_seconds": 10.0, "restart_delay_seconds": 0.05},
            room={"min_free_disk_gb": 0.0, "min_free_memory_gb": 0.0},
            film={"encoder_preset": "ultrafast", "crf": 30},
        )
        self.ledger: Ledger = open_ledger(self.settings.ledger)
        event.listen(self.ledger.engine, "connect", lambda c, _: c.execute("PRAGMA synchronous = OFF"))
        upgrade(self.ledger)

    def submit(self, prompt: str = "", *, seconds: float = 2.0, **cells: Any) -> int:
        """The id of a job of so much speech: 5 frames first, then tens."""
        speech = self.home / f"speech-{seconds}.wav"
        if not speech.exists():
            write_speech(speech, seconds)
        row = {"portrait": str(self.portrait), "audio": str(speech), "model": "fake", "prompt": prompt, **cells}
        output = {"output": str(self.home / "films" / f"{len(read.jobs(self.ledger, limit=None))}.mp4")}
        (job_id,) = submit(
            self.ledger,
            self.settings,
            rows_from([output | row]),
            base=self.home,
            source="test",
            doorbell=Quiet(),  # type: ignore[arg-type]
        ).intake.new_job_ids
        return job_id

    def change(self, section: str, **values: Any) -> None:
        """Other settings for workers and jobs from now on."""
        changed = getattr(self.settings, section).model_copy(update=values)
        self.settings = self.settings.model_copy(update={section: changed})

    def planned(self, prompt: str = "", **cells: Any) -> int:
        """A job whose segments wait for a worker, prepared here and now."""
        job_id = self.submit(prompt, **cells)
        lease = self.claim("cpu", "test", job_id)
        assert lease.job.id == job_id
        done = prepare(lease.job, lease.token, open_store(self.settings), self.settings.segments, self.settings.film)
        moves.publish_plan(self.ledger, lease, artifacts=done.artifacts, job=done.job, plan=done.plan, queue=done.queue)
        return job_id

    def claim(self, queue: str, worker: str, job_id: int | None = None) -> Lease:
        lease = moves.claim(self.ledger, worker=worker, queue=queue, device="cpu", ttl_seconds=60.0, warm_job=job_id)
        assert lease is not None
        return lease

    def job(self, job_id: int) -> Job:
        return read.job(self.ledger, job_id)

    def segments_done(self, job_id: int) -> int:
        return self.job(job_id).segments_done

    def outcomes(self, job_id: int, kind: SegmentKind = SegmentKind.RENDER) -> list[tuple[int, str | None]]:
        """(segment, outcome) of every attempt at this kind, in order."""
        numbers = {s.id: s.number for s in read.segments(self.ledger, job_id) if s.kind is kind}
        tried = read.attempts(self.ledger, job_id)
        return [(numbers[a.segment_id], a.outcome) for a in tried if a.segment_id in numbers]

    def runner(self, name: str = "fake", announcer: Announcer | None = None, **settings: Any) -> Runner:
        """A worker of the fake model; `settings` are the engine's."""
        spec = WorkerSpec(name=name, model="fake", environment={"PYTHONPATH": str(HERE)}, settings=settings)
        return make_runner(self.ledger, self.settings, spec, announcer=announcer)

    def cpu_runner(self, announcer: Announcer | None = None) -> Runner:
        return make_runner(self.ledger, self.settings, WorkerSpec(name="cpu"), announcer=announcer)

    def wait_for(self, job_id: int, *states: JobState) -> Job:
        return wait_until(
            lambda: found if (found := self.job(job_id)).state in states else None, f"job {job_id} to be {states}"
        )

    def segment_hashes(self, job_id: int) -> list[str]:
        """One hash per decoded frame of the published segments."""
        files = read.artifacts(self.ledger, job_id, ArtifactKind.SEGMENT)
        return [frame for file in files for frame in frame_hashes(Path(file.path))]

    def staging_files(self) -> list[Path]:
        return [path for path in self.home.rglob("*") if is_staging_name(path)]

    def audit(self) -> list[str]:
        return [str(violation) for violation in audit(self.ledger, self.settings, check_files=True)]

    def run_out(self, segment_id: int) -> None:
        """Let a lease end now, by the ledger's clock, and take it back."""
        ended = self.ledger.now() - 1.0
        self.ledger.write(
            lambda session: session.execute(
                update(SegmentRow).where(SegmentRow.id == segment_id).values(lease_until=ended)
            )
        )
        assert moves.expire_leases(self.ledger, self.settings.retry.policy()) == [segment_id]


@pytest.fixture
def farm(tmp_path: Path, portrait: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallFarm]:
    for name in [name for name in os.environ if name.startswith("FARM_") and not name.startswith("FARM_TEST")]:
        if name != "FARM_FFMPEG":
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    monkeypatch.setenv("FARM_HOME", str(home))
    monkeypatch.setenv("FARM_MACHINE", "box")
    small = SmallFarm(home, portrait)
    yield small
    small.ledger.close()


@contextlib.contextmanager
def running(*runners: Runner) -> Iterator[None]:
    """These workers at work; stopped and joined afterwards, whatever happens."""
    threads: list[threading.Thread] = []
    try:
        with at_work(runners, stop_seconds=PATIENCE) as threads:
            yield
    finally:
        assert not any(thread.is_alive() for thread in threads), "a worker did not stop"
