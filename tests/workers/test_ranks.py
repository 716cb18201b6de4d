"""A host of several ranks: to the worker it is a host like any other, and it lives and dies as one."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from farm.errors import DeviceFault, EngineError, InputError
from farm.ledger import read
from farm.roster import WorkerSpec
from farm.states import JobState, SegmentKind
from workers.host.group import free_port, log_of_rank, rank_environment
from workers.host.parent import Host, Rendered
from workers.runner import make_runner

from .conftest import CHUNK, HERE, Heard, Render, SmallFarm, StartHost, fake_spec, is_dead, running, wait_until

# A busy machine may let a rank stand still for a while, and only one test is about ranks that do.
TWO = {"ranks": 2, "silence_seconds": 120.0}


def ranks_of(host: Host) -> list[int]:
    """The pids of its ranks, rank 0's first."""
    assert host.pid is not None, host.last_words()
    found: dict[int, int] = {}
    for child in psutil.Process(host.pid).children():
        found[int(child.environ()["RANK"])] = child.pid
    return [found[rank] for rank in sorted(found)]


@pytest.fixture(scope="module")
def shared_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    shared = Host(fake_spec(tmp_path_factory.mktemp("group") / "group.log", spec=TWO))
    yield shared
    shared.close()


@pytest.fixture
def group(shared_group: Host) -> Host:
    """Two warm ranks that tests share as long as they live."""
    if not shared_group.is_alive:
        shared_group.start()
    return shared_group


def everyone_is_gone(pids: list[int]) -> bool:
    """Whether all have ended, after the moment that the kernel takes for a process that was killed."""
    return bool(wait_until(lambda: all(is_dead(pid) for pid in pids), f"the end of {pids}"))


