"""The bytes of a blob that is sent to a registry: they can be read again from anywhere, for another try.

Iterators here are no generators: a request that fails leaves them behind half-read, and there is nothing in
them to be closed.
"""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Callable
from typing import Final, Protocol

from anyio import to_thread

from fetcher.errors import StoreError

_BLOCK: Final = 256 << 10


class Content(Protocol):
    """Random access to bytes that are here."""

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    async def read(self, start: int, end: int) -> bytes:
        """The bytes of [start, end); raises StoreError."""
        ...


class BytesContent:
    """Bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def size(self) -> int:
        """See Content."""
        return len(self._data)

    async def read(self, start: int, end: int) -> bytes:
        """See Content."""
        return self._data[start:end]


class FileContent:
    """An open file, of which `size` bytes are sent."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self._size = size

    @property
    def size(self) -> int:
        """See Content."""
        return self._size

    async def read(self, start: int, end: int) -> bytes:
        """See Content."""
        return await to_thread.run_sync(self._pread, start, end)

    def _pread(self, start: int, end: int) -> bytes:
        try:
            data = os.pread(self._fd, end - start, start)
        except OSError as error:
            raise StoreError(
                f"cannot read what is to be sent: {error.strerror}", errno=error.errno or 0
            ) from error
        if len(data) < end - start:
            raise StoreError("what is to be sent has become shorter meanwhile", errno=errno.EIO)
        return data


class Part:
    """The body of a request: the bytes of [start, end). `sent` is told how far into the content it is."""

    def __init__(self, content: Content, start: int, end: int, sent: Callable[[int], None]) -> None:
        self._content = content
        self._start = start
        self._end = end
        self._sent = sent

    @property
    def length(self) -> int:
        """Bytes."""
        return self._end - self._start

    def blocks(self) -> AsyncIterator[bytes]:
        """All of it, anew."""
        return _Blocks(self._content, self._start, self._end, self._sent)


class _Blocks:
    def __init__(self, content: Content, start: int, end: int, sent: Callable[[int], None]) -> None:
        self._content = content
        self._position = start
        self._end = end
        self._sent = sent

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        self._sent(self._position)  # all before it has been taken
        if self._position >= self._end:
            raise StopAsyncIteration
        block = await self._content.read(self._position, min(self._end, self._position + _BLOCK))
        self._position += len(block)
        return block
