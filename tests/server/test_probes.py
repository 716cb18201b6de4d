"""What is uploaded is looked at in a child, which a file may take with it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from farm.errors import InputError
from farm.media.probe import ImageInfo, probe_input
from farm.server.probes import Probes


def look(path: Path) -> ImageInfo:
    """A decoder that does what the file says."""
    word = path.read_text()
    if word == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if word == "stall":
        time.sleep(600)
    if word == "refuse":
        raise InputError(f"{path} is damaged")
    return ImageInfo(os.getpid(), 1, "png")


@pytest.fixture
def sent(tmp_path: Path) -> dict[str, Path]:
    files = {word: tmp_path / word for word in ("crash", "stall", "refuse", "good")}
    for word, path in files.items():
        path.write_text(word)
    return files


def test_a_file_that_crashes_its_decoder_costs_that_upload_only(sent: dict[str, Path]) -> None:
    async def story() -> None:
        probes = Probes(look, at_once=1)
        try:
            before = (await probes.probe(sent["good"])).width
            assert before != os.getpid()
            with pytest.raises(InputError, match="crash crashes the program that reads it"):
                await probes.probe(sent["crash"])
            after = (await probes.probe(sent["good"])).width
            assert after not in (before, os.getpid())
            with pytest.raises(InputError, match="refuse is damaged"):
                await probes.probe(sent["refuse"])
            assert (await probes.probe(sent["good"])).width == after  # a refusal costs no child
        finally:
            await probes.close()

    asyncio.run(story())


def test_a_file_that_stalls_its_decoder_holds_up_no_other(sent: dict[str, Path]) -> None:
    async def story() -> None:
        probes = Probes(look, at_once=2, seconds=3600.0)
        try:
            stalled = asyncio.create_task(probes.probe(sent["stall"]))
            while len(probes._free) == 2:
                await asyncio.sleep(0.01)
            for _ in range(3):
                assert (await probes.probe(sent["good"])).height == 1
            assert not stalled.done()
            stalled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await stalled
        finally:
            await probes.close()

    asyncio.run(story())


def test_a_file_that_stalls_its_decoder_is_given_up_and_the_next_one_read(sent: dict[str, Path]) -> None:
    async def story() -> None:
        probes = Probes(look, at_once=1, seconds=0.2)
        try:
            with pytest.raises(InputError, match=r"stall cannot be read within 0\.2 s"):
                await probes.probe(sent["stall"])
            probes._seconds = 120.0
            assert (await probes.probe(sent["good"])).height == 1
        finally:
            await probes.close()

    asyncio.run(story())


def test_a_client_that_goes_away_takes_its_child_along(sent: dict[str, Path]) -> None:
    async def story() -> None:
        probes = Probes(look, at_once=1)
        try:
            waiting = asyncio.create_task(probes.probe(sent["stall"]))
            await asyncio.sleep(0.5)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert (await probes.probe(sent["good"])).height == 1
        finally:
            await probes.close()

    asyncio.run(story())


def test_a_picture_is_told_from_a_sound_and_from_neither(tmp_path: Path, speech: Path) -> None:
    from tests.server.conftest import PORTRAIT

    assert isinstance(probe_input(PORTRAIT), ImageInfo)
    assert not isinstance(probe_input(speech), ImageInfo)
    (tmp_path / "x").write_bytes(b"neither")
    with pytest.raises(InputError, match="is neither a picture nor a sound that this farm can read"):
        probe_input(tmp_path / "x")
