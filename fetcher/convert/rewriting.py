"""An entry's header blocks with another name, link target or size; everything else stays as it was. Pure.

Needed for what cannot be written as it was read: sparse files, and hard links whose target was replaced.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from fetcher.convert import pax, sparse
from fetcher.convert.header import (
    BLOCK,
    GNU_LINK,
    GNU_NAME,
    GNU_SPARSE,
    OCTAL_LIMIT,
    PAX,
    REGULAR,
    new_header,
    padding,
    parse_header,
    patch,
)

_SIZE: Final = 124
_TYPE: Final = 156
_LINK: Final = 157
_PREFIX: Final = 345
_FIELD: Final = 100
"""Bytes of the fields for a name and a link's target."""
_POSIX: Final = b"ustar\x0000"


class Part(NamedTuple):
    """One of an entry's header blocks; `content` is an extended header's, without padding."""

    type: bytes
    block: bytes
    content: bytes


def split_header(data: bytes) -> list[Part]:
    """The parts of an entry's header blocks, the entry's own block last; they have been read before."""
    parts: list[Part] = []
    offset = 0
    while True:
        block = data[offset : offset + BLOCK]
        head = parse_header(block, offset)
        offset += BLOCK
        if head.type not in (PAX, GNU_NAME, GNU_LINK):
            return [*parts, Part(head.type, block, b"")]
        parts.append(Part(head.type, block, data[offset : offset + head.size]))
        offset += head.size + padding(head.size)


def rewritten(
    parts: list[Part],
    *,
    name: bytes | None = None,
    link: bytes | None = None,
    size: int | None = None,
    whole: bool = False,
) -> bytes:
    """The header blocks with the fields changed that are given; `whole` takes the sparse map away."""
    *extended, (kind, block, _) = parts
    records: pax.Records = []
    frame = b""
    kept = b""
    for part in extended:
        if part.type == PAX:
            # A later extended header replaces an earlier one.
            records, frame = pax.parse_records(part.content, 0), part.block
        elif (name if part.type == GNU_NAME else link) is None:
            kept += part.block + part.content + bytes(padding(len(part.content)))
    if whole:
        records = [(key, value) for key, value in records if not key.startswith(pax.GNU_SPARSE)]
    fields: dict[int, bytes] = {}
    if name is not None:
        records = _without(records, b"path")
        fields[0] = name[:_FIELD].ljust(_FIELD, b"\0")
        if block[257:265] == _POSIX:
            fields[_PREFIX] = bytes(131 if block[508:] == b"tar\0" else 155)
        if len(name) > _FIELD:
            records.append((b"path", name))
    if link is not None:
        records = _without(records, b"linkpath")
        fields[_LINK] = link[:_FIELD].ljust(_FIELD, b"\0")
        if len(link) > _FIELD:
            records.append((b"linkpath", link))
    if size is not None:
        records = _without(records, b"size")
        fits = size < OCTAL_LIMIT
        fields[_SIZE] = b"%011o\0" % (size if fits else 0)
        if not fits:
            records.append((b"size", str(size).encode()))
    if whole and kind == GNU_SPARSE:
        offset, zeros = sparse.OLD_FIELDS
        fields[offset] = zeros
        fields[_TYPE] = REGULAR
    return _extended(records, frame) + kept + patch(block, fields)


def _extended(records: pax.Records, frame: bytes) -> bytes:
    """The extended header with these records; `frame` is the block that it had, b"" if it had none."""
    if not records:
        return b""
    content = pax.format_records(records)
    if frame:
        block = patch(frame, {_SIZE: b"%011o\0" % len(content)})
    else:
        block = new_header(b"././@PaxHeader", len(content), kind=PAX)
    return block + content + bytes(padding(len(content)))


def _without(records: pax.Records, key: bytes) -> pax.Records:
    return [record for record in records if record[0] != key]
