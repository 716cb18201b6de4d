"""How a host is launched: its argv and its environment, exactly."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from farm.devices import parse_devices
from workers.host.parent import HostSpec
from workers.solo import specs_for

ROOT = str(Path(__file__).resolve().parents[2])


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", "/bin")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "0,1,2,3")
    monkeypatch.setenv("PYTHONSTARTUP", "/home/u/.pythonrc")
    monkeypatch.setenv("FARM_LEDGER_URL", "postgresql://u:p@h/d")
    monkeypatch.setenv("FARM_REDIS_URL", "redis://:p@h")


def spec(devices: str, **changes: object) -> HostSpec:
    values: dict[str, object] = {"log_file": Path("/log"), "engine_settings": {}, "engine_module": "workers.engines.x"}
    return HostSpec(devices=parse_devices(devices), **(values | changes))  # type: ignore[arg-type]


def environment_of(host: HostSpec) -> dict[str, str]:
    return {key: value for key, value in host.child_environment().items() if key != "PYTEST_CURRENT_TEST"}


ALWAYS = {"PATH": "/bin", "PYTHONPATH": ROOT, "PYTHONUNBUFFERED": "1"}


@pytest.mark.parametrize(
    ("devices", "visible"),
    [
        ("cpu", {"CUDA_VISIBLE_DEVICES": ""}),
        ("cuda:2,3", {"CUDA_VISIBLE_DEVICES": "2,3", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}),
        ("cuda:GPU-1a2b", {"CUDA_VISIBLE_DEVICES": "GPU-1a2b", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}),
        ("npu:2,3,4,5", {"ASCEND_RT_VISIBLE_DEVICES": "2,3,4,5", "CUDA_VISIBLE_DEVICES": ""}),
    ],
)
def test_the_environment_is_the_workers_with_these_devices_and_no_secrets(
    devices: str, visible: dict[str, str]
) -> None:
    assert environment_of(spec(devices)) == ALWAYS | visible


def test_the_roster_may_add_variables_and_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = environment_of(spec("cpu", environment={"HF_HUB_OFFLINE": "1", "PYTHONPATH": "/repo"}))
    assert environment == ALWAYS | {
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([ROOT, "/repo"]),
    }
    monkeypatch.setenv("PYTHONPATH", "/site")
    assert spec("cpu").child_environment()["PYTHONPATH"] == os.pathsep.join([ROOT, "/site"])


def test_the_interpreter_of_the_model_runs_the_child() -> None:
    assert spec("cpu").argv(7) == [sys.executable, "-m", "workers.host.child", "7", "workers.engines.x"]
    assert spec("cpu", python="/opt/model/bin/python").argv(7)[0] == "/opt/model/bin/python"


def test_a_host_of_several_ranks_is_one_launcher_with_its_cards_and_its_log() -> None:
    host = spec("npu:2,3,4,5", ranks=4, env_script="/cann/set_env.sh", silence_seconds=30.0)
    launcher = [sys.executable, "-m", "workers.host.group", "7", "workers.engines.x", "4", "/log", "30"]
    assert host.argv(7) == ["bash", "-c", 'source "$0" >&2 && exec "$@"', "/cann/set_env.sh", *launcher]
    assert environment_of(host) == ALWAYS | {"ASCEND_RT_VISIBLE_DEVICES": "2,3,4,5", "CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.parametrize(
    ("devices", "text", "told"),
    [
        ("cuda:2,3", "cuda:7", {"CUDA_VISIBLE_DEVICES": "2,3,7", "TEXT_DEVICE": "cuda:2"}),
        ("cuda:0", "cpu", {"CUDA_VISIBLE_DEVICES": "0", "TEXT_DEVICE": "cpu"}),
    ],
)
def test_the_card_of_the_prompts_is_visible_behind_those_of_the_ranks(
    devices: str, text: str, told: dict[str, str]
) -> None:
    host = spec(devices, text_device=parse_devices(text))
    assert environment_of(host) == ALWAYS | {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"} | told


def test_a_group_that_the_worker_itself_is_in_is_not_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    assert environment_of(spec("cpu")) == ALWAYS | {"CUDA_VISIBLE_DEVICES": ""}


def test_an_env_script_is_sourced_first_and_no_argument_is_read_by_the_shell() -> None:
    argv = spec("npu:0", env_script="/usr/local/Ascend/it's; here/set_env.sh").argv(7)
    assert argv == [
        "bash",
        "-c",
        'source "$0" >&2 && exec "$@"',
        "/usr/local/Ascend/it's; here/set_env.sh",
        *[sys.executable, "-m", "workers.host.child", "7", "workers.engines.x"],
    ]


def test_one_film_is_rendered_by_a_worker_of_its_presets_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_HOME", str(tmp_path))
    table = "model = 'soulx-flashhead-1.3b'\npython_executable = '/opt/python'\n"
    (tmp_path / "workers.toml").write_text(f"[workers.good]\ndevices = 'cuda:0'\n{table}")
    chosen = {preset: specs_for("soulx-flashhead-1.3b", preset)[1] for preset in ("pro", "lite")}
    assert {preset: spec.queue for preset, spec in chosen.items()} == {
        "pro": "soulx-flashhead-1.3b",
        "lite": "soulx-flashhead-1.3b-lite",
    }
    assert {spec.python for spec in chosen.values()} == {"/opt/python"}
    assert [spec.queue for spec in specs_for("preview", "calm")] == ["cpu", "preview"]
