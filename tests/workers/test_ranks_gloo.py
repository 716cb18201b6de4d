"""Ranks that need one another for every chunk, as a spread model does; they meet through gloo on the CPU."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.slow]

from farm.errors import DeviceFault, EngineError  # noqa: E402
from workers.host.parent import Host  # noqa: E402

from .conftest import HERE, Render, fake_spec  # noqa: E402
from .test_ranks import everyone_is_gone, kill, ranks_of, resumed  # noqa: E402


def spread(log: Path, seconds: float = 60.0) -> Host:
    """Two ranks of the spread engine; one may keep the other waiting in a collective for so long."""
    environment = {"PYTHONPATH": str(HERE), "COLLECTIVE_SECONDS": str(seconds), "OMP_NUM_THREADS": "1"}
    return Host(fake_spec(log, spec={"ranks": 2, "engine_module": "spread_engine", "environment": environment}))


@pytest.fixture(scope="module")
def shared_pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    host = spread(tmp_path_factory.mktemp("pair") / "pair.log")
    yield host
    host.close()


@pytest.fixture
def pair(shared_pair: Host) -> Host:
    if not shared_pair.is_alive:
        shared_pair.start()
    return shared_pair


def test_what_is_no_number_on_one_rank_fails_the_chunk_on_all_and_leaves_them_warm(pair: Host, render: Render) -> None:
    whole, pids = render(pair, 30), ranks_of(pair)
    failed = render(pair, 20, prompt="nan@10#1")
    assert type(failed.error) is EngineError
    assert str(failed.error) == "a number is none"
    assert render(pair, 30).frames == whole.frames
    assert ranks_of(pair) == pids


def test_a_rank_that_is_killed_in_a_collective_ends_all_and_the_film_goes_on(pair: Host, render: Render) -> None:
    whole, done = render(pair, 30), render(pair, 10)
    pids = ranks_of(pair)
    lost = render(pair, 240, first=10, carry=done.end.carry, on_progress=lambda _: kill(pids[1]))
    assert isinstance(lost.error, DeviceFault)
    assert everyone_is_gone(pids)
    assert resumed(pair, render, done) == whole.frames


@pytest.mark.parametrize(
    ("prompt", "seconds", "words"),
    [
        ("hang@10#1", 6.0, "Timed out waiting"),  # it lives and does not come
        ("engine@10#1", 6.0, "rank 1: the model gave no picture"),  # it came back alone
        ("engine@10#1", 600.0, "rank 1: the model gave no picture"),  # and nobody's time runs out
        ("engine@10#0", 600.0, "rank 1 did not return after rank 0 failed: the model gave no picture"),
    ],
)
def test_ranks_that_are_out_of_step_end_together(
    tmp_path: Path, render: Render, prompt: str, seconds: float, words: str
) -> None:
    host = spread(tmp_path / "host.log", seconds)
    host.start()
    pids = ranks_of(host)
    lost = render(host, 20, prompt=prompt)
    assert words in str(lost.error)
    again = render(host, 5)
    assert isinstance(again.error, DeviceFault) or not host.is_alive
    host.close()
    assert everyone_is_gone(pids)


def test_a_port_that_was_taken_meanwhile_is_told_and_the_next_start_has_another(tmp_path: Path, render: Render) -> None:
    host = spread(tmp_path / "host.log")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        environment = {**host.spec.environment, "FAKE_PORT": str(taken.getsockname()[1])}
        refused = Host(
            fake_spec(tmp_path / "log", spec={"ranks": 2, "engine_module": "spread_engine", "environment": environment})
        )
        with pytest.raises(DeviceFault, match="cannot join its group"):
            refused.start()
        refused.close()
    host.start()
    assert render(host, 5).end.frames == 5
    host.close()
