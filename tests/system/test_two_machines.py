"""Machines that share a ledger and an object store and no folder: a batch goes through all of them to its films."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from farm.api import Farm
from farm.artifacts import sha256_of
from farm.config import StoreSettings, load_settings
from farm.ledger import Ledger, read
from farm.ledger.values import Artifact
from farm.media.verify import frame_hashes
from farm.states import FINISHED, ArtifactKind, JobState, SegmentKind
from tests.conftest import S3Server, do_without, private_folder, redis_program
from tests.system import material
from tests.system.stage import QUICK, RedisServer, Stage, kill_tree, stage, wait_for
from tests.system.wire import wire_to

SECONDS = 2.4  # of each film: three segments


@dataclass
class Machines:
    """A desk that submits, one machine that prepares and assembles, and others that render."""

    root: Path
    redis: RedisServer
    server: S3Server
    prefix: str
    all: dict[str, Stage]

    def add(self, name: str, endpoint: str | None = None) -> Stage:
        own = self.server.environment(self.prefix, endpoint) | {"FARM_MACHINE": name}
        machine = Stage(self.root / name, self.redis, f"sqlite:///{self.root}/ledger.db", {**QUICK, **own})
        machine.home.mkdir(parents=True)
        self.all[name] = machine
        return machine

    def rendering(self, name: str, endpoint: str | None = None) -> Stage:
        machine = self.add(name, endpoint)
        machine.write_roster({name: {"model": "pattern"}})
        machine.start_worker(name)
        return machine


@pytest.fixture
def machines(s3_server: S3Server) -> Iterator[Machines]:
    if redis_program() is None:
        do_without("no private Redis for doorbells")
    with private_folder("farm-machines-") as root, contextlib.ExitStack() as stack:
        redis = RedisServer(root / "redis")
        redis.start()
        stack.callback(redis.stop)
        some = Machines(root, redis, s3_server, f"farm-{secrets.token_hex(6)}", {})
        stack.callback(lambda: [machine.stop_workers() for machine in some.all.values()])
        desk = some.add("desk")
        desk.write_roster({"cpu": {}, "r": {"model": "pattern"}})
        yield some


def submit(machines: Machines, *names: str) -> None:
    """Put a batch in; then its files are where no path leads."""
    folder = machines.all["desk"].folder / "in"
    folder.mkdir()
    cells = {"portrait": material.portrait(folder / "p.png"), "audio": material.sound(folder / "a.wav", SECONDS)}
    rows = [{**cells, "model": "pattern", "size": "64x64", "name": name} for name in names]
    machines.all["desk"].farm("submit", material.batch(folder / "b.csv", rows), "-o", folder.parent / "films")
    folder.rename(folder.with_name("moved away"))


def start_cpu(machines: Machines) -> Stage:
    workshop = machines.add("cpu")
    workshop.write_roster({"cpu": {}})
    workshop.start_worker("cpu")
    return workshop


def all_succeed(ledger: Ledger) -> None:
    wait_for(lambda: all(job.state in FINISHED for job in read.jobs(ledger)), 180, "the batch ends")
    assert [job.reason for job in read.jobs(ledger) if job.state is not JobState.SUCCEEDED] == []


def render_batch(machines: Machines, *names: str) -> dict[str, int]:
    """A batch through a machine that prepares and assembles and one that renders; the jobs' ids by name."""
    submit(machines, *names)
    start_cpu(machines)
    machines.rendering("right")
    with contextlib.closing(machines.all["desk"].open()) as ledger:
        all_succeed(ledger)
        return {job.name: job.id for job in read.jobs(ledger)}


