"""Where the bytes of a tree's files are: the chunks of each file, and the members that hold them. Pure.

What `fetcher.tree` relies on: the chunks of a file cover it exactly, in its order and the blob's, and those
of a member do not overlap.
"""

from __future__ import annotations

from binascii import unhexlify
from collections.abc import Sequence
from operator import attrgetter, itemgetter
from typing import Final

from fetcher.errors import InvalidToc
from fetcher.nodes import Chunk, Member, Node
from fetcher.toc import ShownEntry, TocEntry

MAX_SIZE: Final = 1 << 62
"""Bytes of a file."""


def file_chunks(
    path: str, size: int, entry: TocEntry, more: Sequence[ShownEntry], end: int
) -> tuple[Chunk, ...]:
    """The chunks of the file at `path`, of `size` bytes; `more` are the chunk entries behind its own.

    `end` is where the members end in the blob. Raises InvalidToc.
    """
    offset, inner = entry.offset + 0, entry.inner_offset + 0
    if (
        not more
        and not entry.chunk_offset
        and entry.chunk_size in (0, size)
        and 0 <= offset < end
        and 0 <= inner <= MAX_SIZE - size
        and 0 <= size <= MAX_SIZE
    ):
        # A file of one piece may carry its own digest alone: legacy stargz, containers/storage.
        return (Chunk(offset, inner, 0, size, _sha256(entry.chunk_digest or entry.digest, path)),)
    others = [one for one in more if isinstance(one, TocEntry)]
    return _many_chunks(path, within(size, 0, MAX_SIZE, path, "size"), entry, others, end)


def _many_chunks(
    path: str, size: int, entry: TocEntry, more: Sequence[TocEntry], end: int
) -> tuple[Chunk, ...]:
    whole = "" if more else entry.digest
    chunks = []
    position = 0
    before = (-1, 0)
    for piece in sorted((entry, *more), key=attrgetter("chunk_offset")) if more else (entry,):
        length = piece.chunk_size + 0 or size - piece.chunk_offset
        if piece.chunk_offset != position or not 0 < length <= size - position:
            raise InvalidToc(f"the chunks of {path!r} overlap or leave a gap at byte {position}")
        if not 0 <= piece.offset < end or not 0 <= piece.inner_offset <= MAX_SIZE - length:
            raise InvalidToc(f"a chunk of {path!r} lies at byte {piece.offset}, outside the layer")
        place = (piece.offset + 0, piece.inner_offset + 0)
        if place <= before:
            # Whoever streams a layer writes a file from its beginning on.
            raise InvalidToc(f"the chunks of {path!r} do not lie in the order of the file")
        before = place
        digest = _sha256(piece.chunk_digest or whole, path)
        chunks.append(Chunk(*place, position, length, digest))
        position += length
    if position != size:
        raise InvalidToc(f"the chunks of {path!r} have {position} bytes, the file {size}")
    return tuple(chunks)


def _sha256(text: str, path: str) -> bytes:
    if len(text) == 71 and text.startswith("sha256:"):
        try:
            return unhexlify(text[7:])
        except ValueError:
            pass
    raise InvalidToc(f"{path!r} has a chunk without a sha256 digest ({text[:80]!r})")


def within(value: int, low: int, high: int, path: str, what: str) -> int:
    """The `value`, which is `what` of the entry at `path`. Raises InvalidToc if it is not in [low, high]."""
    if not low <= value <= high:
        raise InvalidToc(f"{path!r} has the {what} {value}, outside {low} to {high}")
    return value


def layer_members(nodes: dict[str, Node], landmark: int | None, end: int) -> list[Member]:
    """The members by offset; sets each chunk's `end`, the offset of the member behind it.

    Raises InvalidToc.
    """
    placed = [
        (chunk.offset, chunk.inner_offset, (node, chunk))
        for path, node in nodes.items()
        if node.path == path
        for chunk in node.chunks
    ]
    placed.sort(key=itemgetter(0, 1))
    members: list[Member] = []
    stop = end
    index = len(placed)
    while index:
        offset = placed[index - 1][0]
        begin = index - 1
        if landmark is not None and offset < landmark < stop:
            stop = landmark
        if not begin or placed[begin - 1][0] != offset:  # a file of its own, as most are
            piece = placed[begin][2]
            piece[1].end = stop
            members.append(Member(offset, stop, (piece,)))
            stop = offset
            index = begin
            continue
        while begin and placed[begin - 1][0] == offset:
            begin -= 1
        pieces = tuple(piece for _, _, piece in placed[begin:index])
        position = 0
        for node, chunk in pieces:
            if chunk.inner_offset < position:
                raise InvalidToc(f"a chunk of {node.path!r} overlaps another at byte {offset} of the layer")
            position = chunk.inner_offset + chunk.size
            chunk.end = stop
        members.append(Member(offset, stop, pieces))
        stop = offset
        index = begin
    members.reverse()
    return members
