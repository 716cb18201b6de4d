"""Listeners are written to without waiting for any of them."""

from __future__ import annotations

import asyncio

from starlette.types import Message

from farm.server.feed import BACKLOG
from farm.server.stream import Outlet


class SlowClient:
    """Takes nothing until it `reads`, as a server sees it whose buffer for a client is full."""

    def __init__(self) -> None:
        self.reads = asyncio.Event()
        self.got: list[bytes] = []
        self.ended = asyncio.Event()

    async def send(self, message: Message) -> None:
        await self.reads.wait()
        self.got.append(message["body"])
        if not message["more_body"]:
            self.ended.set()


def test_a_client_that_reads_is_written_to_at_once() -> None:
    async def story() -> None:
        client = SlowClient()
        client.reads.set()
        outlet = Outlet(client.send)
        for text in (b"a", b"", b"b"):
            outlet.write(text)
        assert client.got == [b"a", b"b"]  # nobody has waited
        outlet.end()
        outlet.write(b"c")
        assert client.got == [b"a", b"b", b""]

    asyncio.run(story())


def test_a_slow_client_gets_everything_once_and_in_order() -> None:
    async def story() -> None:
        client = SlowClient()
        outlet = Outlet(client.send)
        outlet.write(b"1")
        await asyncio.sleep(0)
        outlet.write(b"2")
        client.reads.set()
        outlet.write(b"3")
        outlet.end()
        await asyncio.wait_for(client.ended.wait(), 60)
        assert client.got == [b"1", b"2", b"3", b""]

    asyncio.run(story())


def test_a_client_that_lags_too_far_behind_loses_its_stream() -> None:
    async def story() -> None:
        client = SlowClient()
        outlet = Outlet(client.send)
        for number in range(2 * BACKLOG):
            outlet.write(b"%d" % number)
        client.reads.set()
        await asyncio.wait_for(client.ended.wait(), 60)
        assert len(client.got) < BACKLOG and client.got[-1] == b""

    asyncio.run(story())
