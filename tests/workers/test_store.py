"""Workers whose files are kept in a real object store."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest
from sqlalchemy import update

from farm.config import StoreSettings
from farm.ledger import crew, open_ledger, read
from farm.ledger.migrate import upgrade
from farm.ledger.tables import WorkerRow
from farm.media.verify import frame_hashes
from farm.sight import why_blind, why_unseen
from farm.states import ArtifactKind, JobState
from farm.store import deliver, open_store
from tests.conftest import S3Server
from tests.system.wire import wire_to
from tests.workers.conftest import SmallFarm, running, wait_until

OTHER_MACHINE = {"machine": "other", "pid": 1, "incarnation": "1", "device": "cpu", "info": {}}


def keep_in_bucket(farm: SmallFarm, server: S3Server, endpoint: str | None = None, patience: float = 30.0) -> None:
    own = farm.settings.store.model_dump() | {
        "url": farm.settings.store.url or f"s3://{server.bucket}/workers-{secrets.token_hex(6)}",
        "endpoint": endpoint or server.endpoint,
        "access_key": server.access_key,
        "secret_key": server.secret_key,
        "patience_seconds": patience,
    }
    farm.settings = farm.settings.model_copy(update={"store": StoreSettings(**own)})


@pytest.mark.slow
def test_a_film_through_an_object_store_is_the_film_through_a_folder(
    farm: SmallFarm, s3_server: S3Server, tmp_path: Path
) -> None:
    farm.change("segments", reuse=False)
    through_folder = farm.submit()
    with running(farm.cpu_runner(), farm.runner()):
        farm.wait_for(through_folder, JobState.SUCCEEDED, JobState.FAILED)
    keep_in_bucket(farm, s3_server)
    through_bucket = farm.submit()
    with running(farm.cpu_runner(), farm.runner()):
        job = farm.wait_for(through_bucket, JobState.SUCCEEDED, JobState.FAILED)
    assert (job.state, job.reason) == (JobState.SUCCEEDED, None)
    assert not Path(job.output).exists()
    film = read.artifact(farm.ledger, through_bucket, ArtifactKind.FILM)
    brought = deliver(open_store(farm.settings), film, tmp_path / "film.mp4", overwrite=False)
    assert frame_hashes(brought) == frame_hashes(Path(farm.job(through_folder).output))
    assert farm.staging_files() == []
    assert farm.audit() == []  # both films, each from where it lies


@pytest.mark.slow
def test_segments_in_an_object_store_are_used_again(farm: SmallFarm, s3_server: S3Server) -> None:
    keep_in_bucket(farm, s3_server)
    jobs = []
    for name in ("first", "second"):
        jobs.append(farm.submit(name=name))
        with running(farm.cpu_runner(), farm.runner()):
            farm.wait_for(jobs[-1], JobState.SUCCEEDED, JobState.FAILED)
    segments = [read.artifacts(farm.ledger, job_id, ArtifactKind.SEGMENT) for job_id in jobs]
    assert [file.sha256 for file in segments[0]] == [file.sha256 for file in segments[1]]
    assert not {file.path for file in segments[0]} & {file.path for file in segments[1]}
    assert {a.device for a in read.attempts(farm.ledger, jobs[1]) if a.frames == 0} >= {"reuse"}
    assert farm.audit() == []


def test_a_worker_whose_store_is_away_takes_nothing_says_why_and_goes_on_later(
    farm: SmallFarm, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.room.STORE_SECONDS", 0.1)
    keep_in_bucket(farm, s3_server)
    job_id = farm.planned()
    with wire_to(s3_server.endpoint) as wire:
        wire.is_down = True
        keep_in_bucket(farm, s3_server, wire.endpoint, patience=0.0)
        with running(farm.runner()):
            (said,) = wait_until(
                lambda: [w.reason for w in read.workers(farm.ledger) if w.reason and "does not answer" in w.reason],
                "the worker to say what is wrong",
            )
            assert s3_server.secret_key not in said
            tried = sum(outcome is not None for _, outcome in farm.outcomes(job_id))
            wire.is_down = False
            wait_until(lambda: farm.segments_done(job_id) == farm.job(job_id).segments_total, "the segments")
    outcomes = [outcome for _, outcome in farm.outcomes(job_id)]
    assert outcomes[:tried] == ["interrupt"] * tried and outcomes.count("succeed") == farm.job(job_id).segments_total
    assert farm.job(job_id).failure is None and not any(a.strike for a in read.attempts(farm.ledger, job_id))


def test_a_machine_that_does_not_see_the_others_files_takes_nothing_and_says_so(
    farm: SmallFarm, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.sight.AGAIN_SECONDS", 0.1)
    farm.ledger.close()
    farm.ledger = open_ledger(postgres_url)
    upgrade(farm.ledger)
    crew.say_hello(farm.ledger, name="fake@other", queue="fake", **OTHER_MACHINE)
    job_id = farm.planned()
    shared, elsewhere = farm.settings.artifacts_dir, tmp_path / "elsewhere"
    shared.rename(elsewhere)
    with running(farm.cpu_runner(), farm.runner()):
        for name in ("cpu@box", "fake@box"):
            wait_until(
                lambda name=name: [
                    w for w in read.workers(farm.ledger) if w.name == name and "does not see" in (w.reason or "")
                ],
                f"{name} to say what is wrong",
            )
        assert farm.outcomes(job_id) == []
        shared.rmdir()  # each worker makes its own where none is
        elsewhere.rename(shared)
        job = farm.wait_for(job_id, JobState.SUCCEEDED, JobState.FAILED)
    assert (job.state, job.reason) == (JobState.SUCCEEDED, None)


@pytest.mark.slow
def test_a_job_whose_files_a_machine_does_not_see_is_left_to_others_and_keeps_no_other_job_back(
    farm: SmallFarm, postgres_url: str, tmp_path: Path
) -> None:
    farm.ledger.close()
    farm.ledger = open_ledger(postgres_url)
    upgrade(farm.ledger)
    farm.change("retry", base_delay_seconds=0.5, max_delay_seconds=2.0)
    unseen, seen = farm.planned("unseen"), farm.planned("seen")
    folder = open_store(farm.settings).folder(unseen).path
    folder.rename(tmp_path / "elsewhere")
    crew.say_hello(farm.ledger, name="fake@other", queue="fake", **OTHER_MACHINE)
    tomorrow = update(WorkerRow).where(WorkerRow.name == "fake@other").values(beat_at=farm.ledger.now() + 86_400.0)
    farm.ledger.write(lambda session: session.execute(tomorrow))  # it lives, however slow this test is
    with running(farm.cpu_runner(), farm.runner()):
        assert farm.wait_for(seen, JobState.SUCCEEDED, JobState.FAILED).state is JobState.SUCCEEDED
        wait_until(lambda: farm.outcomes(unseen), "the worker to ask for the other job")
        (tmp_path / "elsewhere").rename(folder)
        job = farm.wait_for(unseen, JobState.SUCCEEDED, JobState.FAILED)
    assert (job.state, job.reason) == (JobState.SUCCEEDED, None)
    left = [a for a in read.attempts(farm.ledger, unseen) if a.failure == "store"]
    assert left and all(not a.strike and f"box does not see {folder}" in str(a.reason) for a in left)


def test_a_machine_alone_goes_on_where_its_old_files_are_gone(
    farm: SmallFarm, postgres_url: str, tmp_path: Path
) -> None:
    farm.ledger.close()
    farm.ledger = open_ledger(postgres_url)
    upgrade(farm.ledger)
    farm.planned()
    farm.settings.artifacts_dir.rename(tmp_path / "elsewhere")
    assert why_blind(farm.ledger) is None
    crew.say_hello(farm.ledger, name="fake@other", queue="fake", **OTHER_MACHINE)
    assert "does not see" in (why_blind(farm.ledger) or "")


def test_one_folder_of_the_others_that_is_there_will_do(tmp_path: Path) -> None:
    there, gone = tmp_path / "7" / "poster.jpg", tmp_path / "8" / "poster.jpg"
    there.parent.mkdir()
    assert why_unseen([], "box") is None
    assert why_unseen([str(gone), str(there)], "box") is None
    assert why_unseen(["s3://bucket/8/poster.jpg"], "box") is None
    said = why_unseen([str(gone)], "box")
    assert said is not None and f"box does not see {gone.parent}" in said and "farm db relocate" in said