def test_a_batch_passes_through_machines_that_share_only_the_store(machines: Machines) -> None:
    desk = machines.all["desk"]
    job_id = render_batch(machines, "one")["one"]
    with contextlib.closing(desk.open()) as ledger:
        files = read.artifacts(ledger, job_id)
        assert {file.kind for file in files} == set(ArtifactKind)
        assert all(file.path.startswith(f"s3://{machines.server.bucket}/{machines.prefix}/") for file in files)
        assert {a.worker for a in read.attempts(ledger, job_id)} == {"cpu@cpu", "right@right"}
    # Segments are in the caches of those who made or joined them; the renderer never saw the film, the desk nothing.
    assert not (desk.home / "cache").exists()
    segments, film = [file for file in files if file.kind is ArtifactKind.SEGMENT], files_of(files, ArtifactKind.FILM)
    cached = {path.stem for path in (machines.all["right"].home / "cache").rglob("*.mp4")}
    assert cached == {file.sha256 for file in segments}
    desk.farm("jobs", "fetch", job_id)
    assert sha256_of(desk.folder / "films" / "one.mp4") == film.sha256
    assert len(frame_hashes(desk.folder / "films" / "one.mp4")) == round(SECONDS * 25)
    for machine in machines.all.values():
        machine.stop_workers()  # so that no file goes while it is read
        for path in machine.home.rglob("*"):
            if path.is_file():
                assert machines.server.secret_key.encode() not in path.read_bytes(), path


def files_of(files: Sequence[Artifact], kind: ArtifactKind) -> Artifact:
    (found,) = [file for file in files if file.kind is kind]
    return found


