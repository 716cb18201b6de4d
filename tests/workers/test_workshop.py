"""Work on users' files in a child that may be killed."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from farm.errors import DeviceFault, InputError, MediaError
from farm.workshop import Stopped, Workshop
from workers.assembling import BadSegment

from .conftest import PATIENCE, end_with, is_dead, wait_until


def answer(value: int) -> tuple[int, int]:
    return value, os.getpid()


def fail(kind: str) -> None:
    if kind == "input":
        raise InputError("portrait /x: no face")
    if kind == "media":
        raise MediaError(["/usr/bin/ffmpeg", "-i", "x"], 1, "Invalid data\n")
    if kind == "segment":
        raise BadSegment({2: "/a/3.mp4", 4: "/a/5.mp4"})
    if kind == "timeout":
        raise TimeoutError("of the work itself")
    os.kill(os.getpid(), signal.SIGSEGV)


def spawn_and_wait(pids: Path) -> None:
    child = subprocess.Popen(["sleep", "600"])
    pids.write_text(f"{os.getpid()} {child.pid}")
    time.sleep(600)


@pytest.fixture(scope="module")
def workshop() -> Iterator[Workshop]:
    made = Workshop()
    yield made
    made.kill()


def never() -> None:
    return None


class DoneTooLate(Future[str]):
    """Work that ends in the instant after its waiter has looked."""

    def result(self, timeout: float | None = None) -> str:
        if self.done() or timeout is None:
            return super().result(timeout)
        self.set_result("made")
        raise TimeoutError


def test_work_is_done_in_one_warm_child(workshop: Workshop) -> None:
    first = workshop.wait(workshop.do(answer, 1), timeout_seconds=PATIENCE, why_stop=never)
    second = workshop.wait(workshop.do(answer, 2), timeout_seconds=PATIENCE, why_stop=never)
    assert (first[0], second[0]) == (1, 2)
    assert first[1] == second[1] != os.getpid()


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        ("input", InputError, "portrait /x: no face"),
        ("media", MediaError, "ffmpeg ended with 1: Invalid data"),
        ("segment", BadSegment, "segment 3's file /a/3.mp4 and 1 more is missing or was changed"),
        ("timeout", TimeoutError, "of the work itself"),
    ],
)
def test_an_error_comes_back_as_itself_and_the_child_stays(
    workshop: Workshop, kind: str, error: type[Exception], words: str
) -> None:
    before = workshop.wait(workshop.do(answer, 1), timeout_seconds=PATIENCE, why_stop=never)[1]
    with pytest.raises(error) as caught:
        workshop.wait(workshop.do(fail, kind), timeout_seconds=PATIENCE, why_stop=never)
    assert str(caught.value).startswith(words)
    if isinstance(caught.value, BadSegment):
        assert caught.value.paths == {2: "/a/3.mp4", 4: "/a/5.mp4"}
    assert workshop.wait(workshop.do(answer, 1), timeout_seconds=PATIENCE, why_stop=never)[1] == before


def test_a_file_that_crashes_its_decoder_takes_the_child_and_not_the_worker(workshop: Workshop) -> None:
    with pytest.raises(DeviceFault, match="the process that reads users' files died; the file may crash its decoder"):
        workshop.wait(workshop.do(fail, "crash"), timeout_seconds=PATIENCE, why_stop=never)
    assert workshop.wait(workshop.do(answer, 3), timeout_seconds=PATIENCE, why_stop=never)[0] == 3


@pytest.mark.parametrize("end", ["stop", "time"])
def test_work_that_is_given_up_is_killed_with_all_that_it_started(workshop: Workshop, tmp_path: Path, end: str) -> None:
    pids = tmp_path / "pids"
    work = workshop.do(spawn_and_wait, pids)
    ids = [int(word) for word in wait_until(lambda: pids.exists() and pids.read_text(), "the work to begin").split()]
    with end_with(ids):
        if end == "stop":
            with pytest.raises(Stopped, match="paused"):
                workshop.wait(work, timeout_seconds=PATIENCE, why_stop=lambda: "paused")
        else:
            with pytest.raises(DeviceFault, match="the work took longer than 0 s and was killed"):
                workshop.wait(work, timeout_seconds=0.1, why_stop=never)
        wait_until(lambda: all(is_dead(pid) for pid in ids), "the death of the work")
    assert workshop.wait(workshop.do(answer, 4), timeout_seconds=PATIENCE, why_stop=never)[0] == 4


def test_work_that_ends_while_its_waiter_turns_away_is_not_taken_for_failed() -> None:
    work = DoneTooLate()
    threading.Timer(0.6, lambda: work.done() or work.set_result("made")).start()
    assert Workshop().wait(work, timeout_seconds=PATIENCE, why_stop=never) == "made"
