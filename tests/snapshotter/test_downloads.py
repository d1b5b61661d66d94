from __future__ import annotations

import asyncio

import pytest

from snapshotter.containerd.downloads import Downloads


class Fetcher:
    """Counts what is being fetched; a fetch ends when it is let go."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.gates: dict[str, asyncio.Event] = {}

    async def fetch(self, digest: str) -> None:
        self.begun.append(digest)
        try:
            await self.gates.setdefault(digest, asyncio.Event()).wait()
        finally:
            self.ended.append(digest)
        if digest == "bad":
            raise ConnectionResetError

    def let_go(self, digest: str) -> None:
        self.gates.setdefault(digest, asyncio.Event()).set()


async def settled() -> None:
    """Let every task run until it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_so_many_at_a_time_in_the_order_of_their_start() -> None:
    async def test() -> None:
        fetcher = Fetcher()
        async with Downloads(fetcher.fetch, limit=2) as downloads:
            for digest in "abcd":
                downloads.start(digest)
            await settled()
            assert fetcher.begun == ["a", "b"]
            fetcher.let_go("b")
            await downloads.wait("b")
            await settled()
            assert fetcher.begun == ["a", "b", "c"]
        assert fetcher.ended == ["b", "a", "c"]

    asyncio.run(test())


def test_one_download_for_all_who_want_it() -> None:
    async def test() -> None:
        fetcher = Fetcher()
        fetcher.let_go("a")
        async with Downloads(fetcher.fetch, limit=2) as downloads:
            downloads.start("a")
            await asyncio.gather(downloads.wait("a"), downloads.wait("a"))
        assert fetcher.begun == ["a"]

    asyncio.run(test())


def test_a_failure_is_told_to_those_who_wait_only() -> None:
    async def test() -> None:
        fetcher = Fetcher()
        fetcher.let_go("bad")
        fetcher.let_go("good")
        async with Downloads(fetcher.fetch, limit=1) as downloads:
            downloads.start("bad")
            await downloads.wait("good")
            with pytest.raises(ConnectionResetError):
                await downloads.wait("bad")

    asyncio.run(test())


def test_what_was_dropped_is_cancelled_and_can_start_again() -> None:
    async def test() -> None:
        fetcher = Fetcher()
        async with Downloads(fetcher.fetch, limit=1) as downloads:
            downloads.start("a")
            await settled()
            downloads.drop("a")
            downloads.drop("never started")
            await settled()
            assert fetcher.ended == ["a"]
            fetcher.let_go("a")
            await downloads.wait("a")
        assert fetcher.begun == ["a", "a"]

    asyncio.run(test())
