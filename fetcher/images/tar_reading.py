"""Reading a tar from its beginning to its end, from a file or from a stream. Blocking.

The parsing is the standard library's. Around it: a limit on what a header may make it hold, an error for
what it passes over in silence (a header that is damaged, a tar that is cut off), and forward motion alone,
so that a size below zero cannot lead it round in a circle (CVE-2025-8194).
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from typing import IO, Final, Protocol, cast

from fetcher.errors import FormatError

HEADER_LIMIT: Final = 1 << 20
"""Bytes of one entry's headers, which are held in memory; as Go's archive/tar has it."""
SPARSE_LIMIT: Final = 1 << 40
"""Bytes of a sparse file with its holes, which a reader of its content has to go through."""

_PIECE: Final = 1 << 20


class Forward(Protocol):
    """Where a tar's bytes come from."""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes, b"" at the end alone."""

    def skip(self, size: int, /) -> None:
        """Pass over so many bytes; beyond the end, the next read says so."""


class TarReader:
    """The entries of one tar; `name` is what its errors call it. Iterate once.

    Names are decoded as os.fsdecode does. The content of an entry is to be read before the next is taken.
    """

    def __init__(self, file: Forward, name: str) -> None:
        self._name = name
        self._cursor = _Cursor(file, name)

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        """Raises FormatError, and what the file raises."""
        try:
            tar = tarfile.TarFile(
                fileobj=cast("IO[bytes]", self._cursor), encoding="utf-8", errors="surrogateescape"
            )
            while (entry := tar.next()) is not None:
                # It would keep them all, for looking them up by name.
                tar.members.clear()  # type: ignore[attr-defined] # its stubs lack it
                yield entry
                self._cursor.held = 0
        except (tarfile.TarError, ValueError, OverflowError, RecursionError, IndexError) as error:
            # What is hostile fails in the parser in more ways than by its own exceptions.
            raise self._broken(str(error) or type(error).__name__) from error
        last = self._cursor.last
        if last and (len(last) < tarfile.BLOCKSIZE or last.count(0) != len(last)):
            raise self._broken(f"there is no header at byte {self._cursor.tell() - len(last)}")

    def content(self, entry: tarfile.TarInfo) -> Iterator[bytes]:
        """The bytes of a regular file, the holes of a sparse one as zeros. Raises FormatError."""
        position = 0
        for start, size in self._extents(entry):
            yield from _zeros(start - position)
            left = size
            while left:
                piece = self._cursor.take(min(left, _PIECE))
                if not piece:
                    raise self._broken(f"it is cut off within {entry.name!r}")
                left -= len(piece)
                yield piece
            position = start + size
        yield from _zeros(entry.size - position)

    def _extents(self, entry: tarfile.TarInfo) -> Sequence[tuple[int, int]]:
        sparse = sparse_map(entry)
        if sparse is None:
            return [(0, entry.size)]
        position = 0
        # Parts of no bytes fill up the table.
        sparse = [(start, size) for start, size in sparse if size]
        for start, size in sparse:
            if start < position or size < 0:
                raise self._broken(f"the parts of the sparse file {entry.name!r} overlap")
            position = start + size
        if not position <= entry.size <= SPARSE_LIMIT:
            raise self._broken(f"the sparse file {entry.name!r} has {entry.size} bytes")
        return sparse

    def _broken(self, reason: str) -> FormatError:
        return FormatError(f"{self._name} is a broken tar: {reason}")


def sparse_map(entry: tarfile.TarInfo) -> list[tuple[int, int]] | None:
    """Where in a sparse file the bytes in the tar belong, as (start, size); None if it has no holes."""
    found: list[tuple[int, int]] | None = getattr(entry, "sparse", None)
    return found


class _Cursor:
    """What the parser takes for a file: it goes forward alone, and hands out no more than it may."""

    def __init__(self, file: Forward, name: str) -> None:
        self._file = file
        self._name = name
        self._position = 0
        self.held = 0
        """Bytes of the headers of the entry at hand."""
        self.last = b""
        """What the last read of a header brought."""

    def read(self, size: int) -> bytes:
        """For the parser: `size` bytes of a header, fewer at the end alone."""
        self.held += size
        if self.held > HEADER_LIMIT:
            raise FormatError(
                f"{self._name} has more than {HEADER_LIMIT} bytes of tar headers before byte {self._position}"
            )
        parts = []
        while size and (data := self.take(size)):
            parts.append(data)
            size -= len(data)
        self.last = b"".join(parts)
        return self.last

    def take(self, size: int) -> bytes:
        """Up to `size` bytes of content."""
        data = self._file.read(size)
        self._position += len(data)
        return data

    def seek(self, position: int) -> None:
        """For the parser, which skips what nobody has read."""
        if position < self._position:
            raise FormatError(f"{self._name} is a broken tar: the header before {self._position} leads back")
        self._file.skip(position - self._position)
        self._position = position

    def tell(self) -> int:
        """Bytes of the tar that lie behind."""
        return self._position


def _zeros(size: int) -> Iterator[bytes]:
    while size > 0:
        yield bytes(min(size, _PIECE))
        size -= _PIECE
