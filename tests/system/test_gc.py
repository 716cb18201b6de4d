"""`farm gc` deletes what no job needs, and a job that comes back meanwhile keeps all that it has."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from farm import uploads
from farm.artifacts import JobFolder, seal, staging_name
from farm.config import Settings, load_settings
from farm.errors import InputError
from farm.ledger import Ledger, control, moves, open_ledger, read
from farm.ledger.intake import take_in
from farm.ledger.migrate import ensure_current
from farm.ledger.retention import open_job_ids
from farm.ledger.values import JobRequest, Lease, NewArtifact
from farm.media.probe import ImageInfo
from farm.planning import PlannedSegment
from farm.retention import find_garbage, remove
from farm.retry import Decision
from farm.states import ArtifactKind, Continuity, Event, JobState
from farm.store import open_store


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("FARM_HOME", str(tmp_path))
    return load_settings()


@pytest.fixture
def ledger(settings: Settings) -> Iterator[Ledger]:
    ledger = open_ledger(settings.ledger)
    ensure_current(ledger)
    yield ledger
    ledger.close()


def submit(ledger: Ledger, name: str, portrait: str = "/p.png") -> int:
    request = JobRequest(
        row_number=2,
        key=name,
        name=name,
        owner="me",
        tags=(),
        portrait=portrait,
        portrait_sha256="0" * 64,
        audio="/a.wav",
        audio_sha256="0" * 64,
        audio_seconds=2.0,
        output=f"/films/{name}.mp4",
        model="preview",
        preset="natural",
        queue="preview",
        settings={},
        prompt="",
        seed=1,
        width=64,
        height=64,
        fps=(25, 1),
        continuity=Continuity.CARRY,
        priority=0,
        due=None,
    )
    return take_in(ledger, [request], name="b", source="b", owner="me").new_job_ids[0]


def artifact(settings: Settings, lease: Lease, kind: ArtifactKind, size: int = 1000, text: str = "") -> NewArtifact:
    folder = JobFolder(settings.artifacts_dir, lease.job.id).make()
    final = folder.file(f"{kind}{lease.segment.number}.bin", lease.token)
    staged = staging_name(final, lease.token)
    staged.write_bytes((text or f"{lease.job.id} {kind} ").encode().ljust(size, b"x"))
    return seal(staged, final, kind)


def take(ledger: Ledger, queue: str) -> Lease:
    lease = moves.claim(ledger, worker="w", queue=queue, device="cpu", ttl_seconds=30)
    assert lease is not None
    return lease


def render_one_of_two(ledger: Ledger, settings: Settings, name: str, text: str = "") -> tuple[int, Lease]:
    """A job with its first segment published and its second under lease."""
    job_id = submit(ledger, name)
    prepare = take(ledger, "cpu")
    kinds = (ArtifactKind.PORTRAIT, ArtifactKind.DRIVING)
    made = [artifact(settings, prepare, kind, text=text) for kind in kinds]
    plan = [PlannedSegment(0, 25, False), PlannedSegment(25, 25, True)]
    values = {"total_frames": 50, "audio_rate": 16_000, "audio_samples": 32_000}
    moves.publish_plan(ledger, prepare, artifacts=made, job=values, plan=plan, queue="preview")
    first = take(ledger, "preview")
    published = artifact(settings, first, ArtifactKind.SEGMENT, text=text)
    moves.publish(ledger, first, artifacts=[published], carry=b"c", frames=25)
    return job_id, take(ledger, "preview")


def fail(ledger: Ledger, lease: Lease) -> None:
    moves.release(ledger, lease, Decision(Event.FAIL, "given up", "engine"))


def files(settings: Settings) -> set[str]:
    return {str(path) for path in settings.artifacts_dir.rglob("*") if path.is_file()}


def test_files_of_a_job_that_lives_are_never_garbage(ledger: Ledger, settings: Settings) -> None:
    render_one_of_two(ledger, settings, "lives")
    assert find_garbage(ledger, settings, older_than_days=0) == []
    assert find_garbage(ledger, settings, older_than_days=0, keep_gb=0) == []


def test_a_dry_run_deletes_nothing_and_a_real_one_just_what_it_named(ledger: Ledger, settings: Settings) -> None:
    _, lease = render_one_of_two(ledger, settings, "ended")
    fail(ledger, lease)
    render_one_of_two(ledger, settings, "lives")
    before = files(settings)

    garbage = find_garbage(ledger, settings, older_than_days=-1)
    assert files(settings) == before
    assert len(garbage) == 3
    assert remove(ledger, settings, garbage) == garbage
    assert before - files(settings) == {item.path for item in garbage}
    assert find_garbage(ledger, settings, older_than_days=-1) == []


def test_younger_files_stay_and_by_size_the_oldest_go_first(ledger: Ledger, settings: Settings) -> None:
    first, lease = render_one_of_two(ledger, settings, "first")
    fail(ledger, lease)
    _, lease = render_one_of_two(ledger, settings, "second")
    fail(ledger, lease)
    assert find_garbage(ledger, settings, older_than_days=1) == []

    chosen = find_garbage(ledger, settings, older_than_days=1, keep_gb=3000 / 1e9)
    folder = JobFolder(settings.artifacts_dir, first).path
    assert len(chosen) == 3
    assert all(Path(item.path).is_relative_to(folder) for item in chosen)


def test_what_is_kept_for_later_films_has_a_limit_and_shared_content_counts_once(
    ledger: Ledger, settings: Settings
) -> None:
    for name in ("first", "second"):
        _, lease = render_one_of_two(ledger, settings, name, text="the same")
        fail(ledger, lease)
    assert len(find_garbage(ledger, settings, older_than_days=-1)) == 6
    for limit_bytes, chosen in ((1000, 0), (999, 6)):  # all hold the same bytes, so they take the room of one
        small = settings.segments.model_copy(update={"keep_gb": limit_bytes / 1e9})
        limited = settings.model_copy(update={"segments": small})
        assert len(find_garbage(ledger, limited, older_than_days=1)) == chosen


def test_a_job_that_is_retried_between_looking_and_deleting_keeps_its_files(ledger: Ledger, settings: Settings) -> None:
    job_id, lease = render_one_of_two(ledger, settings, "back")
    fail(ledger, lease)
    garbage = find_garbage(ledger, settings, older_than_days=-1)
    before = files(settings)

    assert control.retry(ledger, job_id) == 1
    assert remove(ledger, settings, garbage) == []
    assert files(settings) == before
    assert len(read.artifacts(ledger, job_id)) == 3


def test_a_retry_after_the_files_are_gone_is_refused_with_a_way_out(ledger: Ledger, settings: Settings) -> None:
    job_id, lease = render_one_of_two(ledger, settings, "late")
    fail(ledger, lease)
    remove(ledger, settings, find_garbage(ledger, settings, older_than_days=-1))
    with pytest.raises(InputError, match=r"deleted by `farm gc`; submit its row with --again"):
        control.retry(ledger, job_id)
    assert read.job(ledger, job_id).state is JobState.FAILED


def test_what_dead_attempts_left_goes_after_a_day_also_from_a_job_that_lives(
    ledger: Ledger, settings: Settings
) -> None:
    job_id, lease = render_one_of_two(ledger, settings, "long")
    folder = JobFolder(settings.artifacts_dir, job_id)
    final = folder.segment(1, lease.token, ".mp4")
    old, fresh = staging_name(final, lease.token), staging_name(final, lease.token + 1)
    for path in (old, fresh):
        path.write_bytes(b"half a segment")
    yesterday = time.time() - 25 * 3600
    os.utime(old, (yesterday, yesterday))

    garbage = find_garbage(ledger, settings, older_than_days=14)
    assert [item.path for item in garbage] == [str(old)]
    assert remove(ledger, settings, garbage) == garbage
    assert fresh.exists() and not old.exists()


def make_old(settings: Settings) -> None:
    then = time.time() - 30 * 86_400
    for file in files(settings):
        os.utime(file, (then, then))


def test_what_was_published_stays_whatever_path_the_home_has_for_who_cleans_up(
    ledger: Ledger, settings: Settings, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, lease = render_one_of_two(ledger, settings, "failed")
    dead = JobFolder(settings.artifacts_dir, lease.job.id).segment(1, lease.token, ".mp4")
    dead.write_bytes(b"sealed and never published")
    fail(ledger, lease)
    make_old(settings)
    link = tmp_path_factory.mktemp("elsewhere") / "home"
    link.symlink_to(settings.home)
    monkeypatch.setenv("FARM_HOME", str(link))
    (item,) = remove(ledger, load_settings(), find_garbage(ledger, load_settings(), older_than_days=60))
    assert Path(item.path).name == dead.name
    assert files(settings) == {artifact.path for artifact in read.artifacts(ledger, lease.job.id)}


def test_a_segment_that_a_new_job_takes_over_while_its_folder_is_looked_at_stays(
    ledger: Ledger, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    lender, lease = render_one_of_two(ledger, settings, "lender")
    fail(ledger, lease)
    make_old(settings)
    lent: list[NewArtifact] = []

    def ask_and_let_a_job_come(ledger: Ledger) -> list[int]:
        jobs = open_job_ids(ledger)
        if not lent:
            submit(ledger, "borrower")
            folder = JobFolder(settings.artifacts_dir, take(ledger, "cpu").job.id).make()
            segment = read.artifact(ledger, lender, ArtifactKind.SEGMENT)
            lent.append(open_store(settings).lend(segment, folder.segment(0, 1, ".mp4")))
        return jobs

    monkeypatch.setattr("farm.retention.open_job_ids", ask_and_let_a_job_come)
    garbage = find_garbage(ledger, settings, older_than_days=60)
    assert [item.path for item in garbage] == [lent[0].path]
    assert remove(ledger, settings, garbage) == []
    assert Path(lent[0].path).exists()


# Uploads


def send(settings: Settings, name: str, days_ago: float = 0.0) -> Path:
    """Upload a picture, some time ago."""
    part = uploads.new_part(uploads.folder_of(settings, "me"))
    part.write_bytes(name.encode())
    digest = hashlib.sha256(name.encode()).hexdigest()
    taken = uploads.keep(part, digest, name, len(name), ImageInfo(64, 64, "png"))
    then = time.time() - days_ago * 86400
    for kept in uploads.all_kept(settings):
        if kept.content.name == taken.file:
            for path in (kept.content, *kept.notes):
                os.utime(path, (then, then))
    return part.parent / taken.file


def left(settings: Settings) -> set[str]:
    return {path.name for path in (settings.home / "uploads").rglob("*") if path.is_file()}


def test_an_upload_goes_with_all_that_speaks_of_it_once_it_is_old(ledger: Ledger, settings: Settings) -> None:
    old = send(settings, "old.png", days_ago=20)
    garbage = find_garbage(ledger, settings, older_than_days=14)
    assert [(item.path, item.size_bytes) for item in garbage] == [(str(old), 7)]
    assert old.exists()
    assert remove(ledger, settings, garbage) == garbage
    assert left(settings) == set()


def test_an_upload_stays_while_a_job_that_names_it_is_open_and_as_long_after_it(
    ledger: Ledger, settings: Settings
) -> None:
    needed = send(settings, "needed.png", days_ago=20)
    job_id = submit(ledger, "needs it", portrait=str(needed))
    assert find_garbage(ledger, settings, older_than_days=14) == []
    control.cancel(ledger, job_id)
    assert find_garbage(ledger, settings, older_than_days=14) == []  # its job ended just now
    (item,) = find_garbage(ledger, settings, older_than_days=-1)
    assert item.path == str(needed)


def test_an_upload_that_comes_into_use_between_looking_and_deleting_stays(ledger: Ledger, settings: Settings) -> None:
    taken, sent_again = send(settings, "taken.png", days_ago=20), send(settings, "again.png", days_ago=20)
    garbage = find_garbage(ledger, settings, older_than_days=14)
    assert len(garbage) == 2
    submit(ledger, "comes", portrait=str(taken))
    send(settings, "again.png")
    assert remove(ledger, settings, garbage) == []
    assert taken.exists() and sent_again.exists()
    assert uploads.by_name(sent_again.parent, "again.png") is not None


def test_what_was_cut_off_on_its_way_goes_after_a_day(ledger: Ledger, settings: Settings) -> None:
    fresh, cut_off = (uploads.new_part(uploads.folder_of(settings, "me")) for _ in range(2))
    for path in (fresh, cut_off):
        path.write_bytes(b"half a picture")
    yesterday = time.time() - 25 * 3600
    os.utime(cut_off, (yesterday, yesterday))
    (item,) = find_garbage(ledger, settings, older_than_days=14)
    assert (item.path, item.why) == (str(cut_off), "an upload that was cut off")
    remove(ledger, settings, [item])
    assert left(settings) == {fresh.name}
