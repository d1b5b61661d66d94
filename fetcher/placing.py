"""Placing compression members: inflate, verify, write. Blocking; in any thread or process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from fetcher.errors import FormatError, VerificationError
from fetcher.inflate import inflate
from fetcher.nodes import Chunk, Member, Node
from fetcher.pieces import verified_piece
from fetcher.plain import PlainFile, PlainLayer

WHOLE_MEMBER: Final = 8 << 20
"""Members up to this many compressed bytes are inflated in one go; larger ones as they arrive."""
WHOLE_OUTPUT: Final = 32 << 20
"""No more than this of a member is inflated in one go: of zeros, 8 MiB inflate to 8 GiB."""


@dataclass(slots=True)
class Writing:
    """A file of several chunks, and how many bytes of it have still to be written."""

    file: PlainFile
    missing: int


class Piece(NamedTuple):
    """A chunk that is wanted of a member; `writing` is None for a file of one chunk."""

    node: Node
    chunk: Chunk
    writing: Writing | None


class Writings:
    """The files of several chunks of which some have come, in the blob's order. Close it in any case."""

    def __init__(self, plain: PlainLayer, comes_whole: Callable[[Node], bool]) -> None:
        """No file is begun that `comes_whole` denies."""
        self._plain = plain
        self._comes_whole = comes_whole
        self._open: dict[int, Writing] = {}

    def of(self, node: Node, chunk: Chunk) -> Writing | None:
        """The file that `chunk` belongs to; None if it is here, or does not come whole. Raises StoreError."""
        writing = self._open.get(id(node))
        if writing is not None or chunk.file_offset or not self._comes_whole(node) or self._plain.has(node):
            return writing
        writing = self._open[id(node)] = Writing(self._plain.create(node), node.size)
        return writing

    def piece(self, node: Node, chunk: Chunk, *, may_be_here: bool) -> Piece | None:
        """What to place of `chunk`; None if nothing. Raises StoreError.

        A file of one chunk that cannot be here is not looked for.
        """
        if len(node.chunks) == 1:
            return None if may_be_here and self._plain.has(node) else Piece(node, chunk, None)
        writing = self.of(node, chunk)
        return None if writing is None else Piece(node, chunk, writing)

    def took(self, writing: Writing, chunk: Chunk) -> bool:
        """`chunk` was verified and written; whether the file is new with it. Raises StoreError."""
        writing.missing -= chunk.size
        if writing.missing:
            return False
        file = writing.file
        del self._open[id(file.node)]
        with contextlib.closing(file):
            return file.commit()

    def close(self) -> None:
        """Give up the files of which the rest does not come."""
        for writing in self._open.values():
            writing.file.close()
        self._open.clear()


def wanted_output(member: Member) -> int:
    """How many bytes of a member's output have anything of files in them."""
    chunk = member.pieces[-1][1]
    return chunk.inner_offset + chunk.size


def is_small(member: Member) -> bool:
    """Whether a member may be inflated in one go."""
    return member.end - member.offset <= WHOLE_MEMBER and wanted_output(member) <= WHOLE_OUTPUT


def place(plain: PlainLayer, member: Member, data: bytes | memoryview, pieces: Sequence[Piece]) -> int:
    """Write `pieces` of a member whose compressed bytes are `data`; how many files are new with it.

    Raises VerificationError, and StoreError if the disk refuses.
    """
    try:
        output = inflate(data, wanted_output(member))
        new = 0
        for piece in pieces:
            verified = verified_piece(output, piece.node, piece.chunk)
            if piece.writing is not None:
                piece.writing.file.write(verified, piece.chunk.file_offset)
            elif plain.write(piece.node, verified):
                new += 1
    except FormatError as error:
        raise damage(member, error) from error
    return new


def has_whole_files(member: Member) -> bool:
    """Whether each piece of a member is a file of its own."""
    return all(len(node.chunks) == 1 for node, _ in member.pieces)


def place_whole_files(plain: PlainLayer, members: Sequence[Member], data: memoryview) -> int:
    """`place` neighbours that have only whole files, which are missing; `data` has one behind another.

    Of several files in a member, some may be here.
    """
    new = 0
    for member in members:
        start = member.offset - members[0].offset
        alone = len(member.pieces) == 1
        pieces = [Piece(node, chunk, None) for node, chunk in member.pieces if alone or not plain.has(node)]
        new += place(plain, member, data[start : start + member.end - member.offset], pieces)
    return new


def damage(member: Member, error: FormatError) -> VerificationError:
    """What to raise for a member that is none."""
    path = member.pieces[0][0].path
    return VerificationError(f"{path!r}: the layer is damaged at byte {member.offset}: {error}")
