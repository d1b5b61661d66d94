"""Where bytes of an output come from: extents of the source tar, holes, and literal bytes.

What a layer is made of is described by extents and read only where it is compressed or hashed, so that
little passes between processes and memory stays flat. They are plain tuples, as tens of thousands of them
are pickled.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from fetcher.errors import FormatError

Extent = tuple[int, int] | bytes
"""(offset in the source tar, length); (HOLE, length) for zero bytes; or the bytes themselves."""

HOLE: Final = -1
_BLOCK: Final = 1 << 20


def length(extent: Extent) -> int:
    """How many bytes the extent stands for."""
    return len(extent) if isinstance(extent, bytes) else extent[1]


def cut(extents: Sequence[Extent], size: int) -> Iterator[list[Extent]]:
    """The extents in runs of `size` bytes; the last may have fewer, and nothing gives no run."""
    run: list[Extent] = []
    room = size
    for extent in extents:
        rest = extent
        while (count := length(rest)) > room:
            yield [*run, _part(rest, 0, room)]
            rest = _part(rest, room, count)
            run, room = [], size
        if count:
            run.append(rest)
            room -= count
    if run:
        yield run


def _part(extent: Extent, start: int, stop: int) -> Extent:
    if isinstance(extent, bytes):
        return extent[start:stop]
    offset, _ = extent
    return (offset if offset == HOLE else offset + start, stop - start)


def read(fd: int, extents: Iterable[Extent]) -> bytes:
    """All bytes of the extents. Raises FormatError if the file behind `fd` has become shorter."""
    return b"".join(blocks(fd, extents))


def blocks(fd: int, extents: Iterable[Extent]) -> Iterator[bytes]:
    """The bytes of the extents in blocks of at most 1 MiB; extents that touch are read at once.

    Raises FormatError if the file behind `fd` has become shorter.
    """
    for extent in _joined(extents):
        if isinstance(extent, bytes):
            yield extent
            continue
        offset, count = extent
        while count:
            block = bytes(min(count, _BLOCK)) if offset == HOLE else os.pread(fd, min(count, _BLOCK), offset)
            if not block:
                raise FormatError(f"the tar has become shorter while it was read: it ends at byte {offset}")
            yield block
            count -= len(block)
            offset = HOLE if offset == HOLE else offset + len(block)


def _joined(extents: Iterable[Extent]) -> Iterator[Extent]:
    """The extents, those that lie behind one another in the file as one."""
    start = count = 0
    for extent in extents:
        if isinstance(extent, bytes) or extent[0] != start + count or extent[0] == HOLE:
            if count:
                yield (start, count)
            start = count = 0
            if isinstance(extent, bytes) or extent[0] == HOLE:
                yield extent
            else:
                start, count = extent
        else:
            count += extent[1]
    if count:
        yield (start, count)
