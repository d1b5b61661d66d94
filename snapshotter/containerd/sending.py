"""Sending one blob to the content store: the client's half of containerd's Content.Write."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager

from snapshotter.containerd.channel import DuplexCall
from snapshotter.proto import content_pb2

Source = Callable[[int], AbstractAsyncContextManager[AsyncIterator[bytes]]]
"""Opens a blob's bytes from an offset to its end."""

_WRITE_SIZE = 1 << 20  # bytes a Write message carries: each costs a round trip


async def send_blob(
    call: DuplexCall[content_pb2.WriteContentResponse],
    ref: str,
    digest: str,
    size: int,
    labels: Mapping[str, str],
    source: Source,
) -> None:
    """Content.Write's protocol: stat for the offset, write from there, commit."""
    request = content_pb2.WriteContentRequest
    status = await call.exchange(request(action=content_pb2.STAT, ref=ref, total=size, expected=digest))
    # A write at offset 0 throws away what is there: right for an ingest that is longer than the blob.
    offset = status.offset if status.offset <= size else 0
    if offset < size:
        async with source(offset) as blocks:
            async for block in _gathered(blocks, _WRITE_SIZE):
                await call.exchange(request(action=content_pb2.WRITE, offset=offset, data=block))
                offset += len(block)
    await call.exchange(
        request(action=content_pb2.COMMIT, total=size, expected=digest, offset=offset, labels=labels)
    )


async def _gathered(blocks: AsyncIterator[bytes], size: int) -> AsyncIterator[bytes]:
    """The same bytes in blocks of `size`, the last one shorter."""
    pending = bytearray()
    async for block in blocks:
        pending += block
        while len(pending) >= size:
            yield bytes(pending[:size])
            del pending[:size]
    if pending:
        yield bytes(pending)