@pytest.mark.slow
def test_films_come_from_the_store_to_whoever_asks(
    machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = machines.all["desk"]
    jobs = render_batch(machines, "one", "two")
    desk.farm("jobs", "fetch", jobs["one"])
    other = desk.folder / "other"
    assert desk.farm("jobs", "fetch", jobs["two"], "-o", other).stdout.strip() == str(other / "two.mp4")
    assert frame_hashes(desk.folder / "films" / "one.mp4") == frame_hashes(other / "two.mp4")
    (other / "two.mp4").write_bytes(b"mine")
    refused = desk.farm("jobs", "fetch", jobs["two"], "-o", other, check=False)
    assert refused.returncode == 2 and "is another file" in refused.stderr
    assert "every file is as it was published" in desk.farm("db", "check", "--files").stdout
    place = f"s3://{machines.server.bucket}/{machines.prefix}"
    assert f"now copy {place}" in desk.farm("db", "backup", desk.folder / "saved.db").stdout
    in_python(machines, jobs["one"], tmp_path, monkeypatch)
    over_http(machines, jobs["one"], desk.folder / "films" / "one.mp4")


def in_python(machines: Machines, job_id: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in machines.server.environment(machines.prefix).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FARM_HOME", str(tmp_path / "laptop"))
    monkeypatch.setenv("FARM_LEDGER_URL", machines.all["desk"].ledger_url)
    with Farm() as farm:
        film = farm.job(job_id).film
        assert film is not None and film.place.startswith("s3://")
        assert not (tmp_path / "laptop" / "cache").exists()
        assert film.path.is_relative_to(tmp_path / "laptop") and film.path.stat().st_size == film.size_bytes
        saved = film.save(tmp_path / "mine.mp4")
        assert saved.read_bytes() == film.path.read_bytes()


def over_http(machines: Machines, job_id: int, film: Path) -> None:
    from tests.farm_process import served

    server = machines.all["desk"].folder / "server"
    env = machines.server.environment(machines.prefix) | {"FARM_LEDGER_URL": machines.all["desk"].ledger_url}
    with served(server, "--open", env=env) as farm, farm.client(key="") as client:
        part = client.get(f"/v1/jobs/{job_id}/film", headers={"Range": "bytes=100-299"})
        assert (part.status_code, part.content) == (206, film.read_bytes()[100:300])
        assert client.get(f"/v1/jobs/{job_id}/poster").headers["content-type"] == "image/jpeg"
        assert client.get(f"/v1/jobs/{job_id}/waveform").json()["seconds"] == pytest.approx(SECONDS)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["hold body", "hold answer"])
def test_a_worker_killed_amid_an_upload_costs_one_segment(machines: Machines, moment: str) -> None:
    """While the segment travels nothing is there; when it has arrived unknown to the ledger, `farm gc` takes it."""
    submit(machines, "one")
    start_cpu(machines)
    with wire_to(machines.server.endpoint) as wire, contextlib.closing(machines.all["desk"].open()) as ledger:
        (job,) = read.jobs(ledger)
        number = f"{machines.prefix}/artifacts/0000/{job.id:07d}/segments/00001"
        wire.arm(f"PUT /{machines.server.bucket}/{number}".encode(), moment)
        left = machines.rendering("left", wire.endpoint)
        assert wire.happened.wait(120), left.log_of("left")
        kill_tree(left.workers["left"].pid)
        wire.let_go()
        machines.rendering("right")
        all_succeed(ledger)
        (segment,) = [s for s in read.segments(ledger, job.id) if s.kind is SegmentKind.RENDER and s.number == 1]
        assert segment.attempt == 2
        mine = [key for key in machines.server.keys(machines.prefix) if "segments/00001.t" in key and ".mp4" in key]
        assert len(mine) == (1 if moment == "hold body" else 2)
        machines.all["desk"].farm("jobs", "fetch", job.id)
        assert "every file is as it was published" in machines.all["desk"].farm("db", "check", "--files").stdout
        swept(machines, ledger, job.id)
    with stage() as undisturbed:
        assert reference(undisturbed, machines) == frame_hashes(machines.all["desk"].folder / "films" / "one.mp4")


def swept(machines: Machines, ledger: Ledger, job_id: int) -> None:
    """What the killed worker left goes, and what the ledger knows stays."""
    from farm import retention

    env = machines.server.environment(machines.prefix)
    names = {"url": "URL", "endpoint": "ENDPOINT", "access_key": "ACCESS_KEY", "secret_key": "SECRET_KEY"}
    given: dict[str, Any] = {name: env[f"FARM_STORE__{variable}"] for name, variable in names.items()}
    settings = load_settings()
    store = StoreSettings(**settings.store.model_dump() | given)
    settings = settings.model_copy(update={"home": machines.all["desk"].home, "store": store})
    before, retention.STAGING_HOURS = retention.STAGING_HOURS, -1.0
    try:
        found = retention.find_garbage(ledger, settings, older_than_days=14)
        retention.remove(ledger, settings, found)
    finally:
        retention.STAGING_HOURS = before
    known = {file.path for file in read.artifacts(ledger, job_id)}
    start = f"s3://{machines.server.bucket}/{machines.prefix}/"
    left = {start + key for key in machines.server.keys(machines.prefix) if not key.startswith("inputs/")}
    assert left == known


def reference(undisturbed: Stage, machines: Machines) -> list[str]:
    """The same film by one worker and a folder."""
    undisturbed.write_roster({"cpu": {}, "r": {"model": "pattern"}})
    for name in ("cpu", "r"):
        undisturbed.start_worker(name)
    folder = machines.all["desk"].folder / "in"
    folder.with_name("moved away").rename(folder)
    films = undisturbed.folder / "films"
    undisturbed.farm("submit", folder / "b.csv", "-o", films, "--wait")
    return frame_hashes(films / "one.mp4")


@pytest.mark.slow
def test_a_segment_spoilt_in_the_store_is_rendered_again_before_the_film_is_made(machines: Machines) -> None:
    submit(machines, "one")
    workshop = start_cpu(machines)
    with contextlib.closing(machines.all["desk"].open()) as ledger:
        (job,) = read.jobs(ledger)
        wait_for(lambda: read.job(ledger, job.id).segments_total > 0, 120, "the film is planned")
        workshop.stop_workers()
        machines.rendering("right")
        wait_for(lambda: read.job(ledger, job.id).segments_done == 3, 120, "all segments are rendered")
        victim = read.artifacts(ledger, job.id, ArtifactKind.SEGMENT)[1]
        with contextlib.closing(machines.server.client()) as client:
            key = victim.path.removeprefix(f"s3://{machines.server.bucket}/")
            client.put_object(Bucket=machines.server.bucket, Key=key, Body=bytes(victim.size_bytes))
        workshop.start_worker("cpu")
        all_succeed(ledger)
        assert [e.event for e in read.events(ledger, job_id=job.id, limit=1000)].count("render_again") == 1
        assert "every file is as it was published" in machines.all["desk"].farm("db", "check", "--files").stdout
