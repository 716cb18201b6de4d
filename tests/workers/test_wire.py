"""Messages between a worker and its host."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from workers.host.wire import BLOB_LIMIT, JSON_LIMIT, HungUp, Wire

Pair = tuple[Wire, Wire, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    one, other = socket.socketpair()
    with one, other:
        yield Wire(one), Wire(other), one


def test_a_message_arrives_with_its_bytes(pair: Pair) -> None:
    one, other, _ = pair
    one.send({"say": "done", "name": "第一课"}, b"\0carry")
    one.send({"say": "pong"})
    assert other.receive() == ({"say": "done", "name": "第一课"}, b"\0carry", [])
    assert other.receive() == ({"say": "pong"}, b"", [])


def test_a_descriptor_travels_and_is_the_receivers_own(pair: Pair) -> None:
    one, other, _ = pair
    read_end, write_end = os.pipe()
    one.send({"say": "render"}, b"carry", [write_end])
    os.close(write_end)
    message, blob, (received,) = other.receive()
    assert (message, blob) == ({"say": "render"}, b"carry")
    os.write(received, b"through")
    os.close(received)
    assert os.read(read_end, 100) == b"through"
    os.close(read_end)


def test_large_messages_of_many_threads_do_not_mix(pair: Pair) -> None:
    one, other, _ = pair
    threads = [
        threading.Thread(target=one.send, args=({"n": number}, bytes([number]) * 3_000_000)) for number in range(4)
    ]
    for thread in threads:
        thread.start()
    heard = {message["n"]: blob for message, blob, _ in (other.receive() for _ in range(4))}
    for thread in threads:
        thread.join()
    assert heard == {number: bytes([number]) * 3_000_000 for number in range(4)}


def test_an_end_that_hangs_up_is_told_on_both_ways(pair: Pair) -> None:
    one, other, _ = pair
    one.close()
    with pytest.raises(HungUp):
        other.receive()
    with pytest.raises(HungUp):
        other.send({"say": "load"})
    with pytest.raises(HungUp):
        one.receive()


def test_a_message_that_breaks_off_is_a_hang_up(pair: Pair) -> None:
    _, other, raw = pair
    raw.sendall(struct.pack("!II", 100, 0) + b'{"say"')
    raw.close()
    with pytest.raises(HungUp, match="in the middle of a message"):
        other.receive()


@pytest.mark.parametrize(("json_bytes", "blob_bytes"), [(JSON_LIMIT + 1, 0), (2, BLOB_LIMIT + 1)])
def test_a_length_that_cannot_be_is_refused_before_it_is_read(pair: Pair, json_bytes: int, blob_bytes: int) -> None:
    _, other, raw = pair
    raw.sendall(struct.pack("!II", json_bytes, blob_bytes))
    with pytest.raises(HungUp, match="is no message"):
        other.receive()


def test_closing_wakes_a_thread_that_listens(pair: Pair) -> None:
    _, other, _ = pair
    ended = threading.Event()

    def listen() -> None:
        try:
            other.receive()
        except HungUp:
            ended.set()

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    other.close()
    assert ended.wait(60)
