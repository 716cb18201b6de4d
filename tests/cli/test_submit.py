"""`farm submit`: what it prints, where, and how it ends."""

from __future__ import annotations

import importlib
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from farm.ledger import moves, open_ledger, read
from farm.states import ArtifactKind
from tests.ledger import scenes

Farm = Callable[..., Result]


def test_a_batch_becomes_jobs_and_the_same_rows_again_are_the_same_jobs(farm: Farm, batch: Path) -> None:
    first = farm("submit", str(batch))
    assert first.exit_code == 0
    assert "batch 1: jobs 1-2 submitted" in first.stdout
    again = farm("submit", str(batch))
    assert again.exit_code == 0
    assert "2 rows are jobs already" in again.stdout
    assert "submitted" not in again.stdout


def test_without_redis_the_jobs_are_written_and_it_is_said(farm: Farm, batch: Path) -> None:
    done = farm("submit", str(batch))
    assert done.exit_code == 0
    assert done.stderr == "`farm up` starts the workers, which will find these jobs.\n"
    assert len(farm("jobs", "list", "--json").stdout.splitlines()) == 2


def test_json_tells_programs_the_ids(farm: Farm, batch: Path) -> None:
    told = json.loads(farm("submit", str(batch), "--json").stdout)
    assert told["new"] == [1, 2]
    assert json.loads(farm("submit", str(batch), "--json").stdout)["known"] == [1, 2]


def test_again_makes_new_jobs(farm: Farm, batch: Path) -> None:
    farm("submit", str(batch))
    for job in ("1", "2"):
        farm("jobs", "cancel", job)
    assert "jobs 3-4 submitted" in farm("submit", str(batch), "--again").stdout


def publish_films(home: Path) -> list[Path]:
    """Take every open job of a farm to its end, with three bytes of film."""
    ledger = open_ledger(str(home / "ledger.db"))
    films = []
    for job in reversed(read.jobs(ledger, shown_as=[read.OPEN])):
        scenes.prepare(ledger, job.id, 1)
        scenes.render_all(ledger)
        films.append(Path(job.output))
        films[-1].parent.mkdir(exist_ok=True)
        films[-1].write_bytes(b"abc")
        film = scenes.artifact(ArtifactKind.FILM, job.output)
        moves.publish(ledger, scenes.claim(ledger, "cpu", "cpu"), artifacts=[film])
    ledger.close()
    return films


def test_who_submits_again_is_told_which_films_are_lost(farm: Farm, home: Path, batch: Path) -> None:
    farm("submit", str(batch))
    first, second = publish_films(home)
    assert "lost" not in farm("submit", str(batch)).stdout
    first.unlink()
    second.write_bytes(b"another film")
    told = farm("submit", str(batch)).stdout
    assert f"the film of job 1 is lost: {first} is gone; `farm submit --again`" in told
    assert f"the film of job 2 is lost: {second} is another file now; " in told
    brought = farm("jobs", "fetch", "1", "2")
    assert (brought.exit_code, brought.stdout) == (1, "")
    assert "the film of job 1 is lost" in brought.stderr and "the film of job 2 is lost" in brought.stderr


def test_a_film_that_will_be_replaced_is_told_before(farm: Farm, home: Path, batch: Path) -> None:
    assert "replaced" not in farm("submit", str(batch)).stdout
    first, _ = publish_films(home)
    one = batch.with_name("one.csv")
    one.write_text("portrait,audio,name,preset\nanna.png,one.wav,first,calm\n", encoding="utf-8")
    for words in (("--dry-run",), ()):
        assert (
            f"the film of job 1 will be replaced: {first.relative_to(Path.cwd())}"
            in farm("submit", str(one), *words).stdout
        )


def test_every_bad_row_is_told_with_its_line_and_nothing_is_written(farm: Farm, media: Path) -> None:
    path = media / "bad.csv"
    path.write_text(
        "portrait,audio,size\nanna.png,one.wav,512x512\nnobody.png,one.wav,\nanna.png,one.wav,511x512\n",
        encoding="utf-8",
    )
    done = farm("submit", str(path))
    assert done.exit_code == 2
    assert "2 rows cannot be rendered; nothing was submitted." in done.stderr
    assert f"{path}:3: " in done.stderr and "nobody.png" in done.stderr
    assert f"{path}:4: model preview cannot render 511x512" in done.stderr
    assert farm("jobs", "list", "--json").stdout == ""


def test_a_file_whose_name_is_written_otherwise_is_found_or_proposed(farm: Farm, media: Path) -> None:
    folder = media / unicodedata.normalize("NFD", "Vorträge")  # as a Mac's archive unpacks
    folder.mkdir()
    (media / "one.wav").rename(folder / unicodedata.normalize("NFD", "Müller.wav"))
    path = media / "batch.csv"
    path.write_text("portrait,audio\nanna.png,Vorträge/Müller.wav\n", encoding="utf-8")
    assert "job 1 submitted" in farm("submit", str(path)).stdout
    assert Path(json.loads(farm("jobs", "show", "1", "--json").stdout)["audio"]).is_file()
    assert "1 row is a job already" in farm("submit", str(path)).stdout
    path.write_text("portrait,audio\nana.png,Vorträge/Müller.wav\nzebra.png,Vorträge/Müller.wav\n", encoding="utf-8")
    missing = farm("submit", str(path)).stderr
    assert f"portrait {media / 'ana.png'} does not exist; perhaps anna.png is meant, which lies there\n" in missing
    assert f"portrait {media / 'zebra.png'} does not exist\n" in missing


def test_skip_bad_takes_the_good_rows(farm: Farm, media: Path) -> None:
    path = media / "bad.csv"
    path.write_text("portrait,audio\nanna.png,one.wav\nnobody.png,one.wav\n", encoding="utf-8")
    done = farm("submit", str(path), "--skip-bad")
    assert done.exit_code == 0
    assert "job 1 submitted" in done.stdout
    assert f"{path}:3: skipped:" in done.stderr


def test_a_dry_run_writes_nothing(farm: Farm, batch: Path) -> None:
    assert "2 would be new" in farm("submit", str(batch), "--dry-run").stdout
    assert farm("jobs", "list", "--json").stdout == ""


def test_set_fills_cells_that_rows_lack(farm: Farm, batch: Path) -> None:
    farm("submit", str(batch), "--set", "preset=calm", "--set", "mouth=1.2")
    job = json.loads(farm("jobs", "show", "1", "--json").stdout)
    assert job["preset"] == "calm"
    assert job["settings"]["mouth"] == 1.2


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("submit", "nothing.csv"), "nothing.csv does not exist"),
        (("submit", "."), "is a folder"),
        (("submit", "x.csv", "--set", "preset"), "write COLUMN=VALUE"),
    ],
)
def test_a_mistake_gets_one_sentence_and_exit_code_2(
    farm: Farm, tmp_path: Path, words: tuple[str, ...], sentence: str
) -> None:
    (tmp_path / "x.csv").write_text("portrait,audio\na,b\n", encoding="utf-8")
    done = farm(*words)
    assert done.exit_code == 2
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_who_stops_waiting_is_told_that_the_jobs_go_on(
    farm: Farm, batch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module("farm.cli.submit"), "follow", stop)
    done = farm("submit", str(batch), "--wait")
    assert (done.exit_code, "the jobs go on without this terminal" in done.stderr) == (130, True)
    monkeypatch.setattr(importlib.import_module("farm.cli.render"), "render_one", stop)
    done = farm("render", "a.jpg", "b.wav", "-o", "c.mp4")
    assert (done.exit_code, "the same command goes on where it was" in done.stderr) == (130, True)
