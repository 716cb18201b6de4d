"""The story of a submission, with real files: checked first, written once, rung afterwards."""

from __future__ import annotations

import os
import wave
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from farm.batch import BadRows, rows_from
from farm.config import Settings, load_settings
from farm.errors import InputError
from farm.ledger import Ledger, control, crew, read
from farm.ledger.files import known_files
from farm.states import JobState
from farm.submission import Submission, submit

from .scenes import chain, claim, plan, publish, render_all


class Bell:
    """A doorbell that keeps what it rang."""

    def __init__(self, works: bool = True) -> None:
        self.works = works
        self.rang: list[str] = []

    def ring(self, queues: Iterable[str]) -> bool:
        self.rang += queues
        return self.works


class Desk:
    """A folder with inputs, and somebody who submits them."""

    def __init__(self, ledger: Ledger, folder: Path, settings: Settings) -> None:
        self.ledger, self.folder, self.settings, self.bell = ledger, folder, settings, Bell()
        for name in ("a.png", "b.png"):
            Image.new("RGB", (80, 80), "red" if name == "a.png" else "blue").save(folder / name)
        self.wav("one.wav", 1.0)
        self.wav("two.wav", 2.0)

    def wav(self, name: str, seconds: float) -> None:
        with wave.open(str(self.folder / name), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(8000)
            file.writeframes(b"\0\1" * round(8000 * seconds))

    def submit(self, *cells: dict[str, Any], **how: Any) -> Submission:
        return submit(
            self.ledger,
            self.settings,
            rows_from(cells),
            base=self.folder,
            source="batch.csv",
            doorbell=self.bell,  # type: ignore[arg-type]
            **how,
        )

    def problems(self, *cells: dict[str, Any], **how: Any) -> list[str]:
        with pytest.raises(BadRows) as caught:
            self.submit(*cells, **how)
        assert read.jobs(self.ledger) == []
        return [problem.sentence for problem in caught.value.problems]


ONE = {"portrait": "a.png", "audio": "one.wav"}
TWO = {"portrait": "b.png", "audio": "two.wav"}


@pytest.fixture
def desk(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setenv("FARM_HOME", str(tmp_path / "home"))
    folder = tmp_path / "课程 inputs"
    folder.mkdir()
    return Desk(ledger, folder, load_settings())


def test_rows_become_one_batch_of_jobs_and_ring_once(desk: Desk) -> None:
    done = desk.submit(ONE, TWO, name="week 1", owner="ann")
    assert done.problems == () and done.rang
    assert desk.bell.rang == ["cpu"]
    assert crew.take_owed_doorbells(desk.ledger) == []
    batch = read.batch(desk.ledger, done.intake.batch_id or 0)
    assert (batch.name, batch.owner, batch.source) == ("week 1", "ann", "batch.csv")
    jobs = [read.job(desk.ledger, job_id) for job_id in done.intake.job_ids]
    assert [job.output for job in jobs] == [str(desk.folder / "films" / name) for name in ("one.mp4", "two.mp4")]
    assert [job.audio_seconds for job in jobs] == [1.0, 2.0]
    assert [job.portrait for job in jobs] == [str(desk.folder / "a.png"), str(desk.folder / "b.png")]


def test_submitting_again_makes_nothing_and_rings_nobody(desk: Desk) -> None:
    first = desk.submit(ONE, TWO)
    desk.bell.rang.clear()
    again = desk.submit(ONE, TWO)
    assert again.intake.new_job_ids == ()
    assert again.intake.job_ids == first.intake.job_ids
    assert desk.bell.rang == []


def test_again_makes_new_jobs_of_known_rows(desk: Desk) -> None:
    first = desk.submit(ONE)
    control.cancel(desk.ledger, first.intake.job_ids[0])
    again = desk.submit(ONE, again=True)
    assert len(again.intake.new_job_ids) == 1
    assert again.intake.job_ids != first.intake.job_ids
    third = desk.submit(ONE)
    assert third.intake.job_ids == first.intake.job_ids


def test_a_changed_input_is_another_job(desk: Desk) -> None:
    first = desk.submit(ONE)
    control.cancel(desk.ledger, first.intake.job_ids[0])
    desk.wav("one.wav", 1.5)
    second = desk.submit(ONE)
    assert second.intake.new_job_ids
    assert read.job(desk.ledger, second.intake.new_job_ids[0]).audio_seconds == 1.5


def test_one_bad_row_keeps_all_rows_out_unless_it_may_be_skipped(desk: Desk) -> None:
    (desk.folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    rows = [ONE, {**TWO, "portrait": "none.png"}, {**TWO, "portrait": "broken.png"}, {**TWO, "fps": 7}]
    said = desk.problems(*rows)
    assert said[0] == f"portrait {desk.folder}/none.png does not exist"
    assert said[1].startswith(f"{desk.folder}/broken.png is")
    assert said[2].startswith("model preview cannot render 7 frames per second")
    done = desk.submit(*rows, skip_bad=True)
    assert len(done.intake.new_job_ids) == 1
    assert [problem.row for problem in done.problems] == [2, 3, 4]


def test_a_batch_of_bad_rows_alone_is_refused_even_if_they_may_be_skipped(desk: Desk) -> None:
    assert desk.problems({"portrait": "a.png"}, skip_bad=True) == ["no audio"]


def test_the_same_row_twice_is_said_and_equal_names_get_numbers(desk: Desk) -> None:
    assert desk.problems(ONE, ONE) == ["this is the same film as row 1"]
    done = desk.submit(ONE, {**ONE, "seed": 5}, {**ONE, "seed": 6})
    outputs = [Path(read.job(desk.ledger, job_id).output).name for job_id in done.intake.job_ids]
    assert outputs == ["one.mp4", "one-2.mp4", "one-3.mp4"]
    again = desk.submit(ONE, {**ONE, "seed": 5}, {**ONE, "seed": 6})
    assert again.intake.job_ids == done.intake.job_ids


def test_a_file_that_the_farm_did_not_make_is_not_replaced_unless_asked(desk: Desk) -> None:
    (desk.folder / "films").mkdir()
    (desk.folder / "films/one.mp4").write_bytes(b"a person's own film")
    (said,) = desk.problems(ONE)
    assert said == (
        f"{desk.folder}/films/one.mp4 exists and was not made by this farm; give another output, or --overwrite"
    )
    assert desk.submit(ONE, overwrite=True).intake.new_job_ids


def test_two_jobs_never_write_the_same_film_at_once(desk: Desk) -> None:
    (job_id,) = desk.submit(ONE).intake.job_ids
    with pytest.raises(BadRows, match=f"job {job_id} is about to write .*one.mp4; give another output"):
        desk.submit({**ONE, "seed": 5})
    control.cancel(desk.ledger, job_id)
    assert desk.submit({**ONE, "seed": 5}).intake.new_job_ids


def test_a_film_that_the_farm_made_may_be_made_anew(desk: Desk) -> None:

    desk.submit(ONE)
    plan(desk.ledger, claim(desk.ledger, "cpu", "cpu"), chain(1))
    render_all(desk.ledger)
    publish(desk.ledger, claim(desk.ledger, "cpu", "cpu"))
    (desk.folder / "films").mkdir()
    (desk.folder / "films/one.mp4").write_bytes(b"the farm's film")
    assert [job.state for job in read.jobs(desk.ledger)] == [JobState.SUCCEEDED]
    assert desk.submit({**ONE, "seed": 5}).intake.new_job_ids


def test_files_are_opened_once_and_remembered(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.submit(ONE, {**ONE, "seed": 5}, TWO)
    paths = [str(desk.folder / name) for name in ("a.png", "b.png", "one.wav", "two.wav")]
    assert set(known_files(desk.ledger, paths)) == set(paths)

    def refuse(path: Path) -> str:
        raise AssertionError(f"{path} was read again")

    monkeypatch.setattr("farm.input_files.sha256_of", refuse)
    assert len(desk.submit(ONE, {**ONE, "seed": 5}, TWO).intake.known_job_ids) == 3
    stat = (desk.folder / "a.png").stat()
    os.utime(desk.folder / "a.png", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    with pytest.raises(AssertionError, match="was read again"):
        desk.submit(ONE)


def test_inputs_outside_the_roots_are_refused_also_through_a_link(desk: Desk, tmp_path: Path) -> None:
    outside = tmp_path / "secret.png"
    outside.write_bytes((desk.folder / "a.png").read_bytes())
    (desk.folder / "link.png").symlink_to(outside)
    desk.settings = desk.settings.model_copy(update={"input_roots": [desk.folder]})
    assert desk.submit(TWO).intake.new_job_ids
    for path in (str(outside), "link.png", "../secret.png"):
        with pytest.raises(InputError, match="lies outside of what this farm may use"):
            desk.submit({**ONE, "portrait": path})


def test_links_that_go_round_in_a_circle_are_told(desk: Desk) -> None:
    (desk.folder / "x.png").symlink_to("y.png")
    (desk.folder / "y.png").symlink_to("x.png")
    (said,) = desk.problems({**ONE, "portrait": "x.png"})
    assert "x.png" in said


@pytest.mark.parametrize("cell", ["a\0.png", "\ud800.png", "x" * 5000, "~nobody-here/a.png", "", "."])
def test_a_path_that_no_file_can_have_is_a_sentence(desk: Desk, cell: str) -> None:
    (said,) = desk.problems({**ONE, "portrait": cell})
    assert said and "\n" not in said


def test_limits_of_size_and_length_are_told(desk: Desk) -> None:
    limits = desk.settings.limits.model_copy(update={"portrait_file_mb": 1e-6, "audio_hours": 1e-4})
    desk.settings = desk.settings.model_copy(update={"limits": limits})
    (said,) = desk.problems(TWO)
    assert "is larger than 1e-06 MB; save a smaller copy" in said
    limits = limits.model_copy(update={"portrait_file_mb": 100.0, "audio_file_gb": 1e-9})
    desk.settings = desk.settings.model_copy(update={"limits": limits})
    (said,) = desk.problems(TWO)
    assert "is larger than 1e-09 GB; cut it or compress it" in said
    limits = limits.model_copy(update={"audio_file_gb": 1.0})
    desk.settings = desk.settings.model_copy(update={"limits": limits})
    (said,) = desk.problems(TWO)
    assert "claims to last 0 hours; the limit is 0.0001" in said


def test_a_redis_that_does_not_answer_loses_nothing(desk: Desk) -> None:
    desk.bell.works = False
    done = desk.submit(ONE)
    assert not done.rang
    assert done.intake.new_job_ids


def test_progress_is_told_file_by_file(desk: Desk) -> None:
    told: list[tuple[int, int]] = []
    desk.submit(ONE, TWO, on_progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_defaults_fill_what_a_row_lacks(desk: Desk) -> None:
    done = desk.submit(ONE, {**TWO, "preset": "still"}, defaults={"preset": "calm", "priority": 3})
    assert [read.job(desk.ledger, job_id).preset for job_id in done.intake.job_ids] == ["calm", "still"]
    assert {read.job(desk.ledger, job_id).priority for job_id in done.intake.job_ids} == {3}
