"""Random access to one blob: the seam through which the format layer reads.

Ranges are half-open, in bytes. What comes out is not verified: whoever reads
knows the digests of the parts.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Final, Protocol

from anyio import to_thread

from fetcher.errors import FormatError, RegistryError, RegistryUnreachable, StoreError
from fetcher.exchange import Answer
from fetcher.http import Subject
from fetcher.ranges import (
    parse_content_range,
    parse_length,
    parse_unsatisfied_range,
    range_header,
    suffix_header,
)
from fetcher.reference import Reference, parse_digest
from fetcher.registry import RegistryClient

SKIP_LIMIT: Final = 1 << 20
"""Bytes that are read and dropped, at most, where a registry ignores Range and sends the whole."""

_FILE_BLOCK: Final = 1 << 20


class Blob(Protocol):
    """Random access to one blob; safe to use from many tasks."""

    def stream(self, start: int, end: int) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Exactly the bytes of [start, end), in blocks of no particular size.

        A connection that drops is made anew, from the next byte on. Entering or iterating raises
        FetchError.
        """
        ...

    async def read(self, start: int, end: int) -> bytes:
        """The bytes of [start, end); raises FetchError."""
        ...

    async def tail(self, length: int) -> tuple[bytes, int]:
        """The last `length` bytes, fewer if the blob is shorter, and the blob's size; raises FetchError."""
        ...


class RegistryBlob:
    """A blob in a registry; `size` in bytes, if it is known, saves a question."""

    def __init__(
        self, client: RegistryClient, reference: Reference, digest: str, size: int | None = None
    ) -> None:
        self._client = client
        self._reference = reference
        self._digest = parse_digest(digest)
        self._size = size

    @asynccontextmanager
    async def stream(self, start: int, end: int) -> AsyncIterator[AsyncIterator[bytes]]:
        """See Blob; httpx's blocks of up to 64 KiB as they come, which is faster than to gather them."""
        async with aclosing(self._blocks(start, end)) as blocks:
            yield blocks

    async def read(self, start: int, end: int) -> bytes:
        """See Blob."""
        async with self.stream(start, end) as blocks:
            return b"".join([block async for block in blocks])

    async def tail(self, length: int) -> tuple[bytes, int]:
        """See Blob. One request, unless the size is unknown and the registry refuses suffix ranges."""
        if self._size is None:
            data = await self._suffix(length)
            if data is not None:
                return data
        size = self._size if self._size is not None else await self._ask_size()
        return await self.read(max(0, size - length), size), size

    @property
    def _subject(self) -> Subject:
        return self._client.subject(self._reference, self._digest)

    async def _blocks(self, start: int, end: int) -> AsyncGenerator[bytes, None]:
        position = start
        retries = self._client.retries()
        while position < end:
            before = position
            try:
                async with self._client.open_blob(
                    self._reference,
                    self._digest,
                    bytes_range=range_header(position, end),
                    accept=(200, 206, 416),
                ) as answer:
                    skip = self._check(answer, position, end)
                    async for block in answer.blocks:
                        if answer.window is not None:
                            answer.window.arrived(len(block))
                        if skip:
                            dropped = min(skip, len(block))
                            skip -= dropped
                            block = block[dropped:]
                        if len(block) > end - position:
                            block = block[: end - position]
                        if not block:
                            if position == end:
                                return
                            continue
                        position += len(block)
                        yield block
                    if position == before:
                        raise RegistryUnreachable(
                            f"{self._subject}: the answer is empty", host=self._reference.host
                        )
            except RegistryError as error:
                if position > before:
                    retries.progressed()
                await retries.wait(error)

    def _check(self, answer: Answer, start: int, end: int) -> int:
        """See that the answer has the bytes from `start` on; how many bytes come before them."""
        if answer.status == 416:
            size = parse_unsatisfied_range(answer.headers.get("content-range", ""))
            raise self._subject.protocol_error(
                f"it does not have the bytes {start} to {end}, but {'fewer' if size is None else size}", 416
            )
        if answer.status == 206:
            served = parse_content_range(answer.headers.get("content-range", ""))
            if served is None or served.start != start:
                raise self._subject.protocol_error(
                    f"it does not send the bytes {start} to {end} that were asked for"
                )
            self._learn(served.total)
        elif start > SKIP_LIMIT:
            raise self._subject.protocol_error(
                "the registry ignores Range, and layers cannot be read in parts"
            )
        else:
            self._learn(parse_length(answer.headers.get("content-length", "")))
        if self._size is not None and end > self._size:
            raise self._subject.protocol_error(f"it has {self._size} bytes, and no byte {end - 1}")
        return 0 if answer.status == 206 else start

    def _learn(self, size: int | None) -> None:
        if size is None:
            return
        if self._size is not None and self._size != size:
            raise self._subject.protocol_error(f"it has {size} bytes, and not {self._size}")
        self._size = size

    async def _suffix(self, length: int) -> tuple[bytes, int] | None:
        """The tail and the size by a suffix range; None if the registry refuses it or ignores it."""
        retries = self._client.retries()
        while True:
            parts: list[bytes] = []
            size = None
            try:
                async with self._client.open_blob(
                    self._reference,
                    self._digest,
                    bytes_range=suffix_header(length),
                    # 400 and 501 come from stores behind registries.
                    accept=(200, 206, 400, 416, 501),
                ) as answer:
                    size = self._suffix_size(answer, length)
                    if size is None:
                        return None
                    left = min(length, size)
                    async for block in answer.blocks:
                        if not left:
                            break  # more than it announced, and no telling how much more
                        parts.append(block[:left])
                        left -= len(parts[-1])
            except RegistryError as error:
                if size is None or not parts:
                    await retries.wait(error)
                    continue
            # What was dropped on the way is a range like any other by now.
            have = sum(map(len, parts))
            start = max(0, size - length)
            if start + have < size:
                parts.append(await self.read(start + have, size))
            return b"".join(parts), size

    def _suffix_size(self, answer: Answer, length: int) -> int | None:
        if answer.status != 206:
            if answer.status == 200:
                self._learn(parse_length(answer.headers.get("content-length", "")))
            return None
        served = parse_content_range(answer.headers.get("content-range", ""))
        if served is None:
            raise self._subject.protocol_error("its answer to a request for a range does not say which it is")
        if served.total is None:
            return None
        if served.end != served.total or served.start != max(0, served.total - length):
            raise self._subject.protocol_error(
                f"it does not send the last {length} bytes that were asked for"
            )
        self._learn(served.total)
        return served.total

    async def _ask_size(self) -> int:
        retries = self._client.retries()
        while True:
            try:
                async with self._client.open_blob(self._reference, self._digest, method="HEAD") as answer:
                    length = parse_length(answer.headers.get("content-length", ""))
                    if length is None:
                        raise self._subject.protocol_error("it does not say how large it is")
                    self._learn(length)
                    return length
            except RegistryError as error:
                await retries.wait(error)


