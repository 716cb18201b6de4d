"""A host is a real child process; whatever becomes of it, the worker is told in the words of the farm."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from farm.devices import parse_devices
from farm.errors import ConfigError, DeviceFault, EngineError, FarmError, InputError, OutOfMemory
from workers.host.parent import Host, Progress, Rendered

from .conftest import (
    CHUNK,
    FRAME_BYTES,
    HERE,
    Render,
    StartHost,
    descriptors,
    end_with,
    fake_spec,
    is_dead,
    wait_until,
)

ROOT = HERE.parents[1]


def test_loading_tells_what_the_engine_is(start_host: StartHost) -> None:
    host = start_host()
    assert host.loaded is not None
    assert (host.loaded.description["id"], host.loaded.description["fps"]) == ("fake", [25, 1])
    assert host.loaded.report["memory_bytes"] == 123_456_789
    assert host.loaded.python.startswith("3.")
    assert host.is_alive and host.pid != os.getpid()


def test_settings_of_the_roster_reach_the_engine(start_host: StartHost) -> None:
    host = start_host(model_dir="/models/权重", steps=4)
    assert host.loaded is not None
    assert host.loaded.description["limits"]["settings"] == {"model_dir": "/models/权重", "steps": 4}


def test_frames_arrive_whole_and_in_order_with_progress_after_every_chunk(host: Host, render: Render) -> None:
    heard = render(host, 12, total=12)
    assert [e.frames for e in heard.events] == [5, 10, 12, 12]
    assert all(isinstance(e, Progress) for e in heard.events[:-1])
    assert len(heard.frames) == 12 * FRAME_BYTES
    assert len({heard.frame(n) for n in (0, CHUNK, 2 * CHUNK)}) == 3
    assert heard.end.last_frame == heard.frame(11)
    assert heard.end.device_seconds > 0


def test_a_film_in_parts_is_the_film(host: Host, render: Render) -> None:
    whole = render(host, 30)
    first = render(host, 10)
    second = render(host, 20, first=10, carry=first.end.carry)
    assert first.frames + second.frames == whole.frames
    assert second.end.carry == whole.end.carry


def test_without_its_carry_a_segment_starts_afresh(host: Host, render: Render) -> None:
    assert render(host, 5, first=10).frames != render(host, 15).frames[10 * FRAME_BYTES :]


def test_a_carry_of_megabytes_passes(start_host: StartHost, render: Render) -> None:
    host = start_host(carry_bytes=5_000_000)
    first = render(host, 5)
    assert first.end.carry is not None and len(first.end.carry) > 5_000_000
    assert render(host, 5, first=5, carry=first.end.carry).end.frames == 5


def test_a_render_stops_at_the_next_chunk_and_the_host_stays_warm(start_host: StartHost, render: Render) -> None:
    host = start_host(pace=0.05)
    pid = host.pid
    heard = render(host, 250, on_progress=lambda progress: host.stop_render())
    assert heard.end.carry is None
    assert CHUNK <= heard.end.frames < 250
    assert len(heard.frames) == heard.end.frames * FRAME_BYTES
    assert render(host, 10).end.frames == 10
    assert host.pid == pid


def test_a_late_stop_does_not_end_the_next_render(host: Host, render: Render) -> None:
    render(host, 5)
    host.stop_render()
    assert render(host, 10).end.carry is not None


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        ("input", InputError, "the mouth is covered by a hand"),
        ("engine", EngineError, "the model gave no picture"),
        ("memory", OutOfMemory, "the device is full"),
        ("torch memory", OutOfMemory, "CUDA out of memory. Tried to allocate 2.00 GiB"),
        ("device", DeviceFault, "the device fell off the bus"),
        ("cuda", DeviceFault, "CUDA error: an illegal memory access was encountered"),
        ("bug", EngineError, "'frame'"),
        ("bytes", EngineError, "no picture of ab?"),
        ("none", EngineError, "the engine yielded no frames after 5 of 20"),
        ("many", EngineError, "the engine yielded 255 frames where 20 were planned"),
        ("strided", EngineError, "the engine's frames"),
    ],
)
def test_an_error_of_the_engine_keeps_its_class_and_words_and_the_host_stays_warm(
    host: Host, render: Render, kind: str, error: type[FarmError], words: str
) -> None:
    pid = host.pid
    heard = render(host, 20, prompt=f"{kind}@5")
    assert type(heard.error) is error
    assert words in str(heard.error)
    assert "Traceback" not in str(heard.error)
    assert render(host, 10).end.frames == 10
    assert host.pid == pid


def test_an_encoder_that_went_away_is_told(host: Host, render: Render) -> None:
    heard = render(host, 250, read=False)
    assert isinstance(heard.error, EngineError)
    assert "the encoder stopped taking frames: Broken pipe" in str(heard.error)
    assert render(host, 5).end.frames == 5


def test_a_wrong_carry_is_an_engine_error(host: Host, render: Render) -> None:
    first = render(host, 5)
    assert "the carry stands at frame 5, not 10" in str(render(host, 5, first=10, carry=first.end.carry).error)


def test_what_an_engine_prints_goes_to_the_log(start_host: StartHost, render: Render) -> None:
    host = start_host()
    heard = render(host, 10, prompt="print@0")
    assert heard.end.frames == 10
    assert "a library that talks" in host.spec.log_file.read_text()


# Death


def test_a_host_that_exits_is_told_with_its_code_and_its_last_words(start_host: StartHost, render: Render) -> None:
    host = start_host()
    heard = render(host, 20, prompt="exit@5")
    assert type(heard.error) is DeviceFault
    assert str(heard.error) == "the host exited with 7 while rendering; it said: last words before the exit"
    assert not host.is_alive and host.loaded is None


def test_a_host_that_is_killed_while_it_renders_is_told(start_host: StartHost, render: Render) -> None:
    heard = render(start_host(), 20, prompt="kill@5")
    assert type(heard.error) is DeviceFault
    assert str(heard.error) == "the host was killed by SIGKILL while rendering"
    assert isinstance(heard.events[0], Progress)


def test_a_host_that_died_while_idle_is_told_when_it_is_asked(start_host: StartHost, render: Render) -> None:
    host = start_host()
    assert host.pid is not None
    os.kill(host.pid, signal.SIGKILL)
    wait_until(lambda: not host.is_alive, "the host's death")
    heard = render(host, 5)
    assert type(heard.error) is DeviceFault
    assert "the host was killed by SIGKILL" in str(heard.error)
    assert "the host is not running" in str(render(host, 5).error)
    host.start()
    assert render(host, 5).end.frames == 5


def test_a_host_without_progress_is_killed(start_host: StartHost, render: Render) -> None:
    host = start_host(spec={"stuck_floor_seconds": 0.3, "stuck_factor": 2.0})
    pid = host.pid
    heard = render(host, 20, prompt="hang@5")  # the first chunk may take as long as loading
    assert type(heard.error) is DeviceFault
    assert str(heard.error) == "the host showed no progress for 0 s while rendering; it was killed"
    assert [e.frames for e in heard.events] == [5]
    assert pid is not None and is_dead(pid)


def test_the_first_chunk_of_a_size_may_take_as_long_as_loading(start_host: StartHost, render: Render) -> None:
    host = start_host(spec={"stuck_floor_seconds": 0.01, "stuck_factor": 2.0}, pace=0.0)
    assert host._patience((64, 64)) == host.spec.load_timeout_seconds
    render(host, 5)
    assert host._patience((64, 64)) < host.spec.load_timeout_seconds
    assert host._patience((128, 128)) == host.spec.load_timeout_seconds


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        ("input", InputError, "the mouth is covered"),
        ("memory", OutOfMemory, "the device is full"),
        ("bug", EngineError, "'frame'"),
        ("exit", DeviceFault, "the host exited with 7 while loading; it said: last words before the exit"),
    ],
)
def test_an_engine_that_does_not_load_says_why(tmp_path: Path, kind: str, error: type[FarmError], words: str) -> None:
    host = Host(fake_spec(tmp_path / "log", on_load=kind))
    with pytest.raises(error) as caught:
        host.start()
    assert words in str(caught.value)
    assert host.loaded is None
    host.kill()


def test_a_load_that_takes_too_long_or_is_given_up_ends_the_host(tmp_path: Path) -> None:
    slow = Host(fake_spec(tmp_path / "log", load_seconds=600, spec={"load_timeout_seconds": 0.5}))
    with pytest.raises(DeviceFault, match="showed no progress for 0 s while loading; it was killed"):
        slow.start()
    assert not slow.is_alive
    give_up = threading.Event()
    given_up = Host(fake_spec(tmp_path / "log", load_seconds=600))
    threading.Timer(0.2, give_up.set).start()
    with pytest.raises(DeviceFault, match="the host was told to end while loading"):
        given_up.start(give_up)
    assert not given_up.is_alive


def test_an_engine_module_that_is_missing_is_told(tmp_path: Path) -> None:
    host = Host(fake_spec(tmp_path / "log", spec={"engine_module": "no_such_engine"}))
    with pytest.raises(EngineError, match="No module named 'no_such_engine'"):
        host.start()
    host.kill()


# Nothing is left behind


def children_named_in(log: Path) -> list[int]:
    return [int(line.split()[1]) for line in log.read_text().splitlines() if line.startswith("child ")]


def test_killing_a_host_ends_all_that_it_started(start_host: StartHost, render: Render) -> None:
    host = start_host()
    render(host, 5, prompt="children@0")
    pids = [host.pid or 0, *children_named_in(host.spec.log_file)]
    with end_with(pids):
        assert len(pids) == 3 and not any(is_dead(pid) for pid in pids)
        host.kill()
        wait_until(lambda: all(is_dead(pid) for pid in pids), "the death of the host's children")


def test_a_host_that_dies_alone_takes_its_group_with_it(start_host: StartHost, render: Render) -> None:
    host = start_host()
    heard = render(host, 20, prompt="children@0; exit@10")
    assert isinstance(heard.error, DeviceFault)
    in_the_group, _ = pids = children_named_in(host.spec.log_file)
    with end_with(pids):
        wait_until(lambda: is_dead(in_the_group), "the death of the host's child")


WORKER = """
import sys
from pathlib import Path
from tests.workers.conftest import fake_spec
from workers.host.parent import Host
host = Host(fake_spec(Path(sys.argv[1]), spec={"env_script": sys.argv[2]}))
host.start()
print(host.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("with_script", [False, True])
def test_a_host_dies_when_its_worker_is_killed(tmp_path: Path, with_script: bool) -> None:
    script = tmp_path / "env.sh"
    script.write_text("export FROM_SCRIPT=1\n")
    argv = [sys.executable, "-c", WORKER, str(tmp_path / "log"), str(script) if with_script else ""]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as worker:
        assert worker.stdout
        pid = int(worker.stdout.readline())
        with end_with([pid]):
            assert psutil.pid_exists(pid)
            worker.kill()
            wait_until(lambda: is_dead(pid), "the death of the host")


def test_renders_leave_no_descriptors_open_on_either_side(host: Host, render: Render) -> None:
    render(host, 5)
    ours, theirs = descriptors(), descriptors(host.pid)
    for number in range(20):
        render(host, 5, prompt="engine@0" if number % 4 == 0 else "")
    # The child says "done" first and lets go of the film's sound after it, here and in the render before.
    wait_until(lambda: descriptors() <= ours and descriptors(host.pid) <= theirs, "20 renders' descriptors to close")


def test_hosts_that_come_and_go_leave_nothing_in_the_worker(start_host: StartHost, render: Render) -> None:
    threads = threading.active_count()
    start_host().kill()
    wait_until(lambda: threading.active_count() <= threads, "the end of the first listener")
    before = descriptors()
    for _ in range(3):
        host = start_host()
        render(host, 5)
        host.kill()
        host.kill()
    wait_until(lambda: threading.active_count() <= threads, "the end of the listeners")
    wait_until(lambda: descriptors() <= before, "their descriptors to close")


def test_a_log_that_grew_large_is_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "host.log"
    log.write_bytes(b"x" * (17 << 20))
    host = Host(fake_spec(log))
    host.start()
    host.kill()
    assert log.stat().st_size < 1 << 20
    assert (tmp_path / "host.log.1").stat().st_size == 17 << 20


def test_old_log_lines_are_not_taken_for_last_words(tmp_path: Path, render: Render) -> None:
    log = tmp_path / "host.log"
    log.write_text("an old story\n")
    host = Host(fake_spec(log))
    host.start()
    assert str(render(host, 20, prompt="kill@0").error) == "the host was killed by SIGKILL while rendering"


# Launching


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"python": "/no/such/python"}, "python_executable '/no/such/python' does not exist"),
        ({"env_script": "/no/such/set_env.sh"}, "env_script '/no/such/set_env.sh' does not exist"),
    ],
)
def test_a_launch_that_cannot_work_is_a_wrong_setting(tmp_path: Path, spec: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Host(fake_spec(tmp_path / "log", spec=spec)).start()


def test_an_env_script_sets_variables_and_its_failure_is_told(tmp_path: Path) -> None:
    script = tmp_path / "set env.sh"
    script.write_text('echo "hello from the script"\nexport FROM_SCRIPT="ein Wert"\n')
    host = Host(fake_spec(tmp_path / "log", spec={"env_script": str(script)}))
    loaded = host.start()
    assert loaded.description["limits"]["seen"]["FROM_SCRIPT"] == "ein Wert"
    host.kill()
    script.write_text("echo 'libascend is missing' >&2\nexit 3\n")
    with pytest.raises(DeviceFault, match=r"the host exited with 3 .*it said: libascend is missing"):
        host.start()


def test_a_host_sees_its_devices_and_no_passwords(start_host: StartHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    monkeypatch.setenv("FARM_LEDGER_URL", "postgresql://u:s3cret@h/d")
    monkeypatch.setenv("FARM_REDIS_URL", "redis://:s3cret@h")
    host = start_host()
    assert host.loaded is not None
    assert host.loaded.description["limits"]["seen"] == {
        "CUDA_VISIBLE_DEVICES": "",
        "ASCEND_RT_VISIBLE_DEVICES": None,
        "FARM_LEDGER_URL": None,
        "FARM_REDIS_URL": None,
        "FROM_SCRIPT": None,
    }


def test_two_workers_cannot_have_one_card(
    tmp_path: Path, start_host: StartHost, render: Render, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FARM_CARD_LOCKS", str(tmp_path / "locks"))
    first = start_host(spec={"devices": parse_devices("npu:2,3"), "holder": "worker a of the farm in /a"})
    second = Host(fake_spec(tmp_path / "second.log", spec={"devices": parse_devices("npu:3"), "holder": "worker b"}))
    with pytest.raises(DeviceFault, match=r"card npu:3 is held by worker a of the farm in /a"):
        second.start()
    first.kill()
    first.start()  # between two children its cards stay its own
    assert render(first, 5).end.frames == 5
    first.close()
    second.start()
    second.close()


def test_progress_and_end_are_all_that_a_render_yields(host: Host, render: Render) -> None:
    kinds = [type(event) for event in render(host, 20).events]
    assert kinds == [Progress] * 4 + [Rendered]
