"""Reading a layer's whole tar, for one that has no table of contents or is not to be believed."""

from __future__ import annotations

import hashlib
import math
import tarfile
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from typing import Final

from anyio import from_thread, to_thread

from fetcher.blob import Blob
from fetcher.errors import FormatError, VerificationError
from fetcher.images.decompressing import Decompressor
from fetcher.images.tar_reading import TarReader
from fetcher.toc import Toc, TocEntry

_XATTR: Final = "SCHILY.xattr."
_TYPES: Final = {
    tarfile.REGTYPE: "reg",
    tarfile.AREGTYPE: "reg",
    tarfile.CONTTYPE: "reg",
    tarfile.GNUTYPE_SPARSE: "reg",
    tarfile.DIRTYPE: "dir",
    tarfile.SYMTYPE: "symlink",
    tarfile.LNKTYPE: "hardlink",
    tarfile.CHRTYPE: "char",
    tarfile.BLKTYPE: "block",
    tarfile.FIFOTYPE: "fifo",
}
_UNSEEN: Final = frozenset({b"V", b"M", b"N"})
"""GNU tar's volume labels and the like, which name no file."""


class TarContents:
    """What a tar holds, as a table of contents would list it, with a digest for each file.

    `end` is where the tar's last entry ends, `digest` the blob's, of `size` bytes.
    """

    def __init__(self, toc: Toc[TocEntry], end: int, digest: str, size: int) -> None:
        self.toc = toc
        self.end = end
        self.digest = digest
        self.size = size


async def read_tar_layer(
    blob: Blob, *, name: str, digest: str | None, size: int, progress: Callable[[int], None]
) -> TarContents:
    """Read a whole blob; `progress` is told how many bytes of it came since the last time.

    Raises VerificationError if the blob has not the digest that it should have, and any FetchError.
    """
    async with blob.stream(0, size) as blocks:
        stream = _TarStream(blocks, progress)
        toc, end = await to_thread.run_sync(_read, stream, name)
    found = "sha256:" + stream.sha256.hexdigest()
    if digest is not None and found != digest:
        raise VerificationError(f"{name} came with other content: its digest is {found}")
    return TarContents(toc, end, found, size)


class _TarStream:
    """The tar in an asynchronous stream of a blob, for a reader in a worker thread."""

    def __init__(self, blocks: AsyncIterator[bytes], progress: Callable[[int], None]) -> None:
        self._blocks = blocks
        self._progress = progress
        self._pieces = self._decompressed()
        self._piece = memoryview(b"")
        self.sha256 = hashlib.sha256()

    def read(self, size: int) -> bytes:
        """See Forward."""
        while not self._piece:
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._piece = memoryview(piece)
        data, self._piece = self._piece[:size], self._piece[size:]
        return bytes(data)

    def skip(self, size: int) -> None:
        """See Forward."""
        while size and (data := self.read(size)):
            size -= len(data)

    def drain(self) -> None:
        """Read what follows the tar: padding, and what else the compressed stream has."""
        for _ in self._pieces:
            pass

    def _decompressed(self) -> Iterator[bytes]:
        decompressor = Decompressor()
        while (block := self._next()) is not None:
            self.sha256.update(block)
            yield from decompressor.feed(block)
        decompressor.finish()

    def _next(self) -> bytes | None:
        from_thread.check_cancelled()
        return from_thread.run(self._arrived)

    async def _arrived(self) -> bytes | None:
        block = await anext(self._blocks, None)
        if block is not None:
            self._progress(len(block))
        return block


def _read(stream: _TarStream, name: str) -> tuple[Toc[TocEntry], int]:
    """Runs in a worker thread."""
    entries = []
    end = 0
    reader = TarReader(stream, name)
    for entry in reader:
        if entry.type in _UNSEEN:
            continue
        described = _described(entry, name)
        if described.type == "reg":
            sha256 = hashlib.sha256()
            for piece in reader.content(entry):
                sha256.update(piece)
            described.digest = "sha256:" + sha256.hexdigest()
        entries.append(described)
        end = entry.offset_data + max(entry.size, 1)
    stream.drain()
    return Toc(1, entries), end + 1


def _described(entry: tarfile.TarInfo, name: str) -> TocEntry:
    kind = _TYPES.get(entry.type)
    if kind is None:
        raise FormatError(f"{name}: {entry.name!r} is of the unknown type {entry.type!r}")
    regular = kind == "reg"
    return TocEntry(
        name=entry.name,
        type=kind,
        size=entry.size if regular else 0,
        modtime=_modtime(entry.mtime, entry.name, name),
        link_name=entry.linkname if kind in ("symlink", "hardlink") else "",
        mode=entry.mode,
        uid=entry.uid,
        gid=entry.gid,
        dev_major=entry.devmajor if kind in ("char", "block") else 0,
        dev_minor=entry.devminor if kind in ("char", "block") else 0,
        xattrs={
            key.removeprefix(_XATTR): value.encode("utf-8", "surrogateescape")
            for key, value in entry.pax_headers.items()
            if key.startswith(_XATTR)
        }
        or None,
        offset=entry.offset_data if regular else 0,
    )


def _modtime(mtime: float, entry: str, name: str) -> str:
    """As a table of contents has it: whole seconds."""
    try:
        return datetime.fromtimestamp(math.floor(mtime), UTC).isoformat()
    except (OverflowError, ValueError, OSError):
        raise FormatError(f"{name}: {entry!r} has the impossible modification time {mtime}") from None
