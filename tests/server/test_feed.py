"""Who listens to the feed, and what it is woken for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from farm.ledger import Ledger, control, open_ledger
from farm.ledger.migrate import upgrade
from farm.server import feed as feeds
from farm.server import views
from farm.server.feed import Feed, Tick
from tests.ledger.scenes import submit


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with closing(open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}")) as opened:
        upgrade(opened)
        yield opened


async def hear(ticks: asyncio.Queue[Tick | None], what: Callable[[Tick], bool]) -> Tick:
    """The next tick that tells this."""
    while True:
        tick = await asyncio.wait_for(ticks.get(), 120)
        assert tick is not None
        if what(tick):
            return tick


def test_who_watches_one_job_sleeps_through_the_news_of_others(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(feeds, "KEEP_ALIVE_SECONDS", 1e9)
    (watched,), (other,) = submit(ledger), submit(ledger)

    async def story() -> None:
        feed = Feed(ledger)
        feed.start()
        try:
            async with feed.listen("ann", job_id=watched) as one, feed.listen(None) as everything:
                await hear(everything, lambda tick: None in tick.fleet)
                while not one.empty():  # a stream is told at once that it lives
                    one.get_nowait()
                control.pause(ledger, other)
                await hear(everything, lambda tick: other in tick.progress)
                assert one.empty()
                control.pause(ledger, watched)
                told = await hear(one, lambda tick: watched in tick.progress)
                assert b'"state": "paused"' in told.of_job(watched, 0)
        finally:
            await feed.stop()

    asyncio.run(story())


def test_a_history_is_shared_only_while_nobody_could_miss_an_event(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(feeds, "HISTORY_SECONDS", 1e9)
    (job,) = submit(ledger)

    async def story() -> None:
        feed = Feed(ledger)
        feed.start()
        try:
            async with feed.listen("ann", job_id=job) as ticks:
                kept = await feed.history(job)
                assert await feed.history(job) is kept
                control.pause(ledger, job)
                await hear(ticks, lambda tick: job in tick.events)
                assert feed.recent_history(job) is None
                assert (await feed.history(job)).last_event > kept.last_event
        finally:
            await feed.stop()

    asyncio.run(story())


def test_nobody_is_told_anything_when_nothing_has_happened(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "KEEP_ALIVE_SECONDS", 1e9)
    monkeypatch.setattr(views, "STALE_SECONDS", 1e9)
    (job,) = submit(ledger)
    feed = Feed(ledger)
    feed._look(set())
    assert feed._look(set()) is None
    control.pause(ledger, job)
    told = feed._look(set())
    assert told is not None and told.is_news_of(job)
    assert feed._look(set()) is None
