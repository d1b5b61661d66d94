"""Layer blobs on their way into the content store, ahead of the layer that is being unpacked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self


class Downloads:
    """Downloads by digest, each made once, in the order of their start and at most `limit` at a time.

    An async context manager: leaving it cancels what is still going on. A failed download is
    told to whoever waits for it, so one that turns out not to be needed fails nobody.
    """

    def __init__(self, fetch: Callable[[str], Awaitable[None]], *, limit: int) -> None:
        self._fetch = fetch
        self._slots = asyncio.Semaphore(limit)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._dropped: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        tasks = [*self._tasks.values(), *self._dropped]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def start(self, digest: str) -> None:
        """Begin a download, unless it was begun before."""
        if digest not in self._tasks:
            self._tasks[digest] = asyncio.create_task(self._within_limit(digest))

    def drop(self, digest: str) -> None:
        """Give up a download that nobody needs after all; it may be started again later."""
        task = self._tasks.pop(digest, None)
        if task is not None:
            task.cancel()
            self._dropped.append(task)

    async def wait(self, digest: str) -> None:
        """Return when the blob is in the content store; raises what its download raised."""
        self.start(digest)
        await asyncio.shield(self._tasks[digest])  # our own cancellation is dealt with by __aexit__

    async def _within_limit(self, digest: str) -> None:
        async with self._slots:
            await self._fetch(digest)
