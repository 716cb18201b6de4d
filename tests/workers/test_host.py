"""The host as a real child process with an engine that misbehaves on order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from farm.devices import parse_devices
from farm.errors import ConfigError, DeviceFault, EngineError, InputError, OutOfMemory
from workers.host.parent import Host, HostSpec, Progress, Rendered

ENGINE = "tests.workers.fake_engine"
WIDTH, HEIGHT = 64, 48


def spec(tmp_path: Path, **changes: Any) -> HostSpec:
    values: dict[str, Any] = {
        "engine_module": ENGINE,
        "engine_settings": {},
        "devices": parse_devices("cpu"),
        "log_file": tmp_path / "host.log",
        "load_timeout_seconds": 60.0,
        "stuck_factor": 2.0,
        "stuck_floor_seconds": 1.5,
    }
    return HostSpec(**(values | changes))


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(spec(tmp_path))
    made.start()
    yield made
    made.kill()


def render(
    host: Host,
    tmp_path: Path,
    settings: Mapping[str, Any] | None = None,
    *,
    first: int = 0,
    frames: int = 12,
    total: int = 12,
    carry: bytes | None = None,
) -> tuple[list[Progress], Rendered, bytes]:
    """What a render said, its end, and every byte that it wrote into the encoder's pipe."""
    np.zeros(16_000, np.float32).tofile(tmp_path / "driving.f32")
    film = {
        "portrait": str(tmp_path / "portrait.png"),
        "audio": str(tmp_path / "driving.f32"),
        "total_frames": total,
        "width": WIDTH,
        "height": HEIGHT,
        "fps": [25, 1],
        "prompt": "",
        "seed": 1,
        "settings": dict(settings or {}),
        "facts": {},
    }
    read_end, write_end = os.pipe()
    written: list[bytes] = []

    def drain() -> None:
        with os.fdopen(read_end, "rb") as pipe:
            written.append(pipe.read())

    reader = threading.Thread(target=drain)
    reader.start()
    said: list[Progress] = []
    try:
        for event in host.render(film, first_frame=first, frames=frames, carry=carry, write_fd=write_end):
            if isinstance(event, Rendered):
                end = event
            else:
                said.append(event)
    finally:
        os.close(write_end)
        if not host.is_alive:
            reader.join(10)
    reader.join(10)
    return said, end, written[0]


def test_frames_arrive_whole_in_order_and_with_a_carry(host: Host, tmp_path: Path) -> None:
    said, end, pixels = render(host, tmp_path)
    assert [p.frames for p in said] == [5, 10, 12]
    assert (end.frames, end.carry) == (12, b"12")
    frames = np.frombuffer(pixels, np.uint8).reshape(12, HEIGHT, WIDTH, 3)
    assert (frames == np.arange(12).reshape(-1, 1, 1, 1)).all()
    assert end.last_frame == frames[-1].tobytes()


def test_a_segment_goes_on_from_the_carry_of_the_one_before(host: Host, tmp_path: Path) -> None:
    _, first, _ = render(host, tmp_path, frames=5)
    _, second, pixels = render(host, tmp_path, first=5, frames=7, carry=first.carry)
    assert second.carry == b"12"
    assert pixels[0] == 5


def test_a_warm_host_renders_many_segments_and_leaks_no_descriptors(host: Host, tmp_path: Path) -> None:
    render(host, tmp_path)
    child = psutil.Process(host.pid)
    before = (child.num_fds(), psutil.Process().num_fds())
    for _ in range(20):
        render(host, tmp_path)
    assert (child.num_fds(), psutil.Process().num_fds()) == before


@pytest.mark.parametrize(
    ("fault", "error"),
    [("input", InputError), ("memory", OutOfMemory), ("device", DeviceFault), ("engine", EngineError)],
)
def test_the_engines_errors_keep_their_class_and_the_host_its_process(
    host: Host, tmp_path: Path, fault: str, error: type[Exception]
) -> None:
    pid = host.pid
    with pytest.raises(error, match=f"{fault} on order"):
        render(host, tmp_path, {"fault": fault, "at_frame": 5})
    assert host.pid == pid
    assert render(host, tmp_path)[1].frames == 12


def test_an_unknown_error_is_an_engine_error_with_its_words(host: Host, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="bug on order"):
        render(host, tmp_path, {"fault": "bug"})


