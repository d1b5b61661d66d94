"""GNU tar's sparse files, in each of its four forms, as extents of a whole file. Pure; no I/O.

| form | where the map is |
|---|---|
| old GNU, type 'S' | 4 pairs in the header block at 386, 21 more in each extension block behind it |
| PAX 0.0 | pairs of records GNU.sparse.offset and GNU.sparse.numbytes |
| PAX 0.1 | the record GNU.sparse.map, `offset,size,offset,size...` |
| PAX 1.0 | in front of the content: decimal lines, the number of pairs first, filled up to a block |

A table of contents cannot say where a file has holes, so sparse files are written out.
"""

from __future__ import annotations

from typing import Final

from fetcher.convert.extents import HOLE, Extent
from fetcher.convert.header import BLOCK
from fetcher.convert.pax import Records
from fetcher.errors import FormatError

EXTENSION_ENTRIES: Final = 21
MAP_LIMIT: Final = 1 << 20
"""Bytes of a map in front of a file's content, and of the extension blocks of an old one."""

_FIRST: Final = 386
_EXTENDED: Final = 482
_REAL_SIZE: Final = slice(483, 495)
_PAIR: Final = 24
OLD_FIELDS: Final = (_FIRST, bytes(495 - _FIRST))
"""Where the old form's map lies in a header block, and what makes it disappear."""

Map = list[tuple[int, int]]
"""Offset and length of each piece that is there; the rest is zeros."""


def is_extended(block: bytes, *, first: bool) -> bool:
    """Whether another extension block follows this header block (`first`) or extension block."""
    return block[_EXTENDED if first else EXTENSION_ENTRIES * _PAIR] != 0


def old_map(block: bytes, extensions: bytes) -> tuple[Map, int]:
    """The map of a type 'S' entry, and the file's size. Raises ValueError."""
    pairs = _old_pairs(block[_FIRST:_EXTENDED])
    for start in range(0, len(extensions), BLOCK):
        pairs += _old_pairs(extensions[start : start + EXTENSION_ENTRIES * _PAIR])
    return pairs, _old_number(block[_REAL_SIZE])


def _old_pairs(field: bytes) -> Map:
    pairs = []
    for start in range(0, len(field), _PAIR):
        if not field[start]:
            break
        offset, size = field[start : start + 12], field[start + 12 : start + _PAIR]
        pairs.append((_old_number(offset), _old_number(size)))
    return pairs


def _old_number(field: bytes) -> int:
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big")
    return int(field.strip(b" \0") or b"0", 8)


def pax_form(records: Records) -> str:
    """Which form of sparse file the records announce: "0.x", "1.0", or "" for an ordinary file."""
    last = dict(records)
    version = (last.get(b"GNU.sparse.major", b""), last.get(b"GNU.sparse.minor", b""))
    if version == (b"1", b"0"):
        return "1.0"
    known = version in ((b"0", b"0"), (b"0", b"1")) or version == (b"", b"")
    return "0.x" if known and (b"GNU.sparse.map" in last or b"GNU.sparse.offset" in last) else ""


def pax_map(records: Records) -> Map:
    """The map of a file of the forms 0.0 and 0.1. Raises ValueError."""
    numbers: list[int] = []
    for key, value in records:
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            if (len(numbers) % 2 == 0) != (key == b"GNU.sparse.offset"):
                raise ValueError("its sparse map has no pairs")
            numbers.append(_decimal(value))
        elif key == b"GNU.sparse.map":
            numbers = [_decimal(part) for part in value.split(b",")] if value else []
    return _pairs(numbers)


def real_size(records: Records) -> int:
    """The size that the records give a sparse file. Raises ValueError."""
    last = dict(records)
    value = last.get(b"GNU.sparse.size") or last.get(b"GNU.sparse.realsize")
    if value is None:
        raise ValueError("its size is not said")
    return _decimal(value)


def leading_map(data: bytes) -> tuple[Map, int] | None:
    """The map at the beginning of a 1.0 file's content, and the bytes it takes.

    None if `data` has not all of it. Raises ValueError.
    """
    first = data.find(b"\n")
    if first < 0:
        return None
    lines = 1 + 2 * _decimal(data[:first])
    parts = data.split(b"\n", lines) if lines <= MAP_LIMIT else []
    if len(parts) <= lines:
        return None
    used = len(data) - len(parts[-1])
    return _pairs([_decimal(part) for part in parts[1:-1]]), used + -used % BLOCK


def _pairs(numbers: list[int]) -> Map:
    if len(numbers) % 2:
        raise ValueError("its sparse map has no pairs")
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _decimal(value: bytes) -> int:
    if not value.isdigit() or len(value) > 19:
        raise ValueError(f"its sparse map has {value[:20]!r} for a number")
    return int(value)


def expand(pairs: Map, size: int, *, data: int, stored: int) -> tuple[Extent, ...]:
    """The extents of a whole file of `size` bytes whose `stored` bytes lie at `data` in the tar.

    Raises FormatError for a map that does not fit.
    """
    extents: list[Extent] = []
    position = 0
    for offset, count in pairs:
        if offset < position or offset + count > size:
            raise FormatError("its sparse map is not in order, or leads beyond the file")
        if offset > position:
            extents.append((HOLE, offset - position))
        if count:
            extents.append((data, count))
        data += count
        stored -= count
        position = offset + count
    if size > position:
        extents.append((HOLE, size - position))
    if stored:
        raise FormatError("its sparse map does not fit the bytes that are there")
    return tuple(extents)
