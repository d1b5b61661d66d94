"""Reading a tar, block by block: each entry with its raw headers, and what a table of contents says of it.

Nothing of the headers is kept but where they are, so that an entry can be written again bytewise, in any
order. Reads as Go's archive/tar does, which is what every unpacker of images is made of: what that would not
read is no layer, and ends in a FormatError which names the entry and the place.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final, NoReturn

from fetcher.convert import header as tar
from fetcher.convert import pax, sparse
from fetcher.convert.entry import (
    DIRECTORY,
    GLOBAL,
    HARD_LINK,
    REGULAR,
    SYMLINK,
    Entry,
    clean,
    text,
)
from fetcher.convert.header import BLOCK, ZERO_BLOCK, Header, padding, parse_header
from fetcher.convert.rewriting import Part, rewritten
from fetcher.convert.unpacking import UnpackedTar
from fetcher.errors import FormatError
from fetcher.sniffing import HEAD, describe_blob

EXTENDED_LIMIT: Final = 1 << 20
"""Bytes in one extended header; archive/tar of Go takes no more either."""
_EXTENDED_TOTAL: Final = 4 << 20
"""Bytes of all extended headers in front of one entry."""
HOLES_LIMIT: Final = 1 << 40
"""Bytes of holes in a layer, which cost its maker nothing, but have to be written out."""

_KINDS: Final = {
    tar.REGULAR: REGULAR,
    tar.OLD_REGULAR: REGULAR,
    tar.GNU_SPARSE: REGULAR,
    tar.HARD_LINK: HARD_LINK,
    tar.SYMLINK: SYMLINK,
    tar.CHARACTER: "char",
    tar.BLOCK_DEVICE: "block",
    tar.DIRECTORY: DIRECTORY,
    tar.FIFO: "fifo",
}
_EXTENDED: Final = (tar.PAX, tar.PAX_GLOBAL, tar.GNU_NAME, tar.GNU_LINK)


def read_archive(source: UnpackedTar) -> Iterator[Entry]:
    """The entries of a tar in its order. Raises FormatError, OSError."""
    reader = _Reader(source)
    while (entry := reader.next_entry()) is not None:
        yield entry


class _Reader:
    """Stands at `offset`, where the next header block should be."""

    def __init__(self, source: UnpackedTar) -> None:
        self._source = source
        self._offset = 0
        self._holes = 0
        self._named = ""
        """How errors say where in the tar they are: behind this entry."""

    def next_entry(self) -> Entry | None:
        """The next entry, or None at the end of the archive."""
        start = self._offset
        parts: list[Part] = []
        records: pax.Records = []
        long_name = long_link = b""
        while True:
            block = self._header_block(start)
            if block is None:
                if parts:
                    self._broken("ends behind an extended header")
                return None
            head = parse_header(block, self._offset)
            self._offset += BLOCK
            if head.type not in _EXTENDED:
                break
            if head.size > EXTENDED_LIMIT:
                raise FormatError(
                    f"the extended header at byte {self._offset - BLOCK} of the tar has {head.size} bytes; "
                    f"at most {EXTENDED_LIMIT} are read"
                )
            if self._offset - start + head.size > _EXTENDED_TOTAL:
                raise FormatError(
                    f"the extended headers at byte {start} of the tar have more than {_EXTENDED_TOTAL} bytes"
                )
            content_offset = self._offset
            content = self._content(head.size, "an extended header")
            if head.type == tar.PAX_GLOBAL:
                pax.parse_records(content, content_offset)
                return Entry(kind=GLOBAL, name="", path="", start=start, header=(start, self._offset - start))
            parts.append(Part(head.type, block, content))
            if head.type == tar.PAX:
                records = pax.parse_records(content, content_offset)
            elif head.type == tar.GNU_NAME:
                long_name = content.partition(b"\0")[0]
            else:
                long_link = content.partition(b"\0")[0]
        _merge(head, records, start)
        head.name = long_name or head.name
        head.link = long_link or head.link
        entry = self._entry(head, records, start)
        if entry.kind == REGULAR:
            self._place(entry, head, [*parts, Part(head.type, block, b"")], records)
        self._named = entry.name
        return entry

    def _header_block(self, start: int) -> bytes | None:
        """The block at hand, or None at the end of the archive."""
        block = os.pread(self._source.fd, BLOCK, self._offset)
        if not block:
            return None
        if len(block) < BLOCK:
            self._broken(f"breaks off in a header, of which {len(block)} bytes are there")
        if block == ZERO_BLOCK:
            following = os.pread(self._source.fd, BLOCK, self._offset + BLOCK)
            if following.strip(b"\0"):
                self._broken("has a block of zeros between its entries")
            return None
        if not self._offset and block[257:262] != b"ustar":
            self._check_is_tar(block)
        return block

    def _check_is_tar(self, block: bytes) -> None:
        """Say what the source is if its first block is no header of any kind."""
        try:
            parse_header(block, 0)
        except FormatError:
            start = os.pread(self._source.fd, HEAD, 0)
            raise FormatError(f"this is no tar archive, but {describe_blob(start, start)}") from None

    def _entry(self, head: Header, records: pax.Records, start: int) -> Entry:
        """The entry but for a regular file's content."""
        kind = _KINDS.get(head.type)
        name = text(head.name)
        if kind is None:
            raise FormatError(
                f"{name!r} at byte {start} of the tar has the type {head.type!r}, which no layer can have"
            )
        if head.type == tar.OLD_REGULAR and name.endswith("/"):
            kind = DIRECTORY
        xattrs = {
            text(key.removeprefix(pax.XATTR)): value for key, value in records if key.startswith(pax.XATTR)
        }
        return Entry(
            kind=kind,
            name=name,
            path=clean(name),
            start=start,
            link=text(head.link) if kind in (HARD_LINK, SYMLINK) else "",
            mode=head.mode & 0o7777,
            uid=head.uid,
            gid=head.gid,
            user=text(head.user),
            group=text(head.group),
            mtime=head.mtime,
            major=head.major,
            minor=head.minor,
            xattrs=xattrs or None,
            header=(start, self._offset - start),
        )

    def _place(self, entry: Entry, head: Header, parts: list[Part], records: pax.Records) -> None:
        """Find the content of a regular file, and step over it."""
        form = "old" if head.type == tar.GNU_SPARSE else sparse.pax_form(records)
        if form:
            self._place_sparse(entry, head, parts, records, form)
            return
        entry.size = head.size
        if head.size:
            self._present(head.size, entry.name)
            entry.content = ((self._offset, head.size),)
            self._offset += head.size
            entry.padding = self._padding(head.size)

    def _place_sparse(
        self, entry: Entry, head: Header, parts: list[Part], records: pax.Records, form: str
    ) -> None:
        """Write a sparse file out: its content has holes, and its header is that of an ordinary file."""
        stored = head.size
        extensions = self._extensions(parts[-1].block) if form == "old" else b""
        self._present(stored, entry.name)
        name = None
        try:
            if form == "old":
                pairs, entry.size = sparse.old_map(parts[-1].block, extensions)
            else:
                entry.size = sparse.real_size(records)
                pairs = sparse.pax_map(records) if form == "0.x" else []
                name = dict(records).get(b"GNU.sparse.name")
            used = 0
            if form == "1.0":
                found = sparse.leading_map(
                    os.pread(self._source.fd, min(stored, sparse.MAP_LIMIT), self._offset)
                )
                if found is None:
                    raise ValueError("its sparse map is cut off or too large")
                pairs, used = found
            entry.content = sparse.expand(pairs, entry.size, data=self._offset + used, stored=stored - used)
        except (ValueError, FormatError) as error:
            raise FormatError(
                f"the sparse file {entry.name!r} at byte {entry.start} of the tar: {error}"
            ) from None
        self._holes += entry.size - (stored - used)
        if self._holes > HOLES_LIMIT:
            raise FormatError(
                f"the sparse file {entry.name!r} at byte {entry.start} of the tar: "
                f"more than {HOLES_LIMIT} bytes of holes would have to be written out"
            )
        self._offset += stored + padding(stored)
        if name:
            entry.name = text(name)
            entry.path = clean(entry.name)
        entry.header = rewritten(parts, name=name, size=entry.size, whole=True)
        entry.padding = bytes(padding(entry.size))

    def _extensions(self, block: bytes) -> bytes:
        """The extension blocks behind the header of an old sparse file."""
        found = b""
        first = True
        while sparse.is_extended(block, first=first):
            if len(found) >= sparse.MAP_LIMIT:
                self._broken("has a sparse file with too large a map")
            block = self._content(BLOCK, "a sparse map")
            found += block
            first = False
        return found

    def _content(self, size: int, what: str) -> bytes:
        """The `size` bytes at hand; steps over them and their padding."""
        self._present(size, what)
        content = os.pread(self._source.fd, size, self._offset)
        self._offset += size + padding(size)
        return content

    def _present(self, size: int, what: str) -> None:
        """Raise FormatError unless the tar has `size` bytes more."""
        there = self._source.size - self._offset
        if there < size:
            raise FormatError(
                f"the tar breaks off in {what!r}: of {size} bytes at byte {self._offset} "
                f"only {max(there, 0)} are there"
            )

    def _padding(self, size: int) -> tuple[int, int] | bytes:
        """What fills up the last block at hand; steps over it. A tar's last padding may be missing."""
        count = padding(size)
        start = self._offset
        self._offset += count
        return (start, count) if self._offset <= self._source.size else bytes(count)

    def _broken(self, what: str) -> NoReturn:
        behind = f", behind {self._named!r}" if self._named else ""
        raise FormatError(f"the tar {what}, at byte {self._offset}{behind}")


def _merge(head: Header, records: pax.Records, offset: int) -> None:
    """Let an extended header's records override the fields; an empty value leaves the field alone."""
    for key, value in records:
        if not value:
            continue
        if key == b"path":
            head.name = value
        elif key == b"linkpath":
            head.link = value
        elif key == b"size":
            head.size = pax.number(value, key, offset)
            if head.size < 0:
                raise FormatError(f"the PAX header at byte {offset} has the size {head.size}")
        elif key == b"uid":
            head.uid = pax.number(value, key, offset)
        elif key == b"gid":
            head.gid = pax.number(value, key, offset)
        elif key == b"uname":
            head.user = value
        elif key == b"gname":
            head.group = value
        elif key == b"mtime":
            head.mtime = pax.seconds(value, offset)