def kill(pid: int) -> None:
    """Kill a process that may be dead already."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def resumed(host: Host, render: Render, done: Heard) -> bytes:
    """The film of 30 frames whose first ten are rendered, gone on with after the host was started again."""
    host.start()
    carry = done.end.carry
    return done.frames + render(host, 20, first=10, carry=carry).frames


def test_a_group_renders_what_one_process_renders(group: Host, host: Host, render: Render) -> None:
    one, both = render(host, 30), render(group, 30)
    assert both.frames == one.frames
    assert both.end.carry == one.end.carry
    first = render(group, 10)
    assert first.frames + render(group, 20, first=10, carry=first.end.carry).frames == one.frames


def test_each_rank_is_told_what_torchrun_tells() -> None:
    base = {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "2,3,4,5", "HCCL_EXEC_TIMEOUT": "300", "OMP_NUM_THREADS": "3"}
    assert rank_environment(base, 3, 4, 4711) == {
        **base,
        "COLLECTIVE_SECONDS": "25",
        "GLOO_SOCKET_IFNAME": "lo",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
        "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC": "60",
        "HCCL_CONNECT_TIMEOUT": "120",
        "RANK": "3",
        "LOCAL_RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_WORLD_SIZE": "4",
        "GROUP_RANK": "0",
        "GROUP_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "4711",
    }


def test_the_ranks_of_a_host_are_one_process_group_and_know_their_places(group: Host) -> None:
    pids = ranks_of(group)
    assert len(pids) == 2
    told = [psutil.Process(pid).environ() for pid in pids]
    assert [(t["RANK"], t["LOCAL_RANK"], t["WORLD_SIZE"]) for t in told] == [("0", "0", "2"), ("1", "1", "2")]
    assert len({t["MASTER_PORT"] for t in told}) == 1
    assert {os.getpgid(pid) for pid in pids} == {group.pid}
    group.kill()
    assert everyone_is_gone(pids)


def test_a_single_host_is_no_group_whatever_the_worker_was_told(
    start_host: StartHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", "5")
    host = start_host()
    assert host.loaded is not None and host.pid is not None
    assert set(host.loaded.description["limits"]["group"].values()) == {None}
    assert psutil.Process(host.pid).children() == []


def test_a_free_port_is_given_to_nobody_else_and_can_be_bound() -> None:
    port = free_port()
    others = [socket.create_server(("127.0.0.1", 0)) for _ in range(200)]
    assert port not in {other.getsockname()[1] for other in others}
    for other in others:
        other.close()
    socket.create_server(("127.0.0.1", port)).close()  # with SO_REUSEADDR, as torch's store does


def test_a_rank_that_is_killed_ends_all_and_the_segment_goes_on_from_its_carry(
    group: Host, host: Host, render: Render
) -> None:
    done = render(group, 10)
    pids = ranks_of(group)
    lost = render(group, 240, first=10, carry=done.end.carry, on_progress=lambda _: kill(pids[1]))
    assert isinstance(lost.error, DeviceFault)
    assert "rank 1 of 2 was killed by SIGKILL, so all were ended" in str(lost.error)
    assert everyone_is_gone(pids)
    assert not group.is_alive
    assert resumed(group, render, done) == render(host, 30).frames


def test_the_end_of_rank_0_ends_all_and_is_told(group: Host, host: Host, render: Render) -> None:
    done = render(group, 10)
    pids = ranks_of(group)
    lost = render(group, 20, first=10, carry=done.end.carry, prompt="exit@15#0")
    assert isinstance(lost.error, DeviceFault)
    assert "last words before the exit" in str(lost.error)
    assert "rank 0 of 2 exited with 7" in str(lost.error)
    assert everyone_is_gone(pids)


@pytest.mark.slow
def test_a_rank_that_stands_still_is_found_by_its_silence(start_host: StartHost, host: Host, render: Render) -> None:
    group = start_host(spec={"ranks": 2, "silence_seconds": 6.0})
    done = render(group, 10)
    pids = ranks_of(group)
    lost = render(group, 20, first=10, carry=done.end.carry, prompt="stop@15#1")
    assert isinstance(lost.error, DeviceFault)
    assert "rank 1 of 2 gave no sign of life" in str(lost.error)
    assert everyone_is_gone(pids)
    assert resumed(group, render, done) == render(host, 30).frames


def test_a_stop_at_a_chunk_boundary_reaches_every_rank(start_host: StartHost, host: Host, render: Render) -> None:
    group = start_host(spec=TWO, pace=0.02)
    pids = ranks_of(group)
    stopped = render(group, 250, on_progress=lambda _: group.stop_render())
    assert stopped.end.carry is None and CHUNK <= stopped.end.frames < 250
    assert render(group, 30).frames == render(host, 30).frames  # the ranks are still in step
    assert ranks_of(group) == pids


@pytest.mark.parametrize(
    ("prompt", "kind", "words"),
    [
        ("input@5", InputError, "the mouth is covered by a hand"),
        ("engine@5#1", EngineError, "rank 1: the model gave no picture"),
        ("engine@5#0", EngineError, "the model gave no picture"),
    ],
)
def test_an_error_leaves_all_ranks_warm_when_all_come_back(
    group: Host, host: Host, render: Render, prompt: str, kind: type[Exception], words: str
) -> None:
    pids = ranks_of(group)
    failed = render(group, 20, prompt=prompt)
    assert type(failed.error) is kind
    assert str(failed.error) == words
    assert render(group, 10).frames == render(host, 10).frames
    assert ranks_of(group) == pids


def test_a_rank_that_cannot_load_is_told_with_its_number(tmp_path: Path) -> None:
    group = Host(fake_spec(tmp_path / "host.log", spec=TWO, on_load="memory@0#1"))
    with pytest.raises(Exception, match="rank 1: the device is full"):
        group.start()
    group.close()


def test_each_rank_has_a_log_that_is_put_aside_when_it_grew_large(tmp_path: Path, render: Render) -> None:
    log = tmp_path / "gpu0.host.log"
    other = log_of_rank(log, 1)
    assert (log_of_rank(log, 0), other.name) == (log, "gpu0.host.rank1.log")
    other.write_bytes(b"x" * (17 << 20))
    group = Host(fake_spec(log, spec=TWO))
    group.start()
    render(group, 10, prompt="print@0#1")
    group.close()
    assert "a library that talks" in other.read_text()
    assert "a library that talks" not in log.read_text()
    assert other.with_name(other.name + ".1").stat().st_size == 17 << 20


def test_an_env_script_is_sourced_once_for_all_ranks(tmp_path: Path) -> None:
    script = tmp_path / "set_env.sh"
    script.write_text(f"export FROM_SCRIPT=yes\necho sourced >> {tmp_path / 'count'}\n")
    group = Host(fake_spec(tmp_path / "log", spec={"ranks": 2, "env_script": str(script)}))
    group.start()
    assert [psutil.Process(pid).environ()["FROM_SCRIPT"] for pid in ranks_of(group)] == ["yes", "yes"]
    assert (tmp_path / "count").read_text() == "sourced\n"
    group.close()


def test_a_group_serves_a_live_session(group: Host, host: Host, portrait: Path) -> None:
    film: dict[str, Any] = {
        "portrait": str(portrait),
        "audio": "",
        "total_frames": 10**9,
        "width": 64,
        "height": 64,
        "fps": [25, 1],
        "prompt": "",
        "seed": 7,
        "settings": {},
        "facts": {},
        "live_frames": CHUNK,
    }
    with group.live(film) as hear, pytest.raises(EngineError, match="only rank 0 hears"):
        hear(bytes(2 * 16_000))  # the fake engine reads the sound on every rank, which a spread engine does not


def rendered(farm: SmallFarm, job: int) -> int:
    return sum(outcome == "succeed" for _, outcome in farm.outcomes(job))


def test_a_launcher_whose_worker_is_gone_leaves_no_rank(group: Host) -> None:
    pids = ranks_of(group)
    assert group.pid is not None
    os.kill(group.pid, signal.SIGKILL)
    assert everyone_is_gone(pids)


@pytest.mark.slow
def test_a_job_outlives_the_death_of_a_rank(farm: SmallFarm, tmp_path: Path) -> None:
    def spec(name: str, ranks: int) -> WorkerSpec:
        environment = {"PYTHONPATH": str(HERE)}
        return WorkerSpec(name=name, model="fake", environment=environment, ranks=ranks)

    alone, lossy = farm.planned(), farm.planned(f"kill@30#1?{tmp_path / 'once'}")
    with running(make_runner(farm.ledger, farm.settings, spec("pair", 2))):
        for job in (alone, lossy):
            count = sum(s.kind is SegmentKind.RENDER for s in read.segments(farm.ledger, job))
            wait_until(lambda job=job, count=count: rendered(farm, job) == count, "the segments of both films")
    assert (tmp_path / "once").exists()
    assert len([outcome for _, outcome in farm.outcomes(lossy) if outcome != "succeed"]) == 1
    assert farm.segment_hashes(lossy) == farm.segment_hashes(alone)
    assert farm.job(lossy).state is not JobState.FAILED


def test_what_a_group_yields_is_what_a_host_yields(group: Host, render: Render) -> None:
    heard = render(group, 12, total=12)
    assert [event.frames for event in heard.events] == [5, 10, 12, 12]
    assert isinstance(heard.events[-1], Rendered)
