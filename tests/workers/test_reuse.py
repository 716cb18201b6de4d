"""What was rendered for one film is used for the next, and its frames are those that would have been rendered."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest

from farm.batch import rows_from
from farm.ledger import control, moves, read
from farm.media.verify import frame_hashes
from farm.retention import find_garbage, remove
from farm.reuse import find_reusable
from farm.states import ArtifactKind, JobState, SegmentKind
from farm.store import open_store
from farm.submission import submit
from workers.preparing import prepare

from .conftest import SmallFarm, running, write_speech


def take_in(farm: SmallFarm, **cells: object) -> int:
    """The id of a job that was prepared here and now, as a worker does it."""
    job_id = farm.submit(**cells)
    lease = farm.claim("cpu", "test", job_id)
    assert lease.job.id == job_id
    store = open_store(farm.settings)
    done = prepare(lease.job, lease.token, store, farm.settings.segments, farm.settings.film)
    moves.publish_plan(
        farm.ledger,
        lease,
        artifacts=done.artifacts,
        job=done.job,
        plan=done.plan,
        queue=done.queue,
        reused=find_reusable(farm.ledger, store, lease.job, done.plan, done.queue),
    )
    return job_id


def render(farm: SmallFarm, *cells: dict[str, object]) -> list[int]:
    """The ids of jobs, taken in and rendered one after the other; their films are not assembled."""
    ids = []
    with running(farm.runner()):
        for some in cells:
            ids.append(take_in(farm, **some))
            farm.wait_for(ids[-1], JobState.ASSEMBLING)
            farm.claim("cpu", "test", ids[-1])  # so that the next one's `prepare` is the only work there
    return ids


def rendered(farm: SmallFarm, job_id: int) -> list[int]:
    """Numbers of the segments that took an engine."""
    numbers = {s.id: s.number for s in read.segments(farm.ledger, job_id) if s.kind is SegmentKind.RENDER}
    tried = [a for a in read.attempts(farm.ledger, job_id) if a.segment_id in numbers]
    return sorted(numbers[a.segment_id] for a in tried if a.device != moves.REUSED)


def edit(source: Path, target: Path, at_seconds: float, seconds: float) -> Path:
    """`source` with other sound for so many seconds."""
    with wave.open(str(source)) as file:
        sound = np.frombuffer(file.readframes(file.getnframes()), "<i2").copy()
    first = round(at_seconds * 16_000)
    sound[first : first + round(seconds * 16_000)] //= 2
    with wave.open(str(target), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(sound.tobytes())
    return target


PARALLEL = {"continuity": "parallel", "seed": 5}


def test_an_edited_recording_renders_the_segments_that_it_touches_and_has_the_frames_of_a_full_render(
    farm: SmallFarm,
) -> None:
    before = write_speech(farm.home / "before.wav", 2.0)
    after = edit(before, farm.home / "after.wav", 0.9, 0.1)
    first, edited = render(farm, PARALLEL | {"audio": str(before)}, PARALLEL | {"audio": str(after)})
    assert rendered(farm, edited) == [2]
    assert farm.segment_hashes(first) != farm.segment_hashes(edited)
    for file in read.artifacts(farm.ledger, first, ArtifactKind.SEGMENT):
        Path(file.path).unlink()
    for file in read.artifacts(farm.ledger, edited, ArtifactKind.SEGMENT):
        Path(file.path).rename(f"{file.path}.kept")
    (anew,) = render(farm, PARALLEL | {"audio": str(after), "name": "anew"})
    assert rendered(farm, anew) == [0, 1, 2, 3, 4]
    for file in read.artifacts(farm.ledger, edited, ArtifactKind.SEGMENT):
        Path(f"{file.path}.kept").rename(file.path)
    assert farm.segment_hashes(anew) == farm.segment_hashes(edited)


@pytest.mark.parametrize("continuity", ["parallel", "carry"])
def test_another_name_renders_nothing_and_makes_the_same_film(farm: SmallFarm, continuity: str) -> None:
    ids = [farm.submit(continuity=continuity), farm.submit(continuity=continuity, name="another")]
    with running(farm.cpu_runner(), farm.runner()):
        farm.wait_for(ids[0], JobState.SUCCEEDED)
        ids.append(farm.submit(continuity=continuity, name="a third"))
        for job_id in ids:
            assert farm.wait_for(job_id, JobState.SUCCEEDED, JobState.FAILED).state is JobState.SUCCEEDED
    assert rendered(farm, ids[2]) == []
    assert "5 of 5 segments are used again" in " ".join(farm.job(ids[2]).notes) or continuity == "carry"
    films = [list(frame_hashes(Path(read.films(farm.ledger, [i])[i].path))) for i in ids]
    assert films[0] == films[1] == films[2]
    assert farm.audit() == []


def test_what_decides_pixels_renders_everything(farm: SmallFarm) -> None:
    others: list[dict[str, object]] = [
        {"seed": 9},
        {"size": "96x96"},
        {"prompt": "in a garden"},
        {"continuity": "carry"},
    ]
    for job_id in render(farm, PARALLEL, *(PARALLEL | cells for cells in others)):
        assert rendered(farm, job_id) == list(range(farm.job(job_id).segments_total))


def test_a_file_that_was_changed_since_is_rendered_and_not_used(farm: SmallFarm) -> None:
    (first,) = render(farm, PARALLEL)
    hashes = farm.segment_hashes(first)
    file = Path(read.artifacts(farm.ledger, first, ArtifactKind.SEGMENT)[1].path)
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    (second,) = render(farm, PARALLEL | {"name": "second"})
    assert rendered(farm, second) == [1]
    assert farm.segment_hashes(second) == hashes


def test_a_film_keeps_what_it_took_over_when_the_lender_is_cleaned_away(farm: SmallFarm) -> None:
    (first,) = render(farm, PARALLEL)
    hashes = farm.segment_hashes(first)
    second = take_in(farm, **PARALLEL, name="second")
    control.cancel(farm.ledger, first)
    garbage = find_garbage(farm.ledger, farm.settings, older_than_days=-1)
    assert {int(Path(item.path).relative_to(farm.settings.artifacts_dir).parts[1]) for item in garbage} == {first}
    remove(farm.ledger, farm.settings, garbage)
    assert farm.segment_hashes(second) == hashes


def test_frames_of_a_version_that_no_worker_runs_are_not_used(farm: SmallFarm, monkeypatch: pytest.MonkeyPatch) -> None:
    render(farm, PARALLEL)
    monkeypatch.setattr("farm.reuse._versions_at_work", lambda ledger, queue: {"2"})
    second = take_in(farm, **PARALLEL, name="second")
    assert farm.segments_done(second) == 0


def test_a_submission_can_tell_beforehand_what_will_be_rendered(farm: SmallFarm) -> None:
    before = write_speech(farm.home / "before.wav", 2.0)
    after = edit(before, farm.home / "after.wav", 0.9, 0.1)
    rows = [{"portrait": str(farm.portrait), "audio": str(after), "model": "fake", "continuity": "parallel", "seed": 5}]

    def foreseen() -> list[tuple[int, int, float]]:
        done = submit(
            farm.ledger,
            farm.settings,
            rows_from(rows),
            base=farm.home,
            source="test",
            dry_run=True,
            look_ahead=True,
        )
        return [(f.reused, f.rendered, f.rendered_seconds) for f in done.forecasts]

    assert foreseen() == []
    render(farm, PARALLEL | {"audio": str(before)})
    assert foreseen() == [(4, 1, 0.4)]
    assert len(read.jobs(farm.ledger)) == 1


def talk(path: Path, *parts: tuple[int, float]) -> Path:
    """Words with pauses between them at 44.1 kHz; each part is a voice's seed and its seconds."""
    pieces = []
    for seed, seconds in parts:
        dice, samples = np.random.default_rng(seed), 0
        while samples < seconds * 44_100:
            word, pause = dice.integers(20_000, 90_000), dice.integers(16_000, 30_000)
            pieces += [dice.normal(0, 3000, word), dice.normal(0, 15, pause)]
            samples += word + pause
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(44_100)
        file.writeframes(np.clip(np.concatenate(pieces), -32768, 32767).astype("<i2").tobytes())
    return path


def test_a_sentence_more_that_lasts_no_whole_number_of_anything_changes_the_segments_beside_it_only(
    farm: SmallFarm,
) -> None:
    farm.change("segments", seconds=6.0)
    keys = []
    for name, parts in {"before": [(1, 40.0), (2, 40.0)], "after": [(1, 40.0), (3, 2.345), (2, 40.0)]}.items():
        job_id = farm.submit(audio=str(talk(farm.home / f"{name}.wav", *parts)), **PARALLEL)
        lease = farm.claim("cpu", "test", job_id)
        store = open_store(farm.settings)
        plan = prepare(lease.job, lease.token, store, farm.settings.segments, farm.settings.film).plan
        keys.append([item.content_key for item in plan])
    before, after = keys
    assert len(before) > 10
    assert len(set(after) - set(before)) <= 3
    assert after[:4] == before[:4]
    assert after[-4:] == before[-4:]
