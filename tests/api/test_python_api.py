"""The Python API on a real ledger; films by real workers."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from farm.api import Farm, Film
from farm.batch import BadRows
from farm.errors import NotFound, SomeJobsFailed
from farm.ledger.progress import JobProgress
from tests.farm_process import ROOT, workers

PORTRAIT = ROOT / "examples/portraits/astronaut.jpg"


@pytest.fixture
def farm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Farm]:
    """A farm whose work nobody takes."""
    monkeypatch.setenv("FARM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    with Farm() as made:
        yield made


def row(speech: Path, **cells: Any) -> dict[str, Any]:
    return {"portrait": PORTRAIT, "audio": speech, "size": "256x256", **cells}


def test_importing_farm_brings_in_nothing_but_the_standard_library() -> None:
    code = (
        "import sys; before = set(sys.modules); import farm;"
        "new = {m.split('.')[0] for m in set(sys.modules) - before};"
        "print(sorted(new - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['farm']"


def test_the_names_of_the_api_are_functions_whatever_was_imported_before() -> None:
    code = (
        "import farm; assert farm.__version__; assert callable(farm.render); assert callable(farm.submit), farm.submit;"
        "assert callable(farm.generate); from farm.submission import submit; assert callable(submit)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'lease'"):
        import farm

        getattr(farm, "lease")  # noqa: B009


def test_rows_and_a_csv_of_the_same_rows_are_the_same_jobs(farm: Farm, speech: Path, tmp_path: Path) -> None:
    csv = tmp_path / "batch.csv"
    csv.write_text(f"portrait,audio,size,output\n{PORTRAIT},{speech},256x256,a.mp4\n", encoding="utf-8")
    first = farm.submit(csv)
    again = farm.submit([row(speech, output=tmp_path / "a.mp4")])
    fresh = farm.submit([row(speech, output=tmp_path / "a2.mp4")], again=True)
    assert len(first) == 1
    assert again.job_ids == first.job_ids
    assert again.id is None
    assert fresh.job_ids != first.job_ids


def test_a_job_is_steered_and_tells_its_story(farm: Farm, speech: Path) -> None:
    (job,) = farm.submit([row(speech)])
    assert (job.state, job.film, job.reason) == ("queued", None, None)
    assert job.pause() and job.state == "paused"
    assert job.resume() and job.state == "queued"
    job.set_priority(5)
    assert job.value.priority == 5
    assert job.cancel() and not job.cancel()
    assert job.state == "cancelled"
    with pytest.raises(SomeJobsFailed, match=r"job 1 \(two seconds\) cancelled"):
        job.wait()
    assert job.retry()
    told = [event.event for event in job.events()]
    assert told[0] == "submit"
    assert {"pause", "resume", "priority", "cancel", "requeue"} <= set(told)
    assert "queued" in job._repr_html_()


def test_what_is_wrong_is_told_before_anything_is_submitted(farm: Farm, speech: Path, tmp_path: Path) -> None:
    with pytest.raises(BadRows, match=r"python:2: audio .* does not exist"):
        farm.submit([row(speech), row(tmp_path / "none.wav")])
    assert farm.jobs() == []
    partly = farm.submit([row(speech), row(tmp_path / "none.wav")], skip_bad=True)
    assert (len(partly), [p.row for p in partly.problems]) == (1, [2])
    with pytest.raises(NotFound):
        farm.job(99)


def test_waiting_gives_up_in_time_and_leaves_the_job_alone(farm: Farm, speech: Path) -> None:
    (job,) = farm.submit([row(speech)])
    with pytest.raises(TimeoutError):
        job.wait(timeout_seconds=0.1)
    with pytest.raises(TimeoutError):
        asyncio.run(job.wait_async(timeout_seconds=0.1))
    assert job.state == "queued"


def test_a_batch_is_waited_for_and_its_films_are_paths(farm: Farm, speech: Path, tmp_path: Path) -> None:
    seen: list[float] = []

    def look(progress: Any) -> None:
        one: JobProgress = progress[0]
        seen.append(one.share)

    batch = farm.submit([row(speech, seed=n, name=f"film {n}") for n in range(2)], output_dir=tmp_path / "films")
    with workers(farm.settings.home):
        jobs = batch.wait(progress=look, timeout_seconds=200)
    films = [job.film for job in jobs]
    assert [f.path.name for f in films if f] == ["film 0.mp4", "film 1.mp4"]
    assert isinstance(films[0], Film)
    assert (films[0].frames, films[0].width, films[0].seconds) == (50, 256, 2.0)
    assert Path(films[0]).stat().st_size == films[0].size_bytes
    assert films[0]._repr_html_().startswith("<video controls")
    assert seen == sorted(seen) and seen[-1] == 1.0
    assert set(batch.films) == set(batch.job_ids)
