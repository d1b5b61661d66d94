"""Files that are open through FUSE: read from PLAIN where they are there, chunk by chunk where not."""

from __future__ import annotations

import errno
import itertools
import os
from bisect import bisect_right
from contextlib import ExitStack
from functools import partial as bound
from typing import Final

from anyio import to_thread

from fetcher.nodes import Node
from mounter.loaded import LoadedLayer
from mounter.ondemand import OnDemand
from mounter.partial import PartialFile

_PLAIN: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_NOT_CACHED: Final = (errno.EAGAIN, errno.EOPNOTSUPP, errno.ENOSYS)


class OpenFile:
    """One open file. `fd` is the plain file; until that is there, `partial` has what has come."""

    __slots__ = ("ahead", "fd", "held", "loaded", "node", "partial", "position")

    def __init__(self, loaded: LoadedLayer, node: Node) -> None:
        self.loaded = loaded
        self.node = node
        self.fd: int | None = None
        self.partial: PartialFile | None = None
        self.position = -1
        """The index of the chunk read last."""
        self.ahead = 0
        """Compressed bytes to ask for ahead: doubled from chunk to chunk, none after a jump."""
        self.held = ExitStack()

    @property
    def readable(self) -> int:
        """The descriptor to read from."""
        if self.fd is not None:
            return self.fd
        assert self.partial is not None
        return self.partial.fd

    def adopt(self, fd: int) -> None:
        """Read from the plain file from now on, unless another read of this handle saw to it already."""
        if self.fd is None:
            self.fd = fd
        else:
            os.close(fd)

    def move_to(self, index: int, limit: int) -> None:
        """Take note that chunk `index` is being read; `limit` bounds `ahead`."""
        if index == self.position + 1:
            chunk = self.node.chunks[index]
            self.ahead = min(max(2 * self.ahead, 2 * (chunk.end - chunk.offset)), limit)
            self.position = index
        elif index != self.position and index != self.position - 1:  # the kernel's own read-ahead overtakes
            self.ahead = 0
            self.position = index


class OpenFiles:
    """All open files, by handle."""

    def __init__(self, ondemand: OnDemand) -> None:
        self._ondemand = ondemand
        self._files: dict[int, OpenFile] = {}
        self._handles = itertools.count(1)

    def __len__(self) -> int:
        return len(self._files)

    async def open(self, layer: str, path: str) -> int:
        """Open a regular file of a layer and give its handle.

        Waits until the file is here, unless it is a large one. Raises FetchError, TooSlow, OSError.
        """
        self._ondemand.counters.opens += 1
        loaded = await self._ondemand.layers.get(layer)
        file = OpenFile(loaded, loaded.tree.nodes[path])
        if not await self._open_plain(file):
            if self._ondemand.is_large(loaded, file.node):
                file.partial = file.held.enter_context(self._ondemand.using(loaded, file.node))
            else:
                await self._ondemand.fetch(loaded, file.node, patient=True)
                file.fd = await to_thread.run_sync(os.open, loaded.plain.path(file.node), _PLAIN)
        handle = next(self._handles)
        self._files[handle] = file
        return handle

    async def read(self, handle: int, offset: int, size: int) -> bytes:
        """`size` bytes at `offset`, fewer at the end of the file. Raises FetchError, TooSlow, OSError."""
        file = self._files[handle]
        counters = self._ondemand.counters
        counters.reads += 1
        size = min(size, file.node.size - offset)
        if size <= 0:
            return b""
        if file.fd is None and not await self._bring(file, offset, size):
            file.adopt(await to_thread.run_sync(os.open, file.loaded.plain.path(file.node), _PLAIN))
        data = await _pread(file.readable, size, offset)
        counters.read_bytes += len(data)
        return data

    async def release(self, handle: int) -> None:
        """Close a file; nothing reads from it any more."""
        file = self._files.pop(handle)
        if file.fd is not None:
            os.close(file.fd)
        file.held.close()

    async def _open_plain(self, file: OpenFile) -> bool:
        try:
            file.fd = await to_thread.run_sync(os.open, file.loaded.plain.path(file.node), _PLAIN)
        except FileNotFoundError:
            return False
        return True

    async def _bring(self, file: OpenFile, offset: int, size: int) -> bool:
        """Have the chunks come that hold [offset, offset + size); False if the file is in PLAIN instead."""
        assert file.partial is not None
        chunks = file.node.chunks
        first = bisect_right(chunks, offset, key=lambda chunk: chunk.file_offset) - 1
        last = bisect_right(chunks, offset + size - 1, key=lambda chunk: chunk.file_offset) - 1
        for index in range(first, last + 1):
            file.move_to(index, self._ondemand.settings.read_ahead)
        return await self._ondemand.bring(file.loaded, file.partial, range(first, last + 1), ahead=file.ahead)


async def _pread(fd: int, size: int, offset: int) -> bytes:
    """What the page cache has is read without leaving the event loop, the rest in a thread."""
    buffer = bytearray(size)
    try:
        count = os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)
    except OSError as error:
        if error.errno not in _NOT_CACHED:
            raise
        count = 0
    if count == size:
        return bytes(buffer)
    return await to_thread.run_sync(bound(os.pread, fd, size, offset))
