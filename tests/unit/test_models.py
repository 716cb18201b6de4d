"""Model files: every shipped one is read, and a wrong one is told with file and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from farm.errors import ConfigError, InputError
from farm.models import all_models, load_model, model_files

SHIPPED = sorted(path.stem for path in (Path(__file__).resolve().parents[2] / "configs/models").glob("*.toml"))
LEAST = (Path(__file__).parent / "small_model.toml").read_text(encoding="utf-8")
SMALL = (
    LEAST
    + """choices = [[64, 64], [96, 64]]

[settings.count]
type = "int"
default = 1
min = 0
max = 9
help = "h"

[settings.flag]
type = "bool"
default = false
help = "h"

[settings.words]
type = "text"
default = ""
help = "h"

[settings.steps]
type = "int"
default = 4
min = 1
max = 8
help = "h"
job = false

[presets.quick]
help = "h"
queue = "small-quick"
settings = { count = 2, steps = 2 }
load = { steps = 2 }
"""
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FARM_HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    return tmp_path


def write(home: Path, text: str, name: str = "small.toml") -> Path:
    path = home / "models" / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("model_id", SHIPPED)
def test_every_shipped_model_is_read_and_its_presets_resolve(home: Path, model_id: str) -> None:
    model = load_model(model_id)
    for name in model.presets:
        resolved = model.resolve(name, {})
        assert set(resolved) == {key for key, spec in model.settings.items() if spec.job}
        assert model.queue_for(name)
    for fps in model.frames.fps:
        assert model.frames.chunk(model.read_fps(fps)) > 0
    assert model.read_size(None) == model.size.default == model.read_size("{}x{}".format(*model.size.default))
    assert model.read_fps(None) == (model.frames.default_fps, 1)


@pytest.mark.parametrize("model_id", SHIPPED)
def test_every_shipped_model_says_what_it_is_for_people(home: Path, model_id: str) -> None:
    model = load_model(model_id)
    assert model.name and model.summary and model.licence
    assert all(preset.help for preset in model.presets.values())
    assert all(setting.help for setting in model.settings.values())


def test_a_model_in_the_home_is_added_and_wins(home: Path) -> None:
    write(home, SMALL)
    write(home, SMALL.replace('id = "small"', 'id = "preview"'), "preview.toml")
    assert set(model_files()) == {"small", *SHIPPED}
    assert load_model("preview").name == "Small"
    assert {model.id for model in all_models()} == {"small", *SHIPPED}


def test_a_changed_file_is_read_again(home: Path) -> None:
    path = write(home, SMALL)
    assert load_model("small").memory_gb == 0.1
    path.write_text(SMALL.replace("memory_gb = 0.1", "memory_gb = 0.25"))
    assert load_model("small").memory_gb == 0.25


def test_a_row_wins_over_the_preset_and_the_preset_over_the_defaults(home: Path) -> None:
    write(home, SMALL)
    model = load_model("small")
    assert model.resolve("plain", {}) == {"count": 1, "flag": False, "words": ""}
    assert model.resolve("quick", {"flag": "yes"}) == {"count": 2, "flag": True, "words": ""}
    assert model.resolve("quick", {"count": "7", "words": 5}) == {"count": 7, "flag": False, "words": "5"}
    assert model.resolve("plain", {"count": "1"}) == model.resolve("plain", {})
    assert type(model.resolve("plain", {})["count"]) is type(model.resolve("plain", {"count": "1"})["count"]) is int
    assert (model.queue_for("plain"), model.queue_for("quick")) == ("small", "small-quick")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"count": "1.5"}, "count must be a whole number, not '1.5'"),
        ({"count": "inf"}, "count must be a number from 0 to 9, not 'inf'"),
        ({"count": None}, "count must be a number from 0 to 9, not None"),
        ({"flag": "maybe"}, "flag must be true or false, not 'maybe'"),
        ({"steps": 2}, "model small has no setting 'steps'; a row may set count, flag, words"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_refused_with_what_is_possible(home: Path, given: dict[str, object], sentence: str) -> None:
    write(home, SMALL)
    with pytest.raises(InputError) as caught:
        load_model("small").resolve("plain", given)
    assert str(caught.value) == sentence


def test_sizes_are_read_as_people_write_them(home: Path) -> None:
    write(home, SMALL)
    model = load_model("small")
    assert model.read_size("64") == model.read_size("64X64") == model.read_size("64×64") == (64, 64)
    with pytest.raises(InputError, match="cannot render 64x96; it renders 64x64, 96x64"):
        model.read_size("64x96")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('queue = "small"\n', "", "queue: is missing"),
        ('id = "small"', 'id = "other"', "id: 'other' must be the file's name"),
        ("default = 1\n", 'default = "x"\n', "settings.count.int"),
        ('default_preset = "plain"', 'default_preset = "none"', "default_preset 'none' is not among the presets"),
        ("count = 2, steps", "cuont = 2, steps", "preset quick sets 'cuont', which is no setting of this model"),
        ("count = 2, steps", "count = 99, steps", "count must be a number from 0 to 9, not 99"),
        ("job = false", "jobs = false", "settings.steps.int.jobs: there is no such key"),
        ("[frames]", "[frames", "Expected ']'"),
        ("default_fps = 25", "default_fps = 30", "default_fps 30 is not among fps"),
        ("chunk_frames = 5", "chunk_frames = { 24 = 5 }", "chunk_frames must name every one of fps"),
        ("default = 4\n", "default = 9\n", "steps must be a number from 1 to 8, not 9.0"),
    ],
    ids=str,
)
def test_a_wrong_file_is_told_with_its_name_and_key(home: Path, old: str, new: str, said: str) -> None:
    assert old in SMALL
    path = write(home, SMALL.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        load_model("small")
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_model_is_refused_with_those_that_are_known(home: Path) -> None:
    with pytest.raises(InputError, match=r"there is no model 'x'; this farm knows .*preview"):
        load_model("x")
    with pytest.raises(InputError, match="there is no model"):
        load_model("../../etc/passwd")
