"""What comes over the wire for a file that is waited for, taken apart into its chunks.

Belongs to the event loop; inflating, verifying and writing happen in worker threads.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

import anyio
from anyio import to_thread

from fetcher.errors import FormatError, first_cause
from mounter.partial import MemberPart, PartialFile, PieceWriter, holds_whole

_FEED: Final = 1 << 20
_AT_ONCE: Final = 2
"""Members of one file that are in threads while the next one comes."""


class Incoming:
    """Exact reads from an iterator of blocks."""

    def __init__(self, blocks: AsyncIterator[bytes], came: Callable[[int], None]) -> None:
        self._blocks = blocks
        self._came = came
        self._rest = b""

    async def take(self, count: int) -> bytes:
        """The next `count` bytes. Raises FormatError where there are fewer, and what the iterator raises."""
        parts = [self._rest]
        have = len(self._rest)
        while have < count:
            block = await anext(self._blocks, b"")
            if not block:
                raise FormatError(f"the layer ends {count - have} bytes too early")
            self._came(len(block))
            parts.append(block)
            have += len(block)
        joined = parts[0] if len(parts) == 1 else b"".join(parts)
        self._rest = joined[count:]
        return joined[:count]

    async def finish(self) -> None:
        """Read to the end, or the connection would not be used again."""
        async for block in self._blocks:
            self._came(len(block))


async def take_run(partial: PartialFile, run: Sequence[MemberPart], blocks: Incoming) -> None:
    """Take the file's chunks out of members that follow one another; settles the arrival of each.

    Raises FetchError; what was taken by then stays.
    """
    if len(run) == 1:  # as of nearly all files, which are to be here soon
        await _take(partial, run[0], blocks)
        return
    places = anyio.Semaphore(_AT_ONCE)

    async def store(part: MemberPart, member: bytes) -> None:
        try:
            await _store(partial, part, member)
        finally:
            places.release()

    try:
        async with anyio.create_task_group() as tasks:
            for part in run:
                if holds_whole(part, partial.node):
                    member = await blocks.take(part.end - part.offset)
                    await places.acquire()
                    tasks.start_soon(store, part, member)
                else:
                    await _feed(partial, part, blocks)
    except ExceptionGroup as group:
        raise first_cause(group) from group


async def _take(partial: PartialFile, part: MemberPart, blocks: Incoming) -> None:
    if holds_whole(part, partial.node):
        await _store(partial, part, await blocks.take(part.end - part.offset))
    else:
        await _feed(partial, part, blocks)


async def _store(partial: PartialFile, part: MemberPart, member: bytes) -> None:
    await to_thread.run_sync(partial.store, member, part.indexes)
    _settle(partial, part)


def _settle(partial: PartialFile, part: MemberPart) -> None:
    for index in part.indexes:
        partial.arrivals.pop(index).settled.set()


async def _feed(partial: PartialFile, part: MemberPart, blocks: Incoming) -> None:
    """Take chunks out of a large member as it comes; what follows the last of them is skipped."""
    writer = PieceWriter(partial, part.indexes)
    left = part.end - part.offset
    while left:
        data = await blocks.take(min(left, _FEED))
        left -= len(data)
        if not writer.done:
            await to_thread.run_sync(writer.feed, data)
    writer.finish()
    _settle(partial, part)
