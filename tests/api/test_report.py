"""`farm report` on a batch that was really rendered, with one row that cannot be."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from farm.api import Farm
from farm.cli.farm_context import Farm as Context
from farm.cli.report import report
from tests.farm_process import ROOT, workers

PORTRAIT = ROOT / "examples/portraits/astronaut.jpg"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, speech: Path) -> Iterator[Path]:
    """A farm with one finished batch: a film and a failure."""
    home = tmp_path_factory.mktemp("report") / "home"
    wall = home.parent / "wall.png"
    Image.new("RGB", (400, 400), "seagreen").save(wall)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FARM_HOME", str(home))
        with Farm() as farm:
            rows = [
                {"portrait": PORTRAIT, "audio": speech, "size": "256x256", "name": "=SUM(A1) &amp; b"},
                {"portrait": wall, "audio": speech, "name": "wall"},
            ]
            batch = farm.submit(rows, name="week 1", output_dir=home.parent / "films")
            with workers(home):
                batch.wait(check=False, timeout_seconds=200)
        yield home


def run(*argv: str) -> str:
    done = CliRunner().invoke(report, argv, obj=Context(), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(autouse=True)
def use(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_HOME", str(home))


def test_the_page_holds_everything_it_shows(tmp_path: Path) -> None:
    path = tmp_path / "week.html"
    assert run("1", "-o", str(path)).strip() == str(path)
    page = path.read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href|url\()\s*=?\s*["']?(?!data:)[a-z]+:""", page)  # nothing is loaded
    assert page.count("data:image/jpeg;base64,") == 2  # a poster and a contact sheet
    assert "1 of 2" in page
    assert "no face was found" in page
    assert "=SUM(A1) &amp;amp; b" in page  # a name is text
    assert page.count("class=render") >= 3  # an attempt, a speed and a cost


def test_json_and_csv_say_the_same(tmp_path: Path) -> None:
    told = json.loads(run("1", "--json"))
    assert told["schema"] == "farm.batch-report/1"
    film, wall = told["jobs"]
    assert (film["state"], film["frames"], film["film_seconds"]) == ("succeeded", 50, 2.0)
    assert film["device_seconds"] > 0 and told["device_seconds"] == film["device_seconds"]
    assert (wall["state"], wall["film"]) == ("failed", None)
    rows = list(csv.DictReader(io.StringIO(run("1", "--csv"))))
    assert [row["state"] for row in rows] == ["succeeded", "failed"]
    assert rows[0]["name"].startswith("'=")  # a spreadsheet must not run it
