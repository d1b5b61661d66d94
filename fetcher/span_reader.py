"""Exact reads from a span of a blob that comes in blocks of no particular size."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Final

from fetcher.errors import FormatError

_LOOK_SECONDS: Final = 0.02
"""So often it is looked whether the reader keeps up."""


class SpanReader:
    """Exact reads from an iterator of blocks; copies only what crosses a block's end."""

    def __init__(
        self, blocks: AsyncIterator[bytes], position: int, arrived: Callable[[int], Awaitable[None]]
    ) -> None:
        self._blocks = blocks
        self._arrived = arrived
        self._position = position
        self._view = memoryview(b"")
        self._waited = 0.0
        self._since = time.monotonic()
        self._keeps_up = True

    def keeps_up(self) -> bool:
        """Whether of late more time went by waiting for blocks than with what they hold."""
        passed = time.monotonic() - self._since
        if passed > _LOOK_SECONDS:
            self._keeps_up = self._waited > passed / 2
            self._waited, self._since = 0.0, self._since + passed
        return self._keeps_up

    async def _more(self) -> None:
        since = time.monotonic()
        block = await anext(self._blocks, None)
        if block is None:
            raise FormatError(f"it ends at byte {self._position}")
        await self._arrived(len(block))
        self._waited += time.monotonic() - since
        self._view = memoryview(block)

    async def skip_to(self, offset: int) -> None:
        """Drop everything before `offset` of the blob."""
        if offset > self._position:
            async for _ in self.blocks(offset - self._position):
                pass

    async def take(self, count: int) -> bytes | memoryview:
        """The next `count` bytes."""
        if count <= len(self._view):
            data = self._view[:count]
            self._view = self._view[count:]
            self._position += count
            return data
        parts = [bytes(block) async for block in self.blocks(count)]
        return b"".join(parts)

    async def blocks(self, count: int) -> AsyncGenerator[memoryview, None]:
        """The next `count` bytes, as they come."""
        while count:
            if not self._view:
                await self._more()
            data = self._view[:count]
            self._view = self._view[len(data) :]
            self._position += len(data)
            count -= len(data)
            yield data
