"""A blob in memory: notes what is asked of it, and can be damaged or cut short."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from itertools import repeat

import anyio.lowlevel


class MemoryBlob:
    """A `fetcher.blob.Blob`. `requests` are the ranges that were asked for, half-open, in order.

    `blocks` gives the sizes of a stream's blocks, in bytes. `ends_at` is where each answer stops short.
    `on_block` is called with the position of each block before it is handed out.
    """

    def __init__(
        self,
        data: bytes,
        *,
        blocks: Callable[[], Iterator[int]] = lambda: repeat(64 << 10),
        ends_at: int | None = None,
        on_block: Callable[[int], None] = lambda position: None,
    ) -> None:
        self.data = bytearray(data)
        self.requests: list[tuple[int, int]] = []
        self._blocks = blocks
        self._ends_at = len(data) if ends_at is None else ends_at
        self._on_block = on_block

    @property
    def sent(self) -> int:
        """The bytes that were asked for."""
        return sum(end - start for start, end in self.requests)

    def corrupt(self, position: int, *, flip: int = 0x55) -> None:
        """Change the byte at `position`; the same again mends it."""
        self.data[position] ^= flip

    @asynccontextmanager
    async def stream(self, start: int, end: int) -> AsyncIterator[AsyncIterator[bytes]]:
        self._ask(start, end)
        async with aclosing(self._stream(start, min(end, self._ends_at))) as blocks:
            yield blocks

    async def read(self, start: int, end: int) -> bytes:
        self._ask(start, end)
        await anyio.lowlevel.checkpoint()
        return bytes(self.data[start : min(end, self._ends_at)])

    async def tail(self, length: int) -> tuple[bytes, int]:
        start = max(0, len(self.data) - length)
        return await self.read(start, len(self.data)), len(self.data)

    def _ask(self, start: int, end: int) -> None:
        assert 0 <= start <= end <= len(self.data), f"[{start}, {end}) of a blob of {len(self.data)} bytes"
        self.requests.append((start, end))

    async def _stream(self, position: int, end: int) -> AsyncGenerator[bytes, None]:
        sizes = self._blocks()
        while position < end:
            self._on_block(position)
            await anyio.lowlevel.checkpoint()
            block = bytes(self.data[position : min(end, position + next(sizes))])
            yield block
            position += len(block)
