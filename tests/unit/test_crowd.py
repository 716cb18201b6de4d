"""Readings that many wait for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from farm.errors import NotFound
from farm.server.crowd import Crowd


def test_who_asks_during_a_reading_shares_the_next_one_and_never_gets_one_that_began_before() -> None:
    begun = 0
    may_end = threading.Event()

    def read() -> int:
        nonlocal begun
        begun += 1
        mine = begun
        assert may_end.wait(60)
        return mine

    async def ask_all() -> list[int]:
        crowd: Crowd[int] = Crowd()
        first = asyncio.create_task(crowd.ask("job", read))
        while begun == 0:
            await asyncio.sleep(0.001)
        others = [asyncio.create_task(crowd.ask("job", read)) for _ in range(100)]
        await asyncio.sleep(0)
        may_end.set()
        return await asyncio.gather(first, *others)

    assert asyncio.run(ask_all()) == [1] + [2] * 100


def test_each_of_a_crowd_is_told_what_went_wrong_and_a_later_one_asks_anew() -> None:
    def fail() -> int:
        raise NotFound("there is no job 7")

    async def ask(crowd: Crowd[int], reading: Callable[[], int]) -> int:
        return await crowd.ask(7, reading)

    async def ask_all() -> int:
        crowd: Crowd[int] = Crowd()
        told = await asyncio.gather(*(ask(crowd, fail) for _ in range(3)), return_exceptions=True)
        assert [str(error) for error in told] == ["there is no job 7"] * 3
        return await ask(crowd, lambda: 1)

    assert asyncio.run(ask_all()) == 1


def test_one_who_goes_away_does_not_take_the_answer_from_the_others() -> None:
    async def ask_all() -> int:
        crowd: Crowd[int] = Crowd()
        gone, stays = (asyncio.create_task(crowd.ask("x", lambda: 5)) for _ in range(2))
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        return await stays

    assert asyncio.run(ask_all()) == 5
