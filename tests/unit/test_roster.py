"""Which workers a machine has, and what is wrong with a roster."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from farm.errors import ConfigError, NotFound
from farm.roster import find_worker, load_roster, machine_name


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FARM_HOME", str(tmp_path))
    monkeypatch.setenv("FARM_MACHINE", "box1")
    return tmp_path


def test_what_ships_is_a_cpu_worker_and_a_preview_worker() -> None:
    workers = {spec.name: spec for spec in load_roster()}
    assert set(workers) == {"cpu", "preview"}
    assert (workers["cpu"].queue, workers["cpu"].renders) == ("cpu", False)
    assert (workers["preview"].queue, workers["preview"].renders) == ("preview", True)
    assert workers["preview"].python == sys.executable


def test_the_home_has_a_roster_of_its_own(home: Path) -> None:
    (home / "workers.toml").write_text(
        "[workers.a]\n[workers.b]\nmodel = 'preview'\npreset = 'calm'\n[workers.off]\nenabled = false\ndevices = 'x'\n"
    )
    assert [spec.full_name for spec in load_roster()] == ["a@box1", "b@box1"]
    assert machine_name() == "box1"
    assert find_worker("b").preset == find_worker("b@box1").preset == "calm"
    with pytest.raises(NotFound, match=r"workers\.toml names no worker 'c'; it has a, b"):
        find_worker("c")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "workers: there is no [workers.NAME] table"),
        ("workers = 3", "workers: there is no [workers.NAME] table"),
        ("[workers]\na = 3", "workers.a: must be a table"),
        ("[workers.'a b']", "workers.a b: a worker's name has letters, digits, '.', '_' and '-' only"),
        ("[workers.a]\nmodle = 'x'", "workers.a.modle: Extra inputs are not permitted"),
        ("[workers.a]\nname = 'x'", "workers.a: name: the table's heading is the name"),
        ("[workers.a]\nenabled = 'perhaps'", "workers.a.enabled: Input should be a valid boolean"),
        ("[workers.a]\nmodel = 'x'", "workers.a: there is no model 'x'"),
        ("[workers.a]\nmodel = 'preview'\npreset = 'x'", "workers.a: model preview has no preset 'x'"),
        ("[workers.a]\ndevices = 'gpu'", "workers.a: devices = 'gpu' is no device set"),
        (
            "[workers.a]\nmodel = 'preview'\ndevices = 'cuda:0'",
            "workers.a: devices: preview renders on cpu, not on cuda",
        ),
        (
            "[workers.a]\ndevices = 'cuda:0,1'\n[workers.b]\ndevices = 'cuda:1'",
            "workers a and b both claim cuda:0,1 / cuda:1; a device belongs to one worker",
        ),
        ("[workers.a", "Expected ']'"),
    ],
    ids=str,
)
def test_a_wrong_roster_is_told_with_file_and_key(home: Path, text: str, said: str) -> None:
    path = home / "workers.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_roster()
    assert str(caught.value).startswith(f"{path}: {said}")
    assert "\n" not in str(caught.value)
