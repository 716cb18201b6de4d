"""Which workers a machine has, and what is wrong with a roster."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from farm.config import load_settings
from farm.errors import ConfigError, NotFound
from farm.redis_server import server_argv
from farm.roster import find_worker, load_roster, machine_name
from farm.supervisor import child_environment, plan_children


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


def test_a_worker_has_a_rank_for_each_card_unless_told_otherwise(home: Path) -> None:
    table = "model = 'soulx-flashtalk-14b'\n"
    (home / "workers.toml").write_text(
        f"[workers.one]\n{table}devices = 'cuda:0'\n"
        f"[workers.four]\n{table}devices = 'npu:2,3,4,5'\ntext_device = 'npu:6'\n"
        f"[workers.shown]\n{table}devices = 'cuda:2,3,4'\nranks = 1\n"
    )
    one, four, shown = load_roster()
    assert [spec.world_size for spec in (one, four, shown)] == [1, 4, 1]
    assert [str(devices) for devices in four.device_sets] == ["npu:2,3,4,5", "npu:6"]


def test_workers_that_all_say_so_may_share_a_card(home: Path) -> None:
    shared = "devices = 'cuda:0'\nshare_card = true\n"
    file = home / "workers.toml"
    file.write_text(f"[workers.a]\n{shared}[workers.b]\n{shared}")
    assert [spec.share_card for spec in load_roster()] == [True, True]
    file.write_text(f"[workers.a]\n{shared}[workers.b]\ndevices = 'cuda:0'\n")
    with pytest.raises(ConfigError, match=r"a and b both claim cuda:0 / cuda:0; .* all have share_card = true"):
        load_roster()


def test_a_farm_starts_what_its_file_says_in_its_order(home: Path) -> None:
    (home / "workers.toml").write_text(
        "[workers.z]\ndevices = 'cuda:1'\n[workers.off]\nenabled = false\n[workers.a]\ndevices = 'cuda:2,3'\n"
    )
    settings = load_settings()
    redis, z, a, flower, serve = plan_children(settings, flower=True, serve=True)
    assert [child.name for child in (redis, z, a, flower, serve)] == [
        "redis",
        "worker-z",
        "worker-a",
        "flower",
        "serve",
    ]
    assert redis.argv == server_argv(settings)
    assert z.argv == [sys.executable, "-m", "workers", "z"]
    assert a.argv == [sys.executable, "-m", "workers", "a"]
    assert flower.argv == [sys.executable, "-m", "farm.flower"]
    assert serve.argv == [sys.executable, "-m", "farm.cli", "serve"]
    told = child_environment(settings)
    assert told == {**os.environ, "FARM_HOME": str(home), "PYTHONUNBUFFERED": "1"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "workers: there is no [workers.NAME] table"),
        ("workers = 3", "workers: there is no [workers.NAME] table"),
        ("[workers]\na = 3", "workers.a: must be a table"),
        ("[workers.'a b']", "workers.a b: a worker's name has letters, digits, '.', '_' and '-' only"),
        ("[workers.a]\nmodle = 'x'", "workers.a.modle: there is no such key"),
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
        (
            "[workers.a]\nmodel = 'preview'\nranks = 2",
            "workers.a: preview renders a film with 1 card, not with 2",
        ),
        (
            "[workers.a]\nmodel = 'soulx-flashtalk-14b'\ndevices = 'cuda:0,1,2'",
            "workers.a: soulx-flashtalk-14b renders a film with 1, 2, 4, 5, 8 cards, not with 3; ranks = 1 shows",
        ),
        (
            "[workers.a]\nmodel = 'soulx-flashtalk-14b'\ndevices = 'cuda:0,1,2,3'\nranks = 2",
            "workers.a: ranks: 2 processes cannot share cuda:0,1,2,3: give each one card",
        ),
        (
            "[workers.a]\nmodel = 'soulx-flashtalk-14b'\ndevices = 'npu:0'\ntext_device = 'cuda:1'",
            "workers.a: text_device: must be cpu or one npu card, not cuda:1",
        ),
        (
            "[workers.a]\nmodel = 'soulx-flashtalk-14b'\ndevices = 'npu:0,1'\ntext_device = 'npu:1'",
            "workers.a: text_device: npu:1 is one of its devices already; leave text_device out",
        ),
        (
            "[workers.a]\nmodel = 'soulx-flashtalk-14b'\ndevices = 'npu:0'\ntext_device = 'npu:2'\n"
            "[workers.b]\nmodel = 'soulx-flashtalk-14b'\ndevices = 'npu:2,3'",
            "workers a and b both claim npu:2 / npu:2,3; a device belongs to one worker",
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