def test_a_killed_host_is_a_device_fault_that_names_the_signal(host: Host, tmp_path: Path) -> None:
    with pytest.raises(DeviceFault, match="SIGKILL"):
        render(host, tmp_path, {"fault": "die", "at_frame": 5})
    assert not host.is_alive


def test_a_host_that_exits_is_told_with_its_last_words(host: Host, tmp_path: Path) -> None:
    with pytest.raises(DeviceFault, match=r"exited with 7 .*the last words"):
        render(host, tmp_path, {"fault": "exit"})


def test_a_host_that_died_while_idle_is_a_device_fault_at_the_next_render(host: Host, tmp_path: Path) -> None:
    assert host.pid is not None
    os.kill(host.pid, signal.SIGKILL)
    while host.is_alive:
        time.sleep(0.01)
    with pytest.raises(DeviceFault):
        render(host, tmp_path)


def test_a_render_without_progress_is_killed(host: Host, tmp_path: Path) -> None:
    render(host, tmp_path)  # the first chunk of a size may take as long as loading
    with pytest.raises(DeviceFault, match="no progress"):
        render(host, tmp_path, {"fault": "hang", "at_frame": 5})
    assert not host.is_alive


def test_a_stop_ends_the_render_at_its_next_chunk_and_keeps_the_host(host: Host, tmp_path: Path) -> None:
    threading.Timer(0.5, host.stop_render).start()
    _, end, _ = render(host, tmp_path, {"step_seconds": 0.1}, frames=200, total=200)
    assert end.carry is None
    assert end.frames < 200
    assert host.is_alive
    assert render(host, tmp_path)[1].frames == 12


def test_a_host_that_cannot_load_says_why(tmp_path: Path) -> None:
    host = Host(spec(tmp_path, engine_settings={"load_fails": True}))
    with pytest.raises(EngineError, match="the weights are not there"):
        host.start()
    host.kill()


def test_loading_has_a_time_limit(tmp_path: Path) -> None:
    host = Host(spec(tmp_path, engine_settings={"load_seconds": 600}, load_timeout_seconds=2.0))
    with pytest.raises(DeviceFault, match="while loading"):
        host.start()
    assert not host.is_alive


def test_killing_a_host_ends_what_it_started(tmp_path: Path) -> None:
    host = Host(spec(tmp_path, engine_settings={"grandchild": True}))
    host.start()
    family = psutil.Process(host.pid).children(recursive=True)
    assert family
    host.kill()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive


def test_a_host_dies_with_its_worker(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from tests.workers.test_host import spec; "
        "from workers.host.parent import Host; host = Host(spec(Path(sys.argv[1]))); host.start(); "
        "print(host.pid, flush=True); time.sleep(600)"
    )
    worker = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    with worker:
        child = psutil.Process(int(worker.stdout.readline()))
        worker.kill()
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    ("devices", "present", "absent"),
    [
        ("cuda:2,3", {"CUDA_VISIBLE_DEVICES": "2,3", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, ["ASCEND_RT_VISIBLE_DEVICES"]),
        ("npu:2,3,4,5", {"ASCEND_RT_VISIBLE_DEVICES": "2,3,4,5", "CUDA_VISIBLE_DEVICES": ""}, []),
        ("cpu", {"CUDA_VISIBLE_DEVICES": ""}, ["ASCEND_RT_VISIBLE_DEVICES"]),
    ],
)
def test_a_host_sees_its_own_devices_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: str, present: dict[str, str], absent: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "0,1")
    env = spec(tmp_path, devices=parse_devices(devices)).child_environment()
    assert {name: env.get(name) for name in present} == present
    assert not set(absent) & set(env)


def test_the_env_script_is_sourced_before_the_interpreter_starts(tmp_path: Path) -> None:
    script = tmp_path / "set env 设置.sh"
    script.write_text("export CUDA_VISIBLE_DEVICES=from-the-script\n", encoding="utf-8")
    made = spec(tmp_path, env_script=str(script))
    assert made.argv(9)[-5:] == [sys.executable, "-m", "workers.host.child", "9", ENGINE]
    host = Host(made)
    assert host.start().description["device"] == "from-the-script"
    host.kill()


def test_a_launch_that_cannot_work_is_told_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="python_executable"):
        Host(spec(tmp_path, python="/nowhere/python")).start()
    with pytest.raises(ConfigError, match="env_script"):
        Host(spec(tmp_path, env_script="/nowhere/set_env.sh")).start()
