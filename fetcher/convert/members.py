"""Dividing a layer's tar into compression members, and listing in the TOC what is in each. Pure; no I/O.

    member   headers up to and with that of the first file that has bytes
    member   its bytes (of a large file one member a chunk), padding, and the headers up to the next such file
    ...

With a minimum size a member takes several files, which then carry their place in it (innerOffset). Headers
without a file's bytes among them can go on for ever, and so can extended ones: past a limit another member is
begun, of which the TOC need not know, as a file's bytes are at the beginning of what it points to.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from fetcher.convert.contents import Contents, WrittenEntry
from fetcher.convert.entry import GLOBAL, REGULAR, Entry
from fetcher.convert.extents import Extent, cut, length
from fetcher.convert.header import new_header, padding
from fetcher.convert.options import LayerOptions
from fetcher.tree import LANDMARK, NO_LANDMARK

_HEADERS_LIMIT: Final = 4 << 20
"""Bytes of a member from which on headers go to another one."""
_LANDMARK_CONTENT: Final = b"\x0f"
_EMPTY_DIGEST: Final = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@dataclass(slots=True)
class Member:
    """A member to be compressed, `size` bytes of `extents`.

    `spans` are the place and length in it of the file pieces whose digests are wanted, `chunks` their TOC
    entries; `files` are the files that begin here and have more than one chunk, with all their bytes.
    """

    extents: list[Extent] = field(default_factory=list)
    size: int = 0
    spans: list[tuple[int, int]] = field(default_factory=list)
    chunks: list[WrittenEntry] = field(default_factory=list)
    files: list[tuple[WrittenEntry, tuple[Extent, ...]]] = field(default_factory=list)


def landmark(*, prefetch: bool) -> Entry:
    """The landmark of a layer that has, or has not, something to be prefetched."""
    name = LANDMARK if prefetch else NO_LANDMARK
    return Entry(
        kind=REGULAR,
        name=name,
        path=name,
        start=-1,
        mode=0o444,
        size=len(_LANDMARK_CONTENT),
        header=new_header(name.encode(), len(_LANDMARK_CONTENT), mode=0o444),
        content=(_LANDMARK_CONTENT,),
        padding=bytes(padding(len(_LANDMARK_CONTENT))),
    )


def divide(
    entries: Iterable[Entry], options: LayerOptions, contents: Contents, *, trailer: bytes
) -> Iterator[Member]:
    """The members of the tar that `entries` make, `trailer` at its end; fills `contents` as they are taken.

    An entry's digest, offset and inner offset are for whoever has compressed the member to fill in.
    """
    division = _Division(options, contents)
    for entry in entries:
        yield from division.add(entry)
    yield from division.add_raw(trailer)
    if division.member.size:
        yield division.member


class _Division:
    def __init__(self, options: LayerOptions, contents: Contents) -> None:
        self._options = options
        self._contents = contents
        self.member = Member()
        self._headers = 0
        """Bytes in the member behind its last file piece."""

    def add(self, entry: Entry) -> Iterator[Member]:
        """Append an entry; yields the members that are full by it."""
        yield from self.add_raw(entry.header)
        if entry.kind != GLOBAL:
            written = self._contents.add(entry)
            if entry.kind == REGULAR:
                written.digest = _EMPTY_DIGEST
                yield from self._add_content(entry, written)
        yield from self.add_raw(entry.padding)

    def add_raw(self, extent: Extent) -> Iterator[Member]:
        """Append bytes that are no file's."""
        if not length(extent):
            return
        for pieces in cut([extent], _HEADERS_LIMIT):
            if self._headers >= _HEADERS_LIMIT:
                yield self._closed()
            self._append(pieces)
            self._headers += sum(map(length, pieces))

    def _add_content(self, entry: Entry, written: WrittenEntry) -> Iterator[Member]:
        chunk_size = self._options.chunk_size
        chunk = written
        offset = 0
        for pieces in cut(entry.content, chunk_size):
            # A landmark begins a member in any case: it is where the prefetch range ends.
            is_full = self.member.size >= self._options.min_chunk_size or entry.start < 0
            if is_full and self.member.size:
                yield self._closed()
            if offset:
                chunk = self._contents.add_chunk(written, offset)
            elif entry.size > chunk_size:
                self.member.files.append((written, entry.content))
            size = sum(map(length, pieces))
            if entry.size > chunk_size:
                chunk.chunk_size = size
            self.member.spans.append((self.member.size, size))
            self.member.chunks.append(chunk)
            self._append(pieces)
            self._headers = 0
            offset += size

    def _append(self, extents: list[Extent]) -> None:
        self.member.extents += extents
        self.member.size += sum(map(length, extents))

    def _closed(self) -> Member:
        member, self.member = self.member, Member()
        self._headers = 0
        return member