class FileBlob:
    """A blob in a local file; the file's errors become StoreError.

    It is the whole file, or the part of `size` bytes at `start`: a file in a tar.
    """

    def __init__(self, path: str, *, start: int = 0, size: int | None = None) -> None:
        self._path = path
        self._start = start
        self._size = size

    @asynccontextmanager
    async def stream(self, start: int, end: int) -> AsyncIterator[AsyncIterator[bytes]]:
        """See Blob."""
        fd = await to_thread.run_sync(self._open)
        try:
            async with aclosing(self._blocks(fd, start, end)) as blocks:
                yield blocks
        finally:
            os.close(fd)

    async def read(self, start: int, end: int) -> bytes:
        """See Blob."""
        async with self.stream(start, end) as blocks:
            return b"".join([block async for block in blocks])

    async def tail(self, length: int) -> tuple[bytes, int]:
        """See Blob."""
        size = self._size if self._size is not None else await to_thread.run_sync(self._stat_size)
        return await self.read(max(0, size - length), size), size

    async def _blocks(self, fd: int, start: int, end: int) -> AsyncGenerator[bytes, None]:
        if self._size is not None and end > self._size:
            raise FormatError(f"a part of {self._path} has {self._size} bytes, and no byte {end - 1}")
        position, end = self._start + start, self._start + end
        while position < end:
            block = await to_thread.run_sync(self._pread, fd, min(_FILE_BLOCK, end - position), position)
            if not block:
                raise FormatError(f"{self._path} ends at byte {position}, before byte {end}")
            position += len(block)
            yield block

    def _open(self) -> int:
        try:
            return os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise self._refused(error) from error

    def _pread(self, fd: int, length: int, offset: int) -> bytes:
        try:
            return os.pread(fd, length, offset)
        except OSError as error:
            raise self._refused(error) from error

    def _stat_size(self) -> int:
        try:
            return os.stat(self._path).st_size - self._start
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> StoreError:
        return StoreError(f"cannot read {self._path}: {error.strerror}", errno=error.errno or 0)
