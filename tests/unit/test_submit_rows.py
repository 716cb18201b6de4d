"""What is checked of one row before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.batch import COLUMNS, Row
from farm.config import Settings, load_settings
from farm.errors import InputError
from farm.input_files import InputFile
from farm.ledger.values import JobRequest
from farm.models import load_model
from farm.row_check import RowChecker
from farm.states import Continuity

BASE = Path("/inputs")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FARM_HOME", str(tmp_path_factory.mktemp("home")))
        return load_settings()


def checker(settings: Settings, salt: str = "") -> RowChecker:
    a, b, other = (str(BASE / name) for name in ("a.png", "b.wav", "other.wav"))
    known = {
        ("portrait", a): InputFile(a, "1" * 64, {"width": 512, "height": 512}),
        ("audio", b): InputFile(b, "2" * 64, {"seconds": 12.5, "rate": 48_000}),
        ("audio", other): InputFile(other, "3" * 64, {"seconds": 1.0, "rate": 48_000}),
    }
    errors = {("portrait", str(BASE / "bad.png")): "/inputs/bad.png is a damaged picture (truncated)."}
    return RowChecker(settings, BASE, BASE / "films", "ann", known, errors, salt)


def check(settings: Settings, salt: str = "", **cells: Any) -> JobRequest:
    return checker(settings, salt).check(Row(2, {"portrait": "a.png", "audio": "b.wav", **cells}))


def test_a_bare_row_takes_every_default_from_the_model(settings: Settings) -> None:
    request = check(settings)
    model = load_model("preview")
    assert (request.model, request.preset) == ("preview", model.default_preset)
    assert (request.width, request.height) == model.size.default
    assert request.fps == (model.frames.default_fps, 1)
    assert request.settings == model.resolve(model.default_preset, {})
    assert request.queue == model.queue
    assert (request.name, request.output) == ("b", "/inputs/films/b.mp4")
    assert (request.owner, request.priority, request.due, request.tags) == ("ann", 0, None, ())
    assert request.continuity is Continuity.CARRY
    assert (request.audio_seconds, request.portrait_sha256, request.audio_sha256) == (12.5, "1" * 64, "2" * 64)


def test_every_column_is_understood(settings: Settings) -> None:
    given: Mapping[str, str] = {
        "name": "第一课",
        "output": "out/",
        "model": "preview",
        "preset": "calm",
        "prompt": "a teacher",
        "seed": "7",
        "fps": "30",
        "size": "768x432",
        "priority": "-5",
        "deadline": "2026-12-24T06:00+00:00",
        "continuity": " Parallel ",
        "tags": "week1, intro;week1",
        "owner": "dean",
    }
    assert {"portrait", "audio", *given} == set(COLUMNS)
    request = check(settings, **given)
    assert (request.name, request.output) == ("第一课", "/inputs/out/第一课.mp4")
    assert (request.preset, request.prompt, request.seed) == ("calm", "a teacher", 7)
    assert (request.fps, request.width, request.height) == ((30, 1), 768, 432)
    assert (request.priority, request.due) == (-5, 1_798_092_000.0)
    assert request.continuity is Continuity.PARALLEL
    assert (request.tags, request.owner) == (("week1", "intro"), "dean")


@pytest.mark.parametrize("written", ["24.12.2026 6:00", "2026/12/24 6:00:00", "2026-12-24 06:00"])
def test_dates_and_decimals_are_read_as_spreadsheets_write_them(settings: Settings, written: str) -> None:
    request = check(settings, deadline=written, mouth="1,2")
    assert request.due == datetime(2026, 12, 24, 6).astimezone().timestamp()
    assert request.settings["mouth"] == 1.2


@pytest.mark.parametrize(
    ("cells", "sentence"),
    [
        ({"portrait": ""}, "no portrait"),
        ({"audio": None}, "no audio"),
        ({"portrait": "bad.png"}, "/inputs/bad.png is a damaged picture (truncated)."),
        ({"model": "nonsense"}, "there is no model 'nonsense'; this farm knows "),
        ({"preset": "nonsense"}, "model preview has no preset 'nonsense'; it has natural, calm, lively, still"),
        ({"portait": "x"}, "there is no column 'portait'; columns are portrait, audio, name"),
        ({"mouth": "9"}, "mouth must be a number from 0.3 to 1.6, not '9'"),
        ({"mouth": "nan"}, "mouth must be a number from 0.3 to 1.6, not 'nan'"),
        ({"mouth": True}, "mouth must be a number from 0.3 to 1.6, not True"),
        ({"framing": "close"}, "framing must be one of auto, whole, not 'close'"),
        ({"size": "big"}, "size 'big' is not WIDTHxHEIGHT in pixels, such as 512x512"),
        ({"size": "511x512"}, "model preview cannot render 511x512; each side is from 256 to 1920 pixels and a"),
        ({"fps": "23"}, "model preview cannot render 23 frames per second; it renders 24, 25, 30, 50"),
        ({"fps": "29.97"}, "model preview cannot render 29.97 frames per second"),
        ({"seed": "-1"}, "seed must be from 0 to 2147483647, not -1"),
        ({"seed": "1.5"}, "seed must be a whole number, not '1.5'"),
        ({"seed": "9" * 5000}, "seed must be a whole number, not '999"),
        ({"priority": "101"}, "priority must be from -100 to 100, not 101"),
        ({"deadline": "tomorrow"}, "deadline must be a date such as 2026-12-24 or 2026-12-24T06:00, not 'tomorrow'"),
        ({"deadline": "0001-01-01"}, "deadline must be a date"),
        ({"deadline": "12/24/2026"}, "deadline must be a date"),  # in other countries another day
        ({"deadline": "31.2.2026"}, "deadline must be a date"),
        ({"mouth": "1,000.5"}, "mouth must be a number from 0.3 to 1.6, not '1,000.5'"),
        ({"continuity": "both"}, "continuity must be carry or parallel, not 'both'"),
        ({"prompt": "x" * 2001}, "the prompt has 2001 characters; the limit is 2000"),
        ({"output": "x" * 300}, "the film's name xxx"),
        ({"output": "a\0b"}, "output holds characters that no file name or text may have"),
        ({"name": "lone \ud800 surrogate"}, "name holds characters that no file name or text may have"),
        ({"portrait": "\udc80.png"}, "portrait holds characters that no file name or text may have"),
        ({"tags": ["a\0"]}, "tags holds characters that no file name or text may have"),
        ({"owner": "x" * 300}, "owner has 300 characters; the limit is 200"),
    ],
    ids=str,
)
def test_a_bad_row_says_what_is_wrong_in_one_sentence(settings: Settings, cells: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        check(settings, **cells)
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


def test_an_output_that_is_a_folder_is_refused(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "taken.mp4").mkdir()
    with pytest.raises(InputError, match=r"taken\.mp4 is a folder"):
        check(settings, output=str(tmp_path / "taken.mp4"))


@pytest.mark.parametrize(
    ("cell", "name"),
    [("a/b\\c:d", "a b c d"), ("  .hidden. ", "hidden"), ("///", "film"), ("x" * 500, "x" * 120), ("..", "film")],
)
def test_a_films_name_is_fit_for_any_file_system(settings: Settings, cell: str, name: str) -> None:
    request = check(settings, name=cell)
    assert request.name == name
    assert request.output == f"/inputs/films/{name}.mp4"


def test_outputs_get_the_suffix_that_they_lack_and_keep_dots(settings: Settings) -> None:
    assert check(settings, output="lesson.1").output == "/inputs/lesson.1.mp4"
    assert check(settings, output="lesson.MP4").output == "/inputs/lesson.MP4"
    assert check(settings, output="../up/x.mp4").output == "/up/x.mp4"


def test_inputs_and_outputs_stay_inside_the_roots(settings: Settings, tmp_path: Path) -> None:
    fenced = settings.model_copy(update={"output_roots": [tmp_path]})
    inside = tmp_path / "in"
    inside.mkdir()
    (inside / "door").symlink_to("/etc")
    row = {"portrait": "a.png", "audio": "b.wav"}
    assert checker(fenced).check(Row(2, {**row, "output": str(inside / "x.mp4")})).output == str(inside / "x.mp4")
    for outside in ("/etc/x.mp4", str(inside / "door" / "x.mp4"), str(tmp_path / ".." / "x.mp4")):
        with pytest.raises(InputError, match="lies outside of what this farm may use"):
            checker(fenced).check(Row(2, {**row, "output": outside}))


# Keys: the same row is the same job


def test_the_same_row_has_the_same_key_and_seed(settings: Settings) -> None:
    assert check(settings) == check(settings)


@pytest.mark.parametrize(
    "cells",
    [
        {"audio": "other.wav"},
        {"preset": "calm"},
        {"mouth": 1.1},
        {"prompt": "else"},
        {"seed": 1},
        {"size": "640"},
        {"fps": 30},
        {"continuity": "parallel"},
        {"output": "elsewhere"},
    ],
    ids=str,
)
def test_everything_that_decides_the_film_changes_the_key(settings: Settings, cells: dict[str, Any]) -> None:
    assert check(settings, **cells).key != check(settings).key


@pytest.mark.parametrize(
    "cells", [{"priority": 5}, {"owner": "eve"}, {"tags": "x"}, {"deadline": "2026-12-24"}], ids=str
)
def test_what_does_not_decide_the_film_keeps_the_key(settings: Settings, cells: dict[str, Any]) -> None:
    assert check(settings, **cells).key == check(settings).key


def test_a_setting_that_is_the_default_anyway_keeps_the_key(settings: Settings) -> None:
    assert check(settings, mouth="1.0", size="512x512", fps="25").key == check(settings).key


def test_again_makes_another_job_of_the_same_row(settings: Settings) -> None:
    assert check(settings, salt="x").key != check(settings).key


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=30),
    st.lists(st.text(max_size=5), max_size=3),
)


@given(st.dictionaries(st.sampled_from([*COLUMNS, "mouth", "framing", "blink_rate", "x"]), ANYTHING, max_size=6))
def test_whatever_stands_in_a_row_gives_a_job_or_one_sentence(settings: Settings, cells: dict[str, Any]) -> None:
    row = {"portrait": "a.png", "audio": "b.wav", **cells}
    for column in ("portrait", "audio"):  # other files are looked at before, in tests/ledger/test_submit.py
        if row[column] not in ("a.png", "b.wav", None, ""):
            row[column] = {"portrait": "a.png", "audio": "b.wav"}[column]
    try:
        request = checker(settings).check(Row(2, row))
    except InputError as error:
        assert str(error)
    else:
        assert request.key and request.output.lower().endswith(".mp4")
